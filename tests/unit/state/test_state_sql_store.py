"""The store repeats, gives up and cleans up as it says; a scripted database stands for the faults of a real one."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import OperationalError

from controlplane.domain.node import Capacity
from controlplane.state.engine import SessionPools, StoreLimits
from controlplane.state.factory import create_store
from controlplane.state.interface import Transaction
from controlplane.state.schema import REVISION
from controlplane.state.sql import SqlStore
from controlplane.state.sqlite import SqliteDatabase
from limiquantix.errors import Reason, Unavailable
from tests.support.builders import make_node, make_vm
from tests.support.databases import fresh_sqlite
from tests.support.stores import add, place, vm_in

ResultT = TypeVar("ResultT")

BUSY = sqlite3.SQLITE_BUSY
IMPATIENT = StoreLimits(total_s=0.5, connection_wait_s=0.1, lock_wait_s=0.05, ping_s=0.05, attempt_count=3)


class ScriptedDatabase:
    """A database whose sessions fail as told; it is also its own two pools.

    Args:
        commit_faults: SQLite codes with which the first commits fail.
        call_faults: the same for calls.
        hangs: a call never ends.
    """

    def __init__(self, commit_faults: list[int], call_faults: list[int], *, hangs: bool = False) -> None:
        self.commit_faults = commit_faults
        self.call_faults = call_faults
        self.hangs = hangs
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

    async def acquire(self) -> ScriptedSession:
        self.begun_count += 1
        return ScriptedSession(self)

    async def dispose(self) -> None:
        """Nothing is held."""


class ScriptedSession:
    """One transaction of a `ScriptedDatabase`; every call answers with the schema's revision."""

    def __init__(self, database: ScriptedDatabase) -> None:
        self._database = database

    async def call(self, function: Callable[[Connection], ResultT]) -> ResultT:
        if self._database.hangs:
            await asyncio.Event().wait()
        _fail_next(self._database.call_faults)
        return REVISION  # type: ignore[return-value]

    async def commit(self) -> None:
        _fail_next(self._database.commit_faults)

    async def close(self) -> None:
        self.release()

    def release(self) -> None:
        self._database.closed_count += 1


def _fail_next(codes: list[int]) -> None:
    if codes:
        fault = sqlite3.OperationalError("scripted")
        fault.sqlite_errorcode = codes.pop(0)
        raise OperationalError("SQL", {}, fault)


async def scripted(commit_faults: list[int], call_faults: list[int]) -> tuple[SqlStore, ScriptedDatabase]:
    """Open a store on a database that begins to fail afterwards."""
    database = ScriptedDatabase([], [])
    store = SqlStore(database, IMPATIENT)
    await store.open()
    database.begun_count = database.closed_count = 0
    database.commit_faults, database.call_faults = commit_faults, call_faults
    return store, database


@pytest.mark.parametrize(("commit_faults", "call_faults"), [([BUSY, BUSY], []), ([], [BUSY, BUSY]), ([BUSY], [BUSY])])
async def test_run_that_meets_conflicts_repeats_the_whole_work_in_new_transactions(
    commit_faults: list[int], call_faults: list[int]
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
    assert (database.begun_count, database.closed_count) == (IMPATIENT.attempt_count, IMPATIENT.attempt_count)
    assert refusal.value.reason == Reason.STATE_UNAVAILABLE
    assert isinstance(refusal.value.__cause__, OperationalError)


async def test_run_that_meets_another_fault_does_not_repeat() -> None:
    store, database = await scripted([sqlite3.SQLITE_FULL], [])
    with pytest.raises(Unavailable, match="full"):
        await store.run(lambda tx: tx.get_vm("any"))
    assert (database.begun_count, database.closed_count) == (1, 1)


async def test_database_that_never_answers_is_unavailable_and_its_session_closed() -> None:
    store, database = await scripted([], [])
    database.hangs = True
    with pytest.raises(Unavailable, match="no answer within"):
        await store.run(lambda tx: tx.get_vm("any"))
    with pytest.raises(Unavailable, match="no answer within"):
        await store.ping()
    await store.close()
    assert database.begun_count == 2


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
    store = create_store(fresh_sqlite(tmp_path), IMPATIENT)
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
    store = create_store(fresh_sqlite(tmp_path), StoreLimits(connection_wait_s=0.05))
    await store.open()
    entered, leave = asyncio.Event(), asyncio.Event()

    async def occupy(tx: Transaction) -> None:
        entered.set()
        await leave.wait()

    occupant = asyncio.create_task(store.run(occupy))
    await entered.wait()
    with pytest.raises(Unavailable, match="in use"):
        await store.run(lambda tx: tx.all_nodes())
    leave.set()
    await occupant
    await store.run(lambda tx: tx.all_nodes())
    await store.close()


async def test_work_that_never_ends_is_ended_and_rolled_back(tmp_path: Path) -> None:
    store = create_store(fresh_sqlite(tmp_path), StoreLimits(total_s=0.2))
    await store.open()
    vm = make_vm()

    async def work(tx: Transaction) -> None:
        await tx.insert_vm(vm)
        await asyncio.Event().wait()

    with pytest.raises(Unavailable, match=r"no answer within 0\.2 s"):
        await store.run(work)
    assert await vm_in(store, vm.id) is None
    await add(store, vm)
    await store.close()


async def test_database_file_that_vanished_is_unavailable_and_not_made_anew(tmp_path: Path) -> None:
    url = fresh_sqlite(tmp_path)
    store = create_store(url, IMPATIENT)
    await store.open()
    (tmp_path / "limiquantix.db").rename(tmp_path / "elsewhere.db")
    with pytest.raises(Unavailable, match="cannot be opened"):  # the writer has not connected yet
        await store.run(lambda tx: tx.claim("none", Capacity(1, 1)))
    await store.close()
    assert not (tmp_path / "limiquantix.db").exists()


async def test_sqlite_connections_have_the_settings_that_durability_and_isolation_need(tmp_path: Path) -> None:
    fresh_sqlite(tmp_path)
    pools = SqliteDatabase(tmp_path / "limiquantix.db").pools(StoreLimits())

    def setting(name: str) -> Callable[[Connection], object]:
        return lambda connection: connection.exec_driver_sql(f"PRAGMA {name}").scalar()

    writer, reader = await pools.writer.acquire(), await pools.reader.acquire()
    full, on = 2, 1
    assert [await writer.call(setting(name)) for name in ("journal_mode", "synchronous", "foreign_keys")] == [
        "wal",
        full,
        on,
    ]
    stranger = sqlite3.connect(tmp_path / "limiquantix.db", isolation_level=None, timeout=0)
    with pytest.raises(sqlite3.OperationalError) as refusal:
        stranger.execute("BEGIN IMMEDIATE")  # a writer has the lock from its first read on
    stranger.close()
    assert refusal.value.sqlite_errorcode == BUSY
    assert await reader.call(setting("query_only")) == on
    assert await reader.call(setting("busy_timeout")) == 2000
    for session in (writer, reader):
        await session.close()
    for pool in (pools.writer, pools.reader):
        await pool.dispose()
