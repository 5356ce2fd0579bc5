"""What only PostgreSQL has: the settings of its connections, and migrations of several processes at the same moment."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from alembic import command
from sqlalchemy import make_url

from controlplane.state.engine import Progress, Session, SessionPool, StoreLimits
from controlplane.state.factory import create_store, migrate, migration_engine
from controlplane.state.postgresql import database_at
from controlplane.state.revision import REVISION_TABLE
from controlplane.state.schema_base import REVISION
from limiquantix.errors import Unavailable
from tests.support import node_daemon_process
from tests.support.databases import alembic_config
from tests.support.postgresql import require_programs, shared_server, wait_until
from tests.support.stores import vm_in

LIMITS = StoreLimits(total_s=7, lock_wait_s=3, writer_count=2, reader_count=2)


@pytest.fixture
def url() -> str:
    """A migrated database."""
    require_programs()
    return shared_server().migrated()


@pytest.fixture
def empty_url() -> str:
    """A database without tables."""
    require_programs()
    return shared_server().empty()


async def answers(pool: SessionPool, *queries: str) -> list[object]:
    """Ask the server within one transaction of the pool."""

    async def use(session: Session) -> list[object]:
        return [
            await session.call(lambda connection, query=query: connection.exec_driver_sql(query).scalar())  # type: ignore[misc]
            for query in queries
        ]

    return await pool.transact(use, Progress(), writes=False)


async def test_transactions_have_the_isolation_and_limits_of_their_pool(url: str) -> None:
    pools = database_at(make_url(url)).pools(LIMITS)
    names = (
        "transaction_isolation",
        "transaction_read_only",
        "statement_timeout",
        "lock_timeout",
        "idle_in_transaction_session_timeout",
        "application_name",
    )
    shown = [f"SHOW {name}" for name in names]
    bounds = ["7s", "3s", "7s", "limiquantix-controlplane"]
    assert await answers(pools.writer, *shown) == ["read committed", "off", *bounds]
    assert await answers(pools.reader, *shown) == ["repeatable read", "on", *bounds]
    for pool in (pools.writer, pools.reader):
        await pool.dispose()


@pytest.mark.parametrize(("parameter", "are_prepared"), [("", True), ("&prepared_statements=no", False)])
async def test_statements_are_prepared_unless_the_address_says_no(url: str, parameter: str, are_prepared: bool) -> None:
    pools = database_at(make_url(url + parameter)).pools(StoreLimits(reader_count=1))
    for _ in range(10):
        await answers(pools.reader, "SELECT 7")
    (count,) = await answers(pools.reader, "SELECT count(*) FROM pg_prepared_statements")
    assert (count != 0) is are_prepared
    for pool in (pools.writer, pools.reader):
        await pool.dispose()


async def test_store_opens_no_more_connections_than_its_limits_and_closes_them(url: str) -> None:
    server, name = shared_server().server, str(make_url(url).database)
    store = create_store(url, replace(LIMITS, total_s=60, connection_wait_s=60))  # so that nobody waits in vain
    await store.open()
    work = [vm_in(store, "any") for _ in range(50)] + [store.run(lambda tx: tx.get_vm("any")) for _ in range(50)]
    assert await asyncio.gather(*work) == [None] * 100
    assert 1 <= len(server.backends(name)) <= LIMITS.writer_count + LIMITS.reader_count
    await store.close()
    wait_until(lambda: not server.backends(name), "a closed store has no connection left")


@contextmanager
def migrating_process(url: str) -> Iterator[subprocess.Popen[str]]:
    """Run another control plane's migration, and end it whatever happens."""
    program = "import sys; from controlplane.state.factory import migrate; print(migrate(sys.argv[1]))"
    process = subprocess.Popen(
        [sys.executable, "-c", program, url], stdout=subprocess.PIPE, text=True, env=node_daemon_process.environment()
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def waits_for_a_lock(url: str) -> bool:
    """Whether a connection of ours to the database waits for another transaction."""
    with shared_server().server.connect("postgres") as connection:
        found = connection.execute(
            "SELECT 1 FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'", [make_url(url).database]
        )
        return found.fetchone() is not None


@pytest.mark.parametrize("revision", [None, "0001"], ids=["empty", "older"])
def test_migration_waits_for_one_under_way_and_finds_nothing_to_do(empty_url: str, revision: str | None) -> None:
    engine = migration_engine(empty_url)
    if revision is not None:
        with engine.begin() as connection:
            command.upgrade(alembic_config(connection), revision)
    with engine.begin() as connection:
        if revision is not None:
            connection.exec_driver_sql(f"UPDATE {REVISION_TABLE} SET version_num = version_num")  # noqa: S608
        command.upgrade(alembic_config(connection), "head")
        with migrating_process(empty_url) as second:
            wait_until(lambda: waits_for_a_lock(empty_url), "the second migration waits")
            connection.commit()
            answer, _ = second.communicate(timeout=60)
    assert (answer.strip(), second.returncode) == (REVISION, 0)
    engine.dispose()


def test_migrations_of_several_processes_at_once_all_succeed(empty_url: str) -> None:
    with migrating_process(empty_url) as first, migrating_process(empty_url) as second:
        answers_of_both = [process.communicate(timeout=60)[0].strip() for process in (first, second)]
        assert answers_of_both == [REVISION] * 2
    assert migrate(empty_url) == REVISION


async def test_migration_by_a_role_that_may_not_is_told_by_the_store_as_by_the_command(empty_url: str) -> None:
    with shared_server().server.connect("postgres") as admin:
        admin.execute("DROP ROLE IF EXISTS visitor")
        admin.execute("CREATE ROLE visitor LOGIN")
    as_visitor = make_url(empty_url).set(username="visitor").render_as_string(hide_password=False)
    migrate(empty_url)
    store = create_store(as_visitor)
    with pytest.raises(Unavailable, match="may not do this"):
        await store.open()
    await store.close()
