"""A snapshot of the cluster that is kept up to date, for many decisions one after the other.

Each change costs what it changes: a VM placed is one node's claims, and the rules and labels of that VM. Nothing is
worked out before it is asked for. A view is not safe to use from two threads at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from controlplane.domain.node import Capacity
from controlplane.scheduler.boards import Board, StaticVerdicts
from controlplane.scheduler.columns import ChangeLog, Columns, Ints
from controlplane.scheduler.neighbours import Neighbours, PlacedVm, placed_vm_of
from controlplane.scheduler.places import Places
from controlplane.scheduler.scores import Strategy
from controlplane.scheduler.sight import ONE_NODE
from controlplane.scheduler.snapshot import Candidate, PlacementRequest

__all__ = ["ClusterView", "PlacedVm", "placed_vm_of"]

_MAX_BOARDS = 256
"""Sorts of requests whose scores are kept: 80 KiB each for 10,000 nodes."""
_MAX_VERDICTS = 64


class ClusterView:
    """Nodes and the VMs on them.

    What candidates have as allocated contains the claims of `vms`, as a node's record does.

    Raises:
        ValueError: two nodes or two VMs have the same id.
    """

    def __init__(self, candidates: Iterable[Candidate] = (), vms: Iterable[PlacedVm] = ()) -> None:
        nodes = list(candidates)
        self.slots: list[Candidate | None] = []
        self.columns = Columns(len(nodes))
        self.changes = ChangeLog()
        self.static_changes = ChangeLog()
        self._slot_of: dict[str, int] = {}
        self._empty: list[int] = []
        self._by_hostname: dict[str, set[int]] = {}
        self._places = Places()
        self.neighbours = Neighbours(self._places)
        self._boards: dict[object, Board] = {}
        self._verdicts: dict[object, StaticVerdicts] = {}
        self._ranks: Ints | None = None
        self._place_slots: dict[tuple[str, str | None], Ints] = {}
        for candidate in nodes:
            if candidate.id in self._slot_of:
                raise ValueError(f"two nodes have the id {candidate.id}")
            self.upsert_node(candidate)
        for vm in vms:
            self.add_vm(vm)

    # -- changes

    def upsert_node(self, candidate: Candidate) -> None:
        """Add a node, or take it as it is now; what is allocated there is taken as given."""
        slot = self._slot_of.get(candidate.id)
        before = None if slot is None else self.slots[slot]
        here = self.neighbours.on_node(candidate.id)
        if any(vm.request.needs.is_countable for vm in here.values()):
            candidate = self._with_taken(candidate)
        if slot is not None and before is not None and _differs_in_claims_only(before, candidate):
            self._put_claims(slot, candidate)
            return
        if slot is None:
            slot = self._new_slot()
            self._slot_of[candidate.id] = slot
            self._ranks = None
        if before is not None and before.hostname != candidate.hostname:
            self._by_hostname[before.hostname].discard(slot)
        self._by_hostname.setdefault(candidate.hostname, set()).add(slot)
        if before is None or before.labels != candidate.labels:
            self._places.put(candidate.id, candidate.labels)
            self._place_slots.clear()
        self.slots[slot] = candidate
        self.columns.put(slot, candidate)
        self._note_static(slot)

    def remove_node(self, node_id: str) -> None:
        """Take a node out: no VM is placed there any more.

        Rules still count it as a place, and the VMs on it until they are unplaced: that a node is gone must not make
        a rule easier to keep. `forget_node` is for nodes that will not come back.

        Raises:
            KeyError: there is no such node.
        """
        slot = self._slot_of.pop(node_id)
        candidate = self.slots[slot]
        assert candidate is not None  # noqa: S101 - slots of nodes are filled
        self._by_hostname[candidate.hostname].discard(slot)
        if not self._by_hostname[candidate.hostname]:
            del self._by_hostname[candidate.hostname]
        self.slots[slot] = None
        self.columns.clear(slot)
        self._empty.append(slot)
        self._place_slots.clear()
        self._note_static(slot)

    def forget_node(self, node_id: str) -> None:
        """Take a node out together with its place and its VMs; one that was removed before may be forgotten."""
        if node_id in self._slot_of:
            self.remove_node(node_id)
        for vm_id in list(self.neighbours.on_node(node_id)):
            self.neighbours.remove(vm_id)
        self._places.drop(node_id)

    def place(self, vm: PlacedVm) -> None:
        """Put a VM on a node and claim its size there.

        Raises:
            KeyError: there is no such node.
            ValueError: the VM is on a node already.
        """
        slot = self._slot_of[vm.node_id]
        self.add_vm(vm)
        self._claim(slot, vm.request, 1)

    def add_vm(self, vm: PlacedVm) -> None:
        """Learn of a VM whose claim its node's allocated size contains already.

        Raises:
            ValueError: the VM is on a node already.
        """
        if vm.id in self.neighbours.vms:
            raise ValueError(f"VM {vm.id} is on node {self.neighbours.vms[vm.id].node_id} already; unplace it first")
        self.neighbours.add(vm)
        self._recount(vm)

    def unplace(self, vm_id: str) -> PlacedVm:
        """Take a VM off its node, and its claim too, and return it.

        Raises:
            KeyError: there is no such VM.
        """
        vm = self.neighbours.remove(vm_id)
        self._recount(vm)
        slot = self._slot_of.get(vm.node_id)
        if slot is not None:
            self._claim(slot, vm.request, -1)
        return vm

    def restore(self, vm: PlacedVm) -> None:
        """Put back what `unplace` returned, also onto a node that is gone."""
        self.add_vm(vm)
        if (slot := self._slot_of.get(vm.node_id)) is not None:
            self._claim(slot, vm.request, 1)

    def copy(self) -> ClusterView:
        """Return a view that is equal and changes on its own. Nodes that were removed stay places in both."""
        copied = ClusterView(self.candidates)
        for node_id, labels in self._places.labels.items():
            copied._places.put(node_id, labels)
        for vm in self.neighbours.vms.values():
            copied.neighbours.add(vm)
        return copied

    # -- reading

    @property
    def candidates(self) -> list[Candidate]:
        """All nodes, in no particular order."""
        return [candidate for candidate in self.slots if candidate is not None]

    def candidate(self, node_id: str) -> Candidate | None:
        """One node by id."""
        slot = self._slot_of.get(node_id)
        return None if slot is None else self.slots[slot]

    def vm(self, vm_id: str) -> PlacedVm | None:
        """One VM by id."""
        return self.neighbours.vms.get(vm_id)

    @property
    def node_count(self) -> int:
        """How many nodes there are."""
        return len(self._slot_of)

    # -- what decisions look at

    @property
    def ranks(self) -> Ints:
        """Place of each slot's node in the order of ids, which decides between equals."""
        if self._ranks is None:
            self._ranks = np.zeros(self.columns.size, np.int64)
            for rank, node_id in enumerate(sorted(self._slot_of)):
                self._ranks[self._slot_of[node_id]] = rank
        return self._ranks

    def board(self, request: PlacementRequest, strategy: Strategy) -> Board:
        """Scores of all nodes for requests like this one, up to date; not to be changed."""
        static_key = request.static_key
        key = (static_key, request.vcpus, request.memory_bytes, request.needs.most_vcpus, strategy)
        verdicts = self._verdicts.get(static_key)
        if verdicts is None or not verdicts.catch_up(self):
            self._boards = {other: board for other, board in self._boards.items() if board.verdicts is not verdicts}
            verdicts = StaticVerdicts(self, request)
            _make_room(self._verdicts, _MAX_VERDICTS)
            self._verdicts[static_key] = verdicts
        board = self._boards.get(key)
        if board is None or board.verdicts is not verdicts or not board.catch_up(self):
            board = Board(self, verdicts, request, strategy)
            _make_room(self._boards, _MAX_BOARDS)
            self._boards[key] = board
        return board

    def slots_named(self, names: Iterable[str]) -> set[int]:
        """Slots of nodes with one of these ids or host names."""
        found: set[int] = set()
        for name in names:
            if (slot := self._slot_of.get(name)) is not None:
                found.add(slot)
            found |= self._by_hostname.get(name, set())
        return found

    def slots_of(self, node_ids: Iterable[str]) -> list[int]:
        """Slots of nodes with these ids, as far as there are such nodes."""
        return [self._slot_of[node_id] for node_id in node_ids if node_id in self._slot_of]

    def slots_in(self, topology_key: str, place: str) -> Ints:
        """Slots of the nodes of a place."""
        if topology_key == ONE_NODE:
            return np.array(self.slots_of([place]), np.int64)
        key = (topology_key, place)
        if key not in self._place_slots:
            members = self._places.members(topology_key).get(place, set())
            self._place_slots[key] = np.array(self.slots_of(members), np.int64)
        return self._place_slots[key]

    def slots_outside(self, topology_key: str) -> Ints:
        """Slots of nodes that are in no place of this key."""
        if topology_key == ONE_NODE:
            return np.array([], np.int64)
        key = (topology_key, None)
        if key not in self._place_slots:
            outside = [
                slot
                for slot, candidate in enumerate(self.slots)
                if candidate is not None and topology_key not in candidate.labels
            ]
            self._place_slots[key] = np.array(outside, np.int64)
        return self._place_slots[key]

    # -- inside

    def _new_slot(self) -> int:
        if self._empty:
            return self._empty.pop()
        self.slots.append(None)
        if len(self.slots) > self.columns.size:
            self.columns = self.columns.grown()
            self._boards.clear()
            self._verdicts.clear()
        return len(self.slots) - 1

    def _claim(self, slot: int, request: PlacementRequest, sign: int) -> None:
        candidate = self.slots[slot]
        assert candidate is not None  # noqa: S101 - slots of nodes are filled
        before = candidate.allocated
        vcpus, memory_bytes = before.vcpus + sign * request.vcpus, before.memory_bytes + sign * request.memory_bytes
        self._put_claims(slot, candidate.with_allocated(Capacity(vcpus, memory_bytes)))

    def _put_claims(self, slot: int, candidate: Candidate) -> None:
        self.slots[slot] = candidate
        self.columns.put_claims(slot, candidate)
        self.changes.note(slot)

    def _recount(self, vm: PlacedVm) -> None:
        """Count anew what the VMs of a node hold, if this one holds any of it."""
        slot = self._slot_of.get(vm.node_id)
        if slot is None or not vm.request.needs.is_countable:
            return
        candidate = self.slots[slot]
        assert candidate is not None  # noqa: S101 - slots of nodes are filled
        self.slots[slot] = self._with_taken(candidate)

    def _with_taken(self, candidate: Candidate) -> Candidate:
        return candidate.knowing(self.neighbours.needs_on(candidate.id))

    def _note_static(self, slot: int) -> None:
        self.static_changes.note(slot)
        self.changes.note(slot)


def _differs_in_claims_only(one: Candidate, other: Candidate) -> bool:
    return other.with_allocated(one.allocated).with_taken(one.taken) == one


def _make_room(kept: dict[object, Board] | dict[object, StaticVerdicts], count: int) -> None:
    """Drop what was made first."""
    if len(kept) >= count:
        del kept[next(iter(kept))]


def view_of(snapshot: ClusterView | Sequence[Candidate], vms: Iterable[PlacedVm] = ()) -> ClusterView:
    """Return the view as it is, or make one of candidates."""
    return snapshot if isinstance(snapshot, ClusterView) else ClusterView(snapshot, vms)
