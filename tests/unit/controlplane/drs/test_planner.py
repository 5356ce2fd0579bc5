"""The balancing planner: what it lowers, what it never breaks, and that it comes to an end."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from controlplane.domain.node import Capacity
from controlplane.drs.board import board_of
from controlplane.drs.headroom import failures_survived
from controlplane.drs.planner import loads_of, plan
from controlplane.drs.snapshot import BalanceConfig, BalancePlan, ClusterLoad, NodeLoad, Priority, VmLoad

GIB = 2**30
NOW_S = 1_000_000.0
CONFIG = BalanceConfig(max_moves=500)
FREE = BalanceConfig(max_moves=500, min_difference_points=0.0, hysteresis_points=0.0, min_gain_points=0.1)


def vm(name: str, node: str, vcpus: int = 1, gib: int = 1, use: float = 0.5, **fields: Any) -> VmLoad:
    claim = Capacity(vcpus, gib * GIB)
    made = VmLoad(name, name, node, claim, vcpus * use, gib * GIB * use, moved_bytes=gib * GIB)
    return replace(made, **fields)


def cluster(
    vms: list[VmLoad], nodes: int | list[str], *, threads: int = 16, gib: int = 64, **fields: Any
) -> ClusterLoad:
    names = [f"n{index}" for index in range(nodes)] if isinstance(nodes, int) else nodes
    records = []
    for name in names:
        mine = [each for each in vms if each.node_id == name]
        records.append(
            NodeLoad(
                name,
                f"host-{name}",
                Capacity(threads * 2, gib * GIB),
                Capacity(sum(v.claim.vcpus for v in mine), sum(v.claim.memory_bytes for v in mine)),
                threads,
                gib * GIB,
                sum(v.used_threads for v in mine),
                sum(v.used_memory_bytes for v in mine),
            )
        )
    return replace(ClusterLoad(tuple(records), tuple(vms)), **fields)


def applied(before: ClusterLoad, made: BalancePlan, count: int | None = None) -> ClusterLoad:
    """Carry out the first `count` moves of a plan."""
    nodes = {node.id: node for node in before.nodes}
    vms = {each.id: each for each in before.vms}
    for move in made.moves[:count]:
        current = vms[move.vm.id]
        source, target = nodes[current.node_id], nodes[move.target.node_id]
        assert current.node_id == move.source.node_id
        nodes[source.id] = _changed(source, current, -1)
        nodes[target.id] = _changed(target, current, +1)
        vms[current.id] = replace(current, node_id=target.id)
    return replace(before, nodes=tuple(nodes.values()), vms=tuple(vms.values()))


def _changed(node: NodeLoad, moved: VmLoad, sign: int) -> NodeLoad:
    claimed = Capacity(
        node.claimed.vcpus + sign * moved.claim.vcpus, node.claimed.memory_bytes + sign * moved.claim.memory_bytes
    )
    return replace(
        node,
        claimed=claimed,
        used_threads=node.used_threads + sign * moved.used_threads,
        used_memory_bytes=node.used_memory_bytes + sign * moved.used_memory_bytes,
    )


class Apart:
    """Rules under which no two VMs of a group share a node."""

    def __init__(self, vms: tuple[VmLoad, ...], groups: dict[str, int]) -> None:
        self.place = {each.id: each.node_id for each in vms}
        self.groups = groups

    def allows(self, vm_id: str, target_node_id: str) -> bool:
        group = self.groups.get(vm_id)
        others = [each for each, number in self.groups.items() if number == group and each != vm_id]
        return group is None or all(self.place[each] != target_node_id for each in others)

    def moved(self, vm_id: str, target_node_id: str) -> None:
        self.place[vm_id] = target_node_id

    @property
    def broken(self) -> int:
        pairs = [(self.place[vm_id], group) for vm_id, group in self.groups.items()]
        return len(pairs) - len(set(pairs))


@st.composite
def clusters(draw: st.DrawFn) -> ClusterLoad:
    node_count = draw(st.integers(2, 7))
    seed = draw(st.integers(0, 2**32))
    vm_count = draw(st.integers(0, 40))
    dice = random.Random(seed)
    gib = dice.choice([24, 64, 256])
    free = {f"n{index}": [32, gib] for index in range(node_count)}
    vms = []
    for number in range(vm_count):
        vcpus, size = dice.choice([1, 2, 4, 8]), dice.choice([1, 2, 4, 8, 16])
        favourite = f"n{min(int(dice.expovariate(0.9)), node_count - 1)}"
        for name in (favourite, *free):
            if free[name][0] >= vcpus and free[name][1] >= size:
                free[name][0] -= vcpus
                free[name][1] -= size
                vms.append(vm(f"v{number:02}", name, vcpus, size, dice.random() * 0.6))
                break
    return cluster(vms, node_count, gib=gib)


def test_plan_moves_from_the_busy_node_to_the_idle_one() -> None:
    made = plan(cluster([vm(f"v{n}", "n0", 2, 8, 0.6) for n in range(8)], 2), CONFIG, NOW_S)

    assert {(move.source.node_id, move.target.node_id) for move in made.moves} == {("n0", "n1")}
    assert len(made.moves) == 4
    assert made.imbalance_after == pytest.approx(0.0, abs=1e-6)
    assert sum(move.gain_percent for move in made.moves) == pytest.approx(100.0)
    assert made.moves[0].source_after.vm_count == 7


def test_plan_prefers_the_vm_that_is_cheap_to_move() -> None:
    vms = [vm(f"v{n}", "n0", 2, 8, 0.6, expected_s=60.0) for n in range(4)]
    vms[2] = replace(vms[2], expected_s=5.0)

    assert plan(cluster(vms, 2), CONFIG, NOW_S).moves[0].vm.id == "v2"


def test_plan_of_a_balanced_cluster_is_empty_and_says_so() -> None:
    made = plan(cluster([vm(f"v{n}", f"n{n % 2}") for n in range(8)], 2), CONFIG, NOW_S)

    assert made.moves == ()
    assert made.message.startswith("balanced: nodes are 0.0 points from the cluster's load")


def test_plan_exchanges_vms_where_no_move_helps() -> None:
    # Both nodes are full of claims; only use differs.
    busy = [vm(f"b{n}", "n0", 8, 16, 0.45) for n in range(4)]
    idle = [vm(f"i{n}", "n1", 8, 12, 0.05) for n in range(4)]
    full = cluster([*busy, *idle], 2, gib=76)

    made = plan(full, replace(CONFIG, headroom_failures=0), NOW_S)

    assert made.moves == ()
    roomier = replace(full, nodes=tuple(replace(n, capacity=Capacity(40, 92 * GIB)) for n in full.nodes))
    made = plan(roomier, replace(CONFIG, headroom_failures=0, cpu_threshold_percent=100.0), NOW_S)
    assert made.moves
    assert made.imbalance_after < made.imbalance_before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"held": "has a device of its host"}, "held back"),
        ({"moved_at_s": NOW_S - 10}, "held back"),
    ],
)
def test_plan_leaves_vms_that_are_held(change: dict[str, Any], words: str) -> None:
    made = plan(cluster([vm(f"v{n}", "n0", 2, 8, **change) for n in range(8)], 2), CONFIG, NOW_S)

    assert made.moves == ()
    assert words in made.message


def test_plan_moves_a_vm_again_after_the_hold_time() -> None:
    vms = [vm(f"v{n}", "n0", 2, 8, moved_at_s=NOW_S - CONFIG.hold_s) for n in range(8)]

    assert plan(cluster(vms, 2), CONFIG, NOW_S).moves


def test_plan_leaves_nodes_and_clusters_that_rest() -> None:
    busy = cluster([vm(f"v{n}", "n0", 2, 8) for n in range(8)], 2)
    resting = replace(busy, nodes=(busy.nodes[0], replace(busy.nodes[1], moved_at_s=NOW_S - 1)))

    assert "held back" in plan(resting, CONFIG, NOW_S).message
    rests = plan(replace(busy, moved_at_s=NOW_S - 1), replace(CONFIG, cluster_cool_down_s=60.0), NOW_S)
    assert rests.message == "the cluster rests for 59 s more after the last move"


def test_plan_lifts_no_node_above_its_threshold() -> None:
    uses = (0.97, 0.78)
    vms = [vm(f"v{n}", f"n{n % 2}", 1, 1, uses[n % 2], held="stays" if n % 2 else "") for n in range(32)]

    made = plan(cluster(vms, 2), replace(CONFIG, hysteresis_points=0.0), NOW_S)

    assert made.moves == ()
    assert "above its threshold" in made.message


def test_plan_says_that_a_cluster_of_one_node_cannot_be_balanced() -> None:
    alone = cluster([vm("v", "n0")], 2)
    nodes = (alone.nodes[0], replace(alone.nodes[1], excluded="NOT_READY"))

    made = plan(replace(alone, nodes=nodes), CONFIG, NOW_S)

    assert made.message == "nothing to balance: 1 node can take part (others: NOT_READY)"
    assert plan(ClusterLoad((), ()), CONFIG, NOW_S).message == "nothing to balance: 0 nodes can take part"
    assert plan(cluster([], 3), CONFIG, NOW_S).message == "nothing to balance: there are no VMs on these nodes"


def test_plan_stops_at_the_limit_of_moves_and_says_so() -> None:
    made = plan(cluster([vm(f"v{n}", "n0", 2, 8, 0.6) for n in range(8)], 2), replace(CONFIG, max_moves=1), NOW_S)

    assert len(made.moves) == 1
    assert made.message == "a run proposes no more than 1 move; the next one goes on from there"


def test_plan_without_measures_goes_by_claims() -> None:
    vms = [vm(f"v{n}", "n0", 4, 8, 0.0) for n in range(8)]

    made = plan(cluster(vms, 2, is_measured=False), CONFIG, NOW_S)

    assert len(made.moves) == 4
    assert made.message.endswith("by claims, since nothing is measured")


@pytest.mark.parametrize(
    ("percent", "priority"),
    [
        (96.0, Priority.CRITICAL),
        (95.0, Priority.CRITICAL),
        (94.9, Priority.HIGH),
        (90.0, Priority.HIGH),
        (85.0, Priority.MEDIUM),
        (84.9, Priority.LOW),
    ],
)
def test_priority_follows_the_load_of_the_source(percent: float, priority: Priority) -> None:
    assert Priority.of_load(percent) is priority


@pytest.mark.parametrize("change", [{"min_gain_points": 0.0}, {"max_moves": -1}, {"hysteresis_points": -1.0}])
def test_config_refuses_numbers_without_a_sense(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="negative"):
        BalanceConfig(**change)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(clusters(), st.sampled_from([CONFIG, FREE]))
def test_fault_08_plan_lowers_the_imbalance_by_the_least_gain_a_move(
    before: ClusterLoad, config: BalanceConfig
) -> None:
    made = plan(before, config, NOW_S)
    after = applied(before, made)

    node_count = len(before.nodes)
    least = config.min_gain_points**2 * len(made.moves) / node_count
    assert made.imbalance_before == pytest.approx(loads_of(before)[1])
    assert loads_of(after)[1] == pytest.approx(made.imbalance_after, abs=1e-6)
    assert made.imbalance_before**2 - made.imbalance_after**2 >= least - 1e-6


@settings(max_examples=60, deadline=None)
@given(clusters(), st.sampled_from([CONFIG, FREE]))
def test_a_second_run_proposes_nothing(before: ClusterLoad, config: BalanceConfig) -> None:
    made = plan(before, config, NOW_S)
    assume("goes on from there" not in made.message)
    settled = applied(before, made)

    again = plan(settled, config, NOW_S)

    assert again.moves == ()
    assert again.message


def noisy(state: ClusterLoad, dice: random.Random) -> ClusterLoad:
    """Measure every node a little less than a quarter of the hysteresis off."""
    off = CONFIG.hysteresis_points / 4 * 0.99 / 100.0
    nodes = tuple(
        replace(
            node,
            used_threads=node.used_threads + dice.uniform(-off, off) * node.thread_count,
            used_memory_bytes=node.used_memory_bytes + dice.uniform(-off, off) * node.memory_bytes,
        )
        for node in state.nodes
    )
    return replace(state, nodes=nodes)


@settings(max_examples=60, deadline=None)
@given(clusters(), st.integers(0, 2**32))
def test_noise_below_the_hysteresis_moves_nothing_once_a_plan_was_applied(before: ClusterLoad, seed: int) -> None:
    dice = random.Random(seed)
    first = plan(noisy(before, dice), CONFIG, NOW_S)
    assume(first.moves)
    assume("goes on from there" not in first.message)
    state = applied(before, first)

    for _ in range(4):
        assert plan(noisy(state, dice), CONFIG, NOW_S).moves == ()


@settings(max_examples=60, deadline=None)
@given(clusters(), st.sampled_from([CONFIG, FREE]))
def test_every_step_on_the_way_has_room(before: ClusterLoad, config: BalanceConfig) -> None:
    made = plan(before, config, NOW_S)

    for count in range(len(made.moves) + 1):
        for node in applied(before, made, count).nodes:
            assert node.claimed.vcpus <= node.capacity.vcpus
            assert node.claimed.memory_bytes <= node.capacity.memory_bytes


@settings(max_examples=40, deadline=None)
@given(clusters(), st.integers(1, 2))
def test_headroom_is_never_taken_away(before: ClusterLoad, failures: int) -> None:
    config = replace(FREE, headroom_failures=failures)

    def survived(state: ClusterLoad) -> int:
        return failures_survived(board_of(state, config, NOW_S), failures)

    held = survived(before)
    made = plan(before, config, NOW_S)

    assert all(survived(applied(before, made, count)) >= held for count in range(len(made.moves) + 1))


@settings(max_examples=40, deadline=None)
@given(clusters(), st.integers(2, 6))
def test_rules_hold_at_every_step(before: ClusterLoad, group_count: int) -> None:
    groups = {each.id: number % group_count for number, each in enumerate(before.vms)}
    rules = Apart(before.vms, groups)
    start, broken = dict(rules.place), rules.broken

    made = plan(before, FREE, NOW_S, rules)

    assert rules.place == start, "the rules must be left as they were"
    for move in made.moves:
        assert rules.allows(move.vm.id, move.target.node_id)
        rules.moved(move.vm.id, move.target.node_id)
    assert rules.broken <= broken


@settings(max_examples=25, deadline=None)
@given(clusters(), st.randoms(use_true_random=False))
def test_equal_clusters_give_equal_plans_in_whatever_order(before: ClusterLoad, dice: random.Random) -> None:
    nodes, vms = list(before.nodes), list(before.vms)
    dice.shuffle(nodes)
    dice.shuffle(vms)

    assert plan(before, FREE, NOW_S) == plan(replace(before, nodes=tuple(nodes), vms=tuple(vms)), FREE, NOW_S)
