"""Make a VM's devices what the control plane has on record, after a change of which it does not know what became of it.

Each device is compared with what is there, so nothing is touched that is as it should be.
"""

from __future__ import annotations

import asyncio

from hypervisor.base import Hypervisor
from hypervisor.devices import Devices, VmDevices
from hypervisor.types import CdromConfig, DiskConfig, NicConfig, PowerState
from limiquantix.node.v1 import node_daemon_pb2 as pb
from nodedaemon.decode import decode_cdrom, decode_disk, decode_nic
from nodedaemon.storage_paths import StoragePaths

_OFF = (PowerState.STOPPED, PowerState.CRASHED)


class Settlement:
    """What is to be there, decoded."""

    def __init__(
        self, disks: tuple[DiskConfig, ...], cdroms: tuple[CdromConfig, ...], nics: tuple[NicConfig, ...]
    ) -> None:
        self._disks = {disk.disk_id: disk for disk in disks}
        self._cdroms = {cdrom.cdrom_id: cdrom for cdrom in cdroms}
        self._nics = {nic.nic_id: nic for nic in nics}

    def has_disk(self, disk_id: str) -> bool:
        """Tell whether a disk is to be there."""
        return disk_id in self._disks

    async def make(self, hypervisor: Hypervisor, devices: Devices, vm_id: str) -> None:
        """Take away what is too much, then add and change what is to be otherwise.

        Raises:
            GuestDidNotRelease: the guest keeps something.
        """
        found = await devices.list(vm_id)
        is_off = (await hypervisor.status(vm_id)).state in _OFF
        await self._disks_of(devices, vm_id, found)
        await self._nics_of(devices, vm_id, found)
        await self._cdroms_of(devices, vm_id, found, is_off=is_off)

    async def _disks_of(self, devices: Devices, vm_id: str, found: VmDevices) -> None:
        there = {disk.disk_id: disk for disk in found.disks}
        for disk_id in there.keys() - self._disks.keys():
            await devices.detach_disk(vm_id, disk_id)
        for disk_id, disk in self._disks.items():
            if disk_id not in there:
                await devices.attach_disk(vm_id, disk)
            elif there[disk_id].limits != disk.limits:
                await devices.limit_disk(vm_id, disk_id, disk.limits)

    async def _nics_of(self, devices: Devices, vm_id: str, found: VmDevices) -> None:
        there = {nic.config.nic_id: nic.config for nic in found.nics}
        for nic_id in there.keys() - self._nics.keys():
            await devices.detach_nic(vm_id, nic_id)
        for nic_id, nic in self._nics.items():
            if nic_id not in there:
                await devices.attach_nic(vm_id, nic)
            else:
                await devices.update_nic(vm_id, nic)

    async def _cdroms_of(self, devices: Devices, vm_id: str, found: VmDevices, *, is_off: bool) -> None:
        """Drives come and go only while the VM is off, so of a running VM they are as they were."""
        there = {cdrom.cdrom_id: cdrom for cdrom in found.cdroms}
        for cdrom_id in there.keys() - self._cdroms.keys() if is_off else ():
            await devices.detach_cdrom(vm_id, cdrom_id)
        for cdrom_id, cdrom in self._cdroms.items():
            if cdrom_id in there:
                await devices.change_medium(vm_id, cdrom_id, cdrom.iso_path)
            elif is_off:
                await devices.attach_cdrom(vm_id, cdrom)


async def decode_settlement(vm_id: str, request: pb.SettleDevicesRequest, paths: StoragePaths) -> Settlement:
    """Decode what is to be there.

    Raises:
        InvalidArgument: a file is not there any more.
    """

    def decode() -> Settlement:
        return Settlement(
            tuple(decode_disk(vm_id, disk, paths)[0] for disk in request.disks),
            tuple(decode_cdrom(vm_id, cdrom, paths) for cdrom in request.cdroms),
            tuple(decode_nic(nic) for nic in request.nics),
        )

    return await asyncio.to_thread(decode)
