"""VMs that hosts have and nobody expected: found ones, those on two hosts, what is left of those that went."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.domain.documents import virtual_machine
from controlplane.domain.event import EventFilter, EventType, LoggedEvent, Severity
from controlplane.domain.node import Capacity, Node
from controlplane.domain.operation import OperationFilter
from controlplane.domain.vm import PowerState, Vm
from limiquantix.compute.v1 import node_service_pb2 as node_api
from limiquantix.compute.v1 import vm_service_pb2 as vm_api
from limiquantix.compute.v1.vm_pb2 import VM_ORIGIN_HOST_DISCOVERED, HealthStatus
from limiquantix.errors import FailedPrecondition, Reason
from limiquantix.node.v1.node_daemon_pb2 import VMSpec
from tests.support.builders import make_id
from tests.support.control_plane_world import World
from tests.support.fake_daemons import RUNNING, STOPPED, FakeVm, unreachable

MIB = 2**20


@pytest.fixture
async def node(world: World) -> Node:
    return await world.add_node()


def found(vm_id: str, **fields: Any) -> node_api.VMStatusReport:
    """A running VM with 2 vCPUs and 512 MiB that another tool made."""
    defaults: dict[str, Any] = {"name": "legacy", "state": node_api.VM_POWER_STATE_RUNNING, "state_change_count": 7}
    return node_api.VMStatusReport(id=vm_id, vcpu_count=2, memory_mib=512, **{**defaults, **fields})


def sync(node_id: str, *reports: node_api.VMStatusReport) -> node_api.SyncFullStateRequest:
    return node_api.SyncFullStateRequest(node_id=node_id, vms=reports)


async def events_of(world: World, vm_id: str) -> list[LoggedEvent]:
    """What the log says of a VM, oldest first."""
    newest = await world.store.read(lambda tx: tx.newest_events(EventFilter(resource_id=vm_id), 100))
    return list(reversed(newest))


async def the_vm(world: World) -> Vm:
    (vm,) = await world.all_vms()
    return vm


# -- found


async def test_vm_nobody_knows_is_shown_and_counted_and_not_managed(world: World, node: Node) -> None:
    vm_id = make_id()

    outcome = await world.reports.full_state(sync(node.id, found(vm_id)))

    assert outcome.discovered == [vm_id]
    vm = await the_vm(world)
    assert (vm.id, vm.name, vm.node_id, vm.power_state) == (vm_id, "legacy", node.id, PowerState.RUNNING)
    assert (vm.origin, vm.is_managed) == (VM_ORIGIN_HOST_DISCOVERED, False)
    assert (vm.vcpu_count, vm.memory_bytes) == (2, 512 * MIB)
    assert await world.allocated(node.id) == Capacity(2, 512 * MIB)
    assert [each.event.type for each in await events_of(world, vm_id)] == [EventType.VM_DISCOVERED]


async def test_found_vm_is_found_once(world: World, node: Node) -> None:
    vm_id = make_id()
    await world.reports.full_state(sync(node.id, found(vm_id)))

    outcome = await world.reports.full_state(sync(node.id, found(vm_id)))

    assert (outcome.discovered, outcome.reconciled) == ([], 1)
    assert await world.allocated(node.id) == Capacity(2, 512 * MIB)


async def test_vm_that_another_tool_makes_is_found_by_its_first_event(world: World, node: Node) -> None:
    vm_id = make_id()
    change = node_api.VMChangeNotification(node_id=node.id, vm=found(vm_id), event_type=node_api.VM_CHANGE_CREATED)

    assert await world.reports.vm_changed(change) == "DISCOVERED"

    assert (await the_vm(world)).id == vm_id


@pytest.mark.parametrize("taken", [0, 1, 2])
async def test_found_vm_gets_a_free_name(world: World, node: Node, taken: int) -> None:
    vm_id = make_id()
    for name in ("web", f"web-{vm_id[:8]}")[:taken]:
        await world.create(name)

    await world.reports.full_state(sync(node.id, found(vm_id, name="web"), *await reports_of(world, node)))

    vm = await world.vms.get(vm_id)
    assert vm.name == ("web", f"web-{vm_id[:8]}", vm_id)[taken]


async def test_more_found_than_a_node_has_room_for_is_counted_and_nothing_else_fits(world: World) -> None:
    node = await world.add_node(vcpus=2, memory_bytes=1024 * MIB)

    await world.reports.full_state(sync(node.id, found(make_id()), found(make_id(), name="other")))

    assert await world.allocated(node.id) == Capacity(4, 1024 * MIB)
    with pytest.raises(Exception, match="no node fits"):
        await world.create()


async def test_found_vm_cannot_be_changed_until_it_is_taken_over(world: World, node: Node) -> None:
    vm_id = make_id()
    await world.reports.full_state(sync(node.id, found(vm_id)))
    service = world.vms

    for change in (
        service.stop(vm_api.StopVMRequest(id=vm_id, force=True)),
        service.update(vm_api.UpdateVMRequest(id=vm_id, description="mine")),
        service.delete(vm_api.DeleteVMRequest(id=vm_id, force=True)),
    ):
        with pytest.raises(FailedPrecondition) as caught:
            await change
        assert caught.value.reason == Reason.VM_NOT_MANAGED
    assert world.daemons.of(node.id).calls == []

    host = world.daemons.of(node.id)
    host.vms[vm_id] = FakeVm("legacy", VMSpec(cpu_cores=2, memory_mib=512), RUNNING, 7)
    answer = await world.vms.service.take_over(vm_api.TakeOverVMRequest(id=vm_id))
    assert answer.is_managed
    stopped = await service.stop(vm_api.StopVMRequest(id=vm_id, force=True))
    assert stopped.is_managed
    assert host.vms[vm_id].state == STOPPED


async def test_found_vm_that_is_gone_from_its_host_is_gone_here_too(world: World, node: Node) -> None:
    await world.reports.full_state(sync(node.id, found(make_id())))

    await world.reports.full_state(sync(node.id))

    assert await world.all_vms() == []
    assert await world.allocated(node.id) == Capacity(0, 0)


# -- on two hosts


async def test_vm_on_two_hosts_is_told_and_left_alone(world: World, node: Node) -> None:
    vm = await world.create(start=True, node_id=node.id)
    other = await world.add_node()
    twin = found(vm.id, name=vm.name, is_managed=True)

    outcome = await world.reports.full_state(sync(other.id, twin))
    await world.reports.full_state(sync(other.id, twin))

    assert outcome.misplaced == [(vm.id, node.id)]
    after = await world.vms.get(vm.id)
    assert (after.node_id, after.power_state, after.sightings) == (
        node.id,
        PowerState.RUNNING,
        {other.id: PowerState.RUNNING},
    )
    health = virtual_machine(after).status.health
    assert health.status == HealthStatus.UNHEALTHY
    assert other.id in health.checks[0].message
    conflicts = [each for each in await events_of(world, vm.id) if each.event.type == EventType.VM_CONFLICT]
    assert [each.event.severity for each in conflicts] == [Severity.CRITICAL]  # told once
    assert world.daemons.of(other.id).calls == []
    assert await world.allocated(other.id) == Capacity(0, 0)


async def test_vm_that_runs_elsewhere_is_not_started(world: World, node: Node) -> None:
    vm = await world.create(node_id=node.id)
    other = await world.add_node()
    await world.reports.full_state(sync(other.id, found(vm.id)))

    with pytest.raises(FailedPrecondition, match=other.id) as caught:
        await world.vms.start(vm.id)

    assert caught.value.reason == Reason.VM_RUNS_ELSEWHERE
    assert "start_vm" not in world.host_of(vm).methods(vm.id)


@pytest.mark.parametrize("how", ["full state", "change"])
async def test_conflict_ends_when_the_other_host_no_longer_has_it(world: World, node: Node, how: str) -> None:
    vm = await world.create(node_id=node.id)
    other = await world.add_node()
    await world.reports.full_state(sync(other.id, found(vm.id)))

    if how == "full state":
        await world.reports.full_state(sync(other.id))
    else:
        gone = node_api.VMChangeNotification(node_id=other.id, vm=found(vm.id), event_type=node_api.VM_CHANGE_DELETED)
        await world.reports.vm_changed(gone)

    after = await world.vms.get(vm.id)
    assert after.sightings == {}
    assert (await events_of(world, vm.id))[-1].event.type == EventType.VM_CONFLICT_ENDED
    assert (await world.vms.start(vm.id)).power_state == PowerState.RUNNING


# -- what is left of VMs that went


async def test_vm_removed_from_the_inventory_only_is_not_shown_again(world: World, node: Node) -> None:
    vm = await world.create(start=True)
    await world.vms.delete(vm_api.DeleteVMRequest(id=vm.id, remove_from_inventory_only=True))

    outcome = await world.report_everything(node.id)

    assert outcome.discovered == []
    assert await world.all_vms() == []
    assert world.daemons.of(node.id).vms[vm.id].state == RUNNING


async def test_deleted_vm_that_a_host_has_again_is_removed_there(world: World, node: Node) -> None:
    vm = await world.create()
    host = world.daemons.of(node.id)
    twin = FakeVm(vm.name, host.vms[vm.id].spec, RUNNING, 99)
    await world.vms.delete(vm_api.DeleteVMRequest(id=vm.id))
    host.vms[vm.id] = twin  # as after a restore of the host's disk

    outcome = await world.report_everything(node.id)
    await world.settle()

    assert [leftover.id for leftover in outcome.leftovers] == [vm.id]
    assert host.vms == {}
    assert await world.all_vms() == []


async def test_leftover_is_cleaned_up_again_when_the_host_could_not_be_asked(world: World, node: Node) -> None:
    vm = await world.create()
    host = world.daemons.of(node.id)
    twin = FakeVm(vm.name, host.vms[vm.id].spec, STOPPED, 99)
    await world.vms.delete(vm_api.DeleteVMRequest(id=vm.id))
    host.vms[vm.id] = twin
    host.fail("*", unreachable())
    await world.report_everything(node.id)
    await world.settle()
    assert vm.id in host.vms
    host.heal()

    await world.report_everything(node.id)
    await world.settle()

    assert host.vms == {}
    kinds = [each.kind for each in (await world.desk.list(OperationFilter(resource_id=vm.id), None, 10)).items]
    assert kinds.count("vm.clean_up") == 2


async def reports_of(world: World, node: Node) -> list[node_api.VMStatusReport]:
    """What the node's host would report of the VMs that were created there."""
    return [
        node_api.VMStatusReport(
            id=vm_id, name=vm.name, state=node_api.VM_POWER_STATE_STOPPED, state_change_count=vm.change_count
        )
        for vm_id, vm in world.daemons.of(node.id).vms.items()
    ]
