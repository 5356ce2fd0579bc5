"""Transactions that share a thread, a connection and, where that is possible, a commit: for SQLite.

SQLite has one writer, and each of its commits waits for the disk. So transactions that wait while one is carried out
join it, each inside a savepoint, and one commit makes all of them durable. Who fails is rolled back to its savepoint
alone. Nobody hears of an outcome before the commit: those that came later in the group have seen what the earlier ones
wrote. If the transaction as a whole is lost (a full disk, an I/O error) nothing was committed, and each is carried out
again by itself.

Readers that wait together share a snapshot, which begins after all of them came. They have few threads, and the second
helps only if the first does not get on: what a read costs is Python's work, and threads that compete for Python's lock
do less together than one alone.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection, Engine

from controlplane.domain import errors
from controlplane.state.engine import Progress, Session, StoreLimits
from controlplane.state.prepared import execute_text
from controlplane.state.threads import Abandoned, drive

ResultT = TypeVar("ResultT")

MAX_GROUP_COUNT = 64
"""Transactions in one commit: the first has to wait for the others, and other processes for all of them."""

MAX_GROUP_S = 0.02
"""Time after which nobody joins any more, for the same reason."""

_HELP_AFTER_S = 0.02
"""A read that has waited this long gets another thread, if there is one."""

_TELL_AFTER_S = 0.002
"""Reads that are done hear of it at the latest when the next ones of their group have taken this long."""

_SAVEPOINT, _RELEASE, _BACK = "SAVEPOINT work", "RELEASE work", "ROLLBACK TO work"

_log = logging.getLogger(__name__)


class _Call(Generic[ResultT]):
    """One transaction as its caller sees it; a session while it runs.

    The thread that carries it out calls `run`, everything else belongs to the event loop.
    """

    def __init__(
        self,
        use: Callable[[Session], Awaitable[ResultT]],
        progress: Progress,
        done: asyncio.Future[ResultT],
        now_s: float,
        *,
        writes: bool,
    ) -> None:
        self.progress = progress
        self.writes = writes
        self.done = done
        self.waits_since_s = now_s
        self.is_told = False
        """Whether the event loop was asked to call `end`."""
        self.is_over = False
        self.released: asyncio.Future[None] | None = None
        """Set for a caller that has gone and only waits for the end."""
        self.result: ResultT | None = None
        self.error: BaseException | None = None
        self._use = use
        self._context = contextvars.copy_context()  # what is logged inside belongs to the same call
        self._connection: Connection | None = None

    def run(self, connection: Connection) -> bool:
        """Do the work, blocking; returns whether it did well, with the outcome in `result` or `error`."""
        self.result = self.error = None
        self._connection = connection
        try:
            self._require_caller()
            self.result = self._context.run(drive, self._use(self))
            self._require_caller()
        except BaseException as error:  # noqa: BLE001 - the caller's, and goes there
            self.error = error
        finally:
            self._connection = None
        return self.error is None

    async def call(self, function: Callable[[Connection], Any]) -> Any:
        """Run the function; see `Session`."""
        if self._connection is None:
            raise RuntimeError("the transaction has ended; use it only inside of the work")
        self._require_caller()
        return function(self._connection)

    def end(self) -> None:
        """Tell the caller, in the event loop."""
        self.is_over = True
        if self.released is not None and not self.released.done():
            self.released.set_result(None)
        if self.done.done():
            return  # the caller has gone
        if self.error is None:
            self.done.set_result(self.result)  # type: ignore[arg-type]  # it is one now
        else:
            self.done.set_exception(self.error)

    def _require_caller(self) -> None:
        if self.done.cancelled():  # by the cancellation of the caller, who waits for nothing else
            raise Abandoned


class _GroupPool(ABC):
    """What writers and readers have in common: a queue, threads that take calls from it, and connections.

    Args:
        engine: a blocking engine with `thread_count` connections that may change threads between transactions.
        name: prefix of the threads' names, for those who look at a process from outside.
    """

    def __init__(self, engine: Engine, thread_count: int, limits: StoreLimits, name: str) -> None:
        self._engine = engine
        self._thread_count = thread_count
        self._limits = limits
        self._threads = ThreadPoolExecutor(thread_count, thread_name_prefix=name)
        self._lock = threading.Lock()
        """Guards what the event loop and the threads both change: the queue and the count of busy threads."""
        self._waiting: deque[_Call[Any]] = deque()
        self._busy_count = 0
        self._idle: list[Connection] = []
        self._watch: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = asyncio.Event()
        self._is_closed = False

    async def transact(
        self, use: Callable[[Session], Awaitable[ResultT]], progress: Progress, *, writes: bool
    ) -> ResultT:
        """Run one transaction; see `SessionPool`. No statement is interrupted."""
        progress.commit_sent = False
        loop = self._loop = asyncio.get_running_loop()
        done: asyncio.Future[ResultT] = loop.create_future()
        call = _Call(use, progress, done, loop.time(), writes=writes)
        self._queue(call)
        try:
            return await done
        except asyncio.CancelledError:
            await self._let_end(call)
            raise

    async def dispose(self) -> None:
        """Close the connections; see `SessionPool`. A thread that hangs in the database is left behind."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            async with asyncio.timeout(self._limits.release_s):
                while self._busy_count:
                    self._ended.clear()
                    await self._ended.wait()
        except TimeoutError:
            _log.warning("%d threads do not end their database transactions; leaving them behind", self._busy_count)
            with self._lock:
                left = list(self._waiting)
                self._waiting.clear()
            for call in left:
                call.error = errors.state_unavailable("the store is closed")
                call.end()
        if self._watch is not None:
            self._watch.cancel()
        self._threads.shutdown(wait=False)
        await asyncio.to_thread(self._close_connections)

    # -- in the event loop

    def _queue(self, call: _Call[Any]) -> None:
        """Put a call in, and have a thread look for it."""
        if self._is_closed:
            raise errors.state_unavailable("the store is closed")
        with self._lock:
            if self._busy_count and len(self._waiting) >= self._limits.waiting_count:
                raise errors.state_unavailable(f"{len(self._waiting)} calls wait for a connection to it already")
            self._waiting.append(call)
            is_taken_care_of = self._busy_count > 0
            if not is_taken_care_of:
                self._busy_count += 1
        if not is_taken_care_of:
            self._threads.submit(self._work)
        elif self._watch is None:
            self._look_again()

    def _look_again(self) -> None:
        """See to calls that wait for too long: at first another thread helps, and at last they are refused."""
        assert self._loop is not None  # noqa: S101 - set before anything is queued
        self._watch = None
        now_s = self._loop.time()
        given_up: list[_Call[Any]] = []
        with self._lock:
            while self._waiting and now_s - self._waiting[0].waits_since_s >= self._limits.connection_wait_s:
                given_up.append(self._waiting.popleft())
            waited_s = now_s - self._waiting[0].waits_since_s if self._waiting else None
            is_late = waited_s is not None and waited_s >= _HELP_AFTER_S
            helps = is_late and self._busy_count < self._thread_count and not self._is_closed
            if helps:
                self._busy_count += 1
        for call in given_up:
            call.error = errors.state_unavailable(
                f"every connection to it was in use for {self._limits.connection_wait_s:g} s"
            )
            call.end()
        if helps:
            self._threads.submit(self._work)
        if waited_s is not None:
            only_gives_up = self._thread_count == 1
            pause_s = self._limits.connection_wait_s - waited_s if only_gives_up else _HELP_AFTER_S
            self._watch = self._loop.call_later(pause_s, self._look_again)

    async def _let_end(self, call: _Call[Any]) -> None:
        """Wait for a transaction whose caller has gone; a database that takes its time about it is not waited for."""
        with self._lock:
            if call in self._waiting:
                self._waiting.remove(call)
                return
        if call.is_over:
            return
        call.released = asyncio.get_running_loop().create_future()
        patience_s = self._limits.interrupt_after_s + self._limits.release_s
        done, _ = await asyncio.wait({call.released}, timeout=patience_s)
        if not done:
            _log.warning("the database does not end a transaction; its connection is out of use until it does")

    # -- in a thread

    def _work(self) -> None:
        """Carry out calls until none waits."""
        while (first := self._take(or_rest=True)) is not None:
            group = [first]
            try:
                connection = self._connect()
                try:
                    self._carry_out(connection, group)
                finally:
                    self._put_back(connection)
            except Exception as error:  # noqa: BLE001 - the callers'
                untold = [call for call in group if not call.is_told]
                for call in untold:
                    call.error = error
                self._tell(untold)

    @abstractmethod
    def _carry_out(self, connection: Connection, group: list[_Call[Any]]) -> None:
        """Carry out the only call of a group, and others that wait and are added to it, and tell their callers.

        Raises:
            Exception: for those who were not told.
        """

    def _take(self, *, or_rest: bool = False) -> _Call[Any] | None:
        """Take the call that came first; with `or_rest`, the thread counts as free if there is none."""
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            if or_rest:
                self._busy_count -= 1
        if or_rest and self._is_closed:
            self._in_loop(self._ended.set)
        return None

    def _tell(self, calls: list[_Call[Any]]) -> None:
        """Have the callers told, all at once: waking the event loop costs more than most of what they do."""
        for call in calls:
            call.is_told = True
        if calls:
            self._in_loop(lambda: _end(calls))

    def _in_loop(self, function: Callable[[], object]) -> None:
        assert self._loop is not None  # noqa: S101
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more

    def _connect(self) -> Connection:
        try:
            return self._idle.pop()
        except IndexError:
            return self._engine.connect()

    def _put_back(self, connection: Connection) -> None:
        """Keep a connection for the next group, without a transaction; one that cannot end it is closed."""
        try:
            if connection.in_transaction():
                connection.rollback()
        except Exception:  # noqa: BLE001 - logged; who was in it has heard of their own error
            _log.warning("a database transaction could not be rolled back", exc_info=True)
            connection.invalidate()
        if connection.invalidated or self._is_closed:
            connection.close()
        else:
            self._idle.append(connection)

    def _close_connections(self) -> None:
        while self._idle:
            self._idle.pop().close()
        self._engine.dispose()


class GroupCommitPool(_GroupPool):
    """The one writer of a database."""

    def __init__(self, engine: Engine, limits: StoreLimits, name: str) -> None:
        super().__init__(engine, 1, limits, name)

    def _carry_out(self, connection: Connection, group: list[_Call[Any]]) -> None:
        """Carry out one transaction, and with it those that wait by the time it is done."""
        (first,) = group
        connection.begin()
        if not first.run(connection):
            connection.rollback()
            self._tell(group)
            return
        until_s = time.monotonic() + MAX_GROUP_S
        while len(group) < MAX_GROUP_COUNT and time.monotonic() < until_s and (call := self._take()) is not None:
            group.append(call)
            if not _run_in_savepoint(connection, call):
                break
        if _is_open(connection):
            self._commit(connection, group)
            return
        connection.rollback()
        for call in group:
            self._alone(connection, call)

    def _alone(self, connection: Connection, call: _Call[Any]) -> None:
        """Carry a call out again, in a transaction of its own; one that cannot even begin concerns all the rest."""
        connection.begin()
        if call.run(connection):
            self._commit(connection, [call])
        else:
            connection.rollback()
            self._tell([call])

    def _commit(self, connection: Connection, group: list[_Call[Any]]) -> None:
        for call in group:
            call.progress.commit_sent = call.writes and call.error is None
        try:
            connection.commit()
        except Exception as error:  # noqa: BLE001 - everybody's; also of who was refused because of what others wrote
            for call in group:
                call.error = error
            connection.rollback()
        self._tell(group)


class SharedSnapshotPool(_GroupPool):
    """Readers."""

    def _carry_out(self, connection: Connection, group: list[_Call[Any]]) -> None:
        """Carry out the reads that wait now, and none that comes later: it may have to see more."""
        while len(group) < MAX_GROUP_COUNT and (call := self._take()) is not None:
            group.append(call)
        untold: list[_Call[Any]] = []
        told_s = time.monotonic()
        for call in group:
            if not connection.in_transaction():
                connection.begin()
            if not call.run(connection) and not _is_open(connection):
                connection.rollback()  # the snapshot is lost; the next call takes another one
            untold.append(call)
            if (now_s := time.monotonic()) - told_s >= _TELL_AFTER_S:
                self._tell(untold)
                untold, told_s = [], now_s
        self._tell(untold)


def _end(calls: list[_Call[Any]]) -> None:
    for call in calls:
        call.end()


def _run_in_savepoint(connection: Connection, call: _Call[Any]) -> bool:
    """Run a call so that nothing remains of it if it fails; False if the whole transaction is lost."""
    try:
        execute_text(connection, _SAVEPOINT)
        if not call.run(connection) and _is_open(connection):
            execute_text(connection, _BACK)
        execute_text(connection, _RELEASE)
    except Exception:  # noqa: BLE001 - each call of the group hears of its own error, if it meets it again
        _log.debug("a group of transactions is carried out one by one", exc_info=True)
        connection.rollback()
    return _is_open(connection)


def _is_open(connection: Connection) -> bool:
    """Whether the driver's transaction is there still: some errors end it (https://www.sqlite.org/lang_transaction.html)."""
    if connection.invalidated:
        return False
    driver_connection: Any = connection.connection.driver_connection
    return bool(driver_connection.in_transaction)
