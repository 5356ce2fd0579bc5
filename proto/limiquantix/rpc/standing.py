"""Ends streams whose callers may no longer have them, also while there is nothing to send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Final, TypeVar

from limiquantix.errors import ApiError, Reason, Unavailable

RECHECK_S: Final = 1.5
"""With the age of what it is decided by, streams end well within 5 s of what ends them."""
PATIENCE_S: Final = 3.0
"""How long a stream goes on when nobody can say whether it may."""

MessageT = TypeVar("MessageT")


async def while_allowed(
    messages: AsyncIterator[MessageT], recheck: Callable[[], Awaitable[None]], interval_s: float = RECHECK_S
) -> AsyncGenerator[MessageT, None]:
    """Pass messages on until there are no more, or it is found that the caller may not have them any longer.

    Args:
        recheck: raises the `ApiError` to end with; Unavailable, if it cannot be known, after `PATIENCE_S`.

    Raises:
        ApiError: that of `recheck`.
    """
    standing = _Standing(recheck, interval_s)
    watching = asyncio.get_running_loop().create_task(standing.watch())
    try:
        while True:
            try:
                message = await standing.next_of(messages)
            except StopAsyncIteration:
                return
            yield message
    finally:
        watching.cancel()


class _Standing:
    def __init__(self, recheck: Callable[[], Awaitable[None]], interval_s: float) -> None:
        self._recheck = recheck
        self._interval_s = interval_s
        self._refusal: ApiError | None = None
        self._waiting: asyncio.Timeout | None = None
        """Around the wait for the next message; while a message is on its way to the caller there is none."""

    async def watch(self) -> None:
        loop = asyncio.get_running_loop()
        known_s = loop.time()
        while self._refusal is None:
            await asyncio.sleep(self._interval_s)
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await self._recheck()
                known_s = loop.time()
            except (Unavailable, TimeoutError) as error:
                if loop.time() - known_s >= PATIENCE_S:
                    self._refusal = error if isinstance(error, Unavailable) else _not_known()
            except ApiError as error:
                self._refusal = error
        if self._waiting is not None:
            self._waiting.reschedule(loop.time())

    async def next_of(self, messages: AsyncIterator[MessageT]) -> MessageT:
        if self._refusal is not None:
            raise self._refusal
        try:
            async with asyncio.timeout(None) as self._waiting:
                return await anext(messages)
        except TimeoutError:
            if self._refusal is None:
                raise
        finally:
            self._waiting = None
        raise self._refusal


def _not_known() -> Unavailable:
    return Unavailable(
        Reason.STATE_UNAVAILABLE, "it cannot be found out whether this stream may go on; begin it anew in a moment"
    )
