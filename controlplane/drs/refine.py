"""Make a plan better without making it longer: one greedy step after the other is good, but rarely the best.

Each move in turn is taken back, and the best move that could be made in its place is made; then so is each pair of
moves, as far as that takes no time worth mentioning. What comes out is a set of moves, which is then put in an order in
which each has room.
"""

from __future__ import annotations

from itertools import combinations
from typing import Final

import numpy as np

from controlplane.drs.search import Bar, Search, Step

_ROUNDS: Final = 3
MAX_REFINED_MOVES: Final = 200
"""A longer plan is left as it is: each of its moves costs a look at the whole cluster."""
_LEAST_SHARE: Final = 1e-4
"""By how much of its gain another move must be better, so that two equal ones do not take turns."""


def refined(search: Search, steps: list[Step], start: list[int], bar: Bar) -> list[Step] | None:
    """Return better moves, each VM once, in an order in which they can be made; None if there are none.

    Args:
        steps: moves that are made on the board, each VM once. They are again when it returns None; else the new ones.
        start: the node of each VM before them.
    """
    current = dict(steps)
    search.notes = False
    for _ in range(_ROUNDS):
        singles = _with_better_moves(search, current, start, bar)
        if not _with_better_pairs(search, current, start, bar) and not singles:
            break
    search.notes = True
    if current == dict(steps):
        return None
    for vm in current:
        search.take((vm, start[vm]))
    ordered = in_order(search, list(current.items()))
    for step in steps if ordered is None else ordered:
        search.take(step)
    return ordered


def _with_better_moves(search: Search, current: dict[int, int], start: list[int], bar: Bar) -> bool:
    """Replace one move by another as long as that is of use; tells whether it was."""
    found = False
    for _ in range(_ROUNDS):
        improved = False
        for vm in list(current):
            step = (vm, current[vm])
            other = _replaced(search, step, start[vm], set(current) - {vm}, bar)
            if other == step:
                continue
            del current[vm]
            if other is not None:
                current[other[0]] = other[1]
            improved = found = True
        if not improved:
            break
    return found


def _with_better_pairs(search: Search, current: dict[int, int], start: list[int], bar: Bar) -> bool:
    """Replace two moves by two others where that is of use; tells whether it was."""
    found = False
    for one, other in combinations(list(current), 2):
        if search.pair_looks <= 0:
            break
        if one not in current or other not in current:
            continue
        search.pair_looks -= 1
        old = [(vm, current[vm]) for vm in (one, other)]
        new = _pair_replaced(search, old, start, set(current) - {one, other}, bar)
        if new is not None:
            for vm in (one, other):
                del current[vm]
            current.update(new)
            found = True
    return found


def _pair_replaced(search: Search, old: list[Step], start: list[int], others: set[int], bar: Bar) -> list[Step] | None:
    """Make two other moves in the place of two, if that is better; else leave the board as it is, and return None."""
    board = search.board
    before = board.squares()
    for vm, _ in old:
        search.take((vm, start[vm]))
    new: list[Step] = []
    first = search.best_move(bar, without=others, forbidden=old)
    if first is not None:
        new.append(first)
        search.take(first)
        second = search.best_move(bar, without=others | {first[0]})
        if second is not None:
            new.append(second)
            search.take(second)
    if board.squares() < before * (1 - _LEAST_SHARE):
        return new
    for vm, _ in new:
        search.take((vm, start[vm]))
    for step in old:
        search.take(step)
    return None


def in_order(search: Search, steps: list[Step]) -> list[Step] | None:
    """Order moves so that each has room, rules and headroom in turn; None if that cannot be found. Changes nothing."""
    start = {vm: int(search.board.place[vm]) for vm, _ in steps}
    left, ordered = list(steps), list[Step]()
    while left:
        blocked = []
        for step in left:
            if search.can_follow((step,)):
                search.take(step)
                ordered.append(step)
            else:
                blocked.append(step)
        if len(blocked) == len(left):
            break
        left = blocked
    for vm, _ in reversed(ordered):
        search.take((vm, start[vm]))
    return ordered if len(ordered) == len(steps) else None


def _replaced(search: Search, step: Step, home: int, others: set[int], bar: Bar) -> Step | None:
    """Take a move back and make the best one in its place: itself, another, or none if it is of no use any more."""
    search.take((step[0], home))
    gain = search.gain_of(step)
    best = search.best_move(bar, without=others)
    if best is None or search.gain_of(best) <= gain * (1 + _LEAST_SHARE):
        if best is None and gain <= 0:
            return None
        best = step
    search.take(best)
    return best


def each_once(steps: list[Step]) -> bool:
    """Whether no VM moves twice."""
    vms = np.array([vm for vm, _ in steps], dtype=np.intp)
    return len(np.unique(vms)) == len(vms)
