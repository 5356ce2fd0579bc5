"""What tests of elections wait for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

from controlplane.coordination.interface import Candidate, Coordinator, Election

PATIENCE_S = 60.0
_POLL_S = 0.02


def candidate(name: str) -> Candidate:
    """Make a candidate of a recognizable name."""
    return Candidate(id=name, hostname=f"{name}.example", address=f"{name}.example:8081")


async def until(holds: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Wait until something is so, looking again and again; fails by TimeoutError."""
    async with asyncio.timeout(patience_s):
        while not holds():  # noqa: ASYNC110 - what is waited for may be in another process
            await asyncio.sleep(_POLL_S)


async def until_elected(election: Election, patience_s: float = PATIENCE_S) -> None:
    """Wait by `changed`, as its user does, until elected."""
    async with asyncio.timeout(patience_s):
        while not election.is_elected:
            await election.changed()


async def until_not_elected(election: Election, patience_s: float = PATIENCE_S) -> None:
    """Wait by `changed` until no longer elected."""
    try:
        async with asyncio.timeout(patience_s):
            while election.is_elected:
                await election.changed()
    except TimeoutError:  # perhaps this process could not run for a while, and it is so all the same
        if election.is_elected:
            raise


class Listener:
    """Counts what `woken` yields."""

    def __init__(self) -> None:
        self.count = 0

    async def run(self, coordinator: Coordinator, topic: str) -> None:
        """Listen until cancelled."""
        woken: Any = coordinator.woken(topic)
        async with aclosing(woken) as wakes:
            async for _ in wakes:
                self.count += 1


@asynccontextmanager
async def listening(coordinator: Coordinator, topic: str) -> AsyncIterator[Listener]:
    """Listen while the context lasts."""
    listener = Listener()
    task = asyncio.create_task(listener.run(coordinator, topic))
    try:
        yield listener
    finally:
        task.cancel()
        await asyncio.wait([task])
