"""Streams end when their callers may no longer have them, and are left alone otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from limiquantix.errors import PermissionDenied, Reason, Unavailable
from limiquantix.rpc import standing
from limiquantix.rpc.standing import while_allowed

OFTEN_S = 0.01
LIMIT_S = 30.0
REFUSAL = PermissionDenied(Reason.PERMISSION_MISSING, "no longer")


class Door:
    """Lets go on until it is told an error; counts how often it was asked."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.asked = asyncio.Semaphore(0)

    async def __call__(self) -> None:
        self.asked.release()
        if self.error is not None:
            raise self.error


async def silent(closed: list[str] | None = None) -> AsyncIterator[int]:
    try:
        yield 1
        await asyncio.Event().wait()
    finally:
        if closed is not None:
            closed.append("closed")


def allowed(messages: AsyncIterator[int], door: Callable[[], Awaitable[None]]) -> Any:
    return while_allowed(messages, door, OFTEN_S)


async def test_silent_stream_is_ended_and_what_made_it_is_closed() -> None:
    door, closed = Door(), list[str]()
    stream = allowed(silent(closed), door)
    async with asyncio.timeout(LIMIT_S):
        assert await anext(stream) == 1
        await door.asked.acquire()
        door.error = REFUSAL
        with pytest.raises(PermissionDenied) as caught:
            await anext(stream)
    assert caught.value is REFUSAL
    assert closed == ["closed"]


async def test_nothing_more_is_sent_to_who_may_not_have_it() -> None:
    async def endless() -> AsyncIterator[int]:
        while True:
            yield 1

    door = Door()
    door.error = REFUSAL
    stream = allowed(endless(), door)
    async with asyncio.timeout(LIMIT_S):
        await anext(stream)
        await door.asked.acquire()  # while the message is on its way
        await asyncio.sleep(0)
        with pytest.raises(PermissionDenied):
            await anext(stream)


async def test_stream_that_ends_by_itself_leaves_no_task_behind() -> None:
    async def two() -> AsyncIterator[int]:
        yield 1
        yield 2

    before = asyncio.all_tasks()
    assert [each async for each in allowed(two(), Door())] == [1, 2]
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_error_of_the_stream_passes() -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        [each async for each in allowed(broken(), Door())]


async def test_stream_outlives_a_moment_of_not_knowing_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    door = Door()
    stream = allowed(silent(), door)
    async with asyncio.timeout(LIMIT_S):
        assert await anext(stream) == 1
        waiting = asyncio.ensure_future(anext(stream))
        door.error = Unavailable(Reason.STATE_UNAVAILABLE, "away")
        for _ in range(5):
            await door.asked.acquire()
        assert not waiting.done()
        door.error = None
        for _ in range(5):
            await door.asked.acquire()
        monkeypatch.setattr(standing, "PATIENCE_S", 0.05)
        door.error = Unavailable(Reason.STATE_UNAVAILABLE, "away")
        with pytest.raises(Unavailable, match="away"):
            await waiting
