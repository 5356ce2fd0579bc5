"""NO_EXECUTE taints: which VMs leave a node, when, and what is said of those that cannot."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from controlplane.domain.event import EventFilter, EventType
from controlplane.domain.evictions import eviction_of
from controlplane.domain.node import Node
from controlplane.domain.operation import OperationFilter
from controlplane.domain.vm import PowerState, Vm
from controlplane.operations.vm_migration import MigrateVm
from controlplane.reconcile.evictor import Evictor
from controlplane.state.factory import create_store
from limiquantix.compute.v1 import node_service_pb2 as api
from limiquantix.compute.v1.node_pb2 import Taint
from limiquantix.compute.v1.vm_pb2 import CpuConfig, MemoryConfig, PlacementPolicy, Toleration, VmSpec
from limiquantix.errors import FailedPrecondition, Reason
from tests.support.builders import START_OF_TIME, make_node, make_vm
from tests.support.control_plane_world import World
from tests.support.databases import fresh_sqlite
from tests.support.simple_moves import SimpleMigrateVm, Traffic
from tests.support.stores import PATIENT

LATER = START_OF_TIME + timedelta(days=1)
GPU = Taint(key="gpu", value="broken", effect=Taint.NO_EXECUTE)


def tolerating(*tolerations: Toleration) -> VmSpec:
    return VmSpec(
        cpu=CpuConfig(cores=1),
        memory=MemoryConfig(size_mib=128),
        placement=PlacementPolicy(tolerations=tolerations),
    )


def tainted_node(*taints: Taint) -> Node:
    node = make_node()
    for taint in taints:
        stamped = node.spec.scheduling.taints.add()
        stamped.CopyFrom(taint)
        stamped.added_at.FromDatetime(LATER)
    return node


# -- pure


def stay_s(*tolerations: Toleration, taint: Taint = GPU) -> float | None:
    found = eviction_of(make_vm(spec=tolerating(*tolerations)), tainted_node(taint))
    return None if found is None else (found.due_at - LATER).total_seconds()


def test_vm_without_tolerations_leaves_at_once() -> None:
    assert stay_s() == 0


@pytest.mark.parametrize("effect", [Taint.NO_SCHEDULE, Taint.PREFER_NO_SCHEDULE])
def test_other_effects_evict_nobody(effect: Taint.Effect.ValueType) -> None:
    assert stay_s(taint=Taint(key="gpu", effect=effect)) is None


@pytest.mark.parametrize(
    "toleration",
    [
        Toleration(),
        Toleration(key="gpu"),
        Toleration(key="gpu", value="broken"),
        Toleration(key="gpu", effect=Toleration.NO_EXECUTE),
    ],
)
def test_vm_that_tolerates_a_taint_stays(toleration: Toleration) -> None:
    assert stay_s(toleration) is None


@pytest.mark.parametrize(
    "toleration",
    [
        Toleration(key="disk"),
        Toleration(key="gpu", value="slow"),
        Toleration(key="gpu", effect=Toleration.NO_SCHEDULE),
    ],
)
def test_toleration_of_something_else_is_of_no_use(toleration: Toleration) -> None:
    assert stay_s(toleration) == 0


def test_longest_toleration_counts() -> None:
    short, long = Toleration(key="gpu", stays_sec=60), Toleration(stays_sec=600)

    assert stay_s(short) == 60
    assert stay_s(short, long) == 600
    assert stay_s(short, Toleration(key="gpu")) is None


def test_earliest_of_several_taints_counts() -> None:
    vm = make_vm(spec=tolerating(Toleration(key="a", stays_sec=60), Toleration(key="b", stays_sec=30)))
    node = tainted_node(Taint(key="a", effect=Taint.NO_EXECUTE), Taint(key="b", effect=Taint.NO_EXECUTE))

    found = eviction_of(vm, node)

    assert found is not None
    assert (found.taint_key, found.due_at) == ("b", LATER + timedelta(seconds=30))


def test_vm_that_was_made_after_the_taint_has_its_whole_time() -> None:
    vm = make_vm(created_at=LATER + timedelta(hours=1), spec=tolerating(Toleration(stays_sec=60)))

    found = eviction_of(vm, tainted_node(GPU))

    assert found is not None
    assert found.due_at == LATER + timedelta(hours=1, seconds=60)


# -- the keeper of it


class EvictionWorld(World):
    """A world whose migrations a test refuses."""

    traffic: Traffic
    source: Node


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[EvictionWorld]:
    """A node on which VMs are made, before another one comes."""
    store = create_store(fresh_sqlite(tmp_path), PATIENT)
    await store.open()
    traffic = Traffic()
    world = EvictionWorld(store, other_workflows=(SimpleMigrateVm(traffic),))
    world.traffic = traffic
    await world.worker.register()
    world.source = await world.add_node(hostname="source")
    yield world
    await world.worker.abandon()
    await store.close()


async def taint(world: EvictionWorld) -> None:
    await world.life.add_taint(api.AddTaintRequest(node_id=world.source.id, taint=GPU))


async def node_of(world: World, vm: Vm) -> str:
    stored = await world.stored(vm.id)
    assert stored is not None
    return stored.node_id


async def look(world: EvictionWorld, evictor: Evictor | None = None) -> None:
    await (evictor or world.evictor).look()
    await world.settle()


async def refusals_told(world: World, vm: Vm) -> list[str]:
    wanted = EventFilter(resource_id=vm.id, types=frozenset({str(EventType.VM_NOT_EVICTED)}))
    return [entry.event.message for entry in await world.store.read(lambda tx: tx.newest_events(wanted, 10))]


async def test_vms_leave_a_tainted_node_and_those_that_tolerate_it_stay(world: EvictionWorld) -> None:
    running = await world.create("running", start=True)
    off = await world.create("off")
    tolerant = await world.create("tolerant", spec=tolerating(Toleration(key="gpu")))
    await world.add_node(hostname="target")

    await look(world)
    assert await node_of(world, running) == world.source.id
    await taint(world)
    await look(world)

    assert await node_of(world, running) != world.source.id
    assert await node_of(world, off) != world.source.id
    assert await node_of(world, tolerant) == world.source.id
    assert {name: wish.live for name, wish in world.traffic.wishes.items()} == {"running": True, "off": False}


async def test_vm_stays_as_long_as_it_may(world: EvictionWorld) -> None:
    vm = await world.create("a", spec=tolerating(Toleration(key="gpu", stays_sec=60)))
    await world.add_node(hostname="target")
    await taint(world)

    world.clock.advance(59)
    await look(world)
    assert await node_of(world, vm) == world.source.id
    world.clock.advance(2)
    await look(world)
    assert await node_of(world, vm) != world.source.id


async def test_taint_that_is_taken_back_in_time_moves_nobody(world: EvictionWorld) -> None:
    vm = await world.create("a", spec=tolerating(Toleration(key="gpu", stays_sec=60)))
    await world.add_node(hostname="target")
    await taint(world)
    await look(world)

    await world.life.remove_taint(api.RemoveTaintRequest(node_id=world.source.id, taint_key="gpu"))
    world.clock.advance(600)
    await look(world)

    assert await node_of(world, vm) == world.source.id


async def test_vm_that_cannot_leave_is_told_of_once_runs_on_and_is_tried_again_later(world: EvictionWorld) -> None:
    vm = await world.create("stuck", start=True)
    await world.add_node(hostname="target")
    world.traffic.refused["stuck"] = [FailedPrecondition(Reason.HOST_LACKS, "it has a passed-through device")]
    await taint(world)

    for _ in range(5):
        await look(world)
    assert world.traffic.begun == ["stuck"]
    assert await refusals_told(world, vm) == [
        "VM stuck should leave node source for its taint gpu: it has a passed-through device"
    ]
    stored = await world.stored(vm.id)
    assert stored is not None
    assert stored.power_state == PowerState.RUNNING

    world.clock.advance(301)
    await look(world)
    assert await node_of(world, vm) != world.source.id


async def test_two_processes_and_one_that_was_restarted_ask_for_one_move(world: EvictionWorld) -> None:
    vm = await world.create("a", start=True)
    await world.add_node(hostname="target")
    world.traffic.refused["a"] = [FailedPrecondition(Reason.HOST_LACKS, "no")]
    await taint(world)

    for _ in range(3):
        await look(world, Evictor(world.store, world.moves, world.clock))
    await world.crash()
    await look(world)

    page = await world.desk.list(OperationFilter(resource_id=vm.id, kinds=frozenset({MigrateVm.kind})), None, 10)
    assert page.total_count == 1
    assert len(await refusals_told(world, vm)) == 1


async def test_few_go_at_once(world: EvictionWorld) -> None:
    for number in range(5):
        await world.create(f"vm-{number}")
    await world.add_node(hostname="target")
    gates = [world.traffic.hold(f"vm-{number}") for number in range(5)]
    await taint(world)

    for _ in range(3):
        await world.evictor.look()
    moves = await world.desk.list(OperationFilter(kinds=frozenset({MigrateVm.kind})), None, 10)
    assert moves.total_count == 2
    for gate in gates:
        gate.set()
    await world.settle()
    for _ in range(3):
        await look(world)

    assert await world.store.read(lambda tx: tx.vms_on_node(world.source.id)) == []
