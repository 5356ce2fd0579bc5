"""Explanations tell every node's points or reasons, and suggest only what really helps."""

from __future__ import annotations

from hypothesis import given, settings

from controlplane.domain.node import Phase
from controlplane.scheduler.explain import MAX_SUGGESTIONS, explain
from controlplane.scheduler.inventory import Inventory, MachineAbilities, Needs
from controlplane.scheduler.neighbours import PlacedVm
from controlplane.scheduler.outcomes import Placement, SchedulerConfig, Unplaced
from controlplane.scheduler.plan import plan
from controlplane.scheduler.snapshot import Candidate, PlacementRequest
from controlplane.scheduler.view import ClusterView
from limiquantix.compute.v1.vm_pb2 import NodeLabelRule, PlacementPolicy, SpreadRule, VmAffinityRule
from tests.unit.scheduler.clusters import Cluster, clusters, configs, requests
from tests.unit.scheduler.placement_builders import MIB, a_candidate, a_taint


@given(clusters(), requests("new"), configs)
@settings(max_examples=50)
def test_explain_any_request_has_every_node_and_the_plans_choice(
    cluster: Cluster, request: PlacementRequest, config: SchedulerConfig
) -> None:
    view = ClusterView(cluster.nodes, cluster.vms)
    told = explain(view, request, config)

    assert told.outcome == plan(view, [request], config).outcomes[0]
    assert sorted(verdict.node_id for verdict in told.nodes) == sorted(node.id for node in cluster.nodes)
    assert len(told.would_fit_if) <= MAX_SUGGESTIONS
    able = [verdict for verdict in told.nodes if not verdict.rejections]
    if isinstance(told.outcome, Placement):
        ranked = [(each.node_id, each.score) for each in told.outcome.ranked]
        assert [(each.node_id, each.score) for each in able][: len(ranked)] == ranked
        assert not told.would_fit_if
    else:
        assert not able


def suggestions(candidates: list[Candidate], request: PlacementRequest, vms: list[PlacedVm] | None = None) -> list[str]:
    told = explain(ClusterView(candidates, vms or []), request)
    assert isinstance(told.outcome, Unplaced)
    return list(told.would_fit_if)


def test_explain_smallest_size_given_up_comes_first() -> None:
    cluster = [a_candidate("n1", memory_mib=1920, vcpus=8), a_candidate("n2", memory_mib=4096, vcpus=1)]
    cluster.append(a_candidate("n3", memory_mib=1024))

    assert suggestions(cluster, PlacementRequest(2, 2048 * MIB)) == [
        "with 128 MiB less memory",
        "with 1 fewer vCPU",
    ]


def test_explain_room_that_a_cordoned_or_tainted_node_has_is_offered() -> None:
    cluster = [
        a_candidate("n1", schedulable=False),
        a_candidate("n2", taints=[a_taint("gpu=true:NO_SCHEDULE")]),
        a_candidate("n3", phase=Phase.OFFLINE, schedulable=False),
        a_candidate("n4", phase=Phase.OFFLINE, vcpus=0),
    ]

    assert suggestions(cluster, PlacementRequest(1, MIB)) == [
        "if node host-n1 were enabled",
        "if the VM tolerated gpu=true:NO_SCHEDULE",
        "if node host-n3 were enabled and READY (it is OFFLINE)",
    ]


def test_explain_each_rule_that_alone_is_in_the_way_is_offered() -> None:
    policy = PlacementPolicy(
        required_labels={"zone": "b"},
        vm_rules=[VmAffinityRule(kind=VmAffinityRule.APART, labels={"app": "db"}, topology_key="zone")],
    )
    db = PlacedVm("n2", PlacementRequest(1, MIB, vm_id="a", labels={"app": "db"}))
    cluster = [a_candidate("n1", labels={"zone": "a"}), a_candidate("n2", labels={"zone": "b"})]

    assert suggestions(cluster, PlacementRequest(1, MIB, policy), [db]) == [
        "without rule vm_rules[0] (APART)",
        "without the required label zone=b",
    ]


def test_explain_rules_about_labels_and_evenness_are_offered() -> None:
    policy = PlacementPolicy(node_rules=[NodeLabelRule(key="ssd", operator=NodeLabelRule.EXISTS)])
    assert suggestions([a_candidate()], PlacementRequest(1, MIB, policy)) == [
        "without rule node_rules[0] (a label ssd)"
    ]

    policy = PlacementPolicy(spread_rules=[SpreadRule(labels={"app": "db"})])
    db = PlacedVm("n1", PlacementRequest(1, MIB, vm_id="a", labels={"app": "db"}))
    cluster = [a_candidate("n1"), a_candidate("n2", vcpus=0)]
    request = PlacementRequest(1, MIB, policy, labels={"app": "db"})
    assert suggestions(cluster, request, [db]) == ["without rule spread_rules[0] (over nodes)"]


def test_explain_what_no_host_can_build_is_offered_to_be_left_out() -> None:
    node = a_candidate(inventory=Inventory(machine=MachineAbilities()))
    request = PlacementRequest(1, MIB, needs=Needs(tpm_version="2.0"))

    assert suggestions([node], request) == ["without a TPM"]


def test_explain_two_obstacles_at_once_are_no_single_change() -> None:
    node = a_candidate(schedulable=False, memory_mib=1)

    assert suggestions([node], PlacementRequest(1, 2 * MIB)) == []


def test_explain_placed_vm_is_explained_as_if_it_were_nowhere() -> None:
    request = PlacementRequest(8, MIB, vm_id="a")
    view = ClusterView([a_candidate("n1", vcpus=8, used_vcpus=8)], [PlacedVm("n1", request)])

    told = explain(view, request)

    assert isinstance(told.outcome, Placement)
    assert view.candidates[0].allocated.vcpus == 8
    assert view.vm("a") is not None
