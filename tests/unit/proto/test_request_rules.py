"""The rules in the contract: every field of a request has a bound, ids and names are checked, documented calls pass."""

from __future__ import annotations

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from limiquantix.compute.v1.node_pb2 import CpuInfo, MemoryInfo
from limiquantix.compute.v1.node_service_pb2 import ListNodesRequest, RegisterNodeRequest, UpdateHeartbeatRequest
from limiquantix.compute.v1.vm_pb2 import CpuConfig, DiskDevice, MemoryConfig, NetworkInterface, VmSpec
from limiquantix.compute.v1.vm_service_pb2 import CreateVMRequest, ListVMsRequest, StopVMRequest, UpdateVMRequest
from limiquantix.node.v1 import node_daemon_pb2 as node
from limiquantix.rpc.validation import violations_of
from tests.unit.proto.descriptors import is_map, is_repeated, map_value, request_fields, request_types, rules_of

VM_ID = "0b0f5d3e-6d0b-4f0e-9c55-3f1b5f3a7c11"

FIELDS = {field.full_name: field for field in request_fields()}
REQUESTS = {message.full_name: message for message in request_types()}

ID_FIELDS_OF_ANOTHER_KIND = {
    "limiquantix.compute.v1.HostDevice.vendor_id": "number of the PCI or USB consortium",
    "limiquantix.compute.v1.HostDevice.product_id": "number of the vendor",
    "limiquantix.compute.v1.UsbDevice.vendor_id": "number of the USB consortium",
    "limiquantix.compute.v1.UsbDevice.product_id": "number of the vendor",
    "limiquantix.compute.v1.UpdateHeartbeatRequest.boot_id": "chosen by the host's kernel, or by whoever simulates it",
    "limiquantix.compute.v1.AnnounceShutdownRequest.boot_id": "chosen by the host's kernel, or by whoever simulates it",
    "limiquantix.node.v1.CephPoolConfig.cluster_id": "named by the cluster",
    "limiquantix.node.v1.CreateVolumeRequest.source_id": "of an image too, which has a catalogue name",
    "limiquantix.node.v1.DownloadImageOnNodeRequest.image_id": "a catalogue name",
    "limiquantix.node.v1.DownloadImageOnNodeRequest.job_id": "chosen by the caller",
    "limiquantix.node.v1.GetDownloadStatusRequest.job_id": "chosen by the caller",
    "limiquantix.node.v1.CancelDownloadRequest.job_id": "chosen by the caller",
}

REQUESTS_WITH_A_VM_NAME = [
    "limiquantix.compute.v1.CreateVMRequest",
    "limiquantix.compute.v1.CloneVMRequest",
    "limiquantix.node.v1.CreateVMOnNodeRequest",
    "limiquantix.node.v1.ReconfigureVMRequest",
]

UNSAFE_NAMES = [
    *("", "x" * 256, "a\nb", "a\n", "a\0", "\x7f", "\u2028", "\u202e"),
    *("'", '"', "<", ">", "a&b", "a/b", "..\\x", " a", "a "),
]


def is_id(field: FieldDescriptor) -> bool:
    return field.type == field.TYPE_STRING and (field.name == "id" or field.name.endswith("_id"))


def build(message: Descriptor | None, **values: object) -> Message:
    assert message is not None
    return GetMessageClass(message)(**values)


def violated_fields(request: Message) -> set[str]:
    return {violation.field for violation in violations_of(request)}


def create_request(**changes: object) -> CreateVMRequest:
    """A sound request, with some fields replaced."""
    request = CreateVMRequest(
        name="t", spec=VmSpec(cpu=CpuConfig(cores=1), memory=MemoryConfig(size_mib=128)), project_id=VM_ID
    )
    request.MergeFrom(CreateVMRequest(**changes))  # type: ignore[arg-type]
    return request


def has_string_bound(rules: Message) -> bool:
    string = rules.string  # type: ignore[attr-defined]
    return bool(string.max_len or string.max_bytes or string.len or string.uuid)


@pytest.mark.parametrize("name", [n for n, f in FIELDS.items() if f.type == f.TYPE_STRING])
def test_string_field_of_a_request_has_a_bound(name: str) -> None:
    field, rules = FIELDS[name], rules_of(FIELDS[name])

    assert has_string_bound(rules.repeated.items if is_repeated(field) else rules)


@pytest.mark.parametrize("name", [n for n, f in FIELDS.items() if f.type == f.TYPE_BYTES])
def test_bytes_field_of_a_request_has_a_bound(name: str) -> None:
    assert rules_of(FIELDS[name]).bytes.max_len > 0


@pytest.mark.parametrize("name", [n for n, f in FIELDS.items() if is_repeated(f)])
def test_list_field_of_a_request_has_a_bound(name: str) -> None:
    assert rules_of(FIELDS[name]).repeated.max_items > 0


@pytest.mark.parametrize("name", [n for n, f in FIELDS.items() if is_map(f)])
def test_map_field_of_a_request_has_bounds(name: str) -> None:
    rules = rules_of(FIELDS[name]).map

    assert rules.max_pairs > 0
    assert has_string_bound(rules.keys)
    assert map_value(FIELDS[name]).type != FieldDescriptor.TYPE_STRING or has_string_bound(rules.values)


@pytest.mark.parametrize("name", [n for n, f in FIELDS.items() if f.type == f.TYPE_ENUM])
def test_enum_field_of_a_request_takes_only_defined_values(name: str) -> None:
    field, rules = FIELDS[name], rules_of(FIELDS[name])

    assert (rules.repeated.items if is_repeated(field) else rules).enum.defined_only


@pytest.mark.parametrize("name", [n for n, f in FIELDS.items() if f.type == f.TYPE_DOUBLE])
def test_double_field_of_a_request_refuses_nan_and_negative_values(name: str) -> None:
    field = FIELDS[name]

    for value in (float("nan"), float("inf"), -1.0):
        assert field.name in violated_fields(build(field.containing_type, **{field.name: value})), value


@pytest.mark.parametrize("name", [n for n, f in FIELDS.items() if is_id(f) and n not in ID_FIELDS_OF_ANOTHER_KIND])
def test_id_field_of_a_request_takes_uuids_only(name: str) -> None:
    field = FIELDS[name]

    for bad in ("1", "../../etc/passwd", f"{VM_ID}\n", f"{VM_ID}0", "{" + VM_ID + "}"):
        assert field.name in violated_fields(build(field.containing_type, **{field.name: bad})), bad
    assert field.name not in violated_fields(build(field.containing_type, **{field.name: VM_ID}))


@pytest.mark.parametrize(
    ("name", "field"),
    [(n, m.fields[0].name) for n, m in REQUESTS.items() if m.fields and m.fields[0].name in {"id", "vm_id", "node_id"}],
)
def test_request_about_one_thing_without_its_id_is_refused(name: str, field: str) -> None:
    filters = {"limiquantix.compute.v1.WatchVMsRequest", "limiquantix.compute.v1.StreamEventsRequest"}

    assert (field in violated_fields(build(REQUESTS[name]))) is (name not in filters)


@pytest.mark.parametrize("request_name", REQUESTS_WITH_A_VM_NAME)
@pytest.mark.parametrize("value", UNSAFE_NAMES)
def test_vm_name_that_could_break_a_document_or_a_path_is_refused(request_name: str, value: str) -> None:
    assert "name" in violated_fields(build(REQUESTS[request_name], name=value))


@pytest.mark.parametrize("request_name", REQUESTS_WITH_A_VM_NAME)
@pytest.mark.parametrize("value", ["t", "x" * 255, "web 01", "Größe-ß", "数据库", "a.b_c-d", "..."])
def test_vm_name_of_ordinary_characters_is_taken(request_name: str, value: str) -> None:
    assert "name" not in violated_fields(build(REQUESTS[request_name], name=value))


@pytest.mark.parametrize(
    "document",
    [
        '{"name":"t","spec":{"cpu":{"cores":1},"memory":{"sizeMib":128}}}',
        '{"name":"t","spec":{"cpu":{"cores":1},"memory":{"size_mib":128}}}',
        '{"name":"t","spec":{"cpu":{"cores":1},"memory":{"sizeMib":128},'
        '"disks":[{"sizeGib":20,"bus":"VIRTIO","format":"QCOW2"}],"nics":[{"bridge":"virbr0","model":"VIRTIO"}]}}',
    ],
)
def test_create_request_as_documented_is_taken(document: str) -> None:
    assert violations_of(json_format.Parse(document, CreateVMRequest())) == []


@pytest.mark.parametrize("request_type", [ListVMsRequest, ListNodesRequest])
def test_list_request_that_is_empty_is_taken(request_type: type[Message]) -> None:
    assert violations_of(request_type()) == []


def test_alias_names_of_the_documented_examples_mean_virtio() -> None:
    assert DiskDevice.VIRTIO == DiskDevice.VIRTIO_BLK
    assert NetworkInterface.VIRTIO == NetworkInterface.VIRTIO_NET


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (VmSpec(cpu=CpuConfig(cores=0)), "spec.cpu.cores"),
        (VmSpec(cpu=CpuConfig(cores=1025)), "spec.cpu.cores"),
        (VmSpec(cpu=CpuConfig(cores=64, sockets=32)), "spec.cpu"),
        (VmSpec(cpu=CpuConfig(cores=2**32 - 1, sockets=2**32 - 1)), "spec.cpu.sockets"),
        (VmSpec(cpu=CpuConfig(cores=1, model="host'/>")), "spec.cpu.model"),
        (VmSpec(memory=MemoryConfig(size_mib=0)), "spec.memory.size_mib"),
        (VmSpec(memory=MemoryConfig(size_mib=2**40)), "spec.memory.size_mib"),
        (VmSpec(disks=[DiskDevice()]), "spec.disks[0]"),
        (VmSpec(disks=[DiskDevice(size_gib=1), DiskDevice(size_gib=2**40)]), "spec.disks[1].size_gib"),
        (VmSpec(disks=[DiskDevice(backing_file="a/../../b")]), "spec.disks[0].backing_file"),
        (VmSpec(nics=[NetworkInterface(mac_address="01:00:5e:00:00:01")]), "spec.nics[0].mac_address"),
        (VmSpec(nics=[NetworkInterface(mac_address="52:54:00:00:00")]), "spec.nics[0].mac_address"),
        (VmSpec(nics=[NetworkInterface(bridge="br0; rm -rf /")]), "spec.nics[0].bridge"),
        (VmSpec(nics=[NetworkInterface(bridge="a-name-of-sixteen")]), "spec.nics[0].bridge"),
    ],
)
def test_create_request_with_a_faulty_spec_names_the_field(spec: VmSpec, field: str) -> None:
    assert field in violated_fields(CreateVMRequest(name="t", spec=spec))


def test_create_request_with_several_faults_names_all_of_them() -> None:
    request = create_request(project_id="p", labels={"": "x"}, node_id="n")
    request.spec.cpu.cores = 0
    request.spec.memory.size_mib = 0

    assert violated_fields(request) >= {"project_id", "node_id", "spec.cpu.cores", "spec.memory.size_mib"}


def test_create_request_with_too_many_labels_is_refused() -> None:
    assert violated_fields(create_request(labels={f"k{i}": "" for i in range(65)})) == {"labels"}


def test_description_may_have_lines_but_no_zero_characters() -> None:
    assert violated_fields(create_request(description="one\ntwo\n")) == set()
    assert violated_fields(create_request(description="one\0two")) == {"description"}


@pytest.mark.parametrize("paths", [["p"] * 65, ["p" * 256]])
def test_update_mask_that_is_absurd_is_refused(paths: list[str]) -> None:
    request = UpdateVMRequest(id=VM_ID)
    request.update_mask.paths.extend(paths)

    assert violated_fields(request) == {"update_mask"}


def test_update_mask_of_documented_paths_is_taken() -> None:
    request = UpdateVMRequest(id=VM_ID)
    request.update_mask.paths.extend(["spec.memory.size_mib", "labels"])

    assert violations_of(request) == []


@pytest.mark.parametrize("timeout_sec", [-1, 3601])
def test_stop_request_with_an_absurd_time_limit_is_refused(timeout_sec: int) -> None:
    assert violated_fields(StopVMRequest(id=VM_ID, timeout_sec=timeout_sec)) == {"timeout_sec"}


@pytest.mark.parametrize("page_size", [-1, -(2**31)])
def test_page_size_below_zero_is_refused(page_size: int) -> None:
    assert violated_fields(ListVMsRequest(page_size=page_size)) == {"page_size"}
    assert violated_fields(ListNodesRequest(page_size=page_size)) == {"page_size"}


def test_registration_with_numbers_no_database_holds_is_refused() -> None:
    request = RegisterNodeRequest(hostname="h1", management_ip="10.0.0.1", agent_endpoint="10.0.0.1:9090")
    request.cpu_info.cores_per_socket = 2**32 - 1
    request.memory_info.total_bytes = 2**64 - 1

    assert violated_fields(request) == {"cpu_info.cores_per_socket", "memory_info.total_bytes"}


def test_heartbeat_with_numbers_no_database_holds_is_refused() -> None:
    request = UpdateHeartbeatRequest(node_id=VM_ID, memory_used_mib=2**64 - 1, disk_total_bytes=2**64 - 1)

    assert violated_fields(request) == {"memory_used_mib", "disk_total_bytes"}


def test_node_request_with_a_path_that_climbs_is_refused() -> None:
    spec = node.VMSpec(
        cpu_cores=1,
        memory_mib=64,
        disks=[node.DiskSpec(id=VM_ID, path="../x")],
        cdroms=[node.CdromSpec(id=VM_ID, iso_path="/iso/../../x")],
        direct_boot=node.DirectKernelBoot(kernel_path="/k\n"),
    )

    assert violated_fields(node.CreateVMOnNodeRequest(vm_id=VM_ID, name="t", spec=spec)) == {
        "spec.disks[0].path",
        "spec.cdroms[0].iso_path",
        "spec.direct_boot.kernel_path",
    }


@pytest.mark.parametrize(
    ("address", "is_taken"),
    [
        ({}, False),
        ({"management_ip": "10.0.0.1"}, True),
        ({"agent_endpoint": "host-1.example:9090"}, True),
        ({"management_ip": "host-1"}, False),
        ({"agent_endpoint": "host-1"}, False),
        ({"agent_endpoint": "[::1%" + "z" * 400 + "]:9090"}, False),
    ],
)
def test_registration_needs_an_address_to_reach_the_host(address: dict[str, str], is_taken: bool) -> None:
    request = RegisterNodeRequest(hostname="h1", cpu_info=CpuInfo(), memory_info=MemoryInfo(), **address)  # type: ignore[arg-type]

    assert (violations_of(request) == []) is is_taken
