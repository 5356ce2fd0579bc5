"""Fences as they are recorded and published, by processes that may die over any of it."""

from __future__ import annotations

import asyncio

import pytest

from controlplane.domain.event import EventType
from controlplane.domain.fencing import FenceProof, FenceState
from controlplane.domain.node import Node, Phase
from controlplane.ha.model import (
    EndFence,
    NodeState,
    OpenAFence,
    ProofMethod,
    ProveFence,
    WithdrawFence,
)
from controlplane.services.ha_manager import OPENING_S, SWEEP_S
from limiquantix.compute.v1.ha_service_pb2 import FENCE_METHOD_LEASE_EXPIRED
from tests.support.control_plane_world import World
from tests.support.dying_store import DyingStore
from tests.support.ha_plane import FakeCoordinator, HaPlane
from tests.support.ha_scene import (
    event_types,
    fenced,
    proven,
    seen_node,
)


async def test_fence_is_recorded_once_then_published(plane: HaPlane, nodes: list[Node]) -> None:
    observed = await plane.round(OpenAFence(nodes[0].id, "it was silent for 7 s"))
    assert seen_node(observed, nodes[0].id).fence is None

    fence = await plane.the_fence()
    assert (fence.state, fence.epoch, fence.reason) == (FenceState.OPEN, 1, "it was silent for 7 s")
    assert plane.coordinator.marks == {nodes[0].id: fence.token}
    assert EventType.NODE_FENCING in await event_types(plane)

    again = await plane.round(OpenAFence(nodes[0].id, "it was silent for 8 s"))
    assert len(await plane.fences()) == 1
    assert seen_node(again, nodes[0].id).fence is not None


@pytest.mark.parametrize("is_objected", [False, True])
async def test_node_takes_no_vms_once_nobody_objected_to_its_fence_for_long_enough(
    plane: HaPlane, nodes: list[Node], is_objected: bool
) -> None:
    fence = await fenced(plane, nodes[0].id)
    plane.script.states = {nodes[0].id: NodeState(fence_id=fence.id, fence_seen_s=plane.now_s)}
    if is_objected:
        await plane.world.store.run(lambda tx: tx.object_to_fences([nodes[0].id], "replica-2"))
    await plane.round()
    assert (await plane.world.node(nodes[0].id)).phase == Phase.READY

    plane.now_s += plane.config.objection_s
    await plane.round()

    node = await plane.world.node(nodes[0].id)
    assert node.phase == (Phase.READY if is_objected else Phase.NOT_READY)
    assert (EventType.NODE_SILENT in await event_types(plane)) is not is_objected


async def test_fence_that_cannot_be_published_lets_nothing_be_decided_until_it_is(
    plane: HaPlane, nodes: list[Node]
) -> None:
    await plane.round()
    plane.coordinator.is_away = True
    await plane.round(OpenAFence(nodes[0].id, "silent"))
    observed = await plane.round()
    assert "cannot be told" in observed.obstacle
    assert "cannot be told" in plane.manager.obstacle

    plane.coordinator.is_away = False
    observed = await plane.round()
    assert observed.obstacle == ""
    assert plane.manager.obstacle == ""
    assert plane.coordinator.marks == {nodes[0].id: (await plane.the_fence()).token}


async def test_withdrawn_fence_is_taken_back_everywhere(plane: HaPlane, nodes: list[Node]) -> None:
    fence = await fenced(plane, nodes[0].id)
    await plane.round(WithdrawFence(nodes[0].id, fence.id, "it was heard again"))

    assert (await plane.fence(fence.id)).state == FenceState.WITHDRAWN
    assert plane.coordinator.marks == {}
    assert EventType.NODE_FENCE_WITHDRAWN in await event_types(plane)


async def test_proof_is_recorded_with_its_evidence(plane: HaPlane, nodes: list[Node]) -> None:
    fence = await proven(plane, nodes[0].id)

    assert fence.proof == FenceProof(FENCE_METHOD_LEASE_EXPIRED, "13.6 s passed", "replica-1", 1, plane.now())
    assert EventType.NODE_FENCED in await event_types(plane)
    seen = seen_node(await plane.round(), nodes[0].id).fence
    assert seen is not None
    assert seen.is_proven


async def test_fence_that_somebody_objected_to_is_not_proven(plane: HaPlane, nodes: list[Node]) -> None:
    fence = await fenced(plane, nodes[0].id)
    await plane.world.store.run(lambda tx: tx.object_to_fences([nodes[0].id], "replica-2"))

    observed = await plane.round(ProveFence(nodes[0].id, fence.id, ProofMethod.LEASE_EXPIRED, "13.6 s passed"))

    assert (await plane.the_fence()).state == FenceState.OPEN
    found = seen_node(observed, nodes[0].id).fence
    assert found is not None
    assert found.heard_by == "replica-2"


async def test_ended_fence_gives_the_node_back(plane: HaPlane, nodes: list[Node]) -> None:
    fence = await proven(plane, nodes[0].id)
    await plane.round(EndFence(nodes[0].id, fence.id))

    assert (await plane.fence(fence.id)).state == FenceState.ENDED
    assert await plane.fences() == []
    assert plane.coordinator.marks == {}


async def test_mark_left_behind_is_swept_but_not_that_of_a_current_fence(plane: HaPlane, nodes: list[Node]) -> None:
    fence = await fenced(plane, nodes[0].id)
    await plane.round(WithdrawFence(nodes[0].id, fence.id, "heard"))
    plane.coordinator.marks[nodes[0].id] = fence.token  # as if it had died before it took it back
    other = await fenced(plane, nodes[1].id)

    plane.now_s += SWEEP_S
    await plane.round()

    assert plane.coordinator.marks == {nodes[1].id: other.token}


@pytest.mark.parametrize("after_commit", [False, True])
@pytest.mark.parametrize("write", range(1, 8))
async def test_process_that_dies_at_any_write_is_followed_by_one_that_ends_the_story(
    plane: HaPlane, nodes: list[Node], write: int, after_commit: bool
) -> None:
    """Intent, proof and end, each by whichever process comes to it."""
    dying = DyingStore(plane.world.store)
    first = HaPlane(plane.world, plane.coordinator, "doomed", inner=dying)
    dying.die_at(write, after_commit=after_commit)
    doomed = asyncio.create_task(_story(first, nodes[0].id))
    died = asyncio.create_task(dying.died.wait())
    await asyncio.wait({doomed, died}, return_when=asyncio.FIRST_COMPLETED)
    doomed.cancel()
    died.cancel()

    await _story(plane, nodes[0].id)

    assert await plane.fences() == []
    plane.now_s += SWEEP_S
    await plane.round()
    assert plane.coordinator.marks == {}
    assert (await plane.world.store.read(lambda tx: tx.leadership())).leader_id == "replica-1"


async def _story(plane: HaPlane, node_id: str) -> None:
    """Do what the core would, level by level, until the node was fenced and given back."""
    for _ in range(12):
        await plane.round()
        fences = await plane.fences()
        if not fences:
            ended = await plane.world.store.read(lambda tx: tx.marks())
            if ended.tokens.get(node_id):
                return
            await plane.round(OpenAFence(node_id, "silent"))
        elif fences[0].state == FenceState.OPEN:
            await plane.round(ProveFence(node_id, fences[0].id, ProofMethod.LEASE_EXPIRED, "it was long enough"))
        else:
            await plane.round(EndFence(node_id, fences[0].id))


async def test_mark_of_a_time_that_the_database_lost_is_swept_and_hosts_are_commanded_again(
    plane: HaPlane, nodes: list[Node]
) -> None:
    plane.coordinator.marks[nodes[0].id] = 50  # of a fence that ended after the backup was made
    plane.now_s += SWEEP_S
    await plane.round()
    assert (await plane.world.node(nodes[0].id)).fence_token == 50
    assert plane.coordinator.marks == {nodes[0].id: 50}

    plane.now_s += SWEEP_S
    await plane.round()

    assert plane.coordinator.marks == {}
    assert EventType.HA_COUNTERS_RAISED in await event_types(plane)


async def test_fences_are_opened_only_for_a_while_upon_one_decision(world: World, nodes: list[Node]) -> None:
    coordinator = FakeCoordinator()
    plane = HaPlane(world, coordinator, clock_s=lambda: 1000.0 + 2 * OPENING_S * len(coordinator.marks))

    await plane.round(*(OpenAFence(node.id, "it was silent") for node in nodes))

    assert [fence.node_id for fence in await plane.fences()] == [nodes[0].id]
