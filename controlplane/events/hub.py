"""Reads the log of events once for all watchers of this process.

One background task. When a commit of this process wakes it, and else ten times a second, it gives revisions to the
entries that have none, whichever process wrote them, reads what is new and puts it into each watcher's queue. Nothing
is kept here: what a watcher missed before it came, it reads from the database.

After thousands of changes at once it is this process that cannot send as fast as it reads. Then the hub waits a little
for those watchers whose clients do take their messages. For a client that does not, it never waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import structlog

from controlplane.domain import errors
from controlplane.domain.event import LogPosition
from controlplane.events.shared import SharedEvent, read_after
from controlplane.events.subscription import QueueLimits, Subscription, Wants
from controlplane.state.interface import Store, Transaction
from limiquantix.errors import ApiError, Reason, ResourceExhausted, Unavailable

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class HubConfig:
    """Intervals in seconds and bounds of the hub."""

    poll_s: float = 0.1
    """How late at most an entry of another process is seen."""
    idle_poll_s: float = 1.0
    """The same while nobody watches: only to number entries a few at a time."""
    pause_s: float = 0.01
    """Between two looks under load, so that many commits share one."""
    batch_count: int = 200
    queue: QueueLimits = field(default_factory=QueueLimits)
    subscription_count: int = 800
    """Watches at once. Each holds one of the calls that a server takes at once, and others must get through too."""
    patience_s: float = 1.0
    """Time that the hub leaves in all, in one look, to watchers that are behind."""
    patience_with_message_s: float = 0.25
    """A client that takes longer for one message gets none of it."""
    settle_s: float = 10.0
    first_backoff_s: float = 0.1
    longest_backoff_s: float = 2.0


class EventHub:
    """Where watchers subscribe. `run` has to run for them to hear of anything."""

    def __init__(self, store: Store, config: HubConfig | None = None) -> None:
        self._store = store
        self._config = config or HubConfig()
        self._subscriptions: set[Subscription] = set()
        self._position: int | None = None  # nothing is read while nobody watches
        self._woken = asyncio.Event()
        self._settling: list[asyncio.Future[int]] = []
        self._is_stopped = False

    @property
    def subscription_count(self) -> int:
        """Watchers whose calls have not ended."""
        return len(self._subscriptions)

    @property
    def going_on_count(self) -> int:
        """Those of them whose client did not fall behind."""
        return sum(not each.has_ended for each in self._subscriptions)

    def wake(self) -> None:
        """Say that something was committed; cheap, and may be said for nothing."""
        if self._subscriptions:
            self._woken.set()

    def stop(self) -> None:
        """End all watches, and refuse new ones: the process is about to stop. Safe to call twice."""
        self._is_stopped = True
        for subscription in self._subscriptions:
            subscription.end(_stopping(subscription.covered))

    @asynccontextmanager
    async def subscribed(self, wants: Wants) -> AsyncIterator[Subscription]:
        """Subscribe to what is wanted of everything that is committed from now on, for as long as the context is open.

        Raises:
            ResourceExhausted: there are too many watches.
            Unavailable: the database does not answer, or the process is about to stop.
        """
        if len(self._subscriptions) >= self._config.subscription_count:
            raise _too_many(self._config.subscription_count)
        if self._position is None:
            found = await self._store.read(lambda tx: tx.log_position())
            if self._position is None:
                self._position = found.revision
        if self._is_stopped:
            raise _stopping(0)
        subscription = Subscription(self._position, wants, self._config.queue)
        self._subscriptions.add(subscription)
        self._woken.set()
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            if not self._subscriptions:
                self._position = None

    async def settled(self) -> int:
        """Return a revision that covers all that is committed before the call; subscriptions reached it.

        Raises:
            Unavailable: the database does not answer.
        """
        waiter: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._settling.append(waiter)
        self._woken.set()
        try:
            async with asyncio.timeout(self._config.settle_s):
                return await waiter
        except TimeoutError as error:
            raise errors.state_unavailable("the log of events could not be read in time") from error

    async def run(self) -> None:
        """Read and hand out until cancelled; a database that is away for a while loses nothing."""
        backoff_s = 0.0
        while True:
            await self._pause(backoff_s)
            try:
                await self._look()
            except ApiError as error:
                if not backoff_s:
                    _log.warning("event_log_not_read", reason=error.reason, message=error.message)
                backoff_s = min(max(backoff_s * 2, self._config.first_backoff_s), self._config.longest_backoff_s)
            else:
                backoff_s = 0.0

    async def _pause(self, backoff_s: float) -> None:
        """Wait for a reason to look, but at least a little, and after failures longer."""
        await asyncio.sleep(backoff_s or self._config.pause_s)
        if backoff_s:
            return
        try:
            async with asyncio.timeout(self._config.poll_s if self._subscriptions else self._config.idle_poll_s):
                await self._woken.wait()
        except TimeoutError:
            pass

    async def _look(self) -> None:
        """Number what has no revision, and hand out everything up to the end of the log."""
        self._woken.clear()
        settling, self._settling = self._settling, []
        try:
            await self._number()
            end = await self._hand_out()
        except BaseException as error:
            for waiter in settling:
                if not waiter.done() and isinstance(error, ApiError):
                    waiter.set_exception(error)
            raise
        for waiter in settling:
            if not waiter.done():
                waiter.set_result(end)

    async def _number(self) -> None:
        """Give revisions to all entries that are committed now; later ones may have to wait for the next look."""
        waiting = await self._store.read(lambda tx: tx.unnumbered_event_ids())

        async def number(tx: Transaction) -> set[str]:
            await tx.sequence_events()
            return await tx.unnumbered_event_ids()

        while waiting:
            waiting &= await self._store.run(number)

    async def _hand_out(self) -> int:
        """Read what is new for the watchers and offer it to them; returns the end of the log."""
        patience_ends_s = self._loop_time() + self._config.patience_s
        while True:
            position = self._position
            log, batch = await self._store.read(partial(self._read, after=position))
            if position is None or position != self._position:
                return log.revision  # they are gone, or others began elsewhere meanwhile
            if log.revision < position or (batch and batch[0].revision != position + 1):
                self._lose_track(log)
                return log.revision
            if batch:
                self._offer(batch)
            if len(batch) < self._config.batch_count:
                return log.revision
            await self._let_catch_up(patience_ends_s)

    async def _read(self, tx: Transaction, after: int | None) -> tuple[LogPosition, Sequence[SharedEvent]]:
        log = await tx.log_position()
        return log, [] if after is None else await read_after(tx, after, self._config.batch_count)

    def _offer(self, batch: Sequence[SharedEvent]) -> None:
        self._position = batch[-1].revision
        for subscription in self._subscriptions:
            was_going_on = not subscription.has_ended
            subscription.offer(batch, self._position)
            if was_going_on and subscription.has_ended:
                _log.warning("watch_too_slow", delivered_revision=subscription.delivered)

    async def _let_catch_up(self, until_s: float) -> None:
        patience_s = self._config.patience_with_message_s
        while (now_s := self._loop_time()) < until_s:
            if not any(each.is_worth_waiting_for(now_s, patience_s) for each in self._subscriptions):
                return
            await asyncio.sleep(self._config.pause_s)

    def _lose_track(self, log: LogPosition) -> None:
        """End all watches: what comes next in the log is gone, or the database was put back to an earlier state."""
        _log.error("event_log_lost_track", position=self._position, oldest=log.compacted_revision, newest=log.revision)
        for subscription in self._subscriptions:
            error = errors.revision_unavailable(subscription.covered, log.compacted_revision, log.revision)
            subscription.end(error)
        self._position = log.revision

    @staticmethod
    def _loop_time() -> float:
        return asyncio.get_running_loop().time()


def _stopping(delivered: int) -> Unavailable:
    return Unavailable(
        Reason.STOPPING,
        "this control plane is stopping; watch again, at another one or in a moment"
        + (f", with from_revision {delivered}" if delivered else ""),
        metadata={"from_revision": str(delivered)} if delivered else {},
        retry_after_s=1.0,
    )


def _too_many(limit: int) -> ResourceExhausted:
    return ResourceExhausted(
        Reason.TOO_MANY_WATCHES,
        f"this control plane has {limit} watches already; end some, or watch at another one",
        retry_after_s=5.0,
    )
