"""Decide one placement, from a view or from a few candidates. Nothing is changed."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

import numpy as np

from controlplane.scheduler.boards import UNFIT, Board, best_of_blocks, best_slots
from controlplane.scheduler.columns import Floats
from controlplane.scheduler.filters import checks_for, fitting, taken_checks_for
from controlplane.scheduler.outcomes import Placement, RankedNode, SchedulerConfig, Unplaced
from controlplane.scheduler.scores import PREFERRED_NODE_POINTS, scorers_for, totals_of
from controlplane.scheduler.sight import ONE_NODE, Sight
from controlplane.scheduler.snapshot import Candidate, PlacementRequest
from controlplane.scheduler.view import ClusterView

_FEW_NODES = 64
"""Nodes that are looked at one by one when a request allows no others; beyond, columns are faster."""
_FIRST_LOOK = 4
"""How many times the wanted nodes are checked at first where a node that has room may lack something else."""


def decide(view: ClusterView, request: PlacementRequest, config: SchedulerConfig) -> Placement | Unplaced:
    """Choose a node for one request, knowing where all the view's VMs are."""
    seen = view.neighbours.with_sight(request)
    only = _only_slots(view, seen)
    if only is not None and len(only) <= _FEW_NODES:
        few = [candidate for slot in only if (candidate := view.slots[slot]) is not None]
        outcome = decide_among(few, seen, config)
        return outcome if isinstance(outcome, Placement) else Unplaced(seen, view.candidates)
    board = view.board(seen, config.strategy)
    scores, best = board.scores, board.best
    if only is not None or seen.has_policy or seen.sight is not None or seen.anti_affinity_nodes:
        scores = _adjusted(view, board, seen, only)
        if scores is not board.scores:
            best = best_of_blocks(scores)
    if seen.needs.is_countable:
        slots = _with_all_needs(view, scores, best, seen, config.max_ranked_count)
    else:
        slots = best_slots(scores, best, view.ranks, config.max_ranked_count)
    if not slots:
        return Unplaced(seen, view.candidates)
    points = scores[slots].tolist()
    ranked = tuple(
        RankedNode(candidate, seen, config.strategy, score)
        for slot, score in zip(slots, points, strict=True)
        if (candidate := view.slots[slot]) is not None
    )
    return Placement(seen, ranked)


def decide_among(
    candidates: Sequence[Candidate], request: PlacementRequest, config: SchedulerConfig
) -> Placement | Unplaced:
    """Choose among candidates by asking every filter and scorer about each: the plain rule that `decide` follows."""
    able = fitting(candidates, request, checks_for(request))
    if not able:
        return Unplaced(request, candidates)
    totals = totals_of(able, request, scorers_for(config.strategy, request))
    # Ids are unique, so comparing two entries never comes to the candidates.
    entries = [(-total, candidate.id, candidate) for total, candidate in zip(totals, able, strict=True)]
    best = heapq.nsmallest(config.max_ranked_count, entries)
    return Placement(
        request, tuple(RankedNode(candidate, request, config.strategy, -negated) for negated, _, candidate in best)
    )


def _only_slots(view: ClusterView, request: PlacementRequest) -> set[int] | None:
    """Slots of the only nodes that a request allows by naming them, or by where other VMs are; None if it does not."""
    allowed: list[Iterable[int]] = []
    if request.pinned_node_id:
        allowed.append(view.slots_of([request.pinned_node_id]))
    if request.has_policy and request.required_nodes:
        allowed.append(view.slots_named(request.required_nodes))
    if request.wants_company:
        allowed.append(view.slots_of(request.affinity_nodes))
    nears = request.sight.near if request.sight else ()
    allowed.extend(
        [int(slot) for place in near.places for slot in view.slots_in(near.topology_key, place)]
        for near in nears
        if near.places is not None
    )
    return set.intersection(*(set(slots) for slots in allowed)) if allowed else None


def _adjusted(view: ClusterView, board: Board, request: PlacementRequest, only: set[int] | None) -> Floats:
    """Return the board's scores with what names of nodes and other VMs add, take, and forbid."""
    scores = board.scores.copy()
    if only is not None:
        index = np.fromiter(only, np.int64, len(only))
        scores = np.full_like(scores, UNFIT)
        scores[index] = board.scores[index]
    if request.has_policy:
        for slot in view.slots_named(request.preferred_nodes):
            scores[slot] += PREFERRED_NODE_POINTS
        for slot in view.slots_named(request.excluded_nodes):
            scores[slot] = UNFIT
    for slot in view.slots_of(request.anti_affinity_nodes):
        scores[slot] = UNFIT
    if request.sight is not None:
        _apply(view, scores, request.sight)
    return scores


def _apply(view: ClusterView, scores: Floats, sight: Sight) -> None:
    for near in sight.near:
        scores[view.slots_outside(near.topology_key)] = UNFIT
    for far in sight.far:
        _forbid(view, scores, far.topology_key, far.places)
    for even in sight.even:
        _forbid(view, scores, even.topology_key, even.full_places)
        scores[view.slots_outside(even.topology_key)] = UNFIT
    for liking in sight.likings:
        for place, points in liking.points.items():
            scores[view.slots_in(liking.topology_key, place)] += points


def _forbid(view: ClusterView, scores: Floats, topology_key: str, places: Iterable[str]) -> None:
    if topology_key == ONE_NODE:
        scores[view.slots_of(places)] = UNFIT
        return
    for place in places:
        scores[view.slots_in(topology_key, place)] = UNFIT


def _with_all_needs(
    view: ClusterView, scores: Floats, best: Floats, request: PlacementRequest, count: int
) -> list[int]:
    """Find the best slots that also have the devices, pages and NUMA nodes, looking at few unless few have them."""
    checks = taken_checks_for(request)
    looked_at = count * _FIRST_LOOK
    while True:
        slots = best_slots(scores, best, view.ranks, looked_at)
        good = []
        for slot in slots:
            candidate = view.slots[slot]
            if candidate is not None and all(check(candidate, request) is None for check in checks):
                good.append(slot)
        if len(good) >= count or len(slots) < looked_at:
            return good[:count]
        looked_at *= 8
