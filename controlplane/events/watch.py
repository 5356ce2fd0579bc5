"""A watch: what there is now, then every change of it, in order, nothing lost and nothing twice.

The two are joined without a lock. First the watch subscribes, then it reads the state in pages, each in a transaction
of its own that also tells how far the log reached and which committed entries had no revision yet. A later entry
belongs to one page, by its resource's place in the order of rows. It is in that page's rows if its revision had been
reached or if it was one of those without; else it is new. That is exact, whatever is written meanwhile, and costs one
comparison an entry. One thing changes its place: a VM that is removed and found again on its host, with its id. If that
happens while the state is read, all that came after its removal is told, even if a later page had it.

Until all that a page already had is past in the log, no revision says where a client could continue, so messages carry
0. The last message of that phase, which is held back until then, carries the revision that covers everything so far.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from controlplane.domain import errors
from controlplane.domain.documents import timestamp
from controlplane.domain.event import Change, LogPosition
from controlplane.domain.query import Cursor
from controlplane.events.hub import EventHub
from controlplane.events.shared import SharedEvent, read_after
from controlplane.events.subscription import Subscription
from controlplane.state.interface import Store, Transaction

MessageT = TypeVar("MessageT")
ToldT_co = TypeVar("ToldT_co", covariant=True)
ResultT = TypeVar("ResultT")

Place = tuple[int, int, str]
"""Where a resource's row stands in the order of rows: seconds and nanoseconds of its creation, then its id."""


@dataclass(frozen=True, slots=True)
class WatchConfig:
    """Bounds of all watches of a process together."""

    page_size: int = 200
    """Rows of a state that are read at once; a watcher that is slow to take them keeps one page in memory."""
    reader_count: int = 4
    """Watches that may read states or old entries at once; the others wait, so that calls are not kept waiting."""
    bookmark_s: float = 10.0


@dataclass(frozen=True, slots=True)
class StatePage(Generic[MessageT]):
    """Some rows of the state, as messages, oldest first; `next_cursor` is None on the last page."""

    messages: Sequence[MessageT]
    next_cursor: Cursor | None = None


class View(Protocol[ToldT_co]):
    """What one watch shows. An object for each watch, since it may remember how far it came."""

    @property
    def is_over(self) -> bool:
        """Whether the change just told was the last one there can be."""
        ...

    @property
    def sends_bookmarks(self) -> bool:
        """Whether the caller asked for bookmarks."""
        ...

    def wants(self, shared: SharedEvent) -> bool:
        """Whether the entry may be in view; quick, since it is asked for every entry."""
        ...

    def change(self, shared: SharedEvent) -> ToldT_co | None:
        """Tell a wanted entry as this watch sees it; None if it is not in view."""
        ...

    def bookmark(self, revision: int) -> ToldT_co:
        """Make the message that says that everything up to the revision was sent."""
        ...

    async def require_something_after(self, tx: Transaction, revision: int) -> None:
        """Raise NotFound if what is watched is gone, and was already at that revision."""
        ...


class StateView(View[MessageT], Protocol[MessageT]):
    """A view that begins with what there is: rows, in the order of their creation and ids."""

    async def read_page(self, tx: Transaction, after: Cursor | None, limit: int) -> StatePage[MessageT]:
        """Read up to `limit` rows. Runs in the database's thread, where making messages keeps nobody waiting."""
        ...

    def place(self, shared: SharedEvent) -> Place:
        """Where the row of the entry's resource stands among all rows."""
        ...

    def with_revision(self, message: MessageT, revision: int) -> MessageT:
        """Copy a message, with another revision; the given one may be shared."""
        ...


@dataclass(slots=True)
class _State:
    """What the pages read so far already had."""

    bounds: list[Place] = field(default_factory=list)
    revisions: list[int] = field(default_factory=list)
    unnumbered: list[set[str]] = field(default_factory=list)
    removed_at: dict[str, int] = field(default_factory=dict)
    """Revisions of removals that the pages do not have, by what was removed."""
    is_reading: bool = False

    @property
    def revision(self) -> int:
        """What the last page had for certain."""
        return self.revisions[-1]

    def add(self, log: LogPosition, unnumbered: set[str], next_cursor: Cursor | None) -> None:
        """Note a page; the last one has no bound."""
        self.revisions.append(log.revision)
        self.unnumbered.append(unnumbered)
        if next_cursor is not None:
            self.bounds.append(_place_of(next_cursor))

    def may_lack(self, shared: SharedEvent, place: Place) -> bool:
        """Whether to keep an entry that comes now until `lacks` is asked.

        A page that is not read yet will have all that came before; only while one is being read, nobody can tell.
        """
        is_ahead = bisect_left(self.bounds, place) >= len(self.revisions)
        if is_ahead and not self._is_of_removed(shared):
            return self.is_reading
        return self.lacks(shared, place)

    def lacks(self, shared: SharedEvent, place: Place) -> bool:
        """Whether the pages read so far do not have the change, nor will those still to come."""
        entry = shared.entry
        page = bisect_left(self.bounds, place)
        is_new = self._is_of_removed(shared) or (
            page < len(self.revisions)
            and shared.revision > self.revisions[page]
            and entry.id not in self.unnumbered[page]
        )
        if is_new and entry.change is Change.DELETED:
            self.removed_at.setdefault(entry.resource_id, shared.revision)
        return is_new

    def _is_of_removed(self, shared: SharedEvent) -> bool:
        return shared.revision > self.removed_at.get(shared.entry.resource_id, shared.revision)


class Watches:
    """Runs watches, each on behalf of one call."""

    def __init__(self, store: Store, hub: EventHub, config: WatchConfig | None = None) -> None:
        self._store = store
        self._hub = hub
        self._config = config or WatchConfig()
        self._reading = asyncio.Semaphore(self._config.reader_count)

    async def watch(self, view: StateView[MessageT], from_revision: int) -> AsyncGenerator[MessageT, None]:
        """Give the state and then each change, or each change after a revision (0: none), until the view is over.

        Raises:
            NotFound: what is watched does not exist.
            OutOfRange: the log does not hold what came after `from_revision`.
            ResourceExhausted: the caller does not take the messages fast enough.
            Unavailable: the database does not answer, or the process is stopping.
        """
        async with self._hub.subscribed(view.wants) as subscription:
            beginning = self._missed(view, subscription, from_revision) if from_revision else None
            async with aclosing(
                self._all(view, subscription, beginning or self._state(view, subscription))
            ) as messages:
                async for message in messages:
                    yield message

    async def follow(self, view: View[MessageT], from_revision: int) -> AsyncGenerator[MessageT, None]:
        """Give what happens from now on, or after a revision (0: none). Raises as `watch`."""
        async with self._hub.subscribed(view.wants) as subscription:
            beginning = self._missed(view, subscription, from_revision or subscription.start)
            async with aclosing(self._all(view, subscription, beginning)) as messages:
                async for message in messages:
                    yield message

    async def _all(
        self, view: View[MessageT], subscription: Subscription, beginning: AsyncGenerator[MessageT, None]
    ) -> AsyncGenerator[MessageT, None]:
        """Give the beginning and then what changes, with an eye on how long the client takes."""
        for part in (beginning, self._changes(view, subscription)):
            async with aclosing(part):
                async for message in part:
                    subscription.begin_sending()
                    yield message
                    subscription.end_sending()

    async def _state(self, view: StateView[MessageT], subscription: Subscription) -> AsyncGenerator[MessageT, None]:
        """Give all rows, with what changes meanwhile; then the log goes on from `subscription.delivered`."""
        state = _State()
        subscription.narrowed = lambda shared: state.may_lack(shared, view.place(shared))
        held: MessageT | None = None
        after: Cursor | None = None
        while True:
            page = await self._read_state(view, state, after)
            subscription.rows.extend(page.messages)
            after = page.next_cursor
            del page
            while subscription.rows:
                if held is not None:
                    yield held
                held = subscription.rows.popleft() if subscription.rows else None
            if after is None:
                break
            for message in _new_to(state, view, subscription):
                if held is not None:
                    yield held
                held = message
        revision = await self._hub.settled() if any(state.unnumbered) else state.revision
        self._hub.wake()
        await subscription.reach(revision)
        for message in _new_to(state, view, subscription, revision):
            if held is not None:
                yield held
            held = message
        subscription.narrowed = None
        subscription.delivered = revision
        if held is not None:
            yield view.with_revision(held, revision)
        if view.sends_bookmarks and not view.is_over:
            yield view.bookmark(revision)

    async def _missed(
        self, view: View[MessageT], subscription: Subscription, after: int
    ) -> AsyncGenerator[MessageT, None]:
        """Give the changes after a revision, up to the subscription's start."""
        log = await self._read(partial(_log_if_there, view, after))
        if not log.compacted_revision <= after <= log.revision:
            raise errors.revision_unavailable(after, log.compacted_revision, log.revision)
        subscription.delivered = after
        while after < subscription.start:
            log, batch = await self._read(partial(_read_after, after, self._config.page_size))
            if not batch or batch[0].revision != after + 1:
                raise errors.revision_unavailable(after, log.compacted_revision, log.revision)
            for shared in batch:
                if shared.revision > subscription.start:
                    return
                subscription.delivered = shared.revision
                if view.wants(shared) and (message := view.change(shared)) is not None:
                    yield message
                    if view.is_over:
                        return
            after = batch[-1].revision

    async def _changes(self, view: View[MessageT], subscription: Subscription) -> AsyncGenerator[MessageT, None]:
        """Give the changes that the hub hands out."""
        now_s = asyncio.get_running_loop().time
        subscription.is_up_to_date = True
        sent_s = now_s()
        while not view.is_over:
            patience_s = sent_s + self._config.bookmark_s - now_s() if view.sends_bookmarks else None
            shared = await subscription.next(patience_s) if patience_s is None or patience_s > 0 else None
            if shared is None:
                subscription.delivered = subscription.covered
                yield view.bookmark(subscription.delivered)
            elif shared.revision <= subscription.delivered:
                continue  # it asked to begin later than the hub was when it came
            else:
                subscription.delivered = shared.revision
                message = view.change(shared)
                if message is None:
                    continue
                yield message
            sent_s = now_s()

    async def _read_state(self, view: StateView[MessageT], state: _State, after: Cursor | None) -> StatePage[MessageT]:
        async with self._reading:
            state.is_reading = True
            try:
                found = await self._store.read(partial(_read_page, view, after, self._config.page_size))
            finally:
                state.is_reading = False
        log, unnumbered, page = found
        state.add(log, unnumbered, page.next_cursor)
        return page

    async def _read(self, work: Callable[[Transaction], Awaitable[ResultT]]) -> ResultT:
        async with self._reading:
            return await self._store.read(work)


def _new_to(
    state: _State, view: StateView[MessageT], subscription: Subscription, up_to: int | None = None
) -> Iterator[MessageT]:
    """Take what waits now, and tell what the state does not have, as part of it."""
    while not view.is_over and (shared := subscription.take(up_to)) is not None:
        if state.lacks(shared, view.place(shared)) and (message := view.change(shared)) is not None:
            yield view.with_revision(message, 0)


async def _read_page(
    view: StateView[MessageT], after: Cursor | None, limit: int, tx: Transaction
) -> tuple[LogPosition, set[str], StatePage[MessageT]]:
    return await tx.log_position(), await tx.unnumbered_event_ids(), await view.read_page(tx, after, limit)


async def _log_if_there(view: View[Any], revision: int, tx: Transaction) -> LogPosition:
    log = await tx.log_position()
    if log.compacted_revision <= revision <= log.revision:
        await view.require_something_after(tx, revision)
    return log


async def _read_after(revision: int, limit: int, tx: Transaction) -> tuple[LogPosition, Sequence[SharedEvent]]:
    return await tx.log_position(), await read_after(tx, revision, limit)


def _place_of(cursor: Cursor) -> Place:
    moment = timestamp(cursor.created_at)
    return moment.seconds, moment.nanos, cursor.id
