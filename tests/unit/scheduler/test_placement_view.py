"""A view decides as the plain rules do, however it came to be as it is, and rules mean what they are said to mean."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.domain.node import Capacity, Phase
from controlplane.scheduler.decide import decide
from controlplane.scheduler.neighbours import PlacedVm
from controlplane.scheduler.outcomes import HeldBack, Placement, SchedulerConfig, Unplaced
from controlplane.scheduler.plan import Mode, plan
from controlplane.scheduler.scores import Strategy
from controlplane.scheduler.snapshot import Candidate, PlacementRequest
from controlplane.scheduler.view import ClusterView
from tests.unit.scheduler.clusters import Cluster, batches, clusters, configs, nodes, requests
from tests.unit.scheduler.placement_builders import MIB, a_candidate, a_taint
from tests.unit.scheduler.plain_rules import PlainRules


@given(clusters(), batches, configs)
@settings(max_examples=100)
def test_plan_with_a_view_is_that_of_asking_every_filter_about_every_node(
    cluster: Cluster, batch: list[PlacementRequest], config: SchedulerConfig
) -> None:
    plain = plan(cluster.nodes, batch, config, vms=cluster.vms)

    assert plan(ClusterView(cluster.nodes, cluster.vms), batch, config) == plain


@settings(max_examples=40)
@given(clusters(), batches, configs, st.randoms(use_true_random=False))
def test_plan_equal_snapshots_in_any_order_give_equal_plans(
    cluster: Cluster, batch: list[PlacementRequest], config: SchedulerConfig, random: Random
) -> None:
    shuffled = Cluster(
        sorted(cluster.nodes, key=lambda _: random.random()), sorted(cluster.vms, key=lambda _: random.random())
    )
    for mode in Mode:
        one = plan(ClusterView(cluster.nodes, cluster.vms), batch, config, mode=mode)
        assert plan(ClusterView(shuffled.nodes, shuffled.vms), batch, config, mode=mode) == one


@settings(max_examples=40)
@given(clusters(), batches, configs, st.sampled_from(Mode))
def test_plan_leaves_a_view_as_it_was(
    cluster: Cluster, batch: list[PlacementRequest], config: SchedulerConfig, mode: Mode
) -> None:
    view = ClusterView(cluster.nodes, cluster.vms)
    before = by_id(view)
    first = plan(view, batch, config, mode=mode)

    assert by_id(view) == before
    assert plan(view, batch, config, mode=mode) == first


def by_id(view: ClusterView) -> dict[str, Candidate]:
    return {candidate.id: candidate for candidate in view.candidates}


@settings(max_examples=50)
@given(clusters(), batches, configs)
def test_plan_request_alone_goes_where_it_goes_first_in_a_batch(
    cluster: Cluster, batch: list[PlacementRequest], config: SchedulerConfig
) -> None:
    view = ClusterView(cluster.nodes, cluster.vms)
    for first in batch[:1]:
        assert plan(view, [first], config).outcomes[0] == plan(view, batch, config).outcomes[0]


@settings(max_examples=50)
@given(clusters(), batches, configs)
def test_plan_all_or_nothing_places_all_or_none(
    cluster: Cluster, batch: list[PlacementRequest], config: SchedulerConfig
) -> None:
    view = ClusterView(cluster.nodes, cluster.vms)
    outcomes = plan(view, batch, config, mode=Mode.ALL_OR_NOTHING).outcomes
    placed = [outcome for outcome in outcomes if isinstance(outcome, Placement)]

    assert len(placed) in (0, len(batch))
    if not placed and batch:
        assert any(type(outcome) is Unplaced for outcome in outcomes)
    assert [outcome.request.vm_id for outcome in outcomes] == [request.vm_id for request in batch]


# -- changes


@st.composite
def changes(draw: st.DrawFn) -> list[tuple[str, object]]:
    names = ["node", "node", "remove", "place", "place", "place", "unplace", "decide"]
    found: list[tuple[str, object]] = []
    for number, name in enumerate(draw(st.lists(st.sampled_from(names), max_size=25))):
        if name == "node":
            found.append((name, draw(nodes())))
        elif name in ("place", "decide"):
            found.append((name, draw(requests(f"w{number}"))))
        else:
            found.append((name, draw(st.integers(0, 5))))
    return found


@given(clusters(min_nodes=1), changes(), batches, configs)
@settings(max_examples=60)
def test_view_after_any_changes_decides_as_one_made_anew(
    cluster: Cluster, steps: list[tuple[str, object]], batch: list[PlacementRequest], config: SchedulerConfig
) -> None:
    view = ClusterView(cluster.nodes, cluster.vms)
    for name, what in steps:
        change(view, name, what, config)
    anew = view.copy()

    assert by_id(anew) == by_id(view)
    assert plan(anew, batch, config) == plan(view, batch, config)
    assert plan(view, batch, config) == plan(view.copy(), batch, config)


def change(view: ClusterView, name: str, what: object, config: SchedulerConfig) -> None:
    ids = sorted(by_id(view))
    if isinstance(what, Candidate):
        view.upsert_node(what)
    elif isinstance(what, PlacementRequest):
        outcome = decide(view, what, config)
        if name == "place" and isinstance(outcome, Placement):
            view.place(PlacedVm(outcome.node_id, what))
    elif name == "remove" and ids and isinstance(what, int):
        (view.remove_node if what % 2 else view.forget_node)(ids[what % len(ids)])
    elif name == "unplace" and view.neighbours.vms and isinstance(what, int):
        vm_ids = sorted(view.neighbours.vms)
        view.unplace(vm_ids[what % len(vm_ids)])


@given(clusters(min_nodes=1), requests("new"), configs, st.integers(0, 5))
@settings(max_examples=100)
def test_removing_a_node_never_makes_an_unplaceable_vm_placeable(
    cluster: Cluster, request: PlacementRequest, config: SchedulerConfig, number: int
) -> None:
    view = ClusterView(cluster.nodes, cluster.vms)
    if isinstance(decide(view, request, config), Placement):
        return
    view.remove_node(cluster.nodes[number % len(cluster.nodes)].id)

    assert isinstance(decide(view, request, config), Unplaced)


def test_view_many_equal_nodes_are_ranked_by_id_across_blocks() -> None:
    ids = [f"n{number:04}" for number in range(1500)]
    shuffled = sorted(ids, key=lambda node_id: node_id[::-1])
    view = ClusterView([a_candidate(node_id) for node_id in shuffled])

    outcome = decide(view, PlacementRequest(1, MIB), SchedulerConfig(max_ranked_count=20))

    assert isinstance(outcome, Placement)
    assert [ranked.node_id for ranked in outcome.ranked] == ids[:20]


@pytest.mark.parametrize("strategy", Strategy)
def test_view_of_many_blocks_decides_as_the_plain_rules_while_it_fills_and_changes(strategy: Strategy) -> None:
    random = Random(5)
    config = SchedulerConfig(strategy, max_ranked_count=3)
    cluster = {
        f"n{number}": a_candidate(f"n{number}", vcpus=random.choice([4, 6, 8]), used_vcpus=random.randrange(4))
        for number in range(2000)
    }
    view = ClusterView(cluster.values())
    for step in range(60):
        request = PlacementRequest(random.choice([1, 2, 3]), random.choice([256, 512]) * MIB, vm_id=f"v{step}")
        outcome = decide(view, request, config)
        assert outcome == plan(list(cluster.values()), [request], config).outcomes[0]
        assert isinstance(outcome, Placement)
        view.place(PlacedVm(outcome.node_id, request))
        cluster[outcome.node_id] = cluster[outcome.node_id].after(request)
        if step % 9 == 0:
            changed = replace(random.choice(list(cluster.values())), taints=(a_taint("a=b:NO_SCHEDULE"),))
            view.upsert_node(changed)
            cluster[changed.id] = changed


@pytest.mark.parametrize("count", [1, 4, 9, 40])
@pytest.mark.parametrize("strategy", Strategy)
def test_view_scores_follow_any_number_of_changes_between_two_decisions(strategy: Strategy, count: int) -> None:
    config = SchedulerConfig(strategy, max_ranked_count=3)
    view = ClusterView(a_candidate(f"n{number:04}", used_vcpus=3, used_memory_mib=number) for number in range(2000))
    request = PlacementRequest(1, MIB)
    decide(view, request, config)

    for number in range(count):
        node_id = f"n{40 * number + 7:04}"
        view.place(PlacedVm(node_id, PlacementRequest(4, (7000 - number) * MIB, vm_id=f"full{number}")))
        empty = f"n{40 * number + 9:04}"
        view.upsert_node(a_candidate(empty, used_memory_mib=number))

    assert decide(view, request, config) == plan(view.candidates, [request], config).outcomes[0]


def test_view_same_node_or_vm_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="two nodes have the id n1"):
        ClusterView([a_candidate("n1"), a_candidate("n1")])
    view = ClusterView([a_candidate("n1")], [PlacedVm("n1", PlacementRequest(1, MIB, vm_id="a"))])
    with pytest.raises(ValueError, match="VM a is on node n1 already"):
        view.place(PlacedVm("n1", PlacementRequest(1, MIB, vm_id="a")))


def test_view_place_and_unplace_claim_and_release() -> None:
    view = ClusterView([a_candidate("n1", used_vcpus=1, used_memory_mib=1)])
    view.place(PlacedVm("n1", PlacementRequest(2, MIB, vm_id="a")))

    assert view.candidates[0].allocated == Capacity(3, 2 * MIB)
    view.unplace("a")
    assert view.candidates[0].allocated == Capacity(1, MIB)


# -- what rules mean, found out the long way


@given(clusters(), requests("new"))
@settings(max_examples=100)
def test_decide_goes_exactly_where_rules_read_one_by_one_allow(cluster: Cluster, request: PlacementRequest) -> None:
    request = replace(request, vcpus=0, memory_bytes=0, needs=replace(request.needs, devices=(), numa=(), page_count=0))
    roomy = [
        replace(node, capacity=Capacity(99, 99 * MIB), schedulable=True, phase=Phase.READY, taints=())
        for node in cluster.nodes
    ]
    outcome = decide(ClusterView(roomy, cluster.vms), request, SchedulerConfig(max_ranked_count=99))
    found = {ranked.node_id for ranked in outcome.ranked} if isinstance(outcome, Placement) else set()

    rules = PlainRules({node.id: node for node in roomy}, cluster.vms, request)
    assert found == {node.id for node in roomy if rules.allow(node)}


def test_plan_all_or_nothing_tries_the_largest_first() -> None:
    small = PlacementRequest(3, MIB, vm_id="small")
    large = PlacementRequest(8, MIB, vm_id="large")
    view = ClusterView([a_candidate("n1", vcpus=8), a_candidate("n2", vcpus=4)])
    config = SchedulerConfig(Strategy.SPREAD)

    in_turn = plan(view, [small, large], config)
    together = plan(view, [small, large], config, mode=Mode.ALL_OR_NOTHING)

    assert len(in_turn.placements) == 1
    assert [placement.node_id for placement in together.placements] == ["n2", "n1"]


def test_plan_all_or_nothing_says_whose_fault_it_is() -> None:
    view = ClusterView([a_candidate("n1")])
    batch = [PlacementRequest(1, MIB, vm_id="a"), PlacementRequest(9, MIB, vm_id="b")]

    first, second = plan(view, batch, mode=Mode.ALL_OR_NOTHING).outcomes

    assert isinstance(first, HeldBack)
    assert first.summary.startswith("it fits, but not all of its batch do: b: no node fits: 1 node: 1 lacks CPU")
    assert first.reasons == ()
    assert isinstance(second, Unplaced)
    assert not isinstance(second, HeldBack)
