"""Power operations: what may begin when, what a failure leaves, and one at a time for each VM."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from controlplane.domain.vm import ALLOWED_FROM, PowerOperation, PowerState, Vm, require_state
from controlplane.operations.desk import MAX_QUEUED_PER_RESOURCE
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.vm_pb2 import CpuConfig, HaPolicy, MemoryConfig, VmSpec
from limiquantix.errors import (
    ApiError,
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    Reason,
    ResourceExhausted,
    Unavailable,
)
from limiquantix.node.v1 import node_daemon_pb2 as node_v1
from tests.support.builders import make_id, make_vm
from tests.support.control_plane_world import World
from tests.support.fake_daemons import PAUSED, RUNNING, STOPPED, unreachable

HOST_STATES: dict[int, node_v1.PowerState.ValueType] = {PowerState.RUNNING: RUNNING, PowerState.PAUSED: PAUSED}
"""What the host says where it is not simply off."""

OPERATIONS: dict[PowerOperation, Callable[[World, str], Awaitable[Vm]]] = {
    PowerOperation.START: lambda world, vm_id: world.vms.start(vm_id),
    PowerOperation.STOP: lambda world, vm_id: world.vms.stop(api.StopVMRequest(id=vm_id)),
    PowerOperation.REBOOT: lambda world, vm_id: world.vms.reboot(api.RebootVMRequest(id=vm_id)),
    PowerOperation.PAUSE: lambda world, vm_id: world.vms.pause(vm_id),
    PowerOperation.RESUME: lambda world, vm_id: world.vms.resume(vm_id),
    PowerOperation.SUSPEND: lambda world, vm_id: world.vms.suspend(vm_id),
}

METHODS = {
    PowerOperation.START: "start_vm",
    PowerOperation.STOP: "stop_vm",
    PowerOperation.REBOOT: "reboot_vm",
    PowerOperation.PAUSE: "pause_vm",
    PowerOperation.RESUME: "resume_vm",
    PowerOperation.SUSPEND: "suspend_vm",
}

ENDS_IN = {
    PowerOperation.START: PowerState.RUNNING,
    PowerOperation.STOP: PowerState.STOPPED,
    PowerOperation.REBOOT: PowerState.RUNNING,
    PowerOperation.PAUSE: PowerState.PAUSED,
    PowerOperation.RESUME: PowerState.RUNNING,
    PowerOperation.SUSPEND: PowerState.SUSPENDED,
}

DOCUMENTED: dict[PowerOperation, set[str]] = {
    PowerOperation.START: {"STOPPED", "SUSPENDED", "CRASHED"},
    PowerOperation.STOP: {"RUNNING", "PAUSED"},
    PowerOperation.REBOOT: {"RUNNING"},
    PowerOperation.PAUSE: {"RUNNING"},
    PowerOperation.RESUME: {"PAUSED"},
    PowerOperation.SUSPEND: {"RUNNING"},
    PowerOperation.DELETE: {"STOPPED", "SUSPENDED", "CRASHED", "LOST", "UNKNOWN"},
    PowerOperation.RESIZE: {"STOPPED", "CRASHED", "RUNNING", "PAUSED"},
    PowerOperation.UPDATE: {"STOPPED", "CRASHED", "RUNNING", "PAUSED"},
}
"""Rules of the documented system, written down a second time on purpose."""


async def put_into(world: World, vm: Vm, state: PowerState.ValueType) -> None:
    """Record a state, as a report of the host would."""

    async def write(tx):  # type: ignore[no-untyped-def]
        current = await tx.get_vm(vm.id)
        await tx.update_vm(replace(current, power_state=state, error_message="earlier trouble"))

    await world.store.run(write)


@pytest.mark.parametrize("operation", DOCUMENTED, ids=lambda operation: operation.name)
def test_states_an_operation_may_begin_in_are_the_documented_ones(operation: PowerOperation) -> None:
    assert {PowerState.Name(state) for state in ALLOWED_FROM[operation]} == DOCUMENTED[operation]  # type: ignore[arg-type]


@pytest.mark.parametrize("operation", PowerOperation, ids=lambda operation: operation.name)
@pytest.mark.parametrize("state", PowerState.keys())
def test_every_state_allows_or_refuses_by_the_table(operation: PowerOperation, state: str) -> None:
    vm = make_vm(power_state=PowerState.Value(state))
    if vm.power_state in ALLOWED_FROM[operation]:
        require_state(vm, operation)
        return

    with pytest.raises(FailedPrecondition) as caught:
        require_state(vm, operation)

    assert caught.value.reason == Reason.VM_STATE_FORBIDS
    assert caught.value.metadata["state"] == state
    assert f"while it is {state}" in caught.value.message
    for allowed in ALLOWED_FROM[operation]:
        assert PowerState.Name(allowed) in caught.value.message  # type: ignore[arg-type]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
async def test_operation_in_every_state_acts_or_leaves_the_host_alone(world: World, operation: PowerOperation) -> None:
    node = await world.add_node()
    vm = await world.create()
    host = world.daemons.of(node.id)
    for state in PowerState.values():
        host.vms[vm.id].state = HOST_STATES.get(state, STOPPED)
        await put_into(world, vm, state)
        host.calls.clear()

        if state in ALLOWED_FROM[operation]:
            after = await OPERATIONS[operation](world, vm.id)
            assert (after.power_state, after.error_message) == (ENDS_IN[operation], "")
            assert await world.stored(vm.id) == after
            assert host.methods(vm.id) == [METHODS[operation], "vm_status"]
        else:
            with pytest.raises(FailedPrecondition, match=PowerState.Name(state)):
                await OPERATIONS[operation](world, vm.id)
            after_refusal = await world.stored(vm.id)
            assert after_refusal is not None
            assert (after_refusal.power_state, after_refusal.error_message) == (state, "earlier trouble")
            assert host.calls == []


@pytest.mark.parametrize("force", [False, True], ids=["asked", "by force"])
@pytest.mark.parametrize("state", [PowerState.STOPPED, PowerState.CRASHED], ids=PowerState.Name)
async def test_vm_that_would_be_started_again_is_stopped_so_that_it_is_not(
    world: World, state: PowerState.ValueType, force: bool
) -> None:
    node = await world.add_node()
    spec = VmSpec(cpu=CpuConfig(cores=1), memory=MemoryConfig(size_mib=128), ha_policy=HaPolicy(auto_restart=True))
    vm = await world.create(start=True, spec=spec)
    world.daemons.of(node.id).vms[vm.id].state = STOPPED
    await put_into(world, vm, state)

    after = await world.vms.stop(api.StopVMRequest(id=vm.id, force=force))

    assert (after.power_state, after.wanted_state) == (PowerState.STOPPED, PowerState.STOPPED)
    with pytest.raises(FailedPrecondition, match="STOPPED"):
        await world.vms.stop(api.StopVMRequest(id=vm.id, force=force))


FAILURES: list[ApiError] = [
    FailedPrecondition(Reason.GUEST_DID_NOT_STOP, "the guest did not react"),
    DeadlineExceeded(Reason.DEADLINE_EXCEEDED, "node h did not answer in time"),
    unreachable(),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: error.reason)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
async def test_failed_operation_keeps_the_state_and_says_why_until_one_succeeds(
    world: World, operation: PowerOperation, error: ApiError
) -> None:
    await world.add_node()
    vm = await world.create()
    host = world.host_of(vm)
    before = min(ALLOWED_FROM[operation])
    host.vms[vm.id].state = HOST_STATES.get(before, STOPPED)
    await put_into(world, vm, before)  # type: ignore[arg-type]
    host.fail(METHODS[operation], error)

    with pytest.raises(type(error)) as caught:
        await OPERATIONS[operation](world, vm.id)

    assert caught.value.reason == error.reason
    stored = await world.stored(vm.id)
    assert stored is not None
    assert (stored.power_state, stored.error_message) == (before, error.message)
    host.heal()
    assert (await OPERATIONS[operation](world, vm.id)).error_message == ""


async def test_operation_whose_outcome_cannot_be_read_keeps_the_state_and_says_why(world: World) -> None:
    await world.add_node()
    vm = await world.create()
    world.host_of(vm).fail("vm_status", unreachable())

    with pytest.raises(Unavailable):
        await world.vms.start(vm.id)

    stored = await world.stored(vm.id)
    assert stored is not None
    assert (stored.power_state, stored.error_message) == (PowerState.STOPPED, "the host cannot be reached")


async def test_fault_02_daemon_gone_leaves_the_recorded_state(world: World) -> None:
    await world.add_node()
    vm = await world.create()
    world.host_of(vm).fail("*", unreachable())

    with pytest.raises(Unavailable) as caught:
        await world.vms.start(vm.id)

    assert caught.value.reason == Reason.NODE_UNREACHABLE
    stored = await world.stored(vm.id)
    assert stored is not None
    assert stored.power_state == PowerState.STOPPED


async def test_fault_02_state_is_what_the_host_says_not_what_was_asked_for(world: World) -> None:
    await world.add_node()
    vm = await world.create()
    host = world.host_of(vm)
    gate = host.hold("vm_status")
    starting = asyncio.ensure_future(world.vms.start(vm.id))
    await gate.entered.wait()
    host.set_state(vm.id, STOPPED)  # the guest powered off at once
    gate.release()

    assert (await starting).power_state == PowerState.STOPPED


async def test_answer_of_the_host_does_not_overwrite_a_newer_report(world: World) -> None:
    await world.add_node()
    vm = await world.create()
    started = await world.vms.start(vm.id)

    async def newer(tx):  # type: ignore[no-untyped-def]
        current = await tx.get_vm(vm.id)
        await tx.update_vm(replace(current, power_state=PowerState.CRASHED, reported_change_count=10**6))

    await world.store.run(newer)
    after = await world.vms.start(vm.id)

    assert started.power_state == PowerState.RUNNING
    assert (after.power_state, after.reported_change_count) == (PowerState.CRASHED, 10**6)


# -- stop


@pytest.mark.parametrize(
    ("force", "timeout_sec", "calls", "given_s"),
    [
        (False, 0, ["stop_vm"], [30]),
        (False, 7, ["stop_vm"], [7]),
        (True, 0, ["force_stop_vm"], []),
        (True, 7, ["stop_vm", "force_stop_vm"], [7]),
    ],
)
async def test_stop_asks_or_pulls_the_plug_as_told(
    world: World, force: bool, timeout_sec: int, calls: list[str], given_s: list[int]
) -> None:
    await world.add_node()
    vm = await world.create(start=True)
    host = world.host_of(vm)
    host.calls.clear()

    after = await world.vms.stop(api.StopVMRequest(id=vm.id, force=force, timeout_sec=timeout_sec))

    assert after.power_state == PowerState.STOPPED
    assert host.methods(vm.id) == [*calls, "vm_status"]
    assert host.stop_timeouts_s == given_s


async def test_stop_of_a_deaf_guest_with_force_ends_it(world: World) -> None:
    await world.add_node()
    vm = await world.create(start=True)
    world.host_of(vm).fail("stop_vm", FailedPrecondition(Reason.GUEST_DID_NOT_STOP, "the guest did not react"))

    after = await world.vms.stop(api.StopVMRequest(id=vm.id, force=True, timeout_sec=5))

    assert (after.power_state, after.error_message) == (PowerState.STOPPED, "")


async def test_reboot_with_force_cuts_the_power_and_starts_again(world: World) -> None:
    await world.add_node()
    vm = await world.create(start=True)
    host = world.host_of(vm)
    host.calls.clear()

    await world.vms.reboot(api.RebootVMRequest(id=vm.id, force=True))

    assert host.methods(vm.id) == ["force_stop_vm", "start_vm", "vm_status"]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
async def test_operation_on_an_unknown_vm_is_not_found(world: World, operation: PowerOperation) -> None:
    with pytest.raises(NotFound) as caught:
        await OPERATIONS[operation](world, make_id())
    assert caught.value.reason == Reason.VM_NOT_FOUND


async def test_operation_on_a_vm_on_no_node_says_so(world: World) -> None:
    vm = make_vm()
    await world.store.run(lambda tx: tx.insert_vm(vm))

    with pytest.raises(FailedPrecondition) as caught:
        await world.vms.start(vm.id)

    assert caught.value.reason == Reason.NODE_NOT_PLACED


# -- one after another


async def test_parallel_operations_on_one_vm_run_in_order_one_at_a_time(world: World) -> None:
    await world.add_node()
    vm = await world.create()
    host = world.host_of(vm)
    gate = host.hold("start_vm")
    host.calls.clear()

    running = [
        asyncio.ensure_future(OPERATIONS[operation](world, vm.id))
        for operation in (
            PowerOperation.START,
            PowerOperation.PAUSE,
            PowerOperation.RESUME,
            PowerOperation.REBOOT,
            PowerOperation.STOP,
        )
    ]
    await gate.entered.wait()
    gate.release()
    after = [await task for task in running]

    assert [method for method in host.methods(vm.id) if method != "vm_status"] == [
        "start_vm",
        "pause_vm",
        "resume_vm",
        "reboot_vm",
        "stop_vm",
    ]
    assert [PowerState.Name(vm.power_state) for vm in after] == ["RUNNING", "PAUSED", "RUNNING", "RUNNING", "STOPPED"]
    assert host.most_at_once[vm.id] == 1


async def test_operations_on_other_vms_do_not_wait(world: World) -> None:
    await world.add_node()
    held, free = await world.create("held"), await world.create("free")
    gate = world.host_of(held).hold("start_vm")
    starting = asyncio.ensure_future(world.vms.start(held.id))
    await gate.entered.wait()

    await world.vms.delete(api.DeleteVMRequest(id=free.id))

    gate.release()
    assert (await starting).power_state == PowerState.RUNNING


async def test_too_many_waiting_operations_are_refused_and_the_queue_recovers(world: World) -> None:
    await world.add_node()
    vm = await world.create()
    gate = world.host_of(vm).hold("start_vm")
    waiting = [asyncio.ensure_future(world.vms.start(vm.id)) for _ in range(MAX_QUEUED_PER_RESOURCE + 1)]
    await gate.entered.wait()

    with pytest.raises(ResourceExhausted) as caught:
        await world.vms.start(vm.id)

    assert caught.value.reason == Reason.TOO_MANY_OPERATIONS
    assert caught.value.retry_after_s is not None
    gate.release()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert sum(isinstance(outcome, FailedPrecondition) for outcome in outcomes) == MAX_QUEUED_PER_RESOURCE
    await world.vms.stop(api.StopVMRequest(id=vm.id))


async def test_operation_after_the_vm_was_deleted_is_not_found(world: World) -> None:
    await world.add_node()
    vm = await world.create()
    gate = world.host_of(vm).hold("delete_vm")
    deletion = asyncio.ensure_future(world.vms.delete(api.DeleteVMRequest(id=vm.id)))
    await gate.entered.wait()
    starting = asyncio.ensure_future(world.vms.start(vm.id))
    gate.release()

    await deletion
    with pytest.raises(NotFound):
        await starting
    assert "start_vm" not in world.host_of(vm).methods(vm.id)
