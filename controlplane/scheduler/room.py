"""How many more VMs of a sort fit, now and with nodes failed.

For a VM without rules about others every node is counted by itself. With such rules the number is what placing one
after the other comes to, since where one goes decides where the next may.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from controlplane.domain.node import Capacity
from controlplane.scheduler.decide import decide
from controlplane.scheduler.filters import checks_for, rejections_of
from controlplane.scheduler.outcomes import Placement, SchedulerConfig
from controlplane.scheduler.rejection import Rejection
from controlplane.scheduler.snapshot import Candidate, PlacementRequest
from controlplane.scheduler.view import ClusterView, PlacedVm

MAX_COUNT = 100_000
"""More are not counted: of a VM that needs nothing there is no end."""
MAX_COMBINATIONS = 200
"""Sets of failing nodes that are tried; of more, those of the nodes that carry or offer the most."""
_COUNTED = "\0counted"
"""Begins the ids of VMs that are placed only to count them."""


@dataclass(frozen=True, slots=True)
class NodeRoom:
    """How many fit on one node, and which filter says what to the next one; "" where nothing does."""

    node_id: str
    hostname: str
    count: int
    filter: str
    limit: str


@dataclass(frozen=True, slots=True)
class Room:
    """How many fit in all, nodes by host name."""

    count: int
    nodes: tuple[NodeRoom, ...]

    @property
    def limit(self) -> str:
        """Which filter stops the next one, on how many nodes: "2 nodes: memory, 1 node: phase"."""
        if not self.nodes:
            return "there are no nodes"
        counts = Counter(node.filter for node in self.nodes if node.filter)
        ordered = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
        return ", ".join(f"{count} {'node' if count == 1 else 'nodes'}: {name}" for name, count in ordered)


@dataclass(frozen=True, slots=True)
class FailureRoom:
    """How many fit in the worst case; `is_exact` is False where not every set of failing nodes was tried.

    The worst leaves most VMs of failed nodes without a place, then the least room: none if there are such VMs.
    """

    count: int
    homeless_count: int
    worst_node_ids: tuple[str, ...]
    is_exact: bool


def fitting_count(view: ClusterView, request: PlacementRequest, config: SchedulerConfig | None = None) -> Room:
    """Count how many more such VMs fit, one after the other. The view is the same afterwards."""
    chosen = config or SchedulerConfig()
    nameless = replace(request, vm_id="")
    seen = view.neighbours.with_sight(nameless)
    if _minds_its_like(nameless):
        return _placing(view, nameless, chosen)
    checks = checks_for(seen)
    rooms = []
    for candidate in view.candidates:
        rejections = rejections_of(candidate, seen, checks)
        if rejections:
            rooms.append(_room_of(candidate, 0, rejections[0]))
            continue
        full, count = _filled(candidate, seen)
        rooms.append(_room_of(candidate, count, next(iter(rejections_of(full, seen, checks)), None)))
    rooms.sort(key=lambda room: (room.hostname, room.node_id))
    return Room(min(sum(room.count for room in rooms), MAX_COUNT), tuple(rooms))


def fitting_count_with_failures(
    view: ClusterView, request: PlacementRequest, failed_count: int, config: SchedulerConfig | None = None
) -> FailureRoom:
    """Count how many still fit if so many nodes fail at once, their VMs being restarted elsewhere first.

    Raises:
        ValueError: not at least one node would be left, or none fails.
    """
    if not 1 <= failed_count < view.node_count:
        raise ValueError(f"cannot count with {failed_count} of {view.node_count} nodes failed; let 1 or more be left")
    chosen = config or SchedulerConfig()
    sets, is_exact = _failing_sets(view.candidates, failed_count)
    outcomes = ((*_after_failure(view, request, failed, chosen), failed) for failed in sets)
    homeless, count, worst = min(outcomes, key=lambda each: (-each[0], each[1], each[2]))
    return FailureRoom(count, homeless, worst, is_exact)


def _minds_its_like(request: PlacementRequest) -> bool:
    """Whether where one such VM goes can matter to the next."""
    return request.has_policy and bool(request.policy.vm_rules or request.policy.spread_rules)


def _filled(candidate: Candidate, request: PlacementRequest) -> tuple[Candidate, int]:
    """Fill a node that can take at least one, and say with how many."""
    free_vcpus = candidate.capacity.vcpus - candidate.allocated.vcpus
    free_bytes = candidate.capacity.memory_bytes - candidate.allocated.memory_bytes
    count = MAX_COUNT
    if request.vcpus:
        count = min(count, free_vcpus // request.vcpus)
    if request.memory_bytes:
        count = min(count, free_bytes // request.memory_bytes)
    if not request.needs.is_countable:
        used = candidate.allocated
        claims = Capacity(used.vcpus + count * request.vcpus, used.memory_bytes + count * request.memory_bytes)
        return candidate.with_allocated(claims), count
    checks = checks_for(request)
    full, taken = candidate, 0
    while taken < count and not rejections_of(full, request, checks):
        full, taken = full.after(request), taken + 1
    return full, taken


def _placing(view: ClusterView, request: PlacementRequest, config: SchedulerConfig) -> Room:
    counts: Counter[str] = Counter()
    with _placed(view) as place:
        while counts.total() < MAX_COUNT and (node_id := place(request, config)) is not None:
            counts[node_id] += 1
        seen = view.neighbours.with_sight(request)
        checks = checks_for(seen)
        rooms = [
            _room_of(candidate, counts[candidate.id], next(iter(rejections_of(candidate, seen, checks)), None))
            for candidate in view.candidates
        ]
    rooms.sort(key=lambda room: (room.hostname, room.node_id))
    return Room(counts.total(), tuple(rooms))


class _Trial:
    """Places VMs for a while."""

    def __init__(self, view: ClusterView) -> None:
        self._view = view
        self.ids: list[str] = []

    def __call__(self, request: PlacementRequest, config: SchedulerConfig) -> str | None:
        outcome = decide(self._view, request, config)
        if not isinstance(outcome, Placement):
            return None
        named = request if request.vm_id else replace(request, vm_id=f"{_COUNTED}{len(self.ids)}")
        self._view.place(PlacedVm(outcome.node_id, named))
        self.ids.append(named.vm_id)
        return outcome.node_id


@contextmanager
def _placed(view: ClusterView) -> Iterator[_Trial]:
    trial = _Trial(view)
    try:
        yield trial
    finally:
        for vm_id in reversed(trial.ids):
            view.unplace(vm_id)


def _room_of(candidate: Candidate, count: int, rejection: Rejection | None) -> NodeRoom:
    if rejection is None:
        return NodeRoom(candidate.id, candidate.hostname, count, "", "")
    text = f"{rejection.filter}: {rejection.message}"
    return NodeRoom(candidate.id, candidate.hostname, count, rejection.filter, text)


def _failing_sets(candidates: Sequence[Candidate], count: int) -> tuple[Iterable[tuple[str, ...]], bool]:
    """All sets of so many nodes; of too many, those of the nodes with the most claimed, then with the most room."""
    fullest = sorted(candidates, key=lambda each: (-each.allocated.memory_bytes, -each.capacity.memory_bytes, each.id))
    is_exact = math.comb(len(fullest), count) <= MAX_COMBINATIONS
    if not is_exact:
        kept = count
        while math.comb(kept + 1, count) <= MAX_COMBINATIONS:
            kept += 1
        fullest = fullest[:kept]
    return itertools.combinations(sorted(each.id for each in fullest), count), is_exact


def _after_failure(
    view: ClusterView, request: PlacementRequest, failed: Sequence[str], config: SchedulerConfig
) -> tuple[int, int]:
    """Count VMs of failed nodes that have no place, the largest having chosen first, and then how many more fit."""
    gone = [candidate for node_id in failed if (candidate := view.candidate(node_id)) is not None]
    stranded = [vm for node_id in failed for vm in view.neighbours.on_node(node_id).values()]
    stranded.sort(key=lambda vm: (-vm.request.memory_bytes, -vm.request.vcpus, vm.id))
    for candidate in gone:
        view.remove_node(candidate.id)
    for vm in stranded:
        view.unplace(vm.id)
    try:
        with _placed(view) as place:
            homeless = sum(place(vm.request.anew, config) is None for vm in stranded)
            count = 0 if homeless else fitting_count(view, request, config).count
    finally:
        for candidate in gone:
            view.upsert_node(candidate)
        for vm in stranded:
            view.add_vm(vm)
    return homeless, count
