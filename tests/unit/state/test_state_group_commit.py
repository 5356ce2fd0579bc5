"""Transactions that share a commit: each whole or not at all, told once it is durable, and none in another's way."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from controlplane.domain import errors
from controlplane.state.engine import Progress, Session, SessionPool, SessionPools, StoreLimits
from controlplane.state.sqlite import SqliteDatabase
from limiquantix.errors import Unavailable
from tests.support.databases import fresh_sqlite
from tests.support.node_daemon_process import environment
from tests.support.stores import PATIENT, Stop, cancel

Work = Callable[[Session], Awaitable[None]]

DEADLINE_S = 30.0
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
async def pools(tmp_path: Path) -> AsyncIterator[SessionPools]:
    """The pools of a database with a table of its own, `notes`, whose texts are unique."""
    fresh_sqlite(tmp_path)
    opened = SqliteDatabase(tmp_path / "limiquantix.db").pools(replace(PATIENT, waiting_count=600))
    await run(opened.writer, statement("CREATE TABLE notes (text TEXT UNIQUE)"))
    yield opened
    for pool in (opened.reader, opened.writer):
        await pool.dispose()


def statement(sql: str) -> Work:
    async def work(session: Session) -> None:
        await session.call(lambda connection: connection.exec_driver_sql(sql))

    return work


def note(text: str) -> Work:
    return statement(f"INSERT INTO notes VALUES ('{text}')")  # noqa: S608 - the tests' own texts


def then(*works: Work) -> Work:
    async def work(session: Session) -> None:
        for each in works:
            await each(session)

    return work


def stopping(stop: Stop) -> Work:
    async def work(session: Session) -> None:
        stop.here()

    return work


async def refuse(session: Session) -> None:
    raise errors.vm_not_found("any")


async def run(pool: SessionPool, work: Work, progress: Progress | None = None) -> None:
    await pool.transact(work, progress or Progress(), writes=True)


async def notes(pools: SessionPools) -> list[str]:
    """Every text, in the order of the rows."""

    async def work(session: Session) -> list[str]:
        return await session.call(
            lambda connection: list(connection.exec_driver_sql("SELECT text FROM notes ORDER BY rowid").scalars())
        )

    return await pools.reader.transact(work, Progress(), writes=False)


async def grouped(pools: SessionPools, *works: Work) -> list[asyncio.Task[None]]:
    """Have the works wait behind a first one, so that one commit takes them all, and let them go."""
    stop = Stop()
    first = asyncio.create_task(run(pools.writer, stopping(stop)))
    await stop.reached()
    tasks = [asyncio.create_task(run(pools.writer, work)) for work in works]
    await asyncio.sleep(0)
    stop.go_on()
    return [first, *tasks]


async def outcomes(tasks: list[asyncio.Task[None]]) -> list[BaseException | None]:
    async with asyncio.timeout(DEADLINE_S):
        return await asyncio.gather(*tasks, return_exceptions=True)


async def traced(pools: SessionPools) -> list[str]:
    """Collect all that the writer's connection is told from now on."""
    seen: list[str] = []

    def trace(connection: Connection) -> None:
        driver_connection: Any = connection.connection.driver_connection
        driver_connection.set_trace_callback(seen.append)

    async def work(session: Session) -> None:
        await session.call(trace)

    await run(pools.writer, work)
    seen.clear()
    return seen


async def test_transactions_that_wait_share_one_commit(pools: SessionPools) -> None:
    seen = await traced(pools)
    assert await outcomes(await grouped(pools, *(note(str(number)) for number in range(30)))) == [None] * 31
    assert (seen.count("BEGIN IMMEDIATE"), seen.count("COMMIT")) == (1, 1)
    assert await notes(pools) == [str(number) for number in range(30)]


async def test_transaction_alone_needs_no_savepoint(pools: SessionPools) -> None:
    seen = await traced(pools)
    await run(pools.writer, note("alone"))
    assert seen == ["BEGIN IMMEDIATE", "INSERT INTO notes VALUES ('alone')", "COMMIT"]


async def test_one_that_fails_is_taken_back_alone(pools: SessionPools) -> None:
    tasks = await grouped(
        pools,
        note("before"),
        then(note("half"), refuse),
        then(note("other half"), note("before")),
        note("after"),
    )
    found = await outcomes(tasks)
    assert [type(each) for each in found[:2] + found[4:]] == [type(None)] * 3
    assert str(found[2]) == str(errors.vm_not_found("any"))
    assert isinstance(found[3], IntegrityError)
    assert await notes(pools) == ["before", "after"]


async def test_first_that_fails_takes_nobody_with_it(pools: SessionPools) -> None:
    stop = Stop()
    first = asyncio.create_task(run(pools.writer, then(note("never"), stopping(stop), refuse)))
    await stop.reached()
    second = asyncio.create_task(run(pools.writer, note("second")))
    await asyncio.sleep(0)
    stop.go_on()
    found = await outcomes([first, second])
    assert str(found[0]) == str(errors.vm_not_found("any"))
    assert found[1] is None
    assert await notes(pools) == ["second"]


async def test_nobody_is_told_before_the_commit(pools: SessionPools) -> None:
    held = Stop()
    tasks = await grouped(pools, note("done"), stopping(held))
    await held.reached()
    assert [task.done() for task in tasks] == [False] * 3
    assert await notes(pools) == []
    held.go_on()
    assert await outcomes(tasks) == [None] * 3
    assert await notes(pools) == ["done"]


async def test_caller_cancelled_in_the_middle_of_a_group_leaves_nothing_and_disturbs_nobody(
    pools: SessionPools,
) -> None:
    held = Stop()
    tasks = await grouped(pools, note("before"), then(note("half"), stopping(held), note("rest")), note("after"))
    await held.reached()
    await cancel(tasks[2])
    await cancel(tasks[3])
    held.go_on()
    found = await outcomes(tasks)
    assert [type(each) for each in found] == [type(None), type(None), asyncio.CancelledError, asyncio.CancelledError]
    assert await notes(pools) == ["before"]


async def test_group_that_loses_its_transaction_is_carried_out_one_by_one(pools: SessionPools) -> None:
    began_count = 0

    async def counted(session: Session) -> None:
        nonlocal began_count
        began_count += 1
        await note("counted")(session)

    # What SQLite does by itself when a disk is full or fails: the error ends the whole transaction.
    lost = statement("INSERT OR ROLLBACK INTO notes VALUES ('counted')")
    tasks = await grouped(pools, counted, then(note("half"), lost), note("after"))
    found = await outcomes(tasks)
    assert isinstance(found[2], IntegrityError)
    assert found[0] is found[1] is found[3] is None
    assert began_count == 2
    assert await notes(pools) == ["counted", "after"]


async def test_one_for_whom_the_disk_is_too_small_keeps_nobody_else_from_writing(pools: SessionPools) -> None:
    async def fill_up(session: Session) -> None:
        (count,) = await session.call(lambda connection: connection.exec_driver_sql("PRAGMA page_count").one())
        await statement(f"PRAGMA max_page_count = {count + 2}")(session)

    tasks = await grouped(pools, fill_up, note("small"), note("large" * 10_000), note("after"))
    found = await outcomes(tasks)
    assert [type(each) for each in found] == [type(None)] * 3 + [OperationalError, type(None)]
    assert "full" in str(found[3])
    assert await notes(pools) == ["small", "after"]


async def test_commit_that_fails_is_told_to_all_and_nothing_is_kept(pools: SessionPools, tmp_path: Path) -> None:
    await run(pools.writer, note("before"))
    progress = Progress()
    stop = Stop()
    first = asyncio.create_task(run(pools.writer, then(note("first"), stopping(stop)), progress))
    await stop.reached()
    tasks = [first, *(asyncio.create_task(run(pools.writer, note(f"{n}" * 5000))) for n in range(5))]
    await asyncio.sleep(0)
    with file_size_limit((tmp_path / "limiquantix.db-wal").stat().st_size):  # as a full disk: the log cannot grow
        stop.go_on()
        found = await outcomes(tasks)
    assert [isinstance(each, OperationalError) for each in found] == [True] * 6
    assert progress.commit_sent
    assert await notes(pools) == ["before"]
    await run(pools.writer, note("afterwards"))
    assert await notes(pools) == ["before", "afterwards"]


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """Have every write of this process beyond that offset fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_500_callers_are_all_served_in_the_order_they_came(pools: SessionPools) -> None:
    tasks = [asyncio.create_task(run(pools.writer, note(str(number)))) for number in range(500)]
    assert await outcomes(tasks) == [None] * 500
    assert await notes(pools) == [str(number) for number in range(500)]


async def test_more_callers_than_may_wait_are_refused_at_once(pools: SessionPools) -> None:
    stop = Stop()
    first = asyncio.create_task(run(pools.writer, stopping(stop)))
    await stop.reached()
    tasks = [asyncio.create_task(run(pools.writer, note(str(number)))) for number in range(700)]
    await asyncio.sleep(0)
    stop.go_on()
    found = await outcomes([first, *tasks])
    assert [type(each) for each in found] == [type(None)] * 601 + [Unavailable] * 100
    assert len(await notes(pools)) == 600


async def test_reads_that_come_later_see_what_was_committed_before_them(pools: SessionPools) -> None:
    held = Stop()
    slow = asyncio.create_task(pools.reader.transact(stopping(held), Progress(), writes=False))
    await held.reached()
    for number in range(20):
        await run(pools.writer, note(str(number)))
        assert len(await notes(pools)) == number + 1  # in spite of a reader that hangs
    held.go_on()
    await slow


async def test_reads_that_wait_together_share_a_snapshot_and_fail_alone(pools: SessionPools) -> None:
    await run(pools.writer, note("one"))
    works = (statement("SELECT text FROM notes"), statement("SELECT wrong FROM notes"), refuse)
    tasks = [asyncio.create_task(pools.reader.transact(work, Progress(), writes=False)) for work in works * 20]
    found = await outcomes(tasks)
    assert [each is None for each in found] == [True, False, False] * 20
    assert isinstance(found[1], DBAPIError)
    assert await notes(pools) == ["one"]


async def test_pool_that_is_disposed_serves_those_who_wait_and_nobody_after(pools: SessionPools) -> None:
    tasks = await grouped(pools, note("waits"))
    await pools.writer.dispose()
    assert await outcomes(tasks) == [None, None]
    assert await notes(pools) == ["waits"]
    with pytest.raises(Unavailable, match="closed"):
        await run(pools.writer, note("late"))


async def test_pool_that_is_disposed_while_a_transaction_hangs_does_not_wait_for_it(tmp_path: Path) -> None:
    fresh_sqlite(tmp_path)
    pools = SqliteDatabase(tmp_path / "limiquantix.db").pools(StoreLimits(release_s=0.1))
    tasks = await grouped(pools)
    held = Stop()
    tasks.append(asyncio.create_task(run(pools.writer, stopping(held))))
    await held.reached()
    tasks.append(asyncio.create_task(run(pools.writer, refuse)))
    await asyncio.sleep(0)
    await pools.writer.dispose()
    assert not tasks[1].done()
    held.go_on()
    found = await outcomes(tasks)
    assert found[:2] == [None, None]
    assert isinstance(found[2], Unavailable)
    await pools.reader.dispose()


WRITER = """
import asyncio, sys
from controlplane.state.factory import create_store
from controlplane.state.interface import Transaction
from tests.support.builders import make_vm

async def main() -> None:
    store = create_store(sys.argv[1])
    await store.open()

    async def write_for_ever() -> None:
        while True:
            pair = [make_vm(), make_vm()]

            async def work(tx: Transaction) -> None:
                for vm in pair:
                    await tx.insert_vm(vm)

            await store.run(work)
            print(pair[0].id, pair[1].id, flush=True)

    await asyncio.gather(*(write_for_ever() for _ in range(20)))

asyncio.run(main())
"""


def test_whatever_was_told_is_there_after_a_kill_and_all_of_it_is_whole(tmp_path: Path) -> None:
    url = fresh_sqlite(tmp_path)
    command = [sys.executable, "-c", WRITER, url]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(), cwd=REPOSITORY, text=True)
    try:
        assert writer.stdout is not None
        told = [line.split() for line, _ in zip(writer.stdout, range(150), strict=False)]
        writer.kill()
        told += [line.split() for line in writer.stdout.read().splitlines()]
    finally:
        writer.kill()
        writer.wait()
    with closing(sqlite3.connect(tmp_path / "limiquantix.db")) as connection:
        stored = {vm_id for (vm_id,) in connection.execute("SELECT id FROM vms")}
    whole_lines = [pair for pair in told if len(pair) == 2 and len(pair[1]) == len(told[0][1])]
    assert stored.issuperset(vm_id for pair in whole_lines for vm_id in pair)
    assert len(told) >= 150
    assert len(stored) % 2 == 0
