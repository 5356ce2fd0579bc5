"""Rules about other VMs, one case each: what they keep away, what they draw near, and when that changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from controlplane.scheduler.decide import decide
from controlplane.scheduler.neighbours import PlacedVm
from controlplane.scheduler.outcomes import Placement, SchedulerConfig
from controlplane.scheduler.plan import plan
from controlplane.scheduler.snapshot import PlacementRequest
from controlplane.scheduler.view import ClusterView
from limiquantix.compute.v1.vm_pb2 import PlacementPolicy, SpreadRule, VmAffinityRule
from tests.unit.scheduler.placement_builders import MIB, a_candidate

DB = {"app": "db"}
EVERYWHERE = ["n1", "n2", "n3", "n4"]
APART, TOGETHER = VmAffinityRule.APART, VmAffinityRule.TOGETHER
NODES = [
    a_candidate("n1", labels={"rack": "1"}),
    a_candidate("n2", labels={"rack": "1"}),
    a_candidate("n3", labels={"rack": "2"}),
    a_candidate("n4"),
]


def a_request(vm_id: str = "new", labels: dict[str, str] | None = None, **policy: Any) -> PlacementRequest:
    return PlacementRequest(
        1,
        MIB,
        PlacementPolicy(**policy),
        vm_id=vm_id,
        labels=labels or {},
        project_id="p",
    )


def a_rule(
    kind: VmAffinityRule.Kind.ValueType, key: str = "", ids: tuple[str, ...] = (), weight: int = 0, **labels: str
) -> list[VmAffinityRule]:
    return [VmAffinityRule(kind=kind, topology_key=key, vm_ids=ids, weight=weight, labels=labels)]


def places(view: ClusterView, request: PlacementRequest) -> list[str]:
    """Ids of the nodes that may take it, which views and candidates agree about."""
    config = SchedulerConfig(max_ranked_count=9)
    outcome = decide(view, request, config)
    assert plan(view.candidates, [request], config, vms=view.neighbours.vms.values()).outcomes == (outcome,)
    return sorted(ranked.node_id for ranked in outcome.ranked) if isinstance(outcome, Placement) else []


def a_view(**vms: PlacementRequest) -> ClusterView:
    """Make a view with these VMs, each named after its node and a letter."""
    return ClusterView(NODES, [PlacedVm(name[:2], replace(request, vm_id=name)) for name, request in vms.items()])


@pytest.mark.parametrize(
    ("standing", "newcomer", "expected"),
    [
        # A standing VM's own rule keeps others away, in its place, in its project, if it means them.
        (a_request(vm_rules=a_rule(APART, "rack", app="db")), a_request(labels=DB), ["n3", "n4"]),
        (a_request(vm_rules=a_rule(APART, app="db")), a_request(labels=DB), ["n2", "n3", "n4"]),
        (a_request(vm_rules=a_rule(APART, app="db")), a_request(labels={"app": "web"}), EVERYWHERE),
        (
            a_request(vm_rules=a_rule(APART, app="db")),
            replace(a_request(labels=DB), project_id="q"),
            EVERYWHERE,
        ),
        (a_request(vm_rules=a_rule(APART, app="db", weight=50)), a_request(labels=DB), EVERYWHERE),
        (a_request(vm_rules=a_rule(APART, "rack", ("new",))), a_request(), ["n3", "n4"]),
        (a_request(anti_affinity_vms=["new"]), a_request(), ["n2", "n3", "n4"]),
        # The newcomer's rules.
        (a_request(labels=DB), a_request(vm_rules=a_rule(APART, "rack", app="db")), ["n3", "n4"]),
        (a_request(), a_request(vm_rules=a_rule(APART, "rack", ("n1a",))), ["n3", "n4"]),
        (a_request(), a_request(anti_affinity_vms=["n1a"]), ["n2", "n3", "n4"]),
        (a_request(), a_request(affinity_vms=["n1a"]), ["n1"]),
        (a_request(labels=DB), a_request(vm_rules=a_rule(TOGETHER, "rack", app="db")), ["n1", "n2"]),
        (a_request(labels=DB), a_request(vm_rules=a_rule(TOGETHER, app="db")), ["n1"]),
        (a_request(), a_request(vm_rules=a_rule(TOGETHER, "rack", ("n1a",))), ["n1", "n2"]),
        (a_request(), a_request(vm_rules=a_rule(TOGETHER, "rack", ("gone",))), []),
        # The first of a company may go anywhere that is a place; one that is not of it may not.
        (a_request(), a_request(labels=DB, vm_rules=a_rule(TOGETHER, "rack", app="db")), ["n1", "n2", "n3"]),
        (a_request(), a_request(vm_rules=a_rule(TOGETHER, "rack", app="db")), []),
        # Rack 1 has one, rack 2 none; node n4 is in no rack.
        (a_request(labels=DB), a_request(labels=DB, spread_rules=[SpreadRule(topology_key="rack")]), ["n3"]),
        (
            a_request(labels=DB),
            a_request(labels=DB, spread_rules=[SpreadRule(topology_key="rack", max_skew=2)]),
            ["n1", "n2", "n3"],
        ),
        (a_request(labels=DB), a_request(spread_rules=[SpreadRule(topology_key="rack")]), EVERYWHERE),
    ],
)
def test_rule_with_one_vm_on_the_first_node_allows(
    standing: PlacementRequest, newcomer: PlacementRequest, expected: list[str]
) -> None:
    assert places(a_view(n1a=standing), newcomer) == expected


def test_together_by_ids_of_vms_that_are_apart_allows_no_place() -> None:
    view = a_view(n1a=a_request(), n3a=a_request())

    assert places(view, a_request(vm_rules=a_rule(TOGETHER, "rack", ("n1a", "n3a")))) == []


def test_vm_that_is_placed_anew_does_not_count_itself() -> None:
    itself = a_request(labels=DB, vm_rules=a_rule(APART, app="db"))
    view = a_view(n1a=itself)

    assert places(view, replace(itself, vm_id="n1a")) == EVERYWHERE
    assert places(view, replace(itself, vm_id="n1b")) == ["n2", "n3", "n4"]


def test_soft_rules_draw_near_and_keep_away_by_their_weight() -> None:
    view = a_view(n1a=a_request(labels=DB))
    config = SchedulerConfig(max_ranked_count=9)
    for rule, expected in (
        (a_rule(TOGETHER, "rack", app="db", weight=60), {"n1": 60.0, "n2": 60.0}),
        (a_rule(APART, app="db", weight=7), {"n1": -7.0}),
    ):
        outcome = decide(view, a_request(vm_rules=rule), config)
        assert isinstance(outcome, Placement)
        points = {ranked.node_id: part.points for ranked in outcome.ranked for part in ranked.parts[1:]}
        assert points == expected
        assert all(ranked.score == sum(part.points for part in ranked.parts) for ranked in outcome.ranked)


def test_soft_spread_takes_its_weight_for_every_vm_too_many() -> None:
    view = a_view(n1a=a_request(labels=DB), n1b=a_request(labels=DB), n1c=a_request(labels=DB))
    rule = SpreadRule(topology_key="rack", weight=3)
    outcome = decide(view, a_request(labels=DB, spread_rules=[rule]), SchedulerConfig(max_ranked_count=9))

    assert isinstance(outcome, Placement)
    points = {ranked.node_id: part.points for ranked in outcome.ranked for part in ranked.parts[1:]}
    assert points == {"n1": -9.0, "n2": -9.0}


def test_rules_follow_the_labels_that_nodes_have_now() -> None:
    view = a_view(n1a=a_request(labels=DB))
    request = a_request(vm_rules=a_rule(APART, "rack", app="db"))
    assert places(view, request) == ["n3", "n4"]

    view.upsert_node(a_candidate("n2", labels={"rack": "2"}))
    assert places(view, request) == ["n2", "n3", "n4"]
    view.unplace("n1a")
    assert places(view, request) == EVERYWHERE


def test_node_that_was_removed_is_a_place_until_it_is_forgotten() -> None:
    view = a_view(n1a=a_request(labels=DB))
    evenly = a_request(labels=DB, spread_rules=[SpreadRule(topology_key="rack")])
    away = a_request(vm_rules=a_rule(APART, "rack", app="db"))

    view.remove_node("n3")
    assert decide(view, evenly, SchedulerConfig()).request.sight is not None
    assert not isinstance(decide(view, evenly, SchedulerConfig()), Placement)
    view.forget_node("n3")
    assert places(view, evenly) == ["n1", "n2"]

    view.remove_node("n1")
    assert not [ranked for ranked in ids(view, away) if ranked == "n2"]
    view.forget_node("n1")
    assert "n2" in ids(view, away)


def ids(view: ClusterView, request: PlacementRequest) -> list[str]:
    outcome = decide(view, request, SchedulerConfig())
    return [ranked.node_id for ranked in outcome.ranked] if isinstance(outcome, Placement) else []
