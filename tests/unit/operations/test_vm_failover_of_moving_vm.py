"""A host that dies while a VM of it is on its way: the proof stands for its word, and the living host has to answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from controlplane.domain.migration import Migration, MigrationWish
from controlplane.domain.node import Capacity
from controlplane.domain.operation import Operation, OperationState
from controlplane.domain.vm import PowerState
from controlplane.operations.desk import Caller
from controlplane.state.factory import create_store
from limiquantix.compute.v1.ha_service_pb2 import FENCE_METHOD_LEASE_EXPIRED, FENCE_METHOD_POWER_OFF
from limiquantix.errors import Reason
from tests.support.control_plane_world import HASTY, World
from tests.support.databases import fresh_sqlite
from tests.support.failover_scene import FailoverScene, failover_scene, world_with_failover
from tests.support.fake_daemons import PAUSED, RUNNING, FakeVm, unreachable
from tests.support.fences import opened, proven, written
from tests.support.migration_cluster import assert_fault, node_spec
from tests.support.stores import PATIENT

NOTHING, SIZE = Capacity(0, 0), Capacity(1, 128 * 2**20)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Hosts that fall silent are asked for long, as in the program."""
    store = create_store(fresh_sqlite(tmp_path), PATIENT)
    await store.open()
    world = world_with_failover(store)
    world.migration_rules = replace(HASTY, patience_s=600.0)
    world.restart()
    yield world
    await store.close()


@pytest.fixture
async def scene(world: World) -> FailoverScene:
    return await failover_scene(world)


async def on_its_way(scene: FailoverScene, at: str = "transfer") -> Operation:
    """Have the VM sent to the other node, and stop in the middle."""
    gate = scene.dead.hold(at)
    wish = MigrationWish(target_node_id=scene.other.id)
    operation = await scene.world.migrations.start(scene.vm.id, wish, Caller(principal="ann"))
    await asyncio.wait_for(gate.entered.wait(), 60)
    return operation


async def left(scene: FailoverScene) -> Migration | None:
    return await scene.world.store.read(lambda tx: tx.get_migration(scene.vm.id))


async def assert_runs_there(scene: FailoverScene) -> None:
    vm = await scene.stored()
    assert (vm.node_id, vm.power_state) == (scene.other.id, PowerState.RUNNING)
    assert scene.there.vms[vm.id].state == RUNNING
    assert (await scene.world.allocated(scene.home.id), await scene.world.allocated(scene.other.id)) == (NOTHING, SIZE)


async def test_what_did_not_arrive_is_started_at_the_target_from_its_disks(scene: FailoverScene) -> None:
    migrating = await on_its_way(scene)
    fence = await scene.die()
    scene.there.vms.pop(scene.vm.id)  # the stream broke, so its hypervisor dropped what had arrived

    operation = await asyncio.wait_for(scene.fail_over(fence.id), 60)

    assert operation.state == OperationState.SUCCEEDED, operation.fault
    await assert_runs_there(scene)
    assert (await scene.world.desk.get(migrating.id)).has_ended
    assert await left(scene) is None


async def test_what_arrived_and_runs_is_left_to_run(scene: FailoverScene) -> None:
    await on_its_way(scene, "switch")
    fence = await scene.die()
    starts = scene.there.methods(scene.vm.id).count("start_vm")

    operation = await asyncio.wait_for(scene.fail_over(fence.id), 60)

    await scene.world.settle()
    await assert_runs_there(scene)
    assert scene.there.methods(scene.vm.id).count("start_vm") == starts
    assert operation.fault is None or operation.fault.reason == Reason.FAILOVER_REFUSED


async def test_target_that_does_not_answer_holds_it_up_and_it_can_be_asked_for_again(scene: FailoverScene) -> None:
    await on_its_way(scene)
    fence = await scene.die()
    scene.there.fail("*", unreachable())

    operation = await asyncio.wait_for(scene.fail_over(fence.id), 60)

    assert_fault(operation, Reason.MIGRATION_UNSETTLED)
    assert (await scene.stored()).node_id == scene.home.id
    scene.there.heal()
    scene.there.vms.pop(scene.vm.id)
    assert (await scene.fail_over(fence.id)).state == OperationState.SUCCEEDED
    await assert_runs_there(scene)


async def test_guest_that_stands_still_at_the_target_is_not_decided_about(scene: FailoverScene) -> None:
    await on_its_way(scene)
    fence = await scene.die()
    assert scene.there.vms[scene.vm.id].state == PAUSED
    operation = await asyncio.wait_for(scene.fail_over(fence.id), 60)
    assert_fault(operation, Reason.MIGRATION_UNSETTLED, "source DEAD", "target PAUSED")


async def test_lease_that_ended_does_not_speak_for_a_source_whose_vm_is_not_protected(scene: FailoverScene) -> None:
    await on_its_way(scene)
    await scene.change(is_protected=False)
    fence = await scene.die(FENCE_METHOD_LEASE_EXPIRED)
    scene.there.vms.pop(scene.vm.id)
    operation = await scene.ask(fence.id)
    await asyncio.sleep(0.5)
    assert not (await scene.world.desk.get(operation.id)).has_ended
    vm = await scene.stored()
    assert vm.node_id == scene.home.id
    await scene.world.worker.abandon()


async def test_vm_whose_target_died_too_is_started_on_a_third_node(scene: FailoverScene) -> None:
    third = await scene.world.add_node(spec=node_spec())
    await on_its_way(scene)
    fence = await scene.die(FENCE_METHOD_POWER_OFF)
    scene.there.fail("*", unreachable())
    await written(scene.world.store, proven(await opened(scene.world.store, scene.other.id), FENCE_METHOD_POWER_OFF))

    operation = await asyncio.wait_for(scene.fail_over(fence.id, target_node_id=third.id), 60)

    assert operation.state == OperationState.SUCCEEDED, operation.fault
    vm = await scene.stored()
    assert (vm.node_id, vm.power_state) == (third.id, PowerState.RUNNING)
    assert [await scene.world.allocated(node.id) for node in (scene.home, scene.other, third)] == [
        NOTHING,
        NOTHING,
        SIZE,
    ]


async def test_target_that_dies_alone_leaves_the_vm_where_it_runs(scene: FailoverScene) -> None:
    migrating = await on_its_way(scene)
    scene.there.fail("*", unreachable())
    await written(scene.world.store, proven(await opened(scene.world.store, scene.other.id), FENCE_METHOD_POWER_OFF))
    scene.dead.migration_fault = "the target is gone"
    scene.dead.hold("transfer").release()

    ended = await scene.world.desk.ended(migrating.id, 15)

    assert ended.state == OperationState.FAILED
    vm = await scene.stored()
    assert (vm.node_id, vm.power_state) == (scene.home.id, PowerState.RUNNING)


async def test_settling_takes_the_proof_as_the_dead_hosts_word(scene: FailoverScene) -> None:
    await on_its_way(scene)
    await scene.world.worker.abandon()
    scene.world.restart()
    await scene.world.worker.register()
    await scene.die()
    scene.there.vms[scene.vm.id] = FakeVm("t", scene.dead.vms[scene.vm.id].spec)
    scene.there.set_state(scene.vm.id, RUNNING)
    await scene.world.take_over()
    await scene.world.settle()
    await assert_runs_there(scene)


async def test_vm_that_arrived_is_protected_only_if_its_new_host_noted_so(scene: FailoverScene) -> None:
    scene.there.takes_leases = False
    wish = MigrationWish(target_node_id=scene.other.id)
    operation = await scene.world.migrations.start(scene.vm.id, wish, Caller(principal="ann"))
    assert (await scene.world.desk.ended(operation.id, 60)).state == OperationState.SUCCEEDED
    assert not (await scene.stored()).is_protected


async def test_vm_that_arrived_is_protected_from_its_first_moment(scene: FailoverScene) -> None:
    wish = MigrationWish(target_node_id=scene.other.id)
    operation = await scene.world.migrations.start(scene.vm.id, wish, Caller(principal="ann"))
    assert (await scene.world.desk.ended(operation.id, 60)).state == OperationState.SUCCEEDED
    assert (await scene.stored()).is_protected
    assert scene.vm.id in scene.there.protected


async def test_death_of_the_source_does_not_tell_which_of_two_copies_of_a_disk_is_whole(scene: FailoverScene) -> None:
    await on_its_way(scene)
    migration = await left(scene)
    assert migration is not None
    await scene.world.store.run(lambda tx: tx.put_migration(replace(migration, copies_disks=True)))
    fence = await scene.die()
    scene.there.vms.pop(scene.vm.id)

    operation = await asyncio.wait_for(scene.fail_over(fence.id), 60)

    assert_fault(operation, Reason.MIGRATION_UNSETTLED, "source SILENT", "target ABSENT")
    assert "end_migration" not in scene.there.methods(scene.vm.id)  # which would remove the copy there
