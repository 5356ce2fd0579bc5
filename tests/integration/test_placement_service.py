"""PlacementService and dry runs over the wires: what it thinks, what it refuses, and that nothing changes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from limiquantix.compute.v1 import placement_service_pb2 as api
from limiquantix.errors import Code, Reason
from tests.support.builders import make_id
from tests.support.control_plane_world import register_request
from tests.support.running_control_plane import (
    DEADLINE_S,
    PLACEMENT_SERVICE,
    VM_SERVICE,
    RunningControlPlane,
    running_control_plane,
    sound_body,
    sound_spec,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningControlPlane]:
    """One control plane with the host "host-a" that answers, and "host-b" that only registered."""
    async with running_control_plane(tmp_path_factory.mktemp("plane")) as running:
        other = register_request("host-b", labels={"rack": "2"}, agent_endpoint="127.0.0.1:9")
        await running.nodes.RegisterNode(other, timeout=DEADLINE_S)
        yield running


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def no_vms_left(plane: RunningControlPlane) -> AsyncIterator[None]:
    yield
    await plane.clear()


def on_host_a(**fields: Any) -> dict[str, Any]:
    return sound_body(spec=sound_spec(placement={"requiredNodes": ["host-a"]}), **fields)


async def explained(plane: RunningControlPlane, body: dict[str, Any]) -> dict[str, Any]:
    answer = await plane.post("ExplainPlacement", body, PLACEMENT_SERVICE)
    assert answer.status == 200, answer.document
    document: dict[str, Any] = answer.document
    return document


async def test_candidate_is_explained_on_every_node_with_points_or_reasons(plane: RunningControlPlane) -> None:
    spec = sound_spec(placement={"requiredLabels": {"rack": "2"}})
    found = await explained(plane, {"candidate": {"spec": spec}})
    assert [node["hostname"] for node in found["nodes"]] == ["host-b", "host-a"]
    fits, refused = found["nodes"]
    assert fits["score"] == pytest.approx(sum(part["points"] for part in fits["scores"]))
    assert refused["rejections"][0]["filter"] == "required labels"
    assert found["chosenNodeId"] == fits["nodeId"]
    assert "host-b" in found["summary"]
    await plane.assert_no_trace_of_vms()


async def test_vm_is_explained_as_if_it_were_placed_anew(plane: RunningControlPlane) -> None:
    spec = sound_spec(cpu={"cores": 14}, placement={"requiredNodes": ["host-a"]})
    vm = (await plane.post("CreateVM", sound_body(spec=spec))).document
    found = await explained(plane, {"vmId": vm["id"]})
    assert found["currentNodeId"] == found["chosenNodeId"] == plane.node_id
    assert "rejections" not in found["nodes"][0]


async def test_vm_that_fits_nowhere_is_told_why_as_a_create_is(plane: RunningControlPlane) -> None:
    body = sound_body(spec=sound_spec(memory={"sizeMib": 2**20}))
    found = await explained(plane, {"candidate": {"spec": body["spec"]}})
    error, _ = await plane.refused("CreateVM", {**body, "validateOnly": True})
    assert "chosenNodeId" not in found
    assert found["summary"] == error.message
    assert error.reason == Reason.NO_NODE_FITS


async def test_rules_of_others_and_rules_without_effect_are_told(plane: RunningControlPlane) -> None:
    rule = {"kind": "APART", "labels": {"app": "db"}}
    spec = sound_spec(placement={"requiredNodes": ["host-a"], "vmRules": [rule]})
    created = await plane.post("CreateVM", sound_body(spec=spec, labels={"app": "db"}))
    assert created.status == 200, created.document
    candidate = {"spec": sound_spec(), "labels": {"app": "db"}}
    found = await explained(plane, {"candidate": candidate})
    assert [(node["hostname"], "rejections" in node) for node in found["nodes"]] == [
        ("host-b", False),
        ("host-a", True),
    ]
    idle = {"spec": sound_spec(placement={"excludedNodes": ["nowhere"]})}
    assert (await explained(plane, {"candidate": idle}))["ruleFindings"] == ["excluded_nodes: there is no node nowhere"]


@pytest.mark.parametrize(
    ("method", "body", "fields"),
    [
        ("ExplainPlacement", {}, ["subject"]),
        ("ExplainPlacement", {"vmId": "x"}, ["vm_id"]),
        (
            "ExplainPlacement",
            {"candidate": {"spec": sound_spec(placement={"requiredNodes": ["a"], "excludedNodes": ["a"]})}},
            ["candidate.spec.placement.excluded_nodes[0]"],
        ),
        ("PlanPlacements", {}, ["vms"]),
        ("PlanPlacements", {"vms": [{"spec": {}}]}, ["vms[0].spec.cpu", "vms[0].spec.memory"]),
        ("GetCapacity", {}, ["vm"]),
        ("GetCapacity", {"vm": {"spec": sound_spec()}, "failedNodeCount": 4}, ["failed_node_count"]),
    ],
)
async def test_unsound_request_names_its_fields(
    plane: RunningControlPlane, method: str, body: dict[str, Any], fields: list[str]
) -> None:
    error, answer = await plane.refused(method, body, PLACEMENT_SERVICE)
    assert error.code is Code.INVALID_ARGUMENT
    assert answer.faulty_fields == fields


async def test_unknown_vm_is_not_found(plane: RunningControlPlane) -> None:
    error, _ = await plane.refused("ExplainPlacement", {"vmId": make_id()}, PLACEMENT_SERVICE)
    assert error.reason == Reason.VM_NOT_FOUND


async def test_plan_places_as_many_as_fit_or_all_or_none(plane: RunningControlPlane) -> None:
    small, huge = sound_spec(), sound_spec(cpu={"cores": 64})
    vms = [{"name": f"vm-{number}", "spec": spec} for number, spec in enumerate([small, huge, small])]
    found = (await plane.post("PlanPlacements", {"vms": vms}, PLACEMENT_SERVICE)).document
    assert found["placedCount"] == 2
    assert [("nodeId" in each, "reason" in each) for each in found["placements"]] == [
        (True, False),
        (False, True),
        (True, False),
    ]
    none = (await plane.post("PlanPlacements", {"vms": vms, "mode": "ALL_OR_NOTHING"}, PLACEMENT_SERVICE)).document
    assert "placedCount" not in none
    assert all("reason" in each for each in none["placements"])
    await plane.assert_no_trace_of_vms()


async def test_capacity_counts_what_fits_now_and_with_nodes_failed(plane: RunningControlPlane) -> None:
    request = {"vm": {"spec": sound_spec(cpu={"cores": 2}, memory={"sizeMib": 256})}}
    found = (await plane.post("GetCapacity", request, PLACEMENT_SERVICE)).document
    assert found["fittingCount"] == "14"
    assert [(each["hostname"], each["fittingCount"]) for each in found["nodes"]] == [("host-a", "7"), ("host-b", "7")]
    assert "cpu" in found["limit"]
    assert [(each["failedNodeCount"], each["fittingCount"]) for each in found["failures"]] == [(1, "7")]
    for number in range(2):
        movable = sound_spec(placement={"preferredNodes": ["host-a"]})
        created = await plane.post("CreateVM", sound_body(name=f"t{number}", spec=movable))
        assert created.status == 200, created.document
    after = (await plane.post("GetCapacity", request, PLACEMENT_SERVICE)).document
    assert (after["fittingCount"], after["failures"][0]["fittingCount"]) == ("13", "6")


async def test_capacity_tells_of_vms_that_would_have_no_place(plane: RunningControlPlane) -> None:
    created = await plane.post("CreateVM", on_host_a())
    assert created.status == 200, created.document
    request = api.GetCapacityRequest(failed_node_count=1)
    request.vm.spec.cpu.cores, request.vm.spec.memory.size_mib = 1, 128
    found = await plane.placements.GetCapacity(request, timeout=DEADLINE_S)
    assert found.fitting_count == 27
    (failure,) = found.failures
    assert (failure.homeless_vm_count, failure.fitting_count) == (1, 0)
    assert list(failure.worst_node_ids) == [plane.node_id]


async def test_what_would_make_it_fit_is_told(plane: RunningControlPlane) -> None:
    spec = sound_spec(cpu={"cores": 15}, memory={"sizeMib": 128})
    found = await explained(plane, {"candidate": {"spec": spec}})
    assert any("vCPU" in text for text in found["wouldFitIf"]), found


async def test_create_that_is_only_validated_leaves_nothing(plane: RunningControlPlane) -> None:
    events = (await plane.post("ListOperations", {}, "limiquantix.compute.v1.OperationService")).document
    answer = await plane.post("CreateVM", {**on_host_a(name="dry"), "validateOnly": True})
    assert answer.document["status"]["nodeId"] == plane.node_id
    assert "limiquantix-operation-id" not in answer.headers
    assert (await plane.post("ListOperations", {}, "limiquantix.compute.v1.OperationService")).document == events
    await plane.assert_no_trace_of_vms()
    assert (await plane.post("CreateVM", on_host_a(name="dry"), VM_SERVICE)).status == 200
