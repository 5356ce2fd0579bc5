"""Decide where VMs go, and say why: the scheduler's one entry, `plan`.

A plan is advice. Whoever carries it out claims the chosen node's capacity in the transaction that records the
placement, and goes on to the next ranked node when another control plane took the room first; that is why a placement
carries several nodes.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from controlplane.scheduler.columns import CAPACITY
from controlplane.scheduler.decide import decide, decide_among
from controlplane.scheduler.neighbours import Neighbours
from controlplane.scheduler.outcomes import (
    NO_NODES,
    HeldBack,
    NodeReason,
    Placement,
    Plan,
    RankedNode,
    SchedulerConfig,
    Unplaced,
)
from controlplane.scheduler.places import Places
from controlplane.scheduler.snapshot import Candidate, PlacementRequest
from controlplane.scheduler.view import ClusterView, PlacedVm

__all__ = [
    "NO_NODES",
    "HeldBack",
    "Mode",
    "NodeReason",
    "Placement",
    "Plan",
    "RankedNode",
    "SchedulerConfig",
    "Unplaced",
    "plan",
]

Outcome = Placement | Unplaced
Admit = Callable[[Placement], Outcome]
"""Leaves of a placement the nodes where the VM may go beside those that were placed before, or says why there is none;
it may be sure that the VM goes to the first."""
_FEW_REQUESTS = 4
"""Requests for which candidates are looked at one by one; for more, making a view of them pays."""
_NAMELESS = "\0"
"""Begins the ids by which a batch knows its VMs that have none: no other id begins so."""


class Mode(enum.Enum):
    """What to do when not all requests of a batch fit."""

    AS_MANY_AS_FIT = enum.auto()
    """Place each in its turn, as if the others were not asked for."""
    ALL_OR_NOTHING = enum.auto()
    """Place none, unless it works in another order: the largest first."""


def plan(
    snapshot: ClusterView | Sequence[Candidate],
    requests: Sequence[PlacementRequest],
    config: SchedulerConfig | None = None,
    *,
    mode: Mode = Mode.AS_MANY_AS_FIT,
    vms: Iterable[PlacedVm] = (),
    admission: Callable[[], Admit] | None = None,
) -> Plan:
    """Choose a node for each request, in their order; later ones see the room that earlier ones took.

    The same snapshot in any order gives the same plan: equal scores are decided by node id.

    Args:
        snapshot: a view is the same afterwards. Candidates are enough for a decision now and then.
        vms: placed VMs that rules may be about, with candidates; a view knows its own. The candidates' allocated sizes
            contain their claims.
        admission: makes, for each attempt at the whole batch, what has the last word; None admits all.
    """
    chosen_config = config or SchedulerConfig()
    if not isinstance(snapshot, ClusterView):
        if len(requests) <= _FEW_REQUESTS and mode is Mode.AS_MANY_AS_FIT and admission is None:
            return Plan(_one_by_one(snapshot, requests, chosen_config, vms))
        snapshot = ClusterView(snapshot, vms)
    if mode is Mode.AS_MANY_AS_FIT:
        with trying(snapshot, requests, chosen_config, admission) as outcomes:
            return Plan(tuple(outcomes))
    return Plan(_all_or_nothing(snapshot, requests, chosen_config, admission))


@contextmanager
def trying(
    view: ClusterView,
    requests: Iterable[PlacementRequest],
    config: SchedulerConfig,
    admission: Callable[[], Admit] | None = None,
) -> Iterator[list[Outcome]]:
    """Place the requests in the view, in their order, for as long as the context lasts.

    A VM that the view has on some node already counts as being on the new one, and keeps its claim on the old one,
    which it would give up only once it has moved.
    """
    outcomes: list[Outcome] = []
    undo: list[PlacedVm | str] = []
    admit = admission() if admission is not None else None
    try:
        for request in requests:
            outcome = decide(view, request, config)
            if admit is not None and isinstance(outcome, Placement):
                outcome = admit(outcome)
            outcomes.append(outcome)
            if isinstance(outcome, Placement):
                if request.vm_id and view.vm(request.vm_id) is not None:
                    undo += _set_aside(view, request.vm_id, len(outcomes))
                named = request if request.vm_id else replace(request, vm_id=f"{_NAMELESS}{len(outcomes)}")
                view.place(PlacedVm(outcome.node_id, named))
                undo.append(named.vm_id)
        yield outcomes
    finally:
        for each in reversed(undo):
            if isinstance(each, str):
                view.unplace(each)
            else:
                view.restore(each)


def _set_aside(view: ClusterView, vm_id: str, number: int) -> list[PlacedVm | str]:
    """Leave of a VM only what it claims, and return what is to be undone."""
    vm = view.unplace(vm_id)
    if view.candidate(vm.node_id) is None:
        return [vm]
    request = vm.request
    name = f"{_NAMELESS}old{number}"
    claim = PlacementRequest(request.vcpus, request.memory_bytes, needs=request.needs, vm_id=name)
    view.place(PlacedVm(vm.node_id, claim))
    return [vm, name]


def _all_or_nothing(
    view: ClusterView,
    requests: Sequence[PlacementRequest],
    config: SchedulerConfig,
    admission: Callable[[], Admit] | None,
) -> tuple[Outcome, ...]:
    with trying(view, requests, config, admission) as outcomes:
        first = tuple(outcomes)
    failed = [outcome for outcome in first if isinstance(outcome, Unplaced)]
    if not failed:
        return first
    order = sorted(range(len(requests)), key=lambda number: (-_share(view, requests[number]), number))
    with trying(view, [requests[number] for number in order], config, admission) as outcomes:
        if all(isinstance(outcome, Placement) for outcome in outcomes):
            by_number = dict(zip(order, outcomes, strict=True))
            return tuple(by_number[number] for number in range(len(requests)))
    name = failed[0].request.vm_id or f"request {first.index(failed[0]) + 1}"
    because = f"{name}: {failed[0].summary}"
    return tuple(
        HeldBack(outcome.request, (), because) if isinstance(outcome, Placement) else outcome for outcome in first
    )


def _share(view: ClusterView, request: PlacementRequest) -> float:
    """How large a request is: the larger of its shares of all vCPUs and of all memory."""
    vcpus, memory_bytes = (float(row.sum()) for row in view.columns.table[CAPACITY])
    return max(request.vcpus / max(vcpus, 1.0), request.memory_bytes / max(memory_bytes, 1.0))


def _one_by_one(
    candidates: Iterable[Candidate],
    requests: Sequence[PlacementRequest],
    config: SchedulerConfig,
    vms: Iterable[PlacedVm],
) -> tuple[Outcome, ...]:
    """Do what a view does, without making one."""
    nodes = {candidate.id: candidate for candidate in candidates}
    neighbours = Neighbours(Places((node.id, node.labels) for node in nodes.values()))
    for vm in vms:
        neighbours.add(vm)
    for node_id in {vm.node_id for vm in neighbours.vms.values() if vm.request.needs.is_countable} & nodes.keys():
        nodes[node_id] = nodes[node_id].knowing(neighbours.needs_on(node_id))
    outcomes: list[Outcome] = []
    for request in requests:
        outcome = decide_among(tuple(nodes.values()), neighbours.with_sight(request), config)
        outcomes.append(outcome)
        if isinstance(outcome, Placement):
            if request.vm_id in neighbours.vms:
                neighbours.remove(request.vm_id)
            named = request if request.vm_id else replace(request, vm_id=f"{_NAMELESS}{len(outcomes)}")
            neighbours.add(PlacedVm(outcome.node_id, named))
            nodes[outcome.node_id] = nodes[outcome.node_id].after(named)
    return tuple(outcomes)
