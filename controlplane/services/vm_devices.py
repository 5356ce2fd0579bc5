"""Devices of VMs: attach, detach and change disks, network cards and CD-ROM drives, running or not.

What the guest has to let go of is waited for; what is in the spec afterwards is what the host has.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from controlplane.domain import vm_devices as devices
from controlplane.domain.operation import Json
from controlplane.operations import vm_cdroms, vm_disks, vm_nics
from controlplane.operations.desk import ANYBODY, Caller, Check, Order
from controlplane.operations.vm_devices import to_json
from controlplane.services.macs import free_mac
from controlplane.services.vm_calls import VmAccess
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.vm_pb2 import CdromDevice, DiskDevice, NetworkInterface, VirtualMachine


@dataclass(frozen=True, slots=True)
class VmDeviceService:
    """The use cases of devices."""

    access: VmAccess

    async def attach_disk(self, request: api.AttachDiskRequest, caller: Caller = ANYBODY) -> VirtualMachine:
        """Attach a disk, with a new image unless there is one of its id.

        Raises:
            FailedPrecondition: the VM's state does not allow it, with that bus.
            AlreadyExists: the VM has a device of that id.
            InvalidArgument: a file that the disk is made from may not be used.
        """
        disk = DiskDevice()
        disk.CopyFrom(request.disk)
        disk.id = disk.id or str(uuid.uuid4())
        parameters = {"disk": to_json(disk), "is_new": not request.disk.id}
        return await self._change(
            vm_disks.AttachDisk.kind,
            request.vm_id,
            parameters,
            lambda vm: devices.require_disk_attachable(vm, disk),
            caller,
        )

    async def detach_disk(self, request: api.DetachDiskRequest, caller: Caller = ANYBODY) -> VirtualMachine:
        """Take a disk away; its image stays until the VM is deleted.

        Raises:
            NotFound: there is no such disk.
            FailedPrecondition: the guest did not let go, or the VM's state does not allow it.
        """
        return await self._change(
            vm_disks.DetachDisk.kind,
            request.vm_id,
            {"disk_id": request.disk_id, "force": request.force},
            lambda vm: devices.require_disk_detachable(vm, request.disk_id),
            caller,
        )

    async def resize_disk(self, request: api.ResizeDiskRequest, caller: Caller = ANYBODY) -> VirtualMachine:
        """Grow a disk.

        Raises:
            InvalidArgument: it is larger than that.
            NotFound: there is no such disk.
        """
        return await self._change(
            vm_disks.ResizeDisk.kind,
            request.vm_id,
            {"disk_id": request.disk_id, "size_gib": request.new_size_gib},
            lambda vm: devices.require_disk_resizable(vm, request.disk_id, request.new_size_gib),
            caller,
        )

    async def update_disk(self, request: api.UpdateDiskRequest, caller: Caller = ANYBODY) -> VirtualMachine:
        """Replace a disk's ceilings.

        Raises:
            NotFound: there is no such disk.
        """
        return await self._change(
            vm_disks.UpdateDisk.kind,
            request.vm_id,
            {"disk_id": request.disk_id, "io_limits": to_json(request.io_limits)},
            lambda vm: devices.require_disk_changeable(vm, request.disk_id),
            caller,
        )

    async def attach_nic(self, request: api.AttachNICRequest, caller: Caller = ANYBODY) -> VirtualMachine:
        """Attach a network card, with a new MAC address unless it has one.

        Raises:
            FailedPrecondition: the VM's state does not allow it, with that model.
            AlreadyExists: another card of the cluster has its MAC address, or of the VM its id.
        """
        nic = NetworkInterface()
        nic.CopyFrom(request.nic)
        nic.id = nic.id or str(uuid.uuid4())
        nic.mac_address = await self.access.store.read(lambda tx: free_mac(tx, nic.mac_address))
        return await self._change(
            vm_nics.AttachNic.kind,
            request.vm_id,
            {"nic": to_json(nic)},
            lambda vm: devices.require_nic_attachable(vm, nic),
            caller,
        )

    async def detach_nic(self, request: api.DetachNICRequest, caller: Caller = ANYBODY) -> VirtualMachine:
        """Take a network card away.

        Raises:
            NotFound: there is no such card.
            FailedPrecondition: the guest did not let go, or the VM's state does not allow it.
        """
        return await self._change(
            vm_nics.DetachNic.kind,
            request.vm_id,
            {"nic_id": request.nic_id},
            lambda vm: devices.require_nic_detachable(vm, request.nic_id),
            caller,
        )

    async def update_nic(self, request: api.UpdateNICRequest, caller: Caller = ANYBODY) -> VirtualMachine:
        """Plug a card's cable in or out, and replace its ceilings.

        Raises:
            NotFound: there is no such card.
            InvalidArgument: such a card has no ceilings.
        """
        return await self._change(
            vm_nics.UpdateNic.kind,
            request.vm_id,
            {"nic_id": request.nic_id, "request": to_json(request)},
            lambda vm: devices.require_nic_changeable(vm, request),
            caller,
        )

    async def attach_cdrom(self, request: api.AttachCDROMRequest, caller: Caller = ANYBODY) -> VirtualMachine:
        """Add a CD-ROM drive to a VM that is off.

        Raises:
            FailedPrecondition: it is not off.
        """
        cdrom = CdromDevice(
            id=str(uuid.uuid4()), iso_path=request.iso_path, connected=bool(request.iso_path), bus=request.bus
        )
        return await self._change(
            vm_cdroms.AttachCdrom.kind,
            request.vm_id,
            {"cdrom": to_json(cdrom)},
            lambda vm: devices.require_cdrom_attachable(vm, cdrom),
            caller,
        )

    async def detach_cdrom(self, request: api.DetachCDROMRequest, caller: Caller = ANYBODY) -> VirtualMachine:
        """Take a CD-ROM drive away from a VM that is off.

        Raises:
            NotFound: there is no such drive.
            FailedPrecondition: it is not off.
        """
        return await self._change(
            vm_cdroms.DetachCdrom.kind,
            request.vm_id,
            {"cdrom_id": request.cdrom_id},
            lambda vm: devices.require_cdrom_detachable(vm, request.cdrom_id),
            caller,
        )

    async def mount_iso(self, request: api.MountISORequest, caller: Caller = ANYBODY) -> VirtualMachine:
        """Put a medium into a drive, in place of what is in it.

        Raises:
            NotFound: there is no such drive.
            InvalidArgument: that file may not be used.
            FailedPrecondition: the guest holds the drive's door shut.
        """
        return await self._change_medium(request.vm_id, request.cdrom_id, request.iso_path, caller)

    async def eject_iso(self, request: api.EjectISORequest, caller: Caller = ANYBODY) -> VirtualMachine:
        """Take the medium out of a drive.

        Raises:
            NotFound: there is no such drive.
            FailedPrecondition: the guest holds the drive's door shut.
        """
        return await self._change_medium(request.vm_id, request.cdrom_id, "", caller)

    async def _change_medium(self, vm_id: str, cdrom_id: str, iso_path: str, caller: Caller) -> VirtualMachine:
        return await self._change(
            vm_cdroms.ChangeMedium.kind,
            vm_id,
            {"cdrom_id": cdrom_id, "iso_path": iso_path},
            lambda vm: devices.require_medium_changeable(vm, cdrom_id),
            caller,
        )

    async def _change(self, kind: str, vm_id: str, parameters: Json, check: Check, caller: Caller) -> VirtualMachine:
        return await self.access.done(Order(kind, vm_id, parameters=parameters, check=check), caller)
