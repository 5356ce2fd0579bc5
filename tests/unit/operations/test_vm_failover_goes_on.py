"""What becomes of a VM that was moved since its host failed, where the new host fails too or cannot start it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controlplane.domain.event import EventType
from controlplane.domain.fencing import proves_dead
from controlplane.domain.node import Capacity, Node
from controlplane.domain.operation import OperationState
from controlplane.domain.vm import PowerState
from controlplane.operations.desk import Order
from controlplane.operations.vm_failover import FailoverVm, FinishFailover
from controlplane.operations.vm_relocate import RelocateVm
from controlplane.scheduler.plan import SchedulerConfig
from controlplane.services.placement import NodeMemory
from controlplane.services.targets import failover_chooser
from controlplane.state.factory import create_store
from limiquantix.compute.v1.vm_service_pb2 import DeleteVMRequest
from limiquantix.errors import FailedPrecondition, Reason
from tests.support.control_plane_world import World
from tests.support.databases import fresh_sqlite
from tests.support.failover_scene import FailoverScene, failover_scene, protected_spec
from tests.support.fake_daemons import unreachable
from tests.support.fences import opened, proven, written
from tests.support.migration_cluster import node_spec
from tests.support.stores import PATIENT

NOTHING, SIZE = Capacity(0, 0), Capacity(1, 128 * 2**20)
NO_KVM = FailedPrecondition(Reason.HOST_LACKS, "no KVM")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = create_store(fresh_sqlite(tmp_path), PATIENT)
    await store.open()
    choose = failover_chooser(SchedulerConfig(), NodeMemory())
    yield World(store, other_workflows=(FailoverVm(choose), RelocateVm(choose)))
    await store.close()


@pytest.fixture
async def scene(world: World) -> FailoverScene:
    """A VM that is tried once more where it was moved to, and then elsewhere."""
    return await failover_scene(world, protected_spec(max_restarts=1))


@pytest.fixture
async def third(scene: FailoverScene) -> Node:
    return await scene.world.add_node(spec=node_spec())


async def keep(scene: FailoverScene, times: int = 1) -> None:
    """Let the keeper look, each time after every back-off is over."""
    for _ in range(times):
        scene.world.clock.advance(1000)
        await scene.world.keeper.look()
        await scene.world.settle()


async def test_node_that_dies_before_it_defined_the_vm_is_proof_enough_by_its_lease(
    scene: FailoverScene, third: Node
) -> None:
    fence = await scene.die()
    scene.there.fail("*", unreachable())
    assert (await scene.fail_over(fence.id)).state == OperationState.FAILED
    second = await written(scene.world.store, proven(await opened(scene.world.store, scene.other.id)))

    assert proves_dead(second, is_protected=(await scene.stored()).is_protected)
    again = await scene.fail_over(second.id, from_node_id=scene.other.id, target_node_id=third.id)

    assert again.state == OperationState.SUCCEEDED, again.fault
    vm = await scene.stored()
    assert (vm.node_id, vm.power_state, vm.details.last_fence_id) == (third.id, PowerState.RUNNING, second.id)
    claims = [await scene.world.allocated(node.id) for node in (scene.home, scene.other, third)]
    assert claims == [NOTHING, NOTHING, SIZE]


async def test_node_without_leases_that_dies_proves_nothing_by_one(scene: FailoverScene) -> None:
    scene.there.takes_leases = False
    scene.there.fail("start_vm", NO_KVM)
    fence = await scene.die()
    await scene.fail_over(fence.id)
    second = await written(scene.world.store, proven(await opened(scene.world.store, scene.other.id)))
    assert not proves_dead(second, is_protected=(await scene.stored()).is_protected)


async def test_vm_that_cannot_start_where_it_was_moved_to_is_tried_again_and_then_goes_elsewhere(
    scene: FailoverScene, third: Node
) -> None:
    scene.there.fail("start_vm", NO_KVM)
    fence = await scene.die()
    await scene.fail_over(fence.id)

    await keep(scene)
    vm = await scene.stored()
    assert (vm.node_id, vm.restart_count, vm.error_message) == (scene.other.id, 1, "no KVM")
    await keep(scene)

    vm = await scene.stored()
    assert (vm.node_id, vm.power_state, vm.details.failover_unfinished) == (third.id, PowerState.RUNNING, False)
    assert vm.id not in scene.there.vms
    assert len(await scene.events(EventType.VM_FAILED_OVER)) == 2
    claims = [await scene.world.allocated(node.id) for node in (scene.home, scene.other, third)]
    assert claims == [NOTHING, NOTHING, SIZE]


async def test_node_that_does_not_say_that_it_let_go_keeps_the_vm(scene: FailoverScene, third: Node) -> None:
    scene.there.fail("start_vm", NO_KVM)
    fence = await scene.die()
    await scene.fail_over(fence.id)
    scene.there.fail("release_vm", unreachable())

    await keep(scene, times=2)

    assert (await scene.stored()).node_id == scene.other.id
    assert await scene.world.allocated(third.id) == NOTHING
    scene.there.heal()
    await keep(scene)
    vm = await scene.stored()
    assert (vm.node_id, vm.power_state) == (scene.other.id, PowerState.RUNNING)


async def test_vm_that_ran_meanwhile_is_not_moved_again(scene: FailoverScene, third: Node) -> None:
    scene.there.fail("start_vm", NO_KVM, after_acting=True)  # it says so, and starts it all the same
    fence = await scene.die()
    await scene.fail_over(fence.id)
    await scene.world.report_everything(scene.other.id)

    await keep(scene, times=3)

    vm = await scene.stored()
    assert (vm.node_id, vm.power_state) == (scene.other.id, PowerState.RUNNING)
    assert await scene.world.allocated(third.id) == NOTHING


async def test_finishing_the_failover_of_a_vm_that_was_deleted_before_it_began_ends(scene: FailoverScene) -> None:
    world = scene.world
    fence = await scene.die()
    scene.there.fail("adopt_vm", unreachable())
    await scene.fail_over(fence.id)
    scene.there.heal()
    gate = scene.there.hold("delete_vm")
    deleting = asyncio.ensure_future(world.vms.delete(DeleteVMRequest(id=scene.vm.id, force=True)))
    await gate.entered.wait()

    finishing = await world.desk.submit(Order(FinishFailover.kind, scene.vm.id, parameters={"restart_count": 1}))
    assert finishing.state == OperationState.QUEUED
    gate.release()
    await deleting

    ended = await world.desk.ended(finishing.id, 60)
    assert ended.state == OperationState.FAILED
    assert ended.fault is not None
    assert ended.fault.reason == Reason.VM_NOT_FOUND
    assert await world.allocated(scene.other.id) == NOTHING
