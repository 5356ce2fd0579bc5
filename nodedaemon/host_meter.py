"""How busy this node's host is; a simulated one is as busy as its VMs make it, whatever else this machine does."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from hypervisor.base import Hypervisor
from telemetry.host import HostUsage, UsageSampler


class HostMeter:
    """Measures between its own calls; one object for one reader, since each call starts the next interval.

    Args:
        disk_path: see `UsageSampler`.
    """

    def __init__(self, hypervisor: Hypervisor, disk_path: Path) -> None:
        self._hypervisor = hypervisor
        self._sampler = UsageSampler(disk_path)

    async def sample(self) -> HostUsage:
        """Measure.

        Raises:
            OSError: the machine does not tell.
        """
        measured = await asyncio.to_thread(self._sampler.sample)
        simulated = self._hypervisor.simulated_usage
        if simulated is None:
            return measured
        total, used = simulated.memory_total_bytes, simulated.memory_used_bytes
        return replace(
            measured,
            cpu_percent=100 * min(simulated.busy_vcpus / simulated.vcpu_count, 1.0),
            memory_total_bytes=total,
            memory_used_bytes=used,
            memory_available_bytes=max(total - used, 0),
            load_1m=simulated.busy_vcpus,
            load_5m=simulated.busy_vcpus,
            load_15m=simulated.busy_vcpus,
        )
