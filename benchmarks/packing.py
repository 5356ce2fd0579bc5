"""Packing and balance on the same clusters as Ganeti's hspace and hbal; hbal's own score is the judge of balance."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import htools
from benchmarks.htools import Guest, Host, Layout
from benchmarks.measurement import Goal, Pair, Row, Section, compare
from controlplane.drs.planner import loads_of
from controlplane.simulator.balancing import load_of
from controlplane.simulator.cluster_file import ClusterFile
from controlplane.simulator.result import Result
from controlplane.simulator.run import simulate
from controlplane.simulator.scenario import Balance, Event, NewVms, Place, Scenario
from controlplane.simulator.world import World

_NO_MORE = Goal(1.0)
_NO_LESS = Goal(1.0, better="higher")
_LEAST_SCORE = 1e-9
"""In place of a perfect score, by which nothing can be divided."""


@dataclass(frozen=True, slots=True)
class PackingEffort:
    """How much is compared: clusters of each shape, and nodes of a cluster."""

    seed_count: int
    node_count: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """One unbalanced cluster, balanced by both: hbal's score, our imbalance, and moves; ours has no more moves."""

    our_score: float
    its_score: float
    our_imbalance: float
    its_imbalance: float
    our_moves: int
    its_moves: int


async def measure_packing(effort: PackingEffort) -> Section:
    """Compare both."""
    title = "VMs that fit, and balance after moves, against hspace and hbal of Ganeti on the same clusters"
    if not htools.is_installed():
        return Section("packing", title, skipped=htools.NOT_INSTALLED)
    rows = await asyncio.to_thread(_rows, effort)
    notes = (
        "over-commit 1.0, nothing reserved, disks shared and without size, hspace without its N+1 checks;",
        "ours may make as many moves as hbal does; thorough: hbal goes on below a score of 0.1 (--min-gain 0.0001);",
        "scores are those that hbal gives to either result (--ignore-dynu: free memory and vCPUs); lower is better",
    )
    return Section("packing", title, tuple(rows), notes)


def _rows(effort: PackingEffort) -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory(prefix="limiquantix-packing-") as name:
        folder = Path(name)
        for shape, make in SHAPES.items():
            layouts = [make(_chance(seed), effort.node_count) for seed in range(effort.seed_count)]
            rows.append(compare(f"{shape}: VMs placed", _packed(layouts, folder), "VMs", _NO_LESS))
            for word, options in (("", ()), (" thorough", htools.THOROUGH)):
                done = [compare_balance(layout, folder, options) for layout in layouts]
                rows += _balance_rows(f"{shape}{word}:", done)
    return rows


def _chance(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - clusters to compare by, no secrets


def _balance_rows(title: str, done: list[Comparison]) -> list[Row]:
    scores = [Pair(max(each.our_score, _LEAST_SCORE), max(each.its_score, _LEAST_SCORE)) for each in done]
    ours = [Pair(max(each.our_imbalance, _LEAST_SCORE), max(each.its_imbalance, _LEAST_SCORE)) for each in done]
    moves = [Pair(max(each.our_moves, 1), max(each.its_moves, 1)) for each in done]
    return [
        compare(f"{title} hbal's score", scores, "", _NO_MORE),
        compare(f"{title} our imbalance", ours, "points", _NO_MORE),
        compare(f"{title} moves", moves, "moves", _NO_MORE),
    ]


_REQUESTS = ((1, 2048), (2, 8192), (4, 6144), (3, 20480))


def _packed(layouts: list[Layout], folder: Path) -> list[Pair]:
    return [
        Pair(ours, its)
        for layout in layouts
        for cpus, memory_mib in _REQUESTS
        if (its := htools.count_fitting(layout, cpus, memory_mib, folder))
        for ours in (count_placed(layout, cpus, memory_mib),)
    ]


def count_placed(layout: Layout, cpus: int, memory_mib: int) -> int:
    """Place VMs of a size, one after the other as a batch, until the scheduler refuses one."""
    most = 1 + sum(host.cpus // cpus for host in layout.hosts)
    vms = NewVms(name="new", cpus=cpus, memory=f"{memory_mib}MiB", count=most)  # type: ignore[arg-type]
    result = simulate(to_cluster(layout), Scenario(events=(Event(place=Place(vms=(vms,))),)))
    return sum(1 for outcome in result.outcomes if outcome.fate == "placed")


def compare_balance(layout: Layout, folder: Path, options: Sequence[str] = ()) -> Comparison:
    """Balance a cluster in both ways, ours with no more moves than hbal makes with these options."""
    its = htools.balance(layout, folder, *options)
    settings = EVEN | {"max_moves": max(its.move_count, 1)}
    result = simulate(to_cluster(layout, settings), Scenario(events=(Event(balance=Balance()),)))
    host_of = {vm.name: node.name for node in result.after for vm in node.vms}
    return Comparison(
        our_score=htools.score(htools.moved(layout, host_of), folder),
        its_score=its.score_after,
        our_imbalance=result.imbalance_after,
        its_imbalance=imbalance_of(htools.moved(layout, its.host_of)),
        our_moves=_move_count(result),
        its_moves=its.move_count,
    )


def _move_count(result: Result) -> int:
    return sum(1 for outcome in result.outcomes if outcome.fate == "moved")


def imbalance_of(layout: Layout) -> float:
    """Score a cluster by our own measure, in points."""
    return loads_of(load_of(World(to_cluster(layout))))[1]


EVEN: dict[str, Any] = {
    "min_gain_points": 0.5,
    "min_difference_points": 0,
    "hysteresis_points": 0,
    "max_moves": 100_000,
    "max_concurrent_moves": 8,
    "hold": "0s",
    "node_cool_down": "0s",
    "headroom_failures": 0,
}
"""Go on for as long as it gains something, as hbal does; it leaves no room for failures either."""


def to_cluster(layout: Layout, balancing: Mapping[str, Any] | None = None) -> ClusterFile:
    """Make a cluster file of ours: over-commit 1, nothing reserved."""
    return ClusterFile.model_validate(
        {
            "settings": {
                "cpu_overcommit": 1.0,
                "memory_overcommit": 1.0,
                "reserved_cpus": 0,
                "reserved_memory": "0B",
                "times": {"migrations_per_node": 1000, "migrations_per_cluster": 1000},
                "balancing": dict(balancing or EVEN),
            },
            "nodes": [
                {"name": host.name, "cpus": host.cpus, "memory": f"{host.memory_mib}MiB"} for host in layout.hosts
            ],
            "vms": [
                {"name": guest.name, "cpus": guest.cpus, "memory": f"{guest.memory_mib}MiB", "node": guest.host}
                for guest in layout.guests
            ],
        }
    )


# -- clusters


def _fill(chance: random.Random, hosts: list[Host], sizes: list[tuple[int, int]], share: float, skew: float) -> Layout:
    """Put VMs on hosts at random, more on the first ones the larger `skew`, until `share` of the memory is taken."""
    free = {host.name: [host.cpus, host.memory_mib] for host in hosts}
    weights = [(1.0 + skew) ** -index for index in range(len(hosts))]
    left_mib = share * sum(host.memory_mib for host in hosts)
    guests: list[Guest] = []
    misses = 0
    while left_mib > 0 and misses < 200:
        cpus, memory_mib = chance.choice(sizes)
        host = chance.choices(hosts, weights)[0]
        room = free[host.name]
        if room[0] < cpus or room[1] < memory_mib:
            misses += 1
            continue
        room[0] -= cpus
        room[1] -= memory_mib
        left_mib -= memory_mib
        guests.append(Guest(f"vm-{len(guests):04}", cpus, memory_mib, host.name))
    return Layout(tuple(hosts), tuple(guests))


def _hosts(count: int, cpus: int, memory_mib: int) -> list[Host]:
    return [Host(f"host-{index:03}", cpus, memory_mib) for index in range(count)]


def _uniform(chance: random.Random, count: int) -> Layout:
    return _fill(chance, _hosts(count, 64, 262_144), [(2, 4096)], 0.45, 0.15)


def _mixed(chance: random.Random, count: int) -> Layout:
    sizes = [(1, 1024), (2, 4096), (4, 8192), (8, 16384), (2, 16384), (6, 4096)]
    return _fill(chance, _hosts(count, 64, 262_144), sizes, 0.5, 0.15)


def _tight(chance: random.Random, count: int) -> Layout:
    return _fill(chance, _hosts(count, 64, 131_072), [(1, 4096), (2, 8192), (1, 12288)], 0.85, 0.02)


def _big(chance: random.Random, count: int) -> Layout:
    return _fill(chance, _hosts(count, 64, 262_144), [(16, 65536), (8, 49152), (2, 4096)], 0.5, 0.1)


def _unequal(chance: random.Random, count: int) -> Layout:
    sizes = [(32, 131_072), (64, 262_144), (96, 524_288)]
    hosts = [Host(f"host-{index:03}", *sizes[index % 3]) for index in range(count)]
    return _fill(chance, hosts, [(1, 2048), (2, 4096), (4, 16384), (8, 16384)], 0.5, 0.05)


SHAPES: Mapping[str, Callable[[random.Random, int], Layout]] = {
    "uniform": _uniform,
    "mixed sizes": _mixed,
    "tight memory": _tight,
    "big VMs": _big,
    "unequal nodes": _unequal,
}
