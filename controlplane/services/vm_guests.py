"""Inside guests, by their agents: look, run, read, write, shut down.

None of this changes the VM, so none of it is an operation but the shutdown, which does. What is passed on is the
guest's owners' alone: it is neither kept nor logged.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from controlplane.daemons.interface import NodeDaemon
from controlplane.domain.vm import Vm, require_managed
from controlplane.operations import vm_guest_power
from controlplane.operations.desk import ANYBODY, Caller, Order
from controlplane.services.vm_calls import VmAccess
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.vm_pb2 import GuestInfo
from limiquantix.errors import ApiError, Reason
from limiquantix.node.v1 import node_daemon_pb2 as node_v1

AnswerT = TypeVar("AnswerT")

MAX_TEXT_BYTES = 2**20
"""Of one output as text, where bytes that are no UTF-8 take three each."""
NOT_RUN = -1
"""Exit code of a command that did not run, or did not end."""
_UNREACHED = frozenset({Reason.GUEST_AGENT_ABSENT, Reason.GUEST_AGENT_SILENT, Reason.GUEST_AGENT_REFUSED})


@dataclass(frozen=True, slots=True)
class GuestService:
    """The use cases of guests."""

    access: VmAccess

    async def ping(self, request: api.PingAgentRequest) -> api.PingAgentResponse:
        """Ask whether the agent is there; that it is not is an answer.

        Raises:
            FailedPrecondition: the VM does not run.
        """
        vm, daemon = await self.access.locate(request.vm_id)
        try:
            found = await daemon.ping_guest(vm.id)
        except ApiError as error:
            if error.reason not in _UNREACHED:
                raise
            return api.PingAgentResponse(connected=False, error=error.message)
        return api.PingAgentResponse(connected=True, version=found.version, uptime_seconds=found.uptime_seconds)

    async def info(self, request: api.GetGuestInfoRequest) -> api.GetGuestInfoResponse:
        """Ask about the system inside, now.

        Raises:
            FailedPrecondition: the VM does not run, or has no agent.
            DeadlineExceeded: the agent is silent.
        """
        vm, daemon = await self.access.locate(request.vm_id)
        found = await daemon.guest_info(vm.id)
        response = api.GetGuestInfoResponse(
            info=GuestInfo(
                os_name=found.os_name,
                os_version=found.os_version,
                kernel_version=found.kernel_version,
                hostname=found.hostname,
                agent_version=found.agent_version,
                uptime_seconds=found.uptime_seconds,
            ),
            frozen=found.frozen,
        )
        response.info.last_heartbeat.GetCurrentTime()
        for nic in found.interfaces:
            response.interfaces.add(name=nic.name, mac_address=nic.mac_address, ip_addresses=nic.ip_addresses)
        for each in found.file_systems:
            response.file_systems.add(
                mount_point=each.mount_point,
                type=each.type,
                device=each.device,
                total_bytes=each.total_bytes,
                used_bytes=each.used_bytes,
            )
        for user in found.users:
            entry = response.users.add(name=user.name)
            if user.HasField("logged_in_at"):
                entry.logged_in_at.CopyFrom(user.logged_in_at)
        return response

    async def execute(self, request: api.ExecuteScriptRequest) -> api.ExecuteScriptResponse:
        """Run a program; one that fails, or that cannot be started, is an answer.

        Raises:
            FailedPrecondition: the VM does not run, is not ours, or has no agent.
            DeadlineExceeded: the agent is silent; whether the command runs is unknown.
            InvalidArgument: command, arguments and environment are larger than 64 KiB.
        """
        vm, daemon = await self._to_act(request.vm_id)
        wanted = node_v1.ExecuteInGuestRequest(
            vm_id=vm.id,
            command=request.command,
            args=request.args,
            environment=request.environment,
            working_directory=request.working_directory,
            input=request.input,
            timeout_seconds=request.timeout_seconds,
            wait_for_exit=request.wait_for_exit,
        )
        found, refusal = await _answered(daemon.execute_in_guest(wanted))
        if found is None:
            return api.ExecuteScriptResponse(exit_code=NOT_RUN, error=refusal)
        stdout, is_stdout_cut = _text(found.stdout)
        stderr, is_stderr_cut = _text(found.stderr)
        has_ended = found.HasField("exit_code")
        response = api.ExecuteScriptResponse(
            success=found.exit_code == 0 and not found.timed_out,
            exit_code=found.exit_code if has_ended or not found.timed_out else NOT_RUN,
            stdout=stdout,
            stderr=stderr,
            stdout_cut=found.stdout_cut or is_stdout_cut,
            stderr_cut=found.stderr_cut or is_stderr_cut,
            timed_out=found.timed_out,
            duration_ms=found.duration_ms,
        )
        if found.timed_out:
            response.error = "it did not end in time and " + (
                "was killed" if found.killed else "still runs: the guest has no means to end it"
            )
        return response

    async def read_file(self, request: api.ReadGuestFileRequest) -> api.ReadGuestFileResponse:
        """Read the beginning of a file; that it cannot be read is an answer. Raises as `execute`."""
        vm, daemon = await self._to_act(request.vm_id)
        wanted = node_v1.ReadGuestFileRequest(vm_id=vm.id, path=request.path, max_bytes=request.max_size)
        found, refusal = await _answered(daemon.read_guest_file(wanted))
        if found is None:
            return api.ReadGuestFileResponse(error=refusal)
        return api.ReadGuestFileResponse(success=True, data=found.data, total_size=found.size_bytes)

    async def write_file(self, request: api.WriteGuestFileRequest) -> api.WriteGuestFileResponse:
        """Replace a file; that it cannot be written is an answer. Raises as `execute`."""
        vm, daemon = await self._to_act(request.vm_id)
        wanted = node_v1.WriteGuestFileRequest(
            vm_id=vm.id,
            path=request.path,
            data=request.data,
            mode=request.mode,
            create_parents=request.create_parents,
        )
        _, refusal = await _answered(daemon.write_guest_file(wanted))
        if refusal:
            return api.WriteGuestFileResponse(error=refusal)
        return api.WriteGuestFileResponse(success=True, bytes_written=len(request.data))

    async def shut_down(self, request: api.GuestShutdownRequest, caller: Caller = ANYBODY) -> api.GuestShutdownResponse:
        """Have the guest shut down or reboot; that its agent refuses is an answer.

        A caller who does not wait gets an empty answer, and the outcome with the operation.

        Raises:
            FailedPrecondition: the VM does not run, is not ours, or has no agent.
            DeadlineExceeded: the agent is silent.
        """
        order = Order(
            vm_guest_power.GuestShutdown.kind,
            request.vm_id,
            parameters=vm_guest_power.parameters_of(request),
            check=lambda vm: vm_guest_power.require_shutdown_allowed(vm, reboots=request.reboot),
        )
        operation = await self.access.desk.submit(order, caller)
        if not caller.waits and not operation.has_ended:
            return api.GuestShutdownResponse()
        return await self.access.desk.answer(operation, api.GuestShutdownResponse())

    async def set_password(self, request: api.SetGuestPasswordRequest) -> None:
        """Set a user's password.

        Raises:
            FailedPrecondition: the VM does not run, is not ours, or has no agent; or the agent refused.
            DeadlineExceeded: the agent is silent.
        """
        vm, daemon = await self._to_act(request.vm_id)
        await daemon.set_guest_password(
            node_v1.SetGuestPasswordRequest(vm_id=vm.id, user=request.user, password=request.password)
        )

    async def sync_time(self, request: api.SyncGuestTimeRequest) -> api.SyncGuestTimeResponse:
        """Set the guest's clock. Raises as `set_password`."""
        vm, daemon = await self._to_act(request.vm_id)
        return api.SyncGuestTimeResponse(ahead_seconds=(await daemon.sync_guest_time(vm.id)).ahead_seconds)

    async def freeze(self, request: api.FreezeGuestRequest) -> api.FreezeGuestResponse:
        """Hold the guest's writes for a while. Raises as `set_password`."""
        vm, daemon = await self._to_act(request.vm_id)
        found = await daemon.freeze_guest(
            node_v1.FreezeGuestRequest(vm_id=vm.id, thaw_after_seconds=request.thaw_after_seconds)
        )
        return api.FreezeGuestResponse(file_system_count=found.file_system_count, thaws_at=found.thaws_at)

    async def thaw(self, request: api.ThawGuestRequest) -> api.ThawGuestResponse:
        """Let the guest's writes go on. Raises as `set_password`."""
        vm, daemon = await self._to_act(request.vm_id)
        return api.ThawGuestResponse(file_system_count=(await daemon.thaw_guest(vm.id)).file_system_count)

    async def _to_act(self, vm_id: str) -> tuple[Vm, NodeDaemon]:
        """Find the VM and its host, for what reaches into the guest of a VM that is ours."""
        vm, daemon = await self.access.locate(vm_id)
        require_managed(vm)
        return vm, daemon


async def _answered(call: Awaitable[AnswerT]) -> tuple[AnswerT | None, str]:
    """Return a call's answer, or what the agent said when it refused."""
    try:
        return await call, ""
    except ApiError as error:
        if error.reason != Reason.GUEST_AGENT_REFUSED:
            raise
        return None, error.message


def _text(data: bytes) -> tuple[str, bool]:
    """Return output as text, and whether it had to be cut for that."""
    text = data.decode(errors="replace")
    encoded = text.encode()
    if len(encoded) <= MAX_TEXT_BYTES:
        return text, False
    return encoded[:MAX_TEXT_BYTES].decode(errors="ignore"), True
