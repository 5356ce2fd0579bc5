"""etcd, as far as the product's interface sees it: one linearizable place, sessions that end, and links that break."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from controlplane.coordination.interface import Candidate, CoordinationAway, RevocationMark

SESSION_S = 5.0
RENEW_S = 1.0
LIMIT_S = 2.0
MARGIN_S = 0.5
"""A process takes its session to have ended this much before the service does."""


@dataclass
class Site:
    """The service's memory, which outlives every process."""

    now_s: Callable[[], float]
    random: random.Random
    session_s: float = SESSION_S
    marks: dict[str, int] = field(default_factory=dict)
    is_away: bool = False
    cut: set[str] = field(default_factory=set)
    """Machines that do not reach it."""
    elections: list[SimElection] = field(default_factory=list)
    listeners: dict[str, set[asyncio.Event]] = field(default_factory=dict)

    def elected(self) -> SimElection | None:
        """Drop what ended, and return who came first of the rest."""
        self.elections = [each for each in self.elections if each.ends_s > self.now_s()]
        return self.elections[0] if self.elections else None


class SimElection:
    """One process's part; `ends_s` is when its session ends, as the service has it."""

    def __init__(self, site: Site, machine: str, candidate: Candidate) -> None:
        self.candidate = candidate
        self.ends_s = -1.0
        self._site, self._machine = site, machine
        self._believes_until_s = -1.0
        self._news = asyncio.Event()
        self.obstacle = ""
        self._has_resigned = False

    @property
    def is_elected(self) -> bool:
        return self._site.now_s() < self._believes_until_s

    async def changed(self) -> None:
        await self._news.wait()
        self._news.clear()

    async def resign(self) -> None:
        self._has_resigned = True
        self._believes_until_s = -1.0
        self._news.set()
        with suppress(CoordinationAway):  # then its session ends by itself
            await reach(self._site, self._machine)
            self.ends_s = -1.0

    async def keep(self) -> None:
        """Renew the session for ever, and take notice of who is elected."""
        site = self._site
        while not self._has_resigned:
            before, sent_s = (self.is_elected, self.obstacle), site.now_s()
            try:
                await reach(site, self._machine)
                if self._has_resigned:
                    break
                if self not in site.elections:
                    site.elections.append(self)
                self.ends_s = site.now_s() + site.session_s
                is_first = site.elected() is self
                await reach(site, self._machine)
            except CoordinationAway as error:
                self.obstacle = str(error)
            else:
                self.obstacle = ""
                believes = is_first and not self._has_resigned
                self._believes_until_s = sent_s + site.session_s - MARGIN_S if believes else -1.0
            if before != (self.is_elected, self.obstacle):
                self._news.set()
            await asyncio.sleep(RENEW_S)


async def reach(site: Site, machine: str) -> None:
    """Cross the network once.

    Raises:
        CoordinationAway: after the time that a client waits.
    """
    if site.is_away or machine in site.cut:
        await asyncio.sleep(LIMIT_S)
        raise CoordinationAway("etcd does not answer")
    await asyncio.sleep(0.001 + 0.004 * site.random.random())


class SimCoordinator:
    """What one process on a machine has of it."""

    def __init__(self, site: Site, machine: str) -> None:
        self._site, self._machine = site, machine

    @asynccontextmanager
    async def elect(self, candidate: Candidate) -> AsyncIterator[SimElection]:
        election = SimElection(self._site, self._machine, candidate)
        keeping = asyncio.create_task(election.keep())
        try:
            yield election
        finally:
            keeping.cancel()
            await election.resign()

    async def leader(self) -> Candidate | None:
        await self._ask()
        elected = self._site.elected()
        return None if elected is None else elected.candidate

    async def publish_revocation(self, mark: RevocationMark) -> None:
        await self._ask()
        self._site.marks[mark.node_id] = max(mark.token, self._site.marks.get(mark.node_id, 0))
        await self._ask()

    async def clear_revocation(self, mark: RevocationMark) -> None:
        await self._ask()
        if self._site.marks.get(mark.node_id, mark.token + 1) <= mark.token:
            del self._site.marks[mark.node_id]
        await self._ask()

    async def revocations(self) -> dict[str, int]:
        await self._ask()
        found = dict(self._site.marks)
        await self._ask()
        return found

    async def wake(self, topic: str) -> None:
        if not self._site.is_away and self._machine not in self._site.cut:
            for listener in self._site.listeners.get(topic, ()):
                listener.set()

    async def woken(self, topic: str) -> AsyncGenerator[None, None]:
        listeners = self._site.listeners.setdefault(topic, set())
        heard = asyncio.Event()
        heard.set()
        listeners.add(heard)
        try:
            while True:
                await heard.wait()
                heard.clear()
                yield
        finally:
            listeners.discard(heard)

    async def check(self) -> None:
        await self._ask()

    async def close(self) -> None:
        """Nothing to let go of."""

    async def _ask(self) -> None:
        await reach(self._site, self._machine)
