"""Agents of fake hosts' guests: they answer with what they were asked, unless the guest is off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from limiquantix.errors import FailedPrecondition, Reason
from limiquantix.node.v1 import node_daemon_pb2 as node_v1


def refused(words: str = "No such file or directory") -> FailedPrecondition:
    """What a host says when an agent refuses."""
    return FailedPrecondition(Reason.GUEST_AGENT_REFUSED, f"the guest agent refused: {words}")


def absent() -> FailedPrecondition:
    """What a host says when there is no agent."""
    return FailedPrecondition(Reason.GUEST_AGENT_ABSENT, "no guest agent is connected")


class FakeGuestCalls:
    """Part of `FakeDaemon`, which notes the calls and knows the VMs."""

    guest_result: node_v1.ExecuteInGuestResponse
    guest_requests: list[Any]
    vms: Any

    async def _called(self, method: str, vm_id: str, act: Callable[[], Any], generation: int = 0) -> None:
        raise NotImplementedError

    def set_state(self, vm_id: str, state: node_v1.PowerState.ValueType) -> None:
        raise NotImplementedError

    async def _asked(self, method: str, vm_id: str, request: Any = None) -> None:
        await self._called(method, vm_id, lambda: self._note(vm_id, request))

    def _note(self, vm_id: str, request: Any) -> None:
        if self.vms[vm_id].state != node_v1.POWER_STATE_RUNNING:
            raise FailedPrecondition(Reason.VM_STATE_FORBIDS, "the VM does not run", metadata={"vm_id": vm_id})
        self.guest_requests.append(request)

    async def ping_guest(self, vm_id: str) -> node_v1.PingGuestAgentResponse:
        """See `NodeDaemon`, as all below."""
        await self._asked("ping_guest", vm_id)
        return node_v1.PingGuestAgentResponse(version="7.2", uptime_seconds=60)

    async def guest_info(self, vm_id: str) -> node_v1.GetGuestInfoResponse:
        await self._asked("guest_info", vm_id)
        return node_v1.GetGuestInfoResponse(
            hostname="inside",
            agent_version="7.2",
            interfaces=[node_v1.GuestInterface(name="eth0", ip_addresses=["10.0.0.1"])],
            file_systems=[node_v1.GuestFileSystem(mount_point="/", type="ext4", total_bytes=100, used_bytes=40)],
            users=[node_v1.GuestUser(name="ann", logged_in_at=Timestamp(seconds=7)), node_v1.GuestUser(name="bob")],
        )

    async def execute_in_guest(self, request: node_v1.ExecuteInGuestRequest) -> node_v1.ExecuteInGuestResponse:
        await self._asked("execute_in_guest", request.vm_id, request)
        return self.guest_result

    async def read_guest_file(self, request: node_v1.ReadGuestFileRequest) -> node_v1.ReadGuestFileResponse:
        await self._asked("read_guest_file", request.vm_id, request)
        return node_v1.ReadGuestFileResponse(data=b"contents", size_bytes=1000)

    async def write_guest_file(self, request: node_v1.WriteGuestFileRequest) -> None:
        await self._asked("write_guest_file", request.vm_id, request)

    async def shut_down_guest(self, request: node_v1.ShutdownGuestRequest) -> None:
        def act() -> None:
            self._note(request.vm_id, request)
            if not request.reboot and not request.delay_seconds:
                self.set_state(request.vm_id, node_v1.POWER_STATE_STOPPED)

        await self._called("shut_down_guest", request.vm_id, act, request.generation)

    async def set_guest_password(self, request: node_v1.SetGuestPasswordRequest) -> None:
        await self._asked("set_guest_password", request.vm_id, request)

    async def sync_guest_time(self, vm_id: str) -> node_v1.SyncGuestTimeResponse:
        await self._asked("sync_guest_time", vm_id)
        return node_v1.SyncGuestTimeResponse(ahead_seconds=-1.5)

    async def freeze_guest(self, request: node_v1.FreezeGuestRequest) -> node_v1.FreezeGuestResponse:
        await self._asked("freeze_guest", request.vm_id, request)
        return node_v1.FreezeGuestResponse(file_system_count=2, thaws_at=Timestamp(seconds=9))

    async def thaw_guest(self, vm_id: str) -> node_v1.ThawGuestResponse:
        await self._asked("thaw_guest", vm_id)
        return node_v1.ThawGuestResponse(file_system_count=2)


class FakeGuestServicer:
    """Part of `FakeDaemonServicer`: the same over the daemon's contract."""

    _daemon: Any

    async def PingGuestAgent(self, request: node_v1.GuestRequest, context: Any) -> node_v1.PingGuestAgentResponse:
        return await self._daemon.ping_guest(request.vm_id)  # type: ignore[no-any-return]

    async def GetGuestInfo(self, request: node_v1.GetGuestInfoRequest, context: Any) -> node_v1.GetGuestInfoResponse:
        return await self._daemon.guest_info(request.vm_id)  # type: ignore[no-any-return]

    async def ExecuteInGuest(
        self, request: node_v1.ExecuteInGuestRequest, context: Any
    ) -> node_v1.ExecuteInGuestResponse:
        return await self._daemon.execute_in_guest(request)  # type: ignore[no-any-return]

    async def ReadGuestFile(self, request: node_v1.ReadGuestFileRequest, context: Any) -> node_v1.ReadGuestFileResponse:
        return await self._daemon.read_guest_file(request)  # type: ignore[no-any-return]

    async def WriteGuestFile(self, request: node_v1.WriteGuestFileRequest, context: Any) -> Empty:
        await self._daemon.write_guest_file(request)
        return Empty()

    async def ShutdownGuest(self, request: node_v1.ShutdownGuestRequest, context: Any) -> Empty:
        await self._daemon.shut_down_guest(request)
        return Empty()

    async def SetGuestPassword(self, request: node_v1.SetGuestPasswordRequest, context: Any) -> Empty:
        await self._daemon.set_guest_password(request)
        return Empty()

    async def SyncGuestTime(self, request: node_v1.GuestRequest, context: Any) -> node_v1.SyncGuestTimeResponse:
        return await self._daemon.sync_guest_time(request.vm_id)  # type: ignore[no-any-return]

    async def FreezeGuest(self, request: node_v1.FreezeGuestRequest, context: Any) -> node_v1.FreezeGuestResponse:
        return await self._daemon.freeze_guest(request)  # type: ignore[no-any-return]

    async def ThawGuest(self, request: node_v1.GuestRequest, context: Any) -> node_v1.ThawGuestResponse:
        return await self._daemon.thaw_guest(request.vm_id)  # type: ignore[no-any-return]
