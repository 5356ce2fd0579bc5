"""The guard as a real process, with processes that stand for VMs: killed in time, whatever becomes of the daemon."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

from hypervisor.processes import VmProcess, is_alive, kill_process, start_ticks
from nodedaemon.self_fencing.guard import Guard, Scanner, Watchdog
from nodedaemon.self_fencing.orders import Orders, read_report, write_file
from tests.support.guarded_processes import BOOT_ID_PATH, guard_says, ordering_daemon, stand_ins

KILL_NS = 1_000_000_000
LEASE_MS = 1500
MAX_RESIDENT_BYTES = 20 * 2**20
BOOT_ID = BOOT_ID_PATH.read_text().strip()


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def ids(count: int) -> list[str]:
    return [str(uuid.uuid4()) for _ in range(count)]


@pytest.mark.parametrize("end", [signal.SIGSTOP, signal.SIGKILL], ids=["stopped", "killed"])
async def test_guard_kills_in_time_when_the_daemon_hangs_or_is_dead(tmp_path: Path, end: signal.Signals) -> None:
    vm_ids = ids(3)
    with stand_ins(tmp_path) as vms:
        for vm_id in vm_ids:
            vms.start(vm_id)
        (other,) = ids(1)
        vms.start(other)
        async with ordering_daemon(tmp_path / "run", vms, vm_ids, lease_ms=LEASE_MS) as daemon:
            await guard_says(tmp_path / "run", lambda report: report.vm_count == 3)
            assert [vms.running[vm_id].poll() for vm_id in vm_ids] == [None] * 3
            daemon.send_signal(end)
            report = await guard_says(tmp_path / "run", lambda report: len(report.killed) == 3 and report.vm_count == 0)
        assert [vms.running[vm_id].wait(30) for vm_id in vm_ids] == [-signal.SIGKILL] * 3
        assert all(0 <= late_ns <= KILL_NS for late_ns in report.killed.values()), report.killed
        assert report.killed.keys() == set(vm_ids)
        assert vms.running[other].poll() is None


async def test_guard_that_dies_is_replaced_and_vms_stay(tmp_path: Path) -> None:
    vm_ids = ids(1)
    with stand_ins(tmp_path) as vms:
        vm = vms.start(vm_ids[0])
        async with ordering_daemon(tmp_path / "run", vms, vm_ids, lease_ms=60_000):
            first = await guard_says(tmp_path / "run", lambda report: report.vm_count == 1)
            kill_process(VmProcess(first.pid, first.ticks))
            second = await guard_says(tmp_path / "run", lambda report: report.pid != first.pid and report.vm_count == 1)
            assert second.obstacle == ""
        assert vm.poll() is None


async def test_new_daemon_finds_the_guard_of_the_old_one_and_vms_stay(tmp_path: Path) -> None:
    vm_ids = ids(1)
    with stand_ins(tmp_path) as vms:
        vm = vms.start(vm_ids[0])
        async with ordering_daemon(tmp_path / "run", vms, vm_ids, lease_ms=60_000) as old:
            first = await guard_says(tmp_path / "run", lambda report: report.vm_count == 1)
            old.kill()
            old.wait()
            async with ordering_daemon(tmp_path / "run", vms, vm_ids, lease_ms=60_000):
                again = await guard_says(tmp_path / "run", lambda report: report.beat_ns > first.beat_ns + 10**9)
                assert again.pid == first.pid
        assert vm.poll() is None


async def test_vm_that_appears_after_the_end_is_killed_too(tmp_path: Path) -> None:
    vm_ids = ids(1)
    with stand_ins(tmp_path) as vms:
        async with ordering_daemon(tmp_path / "run", vms, vm_ids, lease_ms=300, renews=False):
            await guard_says(tmp_path / "run", lambda report: report.vm_count == 0)
            await asyncio.sleep(0.5)
            vm = vms.start(vm_ids[0])
            began_s = time.monotonic()  # its pid file is there now
            assert await asyncio.to_thread(vm.wait, 30) == -signal.SIGKILL
            assert time.monotonic() - began_s < KILL_NS / 1e9


async def test_guard_is_small_and_ends_when_nothing_is_left_to_guard(tmp_path: Path) -> None:
    with stand_ins(tmp_path) as vms:
        async with ordering_daemon(tmp_path / "run", vms, ids(1), lease_ms=60_000) as daemon:
            report = await guard_says(tmp_path / "run", lambda report: True)
            await asyncio.sleep(0.5)
            assert psutil.Process(report.pid).memory_info().rss < MAX_RESIDENT_BYTES
            daemon.kill()
            daemon.wait()
            guard = VmProcess(report.pid, report.ticks)
            until_s = time.monotonic() + 30
            while is_alive(guard):
                assert time.monotonic() < until_s
                await asyncio.sleep(0.05)


def test_second_guard_of_a_directory_gives_way(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nodedaemon.self_fencing.guard", str(tmp_path), str(BOOT_ID_PATH)]
    write_file(str(tmp_path), "orders.json", orders(0, (), tmp_path, is_armed=False))
    first = subprocess.Popen(command)
    try:
        until_s = time.monotonic() + 30
        while read_report(str(tmp_path)) is None:
            assert time.monotonic() < until_s
            time.sleep(0.01)
        assert subprocess.run(command, check=False, timeout=30).returncode == 3
    finally:
        first.kill()
        first.wait()


# -- a guard in this process


def orders(
    end_ns: int, vm_ids: tuple[str, ...], pid_dir: Path, *, is_armed: bool = True, kill_ms: int = 3000
) -> Orders:
    ticks = start_ticks(os.getpid())
    assert ticks is not None
    return Orders(BOOT_ID, is_armed, end_ns, vm_ids, str(pid_dir), kill_ms, os.getpid(), ticks)


def guard_on(tmp_path: Path, told: Orders, watchdog: str = "") -> tuple[Guard, Scanner]:
    write_file(str(tmp_path), "orders.json", told)
    scanner = Scanner()
    return Guard(str(tmp_path), scanner, Watchdog(watchdog), BOOT_ID), scanner


def test_process_whose_number_was_given_anew_is_left_alone(tmp_path: Path) -> None:
    with stand_ins(tmp_path) as vms:
        vm = vms.start(ids(1)[0])
        ticks = start_ticks(vm.pid)
        assert ticks is not None
        assert not kill_process(VmProcess(vm.pid, ticks - 1))
        assert vm.poll() is None


def test_orders_of_another_boot_and_of_a_disarmed_host_kill_nothing(tmp_path: Path) -> None:
    vm_ids = ids(1)
    with stand_ins(tmp_path) as vms:
        vm = vms.start(vm_ids[0])
        ended = orders(1, tuple(vm_ids), vms.pid_dir)
        for told in (ended._replace(boot_id="another"), ended._replace(is_armed=False)):
            guard, scanner = guard_on(tmp_path, told)
            guard.tick()
            scanner.scan()
            guard.tick()
            assert vm.poll() is None
        guard, scanner = guard_on(tmp_path, ended)  # the same, but for what kept it from killing
        guard.tick()
        scanner.scan()
        guard.tick()
        assert vm.wait(30) == -signal.SIGKILL


def test_watchdog_is_fed_until_a_process_does_not_die_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vm_ids = ids(1)
    device = tmp_path / "watchdog"
    device.touch()
    monkeypatch.setattr("nodedaemon.self_fencing.guard.FEED_NS", 0)
    with stand_ins(tmp_path) as vms:
        vms.start(vm_ids[0])
        end_ns = now_ns()
        guard, scanner = guard_on(tmp_path, orders(end_ns, tuple(vm_ids), vms.pid_dir), str(device))
        # what is killed lives on, as in a system call that hangs
        monkeypatch.setattr("nodedaemon.self_fencing.guard.kill_process", lambda process: True)
        guard.tick()
        scanner.scan()
        guard.tick()
        fed_bytes = device.stat().st_size
        assert fed_bytes > 0
        while now_ns() < end_ns + 3_000_000_000:
            time.sleep(0.01)
        for _ in range(5):
            guard.tick()
        late = device.stat().st_size
        assert late <= fed_bytes + 1
        guard.tick()
        assert device.stat().st_size == late
        report = read_report(str(tmp_path))
        assert report is not None
        assert "do not die" in report.obstacle
