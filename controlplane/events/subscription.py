"""The queue between the hub, which never waits, and one watcher, which may be slow."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from controlplane.domain import errors
from controlplane.events.shared import SharedEvent
from limiquantix.errors import ApiError

Wants = Callable[[SharedEvent], bool]
"""Whether an entry may matter to a watcher; called for every entry and every watcher, so it must be quick."""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """What one watcher may keep waiting. Watchers share the entries, so many slow ones together cost little more."""

    entry_count: int = 1_000
    total_bytes: int = 8 * 2**20


class Subscription:
    """One watcher's part of what happens, from `start` on. Made by `EventHub.subscribe`; used by one task.

    Attributes:
        start: revision after which it begins.
        position: revision up to which everything was offered to it.
        delivered: revision of the last entry that its watcher saw through; 0 if nobody could continue from there.
        is_up_to_date: whether the watcher lives from what waits here alone.
        narrowed: another condition for entries, for as long as one is set.
        rows: rows of a state that its watcher did not give to its client yet.
    """

    def __init__(self, start: int, wants: Wants, limits: QueueLimits) -> None:
        self.start = start
        self.position = start
        self.delivered = 0
        self.is_up_to_date = False
        self.narrowed: Wants | None = None
        self.rows: deque[Any] = deque()
        self._wants = wants
        self._limits = limits
        self._waiting: deque[SharedEvent] = deque()
        self._waiting_bytes = 0
        self._waiter: asyncio.Future[bool] | None = None
        self._awaited_position: int | None = None
        self._error: ApiError | None = None
        self._sending_since_s: float | None = None
        self._loop = asyncio.get_running_loop()

    # -- the hub's side

    def offer(self, batch: Sequence[SharedEvent], position: int) -> None:
        """Take what is wanted of a batch that reaches up to `position`; a watcher that is too slow ends here."""
        if self._error is not None:
            return
        for shared in batch:
            if self._wants(shared) and (self.narrowed is None or self.narrowed(shared)):
                self._waiting.append(shared)
                self._waiting_bytes += shared.size_bytes
        self.position = position
        if self._fills(1.0):
            self.end(errors.watch_too_slow(self.delivered))
        elif self._waiting or (self._awaited_position is not None and position >= self._awaited_position):
            self._wake()

    def end(self, error: ApiError) -> None:
        """Let the watcher fail with the error, and what waits for it go; the first end counts."""
        if self._error is None:
            self._error = error
            self._waiting.clear()
            self.rows.clear()
            self._waiting_bytes = 0
            self._wake()

    @property
    def covered(self) -> int:
        """Revision from which another watch can continue: larger than `delivered` if nothing came that was wanted."""
        is_idle = self.is_up_to_date and not self._waiting and self._error is None
        return max(self.position, self.delivered) if is_idle else self.delivered

    @property
    def has_ended(self) -> bool:
        """Whether nothing more comes."""
        return self._error is not None

    @property
    def waiting_count(self) -> int:
        """Entries that wait for the watcher."""
        return len(self._waiting)

    def is_worth_waiting_for(self, now_s: float, patience_s: float) -> bool:
        """Whether much waits for a watcher whose client takes messages, none of them for longer than the patience."""
        is_taking = self._sending_since_s is None or now_s - self._sending_since_s < patience_s
        return is_taking and self._fills(0.5)

    # -- the watcher's side

    def begin_sending(self) -> None:
        """Say that from now on it is the client who is waited for."""
        self._sending_since_s = self._loop.time()

    def end_sending(self) -> None:
        """Say that the client took the message."""
        self._sending_since_s = None

    def take(self, up_to: int | None = None) -> SharedEvent | None:
        """Take the next entry if one waits, with a revision of `up_to` at most.

        Raises:
            ApiError: the subscription has ended.
        """
        self._require_going_on()
        if not self._waiting or (up_to is not None and self._waiting[0].revision > up_to):
            return None
        shared = self._waiting.popleft()
        self._waiting_bytes -= shared.size_bytes
        return shared

    async def next(self, timeout_s: float | None = None) -> SharedEvent | None:
        """Wait for the next entry and take it; None if none came in time. Raises as `take`."""
        shared = self.take()
        if shared is None and await self._wait(timeout_s):
            shared = self.take()
        return shared

    async def reach(self, revision: int) -> None:
        """Wait until everything up to the revision was offered. Raises as `take`."""
        self._awaited_position = revision
        try:
            while True:
                self._require_going_on()
                if self.position >= revision:
                    return
                await self._wait()
        finally:
            self._awaited_position = None

    async def _wait(self, timeout_s: float | None = None) -> bool:
        """Wait to be woken; False if that did not happen in time."""
        waiter: asyncio.Future[bool] = self._loop.create_future()
        self._waiter = waiter
        # Not asyncio.timeout, which takes several times as long, for each message of each watch that has bookmarks.
        timer = None if timeout_s is None else self._loop.call_later(timeout_s, _settle, waiter, False)
        try:
            return await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        if self._waiter is not None:
            _settle(self._waiter, True)

    def _fills(self, share: float) -> bool:
        return (
            len(self._waiting) > share * self._limits.entry_count
            or self._waiting_bytes > share * self._limits.total_bytes
        )

    def _require_going_on(self) -> None:
        if self._error is not None:
            raise self._error


def _settle(waiter: asyncio.Future[bool], was_woken: bool) -> None:
    if not waiter.done():
        waiter.set_result(was_woken)
