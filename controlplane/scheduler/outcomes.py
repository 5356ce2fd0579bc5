"""What decisions come to: nodes in order of preference, or the reasons why there is none.

Points and reasons are worked out when somebody reads them: most callers want the chosen node alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from controlplane.domain.admission import NOTHING_KEPT, KeptRoom
from controlplane.scheduler.filters import checks_for, rejections_of
from controlplane.scheduler.rejection import Rejection
from controlplane.scheduler.scores import ScorePart, Strategy, parts_of, scorers_for
from controlplane.scheduler.snapshot import Candidate, PlacementRequest

_MAX_FOUND_VALUES = 5
"""Different values a summary lists for one filter; per-node reasons have them all."""

NO_NODES = "no node fits: there are no nodes; start a node daemon and let it register"


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """How to choose.

    `max_ranked_count` (at least 1) bounds the nodes a placement names. When all of them are lost to races the caller
    takes a new snapshot; eight make that rare even with several control planes placing at once. `kept_room` is what new
    VMs leave free; a decision does not look at it, whoever carries it out does.

    Raises:
        ValueError: `max_ranked_count` leaves no room for the chosen node.
    """

    strategy: Strategy = Strategy.SPREAD
    max_ranked_count: int = 8
    kept_room: KeptRoom = NOTHING_KEPT

    def __post_init__(self) -> None:
        if self.max_ranked_count < 1:
            raise ValueError(f"max_ranked_count is {self.max_ranked_count}, must be at least 1")


class RankedNode(NamedTuple):
    """A node that may take the VM, as it was when that was decided. A tuple, since every decision makes several."""

    candidate: Candidate
    request: PlacementRequest
    strategy: Strategy
    score: float
    """Sum of the points of `parts`."""

    @property
    def node_id(self) -> str:
        """Id of the node."""
        return self.candidate.id

    @property
    def hostname(self) -> str:
        """Host name of the node."""
        return self.candidate.hostname

    @property
    def parts(self) -> tuple[ScorePart, ...]:
        """What the points are for."""
        return parts_of(self.candidate, self.request, scorers_for(self.strategy, self.request))


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


@dataclass(frozen=True, eq=False)
class Unplaced:
    """A VM that no node can take, and the nodes as they were: one reason for each, by host name, and their summary.

    Equal to another of the same request and reasons.
    """

    request: PlacementRequest
    candidates: Sequence[Candidate]

    @cached_property
    def reasons(self) -> tuple[NodeReason, ...]:
        """Why not, for every node."""
        checks = checks_for(self.request)
        return tuple(
            NodeReason(candidate.id, candidate.hostname, rejections_of(candidate, self.request, checks))
            for candidate in sorted(self.candidates, key=lambda candidate: (candidate.hostname, candidate.id))
        )

    @cached_property
    def summary(self) -> str:
        """All reasons in one line."""
        return _summarise(self.reasons)

    @property
    def per_node(self) -> tuple[tuple[str, str], ...]:
        """(host name, reason) of every node, as an error's details want it."""
        return tuple((reason.hostname, reason.text) for reason in self.reasons)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Unplaced):
            return NotImplemented
        return (self.request, self.reasons, self.summary) == (other.request, other.reasons, other.summary)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class HeldBack(Unplaced):
    """A VM that would fit, but not together with all the others of its batch."""

    because: str = ""

    @cached_property
    def reasons(self) -> tuple[NodeReason, ...]:
        """None: no node refused it."""
        return ()

    @cached_property
    def summary(self) -> str:
        """Whose fault it is."""
        return f"it fits, but not all of its batch do: {self.because}"


@dataclass(frozen=True, eq=False)
class TurnedAway(Unplaced):
    """A VM that nodes have room for, but room that is kept for others."""

    because: str = ""

    @cached_property
    def summary(self) -> str:
        """What it would take."""
        return self.because


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
