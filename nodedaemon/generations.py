"""The newest generation of a command that this host took for each VM, on the disk before the command acts.

A control plane that was cut off, or whose message was long on its way, may send a command that was overtaken. Its
generation tells: an older one than the newest taken is refused, also after a restart of this daemon, and also after the
VM was deleted, which a late create would bring back.

All generations are in memory; a small SQLite file makes them last. Commands that arrive while it is written share the
next write, so what one flush of the disk takes is shared by all of them.

What is kept of VMs that are gone ages by the time that the daemon ran, never by the host's clock: a jump of that would
make yesterday's commands look a month old.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from limiquantix.errors import Aborted, Reason, Unavailable
from nodedaemon.change_count import DataDirError

ResultT = TypeVar("ResultT")

FILE_NAME = "generations.db"
KEEP_S = 30 * 86_400.0
"""How long the generation of a VM that is not here is kept after its last command. No command is on its way for days;
the rest is for operations that were left lying."""

_TOUCH_S = 86_400.0
"""How old a noted last use may be before a repeated command notes it again; KEEP_S does not need it to the second."""

_SCHEMA_VERSION = 1
_LOCK_TIMEOUT_S = 2.0
_SCHEMA = """
CREATE TABLE generations (
    vm_id TEXT PRIMARY KEY,
    generation INTEGER NOT NULL CHECK (typeof(generation) = 'integer' AND generation > 0),
    used_at_s REAL NOT NULL CHECK (typeof(used_at_s) = 'real')
) WITHOUT ROWID;
CREATE TABLE running_time (total_s REAL NOT NULL CHECK (typeof(total_s) = 'real'));
INSERT INTO running_time VALUES (0.0);
"""


@dataclass(frozen=True, slots=True)
class _Entry:
    """`used_at_s` is on the clock of the daemon's running time."""

    generation: int
    used_at_s: float


class Generations:
    """The generations; use `open_generations` to get them."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        executor: ThreadPoolExecutor,
        saved: dict[str, _Entry],
        ran_before_s: float,
        now_s: Callable[[], float],
    ) -> None:
        self._connection = connection
        self._executor = executor
        self._saved = saved
        self._newest = {vm_id: entry.generation for vm_id, entry in saved.items()}
        self._unsaved: dict[str, _Entry] = {}
        self._commit: asyncio.Future[None] | None = None
        self._now_s = now_s
        self._began_at_s = now_s() - ran_before_s

    @property
    def newest(self) -> Mapping[str, int]:
        """The newest generation taken, by VM id; none for a VM that never had one. A view, which changes."""
        return MappingProxyType(self._newest)

    async def accept(self, vm_id: str, generation: int) -> None:
        """Take a command's generation; once this returns, it is on the disk. Idempotent; 0 is not looked at.

        Raises:
            Aborted: a newer one was taken, before or meanwhile.
            Unavailable: it could not be written; the command must not act.
        """
        self.check(vm_id, generation)
        while generation and not self._is_saved(vm_id, generation):
            waiting = self._unsaved.get(vm_id)
            if waiting is None or waiting.generation < generation:
                self._unsaved[vm_id] = _Entry(generation, self._running_s())
            if self._commit is None:
                self._commit = asyncio.ensure_future(self._write_unsaved())
            await asyncio.shield(self._commit)
        self.check(vm_id, generation)

    def check(self, vm_id: str, generation: int) -> None:
        """Refuse a generation that is older than the newest taken; 0 is not looked at.

        Raises:
            Aborted: it is.
        """
        newest = self._newest.get(vm_id, 0)
        if 0 < generation < newest:
            raise stale(vm_id, generation, newest)

    async def forget_unused(self, existing: Collection[str]) -> int:
        """Drop what was not used for `KEEP_S`, but for VMs that exist; returns how many were dropped.

        Raises:
            Unavailable: the file could not be written.
        """
        now_s = self._running_s()
        doomed = [
            vm_id
            for vm_id, entry in self._saved.items()
            if now_s - entry.used_at_s > KEEP_S and vm_id not in existing and vm_id not in self._unsaved
        ]
        for vm_id in doomed:  # first, so that a command that comes now is written after the row was removed
            del self._saved[vm_id], self._newest[vm_id]
        await self._in_thread(lambda: _remove(self._connection, doomed, now_s))
        return len(doomed)

    async def close(self) -> None:
        """Close the file."""
        if self._commit is not None:
            await asyncio.wait([self._commit])
        await asyncio.get_running_loop().run_in_executor(self._executor, self._connection.close)
        self._executor.shutdown()

    def _running_s(self) -> float:
        return self._now_s() - self._began_at_s

    def _is_saved(self, vm_id: str, generation: int) -> bool:
        entry = self._saved.get(vm_id)
        return entry is not None and (
            entry.generation > generation
            or (entry.generation == generation and self._running_s() - entry.used_at_s < _TOUCH_S)
        )

    async def _write_unsaved(self) -> None:
        """Write all there is to write now; what comes meanwhile is for the next time."""
        batch, now_s = dict(self._unsaved), self._running_s()
        try:
            await self._in_thread(lambda: _write(self._connection, batch, now_s))
            for vm_id, entry in batch.items():
                self._saved[vm_id], self._newest[vm_id] = entry, entry.generation
                if self._unsaved[vm_id] == entry:
                    del self._unsaved[vm_id]
        finally:
            self._commit = None

    async def _in_thread(self, work: Callable[[], ResultT]) -> ResultT:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        except sqlite3.Error as error:
            raise Unavailable(
                Reason.STATE_UNAVAILABLE,
                f"the node daemon cannot write down the generations of commands ({error}); look at its data directory",
                retry_after_s=5.0,
            ) from error


async def open_generations(data_dir: Path, now_s: Callable[[], float] = time.monotonic) -> Generations:
    """Read what was taken before; makes the file if there is none.

    Args:
        now_s: any clock that only goes forward.

    Raises:
        DataDirError: the file is damaged, or another daemon uses it.
    """
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="generations")
    try:
        connection, saved, ran_before_s = await asyncio.get_running_loop().run_in_executor(executor, _open, data_dir)
    except BaseException:
        executor.shutdown(wait=False)
        raise
    return Generations(connection, executor, saved, ran_before_s, now_s)


def stale(vm_id: str, generation: int, newest: int) -> Aborted:
    """Build the refusal of an overtaken command."""
    return Aborted(
        Reason.STALE_GENERATION,
        f"this command on VM {vm_id} is of generation {generation}, but one of generation {newest} was taken already",
        metadata={"vm_id": vm_id, "generation": str(generation), "newest": str(newest)},
    )


# in the thread


def _open(data_dir: Path) -> tuple[sqlite3.Connection, dict[str, _Entry], float]:
    path = data_dir / FILE_NAME
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _make(path)
        connection = sqlite3.connect(path, timeout=_LOCK_TIMEOUT_S, isolation_level=None)
    except (OSError, sqlite3.Error) as error:
        raise DataDirError(f"{path} cannot be used: {error}") from error
    try:
        # Exclusive: a second daemon in the same directory would take commands that this one does not know of.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("BEGIN IMMEDIATE")
        saved, ran_before_s = _read(connection)
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")  # only now: it writes, and the file might not be ours
        connection.execute("PRAGMA synchronous = FULL")
    except (OSError, sqlite3.Error, ValueError) as error:
        connection.close()
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
            raise DataDirError(f"{path} is in use by another node daemon; give each its own data directory") from error
        raise DataDirError(
            f"{path}, the generations of commands, is damaged or not ours ({error}). Put back a good copy; or, when no "
            "control plane has commands for this host under way, move it away to start anew"
        ) from error
    return connection, saved, ran_before_s


def _make(path: Path) -> None:
    """Make the file whole or not at all, so that an empty one is known for damaged."""
    partial = path.with_suffix(".part")
    partial.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(partial, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = MEMORY")  # no second file, which a kill would leave behind
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(_SCHEMA)
        connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
    partial.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _read(connection: sqlite3.Connection) -> tuple[dict[str, _Entry], float]:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != _SCHEMA_VERSION:
        raise ValueError(f"format {version}, not {_SCHEMA_VERSION}")
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise ValueError(verdict)
    rows = connection.execute("SELECT vm_id, generation, used_at_s FROM generations")
    saved = {str(vm_id): _Entry(int(generation), float(used_at_s)) for vm_id, generation, used_at_s in rows}
    ((ran_before_s,),) = connection.execute("SELECT total_s FROM running_time").fetchall()
    return saved, float(ran_before_s)


def _write(connection: sqlite3.Connection, batch: Mapping[str, _Entry], running_s: float) -> None:
    rows = [(vm_id, entry.generation, entry.used_at_s) for vm_id, entry in batch.items()]
    with _transaction(connection, running_s):
        connection.executemany("REPLACE INTO generations (vm_id, generation, used_at_s) VALUES (?, ?, ?)", rows)


def _remove(connection: sqlite3.Connection, vm_ids: Collection[str], running_s: float) -> None:
    with _transaction(connection, running_s):
        connection.executemany("DELETE FROM generations WHERE vm_id = ?", [(vm_id,) for vm_id in vm_ids])


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection, running_s: float) -> Iterator[None]:
    """All or nothing, with the running time so far."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("UPDATE running_time SET total_s = ?", (running_s,))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
