"""Measures of nodes and VMs: one stream a node for all who watch, ended with the last, and no made-up numbers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from controlplane.domain.node import Node
from controlplane.services import metrics_feeds
from controlplane.services.metrics_feeds import MetricsFeeds
from limiquantix.errors import ApiError, ResourceExhausted, Unavailable
from limiquantix.node.v1 import node_daemon_pb2 as node_v1
from tests.support.builders import make_node
from tests.support.fake_daemons import FakeDaemon, unreachable
from tests.support.private_libvirt_host import eventually

DEADLINE_S = 60.0
SECOND_S = 0.02

T = TypeVar("T")


class OneDaemon:
    """Every node has the same daemon."""

    def __init__(self) -> None:
        self.fake = FakeDaemon(metrics_second_s=SECOND_S)

    def daemon(self, node: Node, epoch: int = 0) -> Any:
        return self.fake


@pytest.fixture
def daemons() -> OneDaemon:
    return OneDaemon()


@pytest.fixture
async def feeds(daemons: OneDaemon) -> AsyncIterator[MetricsFeeds]:
    feeds = MetricsFeeds(daemons, now_s=lambda: time.monotonic() / SECOND_S)
    yield feeds
    await feeds.stop()


async def take(stream: AsyncGenerator[T, None], count: int) -> list[T]:
    async with asyncio.timeout(DEADLINE_S):
        return [await anext(stream) for _ in range(count)]


async def open_streams_are(daemons: OneDaemon, intervals_s: list[int]) -> None:
    """Wait until the daemon has these streams, and no others."""

    async def look() -> bool | None:
        return daemons.fake.metrics_streams == intervals_s or None

    await eventually(look, f"streams {intervals_s}", DEADLINE_S)


async def test_all_watchers_of_a_node_share_one_stream_that_ends_with_the_last(
    feeds: MetricsFeeds, daemons: OneDaemon
) -> None:
    node = make_node()
    streams = [feeds.watch(node, 1) for _ in range(10)]
    await asyncio.gather(*(take(stream, 2) for stream in streams))
    assert daemons.fake.metrics_streams == [1]
    for stream in streams[1:]:
        await stream.aclose()
    await take(streams[0], 1)
    assert daemons.fake.metrics_streams == [1]
    await streams[0].aclose()
    await open_streams_are(daemons, [])
    assert feeds.feed_count == 0


async def test_stream_is_as_fast_as_its_fastest_watcher_wants(feeds: MetricsFeeds, daemons: OneDaemon) -> None:
    node = make_node()
    slow, fast = feeds.watch(node, 60), feeds.watch(node, 1)
    await take(slow, 1)
    assert daemons.fake.metrics_streams == [60]
    await take(fast, 3)
    assert daemons.fake.metrics_streams == [1]
    await fast.aclose()
    await open_streams_are(daemons, [60])
    await slow.aclose()


async def test_watcher_with_a_long_interval_beside_a_fast_one_is_not_flooded(feeds: MetricsFeeds) -> None:
    node = make_node()
    fast, slow = feeds.watch(node, 1), feeds.watch(node, 3600)
    await take(slow, 1)
    second = asyncio.ensure_future(anext(slow))
    await take(fast, 5)
    assert not second.done()
    second.cancel()
    await fast.aclose()


async def test_node_that_cannot_be_reached_is_unavailable_to_all_and_asked_anew_by_the_next(
    feeds: MetricsFeeds, daemons: OneDaemon
) -> None:
    node = make_node()
    streams = [feeds.watch(node, 1) for _ in range(3)]
    await asyncio.gather(*(take(stream, 1) for stream in streams))
    daemons.fake.fail("*", unreachable())
    outcomes = await asyncio.gather(*(take(stream, 100) for stream in streams), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Unavailable] * 3
    assert feeds.feed_count == 0
    with pytest.raises(Unavailable):
        await take(feeds.watch(node, 1), 1)
    daemons.fake.heal()
    again = feeds.watch(node, 1)
    assert await take(again, 1)
    await again.aclose()


async def test_daemon_that_falls_silent_is_unavailable(daemons: OneDaemon) -> None:
    feeds = MetricsFeeds(daemons, longest_silence_s=1.0)
    daemons.fake.metrics_second_s = 3600
    stream = feeds.watch(make_node(), 1)
    await take(stream, 1)
    with pytest.raises(Unavailable, match="stopped sending"):
        await take(stream, 1)


async def test_slow_watcher_gets_the_newest_and_nothing_is_queued_for_it(
    feeds: MetricsFeeds, daemons: OneDaemon
) -> None:
    node = make_node()
    slow, fast = feeds.watch(node, 1), feeds.watch(node, 1)
    await take(slow, 1)
    daemons.fake.measures = node_v1.NodeMetrics(load_1m=1)
    await take(fast, 3)
    daemons.fake.measures = node_v1.NodeMetrics(load_1m=2)
    async with asyncio.timeout(DEADLINE_S):
        while (await anext(fast)).load_1m != 2:
            continue
    (newest,) = await take(slow, 1)
    assert newest.load_1m == 2


async def test_node_that_moved_to_another_endpoint_is_asked_there(feeds: MetricsFeeds, daemons: OneDaemon) -> None:
    node = make_node()
    before, after = feeds.watch(node, 1), feeds.watch(replace(node, agent_endpoint="elsewhere:1"), 1)
    await take(before, 1)
    await take(after, 1)
    assert daemons.fake.metrics_streams == [1, 1]
    await before.aclose()
    await take(after, 2)
    await after.aclose()
    await open_streams_are(daemons, [])
    assert feeds.feed_count == 0


async def test_stopping_ends_every_stream_and_refuses_new_ones(feeds: MetricsFeeds, daemons: OneDaemon) -> None:
    stream = feeds.watch(make_node(), 1)
    await take(stream, 1)
    waiting = asyncio.ensure_future(take(stream, 100))
    await feeds.stop()
    for refused in (waiting, asyncio.ensure_future(take(feeds.watch(make_node(), 1), 1))):
        with pytest.raises(ApiError) as caught:
            await refused
        assert caught.value.reason == "STOPPING"
    await open_streams_are(daemons, [])


async def test_more_watchers_than_a_process_takes_are_refused(feeds: MetricsFeeds, daemons: OneDaemon) -> None:
    node = make_node()
    streams = [feeds.watch(node, 3600) for _ in range(metrics_feeds.MAX_WATCHERS)]
    began_s = time.monotonic()
    await asyncio.gather(*(take(stream, 1) for stream in streams))
    assert time.monotonic() - began_s < DEADLINE_S
    assert daemons.fake.metrics_streams == [3600]
    with pytest.raises(ResourceExhausted):
        await take(feeds.watch(node, 1), 1)
    for stream in streams:
        await stream.aclose()
