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
    "guest_os.variant": "describes the guest; all releases of a family have one profile",
    "rng.enabled": "every VM has an entropy source",
    "pci_devices.description": "for people",
    "usb_devices.description": "for people",
    "vgpu_devices.description": "for people",
    "tpm.persistent": "every TPM's contents outlive a power cycle",
    "serial.ports.index": "tells ports apart; how many there are is what counts",
    "serial.ports.type": "PTY is the only one; others are refused",
    "resources.memory_reservation_mib": "all of a VM's memory is kept for it on its node",
    "provisioning.withheld": "only answers say it, and updates that send an answer back",
    "template.source_template_id": "says which VM; without disks from there, nothing comes from it",
    "template.source_vm_id": "as source_template_id",
    "template.clone_type": "says how disks are made of others; without any, there is nothing to make",
    "template.disk_sources": "of this VM's disks; ids of others mean nothing",
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
        if path[-1].name != "enabled" and "enabled" in message.DESCRIPTOR.fields_by_name:
            message.enabled = True  # type: ignore[attr-defined]
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
