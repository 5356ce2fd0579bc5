"""Plan the moves that even out the load of a cluster: the balancer's one entry, `plan`.

The objective is the imbalance of `controlplane.drs.board`. The plan is made step by step, each time the move that
lowers it most; where no move does, an exchange of two VMs. It settles: every step lowers the sum of
squares by a least amount, so a plan ends; what it ends with has no step that is good enough, so the next run finds
none; and since a run begins only with a step that beats the bar by `hysteresis_points`, neither does one that
measures every node a quarter of that differently.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from controlplane.drs.board import Board, board_of
from controlplane.drs.exchanges import PlannedMove, partners
from controlplane.drs.headroom import failures_survived
from controlplane.drs.refine import MAX_REFINED_MOVES, each_once, in_order, refined
from controlplane.drs.rules import NoRules, Rules
from controlplane.drs.search import Bar, Found, Search, Step
from controlplane.drs.snapshot import BalanceConfig, BalancePlan, ClusterLoad, LoadOfNode, Move, NodeLoad, Priority

SMALL_CELLS: Final = 10_000
"""Pairs of a VM and a node in clusters that are searched several times, since it takes next to no time."""
_TIE_SHARES: Final = (0.0, 0.25)
"""What near ties are taken for in the other searches: greedy steps end elsewhere, sometimes where it is better."""
_CLEARLY: Final = 0.999
_PAIR_LOOKS: Final = 400
"""Pairs of moves that a search looks at again, in a cluster of `_CELLS_OF_A_LOOK`; in larger ones there are fewer."""
_CELLS_OF_A_LOOK: Final = 4_000
_MOVES_OF_AN_EXCHANGE: Final = 2
_REFINEMENTS: Final = 3
"""Rounds of making a plan better and then longer; hardly ever does the second one find anything."""


def plan(cluster: ClusterLoad, config: BalanceConfig, now_s: float, rules: Rules | None = None) -> BalancePlan:
    """Propose moves, best first, each of which has room when those before it are made.

    Args:
        cluster: its records are not changed, and equal ones give an equal plan.
        now_s: the time on the clock of the records' `moved_at_s`.
        rules: left as they were.
    """
    board = board_of(cluster, config, now_s)
    rules = rules or NoRules()
    before = board.imbalance()
    loads = tuple(board.load_of(node) for node in range(len(board.nodes)))
    obstacle = _obstacle(cluster, board, config, now_s)
    if obstacle:
        return BalancePlan((), before, before, obstacle, loads)
    start = board.place.tolist()
    survived = failures_survived(board, config.headroom_failures)
    cells = len(board.vms) * len(board.nodes)
    best: _Found | None = None
    for tie_share in dict.fromkeys((config.tie_share, *_TIE_SHARES) if cells <= SMALL_CELLS else (config.tie_share,)):
        search = Search(board, replace(config, tie_share=tie_share), rules, survived)
        search.pair_looks = _PAIR_LOOKS // max(cells // _CELLS_OF_A_LOOK, 1)
        found = _found(search, config, start)
        if best is None or found.imbalance < best.imbalance * _CLEARLY:
            best = found
    assert best is not None  # noqa: S101 - there is at least one share
    moves = _carried_out(search, best, before)
    _take_back(search, best.steps, start)
    return BalancePlan(moves, before, best.imbalance, _message(moves, before, config, best.obstacles, cluster), loads)


@dataclass(frozen=True, slots=True)
class _Found:
    """What one search came to."""

    steps: list[Step]
    exchanges: list[tuple[int, int]]
    imbalance: float
    obstacles: Found


def _found(search: Search, config: BalanceConfig, start: list[int]) -> _Found:
    """Search, and put the board back as it was."""
    taken = _steps(search, config)
    imbalance = search.board.imbalance()
    flat = [step for steps in taken for step in steps]
    _take_back(search, flat, start)
    exchanges = [(steps[0][0], steps[1][0]) for steps in taken if len(steps) > 1]
    once = _merged(search, flat, start)
    if once is None:
        once = _beginning(taken)
        search.found.is_cut_short = True
        for step in once:
            search.take(step)
        imbalance = search.board.imbalance()
        _take_back(search, once, start)
    return _Found(once, exchanges, imbalance, search.found)


def loads_of(cluster: ClusterLoad) -> tuple[tuple[LoadOfNode, ...], float]:
    """Tell the loads of the nodes that take part, by id, and how far they are apart."""
    board = board_of(cluster, BalanceConfig(), 0.0)
    return tuple(board.load_of(node) for node in range(len(board.nodes))), board.imbalance()


def load_of_excluded(node: NodeLoad, vm_count: int, *, is_measured: bool) -> LoadOfNode:
    """Tell the loads of a node that takes no part."""

    def percent(part: float, whole: float) -> float:
        return 100.0 * part / whole if whole > 0 else 0.0

    return LoadOfNode(
        node.id,
        node.hostname,
        percent(node.used_threads, node.thread_count),
        percent(node.used_memory_bytes, node.memory_bytes),
        percent(node.claimed.vcpus, node.capacity.vcpus),
        percent(node.claimed.memory_bytes, node.capacity.memory_bytes),
        vm_count,
        is_measured,
    )


def _steps(search: Search, config: BalanceConfig) -> list[tuple[Step, ...]]:
    """Search to the end, on the board; each entry is one move, or the two of an exchange."""
    start = search.board.place.tolist()
    taken: list[tuple[Step, ...]] = []
    bar = Bar.of(config, begins=False)
    for _ in range(_REFINEMENTS):
        _extend(search, config, taken)
        flat = [step for steps in taken for step in steps]
        if len(flat) <= 1 or len(flat) > MAX_REFINED_MOVES or not each_once(flat):
            return taken
        better = refined(search, flat, start, bar)
        if better is None:
            return taken
        taken = [(step,) for step in better]
    _extend(search, config, taken)
    return taken


def _extend(search: Search, config: BalanceConfig, taken: list[tuple[Step, ...]]) -> None:
    """Add steps until none is good enough, or there are as many as there may be."""
    count = sum(len(steps) for steps in taken)
    search.found.is_cut_short = False
    while count < config.max_moves:
        steps = search.next_steps(Bar.of(config, begins=not taken))
        if not steps:
            return
        if count + len(steps) > config.max_moves:
            search.found.is_cut_short = True
            return
        for step in steps:
            search.take(step)
        taken.append(steps)
        count += len(steps)


def _take_back(search: Search, taken: list[Step], start: list[int]) -> None:
    for vm in {vm for vm, _ in taken}:
        search.take((vm, start[vm]))


def _merged(search: Search, flat: list[Step], start: list[int]) -> list[Step] | None:
    """Have every VM that moves twice move once, in an order in which all have room; None if none is found."""
    last = {vm: at for at, (vm, _) in enumerate(flat)}
    if len(last) == len(flat):
        return flat
    once = [(vm, target) for at, (vm, target) in enumerate(flat) if last[vm] == at and target != start[vm]]
    return once if search.can_follow(tuple(once)) else in_order(search, once)


def _beginning(taken: list[tuple[Step, ...]]) -> list[Step]:
    """Return the moves up to the first one of a VM that has moved before."""
    once: list[Step] = []
    for steps in taken:
        if {vm for vm, _ in once} & {vm for vm, _ in steps}:
            break
        once.extend(steps)
    return once


def _carried_out(search: Search, found: _Found, before: float) -> tuple[Move, ...]:
    """Make the moves on the board once more, and note what each does."""
    board = search.board
    moves: list[Move] = []
    planned: list[PlannedMove] = []
    for vm, target in found.steps:
        source = int(board.place[vm])
        loads = board.load_of(source), board.load_of(target)
        imbalance = board.imbalance()
        gain = search.gain_of((vm, target))
        search.take((vm, target))
        after = board.imbalance()
        planned.append(PlannedMove(vm, source, target, gain))
        moves.append(
            Move(
                vm=board.vms[vm],
                source=loads[0],
                target=loads[1],
                source_after=board.load_of(source),
                target_after=board.load_of(target),
                imbalance_before=imbalance,
                imbalance_after=after,
                gain_percent=100.0 * (imbalance - after) / before if before > 0 else 0.0,
                priority=Priority.of_load(loads[0].busiest),
            )
        )
    other_of = partners(planned, found.exchanges)
    named = [
        replace(move, exchanged_with=board.vms[other_of[each.vm]].id) if each.vm in other_of else move
        for move, each in zip(moves, planned, strict=True)
    ]
    return tuple(_with_shared_gain(named))


def _with_shared_gain(moves: list[Move]) -> list[Move]:
    """Give the halves of an exchange half of its gain each, since one half alone would gain nothing."""
    gains = {move.vm.id: move.gain_percent for move in moves}
    return [
        replace(move, gain_percent=(gains[move.vm.id] + gains[move.exchanged_with]) / 2)
        if move.exchanged_with
        else move
        for move in moves
    ]


def _obstacle(cluster: ClusterLoad, board: Board, config: BalanceConfig, now_s: float) -> str:
    """Say why no plan is made at all; "" if one is."""
    if len(board.nodes) < 2:
        reasons = sorted({node.excluded for node in cluster.nodes if node.excluded})
        others = f" (others: {', '.join(reasons)})" if reasons else ""
        return f"nothing to balance: {_counted(len(board.nodes), 'node')} can take part{others}"
    if not board.vms:
        return "nothing to balance: there are no VMs on these nodes"
    if cluster.moved_at_s is not None and now_s - cluster.moved_at_s < config.cluster_cool_down_s:
        left_s = config.cluster_cool_down_s - (now_s - cluster.moved_at_s)
        return f"the cluster rests for {left_s:.0f} s more after the last move"
    return ""


def _message(moves: tuple[Move, ...], before: float, config: BalanceConfig, found: Found, cluster: ClusterLoad) -> str:
    if found.is_cut_short and config.max_moves < _MOVES_OF_AN_EXCHANGE and not moves:
        return f"an exchange of two VMs would help, but a run proposes only {_counted(config.max_moves, 'move')}"
    if found.is_cut_short and len(moves) < config.max_moves - 1:
        return "more would help, but needs a VM to move twice; the next run goes on from there"
    if len(moves) >= config.max_moves or found.is_cut_short:
        return f"a run proposes no more than {_counted(config.max_moves, 'move')}; the next one goes on from there"
    kept = [
        f"{_counted(len(vms), 'VM')} {reason}"
        for vms, reason in (
            (found.held, "held back (moved lately, not to be moved, or on a node that rests)"),
            (found.lacks_room, "with no room on a node where it would help"),
            (found.above_threshold, "that would lift a node above its threshold"),
            (found.refused, "kept by rules"),
            (found.takes_headroom, "that would take away the room for VMs of a failed node"),
        )
        if vms
    ]
    measure = "" if cluster.is_measured else "; by claims, since nothing is measured"
    if kept:
        return f"no {'more ' if moves else ''}move is possible: {', '.join(kept)}{measure}"
    if moves:
        return f"with these the cluster is balanced{measure}"
    return f"balanced: nodes are {before:.1f} points from the cluster's load, and no move gains enough{measure}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
