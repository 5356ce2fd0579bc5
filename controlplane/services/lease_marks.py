"""What a process that grants leases knows of nodes that get none: read again and again, with the moment it began.

The intent to fence a node is written to two places, the database and the coordination service, and the wait for its
lease begins when both are written. Whoever read one of them after that knows. So a lease is granted upon either, if its
reading began not longer than `freshness_s` ago and shows no mark; a place that is away only stops being asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import structlog

from controlplane.coordination.interface import CoordinationAway, Coordinator
from controlplane.domain.fencing import Marks
from controlplane.services.ha_clock import clock_s
from controlplane.state.interface import Store
from limiquantix.errors import ApiError

_log = structlog.get_logger(__name__)

READ_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True)
class Seen:
    """The fence of a node as this process first saw it: commands of before arrive after, heartbeats must not."""

    token: int
    at_s: float


@dataclass(slots=True)
class LeaseMarks:
    """The newest reading of both places. Owned by the event loop's thread.

    Attributes:
        freshness_s: how old the beginning of a reading may be.
        has_second_place: whether whoever fences a node publishes it where this process reads, whichever process that
            is. Else leases are granted upon the database alone.
        clock: in seconds; goes on while the machine sleeps.
    """

    store: Store
    coordinator: Coordinator
    freshness_s: float
    clock: Callable[[], float] = clock_s
    has_second_place: bool = True
    _recorded: Marks | None = None
    _recorded_began_s: float = 0.0
    _published: Mapping[str, int] | None = None
    _published_began_s: float = 0.0
    _first_seen: dict[str, Seen] = field(default_factory=dict)

    # -- what is known

    @property
    def recorded(self) -> Marks | None:
        """What the database says; None if it was not read of late."""
        return self._recorded if self._is_fresh(self._recorded_began_s) else None

    @property
    def recorded_began_s(self) -> float:
        """When the newest reading of the database began."""
        return self._recorded_began_s

    def may_grant(self, node_id: str) -> bool:
        """Whether a node may have a lease now, whose time the node counts from when it asked.

        Safe by either place alone. A published mark of a fence that the database shows as ended is left over from a
        leader that died before it took it back; since fences are recorded before they are published, and never come
        back once ended, it means nothing, however old that knowledge is.
        """
        recorded = self.recorded
        if recorded is not None and node_id in recorded.revoked:
            return False
        if not self.has_second_place or self._published is None or not self._is_fresh(self._published_began_s):
            return recorded is not None
        token = self._published.get(node_id)
        return token is None or self._has_ended(node_id, token)

    def first_seen(self, node_id: str) -> Seen | None:
        """Return when this process first read that the node has a current fence; None if it has none."""
        return self._first_seen.get(node_id)

    @property
    def fenced(self) -> Mapping[str, Seen]:
        """All nodes with a current fence, by id."""
        return self._first_seen

    def _is_fresh(self, began_s: float) -> bool:
        return self.clock() - began_s <= self.freshness_s

    def _has_ended(self, node_id: str, token: int) -> bool:
        recorded = self._recorded
        return recorded is not None and node_id not in recorded.revoked and recorded.tokens.get(node_id, 0) >= token

    # -- reading

    async def read_recorded(self) -> None:
        """Read the database.

        Raises:
            ApiError: it does not answer.
        """
        began_s = self.clock()
        marks = await self.store.read(lambda tx: tx.marks())
        self._recorded, self._recorded_began_s = marks, began_s
        now_s = self.clock()
        known = self._first_seen
        self._first_seen = {
            node_id: known[node_id] if node_id in known and known[node_id].token == token else Seen(token, now_s)
            for node_id, token in marks.revoked.items()
        }

    async def read_published(self) -> None:
        """Read the coordination service.

        Raises:
            CoordinationAway: it does not answer.
        """
        began_s = self.clock()
        published = await self.coordinator.revocations()
        self._published, self._published_began_s = published, began_s

    async def run(self) -> None:
        """Read both until cancelled, independently: one that hangs does not keep the other from being read."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._repeat(self.read_recorded, "lease_marks_not_read"))
            group.create_task(self._repeat(self.read_published, "published_revocations_not_read"))

    @staticmethod
    async def _repeat(read: Callable[[], Awaitable[None]], complaint: str) -> None:
        is_away = False
        while True:
            try:
                await read()
                is_away = False
            except (ApiError, CoordinationAway) as error:
                if not is_away:  # told once, not twice a second
                    _log.warning(complaint, message=str(error))
                is_away = True
            await asyncio.sleep(READ_INTERVAL_S)
