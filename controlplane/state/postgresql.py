"""PostgreSQL, and what speaks its protocol: any number of control planes on any number of machines.

Chosen settings (https://www.postgresql.org/docs/current/transaction-iso.html, .../runtime-config-client.html):
- Writers are READ COMMITTED. Nothing rests on two reads agreeing: capacity is a conditional update, other rows carry a
  version, and both are checked again after waiting for another transaction. Readers are REPEATABLE READ: one snapshot.
- The time limits are set with the begin of each transaction, in the same message, not for the connection: a pooler such
  as PgBouncer hands connections around between transactions, and refuses start-up options.
- psycopg's blocking driver in threads: see `threads`. A statement used a few times is prepared on its connection, which
  makes a transaction a third faster.
- A server that has stopped answering, without closing the connection, is found out by TCP keepalives; and a call whose
  time is over shuts down its socket, so that no thread waits for such a server longer than its caller.
"""

from __future__ import annotations

import math
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import URL, Connection, Engine, NullPool, QueuePool, create_engine, event
from sqlalchemy.exc import ArgumentError

from controlplane.state.engine import SessionPools, StoreLimits
from controlplane.state.seals import NO_SEALS, Seals, sealing_with
from controlplane.state.threads import INTERRUPT, ThreadSessionPool

APPLICATION_NAME = "limiquantix-controlplane"
"""What `pg_stat_activity` calls our connections."""

DRIVER = "postgresql+psycopg"

_MIGRATION_LOCK_WAIT_S = 60.0
"""As with SQLite: time for another migration to end, or for what a running control plane has locked."""

_KEEPALIVES = {"keepalives_idle": "15", "keepalives_interval": "5", "keepalives_count": "3"}
"""A machine that has vanished is noticed after half a minute of silence, instead of two hours."""


class DriverMissingError(RuntimeError):
    """psycopg is not installed."""


@dataclass(frozen=True, slots=True)
class PostgresqlDatabase:
    """A database that exists; its tables are made by the first migration.

    Args:
        url: address; its parameters are libpq's, several hosts with `target_session_attrs` included.
        prepares_statements: false behind a pooler that loses prepared statements.
        seals: what rows hold of secrets is sealed with these.
    """

    url: URL = field(repr=False)
    prepares_statements: bool = True
    seals: Seals = field(default=NO_SEALS, repr=False)

    def exists(self) -> bool:
        """True: whether it does is told by the first connection, which would have to be made anyway."""
        return True

    def pools(self, limits: StoreLimits) -> SessionPools:
        """Make a pool for each way to begin a transaction."""
        return SessionPools(
            writer=self._pool("writer", limits.writer_count, limits, "READ COMMITTED"),
            reader=self._pool("reader", limits.reader_count, limits, "REPEATABLE READ READ ONLY"),
        )

    def migration_engine(self) -> Engine:
        """Make a blocking engine for schema changes, with no limit but that for locks.

        Changes of tables are part of the transaction like all others. Two migrations at once meet when they create
        the same table, or change the revision in the table of revisions; the second waits there, fails or finds nothing
        to do, and looks again.
        """
        engine = create_engine(self.url, poolclass=NullPool, hide_parameters=True, connect_args=self._connect_args())
        _prepare(
            engine,
            _begin(
                "READ COMMITTED",
                statement_timeout=0,
                lock_timeout=round(_MIGRATION_LOCK_WAIT_S * 1000),
                idle_in_transaction_session_timeout=0,
            ),
        )
        return engine

    def check_migrated(self, connection: Connection) -> None:
        """Nothing to do: PostgreSQL watches every constraint, also while tables change."""

    def _pool(self, name: str, size: int, limits: StoreLimits, mode: str) -> ThreadSessionPool:
        engine = create_engine(
            self.url,
            poolclass=QueuePool,
            pool_size=size,
            max_overflow=0,
            pool_use_lifo=True,  # the connection used a moment ago has its statements prepared
            hide_parameters=True,  # specs hold first-boot secrets, and errors are logged
            use_native_hstore=False,  # saves a query about a type that we do not use
            connect_args=self._connect_args(limits),
        )
        _prepare(
            engine,
            _begin(
                mode,
                statement_timeout=limits.milliseconds(limits.total_s),
                lock_timeout=limits.milliseconds(limits.lock_wait_s),
                # A control plane that stopped in the middle of a transaction must not hold its locks.
                idle_in_transaction_session_timeout=limits.milliseconds(limits.total_s),
            ),
        )
        event.listen(engine, "connect", _make_interruptible)
        event.listen(engine, "close", _forget_socket)
        return ThreadSessionPool(sealing_with(engine, self.seals), size, limits, f"postgresql-{name}")

    def _connect_args(self, limits: StoreLimits | None = None) -> dict[str, Any]:
        """Settings of the driver; parameters of the URL win, where both are libpq's."""
        limits = limits or StoreLimits()
        libpq = {
            "application_name": APPLICATION_NAME,
            "connect_timeout": str(math.ceil(limits.connect_s)),
            "tcp_user_timeout": str(limits.milliseconds(limits.total_s)),
            **_KEEPALIVES,
        }
        return {
            # The driver would begin transactions on its own, in a message that has no room for our settings.
            "autocommit": True,
            "prepare_threshold": 5 if self.prepares_statements else None,
            **{name: value for name, value in libpq.items() if name not in self.url.query},
        }


def _begin(mode: str, **settings: int) -> str:
    """Text that begins a transaction with settings of its own; times are in milliseconds, 0 is without limit."""
    local = (f"SET LOCAL {name} = {value}" for name, value in settings.items())
    return "; ".join((f"BEGIN ISOLATION LEVEL {mode}", *local))


def _prepare(engine: Engine, begin: str) -> None:
    """Begin the engine's transactions in our way."""

    def begin_transaction(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    event.listen(engine, "begin", begin_transaction)


class _Line:
    """The socket of one connection, which another thread may shut down.

    A descriptor of our own: the driver's may be closed, and its number given to another file, at any moment.
    """

    def __init__(self, descriptor: int) -> None:
        self._lock = threading.Lock()
        self._socket = socket.socket(fileno=os.dup(descriptor))

    def cut(self) -> None:
        """Make whoever waits for the server's answer find the connection closed."""
        with self._lock:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # closed already, by us or by the server

    def forget(self) -> None:
        """Let go of the socket; to cut has no effect from now on."""
        with self._lock:
            self._socket.close()


_LINE = "limiquantix.line"


def _make_interruptible(driver_connection: Any, record: Any) -> None:
    line = _Line(driver_connection.fileno())
    record.info[_LINE] = line
    cut: Callable[[], None] = line.cut
    record.info[INTERRUPT] = cut


def _forget_socket(_driver_connection: Any, record: Any) -> None:
    line: _Line | None = record.info.pop(_LINE, None)
    if line is not None:
        line.forget()


def database_at(url: URL, seals: Seals = NO_SEALS) -> PostgresqlDatabase:
    """Make sense of an address; connects to nothing.

    Its own parameter `prepared_statements` (yes or no, by default yes) is not libpq's and taken out.

    Raises:
        ValueError: the address has no database, or a parameter is wrong; the message does not repeat the address.
        DriverMissingError: psycopg is not installed.
    """
    if not url.database:
        raise ValueError("a PostgreSQL address ends with the name of a database")
    wanted = url.query.get("prepared_statements", "yes")
    if wanted not in {"yes", "no"}:
        raise ValueError("prepared_statements in a PostgreSQL address is yes or no")
    address = url.set(drivername=DRIVER).difference_update_query(["prepared_statements"])
    _require_parameters(address)
    return PostgresqlDatabase(address, prepares_statements=wanted == "yes", seals=seals)


def _require_parameters(url: URL) -> None:
    """Let libpq judge the parameters, which it would otherwise do at the first connection."""
    try:
        import psycopg  # noqa: PLC0415 - an installation on SQLite does without
        from psycopg.conninfo import make_conninfo  # noqa: PLC0415
    except ImportError as error:
        raise DriverMissingError("PostgreSQL takes psycopg; install limiquantix with its extra postgresql") from error
    try:
        _, parameters = url.get_dialect()().create_connect_args(url)
        make_conninfo("", **parameters)
    except (psycopg.Error, ArgumentError, ValueError):
        # Their messages may repeat a value.
        raise ValueError("a parameter of the PostgreSQL address is not one that libpq knows") from None
