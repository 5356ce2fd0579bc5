"""Transactions of a database whose driver blocks: each is carried out in one thread, from its begin to its end.

The coroutine that uses a transaction is driven in that thread, where nothing is ever awaited for real. So a transaction
costs one change of threads, whatever it does, and one that waits for anything but the database fails: a call to a host
or a pause inside a transaction would hold locks for that long.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from controlplane.domain import errors
from controlplane.state.engine import Progress, Session, StoreLimits
from controlplane.state.faults import is_lost

ResultT = TypeVar("ResultT")

INTERRUPT = "limiquantix.interrupt"
"""Key in `Connection.info` of a function without arguments that makes what runs on the connection fail soon.

Called from another thread, at any moment until the connection is closed and after.
"""

_log = logging.getLogger(__name__)


class ThreadSessionPool:
    """As many threads, and at most as many connections, as there may be transactions at once.

    Args:
        engine: a blocking engine with `session_count` connections that may change threads between transactions.
        session_count: size of the pool.
        limits: how long to wait for a free thread, and for the last ones at the end.
        name: prefix of the threads' names, for those who look at a process from outside.
    """

    def __init__(self, engine: Engine, session_count: int, limits: StoreLimits, name: str) -> None:
        self._engine = engine
        self._session_count = session_count
        self._limits = limits
        self._threads = ThreadPoolExecutor(session_count, thread_name_prefix=name)
        self._free = asyncio.Semaphore(session_count)
        self._waiting_count = 0
        self._open: set[ThreadSession] = set()
        self._is_closed = False

    async def transact(
        self, use: Callable[[Session], Awaitable[ResultT]], progress: Progress, *, writes: bool
    ) -> ResultT:
        """Run one transaction; see `SessionPool`."""
        progress.commit_sent = False
        await self._take_place()
        session = ThreadSession(self._engine, progress)
        context = contextvars.copy_context()  # what is logged inside belongs to the same call
        try:
            running = asyncio.get_running_loop().run_in_executor(
                self._threads, context.run, session.transact, use, writes
            )
        except RuntimeError as error:
            self._free.release()
            raise errors.state_unavailable("the store is closed") from error
        self._open.add(session)
        running.add_done_callback(lambda _: self._give_place_back(session, running))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            session.abandon()
            await self._let_end(session, running)
            raise

    async def dispose(self) -> None:
        """Close the connections; see `SessionPool`. A thread that hangs in the database is left behind."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            async with asyncio.timeout(self._limits.release_s):
                for _ in range(self._session_count):
                    await self._free.acquire()
        except TimeoutError:
            _log.warning("%d database transactions did not end; leaving them behind", len(self._open))
            for session in self._open:
                session.abandon()
                session.interrupt()
        self._threads.shutdown(wait=False)
        await asyncio.to_thread(self._engine.dispose)

    async def _take_place(self) -> None:
        """Wait for a free thread and connection."""
        if not self._free.locked():
            await self._free.acquire()  # at once
            return
        if self._waiting_count >= self._limits.waiting_count:
            raise errors.state_unavailable(f"{self._waiting_count} calls wait for a connection to it already")
        self._waiting_count += 1
        try:
            async with asyncio.timeout(self._limits.connection_wait_s):
                await self._free.acquire()
        except TimeoutError as error:
            raise errors.state_unavailable(
                f"every connection to it was in use for {self._limits.connection_wait_s:g} s"
            ) from error
        finally:
            self._waiting_count -= 1

    def _give_place_back(self, session: ThreadSession, ended: asyncio.Future[ResultT]) -> None:
        ended.exception()  # the caller may have gone; asyncio would log that nobody asked
        self._open.discard(session)
        self._free.release()

    async def _let_end(self, session: ThreadSession, running: asyncio.Future[ResultT]) -> None:
        """Wait for a transaction whose caller has gone; a database that takes its time about it is not waited for."""
        try:
            done, _ = await asyncio.wait({running}, timeout=self._limits.interrupt_after_s)
        except asyncio.CancelledError:
            session.interrupt()
            raise
        if done:
            return
        session.interrupt()
        if not session.has_begun:
            return  # it waits for a connection, and will do nothing with it
        done, _ = await asyncio.wait({running}, timeout=self._limits.release_s)
        if not done:
            _log.warning("the database does not end a transaction; its connection is out of use until it does")


class Abandoned(BaseException):
    """Ends a transaction whose caller has gone; no work may catch it as an error of its own."""


class ThreadSession:
    """One transaction; see `Session`. All methods but `abandon` and `interrupt` belong to the thread that runs it."""

    def __init__(self, engine: Engine, progress: Progress) -> None:
        self._engine = engine
        self._progress = progress
        self._connection: Connection | None = None
        self._interrupt: Callable[[], None] | None = None
        self._is_abandoned = threading.Event()
        self.has_begun = False
        """Whether there was ever anything to roll back or to commit."""

    async def call(self, function: Callable[[Connection], ResultT]) -> ResultT:
        """Run the function; see `Session`."""
        if self._connection is None:
            raise RuntimeError("the transaction has ended; use it only inside of the work")
        self._require_caller()
        return function(self._connection)

    def transact(self, use: Callable[[Session], Awaitable[ResultT]], writes: bool) -> ResultT:
        """Do all of it, blocking."""
        connection = self._engine.connect()
        try:
            self._interrupt = connection.info.get(INTERRUPT)
            connection.begin()
            self._connection = connection
            self.has_begun = True
            result = drive(use(self))
            self._require_caller()
            self._progress.commit_sent = writes
            # Also after reading only: psycopg forgets its prepared statements with a rollback.
            connection.commit()
            return result
        except DBAPIError as error:
            if is_lost(error):
                connection.invalidate()
            raise
        finally:
            self._connection = None
            _give_back(connection)

    def abandon(self) -> None:
        """Have the transaction end at its next step, unless that is the commit and under way already."""
        self._is_abandoned.set()

    def interrupt(self) -> None:
        """Make the step under way fail, if the database can do that."""
        if self._interrupt is not None:
            self._interrupt()

    def _require_caller(self) -> None:
        if self._is_abandoned.is_set():
            raise Abandoned


def drive(awaitable: Awaitable[ResultT]) -> ResultT:
    """Run a coroutine to its end without an event loop, and return its result.

    Raises:
        RuntimeError: it really waited for something.
    """
    steps = awaitable.__await__()
    try:
        next(steps)
    except StopIteration as end:
        result: ResultT = end.value
        return result
    if hasattr(steps, "close"):
        steps.close()
    raise RuntimeError("a transaction waits for nothing but the database; wait before or after it")


def _give_back(connection: Connection) -> None:
    """Roll back what is not committed. If even that fails the pool drops the connection, so it ends either way."""
    try:
        connection.close()
    except Exception:  # noqa: BLE001 - logged; raising would hide why the transaction ended
        _log.warning("a database connection could not be released", exc_info=True)
        connection.invalidate()
