"""A VM that does not start where it is gets tried on other nodes, as often as its policy says, and then told of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controlplane.domain.event import EventType
from controlplane.domain.node import Capacity
from controlplane.domain.restarts import why_not_restarted
from controlplane.domain.vm import PowerState
from controlplane.operations.vm_relocate import RelocateVm
from controlplane.scheduler.plan import SchedulerConfig
from controlplane.services.placement import NodeMemory
from controlplane.services.targets import failover_chooser
from controlplane.state.factory import create_store
from limiquantix.compute.v1.vm_pb2 import HaPolicy
from limiquantix.errors import FailedPrecondition, Reason
from tests.support.control_plane_world import World
from tests.support.databases import fresh_sqlite
from tests.support.failover_scene import FailoverScene, failover_scene, protected_spec
from tests.support.fake_daemons import STOPPED, unreachable
from tests.support.migration_cluster import node_spec
from tests.support.stores import PATIENT

NOTHING, SIZE = Capacity(0, 0), Capacity(1, 128 * 2**20)
NO_KVM = FailedPrecondition(Reason.HYPERVISOR_REFUSED, "no KVM")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = create_store(fresh_sqlite(tmp_path), PATIENT)
    await store.open()
    choose = failover_chooser(SchedulerConfig(), NodeMemory())
    yield World(store, other_workflows=(RelocateVm(choose),))
    await store.close()


async def ended_and_does_not_start(world: World, **policy: object) -> FailoverScene:
    """A VM that died on a node which lives, and cannot start it again."""
    scene = await failover_scene(world, protected_spec(**{"max_restarts": 2, **policy}))
    scene.dead.fail("start_vm", NO_KVM)
    scene.dead.set_state(scene.vm.id, STOPPED)
    await world.report_everything(scene.home.id)
    return scene


async def keep(world: World, times: int = 1) -> None:
    """Let the keeper look, each time after every back-off is over."""
    for _ in range(times):
        world.clock.advance(1000)
        await world.keeper.look()
        await world.settle()


async def test_vm_runs_elsewhere_after_the_starts_that_its_policy_has_on_one_node(world: World) -> None:
    scene = await ended_and_does_not_start(world)
    await keep(world, times=2)
    assert (await scene.stored()).node_id == scene.home.id

    await keep(world)

    vm = await scene.stored()
    assert (vm.node_id, vm.power_state, vm.details.failover_unfinished) == (scene.other.id, PowerState.RUNNING, False)
    assert (vm.is_protected, vm.restart_count, vm.error_message) == (True, 3, "")
    assert scene.vm.id not in scene.dead.vms
    assert scene.dead.methods(vm.id).index("release_vm") > scene.dead.methods(vm.id).index("start_vm")
    assert [await world.allocated(node.id) for node in (scene.home, scene.other)] == [NOTHING, SIZE]
    assert len(await scene.events(EventType.VM_FAILED_OVER)) == 1


async def test_vm_that_no_other_node_takes_stays_defined_where_it_is_and_a_person_is_told(world: World) -> None:
    scene = await ended_and_does_not_start(world)
    scene.world.daemons.of(scene.other.id).fail("*", unreachable())
    await world.add_node(spec=node_spec(storage="of its own"))
    await remove_other(scene)

    await keep(world, times=6)

    vm = await scene.stored()
    assert (vm.node_id, vm.restart_count, vm.details.failover_unfinished) == (scene.home.id, 3, False)
    assert "release_vm" not in scene.dead.methods(vm.id)
    assert "no KVM; on other nodes: " in why_not_restarted(vm)


async def test_users_start_begins_the_count_anew(world: World) -> None:
    scene = await ended_and_does_not_start(world, max_relocations=1)
    scene.there.fail("start_vm", NO_KVM)
    await keep(world, times=8)
    assert why_not_restarted(await scene.stored())
    scene.there.heal()

    await world.vms.start(scene.vm.id)

    vm = await scene.stored()
    assert (vm.power_state, vm.restart_count, vm.details.failover_unfinished) == (PowerState.RUNNING, 0, False)


async def test_vm_whose_node_does_not_answer_when_it_shall_let_go_is_not_started_elsewhere(world: World) -> None:
    scene = await ended_and_does_not_start(world)
    await keep(world, times=2)
    scene.dead.fail("*", unreachable())

    await keep(world)

    vm = await scene.stored()
    assert vm.node_id == scene.home.id
    assert vm.id not in scene.there.vms
    scene.dead.heal()
    await keep(world)
    assert (await scene.stored()).power_state == PowerState.RUNNING
    assert scene.vm.id not in scene.there.vms


async def test_guest_that_starts_and_ends_again_is_not_moved(world: World) -> None:
    scene = await failover_scene(world, protected_spec(max_restarts=2, condition=HaPolicy.ALWAYS))
    for _ in range(4):
        scene.dead.set_state(scene.vm.id, STOPPED)
        await world.report_everything(scene.home.id)
        await keep(world)

    vm = await scene.stored()
    assert (vm.node_id, vm.restart_count, vm.power_state) == (scene.home.id, 2, PowerState.STOPPED)


async def remove_other(scene: FailoverScene) -> None:
    """Take the node out that shares the storage."""
    await scene.world.store.run(lambda tx: tx.delete_node(scene.other.id))
