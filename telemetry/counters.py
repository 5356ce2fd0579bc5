"""Counters of a host's disks and network interfaces, by psutil; they run since the host booted.

Like `telemetry.host`, everything here reads files of the kernel and may block for some milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

_INTERFACES: Final = Path("/sys/class/net")
_BLOCK_DEVICES: Final = Path("/sys/block")
_NO_DISKS: Final = ("loop", "ram", "zram", "nbd", "sr", "fd")


@dataclass(frozen=True, slots=True)
class DiskCounters:
    """One whole disk; `busy_ms` is how long it had something to do."""

    device: str
    read_bytes: int
    write_bytes: int
    read_count: int
    write_count: int
    busy_ms: int


@dataclass(frozen=True, slots=True)
class NicCounters:
    """One interface but the loopback; `is_physical` says that there is hardware behind it, not another interface."""

    name: str
    is_physical: bool
    rx_bytes: int
    tx_bytes: int
    rx_packets: int
    tx_packets: int
    rx_errors: int
    tx_errors: int


def read_disks() -> tuple[DiskCounters, ...]:
    """Read all whole disks; partitions, loop devices and empty drives are left out. Blocks."""
    counters = psutil.disk_io_counters(perdisk=True) or {}
    return tuple(
        DiskCounters(
            name,
            disk.read_bytes,
            disk.write_bytes,
            disk.read_count,
            disk.write_count,
            int(getattr(disk, "busy_time", 0)),
        )
        for name, disk in sorted(counters.items())
        if not name.startswith(_NO_DISKS) and (_BLOCK_DEVICES / name).exists()
    )


def read_nics() -> tuple[NicCounters, ...]:
    """Read all interfaces. Blocks."""
    return tuple(
        NicCounters(
            name,
            (_INTERFACES / name / "device").exists(),
            nic.bytes_recv,
            nic.bytes_sent,
            nic.packets_recv,
            nic.packets_sent,
            nic.errin,
            nic.errout,
        )
        for name, nic in sorted(psutil.net_io_counters(pernic=True, nowrap=False).items())
        if name != "lo"
    )
