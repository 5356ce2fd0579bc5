"""Who decides, from when, and when a process must stop."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

from controlplane.domain.node import Node
from controlplane.ha.model import (
    Effect,
    HaConfig,
    HaState,
    Observed,
    OpenAFence,
)
from controlplane.services.ha_manager import CALM_S
from controlplane.state.interface import Store, Transaction
from tests.support.builders import START_OF_TIME
from tests.support.control_plane_world import World
from tests.support.ha_plane import HaPlane
from tests.support.ha_scene import (
    fenced,
    seen_node,
)

ResultT = TypeVar("ResultT")


async def test_elected_process_takes_an_epoch_once_and_counts_from_its_own_beginning(plane: HaPlane) -> None:
    await plane.round()
    plane.now_s += 5
    await plane.round()

    leadership = await plane.world.store.read(lambda tx: tx.leadership())
    assert (leadership.epoch, leadership.leader_id) == (1, "replica-1")
    assert [state.began_s for state, _ in plane.script.given] == [1000.0, 1000.0]
    assert plane.manager.is_leader


async def test_process_that_is_not_elected_decides_nothing(plane: HaPlane) -> None:
    plane.election.is_elected = False
    await plane.manager.round()

    assert plane.script.seen == []
    assert not plane.manager.is_leader
    assert plane.manager.moment is None


async def test_listening_counts_from_before_the_election_but_not_from_before_a_gap(plane: HaPlane) -> None:
    plane.election.is_elected = False
    for now_s in (1000.0, 1003.0, 1010.0, 1011.0):  # 7 s are more than half of the silence that makes a node suspect
        plane.now_s = now_s
        await plane.manager.round()
    plane.election.is_elected = True
    await plane.round()

    assert [(state.began_s, state.listening_s) for state, _ in plane.script.given] == [(1011.0, 1010.0)]


async def test_process_deposed_between_rounds_stops_and_begins_no_epoch_at_once(
    plane: HaPlane, nodes: list[Node]
) -> None:
    await plane.round()
    await plane.world.store.run(lambda tx: tx.take_leadership("replica-2", "b", plane.now()))
    count = len(plane.script.seen)

    plane.script.effects = [OpenAFence(nodes[0].id, "it was silent")]
    await plane.manager.round()
    await plane.manager.round()
    assert len(plane.script.seen) == count
    assert not plane.manager.is_leader
    assert await plane.fences() == []

    plane.now_s += CALM_S
    await plane.round()
    assert plane.manager.is_leader
    assert (await plane.world.store.read(lambda tx: tx.leadership())).epoch == 3


async def test_process_that_loses_the_election_while_it_decides_writes_nothing(
    world: World, plane: HaPlane, nodes: list[Node]
) -> None:
    def lose_and_open(
        config: HaConfig, state: HaState, observed: Observed, now_s: float
    ) -> tuple[HaState, list[Effect]]:
        loser.election.is_elected = False
        return state, [OpenAFence(nodes[0].id, "silent")]

    loser = HaPlane(world, plane.coordinator, step=lose_and_open)
    await loser.manager.round()

    assert await plane.fences() == []
    assert not loser.manager.is_leader


class LateStore:
    """Another process begins an epoch each time after something was read."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner

    async def read(self, work: Callable[[Transaction], Awaitable[ResultT]]) -> ResultT:
        found = await self._inner.read(work)
        await self._inner.run(lambda tx: tx.take_leadership("replica-2", "b", START_OF_TIME))
        return found

    async def run(self, work: Callable[[Transaction], Awaitable[ResultT]]) -> ResultT:
        return await self._inner.run(work)


async def test_write_of_a_stale_epoch_ends_the_term(world: World, plane: HaPlane, nodes: list[Node]) -> None:
    late = HaPlane(world, plane.coordinator, inner=cast("Store", LateStore(world.store)))
    await late.round(OpenAFence(nodes[0].id, "silent"))

    assert not late.manager.is_leader
    assert await plane.fences() == []
    assert plane.coordinator.marks == {}


async def test_new_leader_sees_an_open_fence_from_its_own_first_step_on(plane: HaPlane, nodes: list[Node]) -> None:
    fence = await fenced(plane, nodes[0].id)
    plane.coordinator.marks.clear()  # as if it had died before it published
    other = HaPlane(plane.world, plane.coordinator, "replica-2", now_s=5000.0)

    observed = await other.round()

    found = seen_node(observed, nodes[0].id).fence
    assert found is not None
    assert (found.id, found.is_proven) == (fence.id, False)
    assert plane.coordinator.marks == {nodes[0].id: fence.token}
    assert other.script.given[0] == (other.script.given[0][0], 5000.0)
    assert other.script.given[0][0].nodes == {}  # nothing of what the other one waited for


async def test_process_that_ends_lets_another_one_be_elected_at_once(plane: HaPlane) -> None:
    election = plane.coordinator.election
    running = asyncio.create_task(plane.manager.run())
    async with asyncio.timeout(60):
        for pause_s in itertools.repeat(0.01):
            if plane.manager.is_leader:
                break
            await asyncio.sleep(pause_s)
    running.cancel()
    await asyncio.wait([running])

    assert not election.is_elected
    assert not plane.manager.is_leader
