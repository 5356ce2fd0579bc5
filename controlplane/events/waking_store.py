"""A store that tells when it committed something, so that watches need not wait for the next look at the log."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from controlplane.state.interface import Store, Transaction

ResultT = TypeVar("ResultT")


class WakingStore:
    """Another store, which it opens, closes and asks, with a call of `committed` after each transaction that wrote."""

    def __init__(self, store: Store, committed: Callable[[], None]) -> None:
        self._store = store
        self._committed = committed

    async def open(self) -> None:
        """See the interface."""
        await self._store.open()

    async def close(self) -> None:
        """See the interface."""
        await self._store.close()

    async def ping(self) -> None:
        """See the interface."""
        await self._store.ping()

    async def run(self, work: Callable[[Transaction], Awaitable[ResultT]]) -> ResultT:
        """See the interface."""
        try:
            return await self._store.run(work)
        finally:
            self._committed()  # also after an error: whether a commit in flight happened may be unknown

    async def read(self, work: Callable[[Transaction], Awaitable[ResultT]]) -> ResultT:
        """See the interface."""
        return await self._store.read(work)
