"""Each filter on its own, as a table of what it lets through and what it says when it does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.domain.node import Capacity, Phase
from controlplane.scheduler import filters
from controlplane.scheduler.filters import FILTERS, Check, checks_for, rejections_of
from controlplane.scheduler.snapshot import Candidate, PlacementRequest, Toleration
from limiquantix.compute.v1.vm_pb2 import PlacementPolicy
from tests.unit.scheduler.filter_examples import HOST_ALLOWED, HOST_REFUSED
from tests.unit.scheduler.placement_builders import MIB, a_candidate, a_taint

SMALL = PlacementRequest(vcpus=1, memory_bytes=128 * MIB)
VM_ID = "00000000-0000-4000-8000-000000000001"


def wanting(**policy: object) -> PlacementRequest:
    """Make a small request with this policy."""
    return replace(SMALL, policy=PlacementPolicy(**policy))  # type: ignore[arg-type]


REFUSED: list[tuple[Check, Candidate, PlacementRequest, str]] = [
    (filters.pinned_node, a_candidate("n1"), replace(SMALL, pinned_node_id="n2"), "the VM was asked for on node n2"),
    (
        filters.pinned_node,
        a_candidate("n1"),
        replace(SMALL, pinned_node_id="host-n1"),
        "the VM was asked for on node host-n1",
    ),
    (filters.required_nodes, a_candidate(), wanting(required_nodes=["n2"]), "the VM may run only on n2"),
    (
        filters.required_nodes,
        a_candidate(),
        wanting(required_nodes=["n9", "n2", "n4", "n3", "n5"]),
        "the VM may run only on n2, n3, n4 and 2 more",
    ),
    (
        filters.excluded_nodes,
        a_candidate("n1"),
        wanting(excluded_nodes=["n1"]),
        "the VM's placement policy excludes this node",
    ),
    (
        filters.excluded_nodes,
        a_candidate("n1"),
        wanting(excluded_nodes=["host-n1"]),
        "the VM's placement policy excludes this node",
    ),
    *[
        (filters.phase, a_candidate(phase=phase), SMALL, f"is {Phase.Name(phase)}, must be READY")
        for phase in (
            Phase.UNKNOWN,
            Phase.PENDING,
            Phase.NOT_READY,
            Phase.MAINTENANCE,
            Phase.DRAINING,
            Phase.OFFLINE,
        )
    ],
    (filters.compute_role, a_candidate(is_compute=False), SMALL, "does not have the compute role"),
    (filters.schedulable, a_candidate(schedulable=False), SMALL, "is cordoned; enable the node first"),
    (
        filters.taints,
        a_candidate(taints=[a_taint("gpu=true:NO_SCHEDULE"), a_taint("soft=1:PREFER_NO_SCHEDULE")]),
        SMALL,
        "has gpu=true:NO_SCHEDULE, which the VM does not tolerate",
    ),
    (
        filters.taints,
        a_candidate(taints=[a_taint("dying=:NO_EXECUTE")]),
        SMALL,
        "has dying=:NO_EXECUTE, which the VM does not tolerate",
    ),
    (
        filters.taints,
        a_candidate(taints=[a_taint("gpu=true:NO_SCHEDULE")]),
        replace(SMALL, tolerations=(Toleration("gpu", "false"), Toleration("cpu"))),
        "has gpu=true:NO_SCHEDULE, which the VM does not tolerate",
    ),
    (
        filters.required_labels,
        a_candidate(labels={"zone": "b"}),
        wanting(required_labels={"zone": "a", "disk": "ssd"}),
        "needs disk=ssd, zone=a but has no disk, zone=b",
    ),
    (
        filters.required_labels,
        a_candidate(labels={"zone": "b", "disk": "ssd"}),
        wanting(required_labels={"zone": "", "disk": "ssd"}),
        "needs zone= but has zone=b",
    ),
    (
        filters.affinity,
        a_candidate("n1"),
        replace(SMALL, affinity_nodes=frozenset({"n2"})),
        "the VMs it must run beside are on node n2",
    ),
    (
        filters.affinity,
        a_candidate("n1"),
        replace(SMALL, affinity_nodes=frozenset({"n1", "n2"})),
        "the VMs it must run beside are apart, on nodes n1, n2",
    ),
    (filters.affinity, a_candidate(), wanting(affinity_vms=[VM_ID]), "the VMs it must run beside are on no node"),
    (
        filters.anti_affinity,
        a_candidate("n1"),
        replace(SMALL, anti_affinity_nodes=frozenset({"n1"})),
        "runs a VM that this one must not run beside",
    ),
    (
        filters.storage_pools,
        a_candidate(pools=["fast"]),
        replace(SMALL, storage_pool_ids=frozenset({"fast", "slow"})),
        "does not reach storage pool slow",
    ),
    (
        filters.cpu,
        a_candidate(vcpus=8, used_vcpus=5),
        PlacementRequest(vcpus=4, memory_bytes=MIB),
        "needs 4 vCPUs, 3 of 8 free",
    ),
    (
        filters.cpu,
        a_candidate(vcpus=4, used_vcpus=6),
        PlacementRequest(vcpus=1, memory_bytes=MIB),
        "needs 1 vCPU, 0 of 4 free",
    ),
    (
        filters.memory,
        a_candidate(memory_mib=6144, used_memory_mib=2048),
        PlacementRequest(vcpus=1, memory_bytes=8192 * MIB),
        "needs 8192 MiB, 4096 of 6144 MiB free",
    ),
    (
        filters.memory,
        a_candidate(memory_mib=1024, used_memory_mib=2048),
        SMALL,
        "needs 128 MiB, 0 of 1024 MiB free",
    ),
    (
        filters.memory,
        replace(a_candidate(), capacity=Capacity(8, 128 * MIB - 1)),
        SMALL,
        "needs 128 MiB, 127 of 127 MiB free",
    ),
    (
        filters.memory,
        a_candidate(memory_mib=128),
        replace(SMALL, memory_bytes=128 * MIB + 1),
        "needs 129 MiB, 128 of 128 MiB free",
    ),
]

ALLOWED: list[tuple[Check, Candidate, PlacementRequest]] = [
    (filters.pinned_node, a_candidate("n1"), replace(SMALL, pinned_node_id="n1")),
    (filters.required_nodes, a_candidate("n1"), wanting(required_nodes=["n7", "n1"])),
    (filters.required_nodes, a_candidate("n1"), wanting(required_nodes=["host-n1"])),
    (filters.excluded_nodes, a_candidate("n1"), wanting(excluded_nodes=["n2", "host-n3"])),
    (filters.phase, a_candidate(), SMALL),
    (filters.compute_role, a_candidate(), SMALL),
    (filters.schedulable, a_candidate(), SMALL),
    (filters.taints, a_candidate(), SMALL),
    (filters.taints, a_candidate(taints=[a_taint("soft=1:PREFER_NO_SCHEDULE")]), SMALL),
    (
        filters.taints,
        a_candidate(taints=[a_taint("gpu=true:NO_SCHEDULE"), a_taint("dying=:NO_EXECUTE")]),
        replace(SMALL, tolerations=(Toleration("gpu", "true"), Toleration("dying"))),
    ),
    (
        filters.required_labels,
        a_candidate(labels={"zone": "a", "disk": "ssd", "rack": "4"}),
        wanting(required_labels={"zone": "a", "disk": "ssd"}),
    ),
    (filters.affinity, a_candidate("n1"), replace(SMALL, affinity_nodes=frozenset({"n1"}))),
    (filters.anti_affinity, a_candidate("n1"), replace(SMALL, anti_affinity_nodes=frozenset({"n2"}))),
    (filters.storage_pools, a_candidate(pools=["a", "b"]), replace(SMALL, storage_pool_ids=frozenset({"a"}))),
    (filters.cpu, a_candidate(vcpus=8, used_vcpus=4), PlacementRequest(vcpus=4, memory_bytes=MIB)),
    (filters.cpu, a_candidate(vcpus=0), PlacementRequest(vcpus=0, memory_bytes=MIB)),
    (
        filters.memory,
        a_candidate(memory_mib=6144, used_memory_mib=2048),
        PlacementRequest(vcpus=1, memory_bytes=4096 * MIB),
    ),
]

REFUSED += HOST_REFUSED
ALLOWED += HOST_ALLOWED


@pytest.mark.parametrize(("check", "candidate", "request_", "message"), REFUSED)
def test_filter_unfit_node_is_refused_with_its_numbers(
    check: Check, candidate: Candidate, request_: PlacementRequest, message: str
) -> None:
    rejection = check(candidate, request_)

    assert rejection is not None
    assert rejection.message == message


@pytest.mark.parametrize(("check", "candidate", "request_", "message"), REFUSED)
def test_filter_request_it_refuses_is_one_it_concerns(
    check: Check, candidate: Candidate, request_: PlacementRequest, message: str
) -> None:
    assert check in checks_for(request_)


@pytest.mark.parametrize(("check", "candidate", "request_"), ALLOWED)
def test_filter_fit_node_is_let_through(check: Check, candidate: Candidate, request_: PlacementRequest) -> None:
    assert check(candidate, request_) is None


def test_filters_all_refuse_and_let_through_somewhere() -> None:
    listed = [entry.check for entry in FILTERS]

    assert {check for check, *_ in REFUSED} == set(listed)
    assert {check for check, *_ in ALLOWED} == set(listed)


def test_filters_names_are_distinct() -> None:
    words_of = {check: rejection.words for check, node, request, _ in REFUSED if (rejection := check(node, request))}
    names = [words.name for words in words_of.values()]

    assert len(names) == len(FILTERS)
    assert len(set(names)) == len(names)


def test_filters_without_concern_let_every_node_through() -> None:
    """A filter that is skipped for a request must have had nothing to say about it."""
    nodes = [candidate for _, candidate, _, _ in REFUSED]
    skipped = [entry.check for entry in FILTERS if entry.check not in checks_for(SMALL)]

    verdicts = [
        check(node, SMALL)
        for check in skipped
        if check not in (filters.pinned_node, filters.required_nodes, filters.affinity)
        for node in nodes
    ]

    assert verdicts
    assert all(verdict is None for verdict in verdicts)


def test_rejections_node_with_several_faults_are_all_told_most_telling_first() -> None:
    node = a_candidate(vcpus=1, memory_mib=1, phase=Phase.OFFLINE, schedulable=False)
    request = PlacementRequest(vcpus=2, memory_bytes=2 * MIB, policy=PlacementPolicy(excluded_nodes=["n1"]))

    rejections = rejections_of(node, request, checks_for(request))

    assert [rejection.filter for rejection in rejections] == ["excluded nodes", "phase", "schedulable", "cpu", "memory"]
