"""A database that was restored from an older backup counts on from what hosts know, and never backwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from controlplane.domain.event import EventFilter, EventType, Severity
from controlplane.domain.fencing import Counters
from controlplane.domain.node import Node
from controlplane.state.interface import Store
from limiquantix.errors import Aborted
from tests.support.builders import START_OF_TIME, make_id, make_node
from tests.support.fences import ended, opened, written
from tests.support.stores import add, node_in, open_store


@pytest.fixture
async def node(store: Store) -> Node:
    new = make_node()
    await add(store, new)
    return new


@pytest.fixture
async def other(url: str, store: Store) -> AsyncIterator[Store]:
    async with open_store(url) as second:
        yield second


async def learn(store: Store, **known: object) -> Counters:
    return await store.run(lambda tx: tx.raise_counters(Counters(**known)))  # type: ignore[arg-type]


async def token_of(store: Store, node_id: str) -> int:
    found = await node_in(store, node_id)
    assert found is not None
    return found.fence_token


async def told(store: Store) -> list[str]:
    entries = await store.read(lambda tx: tx.newest_events(EventFilter(""), 100))
    return [entry.event.message for entry in entries if entry.event.type == EventType.HA_COUNTERS_RAISED]


async def test_larger_numbers_are_taken_over_and_the_log_says_so(store: Store, node: Node) -> None:
    await store.run(lambda tx: tx.take_leadership("a", "host-a", START_OF_TIME))

    raised = await learn(store, epoch=17, ha_version=5, tokens={node.id: 9})

    assert raised == Counters(17, 6, {node.id: 9})
    assert (await store.read(lambda tx: tx.leadership())).epoch == 17
    settings = await store.read(lambda tx: tx.ha_settings())
    assert (settings.version, settings.is_armed) == (6, True)
    assert await token_of(store, node.id) == 9
    (message,) = await told(store)
    assert "epoch 17, version 6 of the settings, fence tokens of 1 nodes" in message
    (entry,) = [
        each
        for each in await store.read(lambda tx: tx.newest_events(EventFilter(""), 100))
        if each.event.type == EventType.HA_COUNTERS_RAISED
    ]
    assert entry.event.severity == Severity.CRITICAL


async def test_who_led_before_writes_nothing_more_and_the_next_epoch_is_larger(store: Store) -> None:
    before = await store.run(lambda tx: tx.take_leadership("a", "host-a", START_OF_TIME))
    await learn(store, epoch=40)

    with pytest.raises(Aborted, match="is over"):
        await store.run(lambda tx: tx.require_epoch(before.epoch))
    assert (await store.run(lambda tx: tx.take_leadership("a", "host-a", START_OF_TIME))).epoch == 41


async def test_next_fence_has_a_larger_token_than_any_host_knows(store: Store, node: Node) -> None:
    second = make_node()
    await add(store, second)
    await learn(store, tokens={second.id: 30})

    assert (await opened(store, node.id)).token == 31


async def test_smaller_and_equal_numbers_change_nothing(store: Store, node: Node) -> None:
    await learn(store, epoch=17, ha_version=5, tokens={node.id: 9})
    version = (await node_in(store, node.id) or node).version

    for known in ({"epoch": 17, "ha_version": 6, "tokens": {node.id: 9}}, {"epoch": 3, "tokens": {node.id: 2}}, {}):
        assert not (await learn(store, **known)).is_any

    assert (await node_in(store, node.id) or node).version == version
    assert len(await told(store)) == 1


async def test_token_of_a_fence_that_is_on_record_tells_nothing_new(store: Store, node: Node) -> None:
    fence = await opened(store, node.id)
    assert not (await learn(store, tokens={node.id: fence.token})).is_any

    await written(store, ended(fence))

    assert not (await learn(store, tokens={node.id: fence.token})).is_any
    assert await told(store) == []


async def test_unknown_node_is_left_out(store: Store) -> None:
    assert not (await learn(store, tokens={make_id(): 5})).is_any


async def test_of_several_processes_that_learn_the_same_one_tells_it(store: Store, other: Store, node: Node) -> None:
    found = await asyncio.gather(*(learn(each, epoch=9, tokens={node.id: 4}) for each in (store, other, store, other)))

    assert [each.is_any for each in found].count(True) == 1
    assert len(await told(store)) == 1
