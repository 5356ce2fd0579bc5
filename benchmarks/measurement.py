"""Ratios of interleaved pairs, and the shape of a result; pure.

Two measurements taken one after the other on a shared machine differ by what the neighbours did meanwhile. Taking them
in turn and comparing within each pair leaves that out; the median of all ratios leaves out the odd disturbed pair.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Better = Literal["lower", "higher"]


class Pair(NamedTuple):
    """One measurement of each side, taken right after one another, in the same unit."""

    ours: float
    reference: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours divided by the reference: median of the pairs' ratios, and the least and greatest of them."""

    median: float
    lowest: float
    highest: float
    pair_count: int


@dataclass(frozen=True, slots=True)
class Goal:
    """What a ratio is to reach; `later` is the stricter one that follows, if there is one."""

    limit: float
    later: float | None = None
    better: Better = "lower"

    def is_met_by(self, ratio: float) -> bool:
        """Tell whether a median is good enough now."""
        return ratio <= self.limit if self.better == "lower" else ratio >= self.limit


@dataclass(frozen=True, slots=True)
class Limit:
    """What our own figure is to reach, in the unit of its row."""

    value: float
    better: Better = "lower"

    def is_met_by(self, ours: float) -> bool:
        """Tell whether a median is good enough."""
        return ours <= self.value if self.better == "lower" else ours >= self.value


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison; `ours` and `reference` are medians over the pairs, in `unit`."""

    name: str
    ratio: Ratio
    ours: float
    reference: float
    unit: str
    goal: Goal | None = None
    limit: Limit | None = None


@dataclass(frozen=True, slots=True)
class Section:
    """The outcome of one part; `skipped` says why there is none."""

    name: str
    title: str
    rows: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()
    skipped: str = ""
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Figures that are no comparison, by group and name; the title of the group says the unit."""


def compare(name: str, pairs: Sequence[Pair], unit: str, goal: Goal | None = None, limit: Limit | None = None) -> Row:
    """Make a row of measured pairs.

    Raises:
        ValueError: there are no pairs, or a reference is not positive.
    """
    if not pairs:
        raise ValueError(f"nothing was measured for {name!r}")
    if any(pair.reference <= 0 for pair in pairs):
        raise ValueError(f"the reference of {name!r} must be positive")
    ratios = [pair.ours / pair.reference for pair in pairs]
    return Row(
        name,
        Ratio(statistics.median(ratios), min(ratios), max(ratios), len(ratios)),
        statistics.median(pair.ours for pair in pairs),
        statistics.median(pair.reference for pair in pairs),
        unit,
        goal,
        limit,
    )


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below or at which `share` (0 to 1) of all lie, by nearest rank.

    Raises:
        ValueError: no values, or a share out of range.
    """
    if not values:
        raise ValueError("no values to take a percentile of")
    if not 0 <= share <= 1:
        raise ValueError(f"a percentile's share is between 0 and 1, not {share}")
    ordered = sorted(values)
    rank = max(1, -int(-share * len(ordered) // 1))
    return ordered[rank - 1]
