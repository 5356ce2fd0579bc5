"""The database as a control plane reaches it: late, away, or silent about whether a commit happened."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from controlplane.domain import errors
from controlplane.state.faults import OUTCOME_UNKNOWN
from controlplane.state.interface import Store, Transaction
from tests.simulation.product.loop import Process, VirtualLoop

ResultT = TypeVar("ResultT")

LIMIT_S = 5.0


@dataclass
class DatabaseWeather:
    """What is wrong with the database, for all."""

    loop: VirtualLoop
    is_away: bool = False
    cut: set[str] = field(default_factory=set)
    """Machines that do not reach it."""
    slow_s: float = 0.0
    failing: float = 0.0
    """Share of transactions that fail, half of them after their commit."""


class WeatheredStore:
    """The real store, behind a network; after each write, `witness` looks at what is recorded."""

    def __init__(self, inner: Store, weather: DatabaseWeather, process: Process, witness: Callable[[], None]) -> None:
        self._inner, self._weather, self._process, self._witness = inner, weather, process, witness

    async def open(self) -> None:
        await self._reach()
        await self._inner.open()

    async def close(self) -> None:
        await self._inner.close()

    async def ping(self) -> None:
        await self._reach()
        await self._inner.ping()

    async def run(self, work: Callable[[Transaction], Awaitable[ResultT]]) -> ResultT:
        await self._reach()
        fails, is_done = self._fails(), False
        if fails and self._weather.loop.random.random() < 0.5:
            raise errors.state_unavailable("the connection was lost")
        try:
            result = await self._inner.run(work)
            is_done = True
        finally:
            self._witness()
        if is_done and (fails or self._is_cut()):
            raise errors.state_unavailable(f"the connection was lost; {OUTCOME_UNKNOWN}")
        return result

    async def read(self, work: Callable[[Transaction], Awaitable[ResultT]]) -> ResultT:
        await self._reach()
        if self._fails():
            raise errors.state_unavailable("the connection was lost")
        return await self._inner.read(work)

    def _fails(self) -> bool:
        return self._weather.failing > 0 and self._weather.loop.random.random() < self._weather.failing

    def _is_cut(self) -> bool:
        return self._weather.is_away or self._process.machine.name in self._weather.cut

    async def _reach(self) -> None:
        if self._weather.slow_s:
            await asyncio.sleep(self._weather.slow_s * self._weather.loop.random.random())
        if self._is_cut():
            await asyncio.sleep(LIMIT_S * self._weather.loop.random.random())
            raise errors.state_unavailable("no answer")
