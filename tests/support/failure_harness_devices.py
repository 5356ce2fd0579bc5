"""Devices in the failure harness: the mock's, whose changes are boundaries, and the calls that ask for them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from hypervisor.devices import RELEASE_TIMEOUT_S, Devices, VmDevices
from hypervisor.types import CdromConfig, DiskConfig, IoLimits, NicConfig
from limiquantix.node.v1 import node_daemon_pb2 as pb
from tests.support.failure_harness_faults import Place


class WatchedDevices(Devices):
    """The mock's devices."""

    def __init__(self, real: Devices | None, at: Callable[[Place, str], Awaitable[None]]) -> None:
        assert real is not None
        self._real = real
        self._at = at

    async def list(self, vm_id: str) -> VmDevices:
        """See `Devices`, as all below."""
        return await self._real.list(vm_id)

    async def attach_disk(self, vm_id: str, disk: DiskConfig) -> None:
        await self._between("attach_disk", partial(self._real.attach_disk, vm_id, disk))

    async def detach_disk(
        self, vm_id: str, disk_id: str, *, timeout_s: float = RELEASE_TIMEOUT_S, force: bool = False
    ) -> None:
        act = partial(self._real.detach_disk, vm_id, disk_id, timeout_s=timeout_s, force=force)
        await self._between("detach_disk", act)

    async def resize_disk(self, vm_id: str, disk_id: str, size_bytes: int) -> bool:
        await self._between("resize_disk", partial(self._real.resize_disk, vm_id, disk_id, size_bytes))
        return False

    async def limit_disk(self, vm_id: str, disk_id: str, limits: IoLimits) -> None:
        await self._between("limit_disk", partial(self._real.limit_disk, vm_id, disk_id, limits))

    async def attach_cdrom(self, vm_id: str, cdrom: CdromConfig) -> None:
        await self._between("attach_cdrom", partial(self._real.attach_cdrom, vm_id, cdrom))

    async def detach_cdrom(self, vm_id: str, cdrom_id: str) -> None:
        await self._between("detach_cdrom", partial(self._real.detach_cdrom, vm_id, cdrom_id))

    async def change_medium(self, vm_id: str, cdrom_id: str, iso_path: Path | None) -> None:
        await self._between("change_medium", partial(self._real.change_medium, vm_id, cdrom_id, iso_path))

    async def attach_nic(self, vm_id: str, nic: NicConfig) -> None:
        await self._between("attach_nic", partial(self._real.attach_nic, vm_id, nic))

    async def detach_nic(self, vm_id: str, nic_id: str, *, timeout_s: float = RELEASE_TIMEOUT_S) -> None:
        await self._between("detach_nic", partial(self._real.detach_nic, vm_id, nic_id, timeout_s=timeout_s))

    async def update_nic(self, vm_id: str, nic: NicConfig) -> None:
        await self._between("update_nic", partial(self._real.update_nic, vm_id, nic))

    async def _between(self, what: str, act: Callable[[], Awaitable[Any]]) -> None:
        await self._at(Place.BEFORE_ACT, f"devices.{what}")
        await act()
        await self._at(Place.AFTER_ACT, f"devices.{what}")


class DeviceHostCalls:
    """Part of `HostCalls`, which has `_call`."""

    async def _call(self, method: str, request: Message) -> Any:
        raise NotImplementedError

    async def attach_disk(self, request: pb.AttachDiskRequest) -> None:
        await self._call("AttachDisk", request)

    async def detach_disk(self, request: pb.DetachDiskRequest) -> None:
        await self._call("DetachDisk", request)

    async def resize_disk(self, request: pb.ResizeDiskRequest) -> None:
        await self._call("ResizeDisk", request)

    async def update_disk(self, request: pb.UpdateDiskRequest) -> None:
        await self._call("UpdateDisk", request)

    async def attach_nic(self, request: pb.AttachNICRequest) -> None:
        await self._call("AttachNIC", request)

    async def detach_nic(self, request: pb.DetachNICRequest) -> None:
        await self._call("DetachNIC", request)

    async def update_nic(self, request: pb.UpdateNICRequest) -> None:
        await self._call("UpdateNIC", request)

    async def attach_cdrom(self, request: pb.AttachCDROMRequest) -> None:
        await self._call("AttachCDROM", request)

    async def detach_cdrom(self, request: pb.DetachCDROMRequest) -> None:
        await self._call("DetachCDROM", request)

    async def change_media(self, request: pb.ChangeMediaRequest) -> None:
        await self._call("ChangeMedia", request)

    async def settle_devices(self, request: pb.SettleDevicesRequest) -> None:
        await self._call("SettleDevices", request)
