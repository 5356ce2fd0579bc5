"""From counters of VMs to percentages and rates; pure, the time is handed in.

A counter that went back began anew, with the VM: what it shows was used since then, and all of it since the reading
before. A device that was not there before was attached since, which comes to the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from hypervisor.statistics import DiskStatistics, NicStatistics, VmStatistics

SHORTEST_S: Final = 0.2
"""Over less than this, CPU use would be mostly the granularity of the counters."""


@dataclass(frozen=True, slots=True)
class VmRates:
    """Use over the time since the reading before; `cpu_percent` is of all vCPUs, 0 to 100."""

    cpu_percent: float = 0.0
    disk_read_bytes_s: float = 0.0
    disk_write_bytes_s: float = 0.0
    nic_rx_bytes_s: float = 0.0
    nic_tx_bytes_s: float = 0.0


@dataclass(frozen=True, slots=True)
class VmUsage:
    """A VM's counters and rates."""

    counters: VmStatistics
    rates: VmRates = VmRates()


def next_usage(before: VmUsage | None, now: VmStatistics, elapsed_s: float) -> VmUsage:
    """Work out a VM's rates.

    Args:
        before: its reading before, if there was one.
        elapsed_s: the time between the two; where it is too short, the rates stay what they were.
    """
    if before is None:
        return VmUsage(now)
    if not now.is_complete:  # its devices are still there, they only could not be asked
        now = replace(now, disks=before.counters.disks, nics=before.counters.nics)
    if elapsed_s < SHORTEST_S:
        return VmUsage(now, before.rates)
    used_ns = _increase(before.counters.cpu_time_ns, now.cpu_time_ns)
    capacity_ns = elapsed_s * 1e9 * max(now.vcpu_count, 1)
    disks, nics = (before.counters.disks, now.disks), (before.counters.nics, now.nics)
    rates = VmRates(
        cpu_percent=min(100.0, 100.0 * used_ns / capacity_ns),
        disk_read_bytes_s=_disk_increase(*disks, lambda disk: disk.read_bytes) / elapsed_s,
        disk_write_bytes_s=_disk_increase(*disks, lambda disk: disk.write_bytes) / elapsed_s,
        nic_rx_bytes_s=_nic_increase(*nics, lambda nic: nic.rx_bytes) / elapsed_s,
        nic_tx_bytes_s=_nic_increase(*nics, lambda nic: nic.tx_bytes) / elapsed_s,
    )
    return VmUsage(now, rates)


def next_usages(before: Iterable[VmUsage], now: Sequence[VmStatistics], elapsed_s: float) -> tuple[VmUsage, ...]:
    """Work out the rates of all VMs that are there now, in order of their ids."""
    known = {usage.counters.vm_id: usage for usage in before}
    ordered = sorted(now, key=lambda counters: counters.vm_id)
    return tuple(next_usage(known.get(counters.vm_id), counters, elapsed_s) for counters in ordered)


def _increase(before: int, now: int) -> int:
    return now - before if now >= before else now


def _disk_increase(
    before: Iterable[DiskStatistics], now: Iterable[DiskStatistics], count: Callable[[DiskStatistics], int]
) -> int:
    known = {(disk.disk_id, disk.target): count(disk) for disk in before}
    return sum(_increase(known.get((disk.disk_id, disk.target), 0), count(disk)) for disk in now)


def _nic_increase(
    before: Iterable[NicStatistics], now: Iterable[NicStatistics], count: Callable[[NicStatistics], int]
) -> int:
    known = {(nic.nic_id, nic.mac_address): count(nic) for nic in before}
    return sum(_increase(known.get((nic.nic_id, nic.mac_address), 0), count(nic)) for nic in now)
