"""The process dies at each write of a start elsewhere or a relocation: another one ends it, nothing happens twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controlplane.domain.event import EventType
from controlplane.domain.node import Capacity
from controlplane.domain.vm import PowerState
from controlplane.operations.vm_relocate import RelocateVm
from controlplane.operations.vm_start_elsewhere import StartElsewhere
from controlplane.scheduler.plan import SchedulerConfig
from controlplane.services.placement import NodeMemory
from controlplane.services.targets import failover_chooser
from controlplane.state.factory import create_store
from limiquantix.compute.v1.ha_service_pb2 import FENCE_METHOD_OPERATOR
from limiquantix.compute.v1.vm_service_pb2 import StopVMRequest
from limiquantix.errors import FailedPrecondition, Reason
from tests.support.control_plane_world import World
from tests.support.databases import fresh_sqlite
from tests.support.dying_store import DyingStore
from tests.support.failover_scene import FailoverScene, failover_scene, protected_spec
from tests.support.fake_daemons import STOPPED
from tests.support.stores import PATIENT

NOTHING, SIZE = Capacity(0, 0), Capacity(1, 128 * 2**20)
START_WRITES = 4
"""Recording the order, the claim, the definition and the start."""
RELOCATION_WRITES = 6
"""As above, and before the claim the mark and letting go."""


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = create_store(fresh_sqlite(tmp_path), PATIENT)
    await store.open()
    choose = failover_chooser(SchedulerConfig(), NodeMemory())
    yield World(DyingStore(store), other_workflows=(RelocateVm(choose), StartElsewhere(choose)))
    await store.close()


async def go_on(world: World) -> None:
    """Let the next process take over."""
    dying = world.store
    assert isinstance(dying, DyingStore)
    await world.worker.abandon()
    world.store = dying._inner
    world.restart()
    await world.worker.register()
    await world.take_over()
    await world.settle()


async def die_at(world: World, write: int, work: asyncio.Future[object], *, after_commit: bool) -> None:
    dying = world.store
    assert isinstance(dying, DyingStore)
    dying.die_at(write, after_commit=after_commit)
    await asyncio.wait_for(dying.died.wait(), 60)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)


async def assert_runs_there_once(scene: FailoverScene) -> None:
    vm = await scene.stored()
    assert (vm.node_id, vm.power_state, vm.details.failover_unfinished) == (scene.other.id, PowerState.RUNNING, False)
    claims = [await scene.world.allocated(node.id) for node in (scene.home, scene.other)]
    assert claims == [NOTHING, SIZE]
    assert len(await scene.events(EventType.VM_FAILED_OVER)) == 1
    assert scene.there.methods(vm.id).count("start_vm") == 1


@pytest.mark.parametrize("after_commit", [False, True])
@pytest.mark.parametrize("write", range(1, START_WRITES + 1))
async def test_start_elsewhere_whose_process_died_happens_once(world: World, write: int, after_commit: bool) -> None:
    scene = await failover_scene(world)
    await world.vms.stop(StopVMRequest(id=scene.vm.id, force=True))
    await scene.die(FENCE_METHOD_OPERATOR)
    starting: asyncio.Future[object] = asyncio.ensure_future(world.vms.start(scene.vm.id))
    await die_at(world, write, starting, after_commit=after_commit)

    await go_on(world)
    if (await scene.stored()).power_state != PowerState.RUNNING:  # nobody knew of the order
        assert (write, after_commit) == (1, False)
        await world.vms.start(scene.vm.id)

    await assert_runs_there_once(scene)


@pytest.mark.parametrize("after_commit", [False, True])
@pytest.mark.parametrize("write", range(1, RELOCATION_WRITES + 1))
async def test_relocation_whose_process_died_happens_once(world: World, write: int, after_commit: bool) -> None:
    scene = await failover_scene(world, protected_spec(max_restarts=1))
    scene.dead.fail("start_vm", FailedPrecondition(Reason.HYPERVISOR_REFUSED, "no KVM"))
    scene.dead.set_state(scene.vm.id, STOPPED)
    await world.report_everything(scene.home.id)
    await keep(world)
    looking: asyncio.Future[object] = asyncio.ensure_future(keep(world))
    await die_at(world, write, looking, after_commit=after_commit)

    await go_on(world)
    await keep(world)

    await assert_runs_there_once(scene)
    assert scene.vm.id not in scene.dead.vms


async def keep(world: World) -> None:
    """Let the keeper look once every back-off is over."""
    world.clock.advance(1000)
    await world.keeper.look()
    await world.settle()
