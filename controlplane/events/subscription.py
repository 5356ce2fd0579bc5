"""The queue between the hub, which never waits, and one watcher, which may be slow."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
    """

    def __init__(self, start: int, wants: Wants, limits: QueueLimits) -> None:
        self.start = start
        self.position = start
        self.delivered = 0
        self.is_up_to_date = False
        self._wants = wants
        self._limits = limits
        self._waiting: deque[SharedEvent] = deque()
        self._waiting_bytes = 0
        self._woken = asyncio.Event()
        self._awaited_position: int | None = None
        self._error: ApiError | None = None
        self._task: asyncio.Task[object] | None = None
        self._sending_since_s: float | None = None

    # -- the hub's side

    def offer(self, batch: Sequence[SharedEvent], position: int) -> None:
        """Take what is wanted of a batch that reaches up to `position`; a watcher that is too slow ends here."""
        if self._error is not None:
            return
        for shared in batch:
            if self._wants(shared):
                self._waiting.append(shared)
                self._waiting_bytes += shared.size_bytes
        self.position = position
        if len(self._waiting) > self._limits.entry_count or self._waiting_bytes > self._limits.total_bytes:
            self.end(errors.watch_too_slow(self.delivered))
        elif self._waiting or (self._awaited_position is not None and position >= self._awaited_position):
            self._woken.set()

    def end(self, error: ApiError) -> None:
        """Let the watcher fail with the error, and what waits for it go; the first end counts."""
        if self._error is None:
            self._error = error
            self._waiting.clear()
            self._waiting_bytes = 0
            self._woken.set()

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

    def cut_off_if_stuck(self, now_s: float, limit_s: float) -> bool:
        """Cancel the call if its client took nothing of a message for that long; True if so.

        What the transport holds for such a client is small but for the message itself, which may be large, and there is
        no other way to take it back.
        """
        if self._task is None or self._sending_since_s is None or now_s - self._sending_since_s < limit_s:
            return False
        self._sending_since_s = None
        self._task.cancel()
        return True

    # -- the watcher's side

    def begin_sending(self) -> None:
        """Say that from now on it is the client who is waited for."""
        self._task = asyncio.current_task()
        self._sending_since_s = asyncio.get_running_loop().time()

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
        if shared is not None:
            return shared
        try:
            async with asyncio.timeout(timeout_s):
                while shared is None:
                    await self._wait()
                    shared = self.take()
        except TimeoutError:
            pass
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

    async def _wait(self) -> None:
        self._woken.clear()
        await self._woken.wait()

    def _require_going_on(self) -> None:
        if self._error is not None:
            raise self._error
