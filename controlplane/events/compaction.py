"""Keeps the log of events from growing for ever, and the fences that it tells of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from controlplane.state.interface import Store
from limiquantix.errors import ApiError

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CompactionConfig:
    """How long events are kept, and how gently they go."""

    retention: timedelta = timedelta(days=7)
    interval_s: float = 300.0
    chunk_count: int = 1_000
    """Entries removed in one transaction, which keeps others from writing for some milliseconds."""
    pause_s: float = 0.1
    """Between two chunks."""


class EventLogCompactor:
    """Removes what is older than the retention. Any number of processes may do so beside each other."""

    def __init__(self, store: Store, now: Callable[[], datetime], config: CompactionConfig | None = None) -> None:
        self._store = store
        self._now = now
        self._config = config or CompactionConfig()

    async def run(self) -> None:
        """Compact every interval until cancelled; a database that is away is tried again at the next one."""
        while True:
            await asyncio.sleep(self._config.interval_s)
            try:
                removed_count = await self.compact()
            except ApiError as error:
                _log.warning("event_log_not_compacted", reason=error.reason, message=error.message)
            else:
                if removed_count:
                    _log.info("event_log_compacted", removed_count=removed_count)

    async def compact(self) -> int:
        """Remove all that is old enough, a chunk at a time; returns how many entries that were.

        Fences that ended before that go too: there are few, and nothing tells of them any more.
        """
        limit = self._config.chunk_count
        recorded_before = self._now() - self._config.retention
        await self._store.run(lambda tx: tx.forget_fences(recorded_before))
        total_count = 0
        while True:
            count = await self._store.run(lambda tx: tx.compact_events(recorded_before, limit))
            total_count += count
            if count < limit:
                return total_count
            await asyncio.sleep(self._config.pause_s)
