"""A VM of a host that is proven dead is started elsewhere when somebody starts it: upon a proof, and never twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controlplane.domain.event import EventType
from controlplane.domain.fencing import Fence
from controlplane.domain.node import Capacity
from controlplane.domain.operation import OperationFilter
from controlplane.domain.vm import PowerState, Vm
from controlplane.operations.vm_failover import FailoverVm
from controlplane.operations.vm_start_elsewhere import StartElsewhere
from controlplane.scheduler.plan import SchedulerConfig
from controlplane.services.placement import NodeMemory
from controlplane.services.targets import failover_chooser
from controlplane.state.factory import create_store
from limiquantix.compute.v1.ha_service_pb2 import FENCE_METHOD_LEASE_EXPIRED, FENCE_METHOD_OPERATOR, FenceMethod
from limiquantix.compute.v1.vm_pb2 import CpuConfig, MemoryConfig, VmSpec
from limiquantix.compute.v1.vm_service_pb2 import StopVMRequest
from limiquantix.errors import FailedPrecondition, Reason, ResourceExhausted, Unavailable
from limiquantix.node.v1 import node_daemon_pb2 as node_v1
from tests.support.control_plane_world import World
from tests.support.databases import fresh_sqlite
from tests.support.failover_scene import FailoverScene, failover_scene, protected_spec
from tests.support.migration_cluster import node_spec
from tests.support.stores import PATIENT

UNPROTECTED = VmSpec(cpu=CpuConfig(cores=1), memory=MemoryConfig(size_mib=128))
NOTHING, SIZE = Capacity(0, 0), Capacity(1, 128 * 2**20)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = create_store(fresh_sqlite(tmp_path), PATIENT)
    await store.open()
    choose = failover_chooser(SchedulerConfig(), NodeMemory())
    yield World(store, other_workflows=(FailoverVm(choose), StartElsewhere(choose)))
    await store.close()


async def off_on_dead_node(
    world: World,
    method: FenceMethod.ValueType = FENCE_METHOD_OPERATOR,
    spec: VmSpec = UNPROTECTED,
) -> tuple[FailoverScene, Fence]:
    """A VM that was stopped before its host died."""
    scene = await failover_scene(world, spec)
    await world.vms.stop(StopVMRequest(id=scene.vm.id, force=True))
    return scene, await scene.die(method)


async def assert_runs_there(scene: FailoverScene, started: Vm) -> None:
    vm = await scene.stored()
    assert started.power_state == PowerState.RUNNING
    assert (vm.node_id, vm.power_state, vm.wanted_state) == (scene.other.id, PowerState.RUNNING, PowerState.RUNNING)
    assert (vm.error_message, vm.details.failover_unfinished) == ("", False)
    assert scene.there.vms[vm.id].state == node_v1.POWER_STATE_RUNNING
    assert await scene.world.allocated(scene.home.id) == NOTHING
    assert await scene.world.allocated(scene.other.id) == SIZE


async def assert_untouched(scene: FailoverScene) -> None:
    vm = await scene.stored()
    assert (vm.node_id, vm.power_state) == (scene.home.id, PowerState.STOPPED)
    assert await scene.world.allocated(scene.home.id) == SIZE
    assert await scene.world.allocated(scene.other.id) == NOTHING
    assert vm.id not in scene.there.vms


async def test_vm_that_is_off_on_a_dead_node_is_started_on_another_and_the_log_has_the_proof(world: World) -> None:
    scene, fence = await off_on_dead_node(world)
    asked_before = len(scene.dead.calls)

    started = await world.vms.start(scene.vm.id)

    await assert_runs_there(scene, started)
    assert len(scene.dead.calls) == asked_before
    assert not (await scene.stored()).is_protected
    (event,) = await scene.events(EventType.VM_FAILED_OVER)
    assert event.metadata["fence_id"] == fence.id
    assert (event.metadata["from_node_id"], event.metadata["to_node_id"]) == (scene.home.id, scene.other.id)


async def test_vm_that_ran_when_its_host_died_is_started_elsewhere_although_its_policy_does_not_say_so(
    world: World,
) -> None:
    scene = await failover_scene(world, UNPROTECTED)
    await scene.die(FENCE_METHOD_OPERATOR)
    assert (await scene.stored()).power_state == PowerState.RUNNING

    await assert_runs_there(scene, await world.vms.start(scene.vm.id))


async def test_lease_proves_a_protected_vm_dead_that_is_off(world: World) -> None:
    scene, _ = await off_on_dead_node(world, FENCE_METHOD_LEASE_EXPIRED, protected_spec())

    await assert_runs_there(scene, await world.vms.start(scene.vm.id))

    assert (await scene.stored()).is_protected
    assert scene.vm.id in scene.there.protected


async def test_lease_proves_nothing_of_a_vm_that_is_not_protected_and_the_refusal_says_what_would(world: World) -> None:
    scene, fence = await off_on_dead_node(world, FENCE_METHOD_LEASE_EXPIRED)

    with pytest.raises(FailedPrecondition, match="ha confirm-dead") as caught:
        await world.vms.start(scene.vm.id)

    assert (caught.value.reason, caught.value.metadata["fence_id"]) == (Reason.FAILOVER_REFUSED, fence.id)
    await assert_untouched(scene)


async def test_disks_that_no_other_node_reaches_are_named_as_what_is_in_the_way(world: World) -> None:
    scene = await failover_scene(world, UNPROTECTED, other=node_spec(storage="of its own"))
    await world.vms.stop(StopVMRequest(id=scene.vm.id, force=True))
    await scene.die(FENCE_METHOD_OPERATOR)

    with pytest.raises(ResourceExhausted, match=f"shares no storage with node {scene.home.hostname}"):
        await world.vms.start(scene.vm.id)

    await assert_untouched(scene)


async def test_saved_memory_keeps_a_vm_at_its_host(world: World) -> None:
    scene = await failover_scene(world, UNPROTECTED)
    await world.vms.suspend(scene.vm.id)
    await scene.die(FENCE_METHOD_OPERATOR)

    with pytest.raises(FailedPrecondition, match="its memory is saved on that host"):
        await world.vms.start(scene.vm.id)

    assert (await scene.stored()).node_id == scene.home.id


async def test_open_fence_proves_nothing_so_the_start_fails_at_the_silent_host(world: World) -> None:
    scene = await failover_scene(world, UNPROTECTED)
    await world.vms.stop(StopVMRequest(id=scene.vm.id, force=True))
    await scene.die(is_proven=False)

    with pytest.raises(Unavailable):
        await world.vms.start(scene.vm.id)

    await assert_untouched(scene)


async def test_host_that_comes_back_lets_go_of_its_definition(world: World) -> None:
    scene, fence = await off_on_dead_node(world)
    await world.vms.start(scene.vm.id)
    await scene.come_back(fence)

    await world.report_everything(scene.home.id)
    await world.settle()

    assert "release_vm" in scene.dead.methods(scene.vm.id)
    assert scene.vm.id not in scene.dead.vms
    assert (await scene.stored()).power_state == PowerState.RUNNING


async def test_next_start_goes_on_where_the_first_one_failed_after_the_move(world: World) -> None:
    scene, _ = await off_on_dead_node(world)
    scene.there.missing_disks.add(scene.vm.id)

    with pytest.raises(FailedPrecondition, match="the image of a disk"):
        await world.vms.start(scene.vm.id)

    left = await scene.stored()
    assert (left.node_id, left.power_state, left.wanted_state) == (
        scene.other.id,
        PowerState.STOPPED,
        PowerState.STOPPED,
    )
    assert left.error_message
    scene.there.missing_disks.clear()
    await assert_runs_there(scene, await world.vms.start(scene.vm.id))
    page = await world.desk.list(OperationFilter(kinds=frozenset({StartElsewhere.kind})), None, 10)
    assert sorted([step.name for step in each.steps] for each in page.items) == [
        ["claim", "define", "start"],
        ["define", "start"],
    ]


async def test_of_a_start_and_a_failover_at_once_one_moves_it(world: World) -> None:
    scene = await failover_scene(world)
    fence = await scene.die()
    failover = await scene.ask(fence.id)

    with pytest.raises(FailedPrecondition):
        await world.vms.start(scene.vm.id)

    await world.desk.ended(failover.id, 60)
    vm = await scene.stored()
    assert (vm.node_id, vm.power_state) == (scene.other.id, PowerState.RUNNING)
    assert await world.allocated(scene.other.id) == SIZE
