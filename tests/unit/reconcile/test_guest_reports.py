"""What guests say of themselves, as hosts report it: kept while it is new, shown, and forgotten with the guest."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.domain import documents
from controlplane.domain.guests import with_guest
from controlplane.domain.node import Node
from controlplane.domain.vm import PowerState, Vm
from controlplane.services.event_lists import EventListService
from limiquantix.compute.v1 import node_service_pb2 as api
from limiquantix.compute.v1.vm_pb2 import GuestInfo, SnapshotStatus, VmStatus
from limiquantix.compute.v1.vm_service_pb2 import ListVMEventsRequest
from limiquantix.inventory import state_hash
from tests.support.builders import make_vm
from tests.support.control_plane_world import World

AS_OF = 1_000_000


@pytest.fixture
async def node(world: World) -> Node:
    return await world.add_node()


@pytest.fixture
async def vm(world: World, node: Node) -> Vm:
    """A VM that runs, reported with change count 5, with something else among its details."""
    details = VmStatus(snapshots=SnapshotStatus(current_snapshot_id="s"))
    vm = replace(make_vm(node_id=node.id, reported_change_count=5), power_state=PowerState.RUNNING, details=details)
    await world.store.run(lambda tx: tx.insert_vm(vm))
    return vm


def change(
    vm: Vm,
    *addresses: str,
    state: api.VMPowerState.ValueType = api.VM_POWER_STATE_RUNNING,
    count: int = 5,
    hostname: str = "web",
    version: str = "7.2",
    as_of: int = AS_OF,
) -> api.VMChangeNotification:
    guest = api.GuestReport(
        os_name="Debian", hostname=hostname, agent_version=version, uptime_seconds=as_of - AS_OF, as_of_unix=as_of
    )
    report = api.VMStatusReport(id=vm.id, state=state, state_change_count=count, ip_addresses=addresses, guest=guest)
    return api.VMChangeNotification(node_id=vm.node_id, vm=report, event_type=api.VM_CHANGE_UPDATED)


async def stored(world: World, vm: Vm) -> Vm:
    found = await world.stored(vm.id)
    assert found is not None
    return found


async def test_report_of_a_guest_is_shown_with_the_vm(world: World, vm: Vm) -> None:
    assert await world.reports.vm_changed(change(vm, "10.0.0.1", "10.0.0.2")) == "UPDATED"
    status = documents.virtual_machine(await stored(world, vm)).status
    assert list(status.ip_addresses) == ["10.0.0.1", "10.0.0.2"]
    assert (status.guest_info.hostname, status.guest_info.os_name) == ("web", "Debian")
    assert status.guest_info.last_heartbeat.seconds == AS_OF
    assert status.snapshots.current_snapshot_id == "s"


async def test_report_that_tells_nothing_new_writes_nothing(world: World, vm: Vm) -> None:
    await world.reports.vm_changed(change(vm, "10.0.0.1"))
    before = await stored(world, vm)
    await world.reports.vm_changed(change(vm, "10.0.0.1", as_of=AS_OF + 300))
    assert (await stored(world, vm)).version == before.version
    await world.reports.vm_changed(change(vm, "10.0.0.9", as_of=AS_OF + 300))
    after = await stored(world, vm)
    assert list(after.details.ip_addresses) == ["10.0.0.9"]
    assert after.details.guest_info.uptime_seconds == 300


async def test_report_that_is_older_than_what_is_known_is_left(world: World, vm: Vm) -> None:
    await world.reports.vm_changed(change(vm, "10.0.0.2", as_of=AS_OF + 30))
    await world.reports.vm_changed(change(vm, "10.0.0.1", as_of=AS_OF))
    assert list((await stored(world, vm)).details.ip_addresses) == ["10.0.0.2"]


async def test_report_by_a_clock_that_was_put_back_is_taken(world: World, vm: Vm) -> None:
    await world.reports.vm_changed(change(vm, "10.0.0.2", as_of=AS_OF + 100_000))
    await world.reports.vm_changed(change(vm, "10.0.0.1", as_of=AS_OF))
    assert list((await stored(world, vm)).details.ip_addresses) == ["10.0.0.1"]


async def test_report_of_an_agent_that_is_gone_clears_what_it_said(world: World, vm: Vm) -> None:
    await world.reports.vm_changed(change(vm, "10.0.0.1"))
    await world.reports.vm_changed(change(vm, version="", as_of=AS_OF + 60))
    details = (await stored(world, vm)).details
    assert not details.HasField("guest_info")
    assert not details.ip_addresses
    assert details.snapshots.current_snapshot_id == "s"


@pytest.mark.parametrize(
    "state", [api.VM_POWER_STATE_STOPPED, api.VM_POWER_STATE_CRASHED, api.VM_POWER_STATE_SUSPENDED]
)
async def test_end_of_a_guest_clears_what_it_said(world: World, vm: Vm, state: api.VMPowerState.ValueType) -> None:
    await world.reports.vm_changed(change(vm, "10.0.0.1"))
    await world.reports.vm_changed(change(vm, "10.0.0.1", state=state, count=6))
    details = (await stored(world, vm)).details
    assert (details.HasField("guest_info"), list(details.ip_addresses)) == (False, [])


async def test_pause_keeps_what_the_guest_said(world: World, vm: Vm) -> None:
    await world.reports.vm_changed(change(vm, "10.0.0.1"))
    report = api.VMStatusReport(id=vm.id, state=api.VM_POWER_STATE_PAUSED, state_change_count=6)
    request = api.VMChangeNotification(node_id=vm.node_id, vm=report, event_type=api.VM_CHANGE_UPDATED)
    await world.reports.vm_changed(request)
    after = await stored(world, vm)
    assert (after.power_state, list(after.details.ip_addresses)) == (PowerState.PAUSED, ["10.0.0.1"])


async def test_full_state_brings_what_guests_say_and_leaves_the_digest_alone(world: World, vm: Vm) -> None:
    report = change(vm, "10.0.0.1").vm
    states = {vm.id: report.state}
    await world.reports.full_state(
        api.SyncFullStateRequest(node_id=vm.node_id, vms=[report], state_hash=state_hash(states))
    )
    assert list((await stored(world, vm)).details.ip_addresses) == ["10.0.0.1"]


async def test_change_of_a_guest_is_in_the_log_with_its_addresses(world: World, vm: Vm) -> None:
    await world.reports.vm_changed(change(vm, "10.0.0.1"))
    await world.reports.vm_changed(change(vm, version="", as_of=AS_OF + 60))
    events = await EventListService(world.store).of_vm(ListVMEventsRequest(vm_id=vm.id))
    assert [event.type for event in events[:2]] == ["vm.guest_changed", "vm.guest_changed"]
    assert "no agent" in events[0].message
    assert "10.0.0.1" in events[1].message


def test_details_with_what_is_known_already_are_the_same_object() -> None:
    info = GuestInfo(hostname="web", agent_version="7.2")
    once = with_guest(VmStatus(), info, ["10.0.0.1"])
    assert with_guest(once, info, ["10.0.0.1"]) is once
    assert with_guest(VmStatus(), GuestInfo(), ()) == VmStatus()
