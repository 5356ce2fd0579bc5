"""One variant of one kind of operation, and what several kinds share: how a VM gets ready, what is there of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from controlplane.operations.desk import Caller
from hypervisor.mock.faults import MockFaults
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.vm_pb2 import CpuConfig, DiskDevice, MemoryConfig, VmSpec
from tests.support.failure_harness_checks import End

if TYPE_CHECKING:
    from tests.support.failure_harness_scene import Scene

Prepare = Callable[["Scene"], Awaitable[str]]
Ask = Callable[["Scene", Caller], Awaitable[object]]

NAME = "subject"


@dataclass(frozen=True)
class Case:
    """One variant of one kind of operation.

    Attributes:
        prepare: makes what is there before, without faults, and returns the VM's id, "" if it does not exist yet.
        ask: asks for the operation, as often as it takes.
        is_there: whether its effect is there at the end.
        is_absent: whether it is not; by default the opposite. Of power operations a failed one leaves what the host
            says, whatever that is.
        mock_faults: what the hypervisor does wrong each time.
        memory_mib: what the host really has.
        must_fail: whether it cannot succeed.
    """

    name: str
    kind: str
    prepare: Prepare
    ask: Ask
    is_there: Callable[[End], bool]
    is_absent: Callable[[End], bool] | None = None
    mock_faults: MockFaults = field(default_factory=MockFaults)
    memory_mib: int = 4096
    must_fail: bool = False

    def has_no_effect(self, end: End) -> bool:
        """Whether nothing of the operation is there."""
        return not self.is_there(end) if self.is_absent is None else self.is_absent(end)


def spec_of(cores: int = 2, memory_mib: int = 256) -> VmSpec:
    """Make the spec of a VM with one disk."""
    return VmSpec(
        cpu=CpuConfig(cores=cores),
        memory=MemoryConfig(size_mib=memory_mib),
        disks=[DiskDevice(size_gib=1, format=DiskDevice.QCOW2, bus=DiskDevice.VIRTIO_BLK)],
    )


async def nothing(scene: Scene) -> str:
    """No VM."""
    return ""


async def off(scene: Scene) -> str:
    """A VM that is off."""
    return (await scene.plane.vms.create(api.CreateVMRequest(name=NAME, spec=spec_of()))).id


async def running(scene: Scene) -> str:
    """A VM that runs."""
    return (await scene.plane.vms.create(api.CreateVMRequest(name=NAME, spec=spec_of(), start_on_create=True))).id


def is_whole(end: End) -> bool:
    """Whether row, domain and images are there."""
    return end.row is not None and end.domain is not None and end.has_images
