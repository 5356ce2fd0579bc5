"""The best next step of a plan: the move, or else the exchange of two VMs, that gains most; near ties go by cost."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from controlplane.drs.board import PERCENT, Board, Flags, Floats, Ints
from controlplane.drs.headroom import survives
from controlplane.drs.rules import Rules
from controlplane.drs.snapshot import BalanceConfig

Step = tuple[int, int]
"""A VM and the node it goes to."""

_CHUNK_CELLS: Final = 2_000_000
"""Pairs of a VM and a node that are weighed at once: 16 MiB a column of numbers."""
_NARROW_CELLS: Final = 100_000
_NARROW_COUNT: Final = 32
"""In clusters with more pairs than that, so many of the busiest and idlest nodes are looked at first; all others are,
when these have nothing."""
_TRIED_COUNT: Final = 256
"""Best steps of one look whose rules are asked; the next ones are looked for if all of these are refused."""
_LOOKS: Final = 8
_EXCHANGING_COUNT: Final = 16
"""Busiest and idlest nodes between which exchanges are looked for: what they could gain falls off quickly."""
_KEPT_CELLS: Final = 500_000
"""Pairs in clusters of which what does not change is computed once: 4 MiB a column of numbers."""
_TINY: Final = 1e-9


@dataclass(slots=True)
class Bar:
    """What a step must gain: `margin_points` of the difference do not count."""

    min_square: float
    min_difference: float
    margin_points: float
    limits: Floats

    @classmethod
    def of(cls, config: BalanceConfig, *, begins: bool) -> Bar:
        """Make the bar for the first step of a plan, or for the others."""
        margin = config.hysteresis_points if begins else 0.0
        thresholds = np.array([config.cpu_threshold_percent, config.memory_threshold_percent])
        return cls(config.min_gain_points**2, config.min_difference_points, margin, thresholds - margin)

    def passed_by(self, gain: Floats, size: Floats) -> Flags:
        """Say which of the gains (of squares) with these sizes (points moved) are enough."""
        counted = gain - self.margin_points * size
        # Rounding must not make a step of one that was not enough a moment ago.
        return (counted >= self.min_square + _TINY) & (counted >= self.min_difference * size + _TINY)


@dataclass(slots=True)
class Found:
    """Why steps that gain enough were not taken: how many VMs each of the reasons keeps where they are."""

    held: set[int] = field(default_factory=set)
    lacks_room: set[int] = field(default_factory=set)
    above_threshold: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    takes_headroom: set[int] = field(default_factory=set)
    is_cut_short: bool = False
    """Whether a good step was left out: an exchange where there may be only one more move, or another move of a VM."""


@dataclass(slots=True)
class Search:
    """Looks for steps on a board; the board is changed by `take` only."""

    board: Board
    config: BalanceConfig
    rules: Rules
    survived: int
    found: Found = field(default_factory=Found)
    pair_looks: int = 0
    """How many pairs of moves may still be looked at again."""
    notes: bool = True
    """Whether it is noted why steps are not taken."""
    _refused: set[Step] = field(default_factory=set)
    _costs: Ints = field(init=False)
    _kept: tuple[Floats, Floats] | None = None

    def __post_init__(self) -> None:
        costs = [(vm.expected_s, float(vm.moved_bytes)) for vm in self.board.vms]
        ranks = {cost: rank for rank, cost in enumerate(sorted(set(costs)))}
        self._costs = np.array([ranks[cost] for cost in costs], dtype=np.intp)

    def next_steps(self, bar: Bar) -> tuple[Step, ...]:
        """Return the best move, or the two of the best exchange; nothing if no step is good enough."""
        for _ in range(2):
            move = self.best_move(bar)
            if move is not None:
                return (move,)
            if not self._refused:
                break
            # What a rule refused may be allowed since another VM moved.
            self._refused.clear()
        return self.best_exchange(bar)

    def take(self, step: Step) -> None:
        """Make a step."""
        self.board.move(*step)
        self.rules.moved(self.board.vms[step[0]].id, self.board.nodes[step[1]].id)

    # -- moves

    def gain_of(self, step: Step) -> float:
        """By how much a move lowers the sum of squares."""
        vm, target = step
        gain, _ = self._gains(np.array([vm]), np.array([target]))
        return float(gain[0, 0])

    def best_move(self, bar: Bar, *, without: Collection[int] = (), forbidden: Collection[Step] = ()) -> Step | None:
        """Return the best move of one VM, which is none of `without`, and none of the forbidden ones."""
        known = self._refused
        self._refused = known.union(forbidden) if forbidden else known
        try:
            return self._best_move(bar, without)
        finally:
            if forbidden:
                self._refused = known | (self._refused - set(forbidden))

    def _best_move(self, bar: Bar, without: Collection[int]) -> Step | None:
        board = self.board
        if len(board.nodes) < 2 or len(board.vms) == 0:
            return None
        candidates = np.ones(len(board.vms), dtype=np.bool_)
        candidates[list(without)] = False
        everything = (np.flatnonzero(candidates), np.arange(len(board.nodes)))
        narrow = self._narrow(candidates) if everything[0].size * everything[1].size > _NARROW_CELLS else None
        for vms, targets in (narrow, everything) if narrow is not None else (everything,):
            for _ in range(_LOOKS):
                steps = self._good_moves(vms, targets, bar)
                for step in steps:
                    if self._is_allowed(step):
                        return step
                if len(steps) < _TRIED_COUNT:
                    break
        return None

    def _narrow(self, candidates: Flags) -> tuple[Ints, Ints]:
        board = self.board
        distances = board.loads - board.mean
        above = (np.maximum(distances, 0.0) ** 2) @ board.weights
        busiest = np.argsort(-above, kind="stable")[:_NARROW_COUNT]
        idlest = np.argsort(distances @ board.weights, kind="stable")[:_NARROW_COUNT]
        return np.flatnonzero(candidates & np.isin(board.place, busiest)), idlest

    def _good_moves(self, vms: Ints, targets: Ints, bar: Bar) -> list[Step]:
        """List the best moves that numbers allow, best first; equal ones in the order of VMs and nodes."""
        board = self.board
        if not self.notes:
            vms = vms[board.is_movable[vms] & board.is_open[board.place[vms]]]
            targets = targets[board.is_open[targets]]
        chunk = max(_CHUNK_CELLS // max(targets.size, 1), 1)
        best: list[tuple[Floats, Ints, Ints]] = []
        for begin in range(0, vms.size, chunk):
            part = vms[begin : begin + chunk]
            gain, moved = self._gains(part, targets)
            enough = bar.passed_by(gain, moved)
            enough &= board.place[part][:, None] != targets[None, :]
            self._strike_refused(enough, part, targets)
            rows, columns = np.nonzero(enough)
            fits = self._fits(part[rows], targets[columns], bar)
            rows, columns = rows[fits], columns[fits]
            best.append(_best(gain[rows, columns], part[rows], targets[columns]))
        if not best:
            return []
        values, chosen, wanted = best[0]
        if len(best) > 1:
            values, chosen, wanted = _best(*(np.concatenate(column) for column in zip(*best, strict=True)))
        order = self._by_gain_and_cost(values, chosen, wanted)
        return list(zip(chosen[order].tolist(), wanted[order].tolist(), strict=True))

    def _by_gain_and_cost(self, values: Floats, vms: Ints, others: Ints) -> Ints:
        """Order steps that `_best` has put in order: best first, near ties by cost."""
        order = np.arange(values.size)
        if values.size > 1:
            near = int(np.searchsorted(-values, -values[0] * (1.0 - self.config.tie_share), side="right"))
            costs = self._costs[vms[:near]]
            order[:near] = np.lexsort((others[:near], vms[:near], -values[:near], costs))
        return order

    def _gains(self, vms: Ints, targets: Ints) -> tuple[Floats, Floats]:
        """By how much the sum of squares falls for each VM on each target, and how many points are moved."""
        board = self.board
        distance = board.loads - board.mean
        per_unit = PERCENT / board.capacity
        size, places = board.size[vms], board.place[vms]
        leaves = size * per_unit[places]
        given = (leaves * (2 * distance[places] - leaves)) @ board.weights
        square, arriving = self._arriving(vms, targets)
        gain = given[:, None] - _products(size, (2 * board.weights * distance * per_unit)[targets])
        gain -= square
        return gain, (leaves @ board.weights)[:, None] + arriving

    def _arriving(self, vms: Ints, targets: Ints) -> tuple[Floats, Floats]:
        """Return what each VM adds to each target, squared and as it is, in weighted points, wherever VMs are now."""
        board = self.board
        if board.size.shape[0] * len(board.nodes) > _KEPT_CELLS:
            return _points(board, board.size[vms], targets)
        if self._kept is None:
            self._kept = _points(board, board.size, np.arange(len(board.nodes)))
        square, plain = self._kept
        if targets.size < len(board.nodes):
            cells = np.ix_(vms, targets)
            return square[cells], plain[cells]
        return (square, plain) if vms.size == len(board.vms) else (square[vms], plain[vms])

    def _fits(self, vms: Ints, targets: Ints, bar: Bar) -> Flags:
        """Say which moves that gain enough the numbers allow, and note why others are not."""
        board = self.board
        may_go = board.is_movable[vms] & board.is_open[board.place[vms]] & board.is_open[targets]
        room, below = np.ones_like(may_go), np.ones_like(may_go)
        free, loads, per_unit = board.free, board.loads, PERCENT / board.capacity
        for kind in range(2):
            room &= board.size[vms, 2 + kind] <= free[targets, kind]
            if board.is_measured:
                adds = board.size[vms, kind] * per_unit[targets, kind]
                below &= (loads[targets, kind] + adds <= bar.limits[kind]) | (adds <= 0)
        if self.notes:
            for kept, reason in (
                (~may_go, self.found.held),
                (may_go & ~room, self.found.lacks_room),
                (may_go & room & ~below, self.found.above_threshold),
            ):
                reason.update(np.unique(vms[kept]).tolist())
        allowed: Flags = may_go & room & below
        return allowed

    def _strike_refused(self, enough: Flags, vms: Ints, targets: Ints) -> None:
        """Take out what was refused before."""
        if not self._refused:
            return
        refused = np.array(list(self._refused), dtype=np.intp)
        column_of = np.full(len(self.board.nodes), -1, dtype=np.intp)
        column_of[targets] = np.arange(targets.size)
        rows, columns = np.searchsorted(vms, refused[:, 0]), column_of[refused[:, 1]]
        known = (rows < vms.size) & (columns >= 0)
        rows, columns = rows[known], columns[known]
        same = vms[rows] == refused[known, 0]
        enough[rows[same], columns[same]] = False

    def _is_allowed(self, step: Step) -> bool:
        """Ask the rules, and see whether enough nodes may still fail; what is refused is not looked at again."""
        vm, target = step
        if not self.rules.allows(self.board.vms[vm].id, self.board.nodes[target].id):
            reason = self.found.refused
        elif not self._leaves_headroom((step,)):
            reason = self.found.takes_headroom
        else:
            return True
        if self.notes:
            reason.add(vm)
        self._refused.add(step)
        return False

    def _leaves_headroom(self, steps: tuple[Step, ...]) -> bool:
        board = self.board
        back = [(vm, int(board.place[vm])) for vm, _ in steps]
        is_safe = True
        for step in steps:
            board.move(*step)
            is_safe = is_safe and survives(board, self.survived)
        for vm, source in reversed(back):
            board.move(vm, source)
        return is_safe

    # -- exchanges

    def best_exchange(self, bar: Bar) -> tuple[Step, ...]:
        """Return the two moves of the best exchange, in an order in which both have room; nothing if there is none."""
        board = self.board
        distance = (board.loads - board.mean) @ board.weights
        order = [int(node) for node in np.argsort(-distance, kind="stable") if board.is_open[node]]
        busy, idle = order[:_EXCHANGING_COUNT], order[::-1][:_EXCHANGING_COUNT]
        movable = {node: np.flatnonzero((board.place == node) & board.is_movable) for node in {*busy, *idle}}
        good = [
            self._good_exchanges(source, target, movable[source], movable[target], bar)
            for source in busy
            for target in idle
            if distance[source] > distance[target] and movable[source].size and movable[target].size
        ]
        if not good:
            return ()
        values, vms, others = _best(*(np.concatenate(column) for column in zip(*good, strict=True)))
        for at in self._by_gain_and_cost(values, vms, others).tolist():
            vm, other = int(vms[at]), int(others[at])
            steps = self._in_order((vm, int(board.place[other])), (other, int(board.place[vm])))
            if steps:
                return steps
        return ()

    def _good_exchanges(self, source: int, target: int, vms: Ints, others: Ints, bar: Bar) -> tuple[Floats, Ints, Ints]:
        board = self.board
        change = board.size[vms][:, None, :] - board.size[others][None, :, :]
        leaves, comes = PERCENT * change / board.capacity[source], PERCENT * change / board.capacity[target]
        distance = board.loads - board.mean
        gain = (leaves * (2 * distance[source] - leaves) - comes * (2 * distance[target] + comes)) @ board.weights
        size = (abs(leaves) + abs(comes)) @ board.weights
        # Two moves must gain what two moves have to.
        enough = bar.passed_by(gain - bar.min_square, size)
        if board.is_measured:
            for kind in range(2):
                for loads, grows in ((board.loads[target], comes), (board.loads[source], -leaves)):
                    enough &= (grows[..., kind] <= 0) | (loads[kind] + grows[..., kind] <= bar.limits[kind])
        rows, columns = np.nonzero(enough)
        return gain[rows, columns], vms[rows], others[columns]

    def _in_order(self, one: Step, other: Step) -> tuple[Step, ...]:
        """Put the two moves in the order in which room, rules and headroom allow both; nothing if there is none."""
        for steps in ((other, one), (one, other)):
            if self._can_follow(steps):
                return steps
        return ()

    def _can_follow(self, steps: tuple[Step, ...]) -> bool:
        """Try steps one after the other, and take them back."""
        board = self.board
        back: list[Step] = []
        can = True
        for vm, target in steps:
            can = board.has_room(vm, target) and self.rules.allows(board.vms[vm].id, board.nodes[target].id)
            if not can:
                break
            back.append((vm, int(board.place[vm])))
            self.take((vm, target))
            can = survives(board, self.survived)
            if not can:
                break
        for step in reversed(back):
            self.take(step)
        return can

    def can_follow(self, steps: tuple[Step, ...]) -> bool:
        """Whether these steps have room, rules and headroom one after the other."""
        return self._can_follow(steps)


def _best(values: Floats, vms: Ints, others: Ints) -> tuple[Floats, Ints, Ints]:
    """Keep the best steps, best first; equal ones in the order of VMs and of the other number."""
    if values.size > _TRIED_COUNT:
        # Of equal ones all are kept first, so that the order does not depend on how they are found.
        kept = np.flatnonzero(values >= np.partition(values, values.size - _TRIED_COUNT)[values.size - _TRIED_COUNT])
        values, vms, others = values[kept], vms[kept], others[kept]
    order = np.lexsort((others, vms, -values))[:_TRIED_COUNT]
    return values[order], vms[order], others[order]


def _points(board: Board, size: Floats, targets: Ints) -> tuple[Floats, Floats]:
    per_unit = PERCENT / board.capacity[targets]
    return _products(size**2, board.weights * per_unit**2), _products(size, board.weights * per_unit)


def _products(left: Floats, right: Floats) -> Floats:
    """Sum up the products of every row with every row; without BLAS, whose threads cost more than four columns."""
    total = np.multiply.outer(left[:, 0], right[:, 0])
    for column in range(1, left.shape[1]):
        total += np.multiply.outer(left[:, column], right[:, column])
    return total
