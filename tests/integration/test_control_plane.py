"""The control plane over its wires: what sound requests do, what is refused and why, health, start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import httpx
import pytest
import pytest_asyncio
from google.protobuf import json_format
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from controlplane.app import ControlPlane
from controlplane.config import ControlPlaneConfig, GrpcSettings, HttpSettings
from controlplane.state.factory import create_store
from limiquantix.compute.v1 import vm_pb2, vm_service_pb2
from limiquantix.errors import Code, FailedPrecondition, Reason
from limiquantix.rpc.server import AddressInUse
from tests.support.builders import make_id
from tests.support.control_plane_world import create_request, register_request
from tests.support.databases import fresh_sqlite
from tests.support.fake_daemons import unreachable
from tests.support.running_control_plane import (
    DEADLINE_S,
    NODE_SERVICE,
    VM_SERVICE,
    RunningControlPlane,
    error_of,
    running_control_plane,
    sound_body,
    sound_spec,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

ORIGIN = "https://console.example"
UNKNOWN_ID = "0b0f5d3e-6d0b-4f0e-9c55-3f1b5f3a7c11"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningControlPlane]:
    """One control plane for all tests here, with one host; each test makes VMs of its own."""
    async with running_control_plane(tmp_path_factory.mktemp("plane"), cors_origins=[ORIGIN]) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def healthy_host(plane: RunningControlPlane) -> AsyncIterator[None]:
    """Take the faults of a test back and delete its VMs."""
    yield
    await plane.clear()


# -- what happens to sound requests


async def test_documented_calls_work_in_both_spellings(plane: RunningControlPlane) -> None:
    camel = sound_body(
        name="camel",
        spec=sound_spec(
            disks=[{"sizeGib": 20, "bus": "VIRTIO", "format": "QCOW2"}], nics=[{"bridge": "virbr0", "model": "VIRTIO"}]
        ),
    )
    snake = {"name": "snake", "spec": {"cpu": {"cores": 1}, "memory": {"size_mib": 128}}, "start_on_create": True}

    first = await plane.post("CreateVM", camel)
    second = await plane.post("CreateVM", snake)

    assert (first.status, second.status) == (200, 200)
    assert first.document["status"]["state"] == "STOPPED"
    assert second.document["status"]["state"] == "RUNNING"
    assert first.document["spec"]["nics"][0]["bridge"] == "virbr0"
    listed = await plane.post("ListVMs", {"states": ["RUNNING"]})
    assert ([vm["name"] for vm in listed.document["vms"]], listed.document["totalCount"]) == (["snake"], 1)


async def test_life_of_a_vm_is_the_same_on_both_wires(plane: RunningControlPlane) -> None:
    created = await plane.vms.CreateVM(create_request("life"), timeout=DEADLINE_S)
    by_json = (await plane.post("GetVM", {"id": created.id})).document
    assert json_format.ParseDict(by_json, vm_pb2.VirtualMachine()) == created

    for method, body, state in (
        ("StartVM", {}, "RUNNING"),
        ("PauseVM", {}, "PAUSED"),
        ("ResumeVM", {}, "RUNNING"),
        ("RebootVM", {"force": True}, "RUNNING"),
        ("StopVM", {"force": True}, "STOPPED"),
    ):
        answer = await plane.post(method, {"id": created.id, **body})
        assert answer.document["status"]["state"] == state, method

    deleted = await plane.post("DeleteVM", {"id": created.id})
    assert (deleted.status, deleted.document) == (200, {})
    await plane.assert_no_trace_of_vms()


async def test_ids_in_capitals_are_the_same_ids(plane: RunningControlPlane) -> None:
    made = await plane.post("CreateProject", {"name": "capitals"}, "limiquantix.compute.v1.ProjectService")
    project = str(made.document["id"])
    first = (await plane.post("CreateVM", sound_body(name="same", projectId=project))).document

    again = await plane.post("CreateVM", sound_body(name="same", projectId=project.upper()))
    apart = sound_spec(placement={"antiAffinityVms": [first["id"].upper()]})
    beside = await plane.post("CreateVM", sound_body(name="apart", spec=apart, nodeId=plane.node_id.upper()))
    found = await plane.post("GetVM", {"id": first["id"].upper()})

    assert (again.status, again.code) == (409, "already_exists")
    assert (beside.status, beside.code) == (429, "resource_exhausted")
    assert "must not run beside" in beside.document["message"]
    assert found.document["id"] == first["id"]


async def test_console_password_leaves_only_by_the_console_call(plane: RunningControlPlane) -> None:
    body = sound_body(startOnCreate=True, spec=sound_spec(display={"password": "hush1234"}))
    created = await plane.post("CreateVM", body)
    listed = await plane.post("ListVMs", {})
    console = await plane.post("GetConsole", {"vmId": created.document["id"]})

    assert "hush1234" not in json.dumps([created.document, listed.document])
    assert console.document == {
        "consoleType": "CONSOLE_TYPE_VNC",
        "host": "127.0.0.1",
        "port": 5900,
        "password": "secret12",
    }


async def test_console_of_a_kind_the_vm_lacks_is_refused(plane: RunningControlPlane) -> None:
    created = await plane.post("CreateVM", sound_body(startOnCreate=True))
    answer = await plane.post("GetConsole", {"vmId": created.document["id"], "type": "SPICE"})
    assert answer.document["code"] == "failed_precondition"
    assert "no spice console" in answer.document["message"]


async def test_console_log_is_read_in_pieces(plane: RunningControlPlane) -> None:
    vm = await plane.vms.CreateVM(create_request("logs"), timeout=DEADLINE_S)
    request = vm_service_pb2.GetConsoleLogRequest(vm_id=vm.id, max_bytes=6)

    first = await plane.vms.GetConsoleLog(request, timeout=DEADLINE_S)
    request.offset = first.next_offset
    rest = await plane.vms.GetConsoleLog(request, timeout=DEADLINE_S)

    assert (first.data, rest.data, rest.size_bytes) == (b"hello ", b"from t", 21)


# -- refusals beyond bad input


@pytest.mark.parametrize(
    "method", ["GetVM", "UpdateVM", "DeleteVM", "StartVM", "StopVM", "RebootVM", "PauseVM", "ResumeVM"]
)
async def test_fault_24_unknown_id_is_not_found(plane: RunningControlPlane, method: str) -> None:
    error, answer = await plane.refused(method, {"id": make_id()})
    assert (error.code, answer.status, error.reason) == (Code.NOT_FOUND, 404, Reason.VM_NOT_FOUND)


async def test_fault_24_name_taken_is_already_exists(plane: RunningControlPlane) -> None:
    await plane.post("CreateVM", sound_body())
    error, answer = await plane.refused("CreateVM", sound_body())
    assert (error.code, answer.status, error.reason) == (Code.ALREADY_EXISTS, 409, Reason.VM_NAME_TAKEN)


async def test_fault_24_wrong_state_is_a_failed_precondition_naming_it(plane: RunningControlPlane) -> None:
    vm = (await plane.post("CreateVM", sound_body())).document
    error, answer = await plane.refused("PauseVM", {"id": vm["id"]})
    assert (error.code, answer.status) == (Code.FAILED_PRECONDITION, 400)
    assert (error.metadata["state"], "STOPPED" in error.message) == ("STOPPED", True)


async def test_fault_01_unplaced_vm_is_refused_with_a_reason_per_node_and_not_stored(
    plane: RunningControlPlane,
) -> None:
    error, answer = await plane.refused("CreateVM", sound_body(spec=sound_spec(cpu={"cores": 1000})))

    assert (error.code, answer.status, error.reason) == (Code.RESOURCE_EXHAUSTED, 429, Reason.NO_NODE_FITS)
    assert error.metadata == {"node.host-a": "cpu: needs 1000 vCPUs, 14 of 14 free"}
    assert dict(answer.detail(ErrorInfo).metadata) == dict(error.metadata)
    await plane.assert_no_trace_of_vms()


async def test_fault_23_new_control_plane_has_no_nodes_and_no_vms_and_places_none(tmp_path: Path) -> None:
    async with running_control_plane(tmp_path, with_node=False) as new:
        assert (await new.post("ListNodes", {}, NODE_SERVICE)).document == {}
        assert (await new.post("ListVMs", {})).document == {}
        error, _ = await new.refused("CreateVM", sound_body())
        assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, Reason.NO_NODE_FITS)
        assert (await new.post("ListVMs", {})).document == {}


async def test_fault_02_host_that_is_gone_is_unavailable_and_the_state_stays(plane: RunningControlPlane) -> None:
    vm = (await plane.post("CreateVM", sound_body())).document
    plane.daemon.fail("*", unreachable())

    error, answer = await plane.refused("StartVM", {"id": vm["id"]})

    assert (error.code, answer.status) == (Code.UNAVAILABLE, 503)
    after = (await plane.post("GetVM", {"id": vm["id"]})).document
    assert after["status"]["state"] == "STOPPED"
    assert "cannot be reached" in after["status"]["errorMessage"]


async def test_fault_02_host_that_never_listened_is_unavailable_and_nothing_is_left(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async with running_control_plane(tmp_path_factory.mktemp("ghost"), with_node=False) as haunted:
        request = register_request("ghost", agent_endpoint="127.0.0.1:1")
        ghost = await haunted.nodes.RegisterNode(request, timeout=DEADLINE_S)

        error, answer = await haunted.refused("CreateVM", sound_body(nodeId=ghost.id))

        assert (error.code, error.reason, answer.status) == (Code.UNAVAILABLE, Reason.NODE_UNREACHABLE, 503)
        assert "ghost" in error.message
        assert (await haunted.post("ListVMs", {})).document == {}


async def test_fault_24_refusal_of_the_host_arrives_as_the_host_put_it(plane: RunningControlPlane) -> None:
    plane.daemon.fail(
        "create_vm", FailedPrecondition(Reason.HYPERVISOR_REFUSED, "no bridge virbr7", metadata={"a": "b"})
    )
    error, _ = await plane.refused("CreateVM", sound_body())
    assert (error.reason, error.message, error.metadata) == ("HYPERVISOR_REFUSED", "no bridge virbr7", {"a": "b"})


async def test_fault_24_defect_of_the_host_tells_no_inside(plane: RunningControlPlane) -> None:
    plane.daemon.fail("create_vm", ZeroDivisionError("/etc/secret"))

    error = await error_of(plane.vms.CreateVM(create_request(), timeout=DEADLINE_S))
    answer = await plane.post("CreateVM", sound_body())

    assert (error.code, answer.status, answer.code) == (Code.INTERNAL, 500, "internal")
    assert "secret" not in error.message + json.dumps(answer.document)
    assert error.metadata["correlation_id"] in error.message
    await plane.assert_no_trace_of_vms()


async def test_fault_03_parallel_creates_never_take_more_than_there_is(plane: RunningControlPlane) -> None:
    bodies = [sound_body(name=f"vm-{number}", spec=sound_spec(cpu={"cores": 2})) for number in range(12)]

    answers = await asyncio.gather(*(plane.post("CreateVM", body) for body in bodies))

    assert sorted(answer.status for answer in answers) == [200] * 7 + [429] * 5


async def test_fault_04_registered_host_has_room_and_stopped_vms_keep_theirs(plane: RunningControlPlane) -> None:
    body = sound_body(spec=sound_spec(cpu={"cores": 2, "sockets": 3, "threadsPerCore": 2}))
    await plane.post("CreateVM", body)

    resources = (await plane.post("GetNode", {"id": plane.node_id}, NODE_SERVICE)).document["status"]["resources"]

    assert resources["cpu"] == {"allocatedVcpus": 12, "allocatableVcpus": 14}
    assert (await plane.post("CreateVM", {**body, "name": "second"})).status == 429


async def test_deadline_of_the_caller_does_not_leave_half_a_vm(plane: RunningControlPlane) -> None:
    given_s = 3  # enough for either call to get as far as to the host
    gate = plane.daemon.hold("reboot_vm")
    vm = await plane.vms.CreateVM(create_request("slow", start=True), timeout=DEADLINE_S)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await plane.vms.RebootVM(vm_service_pb2.RebootVMRequest(id=vm.id), timeout=given_s)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    answer = await plane.post("RebootVM", {"id": vm.id}, **{"connect-timeout-ms": str(1000 * given_s)})
    assert (answer.status, answer.code) == (504, "deadline_exceeded")
    gate.release()

    stopped = await plane.vms.StopVM(vm_service_pb2.StopVMRequest(id=vm.id), timeout=DEADLINE_S)

    assert stopped.status.state == vm_pb2.VmStatus.STOPPED
    assert plane.daemon.methods(vm.id).count("reboot_vm") == 2


# -- plain HTTP


@pytest.mark.parametrize("path", ["/health", "/healthz"])
async def test_health_answers_as_documented(plane: RunningControlPlane, path: str) -> None:
    response = await plane.http.get(path)
    assert (response.status_code, response.json()) == (
        200,
        {"status": "healthy", "service": "limiquantix-controlplane"},
    )


async def test_live_info_and_ready_answer(plane: RunningControlPlane) -> None:
    assert (await plane.http.get("/live")).status_code == 200
    ready = await plane.http.get("/ready")
    assert (ready.status_code, ready.json()["components"]) == (200, {"database": {"status": "healthy"}})
    info = (await plane.http.get("/api/v1/info")).json()
    assert VM_SERVICE in info["services"]
    assert info["version"]


async def test_metrics_count_calls_of_both_wires_by_method_and_code(plane: RunningControlPlane) -> None:
    await plane.post("GetVM", {"id": UNKNOWN_ID})
    await error_of(plane.vms.GetVM(vm_service_pb2.GetVMRequest(id=UNKNOWN_ID), timeout=DEADLINE_S))

    text = (await plane.http.get("/metrics")).text

    assert f"{VM_SERVICE}/GetVM" in text
    assert "NOT_FOUND" in text or "not_found" in text


async def test_cors_lets_only_configured_origins_in(plane: RunningControlPlane) -> None:
    preflight = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    path = f"/{VM_SERVICE}/ListVMs"

    allowed = await plane.http.options(path, headers={"origin": ORIGIN, **preflight})
    refused = await plane.http.options(path, headers={"origin": "https://evil.example", **preflight})
    call = await plane.post("ListVMs", {"odd": 1}, origin=ORIGIN)

    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, ORIGIN)
    assert "access-control-allow-origin" not in refused.headers
    assert call.headers["access-control-allow-origin"] == ORIGIN
    assert "limiquantix-ignored-fields" in call.headers["access-control-expose-headers"].lower()


# -- gRPC's own services


async def test_grpc_health_serves_every_service(plane: RunningControlPlane) -> None:
    health = health_pb2_grpc.HealthStub(plane.channel)
    for service in ("", VM_SERVICE, NODE_SERVICE):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_grpc_reflection_lists_and_describes_the_services(plane: RunningControlPlane) -> None:
    reflection = reflection_pb2_grpc.ServerReflectionStub(plane.channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=VM_SERVICE),
    ]

    answers = [answer async for answer in reflection.ServerReflectionInfo(iter(asked), timeout=DEADLINE_S)]

    assert {VM_SERVICE, NODE_SERVICE} <= {service.name for service in answers[0].list_services_response.service}
    assert answers[1].file_descriptor_response.file_descriptor_proto


# -- starting and stopping


async def test_second_control_plane_on_a_port_in_use_says_so(
    plane: RunningControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> None:
    free = "127.0.0.1:0"
    for http, rpc in ((plane.addresses.http, free), (free, plane.addresses.grpc)):
        config = ControlPlaneConfig(http=HttpSettings(listen_address=http), grpc=GrpcSettings(listen_address=rpc))
        second = ControlPlane(config, create_store(fresh_sqlite(tmp_path_factory.mktemp("second"))))
        with pytest.raises(AddressInUse, match=r"cannot listen on 127\.0\.0\.1"):
            await second.start()
        await second.stop()
    assert (await plane.http.get("/live")).status_code == 200


async def test_control_plane_that_lets_everybody_in_does_not_listen_beyond_this_machine(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    config = ControlPlaneConfig(grpc=GrpcSettings(listen_address="0.0.0.0:0"))
    store = create_store(fresh_sqlite(tmp_path_factory.mktemp("open")))
    open_plane = ControlPlane(config, store)
    with pytest.raises(RuntimeError, match="must not listen beyond this machine"):
        await open_plane.start()


async def test_control_plane_without_its_database_is_not_ready_and_says_which_part(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async with running_control_plane(tmp_path_factory.mktemp("lost")) as alone:
        vm = (await alone.post("CreateVM", sound_body())).document
        await alone.store.close()

        ready = await alone.http.get("/ready")
        error, answer = await alone.refused("GetVM", {"id": vm["id"]})

        assert ready.status_code == 503
        assert ready.json()["components"]["database"]["status"] == "unhealthy"
        assert (error.code, error.reason, answer.status) == (Code.UNAVAILABLE, Reason.STATE_UNAVAILABLE, 503)
        assert (await alone.http.get("/health")).status_code == 200


async def test_cors_is_closed_by_default_and_a_restart_knows_everything(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("again")
    async with running_control_plane(directory) as first:
        vm = (await first.post("CreateVM", sound_body())).document
        preflight = await first.http.options(
            f"/{VM_SERVICE}/ListVMs", headers={"origin": ORIGIN, "access-control-request-method": "POST"}
        )
        assert not [name for name in preflight.headers if name.startswith("access-control")]
    config = ControlPlaneConfig(
        http=HttpSettings(listen_address="127.0.0.1:0"), grpc=GrpcSettings(listen_address="127.0.0.1:0")
    )
    again = ControlPlane(config, create_store(f"sqlite:///{directory / 'limiquantix.db'}"))
    addresses = await again.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://{addresses.http}", timeout=DEADLINE_S) as http:
            found = await http.post(f"/{VM_SERVICE}/GetVM", json={"id": vm["id"]})
        assert found.json() == vm
    finally:
        await again.stop()
        with contextlib.suppress(Exception):
            await again.stop()


async def test_error_details_can_be_read_without_a_decoder(plane: RunningControlPlane) -> None:
    answer = await plane.post("CreateVM", {"name": "", "spec": sound_spec()})
    shown = {detail["type"]: detail["debug"] for detail in answer.document["details"]}
    assert shown["google.rpc.ErrorInfo"]["reason"] == "FIELD_VIOLATIONS"
    (violation,) = shown["google.rpc.BadRequest"]["fieldViolations"]
    assert violation["field"] == "name"
