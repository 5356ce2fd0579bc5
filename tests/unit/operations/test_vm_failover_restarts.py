"""The process dies at each write of a failover, before or after it: another one ends it, and nothing is done twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controlplane.domain.event import EventType
from controlplane.domain.node import Capacity
from controlplane.domain.operation import OperationState
from controlplane.domain.vm import PowerState
from controlplane.state.factory import create_store
from tests.support.control_plane_world import World
from tests.support.databases import fresh_sqlite
from tests.support.dying_store import DyingStore
from tests.support.failover_scene import FailoverScene, failover_scene, world_with_failover
from tests.support.stores import PATIENT

NOTHING, SIZE = Capacity(0, 0), Capacity(1, 128 * 2**20)
WRITES = 5
"""Recording the order, settling, the claim, the definition and the start."""


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = create_store(fresh_sqlite(tmp_path), PATIENT)
    await store.open()
    yield world_with_failover(DyingStore(store))
    await store.close()


async def go_on(scene: FailoverScene) -> None:
    """Let the next process take over."""
    world = scene.world
    dying = world.store
    assert isinstance(dying, DyingStore)
    await world.worker.abandon()
    world.store = dying._inner
    world.restart()
    await world.worker.register()
    await world.take_over()
    await world.settle()


@pytest.mark.parametrize("after_commit", [False, True])
@pytest.mark.parametrize("write", range(1, WRITES + 1))
async def test_failover_whose_process_died_happens_once(world: World, write: int, after_commit: bool) -> None:
    scene = await failover_scene(world)
    fence = await scene.die()
    dying = world.store
    assert isinstance(dying, DyingStore)
    dying.die_at(write, after_commit=after_commit)
    asking = asyncio.ensure_future(scene.ask(fence.id))
    await asyncio.wait_for(dying.died.wait(), 60)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)

    await go_on(scene)
    scene.asked_count = 0  # whoever leads asks until it is done, under the same request
    operation = await scene.fail_over(fence.id)

    vm = await scene.stored()
    assert operation.state == OperationState.SUCCEEDED, operation.fault
    assert (vm.node_id, vm.power_state, vm.is_protected) == (scene.other.id, PowerState.RUNNING, True)
    assert (await scene.world.allocated(scene.home.id), await scene.world.allocated(scene.other.id)) == (NOTHING, SIZE)
    assert len(await scene.events(EventType.VM_FAILED_OVER)) == 1
    assert scene.there.methods(vm.id).count("start_vm") == 1
