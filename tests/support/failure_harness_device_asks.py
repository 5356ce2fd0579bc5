"""Devices in the failure harness: a VM that has some, how changes of them are asked for, and whether they are there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from controlplane.operations.desk import Caller
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.vm_pb2 import (
    CdromDevice,
    CpuConfig,
    DiskDevice,
    IoLimits,
    MemoryConfig,
    NetworkInterface,
    NetworkQos,
    VmSpec,
)
from tests.support.failure_harness_checks import End

if TYPE_CHECKING:
    from tests.support.failure_harness_scene import Scene

Ask = Callable[["Scene", Caller], Awaitable[object]]
Check = Callable[[End], bool]

BOOT_ID, DATA_ID = (f"00000000-0000-4000-8000-00000000000{n}" for n in (1, 2))
DRIVE_ID, NIC_ID = (f"00000000-0000-4000-8000-00000000000{n}" for n in (4, 5))
ISO = "iso/a.iso"


def spec_with_devices() -> VmSpec:
    """Make a spec with one disk to boot from and one device of each kind to play with."""
    disks = [DiskDevice(id=disk_id, size_gib=1, format=DiskDevice.RAW) for disk_id in (BOOT_ID, DATA_ID)]
    return VmSpec(
        cpu=CpuConfig(cores=1),
        memory=MemoryConfig(size_mib=64),
        disks=disks,
        cdroms=[CdromDevice(id=DRIVE_ID)],
        nics=[NetworkInterface(id=NIC_ID, bridge="br0")],
    )


async def with_devices(scene: Scene) -> str:
    """A VM with devices, which is off."""
    iso = scene.host.images_dir / ISO
    iso.parent.mkdir(parents=True, exist_ok=True)
    iso.write_bytes(b"x" * 2048)
    return (await scene.plane.vms.create(api.CreateVMRequest(name="subject", spec=spec_with_devices()))).id


async def running_with_devices(scene: Scene) -> str:
    """A VM with devices, which runs."""
    vm_id = await with_devices(scene)
    await scene.plane.vms.start(vm_id)
    return vm_id


async def running_with_medium(scene: Scene) -> str:
    """A VM with a medium in its drive, which runs."""
    vm_id = await running_with_devices(scene)
    await scene.plane.devices.mount_iso(api.MountISORequest(vm_id=vm_id, cdrom_id=DRIVE_ID, iso_path=ISO))
    return vm_id


# -- how it is asked for


def attach_disk(scene: Scene, caller: Caller) -> Awaitable[object]:
    request = api.AttachDiskRequest(vm_id=scene.vm_id, disk=DiskDevice(size_gib=2, format=DiskDevice.RAW))
    return scene.plane.devices.attach_disk(request, caller)


def detach_disk(scene: Scene, caller: Caller) -> Awaitable[object]:
    return scene.plane.devices.detach_disk(api.DetachDiskRequest(vm_id=scene.vm_id, disk_id=DATA_ID), caller)


def resize_disk(scene: Scene, caller: Caller) -> Awaitable[object]:
    request = api.ResizeDiskRequest(vm_id=scene.vm_id, disk_id=DATA_ID, new_size_gib=3)
    return scene.plane.devices.resize_disk(request, caller)


def update_disk(scene: Scene, caller: Caller) -> Awaitable[object]:
    request = api.UpdateDiskRequest(vm_id=scene.vm_id, disk_id=DATA_ID, io_limits=IoLimits(read_iops=9))
    return scene.plane.devices.update_disk(request, caller)


def attach_nic(scene: Scene, caller: Caller) -> Awaitable[object]:
    request = api.AttachNICRequest(vm_id=scene.vm_id, nic=NetworkInterface(bridge="br1"))
    return scene.plane.devices.attach_nic(request, caller)


def detach_nic(scene: Scene, caller: Caller) -> Awaitable[object]:
    return scene.plane.devices.detach_nic(api.DetachNICRequest(vm_id=scene.vm_id, nic_id=NIC_ID), caller)


def update_nic(scene: Scene, caller: Caller) -> Awaitable[object]:
    qos = NetworkQos(ingress_rate_mbps=8)
    request = api.UpdateNICRequest(vm_id=scene.vm_id, nic_id=NIC_ID, link_down=True, qos=qos)
    return scene.plane.devices.update_nic(request, caller)


def attach_cdrom(scene: Scene, caller: Caller) -> Awaitable[object]:
    return scene.plane.devices.attach_cdrom(api.AttachCDROMRequest(vm_id=scene.vm_id, iso_path=ISO), caller)


def detach_cdrom(scene: Scene, caller: Caller) -> Awaitable[object]:
    return scene.plane.devices.detach_cdrom(api.DetachCDROMRequest(vm_id=scene.vm_id, cdrom_id=DRIVE_ID), caller)


def mount_iso(scene: Scene, caller: Caller) -> Awaitable[object]:
    request = api.MountISORequest(vm_id=scene.vm_id, cdrom_id=DRIVE_ID, iso_path=ISO)
    return scene.plane.devices.mount_iso(request, caller)


def eject_iso(scene: Scene, caller: Caller) -> Awaitable[object]:
    return scene.plane.devices.eject_iso(api.EjectISORequest(vm_id=scene.vm_id, cdrom_id=DRIVE_ID), caller)


# -- what it brings about; that the host has the same is checked of every VM


def has(*, disks: int = 2, cdroms: int = 1, nics: int = 1) -> Check:
    """Whether there are so many devices."""

    def check(end: End) -> bool:
        spec = end.row.spec if end.row is not None else VmSpec()
        return (len(spec.disks), len(spec.cdroms), len(spec.nics)) == (disks, cdroms, nics)

    return check


def is_grown(end: End) -> bool:
    """Whether the data disk has its larger size."""
    return end.row is not None and end.row.spec.disks[1].size_gib == 3


def is_limited(end: End) -> bool:
    """Whether the data disk has its ceiling."""
    return end.row is not None and end.row.spec.disks[1].io_limits.read_iops == 9


def is_unplugged(end: End) -> bool:
    """Whether the card's cable is out, and it has its ceiling."""
    nic = end.row.spec.nics[0] if end.row is not None else NetworkInterface()
    return nic.link_down and nic.qos.ingress_rate_mbps == 8


def has_medium(end: End) -> bool:
    """Whether the drive has its medium."""
    return end.row is not None and end.row.spec.cdroms[0].iso_path == ISO
