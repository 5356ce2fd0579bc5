"""Starting VMs so that no protected one runs without a right to, even if the daemon dies in the middle.

A protected VM is there and paused while it is looked at once more whether it may run. Before that, the order to start
it is noted with the VM. A daemon that finds such a note on a paused VM finishes what one before it began: has the VM
run if the order still stands and the host has its lease, or else ends it, which has done nothing yet. Until then it is
told as what it is, paused.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import structlog

from hypervisor.base import Hypervisor
from hypervisor.errors import HypervisorError, Unavailable, VmNotFound, WrongState
from hypervisor.types import PowerState, VmStatus
from limiquantix.errors import ApiError, Reason
from nodedaemon.commands import Commands
from nodedaemon.errors import hypervisor_errors
from nodedaemon.fence_gate import Told
from nodedaemon.observer import READ_DEADLINE_S
from nodedaemon.vm_protection import VmProtection

SETTLE_PAUSE_S: Final = 1.0
_OVERTAKEN: Final = frozenset(
    {Reason.STALE_EPOCH, Reason.STALE_FENCE_TOKEN, Reason.STALE_GENERATION, Reason.LEASE_ENDED}
)
"""Why an order does not stand any more; any other error says nothing of that."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StartOrder:
    """What a start was asked for with."""

    told: Told
    generation: int

    def to_text(self) -> str:
        """Write it as a note."""
        return json.dumps([self.told.epoch, self.told.fence_token, self.generation])

    @classmethod
    def from_text(cls, text: str) -> StartOrder | None:
        """Read a note; None for one that is not ours, upon which nothing may run."""
        try:
            epoch, fence_token, generation = json.loads(text)
            return cls(Told(int(epoch), int(fence_token)), int(generation))
        except (ValueError, TypeError):
            return None


class VmStarts:
    """Starts of one host. Methods other than `run` and `settle` are called in the VM's queue.

    Args:
        is_ready: whether the host can know by now if an order from before this daemon was overtaken.
    """

    def __init__(
        self,
        hypervisor: Hypervisor,
        commands: Commands,
        protection: VmProtection,
        *,
        is_ready: Callable[[], bool] = lambda: True,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._hypervisor = hypervisor
        self._commands = commands
        self._protection = protection
        self._is_ready = is_ready
        self._sleep = sleep
        self._has_looked = False
        self._unsettled: set[str] = set()
        self._under_way: set[str] = set()

    async def start(self, vm_id: str, order: StartOrder, require_newest: Callable[[], None]) -> None:
        """Start a VM; or finish a start of it that was left in the middle.

        Args:
            require_newest: raises if the order was overtaken; may be called in another thread.
        """
        self._protection.require_lease(vm_id)
        status = await self._hypervisor.status(vm_id, with_memory=False)
        if _is_left(status):
            require_newest()
            await self._release(status)
            return
        if not self._protection.is_protected(vm_id):
            await self._hypervisor.start(vm_id)
            return
        if status.state is PowerState.RUNNING or status.state is PowerState.PAUSED:
            raise WrongState(vm_id, "start", status.state.value)

        def may_run() -> None:
            """Look again: what hung in the hypervisor may come after the lease has ended, or after a fence."""
            require_newest()
            self._protection.require_lease(vm_id)

        self._under_way.add(vm_id)
        self._unsettled.add(vm_id)
        try:
            await self._hypervisor.set_notes(vm_id, replace(status.notes, start_order=order.to_text()))
            try:
                await self._hypervisor.start(vm_id, may_run)
            except Unavailable:
                raise  # what became of it is not known
            except (ApiError, HypervisorError):
                await self._try_to_clear(vm_id)
                raise
            await self._try_to_clear(vm_id)
        finally:
            self._under_way.discard(vm_id)

    async def require_clear(self, vm_id: str) -> None:
        """Take back what is noted of a start that is over, before the VM is paused: it is not to be taken for left.

        Raises:
            Unavailable: the hypervisor does not answer.
        """
        if vm_id in self._unsettled:
            await self._clear(vm_id)

    async def run(self) -> None:
        """Settle what is left in the middle, now and whenever something is, until cancelled."""
        while True:
            await self.settle()
            await self._sleep(SETTLE_PAUSE_S)

    async def settle(self) -> None:
        """Settle each start that was left in the middle and can be by now; what cannot waits for the next time."""
        try:
            if not self._has_looked:
                with hypervisor_errors():
                    async with asyncio.timeout(READ_DEADLINE_S):
                        found = await self._hypervisor.list()
                self._unsettled |= {vm.vm_id for vm in found if vm.notes.start_order}
                self._has_looked = True
            processes = self._hypervisor.processes
            if not self._unsettled or (processes is not None and processes.under_way()):
                return  # what hangs in the hypervisor may still be that start
        except (ApiError, TimeoutError) as error:
            _log.warning("starts_not_looked_for", error=str(error) or "time-out")
            return
        for vm_id in sorted(self._unsettled - self._under_way):
            try:
                await self._settle(vm_id)
            except (ApiError, TimeoutError) as error:
                _log.warning("start_not_settled", vm_id=vm_id, error=str(error) or "time-out")

    async def _settle(self, vm_id: str) -> None:
        """Finish one.

        Raises:
            ApiError: it could not be; it is tried again.
        """
        with hypervisor_errors(vm_id):
            try:
                status = await self._hypervisor.status(vm_id, with_memory=False)
            except VmNotFound:
                self._unsettled.discard(vm_id)
                return
        order = StartOrder.from_text(status.notes.start_order) if _is_left(status) else None
        if _is_left(status) and not self._is_ready():
            return
        try:
            if order is not None:
                run = partial(self._finish, vm_id, runs=True)
                await self._commands.finish(vm_id, order.generation, order.told, run)
                return
        except ApiError as error:
            if error.reason not in _OVERTAKEN:
                raise
            _log.warning("start_overtaken", vm_id=vm_id, reason=error.reason)
        await self._commands.finish(vm_id, 0, Told(), partial(self._finish, vm_id, runs=False))

    async def _finish(self, vm_id: str, *, runs: bool) -> None:
        status = await self._hypervisor.status(vm_id, with_memory=False)  # much may have come before its turn
        if not _is_left(status):
            await self._clear(vm_id)
        elif runs:
            self._protection.require_lease(vm_id)
            await self._release(status)
            _log.info("start_finished", vm_id=vm_id)
        else:
            await self._hypervisor.force_stop(vm_id)
            await self._clear(vm_id)
            _log.warning("start_undone", vm_id=vm_id, advice="the daemon died while it was started; start it again")

    async def _release(self, status: VmStatus) -> None:
        self._unsettled.add(status.vm_id)
        await self._hypervisor.resume(status.vm_id)
        await self._try_to_clear(status.vm_id)

    async def _try_to_clear(self, vm_id: str) -> None:
        """Take the note back; where that fails now, `run` does it later."""
        try:
            await self._clear(vm_id)
        except HypervisorError as error:
            _log.warning("start_note_left", vm_id=vm_id, error=str(error))

    async def _clear(self, vm_id: str) -> None:
        status = await self._hypervisor.status(vm_id, with_memory=False)
        if status.notes.start_order:
            await self._hypervisor.set_notes(vm_id, replace(status.notes, start_order=""))
        self._unsettled.discard(vm_id)


def _is_left(status: VmStatus) -> bool:
    """Tell whether a VM was started and then nobody was there to let it run."""
    return status.state is PowerState.PAUSED and bool(status.notes.start_order)
