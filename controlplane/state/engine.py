"""What a store needs of a database, whichever it is: sessions and limits.

Statements are written once, as plain functions of a SQLAlchemy `Connection`; a `Session` carries them to the database.
SQLite's runs each in a thread of its own, whole functions at a time, which is three times as fast as going through an
asynchronous driver that changes threads for every cursor, statement and fetch. A driver that speaks a network protocol
can carry the same functions with `AsyncConnection.run_sync`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from sqlalchemy import Connection, Engine

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """How long and how often a store tries before it says that the database does not answer.

    `total_s` covers a whole call with its repetitions and stays below the usual deadline of an RPC, so that a caller
    hears the reason and not only that time ran out.
    """

    total_s: float = 10.0
    connection_wait_s: float = 5.0
    lock_wait_s: float = 2.0
    ping_s: float = 1.5
    release_s: float = 3.0
    attempt_count: int = 5
    first_pause_s: float = 0.01
    reader_count: int = 4


class Session(Protocol):
    """One transaction on one connection; it begins with the first call. Used by one task at a time."""

    async def call(self, function: Callable[[Connection], ResultT]) -> ResultT:
        """Run a function that blocks on the database. Cancelled, it may still run on; `close` comes after it."""
        ...

    async def commit(self) -> None:
        """Make the changes durable. Cancelled, it happens wholly or not at all."""
        ...

    async def close(self) -> None:
        """Roll back what is not committed and give the connection back, now or as soon as its last call has ended.

        Never raises but for cancellation, which does not stop it.
        """
        ...

    def release(self) -> None:
        """Give the connection back without waiting for it: for a transaction that is committed, or only read."""
        ...


class SessionPool(Protocol):
    """A bounded number of connections to one database."""

    async def acquire(self) -> Session:
        """Wait for a free connection, first come, first served.

        Raises:
            Unavailable: none became free within `StoreLimits.connection_wait_s`.
        """
        ...

    async def dispose(self) -> None:
        """Close the connections once they are free, waiting `StoreLimits.release_s` at most; safe to call twice."""
        ...


@dataclass(frozen=True, slots=True)
class SessionPools:
    """Where transactions happen: `writer` begins them ready to write, `reader` as a snapshot that cannot."""

    writer: SessionPool
    reader: SessionPool


class Database(Protocol):
    """One kind of database at one address: everything about it that is not portable SQL."""

    def exists(self) -> bool:
        """Tell whether there is anything to connect to; blocks, but not for long."""
        ...

    def pools(self, limits: StoreLimits) -> SessionPools:
        """Make the pools; connects to nothing yet."""
        ...

    def migration_engine(self) -> Engine:
        """Make a blocking engine for schema changes, creating the database if there is none."""
        ...

    def check_migrated(self, connection: Connection) -> None:
        """Check what the database did not watch during the migration, before it is committed."""
        ...
