"""Whether VMs could still be restarted if nodes failed, by what is claimed: before and after something is done.

VMs are restarted in the order of their priority, each on the node that the scheduler's strategy likes best, and that is
what is tried here; rules of VMs about each other and about nodes are not looked at. Most nodes need no trial: however
VMs are put, one with so much room that as many of its largest VM fit elsewhere cannot leave any without a place.

A lack that was there before is nobody's fault: what is done is refused only if more VMs would be without a place than
without it. At least one node must be left to restart anything, so of n nodes that take VMs no more than n - 1 are taken
to fail: a cluster of one node refuses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controlplane.domain.admission import KeptRoom
from controlplane.scheduler.scores import Strategy, column_of_points

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

MAX_FAILED_SETS: Final = 64
"""Of several nodes that fail at once all sets are tried up to this many; beyond, those of the fullest nodes."""
MAX_FAILURES: Final = 8
"""More are not counted by `failures_survived`."""
LOST: Final = -1
"""What is survived where not even the VMs that wait now have room."""
_FEW_SIZES: Final = 32
"""Sizes that are looked at as they are; of more, those that are nearly equal are taken together, rounded up."""
_STEPS_PER_DOUBLING: Final = 2


@dataclass(frozen=True, slots=True)
class HostRoom:
    """A node. `takes_vms` says whether VMs are restarted there; of one that `is_down` they wait for that already."""

    id: str
    hostname: str
    capacity: tuple[int, int]
    """vCPUs and bytes of memory."""
    claimed: tuple[int, int]
    """By all VMs, whether they are restarted or not."""
    takes_vms: bool = True
    is_down: bool = False


@dataclass(frozen=True, slots=True)
class ProtectedVm:
    """A VM that is restarted elsewhere when its node fails; it may run or not."""

    id: str
    node_id: str
    vcpus: int
    memory_bytes: int
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Lack:
    """VMs that would have no place if nodes failed; without nodes, those that wait already."""

    hostnames: tuple[str, ...]
    vm_count: int
    """All that would have to be restarted."""
    homeless_count: int
    vcpus: int
    memory_bytes: int

    def is_worse_than(self, other: Lack | None) -> bool:
        """Whether more lacks than in the other."""
        if other is None:
            return self.homeless_count > 0
        here = (self.homeless_count, self.vcpus, self.memory_bytes)
        there = (other.homeless_count, other.vcpus, other.memory_bytes)
        return any(mine > its for mine, its in zip(here, there, strict=True))

    @property
    def words(self) -> str:
        """What people read: "if node-3 failed, 2 of 12 VMs would find no room (4 vCPUs and 2,048 MiB)"."""
        names = " and ".join(self.hostnames)
        size = f"{self.vcpus:,} vCPUs and {-(-self.memory_bytes // 2**20):,} MiB"
        event = f"if {names} failed" if names else "of those that wait to be restarted already"
        return f"{event}, {self.homeless_count} of {self.vm_count} VMs would find no room ({size})"


@dataclass(frozen=True, slots=True)
class Room:
    """The cluster as columns, nodes in the order of their ids and VMs in that of their restart."""

    node_ids: tuple[str, ...]
    hostnames: tuple[str, ...]
    capacity: Floats
    claimed: Floats
    takes_vms: Flags
    is_down: Flags
    place: Ints
    """Of each VM, its node."""
    size: Floats
    priority: Ints
    strategy: Strategy = Strategy.SPREAD

    @property
    def open_count(self) -> int:
        """How many nodes take VMs."""
        return int(self.takes_vms.sum())

    def index_of(self, node_id: str) -> int:
        """Place of a node.

        Raises:
            ValueError: there is none of that id.
        """
        return self.node_ids.index(node_id)

    def with_vm(self, node_id: str, size: tuple[int, int], *, is_protected: bool, priority: int = 0) -> Room:
        """Return it with one more VM on a node, the last of its priority to be restarted."""
        return self.with_vms([self.index_of(node_id)], size, is_protected=is_protected, priority=priority)

    def with_vms(self, nodes: Sequence[int], size: tuple[int, int], *, is_protected: bool, priority: int = 0) -> Room:
        """Return it with as many more VMs of one size, each on a node by its place."""
        if not nodes:
            return self
        claimed = self.claimed.copy()
        np.add.at(claimed, np.array(nodes, np.int64), np.array(size, np.float64))
        if not is_protected:
            return replace(self, claimed=claimed)
        at = np.full(len(nodes), np.searchsorted(-self.priority, -priority, side="right"))
        return replace(
            self,
            claimed=claimed,
            place=np.insert(self.place, at, nodes),
            size=np.insert(self.size, at, [size] * len(nodes), axis=0),
            priority=np.insert(self.priority, at, priority),
        )

    def emptied(self, node_id: str, others: Iterable[tuple[int, int]], target_node_id: str = "") -> Room:
        """Return it with a node emptied and closed: its VMs, largest first, put where the strategy has them.

        One that fits nowhere stays.

        Args:
            others: sizes of VMs there that are not restarted elsewhere.
            target_node_id: the only node that they may go to; "" for all.
        """
        node = self.index_of(node_id)
        takes_vms = self.takes_vms.copy()
        takes_vms[node] = False
        claimed, place = self.claimed.copy(), self.place.copy()
        open_ones = takes_vms & (np.array(self.node_ids) == target_node_id) if target_node_id else takes_vms
        moves = [(self.size[vm], vm) for vm in np.flatnonzero(self.place == node).tolist()]
        moves += [(np.array(size, np.float64), -1) for size in others]
        for size, vm in sorted(moves, key=lambda move: (-move[0][1], -move[0][0], move[1])):
            target = best_node(self, open_ones, claimed, size)
            if target is None:
                continue
            claimed[node] -= size
            claimed[target] += size
            if vm >= 0:
                place[vm] = target
        return replace(self, takes_vms=takes_vms, claimed=claimed, place=place)


def room_of(hosts: Iterable[HostRoom], vms: Iterable[ProtectedVm], strategy: Strategy = Strategy.SPREAD) -> Room:
    """Set up the columns; VMs on nodes that are not given are left out."""
    nodes = sorted(hosts, key=lambda host: host.id)
    index = {host.id: place for place, host in enumerate(nodes)}
    ordered = sorted((vm for vm in vms if vm.node_id in index), key=lambda vm: (-vm.priority, vm.id))
    return Room(
        node_ids=tuple(host.id for host in nodes),
        hostnames=tuple(host.hostname for host in nodes),
        capacity=np.array([host.capacity for host in nodes], np.float64).reshape(-1, 2),
        claimed=np.array([host.claimed for host in nodes], np.float64).reshape(-1, 2),
        takes_vms=np.array([host.takes_vms and not host.is_down for host in nodes], np.bool_),
        is_down=np.array([host.is_down for host in nodes], np.bool_),
        place=np.array([index[vm.node_id] for vm in ordered], np.int64),
        size=np.array([(vm.vcpus, vm.memory_bytes) for vm in ordered], np.float64).reshape(-1, 2),
        priority=np.array([vm.priority for vm in ordered], np.int64),
        strategy=strategy,
    )


def lacks(room: Room, failures: int) -> Iterator[Lack]:
    """Find sets of so many nodes whose failure would leave VMs without a place; no more fail than leave one node."""
    for failed in _doubtful_sets(room, min(failures, max(room.open_count - 1, 0))):
        if (lack := lack_of(room, failed)).homeless_count:
            yield lack


def survives(room: Room, failures: int) -> bool:
    """Whether all VMs would have a place, whichever nodes failed."""
    return next(lacks(room, failures), None) is None


def failures_survived(room: Room) -> int:
    """Count how many nodes, whichever they are, may fail at once: up to `MAX_FAILURES`, or `LOST`.

    Of all nodes no more than all but one can, unless there is nothing to be restarted.
    """
    most = min(MAX_FAILURES, max(room.open_count - 1, 0))
    for failures in range(most + 1):
        if not survives(room, failures):
            return failures - 1 if failures else LOST
    return most


def refusal(before: Room, after: Room, kept: KeptRoom) -> str:
    """Say which room would be gone that there is before; "" if none."""
    if kept.failures and (why := _lack_grows(before, after, kept.failures)):
        return why
    return _share_refusal(before, after, kept.share) if kept.share else ""


def _lack_grows(before: Room, after: Room, failures: int) -> str:
    for failed in _doubtful_sets(after, min(failures, max(after.open_count - 1, 0))):
        lack = lack_of(after, failed)
        if lack.homeless_count and lack.is_worse_than(lack_of(before, failed)):
            return lack.words
    return ""


def _share_refusal(before: Room, after: Room, share: float) -> str:
    if after.open_count < 2:  # where there is no other node, nothing can be restarted
        return ""
    for kind, unit, divisor in ((0, "vCPUs", 1), (1, "MiB", 2**20)):
        total = float(after.capacity[after.takes_vms, kind].sum())
        left = total - float(after.claimed[after.takes_vms, kind].sum())
        had = float((before.capacity - before.claimed)[before.takes_vms, kind].sum())
        if left < share * total and left < had:
            return f"{left / divisor:,.0f} of {total / divisor:,.0f} {unit} would be left, {share:.0%} shall be"
    return ""


# -- trials


def lack_of(room: Room, failed: Sequence[int]) -> Lack:
    """Restart the VMs of nodes that fail, and those that wait already, and find out which have no place."""
    is_gone = room.is_down.copy()
    is_gone[list(failed)] = True
    is_open = room.takes_vms & ~is_gone
    # Only of open nodes are claims looked at, so those of VMs that are restarted need not be taken off their old ones.
    claimed = room.claimed.copy()
    waiting = np.flatnonzero(is_gone[room.place])
    homeless = []
    for size, vm in zip(room.size[waiting], waiting.tolist(), strict=True):
        target = best_node(room, is_open, claimed, size)
        if target is None:
            homeless.append(vm)
        else:
            claimed[target] += size
    vcpus, memory = room.size[homeless].sum(axis=0).tolist() if homeless else (0, 0)
    names = tuple(room.hostnames[node] for node in failed)
    return Lack(names, len(waiting), len(homeless), int(vcpus), int(memory))


def best_node(room: Room, is_open: Flags, claimed: Floats, size: Floats) -> int | None:
    """Find the open node with room for a size that the strategy likes best; None if there is none."""
    used = claimed + size
    fits = is_open & (used <= room.capacity).all(axis=1)
    able = np.flatnonzero(fits)
    if not len(able):
        return None
    loads = used[able] / np.maximum(room.capacity[able], 1.0)
    loads[room.capacity[able] <= 0] = 1.0
    points = column_of_points(room.strategy, loads[:, 0], loads[:, 1])
    return int(able[int(np.argmax(points))])


# -- what needs no trial


def _doubtful_sets(room: Room, failures: int) -> Iterator[tuple[int, ...]]:
    """Sets of nodes whose failure may leave VMs without a place."""
    if not len(room.size):
        return
    if failures == 0:
        if room.is_down[room.place].any():
            yield ()
        return
    may_fail = ~room.is_down & (room.takes_vms | np.isin(np.arange(len(room.node_ids)), room.place))
    if failures == 1:
        yield from ((node,) for node in _doubtful(room) if may_fail[node])
        return
    if not _is_plenty_for(room, failures):
        yield from _sets_of(room, np.flatnonzero(may_fail), failures)


def _is_plenty_for(room: Room, failures: int) -> bool:
    """Whether the nodes with the least room have it for as many of the largest VM as the fullest ones have VMs."""
    counts, stranded = np.bincount(room.place, minlength=len(room.node_ids)), room.is_down[room.place]
    slots = np.sort(np.floor((_free(room) / np.maximum(room.size.max(axis=0), 1.0)).min(axis=1)))
    waiting = np.sort(counts[~room.is_down])[-failures:].sum() + stranded.sum()
    return bool(slots[:-failures].sum() >= waiting)


def _free(room: Room) -> Floats:
    """What VMs that are restarted may claim, of each node."""
    free: Floats = np.where(room.takes_vms[:, None], np.maximum(room.capacity - room.claimed, 0.0), 0.0)
    return free


def _doubtful(room: Room) -> list[int]:
    """Nodes of which the quick look does not show that as many of their largest VM would find room elsewhere."""
    node_count, stranded = len(room.node_ids), room.is_down[room.place]
    counts = np.bincount(room.place, minlength=node_count) + int(stranded.sum())
    largest = np.zeros((node_count, 2))
    np.maximum.at(largest, room.place, room.size)
    largest = np.maximum(largest, room.size[stranded].max(axis=0, initial=1.0))
    sizes, which = np.unique(largest, axis=0, return_inverse=True)
    if len(sizes) > _FEW_SIZES:
        steps = np.ceil(np.log2(largest) * _STEPS_PER_DOUBLING)
        sizes, which = np.unique(np.ceil(2.0 ** (steps / _STEPS_PER_DOUBLING)), axis=0, return_inverse=True)
    which = which.reshape(-1)
    free = _free(room)
    # Rounded down after an ordinary division, which is exact for whole numbers below 2**53 and much the faster.
    slots = np.floor(np.minimum(free[None, :, 0] / sizes[:, None, 0], free[None, :, 1] / sizes[:, None, 1]))
    places = slots.sum(axis=1)[which] - slots[which, np.arange(node_count)]
    return [int(node) for node in np.flatnonzero(places < counts)]


def _sets_of(room: Room, nodes: Ints, failures: int) -> Iterator[tuple[int, ...]]:
    """All sets of so many nodes, or of too many those of the nodes with the most to restart, then the most room."""
    protected = np.zeros(len(room.node_ids))
    np.add.at(protected, room.place, room.size[:, 1])
    order = nodes[np.lexsort((-room.capacity[nodes, 1], -protected[nodes]))]
    kept = len(order)
    while kept > failures and _set_count(kept, failures) > MAX_FAILED_SETS:
        kept -= 1
    return combinations((int(node) for node in order[:kept]), failures)


def _set_count(count: int, chosen: int) -> int:
    total = 1
    for index in range(chosen):
        total = total * (count - index) // (index + 1)
    return total
