"""Device calls over gRPC; see `grpc_pool`."""

from __future__ import annotations

from controlplane.daemons.grpc_calls import GrpcCalls
from limiquantix.node.v1 import node_daemon_pb2 as node_v1

RELEASE_S = 20.0
"""What a daemon gives a guest to let go of a device, on top of its own time."""


class GrpcDeviceCalls(GrpcCalls):
    """Part of `GrpcNodeDaemon`."""

    async def attach_disk(self, request: node_v1.AttachDiskRequest) -> None:
        await self._call(self._stub.AttachDisk, request, self._timeouts.create_s)

    async def detach_disk(self, request: node_v1.DetachDiskRequest) -> None:
        await self._call(self._stub.DetachDisk, request, self._timeouts.power_s + RELEASE_S)

    async def resize_disk(self, request: node_v1.ResizeDiskRequest) -> None:
        await self._call(self._stub.ResizeDisk, request, self._timeouts.create_s)

    async def update_disk(self, request: node_v1.UpdateDiskRequest) -> None:
        await self._call(self._stub.UpdateDisk, request, self._timeouts.power_s)

    async def attach_nic(self, request: node_v1.AttachNICRequest) -> None:
        await self._call(self._stub.AttachNIC, request, self._timeouts.power_s)

    async def detach_nic(self, request: node_v1.DetachNICRequest) -> None:
        await self._call(self._stub.DetachNIC, request, self._timeouts.power_s + RELEASE_S)

    async def update_nic(self, request: node_v1.UpdateNICRequest) -> None:
        await self._call(self._stub.UpdateNIC, request, self._timeouts.power_s)

    async def attach_cdrom(self, request: node_v1.AttachCDROMRequest) -> None:
        await self._call(self._stub.AttachCDROM, request, self._timeouts.power_s)

    async def detach_cdrom(self, request: node_v1.DetachCDROMRequest) -> None:
        await self._call(self._stub.DetachCDROM, request, self._timeouts.power_s)

    async def change_media(self, request: node_v1.ChangeMediaRequest) -> None:
        await self._call(self._stub.ChangeMedia, request, self._timeouts.power_s + RELEASE_S)

    async def settle_devices(self, request: node_v1.SettleDevicesRequest) -> None:
        await self._call(self._stub.SettleDevices, request, self._timeouts.create_s)
