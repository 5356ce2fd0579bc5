"""Secret fields are found by their option, at any depth, and taken out of copies."""

from __future__ import annotations

import re

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import FieldDescriptor

from limiquantix.compute.v1 import operation_pb2, vm_pb2, vm_service_pb2
from limiquantix.node.v1 import node_daemon_pb2
from limiquantix.rpc.redaction import REDACTED, holds_secrets, may_hold_secrets, without_secrets

_LOOKS_SECRET = re.compile(r"password|secret$|private_key|user_data|unattend|product_key|passphrase")
_FILES = (vm_pb2, vm_service_pb2, node_daemon_pb2)


def fields() -> list[FieldDescriptor]:
    messages = [message for file in _FILES for message in file.DESCRIPTOR.message_types_by_name.values()]
    return [field for message in messages for field in message.fields]


@pytest.mark.parametrize(
    "field",
    [each for each in fields() if _LOOKS_SECRET.search(each.name) and each.type == FieldDescriptor.TYPE_STRING],
    ids=lambda field: field.full_name,
)
def test_field_whose_name_says_so_is_marked(field: FieldDescriptor) -> None:
    assert field.GetOptions().debug_redact


def test_empty_and_harmless_messages_hold_none() -> None:
    assert not holds_secrets(vm_pb2.VmSpec())
    assert not holds_secrets(vm_service_pb2.GetVMRequest(id="x"))
    assert not may_hold_secrets(vm_service_pb2.GetVMRequest.DESCRIPTOR)


def test_secret_in_a_list_below_is_found_and_taken_out_of_the_copy_alone() -> None:
    details = vm_pb2.VmStatus()
    details.snapshots.snapshots.add(name="a")
    details.snapshots.snapshots.add(name="b").spec.display.password = "hush"
    assert holds_secrets(details)
    shown = without_secrets(details)
    assert shown.snapshots.snapshots[1].spec.display.password == REDACTED
    assert details.snapshots.snapshots[1].spec.display.password == "hush"
    assert [each.name for each in shown.snapshots.snapshots] == ["a", "b"]


def test_secret_bytes_lists_and_maps_are_left_out() -> None:
    request = vm_service_pb2.ExecuteScriptRequest(command="c", args=["a"], environment={"A": "b"}, input=b"x")
    assert without_secrets(request) == vm_service_pb2.ExecuteScriptRequest(command="c")


def test_contents_of_any_are_left_out() -> None:
    packed = AnyMessage()
    packed.Pack(vm_service_pb2.SetGuestPasswordRequest(password="hush"))
    operation = operation_pb2.Operation(id="o", response=packed)
    assert b"hush" not in without_secrets(operation).SerializeToString()
