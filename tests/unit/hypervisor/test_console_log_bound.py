"""Logs of serial consoles keep their newest part and their offsets, however much a guest writes."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from hypervisor.libvirt import console_log
from hypervisor.libvirt.console_log_keeper import ConsoleLogKeeper
from hypervisor.types import ConsoleLog
from tests.support.private_libvirt_host import eventually

BOUND, KEPT = 512 * 2**10, 256 * 2**10


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "5f7c1a52-0b3e-4d0c-9a56-2f1f0c9e4b11.log"


def append(log: Path, first: int, line_count: int) -> int:
    """Write numbered lines of 16 bytes as QEMU does; returns the next number."""
    with log.open("ab") as file:
        file.write(b"".join(b"%015d\n" % number for number in range(first, first + line_count)))
    return first + line_count


def bound(log: Path) -> bool:
    return console_log.bound(log, bound_bytes=BOUND, kept_bytes=KEPT)


def taken_bytes(log: Path) -> int:
    return log.stat().st_blocks * 512


def test_log_below_its_bound_is_left_alone(log: Path) -> None:
    append(log, 0, BOUND // 16)
    assert not bound(log)
    assert console_log.read(log, 0, 16).data == b"%015d\n" % 0


def test_log_above_its_bound_loses_its_beginning_and_keeps_offsets(log: Path) -> None:
    next_number = append(log, 0, 2**16 + 5)
    size_bytes = log.stat().st_size
    assert bound(log)
    assert log.stat().st_size == size_bytes
    assert taken_bytes(log) <= KEPT + 2**17

    piece = console_log.read(log, 0, 2**20)
    begin = piece.next_offset - len(piece.data)
    assert KEPT <= len(piece.data) <= KEPT + 2**16
    assert piece.data.startswith(b"%015d\n" % (begin // 16))
    assert piece.next_offset == piece.size_bytes == size_bytes
    assert console_log.read(log, size_bytes - 16, 16).data == b"%015d\n" % (next_number - 1)

    append(log, next_number, 1)
    assert console_log.read(log, size_bytes, 100).data == b"%015d\n" % next_number


@pytest.mark.parametrize("more", [0, 2**16])
def test_log_that_loses_its_beginning_while_it_is_read_gives_what_is_kept_and_no_zeros(
    log: Path, monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    next_number = append(log, 0, 2**16)
    really_read, times = os.pread, 0

    def read_late(descriptor: int, length: int, offset: int) -> bytes:
        nonlocal times
        times += 1
        if times == 1:
            append(log, next_number, more)
            assert bound(log)
        return really_read(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", read_late)
    piece = console_log.read(log, 0, 2**20)
    begin = piece.next_offset - len(piece.data)
    assert piece.data == b"".join(b"%015d\n" % number for number in range(begin // 16, piece.next_offset // 16))
    assert begin > 0
    assert len(piece.data) >= KEPT
    assert piece.next_offset == (next_number + more) * 16


def test_log_stays_small_while_much_more_is_written_than_it_may_hold(log: Path) -> None:
    number = 0
    for _ in range(50):
        number = append(log, number, 2**14)
        bound(log)
        assert taken_bytes(log) <= BOUND + 2**17
    assert log.stat().st_size == number * 16


def test_follower_that_falls_behind_goes_on_with_what_is_kept(log: Path) -> None:
    number = append(log, 0, 100)
    offset = console_log.read(log, 0, 2**20).next_offset
    append(log, number, 2**17)
    bound(log)
    heard = b""
    while (piece := console_log.read(log, offset, 2**20)).data:
        heard, offset = heard + piece.data, piece.next_offset
    assert heard.endswith(b"%015d\n" % (number + 2**17 - 1))
    assert b"\0" not in heard


def test_log_that_is_only_a_hole_reads_as_empty(log: Path) -> None:
    log.touch()
    os.truncate(log, 2**20)
    assert console_log.read(log, 5, 100) == ConsoleLog(b"", 2**20, 2**20)


def test_bound_log_that_is_a_link_or_gone_is_not_followed(log: Path, tmp_path: Path) -> None:
    assert not bound(log)
    victim = tmp_path / "victim"
    append(victim, 0, 2**17)
    log.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        bound(log)
    assert taken_bytes(victim) >= 2**21
    assert console_log.bound_all(tmp_path, bound_bytes=BOUND, kept_bytes=KEPT) == []
    assert taken_bytes(victim) >= 2**21


def test_file_system_without_holes_puts_the_newest_part_aside(log: Path) -> None:
    append(log, 0, 2**16)
    descriptor = os.open(log, os.O_RDWR)
    console_log._begin_anew(descriptor, log, 2**20 - 32)
    os.close(descriptor)
    assert log.stat().st_size == 0
    assert log.with_name(f"{log.name}.0").read_bytes() == b"%015d\n%015d\n" % (2**16 - 2, 2**16 - 1)
    append(log, 7, 1)
    assert console_log.read(log, 0, 100).data == b"%015d\n" % 7


async def test_keeper_bounds_logs_and_nothing_else(log: Path, tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    append(other, 0, 2**17)
    append(log, 0, 2**17)
    keeper = ConsoleLogKeeper(tmp_path, interval_s=0.01, bound_bytes=BOUND, kept_bytes=KEPT)
    keeper.start()

    async def look() -> bool | None:
        return await asyncio.to_thread(taken_bytes, log) <= BOUND or None

    await eventually(look, "the log is small", 60)
    await keeper.stop()
    await keeper.stop()
    assert taken_bytes(other) >= 2**21
