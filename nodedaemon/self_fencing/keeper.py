"""Self-fencing as the daemon does it: takes leases, watches their end, kills, and refuses to start what may not run.

The guard does the killing too, by itself; what is here works beside it, and alone where VMs are no processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from hypervisor.processes import VmProcesses
from limiquantix.compute.v1.node_service_pb2 import UpdateHeartbeatRequest, UpdateHeartbeatResponse
from limiquantix.errors import Aborted, ApiError, FailedPrecondition, Reason, Unavailable
from nodedaemon.self_fencing.draining import Draining, UnderWay
from nodedaemon.self_fencing.guard_link import GuardLink
from nodedaemon.self_fencing.lease import Answer, Clock, HostLease, boottime_ns
from nodedaemon.self_fencing.memory import HaMemory
from nodedaemon.self_fencing.orders import Orders

TEND_S: Final = 0.5
INFORMED_LIMIT_S: Final = 5.0
"""How long a command waits for this daemon to be told of fences; control planes read of them twice a second."""
INFORMED_LOOK_S: Final = 0.05
KILL_AGAIN_S: Final = 0.1
MAX_OBSTACLE_LENGTH: Final = 512

_log = structlog.get_logger(__name__)


class SelfFencing:
    """One a daemon; `run` it in a task. Owned by the event loop.

    Args:
        processes: how VMs are ended; None: they cannot be.
        guard: keeps the orders, also where VMs are no processes and nothing but this program could end them: a
            simulated host dies with its daemon, so it counts as one that fences itself.
        kill_ms: within which protected VMs are dead after the end of the lease.
        obstacle: why this host does not fence itself, by its configuration; "" if it does.
        is_blank: whether a guard runs here that may have been told more than this daemon knows, whose files were lost.
            It is left with that until the host has been told anew.
    """

    def __init__(
        self,
        memory: HaMemory,
        processes: VmProcesses | None,
        guard: GuardLink | None,
        *,
        boot_id: str,
        kill_ms: int = 1000,
        obstacle: str = "",
        is_blank: bool = False,
        now_ns: Clock = boottime_ns,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._memory = memory
        self._processes = processes
        self._guard = guard
        self._boot_id = boot_id
        self._kill_ms = kill_ms
        self._obstacle = obstacle
        self._now_ns = now_ns
        self._sleep = sleep
        self._learning = asyncio.Lock()
        self._has_ended = self._is_informed = False
        self._began_ns = now_ns()
        self._is_unsure, self._is_blank = False, is_blank
        before = guard.last_orders(boot_id) if guard is not None else None
        self._lease = HostLease(memory.known, before.end_ns if before is not None else 0)
        self._draining = Draining(memory.known.fence_token)
        if processes is not None:
            self._draining.watch(processes.under_way)
        self._tell_guard()

    # what is known

    @property
    def lease(self) -> HostLease:
        """What holds now."""
        return self._lease

    @property
    def boot_id(self) -> str:
        """Of the boot that this is."""
        return self._boot_id

    def is_protected(self, vm_id: str) -> bool:
        """Whether a VM ends with the lease."""
        return vm_id in self._memory.protected

    @property
    def protected(self) -> frozenset[str]:
        """Ids of VMs that end with the lease."""
        return self._memory.protected

    @property
    def can_judge(self) -> bool:
        """Whether what was decided before this daemon began can be told from what still holds.

        It can once it is informed; and, as for what needs a lease, while one lasts that was given before.
        """
        return self._is_informed or self._lease.left_ms(self._now_ns()) > 0

    @property
    def is_informed(self) -> bool:
        """Whether this daemon was told of the fences of this host upon a reading of them that began after itself.

        What proves that nothing runs here rests on an intent that was on record before this host could begin to take
        commands: it was off, or shut. So whoever is informed knows of each fence upon which its VMs were moved.
        """
        return self._is_informed

    @property
    def is_shut(self) -> bool:
        """Whether this host said in this boot that it ended all its VMs, and did not take that back."""
        return bool(self._boot_id) and self._memory.shut_in == self._boot_id

    def set_unsure(self, *, is_unsure: bool) -> None:
        """Say from now on that which VMs are protected is not known here, so that nobody relies upon it; or that it is.

        Those that are known are killed all the same.
        """
        self._is_unsure = is_unsure

    def obstacle(self) -> str:
        """Say why this host would not kill its VMs by itself in time; "" if it would."""
        if self._obstacle:
            return self._obstacle
        if self._is_blank:
            return "the node daemon lost its files, and has not been told since whether high availability is armed"
        if self._is_unsure:
            return "which VMs are protected is not known since the node daemon began: its hypervisor does not answer"
        if self._processes is None:
            return "this host's hypervisor has no way to end VMs without being asked"
        has_processes = self._processes.pid_dir is not None
        return self._guard.obstacle() if self._guard is not None and has_processes else ""

    def describe(self, request: UpdateHeartbeatRequest) -> None:
        """Add what a heartbeat says of leases."""
        obstacle, known = self.obstacle(), self._lease.known
        request.boot_id = self._boot_id
        request.can_self_fence = not obstacle
        request.self_fencing_obstacle = obstacle[:MAX_OBSTACLE_LENGTH]
        request.self_fences_within_ms = self._kill_ms
        request.known_ha_version = known.ha_version
        request.known_fence_token = self._draining.known(known.fence_token)
        request.known_epoch = known.epoch
        request.lease_left_ms = min(self._lease.left_ms(self._now_ns()), 2**32 - 1)

    def watch_changes(self, source: UnderWay) -> None:
        """Have it told that a fence is known only once the changes are over that were under way then."""
        self._draining.watch(source)

    # what is told

    async def take_answer(self, sent_ns: int, response: UpdateHeartbeatResponse) -> None:
        """Take the answer to a heartbeat; what is new is on the disk before it counts.

        Args:
            sent_ns: when the heartbeat was about to be sent.

        Raises:
            Unavailable: it could not be written down; the lease is not taken.
        """
        answer = Answer(
            sent_ns,
            response.lease.duration_ms if response.HasField("lease") else None,
            response.epoch,
            response.fence_token,
            response.ha_version,
            response.ha_is_armed,
        )
        await self._learn(lambda lease: lease.after(answer))
        if response.HasField("fences_read_ms_ago"):
            read_ns = sent_ns - response.fences_read_ms_ago * 1_000_000
            self._is_informed = self._is_informed or read_ns >= self._began_ns

    async def take_told(self, epoch: int, fence_token: int) -> None:
        """Take what a command carries; see `take_answer`.

        Raises:
            Aborted: the host was told of a newer leader or fence since.
        """
        self.require_newest(epoch, fence_token)
        await self._learn(lambda lease: HostLease(lease.known.raised(epoch, fence_token), lease.end_ns))
        self.require_newest(epoch, fence_token)

    def require_newest(self, epoch: int, fence_token: int) -> None:
        """Refuse what was decided before a newer leader or fence that this host knows of; -1 is not looked at.

        Raises:
            Aborted: STALE_EPOCH or STALE_FENCE_TOKEN.
        """
        known = self._lease.known
        for reason, word, told, newest in (
            (Reason.STALE_EPOCH, "epoch", epoch, known.epoch),
            (Reason.STALE_FENCE_TOKEN, "fence token", fence_token, known.fence_token),
        ):
            if 0 <= told < newest:
                raise Aborted(
                    reason,
                    f"this command carries {word} {told}, but this host knows of {newest}; read the node again and "
                    "decide anew",
                    metadata={"told": str(told), "newest": str(newest)},
                )

    async def until_informed(self, limit_s: float = INFORMED_LIMIT_S) -> None:
        """Wait until `is_informed`.

        Raises:
            Unavailable: it takes longer than that.
        """
        left_s = limit_s
        while not self._is_informed:
            if left_s <= 0:
                raise Unavailable(
                    Reason.NOT_INFORMED_YET,
                    "this host's daemon has just begun, and no control plane that reads the database has told it yet "
                    "which commands still stand; see that it reaches one, and try again",
                    retry_after_s=1.0,
                )
            await self._sleep(INFORMED_LOOK_S)
            left_s -= INFORMED_LOOK_S

    async def shut(self) -> None:
        """Note, durably, that all VMs ended and none is started in this boot any more. Idempotent.

        Raises:
            Unavailable: it could not be written down.
        """
        await self._memory.shut(self._boot_id)

    async def reopen(self) -> None:
        """Note that this was taken back, by now; from here on fences have to be told anew. Idempotent.

        Raises:
            Unavailable: it could not be written down.
        """
        self._is_informed, self._began_ns = False, self._now_ns()
        await self._memory.shut("")

    async def _learn(self, change: Callable[[HostLease], HostLease]) -> None:
        lease = change(self._lease)
        if lease.known != self._lease.known:
            async with self._learning:
                lease = change(self._lease)
                await self._memory.remember(lease.known)
                lease = change(self._lease)  # another answer may have come meanwhile
        self._set(lease)

    def _set(self, lease: HostLease) -> None:
        before, self._lease = self._lease, lease
        if lease.known.fence_token > before.known.fence_token:
            self._draining.learn()
        if lease.known.is_armed != before.known.is_armed:
            _log.info("ha_armed" if lease.known.is_armed else "ha_disarmed", version=lease.known.ha_version)
        was_blank, self._is_blank = self._is_blank, self._is_blank and not lease.known.ha_version
        if lease != before or was_blank is not self._is_blank:
            self._tell_guard()

    # which VMs

    async def protect(self, vm_id: str, *, is_protected: bool) -> None:
        """Note with the VM, durably, whether it ends with the lease; the guard knows before this returns. Idempotent.

        Raises:
            Unavailable: it could not be written down.
        """
        await self._memory.protect(vm_id, is_protected=is_protected)
        self._tell_guard()

    async def forget(self, vm_id: str) -> None:
        """Drop what is noted of a VM that is gone from this host; only housekeeping, so it never raises."""
        try:
            await self.protect(vm_id, is_protected=False)
        except ApiError as error:
            _log.warning("protection_not_forgotten", vm_id=vm_id, error=error.message)

    def require_lease(self, vm_id: str) -> None:
        """Refuse to let a protected VM run without a lease.

        Raises:
            FailedPrecondition: LEASE_ENDED.
        """
        if self.is_protected(vm_id) and self._lease.must_kill(self._now_ns()):
            raise FailedPrecondition(
                Reason.LEASE_ENDED,
                f"VM {vm_id} cannot run here now: this host has no lease, since no control plane answers it or it is "
                "being fenced, and the VM may be started elsewhere; see that the host reaches the control plane, or "
                "disarm high availability",
                metadata={"vm_id": vm_id},
            )

    # killing

    async def run(self) -> None:
        """Kill when the lease has ended, and keep a guard running, until cancelled."""
        while True:
            if self._guard is not None:
                self._guard.tend()
            now_ns = self._now_ns()
            if self._lease.must_kill(now_ns):
                await self._kill()
                await self._sleep(KILL_AGAIN_S)
                continue
            self._note_end(is_ended=False)
            left_s = (self._lease.end_ns - now_ns) / 1e9 if self._lease.known.is_armed else TEND_S
            await self._sleep(min(TEND_S, max(left_s, 0.001)))

    async def _kill(self) -> None:
        self._note_end(is_ended=True)
        vm_ids = self._memory.protected
        if self._processes is None or self._obstacle or not vm_ids:
            return
        try:
            killed = await self._processes.kill(vm_ids)
        except Exception:  # noqa: BLE001 - it is tried again, whatever it was
            _log.exception("protected_vms_not_killed")
            return
        for vm_id in killed:
            _log.error("vm_killed_lease_ended", vm_id=vm_id)

    def _note_end(self, *, is_ended: bool) -> None:
        if is_ended == self._has_ended:
            return
        self._has_ended = is_ended
        if is_ended:
            _log.error(
                "lease_ended",
                protected_count=len(self._memory.protected),
                advice="protected VMs of this host are killed, since they may be started elsewhere",
            )
        else:
            report = self._guard.report() if self._guard is not None else None
            _log.info("lease_again", killed_by_guard=report.killed if report is not None else {})

    def _tell_guard(self) -> None:
        if self._guard is None or self._is_blank:
            return
        known = self._lease.known
        pid_dir = self._processes.pid_dir if self._processes is not None else None
        self._guard.tell(
            Orders(
                self._boot_id,
                known.is_armed and not self._obstacle,
                self._lease.end_ns,
                tuple(sorted(self._memory.protected)),
                str(pid_dir or ""),
                self._kill_ms,
                epoch=known.epoch,
                fence_token=known.fence_token,
                ha_version=known.ha_version,
            )
        )
