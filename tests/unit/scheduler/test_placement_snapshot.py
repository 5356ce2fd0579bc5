"""From the records and messages of the system to what a decision reads."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from controlplane.domain.node import Capacity, Node, Phase
from controlplane.scheduler.snapshot import PlacementRequest, candidate_of, request_for, with_placed
from limiquantix.compute.v1.node_pb2 import NodeRole, NodeSpec, SchedulingConfig
from limiquantix.compute.v1.vm_pb2 import CpuConfig, DiskDevice, MemoryConfig, PlacementPolicy, VmSpec
from tests.unit.scheduler.placement_builders import MIB, a_candidate, a_taint

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_candidate_of_node_takes_every_fact() -> None:
    taint = a_taint("gpu=true:NO_SCHEDULE")
    node = Node(
        id="n1",
        hostname="host-n1",
        management_ip="192.0.2.1",
        agent_endpoint="192.0.2.1:9090",
        spec=NodeSpec(role=NodeRole(compute=True), scheduling=SchedulingConfig(schedulable=True, taints=[taint])),
        phase=Phase.READY,
        capacity=Capacity(8, 8192 * MIB),
        allocated=Capacity(2, 1024 * MIB),
        labels={"zone": "a"},
        created_at=NOW,
        updated_at=NOW,
    )

    assert candidate_of(node, ["pool"]) == a_candidate(
        "n1", used_vcpus=2, used_memory_mib=1024, taints=[taint], labels={"zone": "a"}, pools=["pool"]
    )


def test_candidate_of_node_that_declared_nothing_is_neither_compute_nor_schedulable() -> None:
    node = Node("n1", "h", "", "", NodeSpec(), Phase.READY, Capacity(8, MIB), NOW, NOW)

    candidate = candidate_of(node)

    assert not candidate.is_compute
    assert not candidate.schedulable


def test_request_for_spec_counts_all_vcpus_and_resolves_policy() -> None:
    spec = VmSpec(
        cpu=CpuConfig(cores=2, sockets=2, threads_per_core=2),
        memory=MemoryConfig(size_mib=512),
        disks=[DiskDevice(storage_pool_id="p1"), DiskDevice(), DiskDevice(storage_pool_id="p2")],
        placement=PlacementPolicy(affinity_vms=["a", "gone"], anti_affinity_vms=["b", "c"]),
    )

    request = request_for(spec, vm_id="me", node_of_vm={"a": "n1", "b": "n2", "c": "n2"}, pinned_node_id="n1")

    assert request == PlacementRequest(
        vcpus=8,
        memory_bytes=512 * MIB,
        policy=spec.placement,
        storage_pool_ids=frozenset({"p1", "p2"}),
        pinned_node_id="n1",
        affinity_nodes=frozenset({"n1"}),
        anti_affinity_nodes=frozenset({"n2"}),
        vm_id="me",
    )
    assert request.size == Capacity(8, 512 * MIB)


def test_with_placed_other_vms_changes_nothing() -> None:
    request = PlacementRequest(1, MIB, PlacementPolicy(affinity_vms=["a"], anti_affinity_vms=["b"]))

    assert with_placed(request, {"c": "n1"}) is request


@pytest.mark.parametrize(("vcpus", "memory_bytes"), [(-1, MIB), (1, -1)])
def test_request_negative_size_is_refused(vcpus: int, memory_bytes: int) -> None:
    with pytest.raises(ValueError, match="sizes begin at 0"):
        PlacementRequest(vcpus, memory_bytes)
