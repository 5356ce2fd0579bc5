"""The store repeats, gives up and cleans up as it says; a scripted database stands for the faults of a real one."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, OperationalError

from controlplane.domain import errors
from controlplane.domain.node import Capacity
from controlplane.state.engine import Progress, Session, SessionPool, SessionPools, StoreLimits
from controlplane.state.factory import create_store
from controlplane.state.interface import Transaction
from controlplane.state.schema_base import REVISION
from controlplane.state.sql import SqlStore
from controlplane.state.sqlite import SqliteDatabase
from controlplane.state.threads import drive
from limiquantix.errors import Aborted, Reason, Unavailable
from tests.support.builders import make_node, make_vm
from tests.support.databases import fresh_sqlite
from tests.support.stores import Stop, add, place, vm_in

ResultT = TypeVar("ResultT")

STUBBORN = StoreLimits(total_s=60, connection_wait_s=50, lock_wait_s=0.05, ping_s=60, attempt_count=3)
"""Gives up upon conflicts soon, and never because the machine is busy with something else."""
IMPATIENT = replace(STUBBORN, total_s=0.5, ping_s=0.05)
"""For databases that do not answer at all."""


def sqlite_fault(code: int) -> DBAPIError:
    """Make what SQLAlchemy raises for an error of SQLite's."""
    fault = sqlite3.OperationalError("scripted")
    fault.sqlite_errorcode = code
    return OperationalError("SQL", {}, fault)


BUSY = sqlite_fault(sqlite3.SQLITE_BUSY)
LOST = OperationalError("SQL", {}, Exception("server closed the connection unexpectedly"), connection_invalidated=True)
STALE = errors.concurrent_change("vm", "any")
IN_DOUBT = "whether the change was stored is unknown"


class ScriptedDatabase:
    """A database whose transactions fail as told; it is also its own two pools.

    Args:
        commit_faults: errors with which the first commits fail.
        call_faults: the same for calls.
    """

    def __init__(self, commit_faults: Sequence[Exception], call_faults: Sequence[Exception]) -> None:
        self.commit_faults = list(commit_faults)
        self.call_faults = list(call_faults)
        self.hangs_in_call = False
        self.hangs_in_commit = False
        self.begun_count = 0
        self.closed_count = 0

    def exists(self) -> bool:
        return True

    def pools(self, limits: StoreLimits) -> SessionPools:
        return SessionPools(self, self)

    def migration_engine(self) -> Engine:
        raise AssertionError("a store never migrates")

    def check_migrated(self, connection: Connection) -> None:
        raise AssertionError("a store never migrates")

    async def transact(
        self, use: Callable[[Session], Awaitable[ResultT]], progress: Progress, *, writes: bool
    ) -> ResultT:
        progress.commit_sent = False
        self.begun_count += 1
        try:
            if self.hangs_in_call:
                await asyncio.Event().wait()
            result = drive(use(ScriptedSession(self)))
            if writes:
                progress.commit_sent = True
                if self.hangs_in_commit:
                    await asyncio.Event().wait()
                _fail_next(self.commit_faults)
            return result
        finally:
            self.closed_count += 1

    async def dispose(self) -> None:
        """Nothing is held."""


class ScriptedSession:
    """One transaction of a `ScriptedDatabase`; every call answers with the schema's revision."""

    def __init__(self, database: ScriptedDatabase) -> None:
        self._database = database

    async def call(self, function: Callable[[Connection], ResultT]) -> ResultT:
        _fail_next(self._database.call_faults)
        return REVISION  # type: ignore[return-value]


def _fail_next(faults: list[Exception]) -> None:
    if faults:
        raise faults.pop(0)


async def scripted(
    commit_faults: Sequence[Exception], call_faults: Sequence[Exception], limits: StoreLimits = STUBBORN
) -> tuple[SqlStore, ScriptedDatabase]:
    """Open a store on a database that begins to fail afterwards."""
    database = ScriptedDatabase([], [])
    store = SqlStore(database, limits)
    await store.open()
    database.begun_count = database.closed_count = 0
    database.commit_faults, database.call_faults = list(commit_faults), list(call_faults)
    return store, database


@pytest.mark.parametrize(
    ("commit_faults", "call_faults"),
    [
        ([BUSY, BUSY], []),
        ([], [BUSY, BUSY]),
        ([BUSY], [BUSY]),
        ([], [STALE, STALE]),
        ([], [LOST, BUSY]),
        ([BUSY], [LOST]),
    ],
)
async def test_run_that_meets_conflicts_repeats_the_whole_work_in_new_transactions(
    commit_faults: list[Exception], call_faults: list[Exception]
) -> None:
    store, database = await scripted(commit_faults, call_faults)
    began_count = 0

    async def work(tx: Transaction) -> str:
        nonlocal began_count
        began_count += 1
        await tx.get_vm("any")
        return "done"

    assert await store.run(work) == "done"
    assert (began_count, database.begun_count, database.closed_count) == (3, 3, 3)


async def test_run_that_meets_conflicts_only_gives_up_after_its_attempts() -> None:
    store, database = await scripted([BUSY] * 10, [])
    with pytest.raises(Unavailable, match="another writer") as refusal:
        await store.run(lambda tx: tx.get_vm("any"))
    assert (database.begun_count, database.closed_count) == (STUBBORN.attempt_count, STUBBORN.attempt_count)
    assert refusal.value.reason == Reason.STATE_UNAVAILABLE
    assert isinstance(refusal.value.__cause__, OperationalError)
    assert IN_DOUBT not in refusal.value.message


async def test_run_whose_record_stays_stale_is_aborted_after_its_attempts() -> None:
    store, database = await scripted([], [STALE] * 10)
    with pytest.raises(Aborted):
        await store.run(lambda tx: tx.get_vm("any"))
    assert database.begun_count == STUBBORN.attempt_count


async def test_run_that_meets_another_fault_does_not_repeat() -> None:
    store, database = await scripted([sqlite_fault(sqlite3.SQLITE_FULL)], [])
    with pytest.raises(Unavailable, match="full"):
        await store.run(lambda tx: tx.get_vm("any"))
    assert (database.begun_count, database.closed_count) == (1, 1)


async def test_connection_lost_before_the_commit_is_replaced_once_only() -> None:
    store, database = await scripted([], [LOST] * 10)
    for use in (store.run, store.read):
        database.begun_count = 0
        with pytest.raises(Unavailable, match="connection to it was lost") as refusal:
            await use(lambda tx: tx.get_vm("any"))
        assert database.begun_count == 2
        assert IN_DOUBT not in refusal.value.message


async def test_connection_lost_at_the_commit_is_never_repeated_and_leaves_the_outcome_open() -> None:
    store, database = await scripted([LOST], [])
    with pytest.raises(Unavailable, match=IN_DOUBT):
        await store.run(lambda tx: tx.get_vm("any"))
    assert database.begun_count == 1


async def test_database_that_never_answers_is_unavailable_and_its_session_closed() -> None:
    store, database = await scripted([], [], IMPATIENT)
    database.hangs_in_call = True
    with pytest.raises(Unavailable, match=r"no answer within 0\.5 s$"):
        await store.run(lambda tx: tx.get_vm("any"))
    with pytest.raises(Unavailable, match="no answer within"):
        await store.ping()
    await store.close()
    assert database.begun_count == 2


async def test_commit_that_is_never_answered_leaves_the_outcome_open() -> None:
    store, database = await scripted([], [], IMPATIENT)
    database.hangs_in_commit = True
    with pytest.raises(Unavailable, match=IN_DOUBT):
        await store.run(lambda tx: tx.get_vm("any"))
    assert database.begun_count == 1


async def test_store_that_is_not_open_is_unavailable(tmp_path: Path) -> None:
    store = create_store(fresh_sqlite(tmp_path))

    async def refuses_everything() -> None:
        for use in (store.ping, lambda: store.run(lambda tx: tx.all_nodes()), lambda: vm_in(store, "any")):
            with pytest.raises(Unavailable, match="not open"):
                await use()

    await refuses_everything()
    await store.open()
    await store.ping()
    await store.close()
    await store.close()
    await refuses_everything()


async def test_lock_held_by_another_process_for_too_long_is_unavailable_and_then_over(tmp_path: Path) -> None:
    store = create_store(fresh_sqlite(tmp_path), STUBBORN)
    await store.open()
    node = make_node()
    await add(store, node)
    stranger = sqlite3.connect(tmp_path / "limiquantix.db", isolation_level=None)
    try:
        stranger.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="another writer"):
            await place(store, make_vm(node_id=node.id))
        await store.ping()  # readers never wait for writers
        stranger.execute("ROLLBACK")
        assert await place(store, make_vm(node_id=node.id))
    finally:
        stranger.close()
        await store.close()


async def test_connection_that_is_in_use_for_too_long_is_unavailable(tmp_path: Path) -> None:
    store = create_store(fresh_sqlite(tmp_path), StoreLimits(connection_wait_s=0.05, waiting_count=1))
    await store.open()
    occupied = Stop()

    async def occupy(tx: Transaction) -> None:
        occupied.here()

    occupant = asyncio.create_task(store.run(occupy))
    await occupied.reached()
    outcomes = await asyncio.gather(*(store.run(lambda tx: tx.all_nodes()) for _ in range(2)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Unavailable, Unavailable]
    assert "in use for 0.05 s" in str(outcomes[0])
    assert "1 calls wait" in str(outcomes[1])
    occupied.go_on()
    await occupant
    await store.run(lambda tx: tx.all_nodes())
    await store.close()


async def test_work_that_takes_too_long_is_ended_and_rolled_back(tmp_path: Path) -> None:
    store = create_store(fresh_sqlite(tmp_path), StoreLimits(total_s=2.0, interrupt_after_s=0.05, release_s=0.05))
    await store.open()
    vm = make_vm()
    written = Stop()

    async def work(tx: Transaction) -> None:
        await tx.insert_vm(vm)
        written.here()
        await tx.get_vm(vm.id)

    with pytest.raises(Unavailable, match=r"no answer within 2 s"):
        await store.run(work)
    written.go_on()
    assert await vm_in(store, vm.id) is None
    await add(store, vm)
    await store.close()


async def test_database_file_that_vanished_is_unavailable_and_not_made_anew(tmp_path: Path) -> None:
    url = fresh_sqlite(tmp_path)
    store = create_store(url, STUBBORN)
    await store.open()
    (tmp_path / "limiquantix.db").rename(tmp_path / "elsewhere.db")
    with pytest.raises(Unavailable, match="cannot be opened"):  # the writer has not connected yet
        await store.run(lambda tx: tx.claim("none", Capacity(1, 1)))
    await store.close()
    assert not (tmp_path / "limiquantix.db").exists()


async def test_sqlite_connections_have_the_settings_that_durability_and_isolation_need(tmp_path: Path) -> None:
    fresh_sqlite(tmp_path)
    pools = SqliteDatabase(tmp_path / "limiquantix.db").pools(StoreLimits())

    async def settings(pool: SessionPool, *names: str) -> list[object]:
        async def use(session: Session) -> list[object]:
            return [
                await session.call(lambda connection: connection.exec_driver_sql(f"PRAGMA {name}").scalar())  # noqa: B023
                for name in names
            ]

        return await pool.transact(use, Progress(), writes=False)

    full, on = 2, 1
    assert await settings(pools.writer, "journal_mode", "synchronous", "foreign_keys") == ["wal", full, on]
    assert await settings(pools.reader, "query_only", "busy_timeout") == [on, 2000]

    async def compete(session: Session) -> None:
        await session.call(lambda connection: connection.exec_driver_sql("SELECT 1"))
        stranger = sqlite3.connect(tmp_path / "limiquantix.db", isolation_level=None, timeout=0)
        with pytest.raises(sqlite3.OperationalError) as refusal:
            stranger.execute("BEGIN IMMEDIATE")  # a writer has the lock from its first read on
        stranger.close()
        assert refusal.value.sqlite_errorcode == sqlite3.SQLITE_BUSY

    await pools.writer.transact(compete, Progress(), writes=False)
    for pool in (pools.writer, pools.reader):
        await pool.dispose()


@pytest.mark.parametrize(("count", "writers", "readers"), [(2, 1, 1), (3, 2, 1), (12, 8, 4), (100, 67, 33)])
def test_limits_for_a_number_of_connections_keep_to_it_and_have_some_of_both(
    count: int, writers: int, readers: int
) -> None:
    limits = StoreLimits.for_connections(count)
    assert (limits.writer_count, limits.reader_count) == (writers, readers)
    with pytest.raises(ValueError, match="too small"):
        StoreLimits.for_connections(1)
