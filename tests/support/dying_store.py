"""A store at whose n-th write the process dies: before it is done, or after, when only the answer is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from controlplane.state.interface import Store, Transaction

ResultT = TypeVar("ResultT")


class DyingStore:
    """Passes everything on until its end, and from then on nothing returns.

    Nothing dies before `die_at` is called.
    """

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self._writes_left: int | None = None
        self._after_commit = False
        self.died = asyncio.Event()

    def die_at(self, write: int, *, after_commit: bool) -> None:
        """Let the process die at the n-th write from now on, from 1; after it was committed, or before."""
        self._writes_left, self._after_commit = write, after_commit

    async def open(self) -> None:
        """Pass on."""
        await self._inner.open()

    async def close(self) -> None:
        """Pass on."""
        await self._inner.close()

    async def ping(self) -> None:
        """Pass on."""
        await self._inner.ping()

    async def read(self, work: Callable[[Transaction], Awaitable[ResultT]]) -> ResultT:
        """Pass on, unless the process is dead."""
        await self._end_if_dead()
        return await self._inner.read(work)

    async def run(self, work: Callable[[Transaction], Awaitable[ResultT]]) -> ResultT:
        """Pass on, and die in time."""
        await self._end_if_dead()
        if self._writes_left is not None:
            self._writes_left -= 1
            if self._writes_left <= 0:
                if self._after_commit:
                    await self._inner.run(work)
                self.died.set()
        await self._end_if_dead()
        return await self._inner.run(work)

    async def _end_if_dead(self) -> None:
        if self.died.is_set():
            await asyncio.Event().wait()
