"""The control plane over its wires: gRPC and JSON answer alike, whatever is sent."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import grpc
import httpx
import pytest
import pytest_asyncio
from google.protobuf import json_format
from google.protobuf.message_factory import GetMessageClass
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane.app import ControlPlane
from controlplane.config import ControlPlaneConfig, GrpcSettings, HttpSettings
from controlplane.state.factory import create_store
from limiquantix.compute.v1 import node_service_pb2, vm_pb2, vm_service_pb2
from limiquantix.errors import Code, FailedPrecondition, InvalidArgument, Reason
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
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

ORIGIN = "https://console.example"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningControlPlane]:
    """One control plane for all tests here, with one host; each test makes VMs of its own."""
    async with running_control_plane(tmp_path_factory.mktemp("plane"), cors_origins=[ORIGIN]) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def healthy_host(plane: RunningControlPlane) -> AsyncIterator[None]:
    """Take the faults of a test back and delete its VMs."""
    yield
    plane.daemon.heal()
    vms = await plane.vms.ListVMs(vm_service_pb2.ListVMsRequest(page_size=1000), timeout=DEADLINE_S)
    for vm in vms.vms:
        await plane.vms.DeleteVM(vm_service_pb2.DeleteVMRequest(id=vm.id, force=True), timeout=DEADLINE_S)


def sound_body(**changes: Any) -> dict[str, Any]:
    return {"name": "t", "spec": {"cpu": {"cores": 1}, "memory": {"sizeMib": 128}}, **changes}


def sound_spec(**changes: Any) -> dict[str, Any]:
    return {"cpu": {"cores": 1}, "memory": {"sizeMib": 128}, **changes}


async def no_trace_of_vms(plane: RunningControlPlane) -> None:
    assert (await plane.post("ListVMs", {})).document == {}
    node = (await plane.post("GetNode", {"id": plane.node_id}, NODE_SERVICE)).document
    assert "allocatedVcpus" not in node["status"]["resources"]["cpu"]
    assert plane.daemon.vms == {}


# -- what bad input gets


@dataclass(frozen=True)
class Case:
    """A faulty request, written as JSON, and the fields it must be refused for."""

    name: str
    body: dict[str, Any]
    fields: list[str]
    method: str = "CreateVM"
    service: str = VM_SERVICE


def _named(name: str, text: str) -> Case:
    return Case(name, sound_body(name=text), ["name"])


def _spec(name: str, fields: list[str], **changes: Any) -> Case:
    return Case(name, sound_body(spec=sound_spec(**changes)), [f"spec.{path}" for path in fields])


def _disk(name: str, path: str, **disk: Any) -> Case:
    return _spec(name, [f"disks[0]{path}"], disks=[{"sizeGib": 1, **disk}])


ID = "0b0f5d3e-6d0b-4f0e-9c55-3f1b5f3a7c11"

CASES = [
    Case("nothing", {}, ["name", "spec"]),
    Case("no name", {"spec": sound_spec()}, ["name"]),
    _named("long name", "x" * 256),
    _named("control character", "a\x07b"),
    _named("newline", "a\nb"),
    _named("nul", "a\x00b"),
    *[_named(f"XML {character!r}", f"a{character}b") for character in "'><&\""],
    _named("path", "../../etc/passwd"),
    _named("right-to-left override", "a\u202eb"),
    _named("blank", " "),
    Case("empty spec", {"name": "t", "spec": {}}, ["spec.cpu", "spec.memory"]),
    _spec("zero cores", ["cpu.cores"], cpu={"cores": 0}),
    _spec("absurd cores", ["cpu.cores"], cpu={"cores": 2**32 - 1}),
    _spec("absurd topology", ["cpu"], cpu={"cores": 1024, "sockets": 64, "threadsPerCore": 8}),
    _spec("zero memory", ["memory.size_mib"], memory={"sizeMib": 0}),
    _spec("absurd memory", ["memory.size_mib"], memory={"sizeMib": 2**64 - 1}),
    _spec("unknown firmware number", ["firmware"], firmware=99),
    _disk("unknown bus number", ".bus", bus=99),
    _disk("unknown format number", ".format", format=7),
    _disk("disk without size", "", sizeGib=0),
    _disk("absurd disk", ".size_gib", sizeGib=65537),
    _disk("disk path that climbs", ".backing_file", backingFile="../../etc/shadow"),
    _disk("disk path with newline", ".backing_file", backingFile="a\nb"),
    _spec("ISO path that climbs", ["cdroms[1].iso_path"], cdroms=[{}, {"isoPath": "isos/../../x.iso"}]),
    _spec("bad device id", ["nics[0].id"], nics=[{"id": "eth0"}]),
    _spec("bad MAC", ["nics[0].mac_address"], nics=[{"macAddress": "52:54:00"}]),
    _spec("bridge that is none", ["nics[0].bridge"], nics=[{"bridge": "br0'/><x"}]),
    _spec("same device id twice", ["nics[0].id"], disks=[{"id": ID, "sizeGib": 1}], nics=[{"id": ID.upper()}]),
    _spec("console for the world", ["display.listen_address"], display={"listenAddress": "192.0.2.1"}),
    _spec("bad affinity", ["placement.affinity_vms[0]"], placement={"affinityVms": ["t"]}),
    Case("bad project", sound_body(projectId="default"), ["project_id"]),
    Case("bad node", sound_body(nodeId="host-a"), ["node_id"]),
    Case("template", sound_body(templateId=ID), ["template_id"]),
    Case("bad label key", sound_body(labels={"a b": "1"}), ['labels["a b"]']),
    Case(
        "everything at once",
        {
            "name": "<",
            "nodeId": "x",
            "spec": {
                "cpu": {"cores": 0},
                "memory": {"sizeMib": 1},
                "disks": [{"sizeGib": 1}, {"bus": 9}],
                "tpm": {"enabled": True},
            },
        },
        ["name", "spec.cpu.cores", "spec.memory.size_mib", "spec.disks[1]", "spec.disks[1].bus", "node_id", "spec.tpm"],
    ),
    *[
        Case(f"{method} bad id", {"id": bad}, ["id"], method)
        for method in ("GetVM", "UpdateVM", "DeleteVM", "StartVM", "StopVM", "RebootVM", "PauseVM", "ResumeVM")
        for bad in ("", "1", "'; DROP TABLE vms; --")
    ],
    Case("GetConsole bad id", {"vmId": "x"}, ["vm_id"], "GetConsole"),
    Case("GetConsoleLog bad id", {"vmId": "x"}, ["vm_id"], "GetConsoleLog"),
    Case("negative stop time", {"id": ID, "timeoutSec": -1}, ["timeout_sec"], "StopVM"),
    Case("absurd stop time", {"id": ID, "timeoutSec": 3601}, ["timeout_sec"], "StopVM"),
    Case("negative page size", {"pageSize": -1}, ["page_size"], "ListVMs"),
    Case("unknown state number", {"states": [1, 99]}, ["states[1]"], "ListVMs"),
    Case("order that is none", {"orderBy": "name; --"}, ["order_by"], "ListVMs"),
    Case("page token that is none", {"pageToken": "AAAA"}, ["page_token"], "ListVMs"),
    Case("negative page size of nodes", {"pageSize": -1}, ["page_size"], "ListNodes", NODE_SERVICE),
    Case("bad node id", {"id": "x"}, ["id"], "GetNode", NODE_SERVICE),
    Case("empty registration", {}, ["", "hostname", "cpu_info", "memory_info"], "RegisterNode", NODE_SERVICE),
    Case(
        "registration of nonsense",
        {"hostname": "a b", "managementIp": "300.1.1.1", "agentEndpoint": "x", "cpuInfo": {}, "memoryInfo": {}},
        ["hostname", "management_ip", "agent_endpoint"],
        "RegisterNode",
        NODE_SERVICE,
    ),
    Case(
        "heartbeat of nonsense",
        {"nodeId": "x", "cpuUsagePercent": 101, "load1m": "NaN"},
        ["node_id", "cpu_usage_percent", "load_1m"],
        "UpdateHeartbeat",
        NODE_SERVICE,
    ),
]


def _request(case: Case) -> tuple[Any, Any]:
    """Build the protobuf request of a case, and give the method's name on the stub."""
    module = vm_service_pb2 if case.service == VM_SERVICE else node_service_pb2
    service = module.DESCRIPTOR.services_by_name[case.service.rpartition(".")[2]]
    message = GetMessageClass(service.methods_by_name[case.method].input_type)()
    return json_format.ParseDict(case.body, message), case.method


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_faulty_request_names_every_field_on_both_wires(plane: RunningControlPlane, case: Case) -> None:
    request, method = _request(case)
    stub = plane.vms if case.service == VM_SERVICE else plane.nodes

    error = await error_of(getattr(stub, method)(request, timeout=DEADLINE_S))
    answer = await plane.post(case.method, case.body, case.service)

    assert isinstance(error, InvalidArgument)
    assert sorted({violation.field for violation in error.violations}) == sorted(case.fields)
    assert (answer.status, answer.code) == (400, "invalid_argument")
    assert sorted(set(answer.faulty_fields)) == sorted(case.fields)
    assert answer.document["message"] == error.message
    assert answer.detail(ErrorInfo).reason == error.reason
    assert "Traceback" not in json.dumps(answer.document)


async def test_refused_requests_leave_nothing(plane: RunningControlPlane) -> None:
    await no_trace_of_vms(plane)


@pytest.mark.parametrize(
    ("body", "field", "listed"),
    [
        (sound_body(spec=sound_spec(firmware="EFI")), "spec.firmware", "UEFI_SECURE_BOOT"),
        (sound_body(spec=sound_spec(disks=[{"sizeGib": 1, "bus": "virtio"}])), "spec.disks[0].bus", "VIRTIO_SCSI"),
        (sound_body(spec=sound_spec(nics=[{"model": "RTL8139"}])), "spec.nics[0].model", "E1000E"),
        (sound_body(spec=sound_spec(nics=[{"model": "x" * 5000}])), "spec.nics[0].model", "VMXNET3"),
    ],
)
async def test_fault_22_unknown_enum_name_is_refused_with_the_valid_ones(
    plane: RunningControlPlane, body: dict[str, Any], field: str, listed: str
) -> None:
    answer = await plane.post("CreateVM", {**body, "name": "'"})

    assert (answer.status, answer.code) == (400, "invalid_argument")
    assert sorted(answer.faulty_fields) == sorted(["name", field])
    assert listed in answer.document["message"]


async def test_fault_22_unknown_enum_name_in_a_list_is_refused(plane: RunningControlPlane) -> None:
    answer = await plane.post("ListVMs", {"states": ["RUNNING", "SLEEPING"]})
    assert answer.faulty_fields == ["states[1]"]


MALFORMED: dict[str, bytes | str] = {
    "not JSON": "{",
    "not UTF-8": b'{"name":"\xff"}',
    "a list": "[]",
    "a number": "7",
    "null": "null",
    "two documents": "{}{}",
    "NaN": '{"name":"t","spec":{"cpu":{"cores":NaN}}}',
    "deep list": "[" * 100_000,
    "deep object": '{"spec":' * 50_000,
    "deep unknown field": '{"x":' * 900 + "1" + "}" * 900,
    "deep known field": '{"spec":' + '{"cpu":' * 500 + "1" + "}" * 501,
    "same field twice": '{"nodeId":"","node_id":""}',
    "huge number": '{"name":"t","spec":{"cpu":{"cores":' + "9" * 10_000 + "}}}",
    "huge exponent": '{"name":"t","spec":{"cpu":{"cores":1e400}}}',
    "lone surrogate": '{"name":"\\ud800"}',
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed_body_is_refused(plane: RunningControlPlane, name: str) -> None:
    answer = await plane.post("CreateVM", MALFORMED[name])

    assert (answer.status, answer.code) == (400, "invalid_argument")
    assert "Traceback" not in json.dumps(answer.document)


WRONG_TYPES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "text for a number": (sound_body(spec=sound_spec(cpu={"cores": "many"})), ["spec.cpu.cores"]),
    "fraction": (sound_body(spec=sound_spec(cpu={"cores": 1.5})), ["spec.cpu.cores"]),
    "negative": (sound_body(spec=sound_spec(cpu={"cores": -1})), ["spec.cpu.cores"]),
    "beyond the type": (sound_body(spec=sound_spec(memory={"sizeMib": 2**64})), ["spec.memory.size_mib"]),
    "true for a number": (sound_body(spec=sound_spec(cpu={"cores": True})), ["spec.cpu.cores"]),
    "number for text": (sound_body(name=7), ["name"]),
    "list for text": (sound_body(name=["t"]), ["name"]),
    "object for text": (sound_body(name={"t": 1}), ["name"]),
    "text for an object": (sound_body(spec="small"), ["spec"]),
    "list for an object": (sound_body(spec=[]), ["spec"]),
    "object for a list": (sound_body(spec=sound_spec(disks={})), ["spec.disks"]),
    "text in a list of objects": (sound_body(spec=sound_spec(disks=["x"])), ["spec.disks[0]"]),
    "null in a list": (sound_body(spec=sound_spec(disks=[None])), ["spec.disks[0]"]),
    "list for a map": (sound_body(labels=[]), ["labels"]),
    "number in a map": (sound_body(labels={"a": 1}), ['labels["a"]']),
    "null in a map": (sound_body(labels={"a": None}), ['labels["a"]']),
    "text for true": (sound_body(startOnCreate="yes"), ["start_on_create"]),
    "list for an enum": (sound_body(spec=sound_spec(firmware=[])), ["spec.firmware"]),
    "true for an enum": (sound_body(spec=sound_spec(firmware=True)), ["spec.firmware"]),
    "several": (
        sound_body(name=7, nodeId="x", spec={"cpu": 1, "memory": {"sizeMib": 0}}),
        [
            "name",
            "node_id",
            "spec.cpu",
            "spec.memory.size_mib",
        ],
    ),
}


@pytest.mark.parametrize("name", WRONG_TYPES)
async def test_value_of_the_wrong_type_is_named_with_all_other_faults(plane: RunningControlPlane, name: str) -> None:
    body, fields = WRONG_TYPES[name]

    answer = await plane.post("CreateVM", body)

    assert (answer.status, answer.code) == (400, "invalid_argument")
    assert sorted(set(answer.faulty_fields)) == sorted(fields)


async def test_field_mask_is_understood_in_both_spellings(plane: RunningControlPlane) -> None:
    vm = (await plane.post("CreateVM", sound_body())).document
    for path, memory_mib in (("spec.memory.sizeMib", 256), ("spec.memory.size_mib", 512)):
        body = {"id": vm["id"], "updateMask": path, "spec": {"memory": {"sizeMib": memory_mib}}}
        answer = await plane.post("UpdateVM", body)
        assert answer.document["spec"]["memory"]["sizeMib"] == str(memory_mib)


async def test_masked_update_need_not_send_a_sound_spec(plane: RunningControlPlane) -> None:
    vm = (await plane.post("CreateVM", sound_body())).document
    body = {"id": vm["id"], "updateMask": "spec.cpu.sockets", "spec": {"cpu": {"sockets": 2}}}

    answer = await plane.post("UpdateVM", body)

    assert answer.status == 200, answer.document
    assert answer.document["spec"]["cpu"] == {"cores": 1, "sockets": 2}


async def test_field_mask_that_is_no_text_is_refused(plane: RunningControlPlane) -> None:
    for bad in (7, ["labels"], {"paths": ["labels"]}):
        answer = await plane.post("UpdateVM", {"id": ID, "updateMask": bad})
        assert (answer.status, answer.faulty_fields) == (400, ["update_mask"])


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/xml", "application/grpc", "application/grpc+proto", "multipart/form-data"],
)
async def test_wrong_content_type_is_refused(plane: RunningControlPlane, content_type: str) -> None:
    response = await plane.http.post(
        f"/{VM_SERVICE}/CreateVM", content=json.dumps(sound_body()), headers={"content-type": content_type}
    )

    assert response.status_code == 415
    assert "Traceback" not in response.text


async def test_body_above_the_limit_is_refused(plane: RunningControlPlane) -> None:
    answer = await plane.post("CreateVM", '{"name":"' + "x" * (17 * 2**20) + '"}')

    assert (answer.status, answer.code) == (429, "resource_exhausted")


async def test_large_body_below_the_limit_is_judged_as_any_other(plane: RunningControlPlane) -> None:
    answer = await plane.post("CreateVM", sound_body(name="x" * (8 * 2**20)))

    assert (answer.status, answer.faulty_fields) == (400, ["name"])
    assert len(answer.document["message"]) < 10_000


async def test_thousands_of_faults_are_told_within_what_a_client_can_receive(plane: RunningControlPlane) -> None:
    request = node_service_pb2.SyncFullStateRequest(
        node_id="x", vms=[node_service_pb2.VMStatusReport(id="not an id") for _ in range(3000)]
    )

    error = await error_of(plane.nodes.SyncFullState(request, timeout=DEADLINE_S))

    assert isinstance(error, InvalidArgument)
    assert error.violations[0].field == "node_id"


@pytest.mark.parametrize("path", ["GetVM", "Nothing", "", "GetVM/", "../VMService/GetVM"])
@pytest.mark.parametrize("http_method", ["GET", "PUT", "DELETE"])
async def test_wrong_http_method_is_refused(plane: RunningControlPlane, http_method: str, path: str) -> None:
    response = await plane.http.request(http_method, f"/{VM_SERVICE}/{path}")
    assert response.status_code in {404, 405, 415}


@pytest.mark.parametrize("path", ["/limiquantix.compute.v1.VMService/Nothing", "/x.Y/Z", "/nothing"])
async def test_unknown_method_is_not_found(plane: RunningControlPlane, path: str) -> None:
    response = await plane.http.post(path, content="{}", headers={"content-type": "application/json"})
    assert response.status_code == 404


async def test_garbage_instead_of_a_protobuf_message_is_the_callers_fault(plane: RunningControlPlane) -> None:
    call: Any = plane.channel.unary_unary(f"/{VM_SERVICE}/GetVM")
    not_utf8 = b"\x0a\x02\xff\xfe"
    for garbage in (b"\xff\xff\xff", not_utf8):
        error = await error_of(call(garbage, timeout=DEADLINE_S))
        assert error.code == Code.INVALID_ARGUMENT
        assert error.reason == Reason.MALFORMED_REQUEST

        response = await plane.http.post(
            f"/{VM_SERVICE}/GetVM", content=garbage, headers={"content-type": "application/proto"}
        )
        assert (response.status_code, response.json()["code"]) == (400, "invalid_argument")


IGNORED = "limiquantix-ignored-fields"


async def test_unknown_fields_are_ignored_and_named_in_a_header(plane: RunningControlPlane) -> None:
    body = sound_body(colour="red", spec=sound_spec(disks=[{"sizeGib": 1, "raid": {"level": 5}}]))

    answer = await plane.post("CreateVM", body)

    assert answer.status == 200
    assert set(answer.headers[IGNORED].split(",")) == {"colour", "spec.disks[0].raid"}


async def test_unknown_fields_of_a_refused_request_are_named_too(plane: RunningControlPlane) -> None:
    answer = await plane.post("CreateVM", {"nmae": "t"})

    assert answer.status == 400
    assert answer.headers[IGNORED] == "nmae"


async def test_request_without_unknown_fields_has_no_such_header(plane: RunningControlPlane) -> None:
    await plane.post("ListVMs", {"odd": 1})
    assert IGNORED not in (await plane.post("ListVMs", {})).headers


@pytest.mark.parametrize("key", ["a\r\nset-cookie: x=1", "é\u2028", "a,b", "x" * 100_000, "\x00", ""])
async def test_hostile_name_of_an_unknown_field_breaks_no_header(plane: RunningControlPlane, key: str) -> None:
    answer = await plane.post("ListVMs", {key: 1})

    assert answer.status == 200
    assert "set-cookie" not in answer.headers
    assert answer.headers[IGNORED].isprintable()
    assert unquote(answer.headers[IGNORED]) == key[:200]
    assert len(answer.headers[IGNORED]) < 8_000


async def test_thousands_of_unknown_fields_are_named_in_part(plane: RunningControlPlane) -> None:
    answer = await plane.post("ListVMs", {f"field{number}": 1 for number in range(5000)})

    assert answer.status == 200
    assert 0 < len(answer.headers[IGNORED]) < 8_000


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.sampled_from([ID, "VIRTIO", "QCOW2", "UEFI", "1", "-1", "../x", "'><&\""]),
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
SPEC_FIELDS = [name for field in vm_pb2.VmSpec.DESCRIPTOR.fields for name in (field.name, field.camelcase_name)]
DEVICE_FIELDS = [
    *("id", "sizeGib", "bus", "format", "backingFile", "isoPath", "macAddress", "model", "bridge", "cores", "sockets"),
    *("size_mib", "type", "cache", "enabled", "ioLimits", "bootIndex", "affinityVms", "kernelPath", "threadsPerCore"),
]
OBJECTS = st.dictionaries(st.sampled_from(DEVICE_FIELDS), VALUES, max_size=4)
SPECS = st.dictionaries(
    st.sampled_from(SPEC_FIELDS), st.one_of(OBJECTS, st.lists(OBJECTS, max_size=2), VALUES), max_size=5
)
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "name": st.one_of(st.text(max_size=8), VALUES),
        "spec": st.one_of(SPECS, SPECS.map(lambda spec: sound_spec(**spec)), VALUES),
        "labels": st.one_of(st.dictionaries(st.text(max_size=5), VALUES, max_size=3), VALUES),
        "projectId": VALUES,
        "nodeId": VALUES,
        "startOnCreate": VALUES,
        "extra": VALUES,
    },
)
EXPECTED_STATUSES = {200, 400, 404, 409, 429, 412, 503}


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=BODIES)
async def test_any_json_gets_an_answer_that_is_no_defect(plane: RunningControlPlane, body: dict[str, Any]) -> None:
    answer = await plane.post("CreateVM", body)

    assert answer.status in EXPECTED_STATUSES, (answer.status, answer.document)
    assert answer.code not in {"internal", "unknown"}
    if answer.status == 200:
        await plane.vms.DeleteVM(vm_service_pb2.DeleteVMRequest(id=answer.document["id"], force=True), timeout=5)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    body=st.fixed_dictionaries(
        {},
        optional={
            "pageSize": VALUES,
            "pageToken": st.one_of(st.text(), st.binary().map(bytes.hex), VALUES),
            "labels": VALUES,
            "states": VALUES,
            "projectId": VALUES,
            "nodeId": VALUES,
            "orderBy": VALUES,
        },
    )
)
async def test_any_list_query_gets_an_answer_that_is_no_defect(
    plane: RunningControlPlane, body: dict[str, Any]
) -> None:
    assert (await plane.post("ListVMs", body)).status in {200, 400}


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=200))
async def test_any_bytes_get_an_answer_that_is_no_defect(plane: RunningControlPlane, data: bytes) -> None:
    assert (await plane.post("CreateVM", data)).status in EXPECTED_STATUSES
    response = await plane.http.post(
        f"/{VM_SERVICE}/CreateVM", content=data, headers={"content-type": "application/proto"}
    )
    assert response.status_code in EXPECTED_STATUSES


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
    await no_trace_of_vms(plane)


async def test_ids_in_capitals_are_the_same_ids(plane: RunningControlPlane) -> None:
    project = make_id()
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


async def test_console_log_is_read_in_pieces(plane: RunningControlPlane) -> None:
    vm = await plane.vms.CreateVM(create_request("logs"), timeout=DEADLINE_S)
    request = vm_service_pb2.GetConsoleLogRequest(vm_id=vm.id, max_bytes=6)

    first = await plane.vms.GetConsoleLog(request, timeout=DEADLINE_S)
    request.offset = first.next_offset
    rest = await plane.vms.GetConsoleLog(request, timeout=DEADLINE_S)

    assert (first.data, rest.data, rest.size_bytes) == (b"hello ", b"from t", 21)


# -- refusals beyond bad input


async def refusals(plane: RunningControlPlane, method: str, body: dict[str, Any], service: str = VM_SERVICE):  # type: ignore[no-untyped-def]
    """Make the same call on both wires; gives the error and the JSON answer, which must agree."""
    request, _ = _request(Case("", body, [], method, service))
    stub = plane.vms if service == VM_SERVICE else plane.nodes
    error = await error_of(getattr(stub, method)(request, timeout=DEADLINE_S))
    answer = await plane.post(method, body, service)
    assert answer.code.upper() == error.code.name
    assert answer.detail(ErrorInfo).reason == error.reason
    return error, answer


@pytest.mark.parametrize(
    "method", ["GetVM", "UpdateVM", "DeleteVM", "StartVM", "StopVM", "RebootVM", "PauseVM", "ResumeVM"]
)
async def test_fault_24_unknown_id_is_not_found(plane: RunningControlPlane, method: str) -> None:
    error, answer = await refusals(plane, method, {"id": make_id()})
    assert (error.code, answer.status, error.reason) == (Code.NOT_FOUND, 404, Reason.VM_NOT_FOUND)


async def test_fault_24_name_taken_is_already_exists(plane: RunningControlPlane) -> None:
    await plane.post("CreateVM", sound_body())
    error, answer = await refusals(plane, "CreateVM", sound_body())
    assert (error.code, answer.status, error.reason) == (Code.ALREADY_EXISTS, 409, Reason.VM_NAME_TAKEN)


async def test_fault_24_wrong_state_is_a_failed_precondition_naming_it(plane: RunningControlPlane) -> None:
    vm = (await plane.post("CreateVM", sound_body())).document
    error, answer = await refusals(plane, "PauseVM", {"id": vm["id"]})
    assert (error.code, answer.status) == (Code.FAILED_PRECONDITION, 400)
    assert (error.metadata["state"], "STOPPED" in error.message) == ("STOPPED", True)


async def test_fault_01_unplaced_vm_is_refused_with_a_reason_per_node_and_not_stored(
    plane: RunningControlPlane,
) -> None:
    error, answer = await refusals(plane, "CreateVM", sound_body(spec=sound_spec(cpu={"cores": 1000})))

    assert (error.code, answer.status, error.reason) == (Code.RESOURCE_EXHAUSTED, 429, Reason.NO_NODE_FITS)
    assert error.metadata == {"node.host-a": "cpu: needs 1000 vCPUs, 14 of 14 free"}
    assert dict(answer.detail(ErrorInfo).metadata) == dict(error.metadata)
    await no_trace_of_vms(plane)


async def test_fault_02_host_that_is_gone_is_unavailable_and_the_state_stays(plane: RunningControlPlane) -> None:
    vm = (await plane.post("CreateVM", sound_body())).document
    plane.daemon.fail("*", unreachable())

    error, answer = await refusals(plane, "StartVM", {"id": vm["id"]})

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

        error, answer = await refusals(haunted, "CreateVM", sound_body(nodeId=ghost.id))

        assert (error.code, error.reason, answer.status) == (Code.UNAVAILABLE, Reason.NODE_UNREACHABLE, 503)
        assert "ghost" in error.message
        assert (await haunted.post("ListVMs", {})).document == {}


async def test_fault_24_refusal_of_the_host_arrives_as_the_host_put_it(plane: RunningControlPlane) -> None:
    plane.daemon.fail(
        "create_vm", FailedPrecondition(Reason.HYPERVISOR_REFUSED, "no bridge virbr7", metadata={"a": "b"})
    )
    error, _ = await refusals(plane, "CreateVM", sound_body())
    assert (error.reason, error.message, error.metadata) == ("HYPERVISOR_REFUSED", "no bridge virbr7", {"a": "b"})


async def test_fault_24_defect_of_the_host_tells_no_inside(plane: RunningControlPlane) -> None:
    plane.daemon.fail("create_vm", ZeroDivisionError("/etc/secret"))
    error, answer = await refusals(plane, "CreateVM", sound_body())
    assert error.code == Code.INTERNAL
    assert "secret" not in error.message + json.dumps(answer.document)
    await no_trace_of_vms(plane)


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
    gate = plane.daemon.hold("reboot_vm")
    vm = await plane.vms.CreateVM(create_request("slow", start=True), timeout=DEADLINE_S)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await plane.vms.RebootVM(vm_service_pb2.RebootVMRequest(id=vm.id), timeout=0.2)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    answer = await plane.post("RebootVM", {"id": vm.id}, **{"connect-timeout-ms": "200"})
    assert (answer.status, answer.code) == (504, "deadline_exceeded")
    gate.release()

    stopped = await plane.vms.StopVM(vm_service_pb2.StopVMRequest(id=vm.id, force=True), timeout=DEADLINE_S)

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
    await plane.post("GetVM", {"id": ID})
    await error_of(plane.vms.GetVM(vm_service_pb2.GetVMRequest(id=ID), timeout=DEADLINE_S))

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
    assert IGNORED in call.headers["access-control-expose-headers"].lower()


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


async def test_control_plane_without_its_database_is_not_ready_and_says_which_part(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async with running_control_plane(tmp_path_factory.mktemp("lost")) as alone:
        vm = (await alone.post("CreateVM", sound_body())).document
        await alone.store.close()

        ready = await alone.http.get("/ready")
        error, answer = await refusals(alone, "GetVM", {"id": vm["id"]})

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
