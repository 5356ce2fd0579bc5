"""Counting what fits agrees with placing until nothing does."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings

from controlplane.domain.node import Phase
from controlplane.scheduler.decide import decide
from controlplane.scheduler.neighbours import PlacedVm
from controlplane.scheduler.outcomes import Placement, SchedulerConfig
from controlplane.scheduler.room import MAX_COUNT, fitting_count, fitting_count_with_failures
from controlplane.scheduler.snapshot import PlacementRequest
from controlplane.scheduler.view import ClusterView
from limiquantix.compute.v1.vm_pb2 import PlacementPolicy, SpreadRule
from tests.unit.scheduler.clusters import Cluster, clusters, configs, requests
from tests.unit.scheduler.placement_builders import MIB, a_candidate


@given(clusters(), requests(), configs)
@settings(max_examples=60)
def test_fitting_count_any_request_is_that_of_placing_until_it_is_refused(
    cluster: Cluster, request: PlacementRequest, config: SchedulerConfig
) -> None:
    assume(request.vcpus or request.memory_bytes)
    view = ClusterView(cluster.nodes, cluster.vms)
    room = fitting_count(view, request, config)

    count = 0
    while isinstance(outcome := decide(view, request, config), Placement):
        view.place(PlacedVm(outcome.node_id, replace(request, vm_id=f"more{count}")))
        count += 1
    assert room.count == count == sum(node.count for node in room.nodes)
    assert all(node.filter for node in room.nodes)


def test_fitting_count_says_what_stops_the_next_on_each_node() -> None:
    view = ClusterView(
        [
            a_candidate("n1", vcpus=4, memory_mib=64),
            a_candidate("n2", vcpus=64, memory_mib=3),
            a_candidate("n3", phase=Phase.OFFLINE),
        ]
    )
    room = fitting_count(view, PlacementRequest(2, MIB))

    assert [(node.hostname, node.count, node.limit) for node in room.nodes] == [
        ("host-n1", 2, "cpu: needs 2 vCPUs, 0 of 4 free"),
        ("host-n2", 3, "memory: needs 1 MiB, 0 of 3 MiB free"),
        ("host-n3", 0, "phase: is OFFLINE, must be READY"),
    ]
    assert room.limit == "1 node: cpu, 1 node: memory, 1 node: phase"


def test_fitting_count_vm_that_needs_nothing_ends() -> None:
    assert fitting_count(ClusterView([a_candidate()]), PlacementRequest(0, 0)).count == MAX_COUNT
    assert fitting_count(ClusterView(), PlacementRequest(1, MIB)).limit == "there are no nodes"


def test_fitting_count_spread_over_zones_stops_with_the_smallest() -> None:
    policy = PlacementPolicy(spread_rules=[SpreadRule(topology_key="zone", labels={"app": "db"})])
    request = PlacementRequest(1, MIB, policy, labels={"app": "db"})
    view = ClusterView(
        [a_candidate("n1", vcpus=2, labels={"zone": "a"}), a_candidate("n2", vcpus=9, labels={"zone": "b"})]
    )

    assert fitting_count(view, request).count == 5


def test_failures_worst_case_is_that_of_all_sets_of_nodes() -> None:
    view = ClusterView(
        [a_candidate(f"n{number}", vcpus=vcpus, used_vcpus=2) for number, vcpus in enumerate([4, 8, 6, 10])],
        [PlacedVm(f"n{number}", PlacementRequest(2, MIB, vm_id=f"v{number}")) for number in range(4)],
    )
    request = PlacementRequest(2, MIB)
    room = fitting_count_with_failures(view, request, 2)

    # 28 vCPUs, of which each pair that fails takes its own along, and 4 VMs of 2 that must go on.
    sizes = {"n0": 4, "n1": 8, "n2": 6, "n3": 10}
    counts = {
        pair: (28 - sum(sizes[node_id] for node_id in pair) - 8) // 2 for pair in itertools.combinations(sizes, 2)
    }
    assert room.count == min(counts.values()) == 1
    assert room.worst_node_ids == ("n1", "n3")
    assert room.homeless_count == 0
    assert room.is_exact
    assert sorted(candidate.allocated.vcpus for candidate in view.candidates) == [2, 2, 2, 2]
    assert fitting_count(view, request).count == 10


def test_failures_vms_without_a_place_leave_no_room_for_more() -> None:
    view = ClusterView(
        [a_candidate("n1", used_vcpus=8), a_candidate("n2", used_vcpus=1)],
        [
            PlacedVm("n1", PlacementRequest(8, MIB, vm_id="big")),
            PlacedVm("n2", PlacementRequest(1, MIB, vm_id="small")),
        ],
    )
    room = fitting_count_with_failures(view, PlacementRequest(1, MIB), 1)

    assert (room.count, room.homeless_count, room.worst_node_ids) == (0, 1, ("n1",))


@pytest.mark.parametrize("count", [0, 2])
def test_failures_of_no_or_of_all_nodes_are_refused(count: int) -> None:
    view = ClusterView([a_candidate("n1"), a_candidate("n2")])
    with pytest.raises(ValueError, match="let 1 or more be left"):
        fitting_count_with_failures(view, PlacementRequest(1, MIB), count)


def test_failures_of_many_nodes_say_that_not_every_set_was_tried() -> None:
    view = ClusterView([a_candidate(f"n{number}") for number in range(40)])
    room = fitting_count_with_failures(view, PlacementRequest(1, MIB), 2, SchedulerConfig())

    assert room.count == 38 * 8
    assert not room.is_exact
