"""VMs that shall run and do not: what their policy says, how often, and that each restart happens once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.domain.back_off import MAX_BACK_OFF_S
from controlplane.domain.fencing import FenceState
from controlplane.domain.node import Phase
from controlplane.domain.node_shutdown import NotedShutdown, ShutdownKind
from controlplane.domain.operation import OperationFilter, OperationState
from controlplane.domain.vm import PowerState, Vm
from controlplane.reconcile.keeper import restart_of
from controlplane.services.shutdowns import note
from limiquantix.compute.v1 import node_service_pb2 as node_api
from limiquantix.compute.v1 import vm_service_pb2 as vm_api
from limiquantix.compute.v1.vm_pb2 import CpuConfig, HaPolicy, MemoryConfig, VmSpec, VmStatus
from limiquantix.errors import FailedPrecondition, Reason
from limiquantix.node.v1 import node_daemon_pb2 as node_v1
from tests.support.builders import make_vm
from tests.support.control_plane_world import World
from tests.support.fake_daemons import unreachable
from tests.support.fences import opened, written

ALWAYS, ON_FAILURE, NEVER = HaPolicy.ALWAYS, HaPolicy.ON_FAILURE, HaPolicy.NEVER


def spec(**policy: object) -> VmSpec:
    ha_policy = HaPolicy(**{"auto_restart": True, **policy})  # type: ignore[arg-type]
    return VmSpec(cpu=CpuConfig(cores=1), memory=MemoryConfig(size_mib=128), ha_policy=ha_policy)


def stopped(state: VmStatus.PowerState.ValueType = PowerState.STOPPED, restarts: int = 0, **policy: object) -> Vm:
    return make_vm(spec=spec(**policy), power_state=state, wanted_state=PowerState.RUNNING, restart_count=restarts)


async def running(world: World, **policy: object) -> Vm:
    """A VM that was started, on a node."""
    await world.add_node()
    return await world.create(start=True, spec=spec(**policy))


async def stops_by_itself(world: World, vm: Vm, state: node_api.VMPowerState.ValueType) -> None:
    """Let a VM stop without being asked, and its host tell."""
    host = world.host_of(vm)
    host.set_state(vm.id, node_v1.POWER_STATE_STOPPED)
    report = node_api.VMStatusReport(id=vm.id, state=state, state_change_count=host.change_count)
    await world.reports.vm_changed(node_api.VMChangeNotification(node_id=vm.node_id, vm=report))


# -- the decision


@pytest.mark.parametrize(
    ("condition", "state", "restarts"),
    [
        (ALWAYS, PowerState.STOPPED, True),
        (ALWAYS, PowerState.CRASHED, True),
        (ON_FAILURE, PowerState.STOPPED, False),
        (ON_FAILURE, PowerState.CRASHED, True),
        (NEVER, PowerState.STOPPED, False),
        (NEVER, PowerState.CRASHED, False),
    ],
)
def test_condition_decides(
    condition: HaPolicy.RestartCondition.ValueType, state: VmStatus.PowerState.ValueType, restarts: bool
) -> None:
    assert (restart_of(stopped(state, condition=condition)) is not None) == restarts


def test_nothing_is_restarted_that_did_not_ask_for_it() -> None:
    assert restart_of(stopped(auto_restart=False)) is None


def test_restarts_in_a_row_come_slower_and_end() -> None:
    def wait_s(restarts: int) -> float:
        vm = stopped(restarts=restarts, max_restarts=20)
        restart = restart_of(vm)
        assert restart is not None
        return (restart.due_at - vm.state_changed_at).total_seconds()

    assert [wait_s(n) for n in (0, 1, 2, 3)] == [0, 1, 2, 4]
    assert wait_s(19) == MAX_BACK_OFF_S
    assert restart_of(stopped(restarts=20, max_restarts=20)) is None
    assert restart_of(stopped(restarts=1000, max_restarts=0)) is not None


def test_delay_of_the_policy_is_the_least() -> None:
    vm = stopped(restart_delay_sec=30)
    restart = restart_of(vm)
    assert restart is not None
    assert restart.due_at == vm.state_changed_at + timedelta(seconds=30)


# -- what happens


async def test_crashed_vm_that_shall_run_is_started_again(world: World) -> None:
    vm = await running(world, condition=ON_FAILURE)
    await stops_by_itself(world, vm, node_api.VM_POWER_STATE_CRASHED)

    await world.keeper.look()
    await world.settle()

    after = await world.vms.get(vm.id)
    assert (after.power_state, after.restart_count) == (PowerState.RUNNING, 1)
    operation = (await world.desk.list(OperationFilter(kinds=frozenset({"vm.start"})), None, 10)).items[0]
    assert operation.principal == "system:reconcile"


async def test_restart_that_was_cancelled_is_asked_for_anew(world: World) -> None:
    """A forced stop ends a start that is under way, and is refused itself since the VM is off: it shall run still."""
    vm = await running(world, condition=ON_FAILURE)
    host = world.host_of(vm)
    host.fail("start_vm", unreachable())
    await stops_by_itself(world, vm, node_api.VM_POWER_STATE_CRASHED)
    await world.keeper.look()
    restart = (await world.desk.list(OperationFilter(kinds=frozenset({"vm.start"})), None, 10)).items[0]
    await world.desk.cancel(restart.id, "somebody")
    await world.settle()
    assert (await world.desk.get(restart.id)).state == OperationState.CANCELLED
    host.heal()

    await world.keeper.look()
    await world.settle()

    after = await world.vms.get(vm.id)
    assert (after.power_state, after.restart_count) == (PowerState.RUNNING, 1)


async def test_restart_that_waits_behind_a_stop_is_not_made(world: World) -> None:
    """The VM died while a stop was under way, so it looked as if it should run still."""
    vm = await running(world, condition=ON_FAILURE)
    gate = world.host_of(vm).hold("force_stop_vm")
    stopping = asyncio.create_task(world.vms.stop(vm_api.StopVMRequest(id=vm.id, force=True)))
    await gate.entered.wait()
    await stops_by_itself(world, vm, node_api.VM_POWER_STATE_CRASHED)
    await world.keeper.look()
    gate.release()
    await stopping
    await world.settle()

    restart = (await world.desk.list(OperationFilter(kinds=frozenset({"vm.start"})), None, 10)).items[0]
    after = await world.vms.get(vm.id)
    assert restart.state == OperationState.SUCCEEDED
    assert (after.power_state, after.wanted_state) == (PowerState.STOPPED, PowerState.STOPPED)
    assert world.host_of(vm).methods(vm.id).count("start_vm") == 1


async def test_vm_of_a_node_that_said_it_goes_down_is_left_to_its_return(world: World) -> None:
    vm = await running(world)
    await stops_by_itself(world, vm, node_api.VM_POWER_STATE_CRASHED)
    goes = NotedShutdown(ShutdownKind.REBOOT, "boot-1", all_vms_ended=True)
    await world.store.run(lambda tx: note(tx, vm.node_id, goes, world.clock()))
    world.clock.advance(60)

    await world.keeper.look()
    await world.settle()
    stored = await world.stored(vm.id)
    assert stored is not None
    assert (stored.power_state, stored.restart_count) == (PowerState.CRASHED, 0)

    await world.store.run(lambda tx: note(tx, vm.node_id, None, world.clock()))
    await world.keeper.look()
    await world.settle()
    stored = await world.stored(vm.id)
    assert stored is not None
    assert stored.power_state == PowerState.RUNNING


@pytest.mark.parametrize("is_fenced", [True, False])
async def test_vm_of_a_fenced_or_silent_node_is_not_started_there_until_it_is_back(
    world: World, is_fenced: bool
) -> None:
    vm = await running(world)
    await stops_by_itself(world, vm, node_api.VM_POWER_STATE_CRASHED)
    node = await world.node(vm.node_id)
    if is_fenced:
        fence = await opened(world.store, vm.node_id)
    else:
        await world.store.run(lambda tx: tx.update_node(replace(node, phase=Phase.NOT_READY)))
    world.clock.advance(60)

    await world.keeper.look()
    await world.settle()
    assert not await world.store.read(lambda tx: tx.active_resource_ids([vm.id]))
    stored = await world.stored(vm.id)
    assert stored is not None
    assert stored.power_state == PowerState.CRASHED

    if is_fenced:
        await written(world.store, replace(fence, state=FenceState.WITHDRAWN, ended_at=world.clock()))
    else:
        back = replace(await world.node(vm.node_id), phase=Phase.READY)
        await world.store.run(lambda tx: tx.update_node(back))
    await world.keeper.look()
    await world.settle()
    stored = await world.stored(vm.id)
    assert stored is not None
    assert stored.power_state == PowerState.RUNNING


async def test_vm_that_was_stopped_on_request_stays_off(world: World) -> None:
    vm = await running(world, condition=ALWAYS)
    await world.vms.stop(vm_api.StopVMRequest(id=vm.id, force=True))

    await world.keeper.look()
    await world.settle()

    assert (await world.vms.get(vm.id)).power_state == PowerState.STOPPED


async def test_two_processes_ask_for_the_same_restart_and_it_happens_once(world: World) -> None:
    vm = await running(world, condition=ALWAYS)
    await stops_by_itself(world, vm, node_api.VM_POWER_STATE_STOPPED)
    seen = await world.store.read(lambda tx: tx.stopped_against_will())
    restart = restart_of(seen[0])
    assert restart is not None

    await world.keeper.restart(seen[0], restart)
    await world.settle()
    await world.keeper.restart(seen[0], restart)  # as another process that looked at the same moment
    await world.settle()

    assert world.host_of(vm).methods(vm.id).count("start_vm") == 2  # the first start and one restart
    assert (await world.vms.get(vm.id)).restart_count == 1


async def test_restarts_that_fail_count_and_end_with_the_policys_number(world: World) -> None:
    vm = await running(world, condition=ALWAYS, max_restarts=3)
    await stops_by_itself(world, vm, node_api.VM_POWER_STATE_STOPPED)
    world.host_of(vm).fail("start_vm", FailedPrecondition(Reason.HYPERVISOR_REFUSED, "no memory"))

    for _ in range(10):
        world.clock.advance(MAX_BACK_OFF_S)
        await world.keeper.look()
        await world.settle()

    after = await world.vms.get(vm.id)
    # And once on another node, of which there is none.
    assert (after.power_state, after.restart_count) == (PowerState.STOPPED, 3 + 1)
    assert after.error_message.startswith("no memory; on other nodes: ")
    assert world.host_of(vm).methods(vm.id).count("start_vm") == 4


async def test_start_on_request_begins_the_count_anew(world: World) -> None:
    vm = await running(world, condition=ALWAYS)
    for _ in range(2):
        await stops_by_itself(world, vm, node_api.VM_POWER_STATE_STOPPED)
        world.clock.advance(MAX_BACK_OFF_S)
        await world.keeper.look()
        await world.settle()
    assert (await world.vms.get(vm.id)).restart_count == 2

    await world.vms.stop(vm_api.StopVMRequest(id=vm.id, force=True))
    await world.vms.start(vm.id)

    assert (await world.vms.get(vm.id)).restart_count == 0


def test_due_time_counts_from_the_last_change() -> None:
    vm = stopped()
    later = replace(vm, updated_at=vm.updated_at + timedelta(seconds=60))
    first, second = restart_of(vm), restart_of(later)
    assert first is not None
    assert second is not None
    assert second.due_at - first.due_at == timedelta(seconds=60)
