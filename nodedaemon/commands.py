"""How a request that concerns one VM is run: fenced by its generation, in the VM's queue, within a deadline.

Every change of a VM goes through that VM's queue, and only if no command of a newer generation was taken, when it came
and when its turn comes; reads do not wait.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

from limiquantix.errors import FailedPrecondition, Reason
from nodedaemon.errors import hypervisor_errors
from nodedaemon.fence_gate import FenceGate, Told
from nodedaemon.generations import Generations
from nodedaemon.observer import READ_DEADLINE_S
from nodedaemon.vm_actor import VmActors

POWER_DEADLINE_S = 60.0
"""A start or a stop without a guest's say; libvirt itself gives up on QEMU after 30 s."""

CREATE_DEADLINE_S = 300.0
"""Up to 64 disks of some seconds each on slow storage."""

ResultT = TypeVar("ResultT")


class VmRequest(Protocol):
    """A request that names a VM."""

    @property
    def vm_id(self) -> str:
        """The VM's UUID, in any spelling."""
        ...


class VmCommand(VmRequest, Protocol):
    """A request that changes a VM."""

    @property
    def generation(self) -> int:
        """Its generation; 0 for none."""
        ...


class Commands:
    """Runs requests on VMs.

    Args:
        gate: None where calls carry no tokens of fences.
    """

    def __init__(self, actors: VmActors, generations: Generations, gate: FenceGate | None = None) -> None:
        self._gate = gate
        self._actors = actors
        self._generations = generations
        self._copied: Counter[str] = Counter()
        self._leaving: set[str] = set()
        self._under_way: set[object] = set()

    async def change(
        self,
        request: VmCommand,
        operation: Callable[[], Awaitable[ResultT]],
        *,
        deadline_s: float = POWER_DEADLINE_S,
        takes_slot: bool = True,
        is_interruptible: bool = False,
    ) -> ResultT:
        """Run a change in the VM's queue.

        Args:
            takes_slot: whether it counts among the operations that the host does at once; not so if it only waits.
            is_interruptible: whether a command of a newer generation may end it.

        Raises:
            ApiError: what the hypervisor raised, or Aborted for a command that was overtaken.
        """
        vm_id = vm_id_of(request)
        self._require_here(vm_id)
        if self._copied[vm_id]:
            raise FailedPrecondition(
                Reason.VM_BEING_CLONED,
                f"VM {vm_id} is being cloned; wait until its disks are copied, or cancel that operation",
                metadata={"vm_id": vm_id},
            )
        told = self.told()
        await self._generations.accept(vm_id, request.generation)
        return await self._run(
            vm_id,
            request.generation,
            told,
            operation,
            deadline_s=deadline_s,
            takes_slot=takes_slot,
            is_interruptible=is_interruptible,
        )

    async def finish(
        self, vm_id: str, generation: int, told: Told, operation: Callable[[], Awaitable[ResultT]]
    ) -> ResultT:
        """Run, in the VM's queue, what is left of a change that was let in before with these; raises as `change`."""
        return await self._run(
            vm_id, generation, told, operation, deadline_s=POWER_DEADLINE_S, takes_slot=True, is_interruptible=False
        )

    async def _run(
        self,
        vm_id: str,
        generation: int,
        told: Told,
        operation: Callable[[], Awaitable[ResultT]],
        *,
        deadline_s: float,
        takes_slot: bool,
        is_interruptible: bool,
    ) -> ResultT:
        async def run_unless_overtaken() -> ResultT:
            if self._gate is not None:
                self._gate.require_newest(told)
            self._generations.check(vm_id, generation)
            self._require_here(vm_id)  # a migration may have begun while it waited
            mark = object()
            self._under_way.add(mark)
            try:
                return await operation()
            finally:
                self._under_way.discard(mark)

        with hypervisor_errors(vm_id):
            return await self._actors.run(
                vm_id,
                run_unless_overtaken,
                deadline_s=deadline_s,
                takes_slot=takes_slot,
                generation=generation,
                is_interruptible=is_interruptible,
            )

    def told(self) -> Told:
        """Return what the command that is being served carried."""
        return self._gate.told() if self._gate is not None else Told()

    def newest_check(self) -> Callable[[], None]:
        """Return what looks, later, whether the command that is being served was overtaken by a fence or leader.

        It raises Aborted, STALE_FENCE_TOKEN or STALE_EPOCH, and may be called in any thread.
        """
        gate = self._gate
        if gate is None:
            return lambda: None
        told = gate.told()
        return lambda: gate.require_newest(told)

    def under_way(self) -> frozenset[object]:
        """Return a mark for each change whose turn has come and that is not over."""
        return frozenset(self._under_way)

    def set_leaving(self, vm_id: str, *, is_leaving: bool) -> None:
        """Refuse all changes of a VM from now on, since it is sent to another host; or let them through again."""
        if is_leaving:
            self._leaving.add(vm_id)
        else:
            self._leaving.discard(vm_id)

    def _require_here(self, vm_id: str) -> None:
        if vm_id in self._leaving:
            raise FailedPrecondition(
                Reason.VM_STATE_FORBIDS,
                f"VM {vm_id} is being sent to another host; wait until it is there, or cancel the migration",
                metadata={"vm_id": vm_id, "state": "migrating"},
            )

    @asynccontextmanager
    async def holding(self, vm_id: str, *, deadline_s: float, refuses_others: bool) -> AsyncIterator[None]:
        """Keep a VM as it is, from when earlier changes of it are done.

        Args:
            refuses_others: whether later changes are refused at once; else they wait.
        """
        begun, released = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            begun.set()
            await released.wait()

        holding = asyncio.ensure_future(self._actors.run(vm_id, hold, deadline_s=deadline_s, takes_slot=False))
        waiting = asyncio.ensure_future(begun.wait())
        self._copied[vm_id] += refuses_others
        try:
            await asyncio.wait({holding, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if holding.done():
                holding.result()  # raises: too many wait, or the daemon stops
            yield
        finally:
            self._copied[vm_id] -= refuses_others
            if not self._copied[vm_id]:
                del self._copied[vm_id]
            released.set()
            waiting.cancel()
            if not begun.is_set():
                holding.cancel()  # it leaves the queue when its turn comes
            await asyncio.gather(holding, waiting, return_exceptions=True)

    async def read(
        self, request: VmRequest, operation: Callable[[str], Awaitable[ResultT]], *, deadline_s: float = READ_DEADLINE_S
    ) -> ResultT:
        """Look at a VM beside whatever is done to it."""
        vm_id = vm_id_of(request)
        with hypervisor_errors(vm_id):
            async with asyncio.timeout(deadline_s):
                return await operation(vm_id)

    def require_newest(self, request: VmCommand) -> None:
        """Refuse a command that was overtaken, before anything else is found wrong with it.

        Raises:
            Aborted: a newer one was taken.
        """
        self._generations.check(vm_id_of(request), request.generation)


def vm_id_of(request: VmRequest) -> str:
    """One spelling for one VM: the contract lets a UUID be written in capitals."""
    return str(uuid.UUID(request.vm_id))
