"""What hosts report: single changes and full states, in whatever order they arrive."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from controlplane.domain.node import Capacity, Node
from controlplane.domain.vm import PowerState, Vm
from limiquantix.compute.v1 import node_service_pb2 as api
from limiquantix.errors import NotFound, Reason
from limiquantix.inventory import state_hash
from tests.support.builders import make_id, make_vm
from tests.support.control_plane_world import World
from tests.support.stores import place

RUNNING, STOPPED, PAUSED = api.VM_POWER_STATE_RUNNING, api.VM_POWER_STATE_STOPPED, api.VM_POWER_STATE_PAUSED


def report(vm_id: str, state: api.VMPowerState.ValueType, change_count: int) -> api.VMStatusReport:
    return api.VMStatusReport(id=vm_id, state=state, state_change_count=change_count)


def change(
    node_id: str,
    vm_id: str,
    state: api.VMPowerState.ValueType = RUNNING,
    count: int = 10,
    event: api.VMChangeEventType.ValueType = api.VM_CHANGE_UPDATED,
) -> api.VMChangeNotification:
    return api.VMChangeNotification(node_id=node_id, vm=report(vm_id, state, count), event_type=event)


def sync(node_id: str, *reports: api.VMStatusReport, as_of: int = 0) -> api.SyncFullStateRequest:
    return api.SyncFullStateRequest(node_id=node_id, vms=reports, as_of_change_count=as_of)


@pytest.fixture
async def node(world: World) -> Node:
    return await world.add_node()


@pytest.fixture
async def vm(world: World, node: Node) -> Vm:
    """A VM that was reported as STOPPED with change count 5."""
    vm = make_vm(node_id=node.id, reported_change_count=5)
    await world.store.run(lambda tx: tx.insert_vm(vm))
    return vm


async def stored(world: World, vm: Vm) -> Vm:
    found = await world.stored(vm.id)
    assert found is not None
    return found


# -- one change


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        (api.VM_POWER_STATE_RUNNING, PowerState.RUNNING),
        (api.VM_POWER_STATE_STOPPED, PowerState.STOPPED),
        (api.VM_POWER_STATE_SHUTOFF, PowerState.STOPPED),
        (api.VM_POWER_STATE_PAUSED, PowerState.PAUSED),
        (api.VM_POWER_STATE_SUSPENDED, PowerState.SUSPENDED),
        (api.VM_POWER_STATE_CRASHED, PowerState.CRASHED),
        (api.VM_POWER_STATE_MIGRATING, PowerState.MIGRATING),
        (api.VM_POWER_STATE_UNKNOWN, PowerState.UNKNOWN),
    ],
)
async def test_change_is_recorded_in_our_words(
    world: World, vm: Vm, reported: api.VMPowerState.ValueType, expected: PowerState.ValueType
) -> None:
    assert await world.reports.vm_changed(change(vm.node_id, vm.id, reported, 6)) == "UPDATED"

    after = await stored(world, vm)
    assert (after.power_state, after.reported_change_count, after.last_seen_at) == (expected, 6, world.clock.at)


async def test_older_change_is_dropped_and_an_equal_one_repeated(world: World, vm: Vm) -> None:
    assert await world.reports.vm_changed(change(vm.node_id, vm.id, RUNNING, 9)) == "UPDATED"
    assert await world.reports.vm_changed(change(vm.node_id, vm.id, STOPPED, 8)) == "STALE"
    assert await world.reports.vm_changed(change(vm.node_id, vm.id, RUNNING, 9)) == "UPDATED"

    after = await stored(world, vm)
    assert (after.power_state, after.reported_change_count) == (PowerState.RUNNING, 9)


async def test_changes_in_any_order_end_in_the_newest(world: World, vm: Vm) -> None:
    changes = [change(vm.node_id, vm.id, STOPPED if n % 2 else RUNNING, n) for n in range(6, 17)]
    order = [*changes[5:], *changes[:5], *reversed(changes)]

    await asyncio.gather(*(world.reports.vm_changed(each) for each in order))

    after = await stored(world, vm)
    assert (after.power_state, after.reported_change_count) == (PowerState.RUNNING, 16)


async def test_removed_vm_is_lost_and_an_older_report_does_not_bring_it_back(world: World, vm: Vm) -> None:
    removed = change(vm.node_id, vm.id, STOPPED, 8, api.VM_CHANGE_DELETED)
    assert await world.reports.vm_changed(removed) == "LOST"
    assert await world.reports.vm_changed(change(vm.node_id, vm.id, RUNNING, 7)) == "STALE"

    after = await stored(world, vm)
    assert after.power_state == PowerState.LOST
    assert after.lost_reason


async def test_stale_removal_does_not_lose_a_vm(world: World, vm: Vm) -> None:
    removed = change(vm.node_id, vm.id, STOPPED, 4, api.VM_CHANGE_DELETED)

    assert await world.reports.vm_changed(removed) == "STALE"
    assert (await stored(world, vm)).power_state == PowerState.STOPPED


async def test_lost_vm_that_is_back_is_no_longer_lost(world: World, vm: Vm) -> None:
    await world.reports.vm_changed(change(vm.node_id, vm.id, STOPPED, 8, api.VM_CHANGE_DELETED))
    await world.reports.vm_changed(change(vm.node_id, vm.id, RUNNING, 9))

    after = await stored(world, vm)
    assert (after.power_state, after.lost_reason) == (PowerState.RUNNING, "")


async def test_change_of_an_unknown_vm_of_ours_is_left_to_the_full_state(world: World, node: Node) -> None:
    ours = change(node.id, make_id())
    ours.vm.is_managed = True

    assert await world.reports.vm_changed(ours) == "IGNORED"
    assert await world.all_vms() == []


async def test_change_from_another_node_is_not_believed(world: World, vm: Vm) -> None:
    other = await world.add_node()

    assert await world.reports.vm_changed(change(other.id, vm.id)) == "MISPLACED"
    after = await stored(world, vm)
    assert (after.power_state, after.node_id) == (vm.power_state, vm.node_id)
    assert after.sightings == {other.id: PowerState.RUNNING}


async def test_report_keeps_the_last_error_of_an_operation(world: World, vm: Vm) -> None:
    async def fail(tx):  # type: ignore[no-untyped-def]
        await tx.update_vm(replace(vm, error_message="the guest did not react"))

    await world.store.run(fail)

    await world.reports.vm_changed(change(vm.node_id, vm.id))

    assert (await stored(world, vm)).error_message == "the guest did not react"


# -- the full state


async def test_full_state_of_an_unknown_node_is_not_found(world: World) -> None:
    with pytest.raises(NotFound) as caught:
        await world.reports.full_state(sync(make_id()))
    assert caught.value.reason == Reason.NODE_NOT_FOUND


async def test_full_state_updates_what_is_there_and_loses_what_is_not(world: World, node: Node, vm: Vm) -> None:
    gone = make_vm(node_id=node.id, power_state=PowerState.RUNNING)
    await world.store.run(lambda tx: tx.insert_vm(gone))

    outcome = await world.reports.full_state(sync(node.id, report(vm.id, RUNNING, 7)))

    assert (outcome.reconciled, outcome.lost, outcome.discovered) == (1, [gone.id], [])
    assert (await stored(world, vm)).power_state == PowerState.RUNNING
    assert (await stored(world, gone)).power_state == PowerState.LOST


async def test_full_state_twice_changes_nothing_more(world: World, node: Node, vm: Vm) -> None:
    gone = make_vm(node_id=node.id)
    await world.store.run(lambda tx: tx.insert_vm(gone))
    first = await world.reports.full_state(sync(node.id))
    lost_at = (await stored(world, gone)).state_changed_at
    world.clock.advance(60)

    second = await world.reports.full_state(sync(node.id))

    assert set(first.lost) == {vm.id, gone.id}
    assert second.lost == []
    assert (await stored(world, gone)).state_changed_at == lost_at


async def test_lost_vm_keeps_its_claim_until_it_is_deleted(world: World, node: Node) -> None:
    vm = await world.create(cores=4)
    await world.reports.full_state(sync(node.id))

    assert (await stored(world, vm)).power_state == PowerState.LOST
    assert (await world.allocated(node.id)).vcpus == 4


async def test_stale_count_in_a_full_state_is_dropped(world: World, node: Node, vm: Vm) -> None:
    await world.reports.full_state(sync(node.id, report(vm.id, RUNNING, 4)))

    assert (await stored(world, vm)).power_state == PowerState.STOPPED


async def test_vm_that_changed_after_the_list_was_taken_is_not_lost(world: World, node: Node, vm: Vm) -> None:
    outcome = await world.reports.full_state(sync(node.id, as_of=4))
    assert outcome.lost == []
    assert (await stored(world, vm)).power_state == PowerState.STOPPED

    outcome = await world.reports.full_state(sync(node.id, as_of=5))
    assert outcome.lost == [vm.id]


async def test_vm_under_creation_is_neither_lost_nor_abandoned(world: World, node: Node) -> None:
    gate = world.daemons.of(node.id).hold("create_vm")
    creation = asyncio.ensure_future(world.create())
    await gate.entered.wait()

    outcome = await world.reports.full_state(sync(node.id))

    assert (outcome.lost, outcome.abandoned) == ([], [])
    gate.release()
    assert (await creation).power_state == PowerState.STOPPED


async def test_create_that_a_program_without_operations_left_is_removed_with_its_claim(
    world: World, node: Node
) -> None:
    left = make_vm(node_id=node.id, power_state=PowerState.PROVISIONING, cores=4)
    await place(world.store, left)

    outcome = await world.reports.full_state(sync(node.id))

    assert outcome.abandoned == [left.id]
    assert await world.all_vms() == []
    assert await world.allocated(node.id) == Capacity(0, 0)


async def test_create_that_a_dead_control_plane_left_on_the_host_is_kept(world: World, node: Node) -> None:
    left = make_vm(node_id=node.id, power_state=PowerState.PROVISIONING)
    await world.store.run(lambda tx: tx.insert_vm(left))

    outcome = await world.reports.full_state(sync(node.id, report(left.id, STOPPED, 3)))

    assert (outcome.abandoned, outcome.reconciled) == ([], 1)
    assert (await stored(world, left)).power_state == PowerState.STOPPED


async def test_full_state_is_asked_for_until_what_is_recorded_is_what_the_host_has(world: World, node: Node) -> None:
    async def is_asked(*reports: api.VMStatusReport) -> bool:
        digest = state_hash({each.id: each.state for each in reports})
        beat = api.UpdateHeartbeatRequest(node_id=node.id, state_hash=digest)
        return (await world.heartbeats.heartbeat(beat)).request_full_sync

    assert not await is_asked()
    vm = await world.create()
    assert await is_asked()
    assert not await is_asked(report(vm.id, STOPPED, 1))
    running = report(vm.id, RUNNING, 2)
    assert await is_asked(running)
    await world.reports.full_state(sync(node.id, running))
    world.restart()
    assert not await is_asked(running)
    stranger = report(make_id(), PAUSED, 1)
    assert await is_asked(running, stranger)
    await world.reports.full_state(sync(node.id, running, stranger))
    assert not await is_asked(running, stranger)


async def test_daemon_that_sends_no_digest_is_not_asked(world: World, node: Node) -> None:
    await world.create()

    beat = api.UpdateHeartbeatRequest(node_id=node.id)
    assert not (await world.heartbeats.heartbeat(beat)).request_full_sync
