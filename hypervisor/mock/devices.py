"""Devices of simulated VMs. They are part of the VM's configuration, which is what the simulated guest sees."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from hypervisor.boot_order import boot_disk_id
from hypervisor.devices import (
    HOTPLUG_DISK_BUSES,
    HOTPLUG_NIC_MODELS,
    RELEASE_TIMEOUT_S,
    AttachedNic,
    Devices,
    VmDevices,
)
from hypervisor.errors import DeviceExists, DeviceNotFound, GuestDidNotRelease, Refused, WrongState
from hypervisor.mock.faults import Operation
from hypervisor.mock.host import OFF, MockHost
from hypervisor.mock.store import MockVm
from hypervisor.types import (
    CdromConfig,
    DiskConfig,
    EventKind,
    IoLimits,
    NicConfig,
    PowerState,
    VmConfig,
)

_ACTIVE = frozenset({PowerState.RUNNING, PowerState.PAUSED})
_CHANGEABLE = OFF | _ACTIVE

DeviceT = TypeVar("DeviceT", DiskConfig, CdromConfig, NicConfig)


class MockDevices(Devices):
    """`Devices` in memory; see there for the rules of every method.

    Guests that are deaf to the power button also never let go of a device; there is always a slot for another one.
    """

    def __init__(self, host: MockHost) -> None:
        self._host = host

    async def list(self, vm_id: str) -> VmDevices:
        """See `Devices`; cards are plugged into interfaces that do not exist."""
        await self._host.strike(Operation.LIST_DEVICES, vm_id)
        vm = self._host.vm(vm_id)
        config = vm.config
        nics = (
            AttachedNic(
                replace(nic, boot_index=0), f"mock{number}" if vm.state in _ACTIVE and nic.bridge + nic.network else ""
            )
            for number, nic in enumerate(config.nics)
        )
        return VmDevices(
            tuple(replace(disk, boot_index=0) for disk in config.disks),
            tuple(replace(cdrom, boot_index=0) for cdrom in config.cdroms),
            tuple(nics),
        )

    async def attach_disk(self, vm_id: str, disk: DiskConfig) -> None:
        """See `Devices`."""
        lost = await self._host.strike(Operation.ATTACH_DISK, vm_id)
        vm = self._host.vm(vm_id)
        present = _find(vm.config.disks, disk.disk_id)
        if present is None:
            self._host.require(vm, "attach a disk to", _CHANGEABLE)
            if vm.state in _ACTIVE and disk.bus not in HOTPLUG_DISK_BUSES:
                raise WrongState(vm_id, f"attach a {disk.bus.name} disk to", vm.state.value)
            if vm.state in _ACTIVE:
                vm.hotplugged_ids = (*vm.hotplugged_ids, disk.disk_id)
            await self._become(vm, replace(vm.config, disks=(*vm.config.disks, disk)))
        elif (present.path, present.format, present.bus) != (disk.path, disk.format, disk.bus):
            raise DeviceExists(vm_id, f"disk {disk.disk_id}")
        self._host.lose_answer(lost)

    async def detach_disk(
        self, vm_id: str, disk_id: str, *, timeout_s: float = RELEASE_TIMEOUT_S, force: bool = False
    ) -> None:
        """See `Devices`. A disk that is taken by force is gone at once; there is no process to hold it."""
        lost = await self._host.strike(Operation.DETACH_DISK, vm_id)
        vm = self._host.vm(vm_id)
        disk = _find(vm.config.disks, disk_id)
        if disk is not None:
            self._host.require(vm, "detach a disk from", _CHANGEABLE)
            if vm.state in _ACTIVE:
                self._host.require(vm, "detach a disk from", {PowerState.RUNNING})
                if disk.bus not in HOTPLUG_DISK_BUSES:
                    raise WrongState(vm_id, f"detach a {disk.bus.name} disk from", vm.state.value)
                if disk_id == boot_disk_id(vm.config) and disk_id not in vm.hotplugged_ids:
                    raise WrongState(vm_id, "detach the boot disk from", vm.state.value)
                await self._wait_for_release(vm, f"disk {disk_id}", timeout_s, force=force)
            await self._become(vm, replace(vm.config, disks=_without(vm.config.disks, disk_id)))
        self._host.lose_answer(lost)

    async def resize_disk(self, vm_id: str, disk_id: str, size_bytes: int) -> bool:
        """See `Devices`. No process uses the image, so growing it is always the caller's to do."""
        lost = await self._host.strike(Operation.RESIZE_DISK, vm_id)
        vm = self._host.vm(vm_id)
        disk = _required(vm, vm.config.disks, "disk", disk_id)
        self._host.require(vm, "resize a disk of", _CHANGEABLE)
        if disk.readonly and vm.state in _ACTIVE:
            raise Refused(f"disk {disk_id} of VM {vm_id} is read-only and cannot be grown")
        self._host.lose_answer(lost)
        return False

    async def limit_disk(self, vm_id: str, disk_id: str, limits: IoLimits) -> None:
        """See `Devices`."""
        lost = await self._host.strike(Operation.LIMIT_DISK, vm_id)
        vm = self._host.vm(vm_id)
        disk = _required(vm, vm.config.disks, "disk", disk_id)
        if disk.limits != limits:
            self._host.require(vm, "limit a disk of", _CHANGEABLE)
        await self._become(vm, replace(vm.config, disks=_with(vm.config.disks, replace(disk, limits=limits))))
        self._host.lose_answer(lost)

    async def attach_cdrom(self, vm_id: str, cdrom: CdromConfig) -> None:
        """See `Devices`."""
        lost = await self._host.strike(Operation.ATTACH_CDROM, vm_id)
        vm = self._host.vm(vm_id)
        if _find(vm.config.cdroms, cdrom.cdrom_id) is None:
            self._host.require(vm, "add a CD-ROM drive to", OFF)
            await self._become(vm, replace(vm.config, cdroms=(*vm.config.cdroms, cdrom)))
        self._host.lose_answer(lost)

    async def detach_cdrom(self, vm_id: str, cdrom_id: str) -> None:
        """See `Devices`."""
        lost = await self._host.strike(Operation.DETACH_CDROM, vm_id)
        vm = self._host.vm(vm_id)
        if _find(vm.config.cdroms, cdrom_id) is not None:
            self._host.require(vm, "remove a CD-ROM drive from", OFF)
            await self._become(vm, replace(vm.config, cdroms=_without(vm.config.cdroms, cdrom_id)))
        self._host.lose_answer(lost)

    async def change_medium(self, vm_id: str, cdrom_id: str, iso_path: Path | None) -> None:
        """See `Devices`; a deaf guest holds what is in its drives."""
        lost = await self._host.strike(Operation.CHANGE_MEDIUM, vm_id)
        vm = self._host.vm(vm_id)
        cdrom = _required(vm, vm.config.cdroms, "CD-ROM drive", cdrom_id)
        if cdrom.iso_path != iso_path:
            self._host.require(vm, "change the medium of", _CHANGEABLE)
            if vm.state is PowerState.RUNNING and cdrom.iso_path is not None and self._is_deaf(vm_id):
                raise GuestDidNotRelease(vm_id, f"CD-ROM drive {cdrom_id}", 0.0)
            changed = _with(vm.config.cdroms, replace(cdrom, iso_path=iso_path))
            await self._become(vm, replace(vm.config, cdroms=changed))
        self._host.lose_answer(lost)

    async def attach_nic(self, vm_id: str, nic: NicConfig) -> None:
        """See `Devices`; every bridge and network exists."""
        lost = await self._host.strike(Operation.ATTACH_NIC, vm_id)
        vm = self._host.vm(vm_id)
        if nic.bridge and nic.network:
            raise Refused(f"network card {nic.nic_id} names both a bridge and a network; it can be on one of them only")
        present = _find(vm.config.nics, nic.nic_id)
        if present is None:
            self._host.require(vm, "attach a network card to", _CHANGEABLE)
            if any(other.mac_address == nic.mac_address for other in vm.config.nics):
                raise DeviceExists(vm_id, f"network card with the address {nic.mac_address}")
            if vm.state in _ACTIVE and nic.model not in HOTPLUG_NIC_MODELS:
                raise WrongState(vm_id, f"attach a {nic.model.name} network card to", vm.state.value)
            await self._become(vm, replace(vm.config, nics=(*vm.config.nics, nic)))
        elif _identity(present) != _identity(nic):
            raise DeviceExists(vm_id, f"network card {nic.nic_id}")
        self._host.lose_answer(lost)

    async def detach_nic(self, vm_id: str, nic_id: str, *, timeout_s: float = RELEASE_TIMEOUT_S) -> None:
        """See `Devices`."""
        lost = await self._host.strike(Operation.DETACH_NIC, vm_id)
        vm = self._host.vm(vm_id)
        if _find(vm.config.nics, nic_id) is not None:
            self._host.require(vm, "detach a network card from", _CHANGEABLE)
            if vm.state in _ACTIVE:
                self._host.require(vm, "detach a network card from", {PowerState.RUNNING})
                await self._wait_for_release(vm, f"network card {nic_id}", timeout_s, force=False)
            await self._become(vm, replace(vm.config, nics=_without(vm.config.nics, nic_id)))
        self._host.lose_answer(lost)

    async def update_nic(self, vm_id: str, nic: NicConfig) -> None:
        """See `Devices`."""
        lost = await self._host.strike(Operation.UPDATE_NIC, vm_id)
        vm = self._host.vm(vm_id)
        present = _required(vm, vm.config.nics, "network card", nic.nic_id)
        changed = replace(present, is_link_up=nic.is_link_up, bandwidth=nic.bandwidth)
        if changed != present:
            self._host.require(vm, "change a network card of", _CHANGEABLE)
        await self._become(vm, replace(vm.config, nics=_with(vm.config.nics, changed)))
        self._host.lose_answer(lost)

    def _is_deaf(self, vm_id: str) -> bool:
        return self._host.faults.all_guests_deaf or vm_id in self._host.faults.deaf_vm_ids

    async def _wait_for_release(self, vm: MockVm, what: str, timeout_s: float, *, force: bool) -> None:
        if self._is_deaf(vm.config.vm_id):
            await self._host.sleep(timeout_s)
            if not force:
                raise GuestDidNotRelease(vm.config.vm_id, what, timeout_s)

    async def _become(self, vm: MockVm, config: VmConfig) -> None:
        if vm.config != config:
            vm.config = config
            self._host.change(vm, vm.state, EventKind.DEFINED)
        await self._host.save()


def _id_of(device: DiskConfig | CdromConfig | NicConfig) -> str:
    match device:
        case DiskConfig():
            return device.disk_id
        case CdromConfig():
            return device.cdrom_id
        case NicConfig():
            return device.nic_id


def _identity(nic: NicConfig) -> tuple[object, ...]:
    return nic.mac_address, nic.model, nic.bridge, nic.network


def _find(devices: Iterable[DeviceT], device_id: str) -> DeviceT | None:
    return next((device for device in devices if _id_of(device) == device_id), None)


def _required(vm: MockVm, devices: Iterable[DeviceT], what: str, device_id: str) -> DeviceT:
    found = _find(devices, device_id)
    if found is None:
        raise DeviceNotFound(vm.config.vm_id, f"{what} {device_id}")
    return found


def _with(devices: Iterable[DeviceT], changed: DeviceT) -> tuple[DeviceT, ...]:
    return tuple(changed if _id_of(device) == _id_of(changed) else device for device in devices)


def _without(devices: Iterable[DeviceT], device_id: str) -> tuple[DeviceT, ...]:
    return tuple(device for device in devices if _id_of(device) != device_id)
