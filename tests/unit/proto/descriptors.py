"""Walks over the built contract, for the tests beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.message_factory import GetMessageClass

from limiquantix.compute.v1 import folder_pb2, folder_service_pb2, node_pb2, node_service_pb2, vm_pb2, vm_service_pb2
from limiquantix.node.v1 import node_daemon_pb2

FILES: tuple[FileDescriptor, ...] = tuple(
    module.DESCRIPTOR
    for module in (
        folder_pb2,
        folder_service_pb2,
        node_pb2,
        node_service_pb2,
        vm_pb2,
        vm_service_pb2,
        node_daemon_pb2,
    )
)

_OUR_PACKAGES = tuple(f"{package}." for package in {file.package for file in FILES})

RULES_OPTION = "buf.validate.field"
_RULES_CLASS = GetMessageClass(descriptor_pool.Default().FindMessageTypeByName("buf.validate.FieldRules"))


def request_types() -> list[Descriptor]:
    """List every message of ours that a method takes, each once, in the order of the methods."""
    inputs = [
        method.input_type for file in FILES for service in file.services_by_name.values() for method in service.methods
    ]
    return list({i.full_name: i for i in inputs if i.full_name.startswith(_OUR_PACKAGES)}.values())


def request_fields() -> Iterator[FieldDescriptor]:
    """Visit every field of ours that a request can carry, however deep, each once; of a map, the map itself."""
    waiting, seen = request_types(), set[str]()
    while waiting:
        message = waiting.pop()
        if message.full_name in seen:
            continue
        seen.add(message.full_name)
        for field in message.fields:
            yield field
            inner = map_value(field) if is_map(field) else field
            if inner.message_type is not None and inner.message_type.full_name.startswith(_OUR_PACKAGES):
                waiting.append(inner.message_type)


def is_map(field: FieldDescriptor) -> bool:
    """Tell a map from other repeated fields."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def is_repeated(field: FieldDescriptor) -> bool:
    """Tell a list; a map is none."""
    return field.is_repeated and not is_map(field)


def map_value(field: FieldDescriptor) -> FieldDescriptor:
    """Give the value's field of a map's entry."""
    assert field.message_type is not None
    return field.message_type.fields_by_name["value"]


def rules_of(field: FieldDescriptor) -> Any:
    """Give the validation rules of a field (`buf.validate.FieldRules`); empty ones if it has none."""
    for option, rules in field.GetOptions().ListFields():
        if option.full_name == RULES_OPTION:
            return rules
    return _RULES_CLASS()
