"""The newest generation taken for each VM: kept through everything, refused if older, not kept for ever."""

from __future__ import annotations

import asyncio
import os
import resource
import sqlite3
import sys
import uuid
from collections.abc import Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from limiquantix.errors import Aborted, Unavailable
from nodedaemon.change_count import DataDirError
from nodedaemon.generations import FILE_NAME, KEEP_S, Generations, open_generations

VM = str(uuid.uuid4())


class Clock:
    def __init__(self, now_s: float = 500.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


async def refused(call: Coroutine[Any, Any, None]) -> Aborted:
    with pytest.raises(Aborted) as caught:
        await call
    assert caught.value.reason == "STALE_GENERATION"
    return caught.value


async def reopened(generations: Generations, data_dir: Path, now_s: Clock | None = None) -> Generations:
    await generations.close()
    return await open_generations(data_dir, now_s or Clock())


async def test_older_generation_is_refused_with_both_numbers(tmp_path: Path) -> None:
    generations = await open_generations(tmp_path)
    await generations.accept(VM, 7)
    error = await refused(generations.accept(VM, 6))
    assert error.metadata == {"vm_id": VM, "generation": "6", "newest": "7"}
    assert "7" in error.message
    await generations.close()


async def test_same_and_newer_generations_of_a_vm_and_any_of_another_pass(tmp_path: Path) -> None:
    generations = await open_generations(tmp_path)
    other = str(uuid.uuid4())
    for vm_id, generation in ((VM, 7), (VM, 7), (VM, 2**63 - 1), (VM, 2**63 - 1), (other, 1)):
        await generations.accept(vm_id, generation)
    assert dict(generations.newest) == {VM: 2**63 - 1, other: 1}
    await generations.close()


async def test_zero_is_neither_checked_nor_kept(tmp_path: Path) -> None:
    generations = await open_generations(tmp_path)
    await generations.accept(VM, 0)
    assert VM not in generations.newest
    await generations.accept(VM, 7)
    await generations.accept(VM, 0)
    assert generations.newest[VM] == 7
    await generations.close()


async def test_generation_is_refused_after_a_restart(tmp_path: Path) -> None:
    generations = await open_generations(tmp_path)
    await generations.accept(VM, 7)
    generations = await reopened(generations, tmp_path)
    await refused(generations.accept(VM, 6))
    await generations.accept(VM, 7)
    await generations.close()


async def test_accepted_generation_is_in_the_file_of_a_process_killed_right_after(tmp_path: Path) -> None:
    program = f"""
import asyncio, os, pathlib, signal
from nodedaemon.generations import open_generations
async def main():
    generations = await open_generations(pathlib.Path({str(tmp_path)!r}))
    await asyncio.gather(*(generations.accept({VM!r}, number) for number in (1, 2, 9)), return_exceptions=True)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, env=environment)
    assert await process.wait() == -9
    generations = await open_generations(tmp_path)
    assert generations.newest[VM] == 9
    await generations.close()


async def test_older_one_that_waits_for_the_same_write_is_refused_and_not_written(tmp_path: Path) -> None:
    generations = await open_generations(tmp_path)
    outcomes = await asyncio.gather(*(generations.accept(VM, n) for n in (5, 6, 4, 6)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Aborted, type(None), Aborted, type(None)]
    generations = await reopened(generations, tmp_path)
    assert generations.newest[VM] == 6
    await generations.close()


async def test_newer_one_that_comes_during_a_write_refuses_the_one_written(tmp_path: Path) -> None:
    generations = await open_generations(tmp_path)
    older = asyncio.create_task(generations.accept(VM, 5))
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # its write has begun by now, or shares the next; either way it must end as taken or refused
    await generations.accept(VM, 6)
    await asyncio.wait([older])
    generations.check(VM, 6)
    with pytest.raises(Aborted):
        generations.check(VM, 5)
    await generations.close()


async def test_commands_that_come_at_once_share_writes(tmp_path: Path) -> None:
    generations = await open_generations(tmp_path)
    wal = tmp_path / f"{FILE_NAME}-wal"
    await generations.accept(VM, 1)
    frame_bytes = await asyncio.to_thread(lambda: wal.stat().st_size)
    vm_ids = [str(uuid.uuid4()) for _ in range(200)]
    await asyncio.gather(*(generations.accept(vm_id, 1) for vm_id in vm_ids))
    grown_bytes = await asyncio.to_thread(lambda: wal.stat().st_size)
    assert grown_bytes < 50 * frame_bytes  # one write each would be 200 times the first
    generations = await reopened(generations, tmp_path)
    assert len(generations.newest) == 201
    await generations.close()


async def test_caller_that_goes_away_during_the_write_breaks_nothing(tmp_path: Path) -> None:
    generations = await open_generations(tmp_path)
    leaving = asyncio.create_task(generations.accept(VM, 5))
    await asyncio.sleep(0)
    leaving.cancel()
    await generations.accept(VM, 5)
    assert generations.newest[VM] == 5
    await generations.close()


async def test_write_that_fails_refuses_the_command_and_the_next_try_may_succeed(tmp_path: Path) -> None:
    generations = await open_generations(tmp_path)
    await generations.accept(VM, 1)
    soft_limit, hard_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard_limit))  # as if the disk were full
    try:
        with pytest.raises(Unavailable) as caught:
            await generations.accept(VM, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft_limit, hard_limit))
    assert caught.value.reason == "STATE_UNAVAILABLE"
    assert generations.newest[VM] == 1
    await generations.accept(VM, 2)
    generations = await reopened(generations, tmp_path)
    assert generations.newest[VM] == 2
    await generations.close()


async def test_unused_ones_of_vms_that_are_gone_are_dropped_after_a_month(tmp_path: Path) -> None:
    clock = Clock()
    generations = await open_generations(tmp_path, clock)
    here, gone, used = VM, str(uuid.uuid4()), str(uuid.uuid4())
    for vm_id in (here, gone, used):
        await generations.accept(vm_id, 3)
    clock.now_s += KEEP_S - 10
    assert await generations.forget_unused({here}) == 0
    await generations.accept(used, 3)  # a repeated command is a use
    clock.now_s += 20
    assert await generations.forget_unused({here}) == 1
    assert set(generations.newest) == {here, used}
    generations = await reopened(generations, tmp_path)
    assert set(generations.newest) == {here, used}
    await generations.accept(gone, 1)
    await generations.close()


async def test_age_adds_up_over_restarts_whatever_the_clock_shows_at_each(tmp_path: Path) -> None:
    clock = Clock()
    generations = await open_generations(tmp_path, clock)
    await generations.accept(VM, 3)
    for start_s in (10.0**9, 0.0, 5.0, 2.0**40):  # such as a monotonic clock, which begins anywhere after each boot
        clock.now_s += KEEP_S / 5
        assert await generations.forget_unused(()) == 0
        clock = Clock(start_s)
        generations = await reopened(generations, tmp_path, clock)
        assert await generations.forget_unused(()) == 0
    clock.now_s += KEEP_S / 5 + 1
    assert await generations.forget_unused(()) == 1
    await generations.close()


async def test_file_of_a_second_daemon_is_refused_with_the_reason(tmp_path: Path) -> None:
    generations = await open_generations(tmp_path)
    with pytest.raises(DataDirError, match="in use by another node daemon"):
        await open_generations(tmp_path)
    await generations.accept(VM, 1)
    await generations.close()


@pytest.mark.parametrize("damage", ["text", "empty", "cut", "overwritten", "foreign", "newer"])
async def test_damaged_file_is_an_error_that_names_it_and_is_left_as_it_is(tmp_path: Path, damage: str) -> None:
    generations = await open_generations(tmp_path)
    await asyncio.gather(*(generations.accept(str(uuid.uuid4()), 1) for _ in range(500)))
    await generations.close()
    path = tmp_path / FILE_NAME
    content = path.read_bytes()
    match damage:
        case "text":
            path.write_text("generations: none\n" * 1000)
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(content[: len(content) // 2])
        case "overwritten":
            path.write_bytes(content[:4096] + b"\xff" * 4096 + content[8192:])
        case "foreign":
            path.unlink()
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("CREATE TABLE other (id INTEGER)")
        case "newer":
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("PRAGMA user_version = 2")
    before = path.read_bytes()
    with pytest.raises(DataDirError, match=FILE_NAME):
        await open_generations(tmp_path)
    assert path.read_bytes() == before


async def test_start_that_was_killed_while_it_made_the_file_leaves_the_next_one_free(tmp_path: Path) -> None:
    (tmp_path / "generations.part").write_bytes(b"half of it")
    generations = await open_generations(tmp_path)
    await generations.accept(VM, 1)
    await generations.close()
    assert await asyncio.to_thread(os.listdir, tmp_path) == [FILE_NAME]


async def test_data_dir_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataDirError, match="cannot be used"):
        await open_generations(tmp_path / "file")
