"""SQLite: one file, any number of readers, one writer at a time, also among processes.

Chosen settings (https://www.sqlite.org/pragma.html, https://www.sqlite.org/isolation.html):
- WAL with `synchronous=FULL`: readers see a snapshot and never wait; a committed VM survives a power cut.
- `isolation_level=None` and our own BEGIN: the driver would begin late and in deferred mode, where two transactions
  that read first and write then lose one of the updates or fail without waiting.
- Writers begin with IMMEDIATE, from a pool of one connection: within a process they queue fairly for it and share
  commits (see `group_commit`), between processes SQLite's busy handler makes them wait. Readers have connections of
  their own that refuse to write.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, NullPool, QueuePool, create_engine, event

from controlplane.state.engine import SessionPools, StoreLimits
from controlplane.state.group_commit import GroupCommitPool, SharedSnapshotPool
from controlplane.state.seals import NO_SEALS, Seals, sealing_with

OLDEST_VERSION = (3, 35, 0)
"""First with UPDATE ... RETURNING."""

_MIGRATION_LOCK_WAIT_S = 60.0
"""A second control plane that is started at the same moment waits for the first one's migration."""

_WAL_SIZE_LIMIT_BYTES = 64 * 2**20
"""A write-ahead log that one long reader made grow is cut back to this."""

_BUSY_TIMEOUT = "PRAGMA busy_timeout = {milliseconds}"


class WalUnavailableError(RuntimeError):
    """The file system cannot share memory between processes, which WAL needs."""


@dataclass(frozen=True, slots=True)
class SqliteDatabase:
    """A database file; its directory and the file are made by the first migration, for the owner only."""

    path: Path
    seals: Seals = field(default=NO_SEALS, repr=False)
    """What rows hold of secrets is sealed with these."""

    def exists(self) -> bool:
        """Tell whether the file is there."""
        return self.path.exists()

    def pools(self, limits: StoreLimits) -> SessionPools:
        """Make a writer of one connection and the readers."""
        return SessionPools(
            writer=GroupCommitPool(
                self._engine(1, "BEGIN IMMEDIATE", _writer_pragmas(limits.lock_wait_s)), limits, "sqlite-writer"
            ),
            reader=SharedSnapshotPool(
                self._engine(limits.reader_count, "BEGIN DEFERRED", _reader_pragmas(limits.lock_wait_s)),
                limits.reader_count,
                limits,
                "sqlite-reader",
            ),
        )

    def migration_engine(self) -> Engine:
        """Make a blocking engine that creates the file first.

        Foreign keys are not watched: changing a table in SQLite means copying and dropping it, and dropping it would
        delete every label by cascade. `check_migrated` makes up for it.
        """
        self._create_file()
        engine = create_engine(
            self._url, poolclass=NullPool, hide_parameters=True, connect_args={"isolation_level": None}
        )
        pragmas = _writer_pragmas(_MIGRATION_LOCK_WAIT_S, foreign_keys=False)
        _prepare(engine, "BEGIN IMMEDIATE", pragmas)
        return engine

    def check_migrated(self, connection: Connection) -> None:
        """Check the foreign keys of every row.

        Raises:
            sqlite3.IntegrityError: names the first table with a row that points to nothing.
        """
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
        if broken is not None:
            raise sqlite3.IntegrityError(f"after the migration a row of {broken[0]} points to nothing in {broken[2]}")

    def _create_file(self) -> None:
        missing = [parent for parent in self.path.parents if not parent.exists()]
        for directory in reversed(missing):
            directory.mkdir(mode=0o700, exist_ok=True)
        if self.path.is_file():
            return  # closing it would drop every lock on it that SQLite has in this process (fcntl(2))
        # SQLite gives the -wal and -shm files beside it the same mode.
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))

    @property
    def _url(self) -> URL:
        # mode=rw: a missing file is an error, never a new empty database.
        return URL.create(
            "sqlite+pysqlite", database=f"file:{quote(str(self.path))}", query={"mode": "rw", "uri": "true"}
        )

    def _engine(self, connection_count: int, begin: str, pragmas: list[str]) -> Engine:
        engine = create_engine(
            self._url,
            poolclass=QueuePool,
            pool_size=connection_count,
            pool_use_lifo=True,  # the connection used a moment ago has the pages in its cache
            max_overflow=0,
            hide_parameters=True,  # specs hold first-boot secrets, and errors are logged
            # A connection changes threads only between transactions.
            connect_args={"isolation_level": None, "check_same_thread": False},
        )
        _prepare(engine, begin, pragmas)
        return sealing_with(engine, self.seals)


def require_usable_sqlite() -> None:
    """Check the SQLite library that Python was built with.

    Raises:
        RuntimeError: it is too old.
    """
    if sqlite3.sqlite_version_info < OLDEST_VERSION:
        oldest = ".".join(map(str, OLDEST_VERSION))
        raise RuntimeError(f"SQLite {sqlite3.sqlite_version} is too old; install {oldest} or newer")


def _writer_pragmas(lock_wait_s: float, *, foreign_keys: bool = True) -> list[str]:
    return [
        _BUSY_TIMEOUT.format(milliseconds=round(lock_wait_s * 1000)),
        "PRAGMA journal_mode = WAL",
        "PRAGMA synchronous = FULL",
        f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}",
        f"PRAGMA journal_size_limit = {_WAL_SIZE_LIMIT_BYTES}",
    ]


def _reader_pragmas(lock_wait_s: float) -> list[str]:
    return [_BUSY_TIMEOUT.format(milliseconds=round(lock_wait_s * 1000)), "PRAGMA query_only = ON"]


def _prepare(engine: Engine, begin: str, pragmas: list[str]) -> None:
    """Set up every new connection of the engine and begin its transactions in our way."""
    event.listen(engine, "connect", _setting(pragmas))

    def begin_transaction(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    event.listen(engine, "begin", begin_transaction)


def _setting(pragmas: list[str]) -> Callable[[Any, object], None]:
    """Make the function that sets up one connection of the driver (DBAPI, which has no types)."""

    def set_pragmas(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        try:
            for pragma in pragmas:
                cursor.execute(pragma)
                answer = cursor.fetchone()
                if "journal_mode" in pragma and answer != ("wal",):
                    raise WalUnavailableError(
                        f"SQLite cannot use WAL here but {answer}; put the database on a local file system"
                    )
        finally:
            cursor.close()

    return set_pragmas
