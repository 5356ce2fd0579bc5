"""Sessions of a database whose driver blocks: each has a thread of its own, which runs its statements in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sqlalchemy import Connection, Engine

from controlplane.domain import errors
from controlplane.state.engine import StoreLimits

ResultT = TypeVar("ResultT")

_log = logging.getLogger(__name__)


class ThreadSessionPool:
    """As many threads, and at most as many connections, as there may be sessions.

    Args:
        engine: a blocking engine with `session_count` connections that may change threads between transactions.
        session_count: size of the pool.
        limits: how long to wait for a free thread, and for the last ones at the end.
        name: prefix of the threads' names, for those who look at a process from outside.
    """

    def __init__(self, engine: Engine, session_count: int, limits: StoreLimits, name: str) -> None:
        self._engine = engine
        self._limits = limits
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix=f"{name}-{n}") for n in range(session_count)]
        # Last in, first out: the connection used a moment ago has the pages in its cache.
        self._free: asyncio.LifoQueue[ThreadPoolExecutor] = asyncio.LifoQueue(session_count)
        for thread in self._threads:
            self._free.put_nowait(thread)

    async def acquire(self) -> ThreadSession:
        """Wait for a free thread; see `SessionPool`."""
        try:
            async with asyncio.timeout(self._limits.connection_wait_s):
                thread = await self._free.get()
        except TimeoutError as error:
            raise errors.state_unavailable("every connection to it is in use") from error
        return ThreadSession(self._engine, thread, self._limits, lambda: self._free.put_nowait(thread))

    async def dispose(self) -> None:
        """Close the connections; see `SessionPool`. A thread that hangs in the database is left behind."""
        try:
            async with asyncio.timeout(self._limits.release_s):
                while self._threads:
                    thread = await self._free.get()
                    thread.shutdown(wait=False)
                    self._threads.remove(thread)
        except TimeoutError:
            _log.warning("%d database sessions did not end; leaving them behind", len(self._threads))
            for thread in self._threads:
                thread.shutdown(wait=False)
            self._threads.clear()
        await asyncio.to_thread(self._engine.dispose)


class ThreadSession:
    """One transaction; see `Session`.

    All of it happens in one thread in the order of the calls. So a cancelled call needs no care: what it began in the
    thread ends, and the rollback of `close` comes next.
    """

    def __init__(
        self, engine: Engine, thread: ThreadPoolExecutor, limits: StoreLimits, on_closed: Callable[[], None]
    ) -> None:
        self._engine = engine
        self._thread = thread
        self._limits = limits
        self._on_closed = on_closed
        self._connection: Connection | None = None
        self._is_used = False

    async def call(self, function: Callable[[Connection], ResultT]) -> ResultT:
        """Run the function in the thread; see `Session`."""
        return await self._submit(lambda: function(self._begun()))

    async def commit(self) -> None:
        """Commit in the thread; see `Session`. Nothing to do if nothing was called."""
        if self._is_used:
            await self._submit(self._commit)

    async def close(self) -> None:
        """Roll back and give the thread back; see `Session`."""
        closing = self._end_later()
        if closing is None:
            return
        done, _ = await asyncio.wait({closing}, timeout=self._limits.release_s)
        if not done:
            _log.warning("the database does not end a transaction; its connection is out of use until it does")

    def release(self) -> None:
        """Give the thread back once the connection is; see `Session`."""
        self._end_later()

    def _end_later(self) -> asyncio.Future[None] | None:
        """Have the thread end the transaction; None if there is nothing to end."""
        if not self._is_used:
            self._on_closed()
            return None
        closing = self._submit(self._end)
        closing.add_done_callback(lambda _: self._on_closed())
        return closing

    def _submit(self, step: Callable[[], ResultT]) -> asyncio.Future[ResultT]:
        self._is_used = True
        return asyncio.get_running_loop().run_in_executor(self._thread, step)

    def _begun(self) -> Connection:
        """Connect and begin, at the first call."""
        if self._connection is None:
            connection = self._engine.connect()
            try:
                connection.begin()
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _commit(self) -> None:
        if self._connection is not None:
            self._connection.commit()

    def _end(self) -> None:
        """Roll back what is not committed. If even that fails the pool drops the connection, so it ends either way."""
        if self._connection is None:
            return  # it could not begin
        try:
            self._connection.close()
        except Exception:  # noqa: BLE001 - logged; raising would hide why the transaction ended
            _log.warning("a database connection could not be released", exc_info=True)
            self._connection.invalidate()
