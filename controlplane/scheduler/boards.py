"""Scores of all nodes for one sort of request, kept and brought up to date by what changed since they were asked for.

A decision changes one node, so the next one of the same sort has one score to work out anew, however many nodes there
are. What a node says to a sort of request apart from room (`StaticVerdicts`) is shared by requests of all sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from controlplane.scheduler.columns import BLOCK, CAPACITY, DIVISORS, MOST_VCPUS, USED, Floats, Ints
from controlplane.scheduler.filters import static_checks_for
from controlplane.scheduler.scores import STRATEGIES, Strategy, column_of_points, static_points
from controlplane.scheduler.snapshot import Candidate, PlacementRequest

if TYPE_CHECKING:
    from controlplane.scheduler.view import ClusterView

_FEW: Final = 4
"""Changed slots that are cheaper to work out one by one than as columns; measured."""
_MANY_EQUALS: Final = 64
"""Equals of the last one wanted that are sorted with the others; of more, the late ones are left out before."""
_ALL_SLOTS: Final = slice(None)
UNFIT: Final = -np.inf


class StaticVerdicts:
    """Points of nodes beside the strategy's, for requests of one `static_key`; `UNFIT` where even room is no use."""

    def __init__(self, view: ClusterView, request: PlacementRequest) -> None:
        self._request = request
        self._checks = static_checks_for(request)
        self.points: Floats = np.full(view.columns.size, UNFIT)
        self._position = view.static_changes.end
        for slot, candidate in enumerate(view.slots):
            self._judge(slot, candidate)

    def catch_up(self, view: ClusterView) -> bool:
        """Judge the nodes anew that changed; False if too much did."""
        changed = view.static_changes.since(self._position)
        if changed is None:
            return False
        for slot in set(changed):
            self._judge(slot, view.slots[slot])
        self._position = view.static_changes.end
        return True

    def _judge(self, slot: int, candidate: Candidate | None) -> None:
        may = candidate is not None and all(check(candidate, self._request) is None for check in self._checks)
        self.points[slot] = static_points(candidate, self._request) if candidate is not None and may else UNFIT


class Board:
    """Scores of all slots for requests of one static key and size; `UNFIT` where such a request cannot go.

    `best` are the highest scores of blocks of slots.
    """

    def __init__(
        self, view: ClusterView, verdicts: StaticVerdicts, request: PlacementRequest, strategy: Strategy
    ) -> None:
        self.verdicts = verdicts
        self._request = request
        self._strategy = strategy
        self._score = STRATEGIES[strategy]
        self._most_vcpus = max(request.vcpus, request.needs.most_vcpus)
        self._size = np.array([[request.vcpus], [request.memory_bytes]], np.float64)
        self.scores: Floats = self._column(view, _ALL_SLOTS)
        self.best: Floats = best_of_blocks(self.scores)
        self._position = view.changes.end

    def catch_up(self, view: ClusterView) -> bool:
        """Work out the scores anew of nodes that changed; False if too much did. The verdicts come first."""
        changed = view.changes.since(self._position)
        if changed is None:
            return False
        if changed:
            self._renew(view, changed)
            self._position = view.changes.end
        return True

    def _renew(self, view: ClusterView, changed: Sequence[int]) -> None:
        slots = set(changed)
        if len(slots) <= _FEW:
            for slot in slots:
                self.scores[slot] = self._score_of(view, slot)
                first = slot - slot % BLOCK
                self.best[slot // BLOCK] = self.scores[first : first + BLOCK].max()
            return
        index = np.fromiter(slots, np.int64, len(slots))
        self.scores[index] = self._column(view, index)
        if len(slots) * BLOCK < len(self.scores):
            blocks = index // BLOCK
            self.best[blocks] = self.scores.reshape(-1, BLOCK)[blocks].max(axis=1)
        else:
            self.best = best_of_blocks(self.scores)

    def _score_of(self, view: ClusterView, slot: int) -> float:
        candidate, request = view.slots[slot], self._request
        points = float(self.verdicts.points[slot])
        if candidate is None or points == UNFIT:
            return UNFIT
        capacity, allocated = candidate.capacity, candidate.allocated
        machine = candidate.inventory.machine
        if (
            allocated.vcpus + request.vcpus > capacity.vcpus
            or allocated.memory_bytes + request.memory_bytes > capacity.memory_bytes
            or (machine is not None and machine.max_vcpus and self._most_vcpus > machine.max_vcpus)
        ):
            return UNFIT
        return self._score(candidate, request) + points

    def _column(self, view: ClusterView, index: Ints | slice) -> Floats:
        columns = view.columns
        rows = columns.table[:, index]
        used = rows[USED] + self._size
        loads = used / rows[DIVISORS]
        if columns.has_zeros:
            loads[rows[CAPACITY] <= 0] = 1.0
        scores = column_of_points(self._strategy, loads[0], loads[1])
        scores += self.verdicts.points[index]
        lacks = used > rows[CAPACITY]
        unfit = lacks[0] | lacks[1]
        if self._most_vcpus > columns.least_limit:
            unfit |= rows[MOST_VCPUS] < self._most_vcpus
        np.putmask(scores, unfit, UNFIT)
        return scores


def best_of_blocks(scores: Floats) -> Floats:
    """The highest score of every block."""
    best: Floats = scores.reshape(-1, BLOCK).max(axis=1)
    return best


def best_slots(scores: Floats, best: Floats, ranks: Ints, count: int) -> list[int]:
    """The slots of the best scores, best first, of equal ones the lowest rank first; none that is `UNFIT`.

    Only the blocks are looked into that hold one of them: those of which the best is as good as the `count`-th best of
    all blocks.
    """
    if len(best) <= count:
        chosen = _at_least_nth(scores, count)
    else:
        blocks = _at_least_nth(best, count)
        inside = _at_least_nth(scores.reshape(-1, BLOCK)[blocks].ravel(), count)
        chosen = blocks[inside // BLOCK] * BLOCK + inside % BLOCK
    values = scores[chosen]
    if len(chosen) > _MANY_EQUALS:
        chosen = _without_late_equals(values, ranks, chosen, count)
        values = scores[chosen]
    ordered = sorted(zip((-values).tolist(), ranks[chosen].tolist(), chosen.tolist(), strict=True))
    return [slot for _, _, slot in ordered[:count]]


def _at_least_nth(values: Floats, count: int) -> Ints:
    """Where the values are that are as good as the `count`-th best, equals of that one included; none is `UNFIT`."""
    if len(values) > count:
        least = np.partition(values, len(values) - count)[len(values) - count]
        if least != UNFIT:
            return np.flatnonzero(values >= least)
    return np.flatnonzero(values > UNFIT)


def _without_late_equals(values: Floats, ranks: Ints, chosen: Ints, count: int) -> Ints:
    """Of the values that equal the last one wanted, leave out those of the highest ranks."""
    equal = values == values.min()
    better, equals = chosen[~equal], chosen[equal]
    wanted = count - len(better)
    lowest = np.argpartition(ranks[equals], wanted - 1)[:wanted]
    return np.concatenate((better, equals[lowest]))
