"""Decide where VMs go, and say why: the scheduler's one entry, `plan`.

A plan is advice. Whoever carries it out claims the chosen node's capacity in the transaction that records the
placement, and goes on to the next ranked node when another control plane took the room first; that is why a placement
carries several nodes.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from controlplane.scheduler.filters import Check, Rejection, checks_for, fitting, rejections_of
from controlplane.scheduler.scores import ScorePart, Strategy, parts_of, scorers_for, totals_of
from controlplane.scheduler.snapshot import Candidate, PlacementRequest, with_placed

_MAX_FOUND_VALUES = 5
"""Different values a summary lists for one filter; per-node reasons have them all."""

NO_NODES = "no node fits: there are no nodes; start a node daemon and let it register"


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """How to choose.

    `max_ranked_count` (at least 1) bounds the nodes a placement names. When all of them are lost to races the caller
    takes a new snapshot; eight make that rare even with several control planes placing at once.

    Raises:
        ValueError: `max_ranked_count` leaves no room for the chosen node.
    """

    strategy: Strategy = Strategy.SPREAD
    max_ranked_count: int = 8

    def __post_init__(self) -> None:
        if self.max_ranked_count < 1:
            raise ValueError(f"max_ranked_count is {self.max_ranked_count}, must be at least 1")


@dataclass(frozen=True, slots=True)
class RankedNode:
    """A node that may take the VM, and the points that rank it."""

    node_id: str
    hostname: str
    score: float
    parts: tuple[ScorePart, ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """A VM that has a node: the first of `ranked`, the others being next in turn should its room be gone.

    `request` knows where the VMs placed earlier in the batch will run.
    """

    request: PlacementRequest
    ranked: tuple[RankedNode, ...]

    @property
    def node_id(self) -> str:
        """Id of the chosen node."""
        return self.ranked[0].node_id

    @property
    def score(self) -> float:
        """Points of the chosen node."""
        return self.ranked[0].score

    @property
    def parts(self) -> tuple[ScorePart, ...]:
        """What the chosen node's points are for."""
        return self.ranked[0].parts

    @property
    def runners_up(self) -> tuple[RankedNode, ...]:
        """Nodes to try when the chosen one's room was taken, best first."""
        return self.ranked[1:]


@dataclass(frozen=True, slots=True)
class NodeReason:
    """Why one node cannot take a VM; `rejections` is never empty, the most telling comes first."""

    node_id: str
    hostname: str
    rejections: tuple[Rejection, ...]

    @property
    def text(self) -> str:
        """All reasons in one line: "cpu: needs 8 vCPUs, 2 of 4 free; memory: needs ..."."""
        return "; ".join(f"{rejection.filter}: {rejection.message}" for rejection in self.rejections)


@dataclass(frozen=True, slots=True)
class Unplaced:
    """A VM that no node can take: one reason for every node of the snapshot, by host name, and their summary."""

    request: PlacementRequest
    reasons: tuple[NodeReason, ...]
    summary: str

    @property
    def per_node(self) -> tuple[tuple[str, str], ...]:
        """(host name, reason) of every node, as an error's details want it."""
        return tuple((reason.hostname, reason.text) for reason in self.reasons)


@dataclass(frozen=True, slots=True)
class Plan:
    """One outcome for each request, in their order."""

    outcomes: tuple[Placement | Unplaced, ...]

    @property
    def placements(self) -> tuple[Placement, ...]:
        """Outcomes of the requests that have a node."""
        return tuple(outcome for outcome in self.outcomes if isinstance(outcome, Placement))

    @property
    def unplaced(self) -> tuple[Unplaced, ...]:
        """Outcomes of the requests that no node can take."""
        return tuple(outcome for outcome in self.outcomes if isinstance(outcome, Unplaced))


def plan(
    snapshot: Sequence[Candidate], requests: Sequence[PlacementRequest], config: SchedulerConfig | None = None
) -> Plan:
    """Choose a node for each request, in their order; later ones see the room that earlier ones took.

    The same snapshot in any order gives the same plan: equal scores are decided by node id.
    """
    chosen_config = config or SchedulerConfig()
    candidates = {candidate.id: candidate for candidate in snapshot}
    node_of_vm: dict[str, str] = {}
    outcomes: list[Placement | Unplaced] = []
    for request in requests:
        outcome = _place(tuple(candidates.values()), with_placed(request, node_of_vm), chosen_config)
        outcomes.append(outcome)
        if isinstance(outcome, Placement):
            candidates[outcome.node_id] = candidates[outcome.node_id].after(request)
            if request.vm_id:
                node_of_vm[request.vm_id] = outcome.node_id
    return Plan(tuple(outcomes))


def _place(candidates: Sequence[Candidate], request: PlacementRequest, config: SchedulerConfig) -> Placement | Unplaced:
    checks = checks_for(request)
    able = fitting(candidates, request, checks)
    if not able:
        return _explain(candidates, request, checks)
    return Placement(request, _rank(able, request, config))


def _rank(able: Sequence[Candidate], request: PlacementRequest, config: SchedulerConfig) -> tuple[RankedNode, ...]:
    """Order the best few, by points and then by id. Only these get their points itemised; others are summed."""
    scorers = scorers_for(config.strategy, request)
    totals = totals_of(able, request, scorers)
    # Ids are unique, so comparing two entries never comes to the candidates.
    entries = [(-total, candidate.id, candidate) for total, candidate in zip(totals, able, strict=True)]
    best = heapq.nsmallest(config.max_ranked_count, entries)
    return tuple(
        RankedNode(candidate.id, candidate.hostname, -negated, parts_of(candidate, request, scorers))
        for negated, _, candidate in best
    )


def _explain(candidates: Sequence[Candidate], request: PlacementRequest, checks: tuple[Check, ...]) -> Unplaced:
    reasons = tuple(
        NodeReason(candidate.id, candidate.hostname, rejections_of(candidate, request, checks))
        for candidate in sorted(candidates, key=lambda candidate: (candidate.hostname, candidate.id))
    )
    return Unplaced(request, reasons, _summarise(reasons))


def _summarise(reasons: Sequence[NodeReason]) -> str:
    """Group nodes by their most telling reason, the commonest first: "no node fits: 3 nodes: 2 lack memory (...)"."""
    if not reasons:
        return NO_NODES
    groups: dict[str, list[Rejection]] = {}
    for reason in reasons:
        groups.setdefault(reason.rejections[0].filter, []).append(reason.rejections[0])
    ordered = sorted(groups.values(), key=lambda group: (-len(group), group[0].filter))
    nodes = "1 node" if len(reasons) == 1 else f"{len(reasons)} nodes"
    return f"no node fits: {nodes}: {', '.join(_group_text(group) for group in ordered)}"


def _group_text(group: Sequence[Rejection]) -> str:
    words = group[0].words
    details = [text for text in (group[0].wanted, _found_text(group)) if text]
    text = f"{len(group)} {words.one if len(group) == 1 else words.many}"
    return f"{text} ({'; '.join(details)})" if details else text


def _found_text(group: Sequence[Rejection]) -> str:
    numbers = sorted({rejection.found for rejection in group if isinstance(rejection.found, int)}, reverse=True)
    texts = sorted({rejection.found for rejection in group if isinstance(rejection.found, str)})
    values = [*map(str, numbers), *texts]
    if not values:
        return ""
    shown = "/".join(values[:_MAX_FOUND_VALUES]) + ("/..." if len(values) > _MAX_FOUND_VALUES else "")
    return group[0].words.found_format.format(shown)
