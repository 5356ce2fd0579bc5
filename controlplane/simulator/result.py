"""What a simulation says: the cluster before and after, what happened when, and what became of each VM."""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass
from typing import Final

from controlplane.scheduler.plan import Unplaced
from controlplane.simulator.world import SeenNode

MAX_NODE_REASONS: Final = 200


class Fate(enum.StrEnum):
    """What became of a VM in an event."""

    PLACED = "placed"
    MOVED = "moved"
    RESTARTED = "restarted"
    BACK = "back"
    """On a node that was enabled again."""
    UNPLACED = "unplaced"
    STAYS = "stays"
    """On a node that it should have left."""
    DOWN = "down"
    """On a node that failed, with no place elsewhere."""
    LEFT = "left down"
    """On a node that failed, and not to be started elsewhere."""
    SKIPPED = "skipped"
    """A move for balance that was not made."""


FAULTS = frozenset({Fate.UNPLACED, Fate.STAYS, Fate.DOWN})
"""Fates of VMs that did not get what the event was to give them."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one VM in the event with this number (from 1). `per_node` has the scheduler's reasons."""

    event: int
    vm_id: str
    vm_name: str
    fate: Fate
    node: str
    at_s: float
    reason: str = ""
    per_node: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class TimelineRow:
    """Something that happened: from `at_s` on, for `took_s`."""

    at_s: float
    took_s: float
    event: int
    what: str
    vm: str = ""
    source: str = ""
    target: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class EventSummary:
    """One event: its words, when it began and ended, and how many VMs had which fate."""

    number: int
    title: str
    began_s: float
    ended_s: float
    fates: tuple[tuple[Fate, int], ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """A simulation. Imbalances are points, see `controlplane.drs.board`."""

    before: tuple[SeenNode, ...]
    after: tuple[SeenNode, ...]
    events: tuple[EventSummary, ...]
    timeline: tuple[TimelineRow, ...]
    outcomes: tuple[Outcome, ...]
    ended_s: float
    imbalance_before: float
    imbalance_after: float
    warnings: tuple[str, ...] = ()

    @property
    def faults(self) -> tuple[Outcome, ...]:
        """Outcomes of VMs that did not get what they should; of one that does later, only the last counts."""
        last = {outcome.vm_id: outcome for outcome in self.outcomes}
        return tuple(outcome for outcome in last.values() if outcome.fate in FAULTS)


def reasons_of(outcome: Unplaced) -> tuple[tuple[str, str], ...]:
    """Return the reason of each node, by host name; none for so many nodes that only their summary can be read."""
    return outcome.per_node if len(outcome.candidates) <= MAX_NODE_REASONS else ()


def counted(outcomes: tuple[Outcome, ...] | list[Outcome]) -> tuple[tuple[Fate, int], ...]:
    """Count fates, in the order of `Fate`."""
    counts = Counter(outcome.fate for outcome in outcomes)
    return tuple((fate, counts[fate]) for fate in Fate if counts[fate])
