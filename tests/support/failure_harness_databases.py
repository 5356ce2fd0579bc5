"""Empty databases for run after run: each is emptied and used again.

A new one for each would cost more than the run does, since its store would have to compose every statement anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, delete, insert, select

from controlplane.state.factory import migration_engine
from controlplane.state.interface import Store
from controlplane.state.schema import metadata
from tests.support.databases import MakeDatabase
from tests.support.stores import open_store


class ReusedDatabase:
    """A store, and a connection of the test's own to empty what is behind it."""

    def __init__(self, store: Store, engine: Engine, *, is_serial: bool) -> None:
        self.store = store
        self.is_serial = is_serial
        """Whether writers come one after the other."""
        self._engine = engine
        with engine.begin() as connection:
            self._rows: dict[str, list[dict[str, Any]]] = {
                table.name: [dict(row) for row in connection.execute(select(table)).mappings()]
                for table in metadata.sorted_tables
            }

    def empty(self) -> None:
        """Put it back to what it was after its migration. Blocks."""
        with self._engine.begin() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(delete(table))
            for table in metadata.sorted_tables:
                if self._rows[table.name]:
                    connection.execute(insert(table), self._rows[table.name])


class DatabasePool:
    """Some databases of one kind, each lent to one run at a time; use `database_pool` to get it."""

    def __init__(self, databases: list[ReusedDatabase]) -> None:
        self._free: asyncio.Queue[ReusedDatabase] = asyncio.Queue()
        for database in databases:
            self._free.put_nowait(database)

    @asynccontextmanager
    async def one(self) -> AsyncIterator[ReusedDatabase]:
        """Wait for an empty database."""
        database = await self._free.get()
        try:
            yield database
        finally:
            await asyncio.to_thread(database.empty)
            self._free.put_nowait(database)


@asynccontextmanager
async def database_pool(make: MakeDatabase, directory: Path, count: int) -> AsyncIterator[DatabasePool]:
    """Make databases in directories of their own, and close them whatever happens."""
    async with AsyncExitStack() as stack:
        databases = []
        for number in range(count):
            own = directory / f"database-{number}"
            own.mkdir()
            url = make(own)
            engine = migration_engine(url)
            stack.callback(engine.dispose)
            store = await stack.enter_async_context(open_store(url))
            databases.append(ReusedDatabase(store, engine, is_serial=url.startswith("sqlite")))
        yield DatabasePool(databases)
