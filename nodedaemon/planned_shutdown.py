"""What becomes of VMs when this host is shut down or rebooted on purpose: the control plane is asked, and told the end.

Only where the machine goes down; a daemon that is merely restarted leaves its VMs alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Final, Protocol

import structlog

from hypervisor.base import Hypervisor
from hypervisor.errors import HypervisorError
from hypervisor.types import PowerState
from limiquantix.compute.v1.node_service_pb2 import AnnounceShutdownRequest, AnnounceShutdownResponse
from limiquantix.errors import ApiError
from nodedaemon.self_fencing.lease import Clock, boottime_ns

STATE_COMMAND: Final = ("systemctl", "is-system-running")
JOBS_COMMAND: Final = ("systemctl", "list-jobs", "--no-legend", "--plain")
_ASK_DEADLINE_S: Final = 5.0
_ANNOUNCE_PAUSE_S: Final = 1.0
_CALL_OFF_PAUSE_S: Final = 1.0
_LOOK_S: Final = 0.5
_IN_MEMORY: Final = frozenset({PowerState.RUNNING, PowerState.PAUSED})

Kind = AnnounceShutdownRequest.Kind
Policy = AnnounceShutdownResponse.Policy

_log = structlog.get_logger(__name__)


class Announcing(Protocol):
    """Where a shutdown is told."""

    async def announce_shutdown(self, request: AnnounceShutdownRequest) -> AnnounceShutdownResponse:
        """Tell, and hear what shall become of the VMs."""
        ...


async def read_host_end(marker: Path | None = None) -> AnnounceShutdownRequest.Kind.ValueType | None:
    """Find out whether the machine itself is going down, and how; None if it is not.

    Args:
        marker: a file that says so where there is no systemd, with "poweroff" or "reboot" in it.
    """
    if marker is not None and (words := await asyncio.to_thread(_read, marker)) is not None:
        return Kind.REBOOT if "reboot" in words else Kind.POWER_OFF
    if (await _output(STATE_COMMAND)).strip() != "stopping":
        return None
    jobs = await _output(JOBS_COMMAND)
    return Kind.REBOOT if "reboot.target" in jobs or "kexec.target" in jobs else Kind.POWER_OFF


def _read(marker: Path) -> str | None:
    try:
        return marker.read_text()
    except OSError:
        return None


async def _output(command: tuple[str, ...]) -> str:
    """Return what a command prints; "" if it cannot be run or takes too long."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
    except OSError:
        return ""
    try:
        async with asyncio.timeout(_ASK_DEADLINE_S):
            text, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return ""
    return text.decode(errors="replace")


async def _nothing() -> None:
    pass


class Door(Protocol):
    """Where changes of VMs come in; see `FenceGate`."""

    @property
    def is_shut(self) -> bool:
        """Whether a daemon of this boot said that it ended all VMs."""
        ...

    def close(self) -> None:
        """Let no change in, as long as this daemon runs."""
        ...

    async def shut(self) -> None:
        """Let none in for all of this boot."""
        ...

    async def reopen(self) -> None:
        """Let changes in again that a daemon before shut out."""
        ...


class PlannedShutdown:
    """Carries out what the policy says.

    Args:
        control_plane: None where this host has none; its VMs are then ended in good order.
        stop_s: how long guests have to shut down before their plug is pulled.
        migrate_s: how long VMs may take to be moved away.
        door: has no change of a VM let in from then on, so that none is started after all have ended.
        under_way: marks of changes that were let in before and are not over.
        beat: tells all control planes how this host is now; it raises nothing.
    """

    def __init__(
        self,
        hypervisor: Hypervisor,
        control_plane: Announcing | None,
        node_id: Callable[[], str],
        boot_id: str,
        *,
        stop_s: float,
        migrate_s: float,
        door: Door,
        under_way: Callable[[], Collection[object]] = tuple,
        beat: Callable[[], Awaitable[None]] = _nothing,
        now_ns: Clock = boottime_ns,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._hypervisor = hypervisor
        self._control_plane = control_plane
        self._node_id = node_id
        self._boot_id = boot_id
        self._stop_s = stop_s
        self._migrate_s = migrate_s
        self._door = door
        self._under_way = under_way
        self._beat = beat
        self._now_ns = now_ns
        self._sleep = sleep

    async def carry_out(self, kind: AnnounceShutdownRequest.Kind.ValueType) -> None:
        """Ask, wait for VMs to be moved if that is the policy, end what is left, and say that all ended."""
        answer = await self._announce(kind, all_vms_ended=False)
        _log.info("host_goes_down", kind=Kind.Name(kind), policy=Policy.Name(answer.policy) if answer else "unknown")
        if answer is not None and answer.policy == Policy.MIGRATE:
            await self._wait_until_moved(kind, answer)
        if await self.end_vms() and await self._is_shut():
            await self._beat()  # the one before told of VMs, which every control plane would believe still
            await self._announce(kind, all_vms_ended=True)

    async def call_off(self) -> None:
        """Take back what an earlier process of this boot may have said: this one runs, so the machine does not go down.

        Until then the control plane leaves VMs off that ended with the shutdown. If it was said that all of them ended,
        VMs may have been started elsewhere upon that, so nothing is started here before it is taken back.
        """
        while await self._announce(Kind.CANCELLED, all_vms_ended=False) is None and self._door.is_shut:
            await self._sleep(_CALL_OFF_PAUSE_S)
        while self._door.is_shut:
            try:
                await self._door.reopen()
                _log.warning("host_goes_on", advice="it had ended all its VMs in this boot, since it was to go down")
            except ApiError as error:
                _log.error("door_not_reopened", reason=error.reason, message=error.message)
                await self._sleep(_CALL_OFF_PAUSE_S)

    async def end_vms(self) -> bool:
        """Shut every guest down, pull the plug of those that do not; returns whether none is left, or can come."""
        self._door.close()
        try:
            await self._end_all()
            has_settled = await self._has_settled()
            await self._end_all()  # what was under way may have started one
            left = [vm.vm_id for vm in await self._hypervisor.list() if vm.state in _IN_MEMORY]
        except HypervisorError as error:
            _log.error("vms_not_ended", error=str(error))
            return False
        if left:
            _log.error("vms_left", vm_ids=left)
        return has_settled and not left

    async def _is_shut(self) -> bool:
        """Have this host stay shut whatever becomes of this process; returns whether it does, as is to be said."""
        try:
            await self._door.shut()
        except ApiError as error:
            _log.error("end_of_vms_not_noted", reason=error.reason, message=error.message)
            return False
        return True

    async def _end_all(self) -> None:
        running = [vm.vm_id for vm in await self._hypervisor.list() if vm.is_managed and vm.state in _IN_MEMORY]
        await asyncio.gather(*(self._end(vm_id) for vm_id in running))

    async def _has_settled(self) -> bool:
        """Wait, for as long as guests may take, until no change is under way; returns whether that came about."""
        left_s = self._stop_s
        while self._under_way() and left_s > 0:
            await self._sleep(_LOOK_S)
            left_s -= _LOOK_S
        if changes := self._under_way():
            _log.error("changes_under_way", change_count=len(changes), advice="what comes of them is not known")
        return not changes

    async def _end(self, vm_id: str) -> None:
        try:
            await self._hypervisor.stop(vm_id, self._stop_s)
        except HypervisorError as error:
            _log.warning("plug_pulled", vm_id=vm_id, error=str(error))
            try:
                await self._hypervisor.force_stop(vm_id)
            except HypervisorError as failure:
                _log.error("vm_not_ended", vm_id=vm_id, error=str(failure))

    async def _wait_until_moved(
        self, kind: AnnounceShutdownRequest.Kind.ValueType, answer: AnnounceShutdownResponse
    ) -> None:
        left_s = self._migrate_s
        while answer.vm_ids_left and answer.ask_again_ms and left_s > 0:
            pause_s = min(answer.ask_again_ms / 1000, left_s)
            await self._sleep(pause_s)
            left_s -= pause_s
            again = await self._announce(kind, all_vms_ended=False)
            if again is None:
                return
            answer = again

    async def _announce(
        self, kind: AnnounceShutdownRequest.Kind.ValueType, *, all_vms_ended: bool
    ) -> AnnounceShutdownResponse | None:
        """Tell; twice, since nothing waits for a third. None if nobody took it."""
        if self._control_plane is None or not self._node_id():
            return None
        request = AnnounceShutdownRequest(
            node_id=self._node_id(),
            kind=kind,
            boot_id=self._boot_id,
            all_vms_ended=all_vms_ended,
            said_at_ms=self._now_ns() // 1_000_000,
        )
        for pause_s in (_ANNOUNCE_PAUSE_S, 0.0):
            try:
                return await self._control_plane.announce_shutdown(request)
            except (ApiError, TimeoutError) as error:
                _log.warning("shutdown_not_announced", error=str(error) or "time-out")
                if pause_s:
                    await self._sleep(pause_s)
        return None
