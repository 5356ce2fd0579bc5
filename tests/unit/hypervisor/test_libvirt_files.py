"""What the libvirt backend reads beside libvirt: console logs and the kernel's view of QEMU's processes."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

import pytest

from hypervisor.libvirt import console_log
from hypervisor.libvirt.qemu_process import ProcessUsage, QemuProcess, find_processes, read_usage
from hypervisor.types import ConsoleLog

VM = "5f7c1a52-0b3e-4d0c-9a56-2f1f0c9e4b11"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = console_log.log_path(tmp_path, VM)
    path.write_bytes(b"0123456789")
    return path


@pytest.mark.parametrize(
    ("offset", "max_bytes", "expected"),
    [
        (0, 100, ConsoleLog(b"0123456789", 10, 10)),
        (0, 4, ConsoleLog(b"0123", 4, 10)),
        (4, 4, ConsoleLog(b"4567", 8, 10)),
        (8, 4, ConsoleLog(b"89", 10, 10)),
        (10, 4, ConsoleLog(b"", 10, 10)),
        (11, 4, ConsoleLog(b"", 10, 10)),
        (2**70, 4, ConsoleLog(b"", 10, 10)),
    ],
)
def test_log_read_from_an_offset_gives_the_piece_and_where_to_go_on(
    log: Path, offset: int, max_bytes: int, expected: ConsoleLog
) -> None:
    assert console_log.read(log, offset, max_bytes) == expected


def test_log_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    assert console_log.read(console_log.log_path(tmp_path, VM), 7, 1) == ConsoleLog(b"", 0, 0)


@pytest.mark.parametrize(("offset", "max_bytes"), [(-1, 1), (0, 0), (0, console_log.MAX_READ_BYTES + 1)])
def test_log_read_out_of_bounds_is_an_error(log: Path, offset: int, max_bytes: int) -> None:
    with pytest.raises(ValueError, match="max_bytes from 1"):
        console_log.read(log, offset, max_bytes)


def test_log_removed_goes_with_its_older_ones_and_no_others(log: Path) -> None:
    others = [log.with_name("other.log"), log.with_name(f"{log.name}.kept")]
    for path in (*others, log.with_name(f"{log.name}.0"), log.with_name(f"{log.name}.1")):
        path.touch()
    console_log.remove(log)
    console_log.remove(log)
    assert sorted(log.parent.iterdir()) == sorted(others)


def test_log_is_put_aside_only_once_it_is_large(log: Path) -> None:
    console_log.rotate(log)
    assert log.exists()
    os.truncate(log, console_log.ROTATE_ABOVE_BYTES + 1)
    console_log.rotate(log)
    console_log.rotate(log)
    assert [path.name for path in log.parent.iterdir()] == [f"{log.name}.0"]


def add_process(proc: Path, pid: int, words: list[str], *, start_ticks: int = 500) -> None:
    directory = proc / str(pid)
    directory.mkdir()
    (directory / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))
    fields = ["S", *["0"] * 10, "250", "50", *["0"] * 6, str(start_ticks), "0", "3", "0"]
    (directory / "stat").write_text(f"{pid} (qemu) system) {' '.join(fields)}\n")


def test_processes_are_found_by_the_uuid_on_their_command_line(tmp_path: Path) -> None:
    add_process(tmp_path, 10, ["qemu", "-name", "x", "-uuid", VM], start_ticks=700)
    add_process(tmp_path, 11, ["qemu", "-uuid", str(uuid.uuid4())])
    add_process(tmp_path, 12, ["sh", "-uuid"])
    add_process(tmp_path, 13, [])
    (tmp_path / "14").mkdir()
    found = find_processes([VM, str(uuid.uuid4())], tmp_path)
    assert {vm_id: process.pid for vm_id, process in found.items()} == {VM: 10}
    booted_at_s = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    assert found[VM].started_at_s == pytest.approx(booted_at_s + 700 / os.sysconf("SC_CLK_TCK"), abs=1.0)


def test_usage_of_a_process_is_in_nanoseconds_and_bytes(tmp_path: Path) -> None:
    add_process(tmp_path, 10, ["qemu"])
    ticks_per_s, page_bytes = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    assert read_usage(QemuProcess(10, 0.0), tmp_path) == ProcessUsage(300 * 10**9 // ticks_per_s, 3 * page_bytes)


def test_usage_of_a_process_that_ended_is_nothing(tmp_path: Path) -> None:
    assert read_usage(QemuProcess(10, 0.0), tmp_path) == ProcessUsage(0, 0)
