"""What was left half done on a host, and is ended when the host tells of itself."""

from __future__ import annotations

import pytest

from controlplane.domain.event import EventFilter, EventType
from controlplane.domain.node import Capacity, Node
from controlplane.domain.operation import Operation, OperationFilter, OperationState
from controlplane.domain.vm import PowerState
from limiquantix.compute.v1 import node_service_pb2 as node_api
from limiquantix.compute.v1 import vm_service_pb2 as vm_api
from limiquantix.errors import Aborted, FailedPrecondition, NotFound, Reason, Unavailable
from limiquantix.inventory import state_hash
from tests.support.control_plane_world import World
from tests.support.fake_daemons import RUNNING, FakeDaemon, unreachable


@pytest.fixture
async def node(world: World) -> Node:
    return await world.add_node()


@pytest.fixture
def host(world: World, node: Node) -> FakeDaemon:
    return world.daemons.of(node.id)


async def operations_of(world: World, vm_id: str) -> list[Operation]:
    """Oldest first."""
    page = await world.desk.list(OperationFilter(resource_id=vm_id), None, 20)
    return sorted(page.items, key=lambda operation: operation.position)


async def is_asked_for_everything(world: World, node: Node) -> bool:
    """Whether a heartbeat of an empty host is answered by asking for its full state."""
    beat = node_api.UpdateHeartbeatRequest(node_id=node.id, state_hash=state_hash({}))
    return (await world.heartbeats.heartbeat(beat)).request_full_sync


async def test_images_of_a_failed_create_are_removed_though_no_host_reports_them(
    world: World, node: Node, host: FakeDaemon
) -> None:
    host.fail("*", unreachable())
    with pytest.raises(Unavailable):
        await world.create()
    ((_, vm_id), *_) = host.calls
    host.heal()
    assert host.vms == {}
    assert await is_asked_for_everything(world, node)

    outcome = await world.report_everything(node.id)
    await world.settle()

    assert [leftover.id for leftover in outcome.leftovers] == [vm_id]
    assert host.methods(vm_id)[-1] == "delete_vm"  # which removes images without a VM too
    assert not await is_asked_for_everything(world, node)
    assert (await world.report_everything(node.id)).leftovers == []


async def test_clean_up_that_got_half_way_is_begun_again(world: World, node: Node, host: FakeDaemon) -> None:
    vm = await world.create()
    twin = host.vms[vm.id]
    await world.vms.delete(vm_api.DeleteVMRequest(id=vm.id))
    host.vms[vm.id] = twin  # as after a restore of the host's disk
    host.fail("delete_vm", FailedPrecondition(Reason.DISK_IMAGE_FAILED, "the disk is broken"), after_acting=True)
    await world.report_everything(node.id)
    await world.settle()
    assert host.vms == {}
    assert await is_asked_for_everything(world, node)
    host.heal()

    await world.report_everything(node.id)
    await world.settle()

    clean_ups = [each.state for each in await operations_of(world, vm.id) if each.kind == "vm.clean_up"]
    assert sorted(clean_ups) == sorted([OperationState.FAILED, OperationState.SUCCEEDED])
    assert not await is_asked_for_everything(world, node)


@pytest.mark.parametrize("how", ["full state", "change"])
async def test_deletion_that_the_host_began_and_nobody_heard_of_is_ended_and_the_vm_not_lost(
    world: World, node: Node, host: FakeDaemon, how: str
) -> None:
    vm = await world.create()
    host.fail("delete_vm", unreachable(), after_acting=True)
    with pytest.raises(Unavailable):
        await world.vms.delete(vm_api.DeleteVMRequest(id=vm.id))
    assert await world.stored(vm.id) is not None
    host.heal()

    if how == "full state":
        outcome = await world.report_everything(node.id)
        assert (outcome.half_deleted, outcome.lost) == ([vm.id], [])
    else:
        report = node_api.VMStatusReport(id=vm.id, state_change_count=host.change_count + 1)
        gone = node_api.VMChangeNotification(node_id=node.id, vm=report, event_type=node_api.VM_CHANGE_DELETED)
        assert await world.reports.vm_changed(gone) == "HALF_DELETED"
    await world.settle()

    assert await world.stored(vm.id) is None
    assert await world.allocated(node.id) == Capacity(0, 0)
    events = await world.store.read(lambda tx: tx.newest_events(EventFilter(resource_id=vm.id), 20))
    types = [each.event.type for each in events]
    assert (types.count(EventType.VM_DELETED), types.count(EventType.VM_LOST)) == (1, 0)


async def test_vm_that_vanishes_after_a_deletion_that_was_refused_is_lost(
    world: World, node: Node, host: FakeDaemon
) -> None:
    vm = await world.create(start=True)
    with pytest.raises(FailedPrecondition):
        await world.vms.delete(vm_api.DeleteVMRequest(id=vm.id))
    host.vms.clear()

    outcome = await world.report_everything(node.id)

    assert (outcome.lost, outcome.half_deleted) == ([vm.id], [])


async def test_deletion_in_doubt_is_ended_though_something_else_was_tried_in_vain_since(
    world: World, node: Node, host: FakeDaemon
) -> None:
    vm = await world.create()
    host.fail("delete_vm", unreachable(), after_acting=True)
    with pytest.raises(Unavailable):
        await world.vms.delete(vm_api.DeleteVMRequest(id=vm.id))
    host.heal()
    with pytest.raises(NotFound):
        await world.vms.start(vm.id)
    await world.vms.update(vm_api.UpdateVMRequest(id=vm.id, labels={"tier": "web"}))

    outcome = await world.report_everything(node.id)
    await world.settle()

    assert (outcome.half_deleted, outcome.lost) == ([vm.id], [])
    assert await world.stored(vm.id) is None


async def test_vm_that_vanishes_after_something_else_was_done_with_it_is_lost(
    world: World, node: Node, host: FakeDaemon
) -> None:
    vm = await world.create()
    host.fail("delete_vm", unreachable())
    with pytest.raises(Unavailable):
        await world.vms.delete(vm_api.DeleteVMRequest(id=vm.id))
    host.heal()
    await world.vms.start(vm.id)
    host.vms.clear()

    assert (await world.report_everything(node.id)).lost == [vm.id]


async def test_host_that_kept_a_change_that_was_taken_back_defines_the_vm_as_recorded(
    world: World, node: Node, host: FakeDaemon
) -> None:
    vm_id = (await world.create(cores=1)).id
    host.vms[vm_id].spec.cpu_cores = 3  # as after a change whose undoing did not reach the host

    outcome = await world.report_everything(node.id)
    await world.settle()

    assert outcome.otherwise_defined == [vm_id]
    assert host.vms[vm_id].spec.cpu_cores == 1
    assert (await world.report_everything(node.id)).otherwise_defined == []
    (*_, repair) = await operations_of(world, vm_id)
    assert (repair.kind, repair.state, repair.principal) == (
        "vm.update",
        OperationState.SUCCEEDED,
        "system:reconcile",
    )


async def test_running_vm_that_is_defined_in_another_size_is_defined_anew_and_runs_on(
    world: World, node: Node, host: FakeDaemon
) -> None:
    vm = await world.create(cores=1, start=True)
    host.vms[vm.id].spec.cpu_cores = 3

    assert (await world.report_everything(node.id)).otherwise_defined == [vm.id]
    await world.settle()

    assert host.vms[vm.id].spec.cpu_cores == 1
    stored = await world.stored(vm.id)
    assert stored is not None
    assert stored.power_state == PowerState.RUNNING


async def test_command_that_was_not_answered_is_refused_when_it_comes_after_its_repetition(
    world: World, node: Node, host: FakeDaemon
) -> None:
    vm = await world.create(start=True)
    before = host.generations[vm.id]
    host.fail("force_stop_vm", unreachable(), times=1)
    await world.vms.reboot(vm_api.RebootVMRequest(id=vm.id, force=True))
    (*_, reboot) = await operations_of(world, vm.id)
    assert reboot.state == OperationState.SUCCEEDED

    with pytest.raises(Aborted) as caught:  # the first try, which was on its way all the time
        await host.force_stop_vm(vm.id, before + 1)

    assert caught.value.reason == Reason.STALE_GENERATION
    assert host.vms[vm.id].state == RUNNING
