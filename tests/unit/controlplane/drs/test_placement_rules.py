"""Rules of placement under balancing: what a VM wants, what others want of it, and how that follows the plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from controlplane.domain.node import Phase
from controlplane.domain.placement_rules import RuledVm
from controlplane.drs.placement_rules import MovableVm, PlacementRules
from controlplane.scheduler.snapshot import Candidate, candidate_of, request_for
from limiquantix.compute.v1.node_pb2 import Taint
from limiquantix.compute.v1.vm_pb2 import PlacementPolicy, SpreadRule, VmAffinityRule, VmSpec
from tests.support.builders import make_node

RACKS = {"a": "1", "b": "1", "c": "2"}


def node(name: str, **fields: Any) -> Candidate:
    rack = {"rack": RACKS[name]} if name in RACKS else {}
    return replace(candidate_of(make_node(id=name, hostname=f"host-{name}", labels=rack)), **fields)


def movable(name: str, where: str, labels: dict[str, str] | None = None, **policy: Any) -> MovableVm:
    spec = VmSpec(placement=PlacementPolicy(**policy))
    spec.memory.size_mib = 64
    ruled = RuledVm(name, name, "p", labels or {}, spec.placement)
    return MovableVm(ruled, where, request_for(spec, vm_id=name, node_of_vm={}))


def rules_of(*vms: MovableVm, nodes: tuple[Candidate, ...] = (node("a"), node("b"), node("c"))) -> PlacementRules:
    return PlacementRules({each.id: each for each in nodes}, {each.vm.id: each for each in vms})


def allowed(rules: PlacementRules, vm_id: str) -> set[str]:
    return {node_id for node_id in rules.candidates if rules.allows(vm_id, node_id)}


def rule(kind: VmAffinityRule.Kind.ValueType, key: str = "", weight: int = 0, **labels: str) -> VmAffinityRule:
    return VmAffinityRule(kind=kind, labels=labels, topology_key=key, weight=weight)


@pytest.mark.parametrize(
    ("policy", "nodes"),
    [
        ({}, {"a", "b", "c"}),
        ({"required_nodes": ["a", "host-c"]}, {"a", "c"}),
        ({"excluded_nodes": ["b"]}, {"a", "c"}),
        ({"required_labels": {"rack": "2"}}, {"c"}),
        ({"preferred_nodes": ["a", "b"]}, {"a", "b"}),
        ({"preferred_nodes": ["b"]}, {"a", "b", "c"}),
    ],
)
def test_vm_goes_only_where_the_scheduler_would_put_it(policy: dict[str, Any], nodes: set[str]) -> None:
    assert allowed(rules_of(movable("v", "a", **policy)), "v") == nodes


@pytest.mark.parametrize(
    "fields",
    [
        {"phase": Phase.MAINTENANCE},
        {"schedulable": False},
        {"is_compute": False},
        {"taints": (Taint(key="k", value="v", effect=Taint.NO_SCHEDULE),)},
        {"taints": (Taint(key="k", value="v", effect=Taint.PREFER_NO_SCHEDULE),)},
    ],
)
def test_node_that_takes_nothing_takes_nothing_from_balancing(fields: dict[str, Any]) -> None:
    rules = rules_of(movable("v", "a"), nodes=(node("a"), node("b", **fields)))

    assert not rules.allows("v", "b")


def test_node_out_of_reach_is_refused() -> None:
    vms = {"v": movable("v", "a")}
    rules = PlacementRules({"a": node("a"), "b": node("b")}, vms, lambda _vm, _node: False)

    assert not rules.allows("v", "b")


def test_vms_that_must_be_apart_stay_so_whichever_of_them_says_it() -> None:
    rules = rules_of(movable("v", "a", anti_affinity_vms=["w"]), movable("w", "b"))

    assert not rules.allows("v", "b")
    assert not rules.allows("w", "a")
    assert rules.allows("w", "c")
    rules.moved("w", "c")
    assert rules.allows("v", "b")
    assert not rules.allows("v", "c")


def test_vms_that_must_be_together_are_not_torn_apart() -> None:
    rules = rules_of(movable("v", "a", affinity_vms=["w"]), movable("w", "a"), movable("x", "a"))

    assert allowed(rules, "v") == {"a"}
    assert allowed(rules, "w") == {"a"}
    assert allowed(rules, "x") == {"a", "b", "c"}


def test_rules_by_label_and_rack_hold_from_both_sides() -> None:
    apart = movable("v", "a", vm_rules=[rule(VmAffinityRule.APART, "rack", app="db")])
    rules = rules_of(apart, movable("w", "c", {"app": "db"}), movable("x", "c", {"app": "web"}))

    assert allowed(rules, "v") == {"a", "b"}
    assert allowed(rules, "w") == {"c"}
    assert allowed(rules, "x") == {"a", "b", "c"}


def test_vms_of_one_rack_may_move_within_it() -> None:
    near = movable("v", "a", vm_rules=[rule(VmAffinityRule.TOGETHER, "rack", app="db")])
    rules = rules_of(near, movable("w", "b", {"app": "db"}))

    assert allowed(rules, "v") == {"a", "b"}


def test_rules_that_are_only_preferred_hold_nothing() -> None:
    rules = rules_of(
        movable("v", "a", vm_rules=[rule(VmAffinityRule.APART, "", 50, app="db")]), movable("w", "b", {"app": "db"})
    )

    assert rules.allows("v", "b")


def test_spread_vms_move_to_places_with_fewer_of_them_only() -> None:
    spread = SpreadRule(topology_key="rack", labels={"app": "web"})
    web = {"app": "web"}
    rules = rules_of(
        movable("v", "a", web, spread_rules=[spread]), movable("w", "b", web), movable("x", "c", {"app": "db"})
    )

    assert allowed(rules, "v") == {"a", "b", "c"}
    rules.moved("v", "c")
    assert allowed(rules, "w") == {"a", "b"}


def test_vms_of_other_projects_are_not_meant_by_labels() -> None:
    other = movable("w", "b", {"app": "db"})
    stranger = replace(other, vm=replace(other.vm, project_id="q"))
    rules = rules_of(movable("v", "a", vm_rules=[rule(VmAffinityRule.APART, "", app="db")]), stranger)

    assert rules.allows("v", "b")
