"""The manager with the real decision, hosts that are heard or not, and a clock that is told."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import replace

import pytest

from controlplane.domain.fencing import Fence, FenceState, NodeGuard
from controlplane.domain.node import Node, Phase
from controlplane.domain.operation import Json
from controlplane.domain.vm import PowerState
from controlplane.ha.model import PowerResult
from controlplane.ha.step import step
from controlplane.power.interface import PowerFailed
from controlplane.services.ha_manager import ROUND_S
from limiquantix.compute.v1.ha_service_pb2 import FENCE_METHOD_LEASE_EXPIRED, FENCE_METHOD_POWER_OFF
from tests.support.control_plane_world import World
from tests.support.ha_plane import FakeController, HaPlane
from tests.support.ha_scene import add_vm, note_guards
from tests.support.migration_cluster import until


@pytest.fixture
async def real(world: World, plane: HaPlane, nodes: list[Node]) -> HaPlane:
    """A process with the real decision, which hears three hosts that fence themselves."""
    real = HaPlane(world, plane.coordinator, step=step)
    await note_guards(real, *(NodeGuard(node.id, 1, True, "", "boot-1", real.now()) for node in nodes))
    await passes(real, 10.0, heard=nodes)
    return real


async def passes(plane: HaPlane, seconds: float, *, heard: Collection[Node]) -> None:
    """Let time pass in rounds, in which some hosts are heard."""
    for _ in range(round(seconds / ROUND_S)):
        plane.now_s += ROUND_S
        for node in heard:
            plane.hear(node.id)
        await plane.manager.round()
        await asyncio.sleep(0)  # what is done beside the loop begins


async def until_fence(plane: HaPlane, state: int, limit_s: float, *, heard: Collection[Node]) -> tuple[Fence, float]:
    """Let time pass until the only fence has a state; returns it and how long that took."""
    began_s = plane.now_s
    while plane.now_s - began_s < limit_s:
        await passes(plane, ROUND_S, heard=heard)
        fences = await plane.fences()
        if fences and fences[0].state == state:
            return fences[0], plane.now_s - began_s
    raise AssertionError(f"no fence came to that in {limit_s} s: {await plane.fences()}")


async def test_silent_host_is_fenced_by_its_lease_no_earlier_than_it_ended_and_its_vm_asked_for(
    real: HaPlane, nodes: list[Node], asked: dict[str, Json]
) -> None:
    vm = await add_vm(real.world, nodes[0].id)
    opened, opened_s = await until_fence(real, FenceState.OPEN, 10, heard=nodes[1:])
    assert opened_s >= real.config.suspect_after_s
    proven, proven_s = await until_fence(real, FenceState.PROVEN, 20, heard=nodes[1:])

    assert proven.id == opened.id
    assert proven.proof is not None
    assert proven.proof.method == FENCE_METHOD_LEASE_EXPIRED
    assert real.config.proof_wait_s <= proven_s <= real.config.proof_wait_s + 3 * ROUND_S
    assert (await real.world.node(nodes[0].id)).phase == Phase.NOT_READY

    await passes(real, 2 * ROUND_S, heard=nodes[1:])
    await real.world.settle()
    (parameters,) = asked.values()
    assert parameters["fence_id"] == proven.id
    assert parameters["target_node_id"] in {node.id for node in nodes[1:]}
    assert f"failover-{vm.id}-{proven.id}-1-1" in asked


async def test_lease_that_a_process_with_longer_times_may_have_granted_is_waited_for(
    real: HaPlane, nodes: list[Node]
) -> None:
    await real.world.store.run(lambda tx: tx.declare_wait(20_000))
    await until_fence(real, FenceState.OPEN, 10, heard=nodes[1:])
    _, proven_s = await until_fence(real, FenceState.PROVEN, 40, heard=nodes[1:])

    assert real.config.proof_wait_s < 20 <= proven_s


async def test_wait_for_the_lease_begins_anew_with_a_new_leader(real: HaPlane, nodes: list[Node]) -> None:
    await until_fence(real, FenceState.OPEN, 10, heard=nodes[1:])
    await passes(real, real.config.proof_wait_s - 2, heard=nodes[1:])
    second = HaPlane(real.world, real.coordinator, "replica-2", step=step, now_s=real.now_s)
    real.election.is_elected = False
    await real.manager.round()

    _, waited_s = await until_fence(second, FenceState.PROVEN, 40, heard=nodes[1:])

    assert waited_s >= real.config.proof_wait_s
    assert (await second.the_fence()).proof is not None


async def test_host_that_another_process_hears_is_not_fenced(real: HaPlane, nodes: list[Node]) -> None:
    fence, _ = await until_fence(real, FenceState.OPEN, 10, heard=nodes[1:])
    await real.world.store.run(lambda tx: tx.object_to_fences([nodes[0].id], "replica-2"))
    await passes(real, ROUND_S, heard=nodes[1:])

    assert (await real.fence(fence.id)).state == FenceState.WITHDRAWN
    assert (await real.world.node(nodes[0].id)).phase == Phase.READY


async def test_power_that_is_cut_is_the_proof_long_before_the_lease(real: HaPlane, nodes: list[Node]) -> None:
    real.controllers.by_hostname[nodes[0].hostname] = FakeController()
    await until_fence(real, FenceState.OPEN, 10, heard=nodes[1:])
    real.power.limit_s = 30
    await passes(real, real.config.objection_s + ROUND_S, heard=nodes[1:])
    fence, _ = await until_cut(real, nodes)

    assert fence.proof is not None
    assert fence.proof.method == FENCE_METHOD_POWER_OFF
    assert (fence.proof.proven_at - fence.opened_at).total_seconds() < real.config.proof_wait_s


async def until_cut(plane: HaPlane, nodes: list[Node]) -> tuple[Fence, float]:
    """Let the cut, which takes real time, come to its end before time goes on by the clock that is told."""
    fence = await plane.the_fence()
    await until(lambda: plane.power.of(fence.id).result is not PowerResult.UNDER_WAY)
    return await until_fence(plane, FenceState.PROVEN, 5, heard=nodes[1:])


async def test_controller_that_died_with_its_host_does_not_delay_the_lease(real: HaPlane, nodes: list[Node]) -> None:
    real.controllers.by_hostname[nodes[0].hostname] = FakeController(said=PowerFailed("it is silent"))
    await until_fence(real, FenceState.OPEN, 10, heard=nodes[1:])
    fence, waited_s = await until_fence(real, FenceState.PROVEN, 20, heard=nodes[1:])

    assert fence.proof is not None
    assert fence.proof.method == FENCE_METHOD_LEASE_EXPIRED
    assert waited_s <= real.config.proof_wait_s + 3 * ROUND_S


async def test_host_that_comes_back_is_given_back_once_its_vms_are_elsewhere(
    real: HaPlane, nodes: list[Node], may_end: asyncio.Event
) -> None:
    may_end.clear()
    vm = await add_vm(real.world, nodes[0].id)
    fence, _ = await until_fence(real, FenceState.OPEN, 10, heard=nodes[1:])
    await until_fence(real, FenceState.PROVEN, 20, heard=nodes[1:])
    await passes(real, 3.0, heard=nodes)
    assert (await real.fence(fence.id)).state == FenceState.PROVEN  # the VM is still to be started elsewhere

    moved = await real.world.stored(vm.id)
    assert moved is not None
    elsewhere = replace(moved, node_id=nodes[1].id, power_state=PowerState.RUNNING)
    await real.world.store.run(lambda tx: tx.update_vm(elsewhere))
    may_end.set()
    await passes(real, 3 * ROUND_S, heard=nodes)

    assert (await real.fence(fence.id)).state == FenceState.ENDED
    assert real.coordinator.marks == {}


async def test_half_of_the_hosts_silent_at_once_have_nothing_done(real: HaPlane, nodes: list[Node]) -> None:
    await passes(real, 40.0, heard=nodes[2:])

    assert await real.fences() == []
    assert await real.open_alerts("ha.brake") != []


async def test_disarmed_nothing_is_done_and_it_is_said(real: HaPlane, nodes: list[Node]) -> None:
    settings = await real.world.store.read(lambda tx: tx.ha_settings())
    await real.world.store.run(lambda tx: tx.update_ha_settings(replace(settings, is_armed=False)))
    await passes(real, 40.0, heard=nodes[1:])

    assert await real.fences() == []
    assert len(await real.open_alerts("ha.disarmed")) == 1
