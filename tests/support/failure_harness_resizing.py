"""The failure harness's cases of sizes that change: of VMs that are off, and of those that run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from google.protobuf.field_mask_pb2 import FieldMask

from controlplane.operations.vm_update import UpdateVm
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.vm_pb2 import CpuConfig, MemoryConfig, VmSpec
from tests.support.failure_harness_case import NAME, Ask, Case, is_whole, off, running, spec_of
from tests.support.failure_harness_checks import End

if TYPE_CHECKING:
    from tests.support.failure_harness_scene import Scene


async def running_with_room(scene: Scene) -> str:
    """A VM that runs and can grow and shrink meanwhile."""
    spec = spec_of()
    spec.cpu.max_vcpus, spec.memory.max_memory_mib, spec.memory.ballooning_enabled = 4, 1024, True
    return (await scene.plane.vms.create(api.CreateVMRequest(name=NAME, spec=spec, start_on_create=True))).id


def _resize(cores: int, memory_mib: int) -> Ask:
    spec = VmSpec(cpu=CpuConfig(cores=cores), memory=MemoryConfig(size_mib=memory_mib))
    return lambda scene, caller: scene.plane.vms.update(api.UpdateVMRequest(id=scene.vm_id, spec=spec), caller)


def _resize_alone(cores: int, memory_mib: int) -> Ask:
    """Change the size, and leave all else of processors and memory as it is."""
    spec = VmSpec(cpu=CpuConfig(cores=cores), memory=MemoryConfig(size_mib=memory_mib))
    mask = FieldMask(paths=["spec.cpu.cores", "spec.memory.size_mib"])
    return lambda scene, caller: scene.plane.vms.update(
        api.UpdateVMRequest(id=scene.vm_id, spec=spec, update_mask=mask), caller
    )


def _has_size(cores: int, memory_mib: int) -> Callable[[End], bool]:
    def check(end: End) -> bool:
        spec = end.row.spec if end.row is not None else VmSpec()
        return is_whole(end) and (spec.cpu.cores, spec.memory.size_mib) == (cores, memory_mib)

    return check


def _runs_with(cores: int, memory_mib: int) -> Callable[[End], bool]:
    """What runs has this size, and so has the row."""

    def check(end: End) -> bool:
        live = end.domain.live_config if end.domain is not None else None
        size = (live.cpu.vcpu_count, live.memory_mib) if live is not None else None
        return _has_size(cores, memory_mib)(end) and size == (cores, memory_mib)

    return check


def _waits_for(cores: int, memory_mib: int) -> Callable[[End], bool]:
    """The row has this size, what runs has not."""
    return lambda end: (
        _has_size(cores, memory_mib)(end)
        and end.row is not None
        and set(end.row.details.pending_changes) == {"spec.cpu.cores", "spec.memory.size_mib"}
    )


_HOST_MEMORY_MIB = 400
"""Less than the larger size, which the control plane does not know."""
_LARGER, _SMALLER, _SAME = _has_size(3, 512), _has_size(1, 128), _has_size(2, 256)

RESIZING = (
    Case("grow", UpdateVm.kind, off, _resize(3, 512), _LARGER, _SAME),
    Case("shrink", UpdateVm.kind, off, _resize(1, 128), _SMALLER, _SAME),
    Case(
        "grow, refused",
        UpdateVm.kind,
        off,
        _resize(3, 512),
        _LARGER,
        _SAME,
        memory_mib=_HOST_MEMORY_MIB,
        must_fail=True,
    ),
    Case("grow while it runs", UpdateVm.kind, running_with_room, _resize_alone(3, 512), _runs_with(3, 512), _SAME),
    Case("shrink while it runs", UpdateVm.kind, running_with_room, _resize_alone(1, 128), _runs_with(1, 128), _SAME),
    Case("grow at the next start", UpdateVm.kind, running, _resize_alone(3, 512), _waits_for(3, 512), _SAME),
    Case(
        "grow while it runs, refused",
        UpdateVm.kind,
        running_with_room,
        _resize_alone(3, 512),
        _runs_with(3, 512),
        _SAME,
        memory_mib=_HOST_MEMORY_MIB,
        must_fail=True,
    ),
)
