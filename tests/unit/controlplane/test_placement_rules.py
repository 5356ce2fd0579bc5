"""Rules that contradict each other are refused by field path; rules that have no effect are told."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from google.protobuf import text_format

from controlplane.domain.placement_rules import (
    ClusterFacts,
    RuledVm,
    contradictions_of,
    findings_of,
    is_bound_to_others,
    selector_of,
    selects,
    tied_vm_ids,
    violations_of,
)
from limiquantix.compute.v1.vm_pb2 import PlacementPolicy, VmAffinityRule, VmSpec
from limiquantix.compute.v1.vm_service_pb2 import CreateVMRequest
from limiquantix.rpc import validation
from tests.support.builders import make_id

A, B, C, D = (str(uuid.UUID(int=number)) for number in range(1, 5))
PROJECT = make_id()


def policy(text: str) -> PlacementPolicy:
    return text_format.Parse(text.replace("$A", f'"{A}"').replace("$B", f'"{B}"'), PlacementPolicy())


def ruled(vm_id: str, labels: dict[str, str] | None = None, project_id: str = PROJECT, **fields: Any) -> RuledVm:
    return RuledVm(vm_id, f"vm-{vm_id[-1]}", project_id, labels or {}, PlacementPolicy(**fields))


def apart(**labels: str) -> VmAffinityRule:
    return VmAffinityRule(kind=VmAffinityRule.APART, labels=labels)


def by_id(*vms: RuledVm) -> dict[str, RuledVm]:
    return {vm.id: vm for vm in vms}


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ('required_nodes: ["a", "b"] excluded_nodes: ["b"]', ["excluded_nodes[0]"]),
        ("affinity_vms: [$A, $B] anti_affinity_vms: [$B]", ["anti_affinity_vms[0]"]),
        ("affinity_vms: [$A] vm_rules { kind: APART vm_ids: [$A] }", ["vm_rules[0].vm_ids[0]"]),
        ("anti_affinity_vms: [$A] vm_rules { kind: TOGETHER vm_ids: [$B, $A] }", ["vm_rules[0].vm_ids[1]"]),
        (
            'vm_rules { kind: TOGETHER topology_key: "rack" labels { key: "a" value: "1" } }'
            'vm_rules { kind: APART topology_key: "rack" labels { key: "a" value: "1" } }',
            ["vm_rules[1].labels"],
        ),
        ("vm_rules { kind: APART }", ["vm_rules[0]"]),
        ('node_rules { key: "k" operator: IN }', ["node_rules[0].values"]),
        ('node_rules { key: "k" operator: EXISTS values: "a" }', ["node_rules[0].values"]),
        (
            'node_rules { key: "k" operator: EXISTS } node_rules { key: "k" operator: DOES_NOT_EXIST }',
            ["node_rules[1]"],
        ),
        (
            'node_rules { key: "k" operator: IN values: "a" } node_rules { key: "k" operator: IN values: "b" }',
            ["node_rules[1]"],
        ),
        (
            'node_rules { key: "k" operator: NOT_IN values: "a" } required_labels { key: "k" value: "a" }',
            ["node_rules[0]"],
        ),
        (
            'required_labels { key: "k" value: "a" } node_rules { key: "k" operator: DOES_NOT_EXIST }',
            ["node_rules[0]"],
        ),
        ('tolerations { value: "x" }', ["tolerations[0].value"]),
        ('tolerations { key: "k" effect: NO_SCHEDULE stays_sec: 9 }', ["tolerations[0].stays_sec"]),
    ],
)
def test_contradicting_policy_is_refused_by_field(text: str, fields: list[str]) -> None:
    assert [violation.field for violation in violations_of(policy(text), "p")] == [f"p.{field}" for field in fields]


@pytest.mark.parametrize(
    "text",
    [
        "",
        'required_nodes: ["a"] excluded_nodes: ["b"] preferred_nodes: ["b"]',
        "affinity_vms: [$A] anti_affinity_vms: [$B]",
        # A preference may say the opposite of what must hold; it is told as a finding.
        "affinity_vms: [$A] vm_rules { kind: APART vm_ids: [$A] weight: 5 }",
        'affinity_vms: [$A] vm_rules { kind: APART vm_ids: [$A] topology_key: "rack" }',
        'node_rules { key: "k" operator: IN values: "a" } node_rules { key: "k" operator: IN values: "b" weight: 3 }',
        'node_rules { key: "k" operator: NOT_IN values: "a" } node_rules { key: "k" operator: DOES_NOT_EXIST }',
        'tolerations { key: "k" value: "" effect: NO_EXECUTE stays_sec: 9 } tolerations { }',
    ],
)
def test_policy_that_can_be_kept_is_let_through(text: str) -> None:
    assert violations_of(policy(text), "p", vm_id=C) == []


@pytest.mark.parametrize(
    "text", ["affinity_vms: [$A]", "anti_affinity_vms: [$A]", "vm_rules { kind: APART vm_ids: [$A] }"]
)
def test_vm_that_names_itself_is_refused(text: str) -> None:
    (violation,) = violations_of(policy(text), "p", vm_id=A)
    assert "itself" in violation.description
    assert violation.field.endswith("[0]")


def test_label_of_300_characters_is_refused_by_the_contract() -> None:
    spec = VmSpec(placement=PlacementPolicy(required_labels={"k": "v" * 300}))
    fields = {v.field for v in validation.violations_of(CreateVMRequest(name="a", spec=spec, labels={"l" * 300: ""}))}
    assert any(field.startswith("labels") for field in fields)
    assert any(field.startswith("spec.placement.required_labels") for field in fields)


# -- other VMs' rules


def test_vm_together_with_one_that_must_be_apart_is_refused() -> None:
    subject = ruled(A, affinity_vms=[B])
    (violation,) = contradictions_of(subject, by_id(ruled(B, anti_affinity_vms=[A])), "p")
    assert violation.field == "p.affinity_vms[0]"
    assert violation.description.startswith("VM vm-2 must not be beside this VM")


def test_cycle_over_several_vms_that_contradicts_is_refused() -> None:
    others = by_id(
        ruled(B, affinity_vms=[C]), ruled(C, affinity_vms=[D]), ruled(D, {"app": "x"}, anti_affinity_vms=[A])
    )
    assert contradictions_of(ruled(A, affinity_vms=[B]), others, "p")
    assert contradictions_of(ruled(A, affinity_vms=[B], vm_rules=[apart(app="x")]), by_id(*others.values()), "p")


def test_cycle_that_only_ties_together_is_fine() -> None:
    others = by_id(ruled(B, affinity_vms=[C]), ruled(C, affinity_vms=[A]))
    assert contradictions_of(ruled(A, affinity_vms=[B]), others, "p") == []


def test_two_companions_that_must_be_apart_are_refused() -> None:
    others = by_id(ruled(B, anti_affinity_vms=[C]), ruled(C))
    (violation,) = contradictions_of(ruled(A, affinity_vms=[B, C]), others, "p")
    assert "VM vm-2 must not be beside VM vm-3" in violation.description


def test_apart_by_label_counts_within_the_project_only_and_not_for_the_vm_itself() -> None:
    rule = [apart(app="x")]
    subject = ruled(A, {"app": "x"}, affinity_vms=[B], vm_rules=rule)
    assert contradictions_of(subject, by_id(ruled(B)), "p") == []
    assert contradictions_of(subject, by_id(ruled(B, {"app": "x"})), "p")
    assert contradictions_of(subject, by_id(ruled(B, {"app": "x"}, project_id=make_id())), "p") == []


def test_companions_to_look_up_are_those_tied_to_one_host() -> None:
    rules = [
        VmAffinityRule(kind=VmAffinityRule.TOGETHER, vm_ids=[B]),
        VmAffinityRule(kind=VmAffinityRule.TOGETHER, vm_ids=[C], weight=1),
        VmAffinityRule(kind=VmAffinityRule.TOGETHER, vm_ids=[D], topology_key="rack"),
    ]
    assert tied_vm_ids(PlacementPolicy(affinity_vms=[A], vm_rules=rules)) == {A, B}


def test_company_with_a_vm_that_is_gone_is_no_contradiction() -> None:
    assert contradictions_of(ruled(A, affinity_vms=[B]), {}, "p") == []


# -- what has no effect


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ('preferred_nodes: ["n1"] excluded_nodes: ["n1"]', "preferred_nodes: n1 is excluded"),
        ('preferred_nodes: ["n1"] required_nodes: ["n2"]', "n1 is not among the required nodes"),
        ('excluded_nodes: ["n9"]', "excluded_nodes: there is no node n9"),
        ('required_labels { key: "zone" value: "z" }', "required_labels: no node has the label zone=z"),
        ('node_rules { key: "disk" operator: EXISTS }', "node_rules[0]: no node has the label disk"),
        ('node_rules { key: "zone" operator: IN values: ["a", "z"] }', "node_rules[0]: no node has the label zone=z"),
        ('spread_rules { topology_key: "row" labels { key: "app" value: "web" } }', "no node has the label row"),
        ("affinity_vms: [$B]", f"affinity_vms: there is no VM {B}"),
        ('vm_rules { kind: APART labels { key: "app" value: "db" } }', "no other VM of the project has app=db"),
        ("affinity_vms: [$A] vm_rules { kind: APART vm_ids: [$A] weight: 5 }", "a rule that must hold says TOGETHER"),
        ('spread_rules { labels { key: "app" value: "db" } }', "which this VM does not have itself"),
        (
            'spread_rules { topology_key: "zone" } spread_rules { topology_key: "zone" max_skew: 2 }',
            "spread_rules[1]: is about the same VMs and places as spread_rules[0]",
        ),
        ('preferred_nodes: ["n1", "n1"]', "preferred_nodes: n1 is listed twice"),
        ('tolerations { key: "k" } tolerations { key: "k" }', "tolerations[1]: is the same as tolerations[0]"),
    ],
)
def test_rule_without_effect_is_told(text: str, finding: str) -> None:
    facts = ClusterFacts(
        node_names=frozenset({"n1", "n2"}),
        node_labels={"zone": frozenset({"a", "b"})},
        vms_by_selector={selector_of({"app": "web"}): 3},
        vm_ids=frozenset({A}),
    )
    found = findings_of(policy(text), {"app": "web"}, facts)
    assert [each for each in found if finding in each], found
    assert len(found) == 1


def test_policy_in_use_has_no_findings() -> None:
    facts = ClusterFacts(frozenset({"n1"}), {"rack": frozenset({"r"})}, {selector_of({"a": "1"}): 1}, frozenset({A}))
    text = 'required_nodes: "n1" affinity_vms: [$A] spread_rules { topology_key: "rack" }'
    assert findings_of(policy(text), {"a": "1"}, facts) == []


def test_rule_about_vms_like_this_one_is_in_use_before_there_are_others() -> None:
    text = 'vm_rules { kind: APART labels { key: "app" value: "db" } }'
    assert findings_of(policy(text), {"app": "db"}, ClusterFacts()) == []


def test_spread_of_a_vm_without_labels_is_told() -> None:
    assert findings_of(policy("spread_rules { }"), {}, ClusterFacts()) == [
        "spread_rules[0]: counts VMs with this VM's labels, of which it has none"
    ]


def test_rule_selects_by_id_or_all_labels() -> None:
    rule = VmAffinityRule(kind=VmAffinityRule.APART, vm_ids=[A], labels={"a": "1", "b": "2"})
    assert selects(rule, A, {})
    assert selects(rule, B, {"a": "1", "b": "2", "c": "3"})
    assert not selects(rule, B, {"a": "1"})
    assert not selects(VmAffinityRule(vm_ids=[A]), B, {"a": "1"})


@pytest.mark.parametrize(
    ("text", "is_bound"),
    [
        ("", False),
        ("affinity_vms: [$A]", True),
        ('vm_rules { kind: APART labels { key: "a" value: "1" } }', True),
        ('vm_rules { kind: APART labels { key: "a" value: "1" } weight: 1 }', False),
        ('spread_rules { topology_key: "rack" }', True),
        ('required_nodes: "a"', False),
    ],
)
def test_only_what_must_hold_about_other_vms_binds(text: str, is_bound: bool) -> None:
    assert is_bound_to_others(policy(text)) is is_bound
