"""Coordination within one process: whatever takes part in it shares a `LocalSite` in memory.

For a control plane that is alone on its database. Several processes with PostgreSQL that each have this know nothing of
one another, so each takes itself to be elected. That runs no VM twice, since the epoch is given by the database and the
older of two leaders is refused, and since on PostgreSQL leases are granted upon the database alone: marks are published
to this process only. So losing the database ends all leases there, and of several processes the one that took the lead
last decides, while the others say what is wrong. Several control planes need etcd.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from controlplane.coordination.interface import Candidate, RevocationMark


class LocalSite:
    """What coordinators have in common; belongs to one event loop."""

    def __init__(self) -> None:
        self.marks: dict[str, int] = {}
        self.elections: list[LocalElection] = []
        """Who takes part, in order of arrival: the first is elected."""
        self.listeners: dict[str, set[asyncio.Event]] = {}


class LocalElection:
    """One part in the election of a site; who came first has it, and nothing can be in the way."""

    def __init__(self, site: LocalSite, candidate: Candidate) -> None:
        self.candidate = candidate
        self._site = site
        self._news = asyncio.Event()
        site.elections.append(self)

    @property
    def is_elected(self) -> bool:
        """Whether this one is the first."""
        return self._site.elections[:1] == [self]

    @property
    def obstacle(self) -> str:
        """Always ""."""
        return ""

    async def changed(self) -> None:
        """Wait for news since the last time; one caller at a time."""
        await self._news.wait()
        self._news.clear()

    async def resign(self) -> None:
        """Leave the election for good. Idempotent."""
        if self in self._site.elections:
            self._site.elections.remove(self)
            for election in (self, *self._site.elections):
                election._news.set()


class LocalCoordinator:
    """Coordinates what shares its site; without one it is alone."""

    def __init__(self, site: LocalSite | None = None) -> None:
        self._site = site or LocalSite()

    @asynccontextmanager
    async def elect(self, candidate: Candidate) -> AsyncIterator[LocalElection]:
        """Take part while the context lasts."""
        election = LocalElection(self._site, candidate)
        try:
            yield election
        finally:
            await election.resign()

    async def leader(self) -> Candidate | None:
        """Read who is elected."""
        return self._site.elections[0].candidate if self._site.elections else None

    async def publish_revocation(self, mark: RevocationMark) -> None:
        """Publish a mark, unless there is a newer one."""
        self._site.marks[mark.node_id] = max(mark.token, self._site.marks.get(mark.node_id, mark.token))

    async def clear_revocation(self, mark: RevocationMark) -> None:
        """Take a mark back, unless there is a newer one."""
        if self._site.marks.get(mark.node_id, mark.token + 1) <= mark.token:
            del self._site.marks[mark.node_id]

    async def revocations(self) -> dict[str, int]:
        """Read all marks."""
        return dict(self._site.marks)

    async def wake(self, topic: str) -> None:
        """Wake whoever listens now."""
        for listener in self._site.listeners.get(topic, ()):
            listener.set()

    async def woken(self, topic: str) -> AsyncGenerator[None, None]:
        """Yield once on listening, then for whatever number of wakes came since."""
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
        """Always well."""

    async def close(self) -> None:
        """Nothing to let go of."""
