"""What a plan holds beyond the scenarios: ranking, limits, and summaries of large clusters."""

from __future__ import annotations

import pytest

from controlplane.domain.node import Capacity
from controlplane.scheduler.plan import Placement, SchedulerConfig, Unplaced, plan
from controlplane.scheduler.scores import ScorePart
from controlplane.scheduler.snapshot import PlacementRequest
from limiquantix.compute.v1.vm_pb2 import PlacementPolicy
from tests.unit.scheduler.placement_builders import MIB, a_candidate

REQUEST = PlacementRequest(vcpus=1, memory_bytes=1024 * MIB)


def test_plan_fitting_nodes_are_ranked_up_to_the_limit() -> None:
    nodes = [a_candidate(f"n{number}", used_vcpus=number) for number in range(5)]

    placement = plan(nodes, [REQUEST], SchedulerConfig(max_ranked_count=3)).placements[0]

    assert placement.node_id == "n0"
    assert placement.score == 87.5
    assert placement.parts == (ScorePart("spread", 87.5),)
    assert [ranked.node_id for ranked in placement.runners_up] == ["n1", "n2"]


def test_plan_outcomes_keep_the_order_of_requests() -> None:
    huge = PlacementRequest(vcpus=99, memory_bytes=MIB)

    decided = plan([a_candidate()], [huge, REQUEST, huge])

    assert [type(outcome) for outcome in decided.outcomes] == [Unplaced, Placement, Unplaced]
    assert [outcome.request for outcome in decided.outcomes] == [huge, REQUEST, huge]
    assert len(decided.placements) == 1
    assert len(decided.unplaced) == 2


def test_plan_without_requests_is_empty() -> None:
    assert plan([a_candidate()], []).outcomes == ()


def test_plan_refused_request_takes_no_room() -> None:
    nodes = [a_candidate(vcpus=4)]

    decided = plan(nodes, [PlacementRequest(5, MIB), PlacementRequest(4, MIB)])

    assert [placement.node_id for placement in decided.placements] == ["n1"]


def test_plan_snapshot_and_policy_are_left_as_they_were() -> None:
    node = a_candidate()
    policy = PlacementPolicy(preferred_nodes=["n1"], anti_affinity_vms=["a"])

    plan([node], [PlacementRequest(1, MIB, policy, vm_id="a"), PlacementRequest(1, MIB, policy, vm_id="b")])

    assert node.allocated == Capacity(0, 0)
    assert policy == PlacementPolicy(preferred_nodes=["n1"], anti_affinity_vms=["a"])


def test_summary_of_many_nodes_lists_few_values_largest_first() -> None:
    nodes = [a_candidate(f"n{number:03}", memory_mib=number) for number in range(200)]

    unplaced = plan(nodes, [REQUEST]).unplaced[0]

    assert unplaced.summary == (
        "no node fits: 200 nodes: 200 lack memory (need 1024 MiB; free 199/198/197/196/195/... MiB)"
    )
    assert len(unplaced.per_node) == 200
    assert unplaced.per_node[7] == ("host-n007", "memory: needs 1024 MiB, 7 of 7 MiB free")


def test_summary_of_one_node_is_singular() -> None:
    unplaced = plan([a_candidate(vcpus=1)], [PlacementRequest(2, MIB)]).unplaced[0]

    assert unplaced.summary == "no node fits: 1 node: 1 lacks CPU (need 2 vCPUs; free 1)"


@pytest.mark.parametrize("count", [0, -1])
def test_config_ranked_count_below_one_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        SchedulerConfig(max_ranked_count=count)
