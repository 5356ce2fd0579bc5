"""Taking orders: what is recorded, in which order it runs, what a repeated request gets, what can be cancelled."""

from __future__ import annotations

import asyncio

import pytest

from controlplane.domain.node import Capacity
from controlplane.domain.operation import Operation, OperationFilter, OperationState, StepState
from controlplane.domain.vm import PowerState, Vm
from controlplane.operations.desk import Caller
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Reason,
    Unavailable,
)
from limiquantix.node.v1 import node_daemon_pb2 as node_v1
from tests.support.builders import make_id
from tests.support.control_plane_world import World, create_request
from tests.support.fake_daemons import Gate, unreachable


async def operations_of(world: World, resource_id: str = "") -> list[Operation]:
    """Every operation, in the order in which they were asked for."""
    page = await world.desk.list(OperationFilter(resource_id=resource_id), None, 1000)
    return sorted(page.items, key=lambda operation: operation.position)


async def until_recorded(world: World, vm_id: str, count: int) -> None:
    """Wait until the VM has so many operations."""
    async with asyncio.timeout(60):
        while len(await operations_of(world, vm_id)) < count:  # noqa: ASYNC110 - the database has no event to wait for
            await asyncio.sleep(0)


async def held_start(world: World) -> tuple[Vm, Gate, asyncio.Future[Vm]]:
    """Begin to start a VM whose host does not come to it."""
    await world.add_node()
    vm = await world.create()
    gate = world.host_of(vm).hold("start_vm")
    starting = asyncio.ensure_future(world.vms.start(vm.id))
    await gate.entered.wait()
    return vm, gate, starting


def asked(request_id: str, digest: str = "body", *, waits: bool = True) -> Caller:
    return Caller(principal="ann", request_id=request_id, request_digest=digest, waits=waits)


# -- what is recorded


async def test_operation_is_recorded_with_who_what_and_how_it_ended(world: World) -> None:
    await world.add_node()

    answer = await world.vms.service.create(create_request("web", start=True), asked("r-1"))

    (operation,) = await operations_of(world)
    assert (operation.kind, operation.resource_id, operation.principal) == ("vm.create", answer.id, "ann")
    assert (operation.request_id, operation.state, operation.attempt_count) == ("r-1", OperationState.SUCCEEDED, 1)
    assert [(step.name, step.state) for step in operation.steps] == [
        ("define", StepState.DONE),
        ("start", StepState.DONE),
    ]
    assert operation.steps[1].result["state"] == "RUNNING"
    assert operation.progress_percent == 100
    assert operation.ended_at == world.clock.at


async def test_operation_that_ended_keeps_no_parameters_since_they_may_hold_secrets(world: World) -> None:
    await world.add_node()
    vm = await world.create()
    await world.vms.update(api.UpdateVMRequest(id=vm.id, description="new"))

    for operation in await operations_of(world):
        assert operation.parameters == {}


async def test_failed_operation_is_recorded_with_the_error_its_caller_got(world: World) -> None:
    await world.add_node()
    vm = await world.create()
    world.host_of(vm).fail("start_vm", FailedPrecondition(Reason.HYPERVISOR_REFUSED, "no such bridge"))

    with pytest.raises(FailedPrecondition, match="no such bridge"):
        await world.vms.start(vm.id)

    operation = (await operations_of(world, vm.id))[-1]
    assert operation.state == OperationState.FAILED
    assert operation.fault is not None
    assert (operation.fault.reason, operation.fault.message) == (Reason.HYPERVISOR_REFUSED, "no such bridge")
    stored = await world.stored(vm.id)
    assert stored is not None
    assert stored.error_message == "no such bridge"


async def test_refused_request_makes_no_operation(world: World) -> None:
    await world.add_node()
    vm = await world.create()
    before = await operations_of(world)

    with pytest.raises(FailedPrecondition):
        await world.vms.pause(vm.id)
    with pytest.raises(NotFound):
        await world.vms.start(make_id())

    assert await operations_of(world) == before


# -- not waiting


async def test_caller_who_does_not_wait_gets_the_vm_as_it_is_and_the_operation_goes_on(world: World) -> None:
    node = await world.add_node()
    gate = world.daemons.of(node.id).hold("create_vm")
    told: list[str] = []

    answer = await world.vms.service.create(create_request(), Caller(waits=False, on_operation=told.append))

    assert answer.status.state == PowerState.PROVISIONING
    assert (await world.desk.get(told[0])).state == OperationState.RUNNING
    gate.release()
    assert (await world.desk.ended(told[0])).state == OperationState.SUCCEEDED
    assert (await world.vms.get(answer.id)).power_state == PowerState.STOPPED


async def test_waiting_ends_with_the_operation_or_with_its_time(world: World) -> None:
    vm, gate, starting = await held_start(world)
    operation = (await operations_of(world, vm.id))[-1]

    assert (await world.desk.ended(operation.id, 0.01)).state == OperationState.RUNNING
    gate.release()
    assert (await world.desk.ended(operation.id, 60)).state == OperationState.SUCCEEDED
    await starting
    with pytest.raises(NotFound):
        await world.desk.ended(make_id())


async def test_followed_operation_is_seen_at_each_change_and_to_its_end(world: World) -> None:
    vm, gate, starting = await held_start(world)
    operation = (await operations_of(world, vm.id))[-1]
    seen: list[Operation] = []

    async def follow() -> None:
        async for each in world.desk.follow(operation.id):
            seen.append(each)
            gate.release()

    await asyncio.wait_for(follow(), 60)
    await starting

    assert [each.state for each in seen] == [OperationState.RUNNING, OperationState.SUCCEEDED]
    assert [each.version for each in seen] == sorted({each.version for each in seen})


# -- a repeated request


async def test_same_request_again_gets_the_first_outcome_and_makes_nothing(world: World) -> None:
    node = await world.add_node()

    first = await world.vms.service.create(create_request("web"), asked("r"))
    again = await world.vms.service.create(create_request("web"), asked("r"))

    assert again == first
    assert len(await world.all_vms()) == 1
    assert (await world.allocated(node.id)).vcpus == 1


async def test_same_request_again_gets_the_first_outcome_even_when_the_vm_has_changed_or_is_gone(world: World) -> None:
    await world.add_node()
    first = await world.vms.service.create(create_request("web"), asked("r"))
    await world.vms.start(first.id)
    await world.vms.delete(api.DeleteVMRequest(id=first.id, force=True))

    assert await world.vms.service.create(create_request("web"), asked("r")) == first


async def test_same_request_again_gets_the_same_error(world: World) -> None:
    await world.add_node()
    vm = await world.create()
    error = DeadlineExceeded(Reason.DEADLINE_EXCEEDED, "slow", metadata={"a": "b"}, retry_after_s=2.0)
    world.host_of(vm).fail("start_vm", error, times=1)

    for _ in range(2):
        with pytest.raises(DeadlineExceeded, match="slow") as caught:
            await world.vms.service.start(vm.id, asked("r"))
        assert (caught.value.metadata, caught.value.retry_after_s) == ({"a": "b"}, 2.0)


async def test_request_id_with_another_body_is_refused(world: World) -> None:
    await world.add_node()
    await world.vms.service.create(create_request("web"), asked("r", "one body"))

    with pytest.raises(InvalidArgument) as caught:
        await world.vms.service.create(create_request("db"), asked("r", "another body"))

    assert caught.value.reason == Reason.REQUEST_ID_REUSED
    assert len(await world.all_vms()) == 1


async def test_request_id_of_somebody_else_is_another_one(world: World) -> None:
    await world.add_node()
    await world.vms.service.create(create_request("web"), asked("r"))

    await world.vms.service.create(create_request("db"), Caller("bob", "r", "body"))

    assert len(await world.all_vms()) == 2


async def test_same_request_many_times_at_once_makes_one_vm(world: World) -> None:
    node = await world.add_node()
    gate = world.daemons.of(node.id).hold("create_vm")
    callers = [asyncio.ensure_future(world.vms.service.create(create_request("web"), asked("r"))) for _ in range(10)]
    await gate.entered.wait()
    gate.release()

    answers = await asyncio.gather(*callers)

    assert len({answer.id for answer in answers}) == 1
    assert len(await operations_of(world)) == 1


# -- one after the other


async def test_operation_that_waits_says_for_what(world: World) -> None:
    vm, gate, starting = await held_start(world)

    pausing = asyncio.ensure_future(world.vms.pause(vm.id))
    await until_recorded(world, vm.id, 3)

    _, first, second = await operations_of(world, vm.id)
    assert second.state == OperationState.QUEUED
    assert second.waiting_for == f"vm.start (operation {first.id}) on the same VM"
    gate.release()
    assert (await starting).power_state == PowerState.RUNNING
    assert (await pausing).power_state == PowerState.PAUSED


async def test_generation_of_commands_grows_with_each_operation(world: World) -> None:
    await world.add_node()
    vm = await world.create()
    await world.vms.start(vm.id)
    await world.vms.stop(api.StopVMRequest(id=vm.id, force=True))

    generations = [operation.generation for operation in await operations_of(world, vm.id)]
    assert generations == sorted(set(generations))
    assert world.host_of(vm).generations[vm.id] == generations[-1]


# -- going before others


async def test_forced_stop_does_not_wait_for_a_graceful_one(world: World) -> None:
    await world.add_node()
    vm = await world.create(start=True)
    gate = world.host_of(vm).hold("stop_vm")
    graceful = asyncio.ensure_future(world.vms.stop(api.StopVMRequest(id=vm.id, timeout_sec=3600)))
    await gate.entered.wait()

    stopped = await asyncio.wait_for(world.vms.stop(api.StopVMRequest(id=vm.id, force=True)), 60)

    assert stopped.power_state == PowerState.STOPPED
    with pytest.raises(Aborted, match=r"vm.stop \(operation .*\) of the same VM goes before it") as caught:
        await graceful
    assert caught.value.reason == Reason.OPERATION_CANCELLED


async def test_forced_delete_goes_before_those_that_wait(world: World) -> None:
    await world.add_node()
    vm = await world.create(start=True)
    gate = world.host_of(vm).hold("stop_vm")
    first = asyncio.ensure_future(world.vms.stop(api.StopVMRequest(id=vm.id)))
    await gate.entered.wait()
    second = asyncio.ensure_future(world.vms.reboot(api.RebootVMRequest(id=vm.id)))
    await until_recorded(world, vm.id, 3)

    await asyncio.wait_for(world.vms.delete(api.DeleteVMRequest(id=vm.id, force=True)), 60)

    with pytest.raises(Aborted):
        await first
    with pytest.raises(NotFound):
        await second
    assert "reboot_vm" not in world.host_of(vm).methods(vm.id)


async def test_delete_of_a_vm_under_creation_undoes_it_and_succeeds(world: World) -> None:
    node = await world.add_node()
    host = world.daemons.of(node.id)
    gate = host.hold("create_vm")
    creation = asyncio.ensure_future(world.create(start=True))
    await gate.entered.wait()
    (vm,) = await world.all_vms()
    deletion = asyncio.ensure_future(world.vms.delete(api.DeleteVMRequest(id=vm.id, force=True)))
    await until_recorded(world, vm.id, 2)
    gate.release()

    with pytest.raises(Aborted):
        await creation
    await deletion

    assert host.vms == {}
    assert await world.all_vms() == []
    assert await world.allocated(node.id) == Capacity(0, 0)
    assert "start_vm" not in host.methods(vm.id)


# -- cancelling


async def test_waiting_operation_that_is_cancelled_ends_at_once_without_effect(world: World) -> None:
    vm, gate, starting = await held_start(world)
    pausing = asyncio.ensure_future(world.vms.pause(vm.id))
    await until_recorded(world, vm.id, 3)
    waiting = (await operations_of(world, vm.id))[-1]

    cancelled = await world.desk.cancel(waiting.id, "ann")

    assert cancelled.state == OperationState.CANCELLED
    with pytest.raises(Aborted, match="ann asked for it"):
        await pausing
    gate.release()
    assert (await starting).power_state == PowerState.RUNNING
    assert "pause_vm" not in world.host_of(vm).methods(vm.id)


async def test_running_creation_that_is_cancelled_is_undone(world: World) -> None:
    node = await world.add_node()
    host = world.daemons.of(node.id)
    gate = host.hold("create_vm")
    creation = asyncio.ensure_future(world.create(start=True))
    await gate.entered.wait()
    (operation,) = await operations_of(world)

    assert (await world.desk.cancel(operation.id, "ann")).cancel_requested
    gate.release()

    with pytest.raises(Aborted, match="ann asked for it"):
        await creation
    assert (await world.desk.get(operation.id)).state == OperationState.CANCELLED
    assert host.vms == {}
    assert await world.all_vms() == []
    assert await world.allocated(node.id) == Capacity(0, 0)


async def test_ended_operation_cannot_be_cancelled(world: World) -> None:
    await world.add_node()
    await world.create()
    (operation,) = await operations_of(world)

    with pytest.raises(FailedPrecondition, match="SUCCEEDED") as caught:
        await world.desk.cancel(operation.id, "ann")
    assert caught.value.reason == Reason.OPERATION_ENDED


# -- hosts that do not answer


async def test_host_that_is_back_soon_costs_no_error(world: World) -> None:
    await world.add_node()
    vm = await world.create()
    world.host_of(vm).fail("start_vm", unreachable(), times=2)

    assert (await world.vms.start(vm.id)).power_state == PowerState.RUNNING
    assert world.host_of(vm).methods(vm.id).count("start_vm") == 3


async def test_leftover_of_a_host_that_went_away_is_removed_when_it_is_back(world: World) -> None:
    node = await world.add_node()
    host = world.daemons.of(node.id)
    host.fail("start_vm", FailedPrecondition(Reason.HYPERVISOR_REFUSED, "no"))
    host.fail("force_stop_vm", unreachable())
    host.fail("delete_vm", unreachable())

    with pytest.raises(FailedPrecondition):
        await world.create(start=True)
    assert await world.all_vms() == []
    (leftover,) = host.vms
    host.heal()

    await world.report_everything(node.id)
    await world.settle()

    assert host.vms == {}
    assert await world.all_vms() == []
    cleaned = (await operations_of(world, leftover))[-1]
    assert (cleaned.kind, cleaned.state, cleaned.principal) == (
        "vm.clean_up",
        OperationState.SUCCEEDED,
        "system:reconcile",
    )


async def test_late_command_of_an_undone_creation_is_refused_by_the_host(world: World) -> None:
    node = await world.add_node()
    host = world.daemons.of(node.id)
    host.fail("start_vm", FailedPrecondition(Reason.HYPERVISOR_REFUSED, "no"))
    with pytest.raises(FailedPrecondition):
        await world.create(start=True)
    (operation,) = await operations_of(world)

    with pytest.raises(Aborted) as caught:  # what was held somewhere on the way
        await host.create_vm(node_v1.CreateVMOnNodeRequest(vm_id=operation.resource_id, generation=1))

    assert caught.value.reason == Reason.STALE_GENERATION
    assert host.vms == {}


async def test_database_put_back_to_an_older_state_catches_up_with_its_hosts(world: World) -> None:
    await world.add_node()
    vm = await world.create()
    world.host_of(vm).generations[vm.id] = 1000

    assert (await world.vms.start(vm.id)).power_state == PowerState.RUNNING

    assert world.host_of(vm).generations[vm.id] > 1000
    assert (await world.vms.get(vm.id)).generation > 1000


async def test_unreachable_host_leaves_the_vm_as_it_is(world: World) -> None:
    await world.add_node()
    vm = await world.create(start=True)
    world.host_of(vm).fail("*", unreachable())

    with pytest.raises(Unavailable):
        await world.vms.stop(api.StopVMRequest(id=vm.id, force=True))

    stored = await world.vms.get(vm.id)
    assert stored.power_state == PowerState.RUNNING
    assert stored.wanted_state == PowerState.RUNNING
