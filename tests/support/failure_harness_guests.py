"""Agents of guests in the failure harness: the calls that reach them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message

from controlplane.operations.desk import Caller
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.node.v1 import node_daemon_pb2 as pb

if TYPE_CHECKING:
    from tests.support.failure_harness_scene import Scene


def _ask_guest_down(*, reboot: bool) -> Callable[[Scene, Caller], Awaitable[object]]:
    return lambda scene, caller: scene.plane.guests.shut_down(
        api.GuestShutdownRequest(vm_id=scene.vm_id, reboot=reboot), caller
    )


GUEST_DOWN, GUEST_REBOOT = _ask_guest_down(reboot=False), _ask_guest_down(reboot=True)
"""Have the subject's agent shut it down, or reboot it."""


class GuestHostCalls:
    """Part of `HostCalls`."""

    async def _call(self, method: str, request: Message) -> Any:
        raise NotImplementedError

    async def ping_guest(self, vm_id: str) -> pb.PingGuestAgentResponse:
        """See `NodeDaemon`, as all below."""
        return await self._call("PingGuestAgent", pb.GuestRequest(vm_id=vm_id))  # type: ignore[no-any-return]

    async def guest_info(self, vm_id: str) -> pb.GetGuestInfoResponse:
        return await self._call("GetGuestInfo", pb.GetGuestInfoRequest(vm_id=vm_id))  # type: ignore[no-any-return]

    async def execute_in_guest(self, request: pb.ExecuteInGuestRequest) -> pb.ExecuteInGuestResponse:
        return await self._call("ExecuteInGuest", request)  # type: ignore[no-any-return]

    async def read_guest_file(self, request: pb.ReadGuestFileRequest) -> pb.ReadGuestFileResponse:
        return await self._call("ReadGuestFile", request)  # type: ignore[no-any-return]

    async def write_guest_file(self, request: pb.WriteGuestFileRequest) -> None:
        await self._call("WriteGuestFile", request)

    async def shut_down_guest(self, request: pb.ShutdownGuestRequest) -> None:
        await self._call("ShutdownGuest", request)

    async def set_guest_password(self, request: pb.SetGuestPasswordRequest) -> None:
        await self._call("SetGuestPassword", request)

    async def sync_guest_time(self, vm_id: str) -> pb.SyncGuestTimeResponse:
        return await self._call("SyncGuestTime", pb.GuestRequest(vm_id=vm_id))  # type: ignore[no-any-return]

    async def freeze_guest(self, request: pb.FreezeGuestRequest) -> pb.FreezeGuestResponse:
        return await self._call("FreezeGuest", request)  # type: ignore[no-any-return]

    async def thaw_guest(self, vm_id: str) -> pb.ThawGuestResponse:
        return await self._call("ThawGuest", pb.GuestRequest(vm_id=vm_id))  # type: ignore[no-any-return]
