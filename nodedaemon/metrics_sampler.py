"""Measures of the host and its VMs, read once for however many ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from hypervisor.base import Hypervisor
from hypervisor.errors import HypervisorError
from hypervisor.statistics import VmStatistics
from hypervisor.types import PowerState
from nodedaemon.host_meter import HostMeter
from nodedaemon.usage_rates import SHORTEST_S, VmUsage, next_usages
from telemetry.counters import DiskCounters, NicCounters, read_disks, read_nics
from telemetry.host import HostUsage

READ_DEADLINE_S: Final = 15.0
FIRST_INTERVAL_S: Final = 0.5
"""Rates need two readings; whoever asks after a pause waits this long for the second."""
STALE_AFTER_S: Final = 60.0
"""A reading older than this is no basis for rates: they would tell of a time that nobody asked about."""

_IN_MEMORY: Final = frozenset({PowerState.RUNNING, PowerState.PAUSED})


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading. `at_s` is of the monotonic clock; `disk_busy_percent` goes with `disks`.

    `vms_error` says why some or all of `vms` is missing.
    """

    at_s: float
    unix_s: float
    usage: HostUsage
    disks: tuple[DiskCounters, ...]
    disk_busy_percent: tuple[float, ...]
    nics: tuple[NicCounters, ...]
    vms: tuple[VmUsage, ...]
    vms_error: str = ""


class MetricsSampler:
    """Reads when it is asked, and answers from the last reading where that is young enough.

    Args:
        host: measures between its own calls, so it must be nobody else's.
        now_s: a clock that only goes forward.
    """

    def __init__(self, hypervisor: Hypervisor, host: HostMeter, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._hypervisor = hypervisor
        self._host = host
        self._now_s = now_s
        self._lock = asyncio.Lock()
        self._last: Sample | None = None
        self._refreshing: asyncio.Task[Sample] | None = None

    async def sample(self, max_age_s: float) -> Sample:
        """Return a reading that is not older than `max_age_s`; never fails for the hypervisor's sake.

        Raises:
            TimeoutError: the host's own counters cannot be read.
        """
        async with self._lock:
            last = self._last
            if last is None or self._now_s() - last.at_s > STALE_AFTER_S:
                last = await self._read(None)
                await asyncio.sleep(FIRST_INTERVAL_S)
                last = self._last = await self._read(last)
            elif self._now_s() - last.at_s > max(max_age_s, SHORTEST_S):
                last = self._last = await self._read(last)
            return last

    async def stream(self, interval_s: float) -> AsyncGenerator[Sample, None]:
        """Yield a reading each `interval_s`, the first at once; one that is not taken in time is left out.

        Intervals count from the readings themselves, so that streams of one interval come to share them.
        """
        while True:
            sample = await self.sample(interval_s / 2)
            yield sample
            await asyncio.sleep(max(0.0, sample.at_s + interval_s - self._now_s()))

    def newest(self, vm_id: str, max_age_s: float) -> VmUsage | None:
        """Return what the last reading says of a VM, without waiting; one that is too old makes a new one be read."""
        last = self._last
        if last is None or self._now_s() - last.at_s > max_age_s:
            if self._refreshing is None or self._refreshing.done():
                self._refreshing = asyncio.create_task(self.sample(max_age_s), name="metrics")
                self._refreshing.add_done_callback(_ignore_failure)
            return None
        return next((usage for usage in last.vms if usage.counters.vm_id == vm_id), None)

    async def close(self) -> None:
        """End what is under way."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait([self._refreshing])

    async def _read(self, before: Sample | None) -> Sample:
        async with asyncio.timeout(READ_DEADLINE_S):
            counters, error = await self._read_vms()
            at_s = self._now_s()
            usage = await self._host.sample()
            disks, nics = await asyncio.to_thread(lambda: (read_disks(), read_nics()))
        elapsed_s = 0.0 if before is None else at_s - before.at_s
        vms = next_usages(() if before is None else before.vms, counters, elapsed_s)
        return Sample(
            at_s,
            time.time(),
            usage,
            disks,
            _busy(() if before is None else before.disks, disks, elapsed_s),
            nics,
            vms,
            error,
        )

    async def _read_vms(self) -> tuple[Sequence[VmStatistics], str]:
        """Read the VMs; where one guest's process hangs, at least what can be had without asking any."""
        statistics = self._hypervisor.statistics
        if statistics is None:
            return (), "this hypervisor keeps no statistics"
        try:
            return await statistics.read_all(), ""
        except HypervisorError as error:
            try:
                statuses = await self._hypervisor.list()
            except HypervisorError as also:
                return (), str(also)
            return [
                VmStatistics(
                    vm.vm_id,
                    vm.name,
                    vm.vcpu_count,
                    vm.cpu_time_ns,
                    vm.memory_total_bytes,
                    vm.memory_used_bytes,
                    is_complete=False,
                )
                for vm in statuses
                if vm.state in _IN_MEMORY
            ], f"disks and network cards are as of before: {error}"


def _busy(before: Sequence[DiskCounters], now: Sequence[DiskCounters], elapsed_s: float) -> tuple[float, ...]:
    known = {disk.device: disk.busy_ms for disk in before}
    if elapsed_s <= 0:
        return tuple(0.0 for _ in now)
    return tuple(
        min(100.0, max(0.0, (disk.busy_ms - known.get(disk.device, disk.busy_ms)) / elapsed_s / 10)) for disk in now
    )


def _ignore_failure(task: asyncio.Task[Sample]) -> None:
    """The next one who asks finds out for himself."""
    if not task.cancelled():
        task.exception()
