"""Deleting a VM: from its host first, then from the records, with its claim."""

from __future__ import annotations

import pytest

from controlplane.domain.node import Capacity
from controlplane.domain.vm import PowerState
from limiquantix.compute.v1.vm_service_pb2 import DeleteVMRequest
from limiquantix.errors import ApiError, FailedPrecondition, NotFound, Reason, Unavailable
from tests.support.builders import make_id, make_vm
from tests.support.control_plane_world import AT_ONCE, World
from tests.support.fake_daemons import RUNNING, unreachable

NOTHING = Capacity(0, 0)


async def test_fault_25_stopped_vm_is_deleted_everywhere_and_its_room_returned(world: World) -> None:
    node = await world.add_node()
    vm = await world.create(cores=4)

    await world.vms.delete(DeleteVMRequest(id=vm.id))

    assert await world.stored(vm.id) is None
    assert await world.allocated(node.id) == NOTHING
    assert world.host_of(vm).vms == {}
    with pytest.raises(NotFound):
        await world.vms.get(vm.id)


async def test_running_vm_is_refused_without_force_and_the_host_not_asked(world: World) -> None:
    await world.add_node()
    vm = await world.create(start=True)
    world.host_of(vm).calls.clear()

    with pytest.raises(FailedPrecondition, match="set force") as caught:
        await world.vms.delete(DeleteVMRequest(id=vm.id))

    assert caught.value.metadata["state"] == "RUNNING"
    assert world.host_of(vm).calls == []
    assert await world.stored(vm.id) == vm


async def test_running_vm_is_stopped_and_deleted_with_force(world: World) -> None:
    node = await world.add_node()
    vm = await world.create(start=True)
    world.host_of(vm).calls.clear()

    await world.vms.delete(DeleteVMRequest(id=vm.id, force=True))

    assert world.host_of(vm).methods(vm.id) == ["force_stop_vm", "delete_vm"]
    assert await world.allocated(node.id) == NOTHING


async def test_vm_the_host_no_longer_has_is_deleted_with_force(world: World) -> None:
    await world.add_node()
    vm = await world.create()
    world.host_of(vm).vms.clear()

    await world.vms.delete(DeleteVMRequest(id=vm.id, force=True))

    assert await world.stored(vm.id) is None


async def test_fault_25_inventory_only_forgets_the_vm_and_leaves_the_host_alone(world: World) -> None:
    node = await world.add_node()
    vm = await world.create(start=True)
    host = world.host_of(vm)
    host.calls.clear()
    host.fail("*", unreachable())

    await world.vms.delete(DeleteVMRequest(id=vm.id, remove_from_inventory_only=True))

    assert await world.stored(vm.id) is None
    assert await world.allocated(node.id) == NOTHING
    assert host.calls == []
    assert host.vms[vm.id].state == RUNNING


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("error", [unreachable(), FailedPrecondition(Reason.HYPERVISOR_REFUSED, "busy")])
async def test_vm_stays_when_its_host_does_not_delete_it(world: World, error: ApiError, force: bool) -> None:
    node = await world.add_node()
    vm = await world.create(cores=4)
    world.host_of(vm).fail("*", error)

    with pytest.raises(type(error)):
        await world.vms.delete(DeleteVMRequest(id=vm.id, force=force))

    stored = await world.stored(vm.id)
    assert stored is not None
    assert stored.power_state == PowerState.STOPPED
    assert (await world.allocated(node.id)).vcpus == 4


@pytest.mark.parametrize("lost_count", [1, 4])
async def test_delete_whose_answers_are_lost_succeeds_in_the_end(world: World, lost_count: int) -> None:
    node = await world.add_node()
    vm = await world.create()
    world.host_of(vm).fail("delete_vm", unreachable(), after_acting=True, times=lost_count)

    if lost_count > len(AT_ONCE.do_pauses_s):
        with pytest.raises(Unavailable):
            await world.vms.delete(DeleteVMRequest(id=vm.id))
    await world.vms.delete(DeleteVMRequest(id=vm.id))

    assert await world.allocated(node.id) == NOTHING


@pytest.mark.parametrize("force", [False, True])
async def test_unknown_vm_is_not_found(world: World, force: bool) -> None:
    with pytest.raises(NotFound) as caught:
        await world.vms.delete(DeleteVMRequest(id=make_id(), force=force))
    assert caught.value.reason == Reason.VM_NOT_FOUND


async def test_vm_on_no_node_can_be_removed_from_the_inventory(world: World) -> None:
    vm = make_vm()
    await world.store.run(lambda tx: tx.insert_vm(vm))

    with pytest.raises(FailedPrecondition):
        await world.vms.delete(DeleteVMRequest(id=vm.id))
    await world.vms.delete(DeleteVMRequest(id=vm.id, remove_from_inventory_only=True))

    assert await world.all_vms() == []
