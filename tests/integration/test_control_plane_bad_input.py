"""What bad input gets: on gRPC and JSON alike every fault by its path, and never a defect of ours."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limiquantix.compute.v1 import node_service_pb2, vm_pb2, vm_service_pb2
from limiquantix.errors import Code, InvalidArgument, Reason
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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningControlPlane]:
    """One control plane for all tests here, with one host; each test makes VMs of its own."""
    async with running_control_plane(tmp_path_factory.mktemp("plane")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def healthy_host(plane: RunningControlPlane) -> AsyncIterator[None]:
    """Take the faults of a test back and delete its VMs."""
    yield
    await plane.clear()


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
    _spec("UEFI in too little memory", ["memory.size_mib"], memory={"sizeMib": 128}, firmware="UEFI"),
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
    Case("bad template", sound_body(templateId="golden"), ["template_id"]),
    _spec("forged origin", ["template.source_vm_id"], template={"sourceVmId": ID}),
    _spec("host name of two", ["provisioning.cloud_init.hostname"], provisioning={"cloudInit": {"hostname": "a\nb"}}),
    _named("look-alike letters", "w\u0435b-1"),
    _named("full-width path", "\uff0e\uff0e\uff0fetc"),
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
                "display": {"port": 5900},
            },
        },
        [
            *("name", "spec.cpu.cores", "spec.memory.size_mib", "spec.disks[1]", "spec.disks[1].bus", "node_id"),
            "spec.display.port",
        ],
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


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_faulty_request_names_every_field_on_both_wires(plane: RunningControlPlane, case: Case) -> None:
    error, answer = await plane.refused(case.method, case.body, case.service)

    assert isinstance(error, InvalidArgument)
    assert answer.status == 400
    assert sorted(set(answer.faulty_fields)) == sorted(case.fields)


async def test_refused_requests_leave_nothing(plane: RunningControlPlane) -> None:
    await plane.assert_no_trace_of_vms()


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


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "", "text/plain"])
async def test_body_of_another_type_is_answered_with_the_header_to_send(
    plane: RunningControlPlane, content_type: str
) -> None:
    response = await plane.http.post(
        f"/{VM_SERVICE}/ListVMs", content="{}", headers={"content-type": content_type} if content_type else {}
    )

    assert (response.status_code, response.json()["code"]) == (415, "invalid_argument")
    assert "'Content-Type: application/json'" in response.json()["message"]


async def test_body_above_the_limit_is_refused(plane: RunningControlPlane) -> None:
    answer = await plane.post("CreateVM", '{"name":"' + "x" * (17 * 2**20) + '"}')

    assert (answer.status, answer.code) == (413, "resource_exhausted")


async def test_large_body_below_the_limit_is_judged_as_any_other(plane: RunningControlPlane) -> None:
    answer = await plane.post("CreateVM", sound_body(name="x" * (3 * 2**20)))

    assert (answer.status, answer.faulty_fields) == (400, ["name"])
    assert len(answer.document["message"]) < 10_000


async def test_thousands_of_faults_are_told_within_what_a_client_can_receive(plane: RunningControlPlane) -> None:
    request = node_service_pb2.SyncFullStateRequest(
        node_id="x", vms=[node_service_pb2.VMStatusReport(id="not an id") for _ in range(3000)]
    )

    error = await error_of(plane.nodes.SyncFullState(request, timeout=DEADLINE_S))

    assert isinstance(error, InvalidArgument)
    assert error.violations[0].field == "node_id"


async def test_list_that_is_too_long_is_refused_as_a_whole_on_both_wires(plane: RunningControlPlane) -> None:
    request = vm_service_pb2.CreateVMRequest(name="x", labels={str(n): "" for n in range(65)})
    request.spec.disks.extend(vm_pb2.DiskDevice() for _ in range(100_000))

    error = await error_of(plane.vms.CreateVM(request, timeout=DEADLINE_S))
    disks = [{"bus": "FLOPPY"}] * 100_000
    answer = await plane.post("CreateVM", {"name": "x", "labels": dict(request.labels), "spec": {"disks": disks}})

    assert [violation.field for violation in error.violations] == ["labels", "spec.disks"]
    assert (answer.status, answer.faulty_fields[:2]) == (400, ["labels", "spec.disks"])
    assert not any(field.startswith("spec.disks[") for field in answer.faulty_fields)


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


@pytest.mark.parametrize("key", ["a\r\nset-cookie: x=1", "é\u2028", "a,b", "x" * 100_000, "\x00", "", " a "])
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


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=BODIES)
async def test_any_json_gets_an_answer_that_is_no_defect(plane: RunningControlPlane, body: dict[str, Any]) -> None:
    answer = await plane.post("CreateVM", body)

    assert answer.status in EXPECTED_STATUSES, (answer.status, answer.document)
    assert answer.code not in {"internal", "unknown"}
    if answer.status == 200:
        await plane.vms.DeleteVM(
            vm_service_pb2.DeleteVMRequest(id=answer.document["id"], force=True), timeout=DEADLINE_S
        )


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
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


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=200))
async def test_any_bytes_get_an_answer_that_is_no_defect(plane: RunningControlPlane, data: bytes) -> None:
    assert (await plane.post("CreateVM", data)).status in EXPECTED_STATUSES
    response = await plane.http.post(
        f"/{VM_SERVICE}/CreateVM", content=data, headers={"content-type": "application/proto"}
    )
    assert response.status_code in EXPECTED_STATUSES
