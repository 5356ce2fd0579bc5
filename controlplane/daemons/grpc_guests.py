"""The calls that are about agents inside guests, over gRPC; see `grpc_pool`."""

from __future__ import annotations

from typing import Final

from controlplane.daemons.grpc_calls import GrpcCalls
from limiquantix.node.v1 import node_daemon_pb2 as node_v1

GUEST_CALL_S: Final = 60.0
GUEST_TRANSFER_S: Final = 150.0
"""More than the daemon allows itself, so that its reason is heard and not that its time was up."""
DEFAULT_COMMAND_S: Final = 30


class GrpcGuestCalls(GrpcCalls):
    """Implements `GuestCalls`."""

    async def ping_guest(self, vm_id: str) -> node_v1.PingGuestAgentResponse:
        return await self._call(self._stub.PingGuestAgent, node_v1.GuestRequest(vm_id=vm_id), GUEST_CALL_S)

    async def guest_info(self, vm_id: str) -> node_v1.GetGuestInfoResponse:
        return await self._call(self._stub.GetGuestInfo, node_v1.GetGuestInfoRequest(vm_id=vm_id), GUEST_CALL_S)

    async def execute_in_guest(self, request: node_v1.ExecuteInGuestRequest) -> node_v1.ExecuteInGuestResponse:
        limit_s = (request.timeout_seconds or DEFAULT_COMMAND_S) if request.wait_for_exit else 0
        return await self._call(self._stub.ExecuteInGuest, request, limit_s + GUEST_TRANSFER_S)

    async def read_guest_file(self, request: node_v1.ReadGuestFileRequest) -> node_v1.ReadGuestFileResponse:
        return await self._call(self._stub.ReadGuestFile, request, GUEST_TRANSFER_S)

    async def write_guest_file(self, request: node_v1.WriteGuestFileRequest) -> None:
        await self._call(self._stub.WriteGuestFile, request, GUEST_TRANSFER_S)

    async def shut_down_guest(self, request: node_v1.ShutdownGuestRequest) -> None:
        await self._call(self._stub.ShutdownGuest, request, GUEST_CALL_S)

    async def set_guest_password(self, request: node_v1.SetGuestPasswordRequest) -> None:
        await self._call(self._stub.SetGuestPassword, request, GUEST_CALL_S)

    async def sync_guest_time(self, vm_id: str) -> node_v1.SyncGuestTimeResponse:
        return await self._call(self._stub.SyncGuestTime, node_v1.GuestRequest(vm_id=vm_id), GUEST_CALL_S)

    async def freeze_guest(self, request: node_v1.FreezeGuestRequest) -> node_v1.FreezeGuestResponse:
        return await self._call(self._stub.FreezeGuest, request, GUEST_CALL_S + request.thaw_after_seconds)

    async def thaw_guest(self, vm_id: str) -> node_v1.ThawGuestResponse:
        return await self._call(self._stub.ThawGuest, node_v1.GuestRequest(vm_id=vm_id), GUEST_CALL_S)
