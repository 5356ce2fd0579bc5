"""Snapshots through the service: what is recorded is the host's word, and what a failure leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from controlplane.domain import documents, errors, snapshots
from controlplane.domain.event import EventFilter
from controlplane.domain.node import Capacity
from controlplane.domain.vm import PowerState, Vm
from controlplane.operations.desk import Caller
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.vm_pb2 import CpuConfig, HaPolicy, MemoryConfig, Snapshot, TemplateConfig, VmSpec
from limiquantix.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Reason,
    ResourceExhausted,
    Unavailable,
)
from tests.support.builders import GIB, make_id, make_vm
from tests.support.control_plane_world import World
from tests.support.fake_daemons import unreachable


async def take(world: World, vm: Vm, name: str, *, include_memory: bool = False, quiesce: bool = False) -> Snapshot:
    request = api.CreateSnapshotRequest(vm_id=vm.id, name=name, include_memory=include_memory, quiesce=quiesce)
    return await world.snapshots.create(request)


async def revert(world: World, vm: Vm, snapshot: Snapshot, *, start: bool = False) -> Vm:
    request = api.RevertToSnapshotRequest(vm_id=vm.id, snapshot_id=snapshot.id, start_after_revert=start)
    await world.snapshots.revert(request)
    return await now(world, vm)


async def now(world: World, vm: Vm) -> Vm:
    stored = await world.stored(vm.id)
    assert stored is not None
    return stored


def names(vm: Vm) -> list[str]:
    return [each.name for each in documents.virtual_machine(vm).status.snapshots.snapshots]


async def events_of(world: World, vm: Vm) -> set[str]:
    found = await world.store.read(lambda tx: tx.newest_events(EventFilter(resource_id=vm.id), 100))
    return {each.event.type for each in found}


async def test_fault_15_snapshots_have_ids_of_ours_and_what_the_host_says(world: World) -> None:
    await world.add_node()
    vm = await world.create(start=True)
    first = await take(world, vm, "one")
    second = await take(world, vm, "two", include_memory=True)

    told = await world.snapshots.list(api.ListSnapshotsRequest(vm_id=vm.id))
    assert [each.id for each in told] == [first.id, second.id] == list(world.host_of(vm).vms[vm.id].snapshots)
    assert (second.parent_id, second.memory_included, second.is_current) == (first.id, True, True)
    shown = documents.virtual_machine(await now(world, vm)).status.snapshots
    assert (shown.current_snapshot_id, [each.name for each in shown.snapshots]) == (second.id, ["one", "two"])
    assert not any(each.HasField("spec") for each in (*shown.snapshots, first, second))
    assert "vm.snapshot_created" in await events_of(world, vm)


async def test_create_with_a_taken_name_is_refused_before_the_host_is_asked(world: World) -> None:
    await world.add_node()
    vm = await world.create()
    await take(world, vm, "same")
    world.host_of(vm).calls.clear()
    with pytest.raises(AlreadyExists) as caught:
        await take(world, vm, "same")
    assert caught.value.reason == Reason.SNAPSHOT_NAME_TAKEN
    assert world.host_of(vm).calls == []


async def test_create_beyond_the_limit_is_refused(world: World) -> None:
    await world.add_node()
    vm = await world.create()
    for number in range(snapshots.MAX_SNAPSHOTS):
        await take(world, vm, f"s{number}")
    with pytest.raises(ResourceExhausted) as caught:
        await take(world, vm, "one more")
    assert caught.value.reason == Reason.TOO_MANY_SNAPSHOTS


async def test_memory_and_quiescing_at_once_is_a_faulty_request(world: World) -> None:
    await world.add_node()
    vm = await world.create(start=True)
    with pytest.raises(InvalidArgument) as caught:
        await take(world, vm, "both", include_memory=True, quiesce=True)
    assert [violation.field for violation in caught.value.violations] == ["quiesce"]


async def test_memory_and_quiescing_need_a_vm_that_runs(world: World) -> None:
    await world.add_node()
    vm = await world.create()
    with pytest.raises(FailedPrecondition, match="save the memory of"):
        await take(world, vm, "a", include_memory=True)
    with pytest.raises(FailedPrecondition, match="quiesce"):
        await take(world, vm, "b", quiesce=True)
    assert names(await now(world, vm)) == []


async def test_template_takes_no_snapshots_and_is_not_reverted(world: World) -> None:
    vm = make_vm(spec=VmSpec(template=TemplateConfig(is_template=True)))
    checks: list[Callable[[], None]] = [
        lambda: snapshots.require_snapshot_allowed(vm, "x", include_memory=False, quiesce=False),
        lambda: snapshots.require_revert_allowed(vm),
        lambda: snapshots.require_delete_allowed(vm),
    ]
    for check in checks:
        with pytest.raises(FailedPrecondition) as caught:
            check()
        assert caught.value.reason == Reason.VM_IS_TEMPLATE


async def test_repeated_request_makes_one_snapshot(world: World) -> None:
    await world.add_node()
    vm = await world.create()
    caller = Caller(request_id="r1", request_digest="d")
    request = api.CreateSnapshotRequest(vm_id=vm.id, name="once")
    first, again = [await world.snapshots.create(request, caller) for _ in range(2)]
    assert first == again
    assert names(await now(world, vm)) == ["once"]


async def test_answer_that_was_lost_is_found_by_its_id(world: World) -> None:
    await world.add_node()
    vm = await world.create()
    world.host_of(vm).fail("create_snapshot", unreachable(), after_acting=True, times=1)
    made = await take(world, vm, "once")
    assert list(world.host_of(vm).vms[vm.id].snapshots) == [made.id]


async def test_refused_creation_is_undone_and_told(world: World) -> None:
    await world.add_node()
    vm = await world.create(start=True)
    refusal = FailedPrecondition(Reason.CANNOT_QUIESCE, "no agent")
    world.host_of(vm).fail("create_snapshot", refusal, after_acting=True)
    with pytest.raises(FailedPrecondition) as caught:
        await take(world, vm, "quiet", quiesce=True)
    assert caught.value.reason == Reason.CANNOT_QUIESCE
    after = await now(world, vm)
    assert (names(after), after.error_message, after.power_state) == ([], "no agent", PowerState.RUNNING)
    assert world.host_of(vm).vms[vm.id].snapshots == {}


async def test_creation_that_could_not_be_undone_is_removed_when_the_host_reports(world: World) -> None:
    node = await world.add_node()
    vm = await world.create()
    host = world.host_of(vm)
    host.fail("create_snapshot", unreachable(), after_acting=True)
    host.fail("delete_snapshot", unreachable())
    with pytest.raises(Unavailable):
        await take(world, vm, "lost")
    assert [each.is_abandoned for each in (await now(world, vm)).details.snapshots.snapshots] == [True]
    host.heal()
    await world.report_everything(node.id)
    await world.settle()
    assert host.vms[vm.id].snapshots == {}
    assert names(await now(world, vm)) == []


async def test_deletion_whose_answer_was_lost_for_good_is_recorded_as_done(world: World) -> None:
    await world.add_node()
    vm = await world.create()
    made = await take(world, vm, "gone")
    child = await take(world, vm, "child")
    world.host_of(vm).fail("delete_snapshot", unreachable(), after_acting=True)
    with pytest.raises(Unavailable):
        await world.snapshots.delete(api.DeleteSnapshotRequest(vm_id=vm.id, snapshot_id=made.id))
    (left,) = (await now(world, vm)).details.snapshots.snapshots
    assert (left.id, left.parent_id, left.is_abandoned) == (child.id, "", False)


async def test_delete_of_the_middle_keeps_the_child(world: World) -> None:
    await world.add_node()
    vm = await world.create()
    one, two, three = [await take(world, vm, name) for name in ("one", "two", "three")]
    await world.snapshots.delete(api.DeleteSnapshotRequest(vm_id=vm.id, snapshot_id=two.id))
    left = (await now(world, vm)).details.snapshots.snapshots
    assert [(each.id, each.parent_id) for each in left] == [(one.id, ""), (three.id, one.id)]
    assert "vm.snapshot_deleted" in await events_of(world, vm)
    with pytest.raises(NotFound) as caught:
        await world.snapshots.delete(api.DeleteSnapshotRequest(vm_id=vm.id, snapshot_id=two.id))
    assert caught.value.reason == Reason.SNAPSHOT_NOT_FOUND


async def test_revert_brings_size_and_devices_back_and_keeps_policies(world: World) -> None:
    node = await world.add_node()
    vm = await world.create(cores=4)
    small = await take(world, vm, "before")
    policy = HaPolicy(auto_restart=True)
    spec = VmSpec(cpu=CpuConfig(cores=2), memory=MemoryConfig(size_mib=vm.spec.memory.size_mib), ha_policy=policy)
    await world.vms.update(api.UpdateVMRequest(id=vm.id, spec=spec))
    assert (await world.allocated(node.id)).vcpus == 2

    after = await revert(world, vm, small)

    assert (after.spec.cpu.cores, after.spec.ha_policy.auto_restart) == (4, True)
    assert (after.power_state, after.wanted_state) == (PowerState.STOPPED, PowerState.STOPPED)
    assert await world.allocated(node.id) == Capacity(4, vm.memory_bytes)
    assert "vm.snapshot_reverted" in await events_of(world, vm)


async def test_revert_to_a_size_that_the_node_has_no_room_for_is_refused(world: World) -> None:
    node = await world.add_node(vcpus=4, memory_bytes=32 * GIB)
    vm = await world.create(cores=4)
    large = await take(world, vm, "large")
    spec = VmSpec(cpu=CpuConfig(cores=1), memory=MemoryConfig(size_mib=vm.spec.memory.size_mib))
    await world.vms.update(api.UpdateVMRequest(id=vm.id, spec=spec))
    await world.create("other", cores=3)
    before = await world.allocated(node.id)
    world.host_of(vm).calls.clear()
    with pytest.raises(ResourceExhausted):
        await revert(world, vm, large)
    assert await world.allocated(node.id) == before
    assert "revert_snapshot" not in world.host_of(vm).methods(vm.id)


async def test_failed_revert_gives_back_what_it_claimed(world: World) -> None:
    node = await world.add_node()
    vm = await world.create(cores=4)
    large = await take(world, vm, "large")
    spec = VmSpec(cpu=CpuConfig(cores=1), memory=MemoryConfig(size_mib=vm.spec.memory.size_mib))
    await world.vms.update(api.UpdateVMRequest(id=vm.id, spec=spec))
    before = await world.allocated(node.id)
    world.host_of(vm).fail("revert_snapshot", FailedPrecondition(Reason.SNAPSHOT_UNSUPPORTED, "a disk is gone"))
    with pytest.raises(FailedPrecondition, match="a disk is gone"):
        await revert(world, vm, large)
    after = await now(world, vm)
    assert (await world.allocated(node.id), after.spec.cpu.cores, after.error_message) == (before, 1, "a disk is gone")


@pytest.mark.parametrize(("memory", "start"), [(True, False), (False, True), (False, False)])
async def test_revert_of_a_running_vm_runs_afterwards_only_with_memory_or_if_asked(
    world: World, memory: bool, start: bool
) -> None:
    await world.add_node()
    vm = await world.create(start=True)
    made = await take(world, vm, "s", include_memory=memory)
    after = await revert(world, vm, made, start=start)
    expected = PowerState.RUNNING if memory or start else PowerState.STOPPED
    assert (after.power_state, after.wanted_state) == (expected, expected)


async def test_revert_while_another_operation_runs_waits_for_it(world: World) -> None:
    await world.add_node()
    vm = await world.create()
    made = await take(world, vm, "s")
    gate = world.host_of(vm).hold("start_vm")
    starting = asyncio.create_task(world.vms.start(vm.id))
    await gate.entered.wait()
    reverting = asyncio.create_task(revert(world, vm, made))
    await asyncio.sleep(0.05)
    assert "revert_snapshot" not in world.host_of(vm).methods(vm.id)
    gate.release()
    await starting
    assert (await reverting).power_state == PowerState.STOPPED
    assert world.host_of(vm).most_at_once[vm.id] == 1


async def test_vm_of_another_tool_and_one_that_migrates_are_left_alone(world: World) -> None:
    foreign, moving = make_vm(is_managed=False), make_vm(power_state=PowerState.MIGRATING)
    for vm, reason in ((foreign, Reason.VM_NOT_MANAGED), (moving, Reason.VM_STATE_FORBIDS)):
        with pytest.raises(FailedPrecondition) as caught:
            snapshots.require_revert_allowed(vm)
        assert caught.value.reason == reason
    elsewhere = replace(make_vm(power_state=PowerState.STOPPED), sightings={make_id(): PowerState.RUNNING})
    with pytest.raises(FailedPrecondition) as caught:
        snapshots.require_revert_allowed(elsewhere)
    assert caught.value.reason == Reason.VM_RUNS_ELSEWHERE


async def test_revert_to_what_is_not_there_is_not_found(world: World) -> None:
    await world.add_node()
    vm = await world.create()
    with pytest.raises(NotFound):
        await revert(world, vm, Snapshot(id=make_id()))
    assert (await now(world, vm)).power_state == PowerState.STOPPED


async def test_fault_10_suspend_is_the_hosts_doing_and_nobody_restarts_the_vm(world: World) -> None:
    node = await world.add_node()
    vm = await world.create(start=True)
    policy = HaPolicy(auto_restart=True, condition=HaPolicy.ALWAYS)
    await world.vms.update(
        api.UpdateVMRequest(id=vm.id, spec=VmSpec(cpu=vm.spec.cpu, memory=vm.spec.memory, ha_policy=policy))
    )
    after = await world.vms.suspend(vm.id)
    assert (after.power_state, after.wanted_state) == (PowerState.SUSPENDED, PowerState.RUNNING)
    assert "vm.suspended" in await events_of(world, vm)
    world.clock.advance(3600)
    await world.report_everything(node.id)
    await world.keeper.look()
    await world.settle()
    assert (await now(world, vm)).power_state == PowerState.SUSPENDED
    assert (await world.vms.start(vm.id)).power_state == PowerState.RUNNING


async def test_suspend_that_the_host_refuses_leaves_the_vm_running(world: World) -> None:
    await world.add_node()
    vm = await world.create(start=True)
    world.host_of(vm).fail("suspend_vm", FailedPrecondition(Reason.HYPERVISOR_REFUSED, "no space"))
    with pytest.raises(FailedPrecondition, match="no space"):
        await world.vms.suspend(vm.id)
    assert (await now(world, vm)).power_state == PowerState.RUNNING


async def test_forced_stop_drops_what_a_suspended_vm_saved_and_a_graceful_one_is_refused(world: World) -> None:
    await world.add_node()
    vm = await world.create(start=True)
    await world.vms.suspend(vm.id)
    with pytest.raises(FailedPrecondition, match="SUSPENDED"):
        await world.vms.stop(api.StopVMRequest(id=vm.id))
    assert (await world.vms.stop(api.StopVMRequest(id=vm.id, force=True))).power_state == PowerState.STOPPED


def test_error_of_a_missing_snapshot_names_both_ids() -> None:
    error = errors.snapshot_not_found("v", "s")
    assert (error.metadata["vm_id"], error.metadata["snapshot_id"]) == ("v", "s")
