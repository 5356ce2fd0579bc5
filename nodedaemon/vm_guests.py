"""What the control plane may ask of the agents inside this host's guests.

Nothing of what passes here is logged: commands, files and passwords belong to those who use the guest.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import structlog

from hypervisor.base import Hypervisor
from hypervisor.errors import GuestAgentRefused, HypervisorError, VmNotFound, WrongState
from hypervisor.guests import MAX_FILE_BYTES, CommandResult, FreezeStatus, GuestAgents, GuestCommand
from hypervisor.types import PowerState
from limiquantix.errors import FailedPrecondition, FieldViolation, InvalidArgument, Reason
from limiquantix.node.v1 import node_daemon_pb2 as pb
from nodedaemon.commands import Commands, VmRequest, vm_id_of
from nodedaemon.encode import timestamp

CALL_DEADLINE_S: Final = 40.0
"""Some calls of the agent one after the other, where each may take 20 s but all but one take milliseconds."""
TRANSFER_DEADLINE_S: Final = 120.0
"""A mebibyte in pieces of 64 KiB, through an agent that is slow."""
DEFAULT_TIMEOUT_S: Final = 30
DEFAULT_THAW_AFTER_S: Final = 10
_THAW_AGAIN_S: Final = 2.0
_THAW_TRIES: Final = 150
"""Five minutes and more; the regular look at all guests thaws what is left then."""
_CLOSE_DEADLINE_S: Final = 5.0

_log = structlog.get_logger(__name__)


class VmGuests:
    """The part of the service that reaches into guests."""

    def __init__(self, hypervisor: Hypervisor, commands: Commands) -> None:
        self._hypervisor = hypervisor
        self._commands = commands
        self._thawing: dict[str, asyncio.Task[None]] = {}

    async def close(self) -> None:
        """Thaw what is frozen, as far as that is done in 5 s."""
        thawing, self._thawing = self._thawing, {}
        for task in thawing.values():
            task.cancel()
        if thawing:
            thaws = {asyncio.create_task(self._thaw_once(vm_id)) for vm_id in thawing}
            _, late = await asyncio.wait(thaws, timeout=_CLOSE_DEADLINE_S)
            for thaw in late:
                thaw.cancel()

    async def ping(self, request: pb.GuestRequest) -> pb.PingGuestAgentResponse:
        """Ask for a sign of life."""
        presence = await self._commands.read(request, self._agents(request).ping, deadline_s=CALL_DEADLINE_S)
        return pb.PingGuestAgentResponse(version=presence.version, uptime_seconds=int(presence.uptime_s or 0))

    async def info(self, request: pb.GetGuestInfoRequest) -> pb.GetGuestInfoResponse:
        """Ask for everything; what an agent does not know is left out."""
        return await self._commands.read(request, self._info, deadline_s=CALL_DEADLINE_S)

    async def _info(self, vm_id: str) -> pb.GetGuestInfoResponse:
        agents = self._hypervisor.guests
        assert agents is not None  # noqa: S101 - `info` found it
        if await self._is_frozen(agents, vm_id):  # nothing else is answered meanwhile
            return pb.GetGuestInfoResponse(frozen=True)
        presence, system = await agents.ping(vm_id), await agents.system(vm_id)
        response = pb.GetGuestInfoResponse(
            os_name=system.os_name,
            os_version=system.os_version,
            kernel_version=system.kernel_version,
            hostname=system.hostname,
            agent_version=presence.version,
            uptime_seconds=int(presence.uptime_s or 0),
        )
        try:
            for nic in await agents.interfaces(vm_id):
                response.interfaces.add(name=nic.name, mac_address=nic.mac_address, ip_addresses=nic.ip_addresses)
            for each in await agents.file_systems(vm_id):
                response.file_systems.add(
                    mount_point=each.mount_point,
                    type=each.kind,
                    device=each.device,
                    total_bytes=each.total_bytes,
                    used_bytes=each.used_bytes,
                )
            for user in await agents.users(vm_id):
                entry = response.users.add(name=user.name)
                if user.logged_in_at_s:
                    entry.logged_in_at.CopyFrom(timestamp(user.logged_in_at_s))
        except GuestAgentRefused as error:
            _log.info("guest_tells_less", vm_id=vm_id, error=error.words)
        return response

    @staticmethod
    async def _is_frozen(agents: GuestAgents, vm_id: str) -> bool:
        try:
            return await agents.freeze_status(vm_id) is FreezeStatus.FROZEN
        except GuestAgentRefused:
            return False

    async def execute(self, request: pb.ExecuteInGuestRequest) -> pb.ExecuteInGuestResponse:
        """Run a program; see `GuestCommand`."""
        limit_s = request.timeout_seconds or DEFAULT_TIMEOUT_S
        try:
            command = GuestCommand(
                request.command,
                tuple(request.args),
                dict(request.environment),
                request.working_directory,
                request.input,
                float(limit_s),
                request.wait_for_exit,
            )
        except ValueError as error:
            raise InvalidArgument.from_violations([FieldViolation("command", str(error))]) from error
        agents = self._agents(request)
        result = await self._commands.read(
            request, lambda vm_id: agents.execute(vm_id, command), deadline_s=limit_s + TRANSFER_DEADLINE_S
        )
        return _to_result(result)

    async def read_file(self, request: pb.ReadGuestFileRequest) -> pb.ReadGuestFileResponse:
        """Read the beginning of a file."""
        agents, max_bytes = self._agents(request), request.max_bytes or MAX_FILE_BYTES
        file = await self._commands.read(
            request,
            lambda vm_id: agents.read_file(vm_id, request.path, max_bytes),
            deadline_s=TRANSFER_DEADLINE_S,
        )
        return pb.ReadGuestFileResponse(data=file.data, size_bytes=file.size_bytes)

    async def write_file(self, request: pb.WriteGuestFileRequest) -> None:
        """Replace a file."""
        agents = self._agents(request)
        await self._commands.read(
            request,
            lambda vm_id: agents.write_file(
                vm_id, request.path, request.data, request.mode, makes_parents=request.create_parents
            ),
            deadline_s=TRANSFER_DEADLINE_S,
        )

    async def set_password(self, request: pb.SetGuestPasswordRequest) -> None:
        """Set a user's password."""
        agents = self._agents(request)
        await self._commands.read(
            request,
            lambda vm_id: agents.set_password(vm_id, request.user, request.password),
            deadline_s=CALL_DEADLINE_S,
        )

    async def sync_time(self, request: pb.GuestRequest) -> pb.SyncGuestTimeResponse:
        """Set the guest's clock."""
        ahead_s = await self._commands.read(request, self._agents(request).sync_time, deadline_s=CALL_DEADLINE_S)
        return pb.SyncGuestTimeResponse(ahead_seconds=ahead_s)

    async def shut_down(self, request: pb.ShutdownGuestRequest) -> None:
        """Have the guest shut down; in the VM's queue, and not in the way of a newer command. Fine if it is off."""
        agents, vm_id = self._agents(request), vm_id_of(request)

        async def shut_down() -> None:
            try:
                await agents.shut_down(
                    vm_id, reboots=request.reboot, delay_s=request.delay_seconds, message=request.message
                )
            except WrongState as error:
                if request.reboot or error.state != PowerState.STOPPED.value:
                    raise

        await self._commands.change(
            request,
            shut_down,
            deadline_s=CALL_DEADLINE_S,
            takes_slot=False,
            is_interruptible=True,
        )

    async def freeze(self, request: pb.FreezeGuestRequest) -> pb.FreezeGuestResponse:
        """Freeze, with the thaw arranged before; one that is frozen already is refused by its agent."""
        agents, vm_id = self._agents(request), vm_id_of(request)
        limit_s = request.thaw_after_seconds or DEFAULT_THAW_AFTER_S
        thaws_at_s = time.time() + limit_s
        is_first = vm_id not in self._thawing
        if is_first:
            self._thawing[vm_id] = asyncio.create_task(self._thaw_later(vm_id, limit_s), name=f"thaw-{vm_id}")
        try:
            count = await self._commands.read(request, agents.freeze, deadline_s=float(limit_s))
        except FailedPrecondition:  # surely not frozen by this; after anything else it may be
            if is_first:
                self._forget_thaw(vm_id)
            raise
        return pb.FreezeGuestResponse(file_system_count=count, thaws_at=timestamp(thaws_at_s))

    async def thaw(self, request: pb.GuestRequest) -> pb.ThawGuestResponse:
        """Thaw now."""
        count = await self._commands.read(request, self._agents(request).thaw, deadline_s=CALL_DEADLINE_S)
        self._forget_thaw(vm_id_of(request))
        return pb.ThawGuestResponse(file_system_count=count)

    def _forget_thaw(self, vm_id: str) -> None:
        task = self._thawing.pop(vm_id, None)
        if task is not None:
            task.cancel()

    async def _thaw_later(self, vm_id: str, after_s: float) -> None:
        await asyncio.sleep(after_s)
        try:
            for _ in range(_THAW_TRIES):
                if await self._thaw_once(vm_id):
                    return
                await asyncio.sleep(_THAW_AGAIN_S)
            _log.error("guest_not_thawed", vm_id=vm_id, tries=_THAW_TRIES)
        finally:
            if self._thawing.get(vm_id) is asyncio.current_task():
                del self._thawing[vm_id]

    async def _thaw_once(self, vm_id: str) -> bool:
        """Try to thaw; returns whether there is nothing left to thaw."""
        agents = self._hypervisor.guests
        if agents is None:
            return True
        try:
            count = await agents.thaw(vm_id)
        except VmNotFound:
            return True
        except HypervisorError as error:
            if isinstance(error, WrongState) and error.state != PowerState.PAUSED.value:
                return True  # a guest that is off is not frozen
            _log.warning("guest_not_thawed_yet", vm_id=vm_id, error=type(error).__name__)
            return False
        if count:
            _log.warning("guest_thawed_in_time", vm_id=vm_id, file_system_count=count)
        return True

    def _agents(self, request: VmRequest) -> GuestAgents:
        if self._hypervisor.guests is None:
            raise FailedPrecondition(
                Reason.HOST_LACKS,
                "the hypervisor of this host does not reach agents inside guests",
                metadata={"vm_id": vm_id_of(request)},
            )
        return self._hypervisor.guests


def _to_result(result: CommandResult) -> pb.ExecuteInGuestResponse:
    response = pb.ExecuteInGuestResponse(
        stdout=result.stdout,
        stderr=result.stderr,
        stdout_cut=result.is_stdout_cut,
        stderr_cut=result.is_stderr_cut,
        timed_out=result.has_timed_out,
        killed=result.was_killed,
        duration_ms=int(result.duration_s * 1000),
    )
    if result.exit_code is not None:
        response.exit_code = result.exit_code
    return response
