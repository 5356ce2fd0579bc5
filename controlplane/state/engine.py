"""What a store needs of a database, whichever it is: transactions, limits, migrations.

Statements are written once, as plain functions of a SQLAlchemy `Connection` that block. A transaction is carried out in
one go in a thread of its pool, which is several times as fast as an asynchronous driver: that changes threads, or tasks
at least, for every cursor, statement and fetch.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from sqlalchemy import Connection, Engine

ResultT = TypeVar("ResultT")

SMALLEST_POOL = 2
"""One connection that writes, one that reads."""

SWITCH_INTERVAL_S = 0.001
"""For `sys.setswitchinterval` of a process with a store: how long a thread keeps Python's lock while others want it.

A transaction's thread wants it back after each statement. With Python's own 5 ms, one of ten statements could take
50 ms beside a busy event loop; much shorter intervals cost more in switches than they save.
"""


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """How long and how often a store tries before it says that the database does not answer.

    `total_s` covers a whole call with its repetitions and stays below the usual deadline of an RPC, so that a caller
    hears the reason and not only that time ran out.
    """

    total_s: float = 10.0
    connection_wait_s: float = 5.0
    lock_wait_s: float = 2.0
    connect_s: float = 2.0
    """For reaching one database server; drivers round it up to whole seconds, and PostgreSQL's takes 2 at least."""
    ping_s: float = 1.5
    interrupt_after_s: float = 0.25
    """Patience with a statement whose caller has gone, before its connection is given up."""
    release_s: float = 3.0
    attempt_count: int = 5
    first_pause_s: float = 0.01
    writer_count: int = 8
    """Connections for transactions that write. SQLite has one, whatever is said here."""
    reader_count: int = 4
    waiting_count: int = 1000
    """Calls that may wait for a connection at once."""

    @classmethod
    def for_connections(cls, count: int) -> StoreLimits:
        """Make the usual limits with that many connections at most, a third of them for reads alone.

        Raises:
            ValueError: fewer than one of each kind.
        """
        if count < SMALLEST_POOL:
            raise ValueError(f"a pool of {count} connections is too small; it takes {SMALLEST_POOL} at least")
        reader_count = max(1, count // 3)
        return cls(writer_count=count - reader_count, reader_count=reader_count)

    def milliseconds(self, seconds: float) -> int:
        """Round up, since 0 would mean no limit to a database."""
        return max(1, math.ceil(seconds * 1000))


@dataclass(slots=True)
class Progress:
    """How far a transaction came, for those outside of the thread that runs it."""

    commit_sent: bool = False
    """From here on, a database that does not answer may have committed or not."""


class Session(Protocol):
    """One open transaction, inside the thread that runs it."""

    async def call(self, function: Callable[[Connection], ResultT]) -> ResultT:
        """Run a function that blocks on the database. It is done when this returns: nothing is ever awaited."""
        ...


class SessionPool(Protocol):
    """A bounded number of connections to one database."""

    async def transact(
        self, use: Callable[[Session], Awaitable[ResultT]], progress: Progress, *, writes: bool
    ) -> ResultT:
        """Begin a transaction on a free connection, use it and end it, all in one thread without a stop.

        It is committed when `use` returns and rolled back when it raises. First come, first served. Cancelled, it
        happens wholly or not at all, and its connection comes back once what runs on it has ended.

        Args:
            use: may be cut short before any of its calls once the caller is cancelled.
            progress: is reset at the start and kept up to date.
            writes: false if there is nothing whose commit could be in doubt.

        Raises:
            Unavailable: no connection became free within `StoreLimits.connection_wait_s`, or too many calls wait.
            RuntimeError: `use` waited for something else than its session.
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
        """Make a blocking engine for schema changes; a database that is one file is created first.

        Of two migrations at once the second waits, at the latest where it changes something.
        """
        ...

    def check_migrated(self, connection: Connection) -> None:
        """Check what the database did not watch during the migration, before it is committed."""
        ...
