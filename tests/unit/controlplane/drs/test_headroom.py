"""Room for the VMs of nodes that fail: what counts, and what a plan may not take away."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.domain.node import Capacity
from controlplane.drs.board import board_of
from controlplane.drs.headroom import LOST, failures_survived, survives
from controlplane.drs.planner import plan
from controlplane.drs.snapshot import BalanceConfig, ClusterLoad, NodeLoad, VmLoad

GIB = 2**30
CONFIG = BalanceConfig(min_difference_points=0.0, hysteresis_points=0.0)


def node(name: str, gib: int = 64, excluded: str = "", *, is_down: bool = False) -> NodeLoad:
    return NodeLoad(
        name, name, Capacity(64, gib * GIB), Capacity(0, 0), 32, gib * GIB, 0.0, 0.0, excluded, None, is_down
    )


def vm(name: str, on: str, gib: int, vcpus: int = 1) -> VmLoad:
    return VmLoad(name, name, on, Capacity(vcpus, gib * GIB), moved_bytes=gib * GIB)


def cluster(nodes: list[NodeLoad], vms: list[VmLoad]) -> ClusterLoad:
    claimed = [
        replace(
            each,
            claimed=Capacity(
                sum(v.claim.vcpus for v in vms if v.node_id == each.id),
                sum(v.claim.memory_bytes for v in vms if v.node_id == each.id),
            ),
        )
        for each in nodes
    ]
    return ClusterLoad(tuple(claimed), tuple(vms), is_measured=False)


def survived(state: ClusterLoad, most: int = 2) -> int:
    return failures_survived(board_of(state, CONFIG, 0.0), most)


def test_vms_of_a_silent_node_need_room_beside_those_of_one_that_fails() -> None:
    vms = [vm("a", "n0", 30), vm("b", "n1", 30), vm("c", "n2", 30)]
    nodes = [node("n0"), node("n1"), node("n2")]
    assert survived(cluster(nodes, vms)) == 1
    silent = [*nodes[:2], node("n2", excluded="NOT_READY", is_down=True)]
    assert survived(cluster(silent, vms)) == 0
    assert survived(cluster(silent, [*vms, vm("d", "n2", 30)])) == 0
    assert survived(cluster(silent, [*vms, vm("d", "n2", 30), vm("e", "n2", 30)])) == LOST


def test_cordoned_node_may_fail_too_and_takes_nothing() -> None:
    nodes = [node("n0"), node("n1"), node("n2", excluded="cordoned")]
    few = [vm("a", "n0", 20), vm("b", "n1", 20)]
    assert survived(cluster(nodes, few), 1) == 1
    assert survived(cluster(nodes, [*few, vm("c", "n2", 44)]), 1) == 1
    assert survived(cluster(nodes, [*few, vm("c", "n2", 45)]), 1) == 0


def test_nothing_is_asked_for_where_the_room_is_lost_already() -> None:
    lost = cluster([node("n0", 8), node("n1", 8), node("x", 64, "NOT_READY", is_down=True)], [vm("a", "x", 32)])

    assert survived(lost) == LOST
    assert survives(board_of(lost, CONFIG, 0.0), LOST)


def test_plan_leaves_the_room_that_a_silent_node_may_need() -> None:
    # Evening out would put 8 GiB on n1, where the largest VM of the silent node then has no room any more.
    vms = [*(vm(f"v{number}", "n0", 8, 8) for number in range(6)), vm("big", "lost", 56)]
    nodes = [node("n0", 64), node("n1", 60), node("lost", 64, "NOT_READY", is_down=True)]
    state = cluster(nodes, vms)

    made = plan(state, CONFIG, 0.0)

    assert made.moves == ()
    assert "take away the room for VMs of a failed node" in made.message
    back = cluster([*nodes[:2], replace(nodes[2], is_down=False)], vms)
    assert plan(back, replace(CONFIG, headroom_failures=0), 0.0).moves


def packs(free: list[list[int]], claims: list[tuple[int, int]]) -> bool:
    """Place largest first on the roomiest node, without any shortcut."""
    for memory, vcpus in sorted(claims, reverse=True):
        fitting = [each for each in free if each[0] >= memory and each[1] >= vcpus]
        if not fitting:
            return False
        roomiest = max(fitting)
        roomiest[0] -= memory
        roomiest[1] -= vcpus
    return True


@pytest.mark.parametrize("node_count", [5, 70])
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 2))
def test_shortcuts_say_the_same_as_trying_every_failure(node_count: int, seed: int, failed_count: int) -> None:
    if node_count * failed_count > 70:
        return  # not all sets are tried then
    dice = random.Random(seed)
    kinds = [("", False), ("", False), ("", False), ("cordoned", False), ("NOT_READY", True)]
    nodes = [node("n0"), node("n1")]
    for number in range(2, node_count):
        excluded, is_down = dice.choice(kinds)
        nodes.append(node(f"n{number}", dice.choice([32, 64]), excluded, is_down=is_down))
    vms = [
        vm(f"v{number:03}", dice.choice(nodes).id, dice.choice([4, 8, 16]), dice.choice([1, 4]))
        for number in range(node_count * dice.randint(0, 6))
    ]
    state = cluster(nodes, vms)

    able = [each for each in state.nodes if not each.excluded]
    down = {each.id for each in state.nodes if each.is_down}
    holds = True
    for failed in combinations([each.id for each in state.nodes if not each.is_down], failed_count):
        gone = down | set(failed)
        claims = [(v.claim.memory_bytes, v.claim.vcpus) for v in vms if v.node_id in gone]
        free = [
            [each.capacity.memory_bytes - each.claimed.memory_bytes, each.capacity.vcpus - each.claimed.vcpus]
            for each in able
            if each.id not in gone
        ]
        holds = holds and packs(free, claims)
    assert survives(board_of(state, CONFIG, 0.0), failed_count) == holds
