"""Leave room for VMs of nodes that fail: what a placement does so that it does not take it, nor two at once.

Whether room is left depends on all nodes, so a placement that comes near to taking it has the turn alone while it reads
and claims: of two that come at the same moment, the later one sees the earlier one. Where there is plenty of room that
would make all wait for nothing. There a small VM only shares the turn: no more than `PLACEMENT_TURN_COUNT` share it at
once, and none of them is larger than what is reckoned with for each.

VMs that are restarted, and those that move, need no turn and are not refused: the first are what the room is for, the
second claim nothing in the end that they did not before.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np

from controlplane.domain import ha_errors
from controlplane.domain.admission import is_restarted_elsewhere
from controlplane.domain.node import Phase
from controlplane.domain.placement import StandingVm
from controlplane.domain.vm import Vm
from controlplane.ha.admission import Floats, HostRoom, ProtectedVm, Room, refusal, room_of
from controlplane.ha.admitted import NewVm, admitted
from controlplane.scheduler.outcomes import Placement, RankedNode, SchedulerConfig, TurnedAway, Unplaced
from controlplane.scheduler.plan import Admit
from controlplane.scheduler.room import Room as Fitting
from controlplane.scheduler.scores import Strategy
from controlplane.scheduler.snapshot import Candidate
from controlplane.services.seen import SeenNodes, SeenVms, look
from controlplane.state.interface import Transaction
from limiquantix.compute.v1.node_pb2 import Taint

ROOM_FILTER = "failover room"
"""What is told in place of a filter where a VM would take room that is kept for VMs of nodes that fail."""
SHARED_BY = 16
"""Placements that share the turn at once, `PLACEMENT_TURN_COUNT` of the tables."""
SMALL_SHARE = 1 / 64
"""Of the smallest node, what a VM may claim that only shares the turn."""
WIDE_RANKED_COUNT = 64
"""Nodes that are tried when the best ones would take room that is kept."""
_HARD_TAINTS = frozenset({Taint.NO_SCHEDULE, Taint.NO_EXECUTE})
_LEAST_NODES = 2
"""Of fewer that take VMs, nothing can be restarted elsewhere when one fails."""
_LACK_BOUND = 2.0
"""A share of all that waits for each of vCPUs and memory: what may have been put somewhere before nothing fits."""


class Turn(enum.IntEnum):
    """What a placement needs of the turn."""

    NONE = 0
    SHARED = 1
    ALONE = 2


class RoomKeeper:
    """Keeps room in the transaction that places one VM."""

    def __init__(self, tx: Transaction, vm: Vm, config: SchedulerConfig, vms: SeenVms) -> None:
        self._tx = tx
        self._vm = vm
        self._config = config
        self._vms = vms
        self._turn = Turn.NONE

    async def turn(self, known: SeenNodes) -> Turn:
        """Find out which turn to take, before anything that is decided by is read."""
        kept = self._config.kept_room
        if not kept.is_any:
            return Turn.NONE
        seen = await look(self._tx, known)
        nodes = [each.candidate for each in seen.values()]
        if sum(map(takes_vms, nodes)) < _LEAST_NODES and not any(map(is_down, nodes)):
            return Turn.NONE
        # Twice what is asked for afterwards, so that what is placed meanwhile hardly ever makes a difference.
        is_plenty = _is_plenty(seen, self._vm, self._config, 2 * SHARED_BY)
        self._turn = Turn.SHARED if is_plenty else Turn.ALONE
        return self._turn

    async def admitted(
        self, placement: Placement, seen: SeenNodes, decide_wider: Callable[[SchedulerConfig], Placement]
    ) -> Placement:
        """Leave of the ranked nodes the first one where the VM takes no room that is kept.

        Args:
            seen: nodes as they are since the turn was taken.
            decide_wider: makes the same decision, with more nodes named.

        Raises:
            ResourceExhausted: it would take some wherever it goes, of the best `WIDE_RANKED_COUNT` nodes.
            Aborted: room became scarce since the turn was chosen.
        """
        if self._turn == Turn.NONE:
            return placement
        if self._turn == Turn.SHARED:
            if not _is_plenty(seen, self._vm, self._config, SHARED_BY):
                raise ha_errors.room_changed_meanwhile()
            return placement
        before = room_from(seen, await self._vms.of_project(), self._config.strategy)
        refusals: list[tuple[str, str]] = []
        for each in self._best_first(placement, decide_wider):
            why = _refusal_on(before, each.node_id, placement, self._vm, self._config)
            if not why:
                return replace(placement, ranked=(each,))
            refusals.append((each.hostname, why))
        raise ha_errors.no_failover_room(self._config.kept_room.words, refusals[0][1], refusals)

    def _best_first(
        self, placement: Placement, decide_wider: Callable[[SchedulerConfig], Placement]
    ) -> Iterator[RankedNode]:
        yield from placement.ranked
        if len(placement.ranked) == self._config.max_ranked_count:
            # The same decision has the same nodes first.
            wider = decide_wider(replace(self._config, max_ranked_count=WIDE_RANKED_COUNT))
            yield from wider.ranked[len(placement.ranked) :]


def room_refusals(
    seen: SeenNodes, vms: Iterable[StandingVm], vm: Vm, placement: Placement, config: SchedulerConfig
) -> dict[str, str]:
    """Say of each ranked node where a new VM would take room that is kept what would lack, by id. Reads nothing.

    Args:
        vms: all that are placed.
    """
    if not config.kept_room.is_any:
        return {}
    before = room_from(seen, vms, config.strategy)
    found = {each.node_id: _refusal_on(before, each.node_id, placement, vm, config) for each in placement.ranked}
    return {node_id: why for node_id, why in found.items() if why}


def room_admission(
    seen: SeenNodes, vms: Iterable[StandingVm], drafts: Iterable[Vm], config: SchedulerConfig
) -> Callable[[], Admit]:
    """Make what admits the new VMs of a plan one after the other, each only where it takes no room that is kept.

    Args:
        vms: all that are placed.
        drafts: the new ones, under the ids that their requests have.
    """
    before, by_id = room_from(seen, vms, config.strategy), {vm.id: vm for vm in drafts}

    def admission() -> Admit:
        room = before

        def admit(placement: Placement) -> Placement | Unplaced:
            nonlocal room
            refusals = []
            for number, each in enumerate(placement.ranked):
                after = _with(room, each.node_id, placement, by_id[placement.request.vm_id])
                why = refusal(room, after, config.kept_room)
                if not why:
                    room = after
                    return replace(placement, ranked=placement.ranked[number:])
                refusals.append(why)
            because = ha_errors.no_failover_room(config.kept_room.words, refusals[0], ()).message
            return TurnedAway(placement.request, (), because)

        return admit

    return admission


def admitted_of(
    seen: SeenNodes, vms: Iterable[StandingVm], vm: Vm, fitting: Fitting, config: SchedulerConfig
) -> Fitting:
    """Take those VMs off what fits that would take room that is kept.

    Args:
        vms: all that are placed.
        vm: of the kind that is counted.
    """
    if not config.kept_room.is_any:
        return fitting
    new = NewVm((vm.vcpu_count, vm.memory_bytes), is_restarted_elsewhere(vm.spec), vm.spec.ha_policy.priority)
    limits = {node.node_id: node.count for node in fitting.nodes}
    found = admitted(room_from(seen, vms, config.strategy), new, limits, config.kept_room)
    nodes = tuple(
        node
        if (count := found.counts.get(node.node_id, 0)) == node.count
        else replace(node, count=count, filter=ROOM_FILTER, limit=f"{ROOM_FILTER}: {found.refusal}")
        for node in fitting.nodes
    )
    return Fitting(min(sum(node.count for node in nodes), fitting.count), nodes)


def _refusal_on(before: Room, node_id: str, placement: Placement, vm: Vm, config: SchedulerConfig) -> str:
    return refusal(before, _with(before, node_id, placement, vm), config.kept_room)


def _with(room: Room, node_id: str, placement: Placement, vm: Vm) -> Room:
    size = (placement.request.vcpus, placement.request.memory_bytes)
    is_protected, priority = is_restarted_elsewhere(vm.spec), vm.spec.ha_policy.priority
    return room.with_vm(node_id, size, is_protected=is_protected, priority=priority)


# -- the cluster as admission sees it


def takes_vms(candidate: Candidate) -> bool:
    """Whether VMs are restarted on a node: whichever, so not where only some may go."""
    is_open = candidate.phase == Phase.READY and candidate.schedulable and candidate.is_compute
    return is_open and not any(taint.effect in _HARD_TAINTS for taint in candidate.taints)


def is_down(candidate: Candidate) -> bool:
    """Whether VMs of a node need room elsewhere already: it is silent, or being emptied."""
    return candidate.phase not in (Phase.READY, Phase.MAINTENANCE)


def room_from(seen: SeenNodes, vms: Iterable[StandingVm], strategy: Strategy) -> Room:
    """Make the columns of nodes and of all placed VMs."""
    hosts = [
        HostRoom(
            each.candidate.id,
            each.candidate.hostname,
            (each.candidate.capacity.vcpus, each.candidate.capacity.memory_bytes),
            (each.candidate.allocated.vcpus, each.candidate.allocated.memory_bytes),
            takes_vms(each.candidate),
            is_down(each.candidate),
        )
        for each in seen.values()
    ]
    protected = [
        ProtectedVm(vm.id, vm.node_id, vm.vcpus, vm.memory_bytes, vm.spec.ha_policy.priority)
        for vm in vms
        if is_restarted_elsewhere(vm.spec)
    ]
    return room_of(hosts, protected, strategy)


async def drain_refusal(tx: Transaction, node_id: str, target_node_id: str, config: SchedulerConfig) -> str:
    """Say what would lack once a node is drained; "" if nothing more than now.

    Args:
        target_node_id: the only node that its VMs go to; "" for all.
    """
    if not config.kept_room.is_any:
        return ""
    seen, vms = await look(tx, {}), await SeenVms(tx, {}).of_project()
    if node_id not in seen or seen[node_id].candidate.phase == Phase.DRAINING:
        return ""  # it is under way
    before = room_from(seen, vms, config.strategy)
    others = [
        (vm.vcpus, vm.memory_bytes) for vm in vms if vm.node_id == node_id and not is_restarted_elsewhere(vm.spec)
    ]
    return refusal(before, before.emptied(node_id, others, target_node_id), config.kept_room)


# -- plenty of room


def _is_plenty(seen: SeenNodes, vm: Vm, config: SchedulerConfig, at_once: int) -> bool:
    """Whether room is left whatever VMs there are, and `at_once` small ones come wherever they like.

    No VM is larger than what is claimed on the fullest node. When nothing fits any more, each node lacks room for such
    a one of vCPUs or of memory, so it was given all but that of what it had free: together the nodes cannot have been
    given more than all that waited of either.
    """
    nodes = [each.candidate for each in seen.values()]
    is_open = np.array([takes_vms(node) for node in nodes], np.bool_)
    if is_open.sum() < _LEAST_NODES:
        return False
    capacity = np.array([(node.capacity.vcpus, node.capacity.memory_bytes) for node in nodes], np.float64)
    claimed = np.array([(node.allocated.vcpus, node.allocated.memory_bytes) for node in nodes], np.float64)
    down = claimed[np.array([is_down(node) for node in nodes], np.bool_)].sum(axis=0)
    small = np.floor(capacity[is_open].min(axis=0) * SMALL_SHARE)
    if vm.vcpu_count > small[0] or vm.memory_bytes > small[1]:
        return False
    coming: Floats = at_once * small
    free, kept = (capacity - claimed)[is_open], config.kept_room
    if (free.sum(axis=0) - coming < kept.share * capacity[is_open].sum(axis=0)).any():
        return False
    if not kept.failures:
        return True
    largest = np.maximum(claimed.max(axis=0), small)
    waiting = np.maximum(kept.failures * (claimed.max(axis=0) + coming) + down, 1.0)
    given = np.sort((np.maximum(free - largest, 0.0) / waiting).min(axis=1))
    # Wherever what comes lands, it takes no more than itself off what may be given.
    left = float(given[: max(len(given) - kept.failures, 0)].sum()) - float((coming / waiting).max())
    return left >= _LACK_BOUND
