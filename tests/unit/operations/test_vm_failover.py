"""Starting a VM elsewhere upon a proof: what is checked, what moves, and what becomes of it when something fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from controlplane.domain.event import EventType
from controlplane.domain.node import Capacity
from controlplane.domain.operation import Operation, OperationState
from controlplane.domain.vm import PowerState
from controlplane.state.factory import create_store
from limiquantix.compute.v1.ha_service_pb2 import FENCE_METHOD_LEASE_EXPIRED, FENCE_METHOD_POWER_OFF
from limiquantix.compute.v1.vm_pb2 import HaPolicy, VmStatus
from limiquantix.compute.v1.vm_service_pb2 import StopVMRequest
from limiquantix.errors import Aborted, ApiError, FailedPrecondition, Reason, Unavailable
from limiquantix.node.v1 import node_daemon_pb2 as node_v1
from tests.support.builders import START_OF_TIME, make_id
from tests.support.control_plane_world import World
from tests.support.databases import fresh_sqlite
from tests.support.failover_scene import FailoverScene, failover_scene, protected_spec, world_with_failover
from tests.support.fake_daemons import unreachable
from tests.support.fences import ended, opened, proven, written
from tests.support.migration_cluster import assert_fault, node_spec
from tests.support.stores import PATIENT

NOTHING, SIZE = Capacity(0, 0), Capacity(1, 128 * 2**20)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A control plane whose failovers ask the scheduler."""
    store = create_store(fresh_sqlite(tmp_path), PATIENT)
    await store.open()
    yield world_with_failover(store)
    await store.close()


@pytest.fixture
async def scene(world: World) -> FailoverScene:
    return await failover_scene(world)


async def assert_runs_there(scene: FailoverScene, operation: Operation) -> None:
    vm = await scene.stored()
    assert operation.state == OperationState.SUCCEEDED, operation.fault
    assert (vm.node_id, vm.power_state, vm.wanted_state) == (scene.other.id, PowerState.RUNNING, PowerState.RUNNING)
    assert (vm.sightings, vm.error_message, vm.details.failover_unfinished) == ({}, "", False)
    assert scene.there.vms[vm.id].state == node_v1.POWER_STATE_RUNNING
    assert await scene.world.allocated(scene.home.id) == NOTHING
    assert await scene.world.allocated(scene.other.id) == SIZE


# -- what happens


async def test_vm_of_a_dead_node_runs_on_the_other_one_and_the_dead_one_is_asked_nothing(scene: FailoverScene) -> None:
    fence = await scene.die()
    asked_before = len(scene.dead.calls)

    operation = await scene.fail_over(fence.id)

    await assert_runs_there(scene, operation)
    assert len(scene.dead.calls) == asked_before
    assert "create_vm" not in scene.there.methods(scene.vm.id)  # no image is made


async def test_record_and_log_say_upon_which_proof(scene: FailoverScene) -> None:
    fence = await scene.die()
    operation = await scene.fail_over(fence.id)

    assert (await scene.stored()).details.last_fence_id == fence.id
    (event,) = await scene.events(EventType.VM_FAILED_OVER)
    expected = {
        "fence_id": fence.id,
        "token": str(fence.token),
        "method": "FENCE_METHOD_LEASE_EXPIRED",
        "from_node_id": scene.home.id,
        "to_node_id": scene.other.id,
        "operation_id": operation.id,
    }
    assert expected.items() <= dict(event.metadata).items()
    assert "13.6 s passed" in event.message


async def test_vm_is_protected_at_its_new_host_and_the_command_is_newer_than_all_before(scene: FailoverScene) -> None:
    newest = scene.dead.generations[scene.vm.id]
    fence = await scene.die()
    await scene.fail_over(fence.id)

    assert scene.vm.id in scene.there.protected
    assert (await scene.stored()).is_protected
    assert scene.there.generations[scene.vm.id] > newest


async def test_commands_carry_the_leaders_epoch(scene: FailoverScene) -> None:
    fence = await scene.die()
    await scene.fail_over(fence.id)
    assert scene.there.told[-1] == (scene.other.fence_token, scene.epoch)


async def test_host_without_leases_takes_the_vm_in_unprotected(scene: FailoverScene) -> None:
    scene.there.takes_leases = False
    fence = await scene.die()
    operation = await scene.fail_over(fence.id)

    await assert_runs_there(scene, operation)
    assert not (await scene.stored()).is_protected


async def test_snapshots_and_restart_count_are_kept(scene: FailoverScene) -> None:
    await scene.change(restart_count=3)
    fence = await scene.die()
    await scene.fail_over(fence.id)
    assert (await scene.stored()).restart_count == 3


# -- what proves it dead


async def test_lease_proves_nothing_of_a_vm_that_is_not_protected(scene: FailoverScene) -> None:
    await scene.change(is_protected=False)
    scene.vm = replace(scene.vm, is_protected=False)
    fence = await scene.die(FENCE_METHOD_LEASE_EXPIRED)

    operation = await scene.fail_over(fence.id)

    assert_fault(operation, Reason.FAILOVER_REFUSED, fence.id, "does not prove")
    await scene.assert_untouched()


async def test_power_that_is_off_proves_every_vm_dead(scene: FailoverScene) -> None:
    await scene.change(is_protected=False)
    fence = await scene.die(FENCE_METHOD_POWER_OFF)
    await assert_runs_there(scene, await scene.fail_over(fence.id))


async def test_open_fence_proves_nothing(scene: FailoverScene) -> None:
    fence = await scene.die(is_proven=False)
    assert_fault(await scene.fail_over(fence.id), Reason.FAILOVER_REFUSED, "does not prove")
    await scene.assert_untouched()


async def test_fence_that_has_ended_proves_nothing(scene: FailoverScene) -> None:
    fence = await scene.die()
    await scene.come_back(fence, has_vm=False)
    assert_fault(await scene.fail_over(fence.id), Reason.FAILOVER_REFUSED, "does not prove")
    await scene.assert_untouched()


@pytest.mark.parametrize("which", ["of another node", "unknown"])
async def test_fence_of_something_else_proves_nothing(scene: FailoverScene, which: str) -> None:
    await scene.die()
    fence_id = make_id()
    if which == "of another node":
        third = await scene.world.add_node(spec=node_spec())
        fence_id = (await written(scene.world.store, proven(await opened(scene.world.store, third.id)))).id

    assert_fault(await scene.fail_over(fence_id), Reason.FAILOVER_REFUSED, fence_id)

    await scene.assert_untouched()


async def test_leader_that_was_replaced_moves_nothing(scene: FailoverScene) -> None:
    fence = await scene.die()
    await scene.world.store.run(lambda tx: tx.take_leadership("leader-2", "other.example", START_OF_TIME))

    assert_fault(await scene.fail_over(fence.id), Reason.STALE_EPOCH)

    await scene.assert_untouched()
    assert (await scene.stored()).error_message == ""


# -- what keeps it where it is


@pytest.mark.parametrize(
    ("wanted", "policy", "words"),
    [
        (PowerState.STOPPED, HaPolicy(auto_restart=True), "shall not run"),
        (PowerState.RUNNING, HaPolicy(auto_restart=False), "policy"),
        (PowerState.RUNNING, HaPolicy(auto_restart=True, condition=HaPolicy.NEVER), "policy"),
    ],
)
async def test_vm_that_is_not_to_be_restarted_stays(
    scene: FailoverScene, wanted: VmStatus.PowerState.ValueType, policy: HaPolicy, words: str
) -> None:
    spec = protected_spec()
    spec.ha_policy.CopyFrom(policy)
    await scene.change(wanted_state=wanted, spec=spec)
    fence = await scene.die()

    assert_fault(await scene.fail_over(fence.id), Reason.FAILOVER_REFUSED, words)

    await scene.assert_untouched()


async def test_vm_that_another_host_runs_stays(scene: FailoverScene) -> None:
    third = make_id()
    await scene.change(sightings={third: PowerState.RUNNING})
    fence = await scene.die()
    assert_fault(await scene.fail_over(fence.id), Reason.VM_RUNS_ELSEWHERE, third)
    await scene.assert_untouched()


async def test_target_that_is_being_fenced_itself_is_refused(scene: FailoverScene) -> None:
    fence = await scene.die()
    await opened(scene.world.store, scene.other.id)
    assert_fault(await scene.fail_over(fence.id), Reason.FAILOVER_REFUSED, "fenced itself")
    await scene.assert_untouched()


async def test_node_that_does_not_have_the_storage_is_refused_and_the_error_says_so(world: World) -> None:
    scene = await failover_scene(world, other=node_spec(storage=make_id()))
    fence = await scene.die()
    await assert_does_not_fit(scene, await scene.fail_over(fence.id), "storage")


async def test_node_whose_room_was_taken_meanwhile_is_refused_and_the_error_says_so(scene: FailoverScene) -> None:
    fence = await scene.die()
    assert await scene.world.store.run(lambda tx: tx.claim(scene.other.id, Capacity(16, 0)))
    await assert_does_not_fit(scene, await scene.fail_over(fence.id), "vCPU", claimed=16)


async def assert_does_not_fit(scene: FailoverScene, operation: Operation, word: str, claimed: int = 0) -> None:
    assert_fault(operation, Reason.NO_NODE_FITS)
    assert operation.fault is not None
    assert word in f"{operation.fault.message} {operation.fault.metadata}"
    await scene.assert_untouched(claimed=claimed)


async def test_node_without_live_migration_may_take_it_since_it_starts_anew(world: World) -> None:
    scene = await failover_scene(world, other=node_spec(migrates=False))
    fence = await scene.die()
    await assert_runs_there(scene, await scene.fail_over(fence.id))


async def test_second_order_after_the_first_was_carried_out_changes_nothing(scene: FailoverScene) -> None:
    fence = await scene.die()
    await scene.fail_over(fence.id)
    calls = len(scene.there.methods(scene.vm.id))

    again = await scene.fail_over(fence.id)

    vm = await scene.stored()
    assert (vm.node_id, vm.power_state) == (scene.other.id, PowerState.RUNNING)
    assert "start_vm" not in scene.there.methods(scene.vm.id)[calls:]
    assert again.fault is None or again.fault.reason == Reason.FAILOVER_REFUSED


# -- failures after the record was moved


async def test_disk_that_is_not_there_fails_it_and_the_vm_is_its_new_nodes_and_off(scene: FailoverScene) -> None:
    scene.there.missing_disks.add(scene.vm.id)
    fence = await scene.die()

    operation = await scene.fail_over(fence.id)

    assert_fault(operation, Reason.DISK_IMAGE_FAILED)
    vm = await scene.stored()
    assert (vm.node_id, vm.power_state, vm.wanted_state) == (scene.other.id, PowerState.STOPPED, PowerState.RUNNING)
    assert "not here" in vm.error_message
    assert vm.details.failover_unfinished
    assert (await scene.world.allocated(scene.home.id), await scene.world.allocated(scene.other.id)) == (NOTHING, SIZE)


async def test_failed_start_is_tried_again_where_it_is(scene: FailoverScene) -> None:
    scene.there.fail("start_vm", FailedPrecondition(Reason.HOST_LACKS, "no KVM"))
    fence = await scene.die()
    await scene.fail_over(fence.id)
    assert (await scene.stored()).details.failover_unfinished

    scene.there.heal()
    scene.world.clock.advance(600)
    await scene.world.keeper.look()
    await scene.world.settle()

    vm = await scene.stored()
    assert (vm.node_id, vm.power_state, vm.details.failover_unfinished) == (scene.other.id, PowerState.RUNNING, False)
    assert vm.id in scene.there.protected


async def test_host_that_has_not_defined_it_yet_does_not_make_it_lost(scene: FailoverScene) -> None:
    scene.there.fail("adopt_vm", unreachable())
    fence = await scene.die()
    await scene.fail_over(fence.id)

    await scene.world.report_everything(scene.other.id)

    assert (await scene.stored()).power_state == PowerState.STOPPED


@pytest.mark.parametrize("method", ["adopt_vm", "start_vm", "vm_status"])
async def test_another_process_goes_on_with_it(scene: FailoverScene, method: str) -> None:
    gate = scene.there.hold(method)
    fence = await scene.die()
    operation = await scene.ask(fence.id)
    await asyncio.wait_for(gate.entered.wait(), 60)
    await scene.world.crash()
    gate.release()
    await scene.world.take_over()

    await assert_runs_there(scene, await scene.world.desk.ended(operation.id, 60))


@pytest.mark.parametrize("method", ["adopt_vm", "start_vm"])
async def test_lost_answer_is_no_second_start(scene: FailoverScene, method: str) -> None:
    scene.there.fail(method, unreachable(), after_acting=True, times=1)
    fence = await scene.die()
    operation = await scene.fail_over(fence.id)

    await assert_runs_there(scene, operation)
    assert scene.there.methods(scene.vm.id).count("start_vm") == 1


@pytest.mark.parametrize("reason", [Reason.STALE_FENCE_TOKEN, Reason.STALE_EPOCH])
async def test_command_that_came_too_late_is_given_again_from_what_is_recorded_then(
    scene: FailoverScene, reason: Reason
) -> None:
    scene.there.fail("adopt_vm", Aborted(reason, "older than what is known"), times=1)
    fence = await scene.die()
    await assert_runs_there(scene, await scene.fail_over(fence.id))


# -- what hangs on the dead host


async def test_operation_that_hangs_on_the_dead_host_ends_at_once(scene: FailoverScene) -> None:
    gate = scene.dead.hold("stop_vm")
    stopping = asyncio.ensure_future(scene.world.vms.stop(StopVMRequest(id=scene.vm.id, timeout_sec=600)))
    await asyncio.wait_for(gate.entered.wait(), 60)
    fence = await scene.die()
    began_s = time.monotonic()

    operation = await scene.fail_over(fence.id)

    await assert_runs_there(scene, operation)
    assert time.monotonic() - began_s < 60.0  # the stop would have waited for ten minutes
    with pytest.raises(ApiError):
        await stopping
    gate.release()


async def test_what_cannot_be_cancelled_ends_once_its_host_is_proven_dead(scene: FailoverScene) -> None:
    gate = scene.dead.hold("pause_vm")
    pausing = asyncio.ensure_future(scene.world.vms.pause(scene.vm.id))
    await asyncio.wait_for(gate.entered.wait(), 60)
    fence = await scene.die()

    operation = await asyncio.wait_for(scene.fail_over(fence.id), 60)

    await assert_runs_there(scene, operation)
    with pytest.raises(ApiError) as caught:
        await pausing
    assert caught.value.reason in (Reason.NODE_FENCED, Reason.OPERATION_CANCELLED)
    gate.release()


async def test_what_is_asked_of_a_dead_node_is_refused_at_once(scene: FailoverScene) -> None:
    await scene.die()
    asked_before = len(scene.dead.calls)
    with pytest.raises(Unavailable) as caught:
        await scene.world.vms.stop(StopVMRequest(id=scene.vm.id, force=True))
    assert caught.value.reason == Reason.NODE_FENCED
    assert len(scene.dead.calls) == asked_before


# -- the host comes back


async def test_definition_that_is_left_at_the_old_host_is_released_and_no_disk_removed(scene: FailoverScene) -> None:
    fence = await scene.die()
    await scene.fail_over(fence.id)
    await scene.come_back(fence)

    await scene.world.report_everything(scene.home.id)
    await scene.world.settle()

    assert scene.vm.id not in scene.dead.vms
    assert "delete_vm" not in scene.dead.methods(scene.vm.id)
    vm = await scene.stored()
    assert (vm.node_id, vm.power_state, vm.sightings) == (scene.other.id, PowerState.RUNNING, {})
    assert await scene.events(EventType.VM_CONFLICT) == []


async def test_old_host_that_runs_it_all_the_same_is_a_conflict_and_nothing_is_removed(scene: FailoverScene) -> None:
    fence = await scene.die()
    await scene.fail_over(fence.id)
    scene.dead.heal()
    await written(scene.world.store, ended(fence))

    await scene.world.report_everything(scene.home.id)
    await scene.world.settle()

    vm = await scene.stored()
    assert vm.sightings == {scene.home.id: PowerState.RUNNING}
    assert scene.vm.id in scene.dead.vms
    assert await scene.events(EventType.VM_CONFLICT) != []


async def test_order_that_comes_after_somebody_stopped_the_vm_there_does_not_start_it(scene: FailoverScene) -> None:
    fence = await scene.die()
    await scene.fail_over(fence.id)
    await scene.world.vms.stop(StopVMRequest(id=scene.vm.id, force=True))

    assert_fault(await scene.fail_over(fence.id), Reason.FAILOVER_REFUSED)

    vm = await scene.stored()
    assert (vm.node_id, vm.power_state) == (scene.other.id, PowerState.STOPPED)
