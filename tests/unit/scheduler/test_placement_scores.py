"""Points: what each scorer gives, and that they add up to what a plan reports."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.scheduler import scores
from controlplane.scheduler.scores import ScorePart, Strategy, parts_of, scorers_for, totals_of
from controlplane.scheduler.snapshot import PlacementRequest, Toleration
from limiquantix.compute.v1.vm_pb2 import PlacementPolicy
from tests.unit.scheduler.placement_builders import MIB, a_candidate, a_taint

REQUEST = PlacementRequest(vcpus=2, memory_bytes=1024 * MIB)


@pytest.mark.parametrize(
    ("used_vcpus", "used_memory_mib", "spread", "pack", "balanced"),
    [
        (0, 0, 81.25, 18.75, 84.375),
        (2, 3072, 50.0, 50.0, 75.0),
        (6, 7168, 0.0, 100.0, 50.0),
        (6, 0, 43.75, 56.25, 28.125),
    ],
)
def test_strategies_load_after_placement_gives_points(
    used_vcpus: int, used_memory_mib: int, spread: float, pack: float, balanced: float
) -> None:
    node = a_candidate(vcpus=8, memory_mib=8192, used_vcpus=used_vcpus, used_memory_mib=used_memory_mib)

    assert scores.spread(node, REQUEST) == pytest.approx(spread)
    assert scores.pack(node, REQUEST) == pytest.approx(pack)
    assert scores.balanced(node, REQUEST) == pytest.approx(balanced)


def test_spread_empty_nodes_of_different_size_prefers_the_larger() -> None:
    small, large = a_candidate(vcpus=4, memory_mib=4096), a_candidate(vcpus=64, memory_mib=65536)

    assert scores.spread(large, REQUEST) > scores.spread(small, REQUEST)


def test_balanced_same_total_load_prefers_the_even_one() -> None:
    even = a_candidate(used_vcpus=3, used_memory_mib=4096)
    uneven = a_candidate(used_vcpus=5, used_memory_mib=2048)

    assert scores.spread(even, REQUEST) == pytest.approx(scores.spread(uneven, REQUEST))
    assert scores.balanced(even, REQUEST) > scores.balanced(uneven, REQUEST)


def test_strategies_node_without_capacity_counts_as_full() -> None:
    node = a_candidate(vcpus=0, memory_mib=0)

    assert scores.spread(node, REQUEST) == 0.0
    assert scores.pack(node, REQUEST) == 100.0


@pytest.mark.parametrize(("name", "points"), [("n1", 20.0), ("host-n1", 20.0), ("n2", 0.0)])
def test_preferred_node_named_by_id_or_host_gains_points(name: str, points: float) -> None:
    request = replace(REQUEST, policy=PlacementPolicy(preferred_nodes=[name]))

    assert scores.preferred_node(a_candidate("n1"), request) == points


@pytest.mark.parametrize(("pool_count", "points"), [(1, 10.0), (2, 20.0), (3, 30.0), (4, 30.0)])
def test_storage_pools_matching_gain_points_up_to_a_limit(pool_count: int, points: float) -> None:
    pools = [f"pool-{number}" for number in range(pool_count)]
    request = replace(REQUEST, storage_pool_ids=frozenset(pools))

    assert scores.storage_pools(a_candidate(pools=[*pools, "other"]), request) == points


def test_soft_taints_lose_points_each_unless_tolerated() -> None:
    node = a_candidate(taints=map(a_taint, ["old=:PREFER_NO_SCHEDULE", "hot=1:PREFER_NO_SCHEDULE", "x=:NO_EXECUTE"]))

    assert scores.soft_taints(node, REQUEST) == -100.0
    assert scores.soft_taints(node, replace(REQUEST, tolerations=(Toleration("old"),))) == -50.0
    assert scores.soft_taints(a_candidate(), REQUEST) == 0.0


@pytest.mark.parametrize("strategy", list(Strategy))
def test_parts_of_every_kind_name_their_points_and_add_up(strategy: Strategy) -> None:
    node = a_candidate(taints=[a_taint("old=:PREFER_NO_SCHEDULE")], pools=["p"])
    request = replace(REQUEST, policy=PlacementPolicy(preferred_nodes=["n1"]), storage_pool_ids=frozenset({"p"}))
    scorers = scorers_for(strategy, request)

    parts = parts_of(node, request, scorers)

    assert parts[0].name == strategy.value
    assert parts[1:] == (
        ScorePart("soft taints", -50.0),
        ScorePart("preferred node", 20.0),
        ScorePart("storage pools", 10.0),
    )
    assert list(totals_of([node], request, scorers)) == pytest.approx([sum(part.points for part in parts)])


def test_parts_without_points_are_left_out() -> None:
    request = replace(REQUEST, policy=PlacementPolicy(preferred_nodes=["n9"]))

    parts = parts_of(a_candidate(), request, scorers_for(Strategy.SPREAD, request))

    assert [part.name for part in parts] == ["spread"]
