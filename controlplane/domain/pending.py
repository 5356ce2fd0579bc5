"""Changes of a running VM that wait for its next start: which they are, and what the VM has on its node meanwhile.

They are kept in `Vm.details`: the paths of the fields, why they wait, and the size that runs where it is not the one
that the spec says. A VM that is off has none: its host has the new definition already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from controlplane.domain.node import Capacity
from controlplane.domain.vm import ALIVE_STATES, BYTES_PER_MIB, Vm, settled, vcpu_count
from limiquantix.compute.v1.vm_pb2 import VmSpec, VmStatus

_MEMORY_PATH = "spec.memory.size_mib"
_COUNT_PATHS = ("spec.cpu.cores", "spec.cpu.sockets", "spec.cpu.threads_per_core")

IsKnownToHost = Callable[[VmSpec, VmSpec], bool]
"""Whether a host has to know the difference between two specs."""


@dataclass(frozen=True, slots=True)
class Size:
    """vCPUs and memory."""

    vcpu_count: int
    memory_mib: int

    @property
    def capacity(self) -> Capacity:
        """What it takes on a node."""
        return Capacity(self.vcpu_count, self.memory_mib * BYTES_PER_MIB)


def size_of_spec(spec: VmSpec) -> Size:
    """Return what a spec asks for."""
    return Size(vcpu_count(spec.cpu), spec.memory.size_mib)


def running_size(vm: Vm) -> Size:
    """Return what a VM in memory has, as far as is known."""
    asked = size_of_spec(vm.spec)
    return Size(vm.details.running_vcpus or asked.vcpu_count, vm.details.running_memory_mib or asked.memory_mib)


def with_change(before: Vm, after: Vm, is_known: IsKnownToHost) -> Vm:
    """Return a VM in memory whose spec was changed, with all that is new pending; nothing of it has happened yet."""
    paths = {*before.details.pending_changes, *changed_paths(before.spec, after.spec, is_known)}
    return _with(after, paths, (), running_size(before))


def with_effect(vm: Vm, running: Size, reasons: Sequence[str]) -> Vm:
    """Return the VM as its host says that it runs now; what is in effect does not wait any more."""
    if vm.power_state not in ALIVE_STATES:
        return settled(vm)
    return _with(vm, vm.details.pending_changes, reasons, running)


def taken_back(vm: Vm, spec: VmSpec, pending: Sequence[str]) -> Vm:
    """Return the VM with an earlier spec and what was pending then; it goes on running with what it has."""
    restored = replace(vm, spec=spec)
    if vm.power_state not in ALIVE_STATES:
        return settled(restored)
    running, asked = running_size(vm), size_of_spec(spec)
    paths = set(pending)
    if running.vcpu_count != asked.vcpu_count:
        paths.add(_COUNT_PATHS[0])
    if running.memory_mib != asked.memory_mib:
        paths.add(_MEMORY_PATH)
    return _with(restored, paths, (), running)


def _with(vm: Vm, paths: Iterable[str], reasons: Sequence[str], running: Size) -> Vm:
    asked, waiting = size_of_spec(vm.spec), set(paths)
    if running.memory_mib == asked.memory_mib:
        waiting.discard(_MEMORY_PATH)
    # The number of vCPUs may be right with another layout, which then goes on waiting.
    if running.vcpu_count == asked.vcpu_count and not waiting.intersection(_COUNT_PATHS[1:]):
        waiting.discard(_COUNT_PATHS[0])
    details = VmStatus()
    details.CopyFrom(settled(vm).details)
    details.pending_changes.extend(sorted(waiting))
    details.pending_reasons.extend(reasons if waiting else ())
    if running.vcpu_count != asked.vcpu_count:
        details.running_vcpus = running.vcpu_count
    if running.memory_mib != asked.memory_mib:
        details.running_memory_mib = running.memory_mib
    return replace(vm, details=details)


def changed_paths(before: VmSpec, after: VmSpec, is_known: IsKnownToHost) -> Iterator[str]:
    """Name the fields in which two specs differ and which a host has to know, each as deep as a path can go."""
    for path in _differences(before, after):
        mixed = VmSpec()
        mixed.CopyFrom(before)
        FieldMask(paths=[path]).MergeMessage(_with_parents(after, path), mixed, True, True)
        if is_known(before, mixed):
            yield f"spec.{path}"


def _differences(before: Message, after: Message, prefix: str = "") -> Iterator[str]:
    for field in before.DESCRIPTOR.fields:
        old, new = getattr(before, field.name), getattr(after, field.name)
        if old == new:
            continue
        if field.message_type is not None and not field.is_repeated:
            yield from _differences(old, new, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def _with_parents(spec: VmSpec, path: str) -> VmSpec:
    """Copy a spec with every message on the way to a path in place, else merging skips a field that was emptied."""
    full = VmSpec()
    full.CopyFrom(spec)
    parent: Message = full
    for name in path.split(".")[:-1]:
        parent = getattr(parent, name)
        parent.SetInParent()
    return full


def freed(before: Vm, after: Vm) -> Capacity:
    """What a VM no longer needs on its node; nothing of what it needs more."""
    vcpus, memory_bytes = before.vcpu_count - after.vcpu_count, before.memory_bytes - after.memory_bytes
    return Capacity(max(vcpus, 0), max(memory_bytes, 0))
