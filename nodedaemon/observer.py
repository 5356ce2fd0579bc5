"""Read VMs from the hypervisor: each state with the count that orders it, each VM with its CPU use."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from hypervisor.base import Hypervisor
from hypervisor.types import PowerState, VmStatus
from limiquantix.errors import Aborted, NotFound, Reason
from nodedaemon.change_count import Change, StateChanges
from nodedaemon.errors import hypervisor_errors
from nodedaemon.guest_facts import GuestFacts

READ_DEADLINE_S = 15.0
"""One reading of the hypervisor; a healthy one answers in milliseconds, a hung one must not hold a caller for ever."""

_IN_MEMORY = frozenset({PowerState.RUNNING, PowerState.PAUSED})
_MAX_READS = 10
_MIN_CPU_INTERVAL_S = 0.5
"""Below this, CPU use would be mostly the granularity of the counters."""


@dataclass(frozen=True, slots=True)
class ObservedVm:
    """A VM with the count of its state; `cpu_percent` is of all its vCPUs, 0 to 100, 0 while it is off.

    `generation` is of the newest command that was taken when the reading began, 0 if none. `guest` is what its guest's
    agent told last, None if nothing is known.
    """

    status: VmStatus
    change: Change
    cpu_percent: float
    generation: int = 0
    guest: GuestFacts | None = None


@dataclass(frozen=True, slots=True)
class GoneVm:
    """A VM that is not on this host (any more)."""

    vm_id: str
    change: Change
    generation: int = 0


class VmObserver:
    """The only reader of VM states in the daemon; any number of readings may run at once.

    Args:
        generations: the newest generation of a command that was taken for each VM.
        now_s: the clock of CPU use, see `CpuUsage`.
        guests: what is known of guests, by VM id.
    """

    def __init__(
        self,
        hypervisor: Hypervisor,
        changes: StateChanges,
        generations: Mapping[str, int] = MappingProxyType({}),
        now_s: Callable[[], float] = time.monotonic,
        guests: Mapping[str, GuestFacts] = MappingProxyType({}),
    ) -> None:
        self._hypervisor = hypervisor
        self._changes = changes
        self._generations = generations
        self._guests = guests
        self._cpu = CpuUsage(now_s)

    @property
    def position(self) -> int:
        """The newest change count given out: whatever is read from here on is at least as new."""
        return self._changes.position

    async def read(self, vm_id: str, *, with_memory: bool = False) -> ObservedVm:
        """Read one VM; what its guest uses of its memory only if asked for.

        Raises:
            NotFound, Unavailable: as the hypervisor says.
            Aborted: it changes faster than it can be read.
        """
        with hypervisor_errors(vm_id):
            for _ in range(_MAX_READS):
                began_at, generation = self._changes.position, self._generations.get(vm_id, 0)
                async with asyncio.timeout(READ_DEADLINE_S):
                    status = await self._hypervisor.status(vm_id, with_memory=with_memory)
                change = self._changes.observe(vm_id, status.state, began_at)
                if change is not None:
                    return self._observed(status, change, generation)
        raise _restless(vm_id)

    async def read_or_gone(self, vm_id: str) -> ObservedVm | GoneVm:
        """Read one VM without its memory, or give its absence a count; otherwise like `read`."""
        for _ in range(_MAX_READS):
            began_at, generation = self._changes.position, self._generations.get(vm_id, 0)
            try:
                with hypervisor_errors(vm_id):
                    async with asyncio.timeout(READ_DEADLINE_S):
                        status = await self._hypervisor.status(vm_id, with_memory=False)
                change = self._changes.observe(vm_id, status.state, began_at)
                if change is not None:
                    return self._observed(status, change, generation)
            except NotFound:
                change = self._changes.remove(vm_id, began_at)
                if change is not None:
                    self._cpu.forget(vm_id)
                    return GoneVm(vm_id, change, generation)
        raise _restless(vm_id)

    async def read_all(self) -> list[ObservedVm]:
        """Read every VM of the host, in order of their ids.

        Raises:
            Unavailable, Aborted: as `read`.
        """
        began_at, generations = self._changes.position, dict(self._generations)
        with hypervisor_errors():
            async with asyncio.timeout(READ_DEADLINE_S):
                statuses = await self._hypervisor.list()
        for vm_id in self._changes.known_beside({status.vm_id for status in statuses}):
            self._cpu.forget(vm_id)
            self._changes.remove(vm_id, began_at)
        observed: list[ObservedVm] = []
        for status in sorted(statuses, key=lambda status: status.vm_id):
            change = self._changes.observe(status.vm_id, status.state, began_at)
            if change is not None:
                observed.append(self._observed(status, change, generations.get(status.vm_id, 0)))
                continue
            again = await self.read_or_gone(status.vm_id)
            if isinstance(again, ObservedVm):
                observed.append(again)
        self._changes.warm_up()
        return observed

    def _observed(self, status: VmStatus, change: Change, generation: int) -> ObservedVm:
        guest = self._guests.get(status.vm_id) if status.state in _IN_MEMORY else None
        return ObservedVm(status, change, self._cpu.percent(status), generation, guest)


class CpuUsage:
    """Turns counters of CPU time into percentages, over the time since the reading before.

    Args:
        now_s: any clock that only goes forward.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._before: dict[str, tuple[float, int, float]] = {}

    def percent(self, status: VmStatus) -> float:
        """Say how much of its vCPUs the VM used lately: 0 to 100; 0 at the first reading and while it does not run."""
        if status.state is not PowerState.RUNNING or not status.vcpu_count:
            self._before.pop(status.vm_id, None)
            return 0.0
        now_s = self._now_s()
        at_s, cpu_time_ns, percent = self._before.get(status.vm_id, (now_s, status.cpu_time_ns, 0.0))
        if status.vm_id in self._before and now_s - at_s < _MIN_CPU_INTERVAL_S:
            return percent
        used_ns = status.cpu_time_ns - cpu_time_ns
        if now_s > at_s and used_ns >= 0:  # the counter of a VM that was started anew begins at 0
            percent = min(100.0, used_ns / 1e7 / (now_s - at_s) / status.vcpu_count)
        self._before[status.vm_id] = (now_s, status.cpu_time_ns, percent)
        return percent

    def forget(self, vm_id: str) -> None:
        """Drop what is kept of a VM that is gone."""
        self._before.pop(vm_id, None)


def _restless(vm_id: str) -> Aborted:
    return Aborted(
        Reason.CONCURRENT_CHANGE,
        f"VM {vm_id} changed its state {_MAX_READS} times while it was read; try again",
        metadata={"vm_id": vm_id},
        retry_after_s=1.0,
    )
