"""Devices of fake hosts' VMs: kept in the spec that the host was given, as the host would have them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.empty_pb2 import Empty

from limiquantix.errors import NotFound, Reason
from limiquantix.node.v1 import node_daemon_pb2 as node_v1


def put(devices: Any, wanted: Any) -> None:
    """Add a device, or put it in place of the one of its id."""
    for device in devices:
        if device.id == wanted.id:
            device.CopyFrom(wanted)
            return
    devices.add().CopyFrom(wanted)


def drop(devices: Any, device_id: str) -> None:
    """Take a device away; fine if there is none."""
    kept = [device for device in devices if device.id != device_id]
    del devices[:]
    devices.extend(kept)


def find(devices: Any, device_id: str) -> Any:
    """Find a device."""
    for device in devices:
        if device.id == device_id:
            return device
    raise NotFound(Reason.DEVICE_NOT_FOUND, f"there is no device {device_id}")


class FakeDeviceCalls:
    """Part of `FakeDaemon`, which has `_vm` and `_called`."""

    def _vm(self, vm_id: str) -> Any:
        raise NotImplementedError

    async def _called(self, method: str, vm_id: str, act: Callable[[], Any], generation: int = 0) -> None:
        raise NotImplementedError

    def _spec(self, vm_id: str) -> node_v1.VMSpec:
        spec: node_v1.VMSpec = self._vm(vm_id).spec
        return spec

    async def attach_disk(self, request: node_v1.AttachDiskRequest) -> None:
        await self._act("attach_disk", request, lambda spec: put(spec.disks, request.disk))

    async def detach_disk(self, request: node_v1.DetachDiskRequest) -> None:
        await self._act("detach_disk", request, lambda spec: drop(spec.disks, request.disk_id))

    async def resize_disk(self, request: node_v1.ResizeDiskRequest) -> None:
        def resize(spec: node_v1.VMSpec) -> None:
            find(spec.disks, request.disk_id).size_gib = request.size_gib

        await self._act("resize_disk", request, resize)

    async def update_disk(self, request: node_v1.UpdateDiskRequest) -> None:
        await self._act(
            "update_disk",
            request,
            lambda spec: find(spec.disks, request.disk_id).io_limits.CopyFrom(request.io_limits),
        )

    async def attach_nic(self, request: node_v1.AttachNICRequest) -> None:
        await self._act("attach_nic", request, lambda spec: put(spec.nics, request.nic))

    async def detach_nic(self, request: node_v1.DetachNICRequest) -> None:
        await self._act("detach_nic", request, lambda spec: drop(spec.nics, request.nic_id))

    async def update_nic(self, request: node_v1.UpdateNICRequest) -> None:
        await self._act("update_nic", request, lambda spec: find(spec.nics, request.nic.id).CopyFrom(request.nic))

    async def attach_cdrom(self, request: node_v1.AttachCDROMRequest) -> None:
        await self._act("attach_cdrom", request, lambda spec: put(spec.cdroms, request.cdrom))

    async def detach_cdrom(self, request: node_v1.DetachCDROMRequest) -> None:
        await self._act("detach_cdrom", request, lambda spec: drop(spec.cdroms, request.cdrom_id))

    async def change_media(self, request: node_v1.ChangeMediaRequest) -> None:
        def change(spec: node_v1.VMSpec) -> None:
            drive = find(spec.cdroms, request.device)
            drive.iso_path, drive.connected = request.iso_path, bool(request.iso_path)

        await self._act("change_media", request, change)

    async def settle_devices(self, request: node_v1.SettleDevicesRequest) -> None:
        def settle(spec: node_v1.VMSpec) -> None:
            for name in ("disks", "nics", "cdroms"):
                spec.ClearField(name)
                getattr(spec, name).extend(getattr(request, name))

        await self._act("settle_devices", request, settle)

    async def _act(self, method: str, request: Any, act: Callable[[node_v1.VMSpec], None]) -> None:
        await self._called(method, request.vm_id, lambda: act(self._spec(request.vm_id)), request.generation)


class FakeDeviceServicer:
    """Part of `FakeDaemonServicer`, which has the daemon."""

    _daemon: Any

    async def AttachDisk(self, request: node_v1.AttachDiskRequest, context: Any) -> Empty:
        await self._daemon.attach_disk(request)
        return Empty()

    async def DetachDisk(self, request: node_v1.DetachDiskRequest, context: Any) -> Empty:
        await self._daemon.detach_disk(request)
        return Empty()

    async def ResizeDisk(self, request: node_v1.ResizeDiskRequest, context: Any) -> Empty:
        await self._daemon.resize_disk(request)
        return Empty()

    async def UpdateDisk(self, request: node_v1.UpdateDiskRequest, context: Any) -> Empty:
        await self._daemon.update_disk(request)
        return Empty()

    async def AttachNIC(self, request: node_v1.AttachNICRequest, context: Any) -> Empty:
        await self._daemon.attach_nic(request)
        return Empty()

    async def DetachNIC(self, request: node_v1.DetachNICRequest, context: Any) -> Empty:
        await self._daemon.detach_nic(request)
        return Empty()

    async def UpdateNIC(self, request: node_v1.UpdateNICRequest, context: Any) -> Empty:
        await self._daemon.update_nic(request)
        return Empty()

    async def AttachCDROM(self, request: node_v1.AttachCDROMRequest, context: Any) -> Empty:
        await self._daemon.attach_cdrom(request)
        return Empty()

    async def DetachCDROM(self, request: node_v1.DetachCDROMRequest, context: Any) -> Empty:
        await self._daemon.detach_cdrom(request)
        return Empty()

    async def ChangeMedia(self, request: node_v1.ChangeMediaRequest, context: Any) -> Empty:
        await self._daemon.change_media(request)
        return Empty()

    async def SettleDevices(self, request: node_v1.SettleDevicesRequest, context: Any) -> Empty:
        await self._daemon.settle_devices(request)
        return Empty()
