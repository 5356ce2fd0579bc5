"""Rates from counters: of all vCPUs, per disk and card, over restarts, hot-plug and readings that lack something."""

from __future__ import annotations

import dataclasses

import pytest

from hypervisor.statistics import DiskStatistics, NicStatistics, VmStatistics
from nodedaemon.usage_rates import SHORTEST_S, VmUsage, next_usage, next_usages

VM = VmStatistics("vm", "web", vcpu_count=2, cpu_time_ns=10**10, memory_total_bytes=2**30, memory_used_bytes=2**29)


def later(**changes: object) -> VmStatistics:
    return dataclasses.replace(VM, **changes)  # type: ignore[arg-type]


def test_first_reading_has_no_rates() -> None:
    assert next_usage(None, VM, 0.0) == VmUsage(VM)


@pytest.mark.parametrize(
    ("used_s", "percent"), [(0.0, 0.0), (2.0, 50.0), (4.0, 100.0), (4.4, 100.0)], ids=["idle", "half", "full", "over"]
)
def test_fault_16_cpu_percent_is_of_all_vcpus(used_s: float, percent: float) -> None:
    now = later(cpu_time_ns=VM.cpu_time_ns + int(used_s * 1e9))
    assert next_usage(VmUsage(VM), now, 2.0).rates.cpu_percent == pytest.approx(percent)


def test_vm_that_was_started_anew_is_counted_from_its_start() -> None:
    disk = DiskStatistics("d", "vda", write_bytes=10**9)
    before = VmUsage(later(disks=(disk,)))
    now = later(cpu_time_ns=10**9, disks=(dataclasses.replace(disk, write_bytes=500),))
    rates = next_usage(before, now, 5.0).rates
    assert (rates.cpu_percent, rates.disk_write_bytes_s) == (10.0, 100.0)


def test_disks_and_cards_are_added_up_whatever_comes_and_goes() -> None:
    stays, goes, comes = (DiskStatistics(name, name, 1000, 2000) for name in ("a", "b", "c"))
    nic = NicStatistics("n", "m", rx_bytes=10, tx_bytes=20)
    before = VmUsage(later(disks=(stays, goes), nics=(nic,)))
    now = later(
        disks=(dataclasses.replace(stays, read_bytes=1500, write_bytes=2100), comes),
        nics=(dataclasses.replace(nic, rx_bytes=30, tx_bytes=60),),
    )
    rates = next_usage(before, now, 10.0).rates
    assert (rates.disk_read_bytes_s, rates.disk_write_bytes_s) == (150.0, 210.0)
    assert (rates.nic_rx_bytes_s, rates.nic_tx_bytes_s) == (2.0, 4.0)


def test_reading_without_devices_keeps_those_of_before_and_makes_no_jump() -> None:
    disk = DiskStatistics("d", "vda", read_bytes=10**9)
    usage = next_usage(VmUsage(later(disks=(disk,))), later(is_complete=False), 1.0)
    assert usage.counters.disks == (disk,)
    assert usage.rates.disk_read_bytes_s == 0
    again = next_usage(usage, later(disks=(dataclasses.replace(disk, read_bytes=10**9 + 100),)), 1.0)
    assert again.rates.disk_read_bytes_s == 100


def test_readings_too_close_together_keep_the_rates() -> None:
    before = next_usage(VmUsage(VM), later(cpu_time_ns=VM.cpu_time_ns + 10**9), 1.0)
    after = next_usage(before, later(cpu_time_ns=VM.cpu_time_ns + 10**9), SHORTEST_S / 2)
    assert after.rates == before.rates


def test_usages_are_of_those_that_are_there_now_in_order() -> None:
    before = next_usages((), [later(vm_id="c"), later(vm_id="a")], 0.0)
    after = next_usages(before, [later(vm_id="b"), later(vm_id="a", cpu_time_ns=11 * 10**9)], 1.0)
    assert [(usage.counters.vm_id, usage.rates.cpu_percent) for usage in after] == [("a", 50.0), ("b", 0.0)]
