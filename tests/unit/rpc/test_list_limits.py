"""Lists of requests are counted before their items are judged."""

from __future__ import annotations

import pytest
from google.protobuf.message import Message

from limiquantix.compute.v1.node_pb2 import Node
from limiquantix.compute.v1.vm_pb2 import DiskDevice, VmSpec
from limiquantix.compute.v1.vm_service_pb2 import CreateVMRequest
from limiquantix.node.v1.node_daemon_pb2 import GetConsoleLogRequest
from limiquantix.rpc.list_limits import item_limit, overlong_lists
from tests.unit.proto.descriptors import is_map, is_repeated, request_fields


def _found(message: Message) -> list[tuple[str, str]]:
    return [(violation.field, violation.description) for violation in overlong_lists(message)]


def test_every_list_of_a_request_has_a_limit() -> None:
    lists = [field for field in request_fields() if is_repeated(field) or is_map(field)]

    assert lists
    assert [field.full_name for field in lists if item_limit(field) is None] == []


def test_limit_of_a_single_value_is_none() -> None:
    assert item_limit(CreateVMRequest.DESCRIPTOR.fields_by_name["name"]) is None


@pytest.mark.parametrize("count", [0, 1, 64])
def test_list_within_its_limit_is_not_named(count: int) -> None:
    request = CreateVMRequest(spec=VmSpec(disks=[DiskDevice()] * count), labels={str(n): "" for n in range(count)})

    assert _found(request) == []


def test_lists_and_maps_beyond_their_limits_are_named_by_path() -> None:
    request = CreateVMRequest(spec=VmSpec(disks=[DiskDevice()] * 65), labels={str(n): "" for n in range(65)})

    assert _found(request) == [
        ("labels", "must have at most 64 entries"),
        ("spec.disks", "must have at most 64 items"),
    ]


def test_list_inside_a_list_is_named_with_its_index() -> None:
    spec = VmSpec()
    spec.nics.add()
    spec.nics.add().security_groups.extend(["x"] * 2000)

    assert [path for path, _ in _found(spec)] == ["nics[1].security_groups"]


def test_message_without_lists_has_none_too_long() -> None:
    assert _found(GetConsoleLogRequest(offset=1)) == []
    assert _found(Node()) == []
