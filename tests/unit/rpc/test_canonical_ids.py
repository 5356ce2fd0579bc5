"""One spelling for every id of a request."""

from __future__ import annotations

from limiquantix.compute.v1.node_service_pb2 import SyncFullStateRequest, VMStatusReport
from limiquantix.compute.v1.vm_pb2 import DiskDevice, PlacementPolicy, VmSpec
from limiquantix.compute.v1.vm_service_pb2 import CreateVMRequest, UpdateVMRequest
from limiquantix.rpc.canonical import canonicalise_ids

SMALL = "abcdef00-0000-4000-8000-00000000000f"
CAPITAL = SMALL.upper()


def test_ids_in_capitals_become_small_wherever_they_are() -> None:
    request = CreateVMRequest(
        name="ABC",
        project_id=CAPITAL,
        node_id=CAPITAL,
        labels={"Role": CAPITAL},
        spec=VmSpec(
            disks=[DiskDevice(id=CAPITAL, backing_file="/Images/A")],
            placement=PlacementPolicy(anti_affinity_vms=[CAPITAL, SMALL], required_nodes=["Host-A"]),
        ),
    )

    canonicalise_ids(request)

    assert (request.project_id, request.node_id, request.spec.disks[0].id) == (SMALL, SMALL, SMALL)
    assert list(request.spec.placement.anti_affinity_vms) == [SMALL, SMALL]


def test_text_that_is_no_id_is_left_alone() -> None:
    request = CreateVMRequest(name="ABC", description="ABC", labels={"Role": CAPITAL})
    request.spec.placement.required_nodes.append("Host-A")
    before = CreateVMRequest.FromString(request.SerializeToString())

    canonicalise_ids(request)

    assert request == before


def test_absent_messages_stay_absent() -> None:
    request = UpdateVMRequest(id=CAPITAL)

    canonicalise_ids(request)

    assert request == UpdateVMRequest(id=SMALL)


def test_repeated_messages_are_visited() -> None:
    request = SyncFullStateRequest(node_id=CAPITAL, vms=[VMStatusReport(id=CAPITAL), VMStatusReport(id=SMALL)])

    canonicalise_ids(request)

    assert [report.id for report in request.vms] == [SMALL, SMALL]
