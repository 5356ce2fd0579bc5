"""Ceilings of disks and network cards, from the words of the contract to those of the hypervisor layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from hypervisor.types import IoLimits, NicBandwidth
from limiquantix.errors import FieldViolation
from limiquantix.node.v1 import node_daemon_pb2 as pb

_MEGABYTE: Final = 10**6
_KBIT_BYTES: Final = 125
_MBIT_BYTES: Final = 125_000
_KIB: Final = 1024
_MAX_TOTAL: Final = 10**15
_MAX_MBIT: Final = 10**6


def io_limits_of(disk: pb.DiskSpec) -> IoLimits:
    """Return a disk's ceilings."""
    limits = limits_of(disk.io_limits)
    return IoLimits(
        total_iops=disk.iops_limit,
        total_bytes_s=disk.throughput_mbps * _MEGABYTE,
        read_iops=limits.read_iops,
        write_iops=limits.write_iops,
        read_bytes_s=limits.read_bytes_s,
        write_bytes_s=limits.write_bytes_s,
        burst_iops=limits.burst_iops,
        burst_bytes_s=limits.burst_bytes_s,
        burst_duration_s=limits.burst_duration_s,
    )


def limits_of(limits: pb.DiskIoLimits) -> IoLimits:
    """Return ceilings for reads and writes apart."""
    has_burst = limits.burst_iops or limits.burst_bytes
    return IoLimits(
        read_iops=limits.read_iops,
        write_iops=limits.write_iops,
        read_bytes_s=limits.read_bytes_sec,
        write_bytes_s=limits.write_bytes_sec,
        burst_iops=limits.burst_iops,
        burst_bytes_s=limits.burst_bytes,
        burst_duration_s=(limits.burst_duration_sec or 1) if has_burst else 0,
    )


def bandwidth_of(nic: pb.NicSpec) -> NicBandwidth:
    """Return a card's ceilings."""
    if nic.bandwidth_mbps:
        rate_bytes_s = nic.bandwidth_mbps * _MBIT_BYTES
        return NicBandwidth(rate_bytes_s, rate_bytes_s)
    bandwidth = nic.bandwidth
    return NicBandwidth(
        bandwidth.to_guest_kbps * _KBIT_BYTES, bandwidth.from_guest_kbps * _KBIT_BYTES, bandwidth.burst_kib * _KIB
    )


def disk_limit_faults(field: str, disk: pb.DiskSpec) -> Iterator[FieldViolation]:
    """Say what is wrong with a disk's ceilings."""
    for name, total, apart in (
        ("iops_limit", disk.iops_limit, (disk.io_limits.read_iops, disk.io_limits.write_iops)),
        ("throughput_mbps", disk.throughput_mbps, (disk.io_limits.read_bytes_sec, disk.io_limits.write_bytes_sec)),
    ):
        if total and any(apart):
            yield FieldViolation(f"{field}.{name}", "cannot be given together with rates for reads and writes apart")
        if total > _MAX_TOTAL // _MEGABYTE:
            yield FieldViolation(f"{field}.{name}", f"must be at most {_MAX_TOTAL // _MEGABYTE}")
    yield from io_limit_faults(f"{field}.io_limits", disk.io_limits, disk.iops_limit, disk.throughput_mbps * _MEGABYTE)


def io_limit_faults(
    field: str, limits: pb.DiskIoLimits, total_iops: int = 0, total_bytes_s: int = 0
) -> Iterator[FieldViolation]:
    """Say what is wrong with bursts, which are rates above steady ones.

    Args:
        total_iops: a steady rate of reads and writes together; so is `total_bytes_s`.
    """
    for name, burst, rates in (
        ("burst_iops", limits.burst_iops, (limits.read_iops, limits.write_iops, total_iops)),
        ("burst_bytes", limits.burst_bytes, (limits.read_bytes_sec, limits.write_bytes_sec, total_bytes_s)),
    ):
        if burst and not any(rates):
            yield FieldViolation(f"{field}.{name}", "needs a steady rate that it goes beyond")
        elif burst and burst < max(rates):
            yield FieldViolation(f"{field}.{name}", f"must be at least the steady rate, {max(rates)}")
    if limits.burst_duration_sec and not limits.burst_iops and not limits.burst_bytes:
        yield FieldViolation(f"{field}.burst_duration_sec", "needs a burst")


def nic_faults(field: str, nic: pb.NicSpec) -> Iterator[FieldViolation]:
    """Say what is wrong with a card's place and ceilings."""
    if nic.bridge and nic.network:
        yield FieldViolation(f"{field}.network", "cannot be given together with bridge")
    if nic.bandwidth_mbps > _MAX_MBIT:
        yield FieldViolation(f"{field}.bandwidth_mbps", f"must be at most {_MAX_MBIT}")
    has_bandwidth = nic.bandwidth.to_guest_kbps or nic.bandwidth.from_guest_kbps
    if nic.bandwidth_mbps and has_bandwidth:
        yield FieldViolation(f"{field}.bandwidth_mbps", "cannot be given together with bandwidth")
    if nic.bandwidth.burst_kib and not has_bandwidth:
        yield FieldViolation(f"{field}.bandwidth.burst_kib", "needs a rate that it goes beyond")
    if bandwidth_of(nic) != NicBandwidth() and not nic.bridge and not nic.network:
        name = "bandwidth_mbps" if nic.bandwidth_mbps else "bandwidth"
        yield FieldViolation(
            f"{field}.{name}",
            "needs a bridge or a network: the host cannot shape what a card sends through user-mode NAT",
        )
