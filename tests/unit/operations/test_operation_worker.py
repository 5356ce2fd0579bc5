"""Who works on what: processes that die, processes that are only slow, and a database that goes away."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.domain.node import Capacity
from controlplane.domain.operation import Operation, OperationFilter, OperationState, Replica
from controlplane.domain.vm import PowerState
from controlplane.operations.worker import Liveness
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.errors import FailedPrecondition, Reason
from tests.support.builders import START_OF_TIME, make_id
from tests.support.control_plane_world import World, create_request

REFUSED = FailedPrecondition(Reason.HYPERVISOR_REFUSED, "no such machine type")


def replica(count: int, replica_id: str = "a") -> Replica:
    return Replica(replica_id, "host", START_OF_TIME, START_OF_TIME, count)


async def the_operation(world: World) -> Operation:
    page = await world.desk.list(OperationFilter(), None, 10)
    (operation,) = page.items
    return operation


# -- who is dead


def test_process_is_dead_when_its_row_does_not_change_for_a_lease() -> None:
    liveness = Liveness(lease_s=10)

    assert liveness.dead_of([replica(1)], 100) == set()
    assert liveness.dead_of([replica(1)], 109.9) == set()
    assert liveness.dead_of([replica(1)], 110) == {"a"}
    assert liveness.dead_of([replica(2)], 110.1) == set()
    assert liveness.dead_of([replica(2)], 120.1) == {"a"}


def test_process_that_looks_for_the_first_time_calls_nobody_dead() -> None:
    old = replace(replica(7), renewed_at=START_OF_TIME - timedelta(days=9))

    assert Liveness(lease_s=10).dead_of([old], 1_000_000) == set()


def test_wall_clocks_of_others_do_not_matter() -> None:
    liveness = Liveness(lease_s=10)
    liveness.dead_of([replace(replica(1), renewed_at=START_OF_TIME + timedelta(days=99))], 0)

    assert liveness.dead_of([replace(replica(2), renewed_at=START_OF_TIME - timedelta(days=99))], 11) == set()


# -- taking over


@pytest.mark.parametrize("method", ["create_vm", "start_vm"])
async def test_creation_of_a_dead_process_is_finished_by_another(world: World, method: str) -> None:
    node = await world.add_node()
    await world.worker.register()
    gate = world.daemons.of(node.id).hold(method)
    creation = asyncio.ensure_future(world.create(start=True))
    await gate.entered.wait()
    first_owner = world.worker.replica_id

    await world.crash()
    creation.cancel()
    gate.release()
    assert (await the_operation(world)).owner_id == first_owner
    await world.take_over()
    await world.settle()

    operation = await the_operation(world)
    assert (operation.state, operation.attempt_count) == (OperationState.SUCCEEDED, 2)
    assert operation.owner_id == world.worker.replica_id
    (vm,) = await world.all_vms()
    assert vm.power_state == PowerState.RUNNING
    assert world.host_of(vm).methods(vm.id).count(method) == 2
    assert await world.allocated(node.id) == Capacity(1, 128 * 2**20)


async def test_undoing_of_a_dead_process_is_finished_by_another(world: World) -> None:
    node = await world.add_node()
    await world.worker.register()
    host = world.daemons.of(node.id)
    host.fail("start_vm", REFUSED)
    gate = host.hold("delete_vm")
    creation = asyncio.ensure_future(world.create(start=True))
    await gate.entered.wait()
    assert (await the_operation(world)).state == OperationState.UNDOING

    await world.crash()
    creation.cancel()
    gate.release()
    await world.take_over()
    await world.settle()

    operation = await the_operation(world)
    assert operation.state == OperationState.FAILED
    assert operation.fault is not None
    assert operation.fault.reason == Reason.HYPERVISOR_REFUSED
    assert host.vms == {}
    assert await world.all_vms() == []
    assert await world.allocated(node.id) == Capacity(0, 0)


async def test_operation_of_a_living_process_is_not_taken(world: World) -> None:
    node = await world.add_node()
    await world.worker.register()
    gate = world.daemons.of(node.id).hold("create_vm")
    creation = asyncio.ensure_future(world.create())
    await gate.entered.wait()
    first, lease_s = world.worker, world.worker_config.lease_s
    world.restart()  # a second process, while the first lives
    await world.worker.register()

    for beat in range(4):
        await first.register()
        await world.worker.look(beat * lease_s)

    assert (await the_operation(world)).owner_id == first.replica_id
    gate.release()
    assert (await creation).power_state == PowerState.STOPPED


async def test_slow_process_that_was_taken_for_dead_does_no_harm(world: World) -> None:
    node = await world.add_node()
    await world.worker.register()
    host = world.daemons.of(node.id)
    gate = host.hold("create_vm")
    slow, slow_desk = world.worker, world.desk
    creation = asyncio.ensure_future(world.vms.service.create(create_request(start=True)))
    await gate.entered.wait()
    world.restart()
    await world.worker.register()
    await world.take_over()
    gate.release()  # both go on: the first with the older generation
    await world.settle()
    await slow.idle()

    answer = await creation
    operation = await slow_desk.get((await the_operation(world)).id)
    assert operation.owner_id == world.worker.replica_id
    assert operation.state == OperationState.SUCCEEDED
    assert answer.status.state == PowerState.RUNNING
    assert len(host.vms) == 1
    assert (await world.allocated(node.id)).vcpus == 1


async def test_process_that_stops_leaves_its_operations_to_others_at_once(world: World) -> None:
    node = await world.add_node()
    await world.worker.register()
    gate = world.daemons.of(node.id).hold("create_vm")
    creation = asyncio.ensure_future(world.create())
    await gate.entered.wait()

    await world.worker.stop(0)
    creation.cancel()
    gate.release()
    world.restart()
    await world.worker.register()
    await world.worker.look(0)  # no lease has to end
    await world.settle()

    assert (await the_operation(world)).state == OperationState.SUCCEEDED


async def test_operations_that_waited_for_a_dead_process_run_in_order(world: World) -> None:
    await world.add_node()
    await world.worker.register()
    vm = await world.create()
    host = world.host_of(vm)
    gate = host.hold("start_vm")
    waiting = [asyncio.ensure_future(world.vms.start(vm.id))]
    await gate.entered.wait()
    waiting += [asyncio.ensure_future(call) for call in (world.vms.pause(vm.id), world.vms.resume(vm.id))]
    async with asyncio.timeout(60):
        while len(await world.store.read(lambda tx: tx.queue_of(vm.id))) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0)

    await world.crash()
    for task in waiting:
        task.cancel()
    host.calls.clear()
    gate.release()
    await world.take_over()
    await world.settle()

    assert [method for method in host.methods(vm.id) if method != "vm_status"] == [
        "start_vm",
        "pause_vm",
        "resume_vm",
    ]
    assert (await world.vms.get(vm.id)).power_state == PowerState.RUNNING


async def test_queued_operation_whose_turn_nobody_noticed_is_found(world: World) -> None:
    await world.add_node()
    await world.worker.register()
    vm = await world.create()
    gate = world.host_of(vm).hold("start_vm")
    starting = asyncio.ensure_future(world.vms.start(vm.id))
    await gate.entered.wait()
    pausing = asyncio.ensure_future(world.vms.pause(vm.id))
    async with asyncio.timeout(60):
        while len(await world.store.read(lambda tx: tx.queue_of(vm.id))) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
    gate.release()
    await starting
    await world.settle()

    await world.worker.look(0)

    assert (await pausing).power_state == PowerState.PAUSED


async def test_cancellation_asked_for_at_another_process_reaches_the_owner(world: World) -> None:
    await world.add_node()
    await world.worker.register()
    vm = await world.create(start=True)
    gate = world.host_of(vm).hold("stop_vm")
    stopping = asyncio.ensure_future(world.vms.service.stop(api.StopVMRequest(id=vm.id, timeout_sec=3600)))
    await gate.entered.wait()
    owner = world.worker
    (operation,) = await world.store.read(lambda tx: tx.queue_of(vm.id))
    world.restart()
    await world.worker.register()

    await world.desk.cancel(operation.id, "ann")
    await owner.look(0)

    ended = await world.desk.ended(operation.id, 60)
    assert ended.state == OperationState.CANCELLED
    with pytest.raises(Exception, match="ann asked for it"):
        await stopping


# -- tidying up


async def test_dead_process_without_operations_is_forgotten(world: World) -> None:
    await world.worker.register()
    await world.crash()

    await world.take_over()

    replicas = await world.store.read(lambda tx: tx.all_replicas())
    assert [each.id for each in replicas] == [world.worker.replica_id]


async def test_operations_are_forgotten_after_their_time(world: World) -> None:
    await world.add_node()
    await world.create("old")
    old = await the_operation(world)
    world.clock.advance(world.worker_config.kept_days * 86_400 + 1)
    await world.create("new")

    await world.worker.tidy()

    remaining = (await world.desk.list(OperationFilter(), None, 10)).items
    assert old.id not in {operation.id for operation in remaining}
    assert len(remaining) == 1


async def test_operation_nobody_can_take_because_it_is_unknown_changes_nothing(world: World) -> None:
    assert await world.store.read(lambda tx: tx.get_operation(make_id())) is None
    await world.worker.start_next(make_id())
    assert (await world.desk.list(OperationFilter(), None, 10)).total_count == 0
