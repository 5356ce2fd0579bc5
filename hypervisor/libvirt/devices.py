"""Devices of domains: the waiting that goes with them, in the loop; what libvirt is asked is in `domain_devices`."""

from __future__ import annotations

import asyncio
import weakref
from functools import partial
from pathlib import Path
from typing import Final

from hypervisor.devices import RELEASE_TIMEOUT_S, Devices, VmDevices
from hypervisor.errors import GuestDidNotRelease
from hypervisor.libvirt import domain_xml
from hypervisor.libvirt.device_xml import DeviceKind, alias_of
from hypervisor.libvirt.domain_devices import DomainDevices
from hypervisor.libvirt.domain_state import RawEvent, RawKind
from hypervisor.libvirt.visits import Visits
from hypervisor.types import CdromConfig, DiskConfig, IoLimits, NicConfig

LOOK_AGAIN_S: Final = 1.0
"""How often a guest that was asked to let go is looked at without being told: an event may be lost with libvirt."""


class LibvirtDevices(Devices):
    """`Devices` on libvirt; see there for the rules of every method."""

    def __init__(self, visits: Visits) -> None:
        self._visits = visits
        self._domains = DomainDevices(visits.connection.library, visits.operations)
        self._waiting: weakref.WeakValueDictionary[str, asyncio.Event] = weakref.WeakValueDictionary()

    def note(self, event: RawEvent) -> None:
        """In the loop: take note of an event; one of a device wakes whoever waits for that VM's guest."""
        if event.kind is RawKind.DEVICE_REMOVED and (waiting := self._waiting.get(event.vm_id)) is not None:
            waiting.set()

    async def list(self, vm_id: str) -> VmDevices:
        """See `Devices`."""
        return await self._visits.look(vm_id, lambda domain: self._domains.read(domain.connect(), vm_id))

    async def attach_disk(self, vm_id: str, disk: DiskConfig) -> None:
        """See `Devices`. The first SCSI disk of a VM brings the controller along."""
        await self._visits.change(vm_id, partial(self._domains.attach_disk, vm_id, disk))

    async def detach_disk(
        self, vm_id: str, disk_id: str, *, timeout_s: float = RELEASE_TIMEOUT_S, force: bool = False
    ) -> None:
        """See `Devices`."""
        await self._detach(vm_id, DeviceKind.DISK, disk_id, timeout_s, force=force)

    async def resize_disk(self, vm_id: str, disk_id: str, size_bytes: int) -> bool:
        """See `Devices`."""
        return await self._visits.change(vm_id, partial(self._domains.resize_disk, vm_id, disk_id, size_bytes))

    async def limit_disk(self, vm_id: str, disk_id: str, limits: IoLimits) -> None:
        """See `Devices`."""
        await self._visits.change(vm_id, partial(self._domains.limit_disk, vm_id, disk_id, limits))

    async def attach_cdrom(self, vm_id: str, cdrom: CdromConfig) -> None:
        """See `Devices`."""
        await self._visits.change(vm_id, partial(self._domains.attach_cdrom, vm_id, cdrom))

    async def detach_cdrom(self, vm_id: str, cdrom_id: str) -> None:
        """See `Devices`."""
        await self._visits.change(vm_id, partial(self._domains.detach_cdrom, vm_id, cdrom_id))

    async def change_medium(self, vm_id: str, cdrom_id: str, iso_path: Path | None) -> None:
        """See `Devices`."""
        await self._visits.change(vm_id, partial(self._domains.change_medium, vm_id, cdrom_id, iso_path))

    async def attach_nic(self, vm_id: str, nic: NicConfig) -> None:
        """See `Devices`."""
        await self._visits.change(vm_id, partial(self._domains.attach_nic, vm_id, nic))

    async def detach_nic(self, vm_id: str, nic_id: str, *, timeout_s: float = RELEASE_TIMEOUT_S) -> None:
        """See `Devices`."""
        await self._detach(vm_id, DeviceKind.NIC, nic_id, timeout_s, force=False)

    async def update_nic(self, vm_id: str, nic: NicConfig) -> None:
        """See `Devices`."""
        await self._visits.change(vm_id, partial(self._domains.update_nic, vm_id, nic))

    async def _detach(self, vm_id: str, kind: DeviceKind, device_id: str, timeout_s: float, *, force: bool) -> None:
        """Ask the guest, and wait for libvirt's word that it let go; only then change the definition."""
        alias, is_gone = alias_of(kind, device_id), asyncio.Event()
        domain_xml.require_uuid(vm_id)
        self._waiting[vm_id] = is_gone
        until_s = asyncio.get_running_loop().time() + timeout_s
        if not await self._visits.change(vm_id, partial(self._domains.ask_to_release, vm_id, kind, device_id)):
            return
        while not await self._visits.change(vm_id, partial(self._domains.has_let_go, vm_id, alias)):
            left_s = until_s - asyncio.get_running_loop().time()
            if left_s <= 0:
                break
            try:
                async with asyncio.timeout(min(left_s, LOOK_AGAIN_S)):
                    await is_gone.wait()
            except TimeoutError:
                continue
            is_gone.clear()
        else:
            return
        if not force:
            what = "network card" if kind is DeviceKind.NIC else "disk"
            raise GuestDidNotRelease(vm_id, f"{what} {device_id}", timeout_s)
        await self._visits.change(vm_id, partial(self._domains.detach_stored, vm_id, alias))
