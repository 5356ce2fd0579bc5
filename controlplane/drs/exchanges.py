"""Which moves of a plan belong together: one that does harm without another one is an exchange with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PlannedMove:
    """One move as numbers of a board; `gain` is in its place in the plan."""

    vm: int
    source: int
    target: int
    gain: float


def partners(moves: Sequence[PlannedMove], known: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Say for each VM whose move is half of an exchange which VM is the other half.

    Args:
        moves: of a plan, in order, each VM once.
        known: pairs of VMs that were found as exchanges.
    """
    moved = {move.vm for move in moves}
    found: dict[int, int] = {}
    for one, other in known:
        if {one, other} <= moved - found.keys():
            found[one], found[other] = other, one
    for move in moves:
        if move.gain > 0 or move.vm in found:
            continue
        free = [each for each in moves if each.vm != move.vm and each.vm not in found and _makes_up_for(each, move)]
        if free:
            other = max((_makes_up_for(each, move), each.gain, -each.vm, each.vm) for each in free)[3]
            found[move.vm], found[other] = other, move.vm
    return found


def _makes_up_for(one: PlannedMove, other: PlannedMove) -> int:
    """Count at how many of its nodes one move takes back what the other one does."""
    return (one.source == other.target) + (one.target == other.source)
