"""Every field of a VM's spec is acted on, kept for a decision, or refused: none is dropped in silence."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from controlplane.daemons.node_spec import to_node_spec
from controlplane.domain.vm_spec import filled_in, violations_of
from limiquantix.compute.v1.vm_pb2 import CpuConfig, DiskDevice, MemoryConfig, VmSpec

KEPT_FOR_DECISIONS = {
    "ha_policy": "read by fail-over, which later releases bring",
    "migration": "read by migrations, which later releases bring",
    "placement": "read by the scheduler",
}

WITHOUT_EFFECT = {
    "agent.enabled": "every VM has the agent's channel",
    "agent.channel": "virtio-serial is the only one; VSOCK is refused",
    "guest_os.family": "describes the guest; profiles come later",
    "guest_os.variant": "describes the guest; profiles come later",
    "memory.ballooning_enabled": "permits what the host does not do",
    "memory.max_memory_mib": "up to the size there is nothing to plug in; beyond it is refused",
    "rng.enabled": "every VM has an entropy source",
}
"""Fields that may be set and change nothing, each with the reason why nothing is lost by that."""


def leaves(descriptor: Descriptor, path: tuple[FieldDescriptor, ...] = ()) -> Iterator[tuple[FieldDescriptor, ...]]:
    """Visit every field that holds a value, with the way to it; devices count as one value each."""
    for field in descriptor.fields:
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        if field.message_type is not None and not is_map:
            yield from leaves(field.message_type, (*path, field))
        else:
            yield (*path, field)


def dotted(path: tuple[FieldDescriptor, ...]) -> str:
    return ".".join(field.name for field in path)


def base_spec() -> VmSpec:
    return VmSpec(cpu=CpuConfig(cores=1), memory=MemoryConfig(size_mib=128))


def with_field(spec: VmSpec, path: tuple[FieldDescriptor, ...], step: int) -> VmSpec:
    """Copy a spec with one field set; `step` 0 puts everything on the way in place and leaves the field alone."""
    full = VmSpec()
    full.CopyFrom(spec)
    message: Message = full
    for field in path[:-1]:
        inner = getattr(message, field.name)
        if field.is_repeated:
            message = inner.add()
            if isinstance(message, DiskDevice):
                message.size_gib = 1
        else:
            message = inner
            message.SetInParent()
    if step:
        set_value(message, path[-1])
    return full


def set_value(message: Message, field: FieldDescriptor) -> None:
    name = field.name
    if field.message_type is not None:
        getattr(message, name)["key"] = "value"
        return
    values = {
        FieldDescriptor.CPPTYPE_BOOL: True,
        FieldDescriptor.CPPTYPE_STRING: "0b0f5d3e-6d0b-4f0e-9c55-3f1b5f3a7c11",
        FieldDescriptor.CPPTYPE_DOUBLE: 2.0,
        FieldDescriptor.CPPTYPE_ENUM: field.enum_type.values[1].number if field.enum_type else 0,
    }
    value = values.get(field.cpp_type, 3)
    if field.is_repeated:
        getattr(message, name).append(value)
    else:
        setattr(message, name, value)


PATHS = {dotted(path): path for path in leaves(VmSpec.DESCRIPTOR)}


@pytest.mark.parametrize("name", PATHS)
def test_spec_field_is_acted_on_kept_or_refused(name: str) -> None:
    path = PATHS[name]
    without, with_it = with_field(base_spec(), path, 0), with_field(base_spec(), path, 1)
    assert violations_of(base_spec()) == []
    if violations_of(with_it) or path[0].name in KEPT_FOR_DECISIONS:
        return
    ids = ("a" for _ in range(100))
    before, after = (to_node_spec(filled_in(spec, ids.__next__, lambda: "m")) for spec in (without, with_it))

    assert (before != after) != (name in WITHOUT_EFFECT), f"{name} is dropped in silence, or listed though it is not"
