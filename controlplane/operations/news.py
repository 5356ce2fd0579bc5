"""Tells those who wait for operations that something changed: at once within this process, by looking for others.

A notice carries no data: who is woken reads the operation, so nothing can be stale and nothing piles up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from controlplane.domain import operation_errors
from controlplane.domain.operation import Operation
from controlplane.state.interface import Store

_POLL_S = 0.5
"""How late a change made by another process is seen."""


class OperationNews:
    """Wakes waiters of this process."""

    def __init__(self, poll_s: float = _POLL_S) -> None:
        self._poll_s = poll_s
        self._waiting: dict[str, set[asyncio.Event]] = {}

    def changed(self, operation: Operation) -> None:
        """Wake everybody who waits for the operation."""
        for waiter in self._waiting.get(operation.id, ()):
            waiter.set()

    async def follow(self, store: Store, operation_id: str) -> AsyncIterator[Operation]:
        """Give the operation now and after every change, until it has ended.

        Raises:
            NotFound: there is no such operation.
        """
        woken = asyncio.Event()
        self._waiting.setdefault(operation_id, set()).add(woken)
        try:
            version = 0
            while True:
                woken.clear()
                operation = await store.read(lambda tx: tx.get_operation(operation_id))
                if operation is None:
                    raise operation_errors.operation_not_found(operation_id)
                if operation.version != version:
                    version = operation.version
                    yield operation
                if operation.has_ended:
                    return
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._poll_s):
                        await woken.wait()
        finally:
            waiters = self._waiting[operation_id]
            waiters.discard(woken)
            if not waiters:
                del self._waiting[operation_id]
