"""Measures of nodes, one stream to each node's daemon for however many watch it here.

A watcher that is slow gets the newest measures and misses those between, so nothing is queued for anybody. The stream
to a node is opened when its first watcher comes, as fast as the fastest wants it, and ended when its last one leaves.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

from controlplane.daemons.interface import DaemonPool
from controlplane.domain import errors
from controlplane.domain.node import Node
from limiquantix.errors import ApiError, Reason, ResourceExhausted, Unavailable
from limiquantix.node.v1.node_daemon_pb2 import NodeMetrics, StreamMetricsRequest

MAX_WATCHERS: Final = 1000
"""Of all nodes together; each costs a task and a message."""
LONGEST_SILENCE_S: Final = 30.0
"""Beyond the interval: the longest that a daemon whose hypervisor hangs takes for one reading, twice."""
_EARLY_SHARE: Final = 0.75
"""Measures that come this share of a watcher's interval after the last ones are its next: clocks are not exact."""


@dataclass(eq=False)
class _Watcher:
    interval_s: int


@dataclass(eq=False)
class _Feed:
    """The stream to one node's daemon. `number` counts its messages."""

    node: Node
    watchers: set[_Watcher] = field(default_factory=set)
    interval_s: int = 0
    newest: NodeMetrics | None = None
    number: int = 0
    failure: ApiError | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def tell(self) -> None:
        """Wake everybody who waits."""
        self.news.set()
        self.news = asyncio.Event()


class MetricsFeeds:
    """All feeds of this process.

    Args:
        now_s: the clock of watchers' intervals.
    """

    def __init__(
        self,
        daemons: DaemonPool,
        *,
        longest_silence_s: float = LONGEST_SILENCE_S,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._daemons = daemons
        self._now_s = now_s
        self._longest_silence_s = longest_silence_s
        self._feeds: dict[str, _Feed] = {}
        self._watcher_count = 0
        self._is_stopping = False

    @property
    def feed_count(self) -> int:
        """How many nodes are asked at the moment."""
        return len(self._feeds)

    async def watch(self, node: Node, interval_s: int) -> AsyncGenerator[NodeMetrics, None]:
        """Yield a node's measures, the first as soon as there are any, then about each `interval_s`.

        The messages are shared: nobody may change them.

        Raises:
            Unavailable: the node does not answer, or this process stops.
            ResourceExhausted: too many watch.
        """
        if self._is_stopping:
            raise _stopping()
        if self._watcher_count >= MAX_WATCHERS:
            raise ResourceExhausted(
                Reason.TOO_MANY_WATCHES,
                f"{self._watcher_count} streams of measures are open, and this control plane takes no more; close some",
            )
        feed = self._feeds.get(node.id)
        if feed is None or feed.failure is not None or feed.node.agent_endpoint != node.agent_endpoint:
            feed = self._feeds[node.id] = _Feed(node)
        watcher = _Watcher(interval_s)
        feed.watchers.add(watcher)
        self._watcher_count += 1
        try:
            self._adjust(feed)
            async with aclosing(self._follow(feed, interval_s)) as measures:
                async for metrics in measures:
                    yield metrics
        finally:
            self._watcher_count -= 1
            feed.watchers.discard(watcher)
            self._adjust(feed)

    async def stop(self) -> None:
        """End every stream; later ones are refused."""
        self._is_stopping = True
        tasks = []
        for feed in tuple(self._feeds.values()):
            feed.failure = _stopping()
            feed.tell()
            if feed.task is not None:
                feed.task.cancel()
                tasks.append(feed.task)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, feed: _Feed, interval_s: int) -> AsyncGenerator[NodeMetrics, None]:
        seen, given_s = 0, -float("inf")
        while True:
            if feed.failure is not None:
                raise feed.failure
            news = feed.news
            if feed.newest is not None and feed.number > seen:
                seen = feed.number
                if self._now_s() - given_s >= _EARLY_SHARE * interval_s:
                    given_s = self._now_s()
                    yield feed.newest
                    continue
            await news.wait()

    def _adjust(self, feed: _Feed) -> None:
        """Have the feed's stream be as fast as its fastest watcher; none at all without any."""
        interval_s = min((watcher.interval_s for watcher in feed.watchers), default=0)
        if interval_s == feed.interval_s:
            return
        feed.interval_s = interval_s
        if feed.task is not None:
            feed.task.cancel()
            feed.task = None
        if interval_s and feed.failure is None:
            feed.task = asyncio.create_task(self._read(feed, interval_s), name="metrics-feed")
        elif self._feeds.get(feed.node.id) is feed:
            del self._feeds[feed.node.id]

    async def _read(self, feed: _Feed, interval_s: int) -> None:
        try:
            stream = self._daemons.daemon(feed.node).metrics(StreamMetricsRequest(interval_seconds=interval_s))
            async with aclosing(stream) as measures:
                while True:
                    async with asyncio.timeout(interval_s + self._longest_silence_s):
                        feed.newest = await anext(measures)
                    feed.number += 1
                    feed.tell()
        except ApiError as error:
            feed.failure = error
        except (TimeoutError, StopAsyncIteration):
            feed.failure = errors.node_silent(feed.node.hostname)
        feed.tell()


def _stopping() -> Unavailable:
    return Unavailable(Reason.STOPPING, "this control plane is stopping; open the stream again", retry_after_s=1.0)
