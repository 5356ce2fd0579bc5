"""A store that takes its time, counts how often it is read, and fails when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from controlplane.state.interface import Store, Transaction
from limiquantix.errors import ApiError

ResultT = TypeVar("ResultT")
_TAKES_S = 0.02


class SlowStore:
    """Another store, in front of which reads wait; satisfies `Store`.

    Attributes:
        failure: what reads end with.
        held: what is read from now on is not told before this is set.
        reading, has_read: set when a read begins, and when it has read.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.read_count = 0
        self.failure: ApiError | None = None
        self.held: asyncio.Event | None = None
        self.reading = asyncio.Event()
        self.has_read = asyncio.Event()

    async def read(self, work: Callable[[Transaction], Awaitable[ResultT]]) -> ResultT:
        """Wait, and read or fail."""
        self.read_count += 1
        self.reading.set()
        await asyncio.sleep(_TAKES_S)
        if self.failure is not None:
            raise self.failure
        held = self.held
        found = await self._store.read(work)
        self.has_read.set()
        if held is not None:
            await held.wait()
        return found

    async def run(self, work: Callable[[Transaction], Awaitable[ResultT]]) -> ResultT:
        """Pass it on."""
        return await self._store.run(work)

    async def open(self) -> None:
        """Pass it on."""
        await self._store.open()

    async def close(self) -> None:
        """Pass it on."""
        await self._store.close()

    async def ping(self) -> None:
        """Pass it on."""
        await self._store.ping()
