"""What coordinates several control planes, as services see it.

Nothing here is a lock that safety rests on: a process may believe that it is elected for a while after another one is.
What it then tries to write is refused by its epoch, which is given by the database.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol


class CoordinationAway(Exception):
    """The service does not answer; the message says which endpoints were tried and how each failed."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A process that would decide."""

    id: str
    hostname: str
    address: str = ""
    """Where its API is, for people."""


@dataclass(frozen=True, slots=True)
class RevocationMark:
    """A node that gets no lease, as published: the second place, beside the database, where processes read it."""

    node_id: str
    token: int


class Election(Protocol):
    """One process's part in electing who decides. Never raises: what is wrong is in `obstacle`."""

    @property
    def is_elected(self) -> bool:
        """Whether this process is elected, as far as it knows; never later than its session can have ended."""
        ...

    @property
    def obstacle(self) -> str:
        """Why nobody can be elected, in words; "" when the service answers."""
        ...

    async def changed(self) -> None:
        """Wait until `is_elected` or `obstacle` may have changed."""
        ...

    async def resign(self) -> None:
        """Let another one be elected at once, rather than when this one's session has ended."""
        ...


class Coordinator(Protocol):
    """Election, revocation marks and wake-ups. One object a process."""

    def elect(self, candidate: Candidate) -> AbstractAsyncContextManager[Election]:
        """Take part in the election while the context lasts."""
        ...

    async def leader(self) -> Candidate | None:
        """Read who is elected; None for nobody.

        Raises:
            CoordinationAway: the service does not answer.
        """
        ...

    async def publish_revocation(self, mark: RevocationMark) -> None:
        """Publish that a node gets no lease; a smaller token than is published changes nothing. Idempotent.

        Raises:
            CoordinationAway: it cannot be said that it was published.
        """
        ...

    async def clear_revocation(self, mark: RevocationMark) -> None:
        """Take a mark back unless one with a larger token was published since. Idempotent.

        Raises:
            CoordinationAway: it cannot be said that it was taken back.
        """
        ...

    async def revocations(self) -> dict[str, int]:
        """Read all marks, linearizably: one that was published before this was called is among them.

        Raises:
            CoordinationAway: the service does not answer.
        """
        ...

    async def wake(self, topic: str) -> None:
        """Have others look, soon. A hint without data: it may be lost, doubled or late. Never raises."""
        ...

    def woken(self, topic: str) -> AsyncIterator[None]:
        """Yield whenever somebody called `wake`; once more after a lost connection, too."""
        ...

    async def check(self) -> None:
        """Ask for a sign of life, for `/ready`.

        Raises:
            CoordinationAway: there is none.
        """
        ...

    async def close(self) -> None:
        """Let go."""
        ...


CoordinatorFactory = Callable[[], Awaitable[Coordinator]]
