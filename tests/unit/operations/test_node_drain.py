"""Draining a node: what becomes of each VM, and what is shown meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controlplane.domain.event import EventFilter
from controlplane.domain.node import Node, Phase
from controlplane.domain.operation import OperationFilter, OperationState
from controlplane.domain.vm import PowerState
from controlplane.operations.desk import ANYBODY
from controlplane.operations.node_drain import DrainNode
from controlplane.scheduler.plan import SchedulerConfig
from controlplane.services.placement import NodeMemory
from controlplane.services.targets import target_chooser
from controlplane.state.factory import create_store
from limiquantix.compute.v1 import node_service_pb2 as api
from limiquantix.errors import Aborted, FailedPrecondition, NotFound, Reason
from tests.support.builders import make_id, make_node, make_vm
from tests.support.control_plane_world import World
from tests.support.databases import fresh_sqlite
from tests.support.draining import (
    AT_ONCE,
    DrainWorld,
    drain,
    drain_world,
    immovable,
    operation_of,
    other_node,
    until_shown,
    with_vms,
)
from tests.support.fake_daemons import unreachable
from tests.support.stores import PATIENT


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[DrainWorld]:
    async with drain_world(tmp_path) as made:
        yield made


async def test_fault_09_every_vm_is_elsewhere_and_the_node_ends_in_maintenance(world: DrainWorld) -> None:
    vms = await with_vms(world, "a", "b", "c")

    told = await drain(world)

    assert list(told.migrated_vm_ids) == sorted(vm.id for vm in vms.values())
    assert (list(told.stopped_vm_ids), list(told.failures)) == ([], [])
    assert (told.node.status.phase, list(told.node.status.vm_ids)) == (Phase.MAINTENANCE, [])
    for vm in vms.values():
        moved = await world.stored(vm.id)
        assert moved is not None
        assert moved.node_id != world.source.id
    assert (await world.allocated(world.source.id)).vcpus == 0
    events = await world.store.read(lambda tx: tx.newest_events(EventFilter(resource_id=world.source.id), 10))
    assert [str(entry.event.type) for entry in reversed(events)][1:] == ["node.draining", "node.drained"]


async def test_empty_node_is_drained_at_once(world: DrainWorld) -> None:
    told = await drain(world)

    assert told.node.status.phase == Phase.MAINTENANCE
    assert (await operation_of(world)).resource_type == "node"


async def test_largest_go_first_and_few_at_once(world: DrainWorld) -> None:
    for number in range(8):
        await world.create(f"vm-{number}", memory_mib=128 * (number + 1))
    await other_node(world, hostname="target")
    gates = [world.traffic.hold(f"vm-{number}") for number in range(8)]

    draining = asyncio.ensure_future(drain(world))
    await until_shown(world, "0 of 8 moved, 4 moving, 4 waiting")
    assert {"vm-7", "vm-6", "vm-5", "vm-4"}.issuperset(world.traffic.begun)
    for gate in gates:
        gate.set()

    assert len((await draining).migrated_vm_ids) == 8
    assert world.traffic.most_at_once == 4


async def test_vms_that_are_off_go_cold_and_those_in_memory_live(world: DrainWorld) -> None:
    await world.create("off")
    await world.create("on", start=True)
    await other_node(world, hostname="target")

    await drain(world)

    assert {name: wish.live for name, wish in world.traffic.wishes.items()} == {"off": False, "on": True}


async def test_all_go_to_the_node_that_is_asked_for(world: DrainWorld) -> None:
    vm = await world.create("a")
    await other_node(world, hostname="another")
    wanted = await other_node(world, hostname="wanted")

    await drain(world, target_node_id=wanted.id)

    moved = await world.stored(vm.id)
    assert moved is not None
    assert moved.node_id == wanted.id


async def test_target_that_is_the_node_itself_or_unknown_is_refused(world: DrainWorld) -> None:
    with pytest.raises(FailedPrecondition):
        await drain(world, target_node_id=world.source.id)
    with pytest.raises(NotFound):
        await drain(world, target_node_id=make_id())
    assert (await world.node(world.source.id)).phase == Phase.READY


async def test_drain_of_the_last_node_lists_every_vm_and_stops_none(world: DrainWorld) -> None:
    vms = [await world.create(name, start=True) for name in ("a", "b")]

    told = await drain(world)

    assert [(failure.vm_id, failure.error) for failure in told.failures] == [
        (vm_id, "no node fits: 1 node is where it is") for vm_id in sorted(vm.id for vm in vms)
    ]
    assert (list(told.migrated_vm_ids), list(told.stopped_vm_ids)) == ([], [])
    for vm in vms:
        assert (await world.stored(vm.id)).power_state == PowerState.RUNNING  # type: ignore[union-attr]
    assert told.node.status.phase == Phase.MAINTENANCE


async def test_vm_that_cannot_move_is_stopped_with_force_after_the_grace_period(world: DrainWorld) -> None:
    vms = await with_vms(world, "a", "stuck")
    world.traffic.refused["stuck"] = [immovable("stuck")]

    told = await drain(world, force=True, grace_period_sec=77)

    assert list(told.migrated_vm_ids) == [vms["a"].id]
    assert list(told.stopped_vm_ids) == [vms["stuck"].id]
    assert list(told.failures) == []
    stopped = await world.stored(vms["stuck"].id)
    assert stopped is not None
    assert (stopped.power_state, stopped.wanted_state) == (PowerState.STOPPED, PowerState.STOPPED)
    assert world.host_of(stopped).stop_timeouts_s == [77]


async def test_vm_that_can_neither_move_nor_be_stopped_is_a_failure_with_both_reasons(world: DrainWorld) -> None:
    vms = await with_vms(world, "stuck")
    world.traffic.refused["stuck"] = [immovable("stuck")]
    world.host_of(vms["stuck"]).fail("*", unreachable())

    told = await drain(world, force=True)

    assert "passed-through device; nor could it be stopped: the host cannot be reached" in told.failures[0].error
    assert list(told.stopped_vm_ids) == []


async def test_vm_that_is_off_and_cannot_move_is_a_failure_even_with_force(world: DrainWorld) -> None:
    await with_vms(world, "off", start=False)
    world.traffic.refused["off"] = [immovable("off")]

    told = await drain(world, force=True)

    assert [failure.error for failure in told.failures] == ["VM off has a passed-through device"]


async def test_vm_that_is_only_shown_is_listed(world: DrainWorld) -> None:
    vm = make_vm(node_id=world.source.id, is_managed=False)
    await world.store.run(lambda tx: tx.insert_vm(vm))

    told = await drain(world, force=True)

    assert "take it over" in told.failures[0].error


async def test_passing_refusal_is_tried_again(world: DrainWorld) -> None:
    vms = await with_vms(world, "a", "b")
    passing = Aborted(Reason.CONCURRENT_CHANGE, "something else went first")
    world.traffic.refused = {"a": [passing], "b": [passing] * 3}

    told = await drain(world)

    assert list(told.migrated_vm_ids) == [vms["a"].id]
    assert [(failure.vm_id, failure.error) for failure in told.failures] == [(vms["b"].id, "something else went first")]


async def test_vm_that_comes_meanwhile_is_swept_too(world: DrainWorld) -> None:
    await with_vms(world, "a")
    gate = world.traffic.hold("a")
    draining = asyncio.ensure_future(drain(world))
    await until_shown(world, "1 moving")
    late = make_vm(name="late", node_id=world.source.id)
    await world.store.run(lambda tx: tx.insert_vm(late))
    await until_shown(world, "of 2 moved")
    gate.set()

    told = await draining

    assert late.id in told.migrated_vm_ids
    assert len(told.migrated_vm_ids) == 2


async def test_progress_is_shown_for_each_vm_while_it_goes_on(world: DrainWorld) -> None:
    vms = await with_vms(world, "a", "b", "stuck")
    gate = world.traffic.hold("b")
    world.traffic.refused["stuck"] = [immovable("stuck")]
    told = await drain(world, AT_ONCE)
    assert told.node.id == world.source.id

    operation = await until_shown(
        world, "1 of 3 moved, 1 moving, 1 stuck (stuck: VM stuck has a passed-through device)"
    )

    (shown,) = (step.result for step in operation.steps if step.name == "evacuate")
    fates = {each["name"]: each["fate"] for each in shown["vms"]}
    assert fates == {"a": "moved", "b": "moving", "stuck": "stuck"}
    assert (await world.node(world.source.id)).phase == Phase.DRAINING
    gate.set()
    ended = await world.desk.ended(operation.id)
    assert ended.state == OperationState.SUCCEEDED
    assert vms.keys() == fates.keys()


async def test_cancelled_drain_lets_running_moves_end_begins_none_and_leaves_the_node_cordoned(
    world: DrainWorld,
) -> None:
    vms = [await world.create(f"vm-{number}", memory_mib=128 * (10 - number)) for number in range(6)]
    await other_node(world, hostname="target")
    gates = [world.traffic.hold(f"vm-{number}") for number in range(4)]
    await drain(world, AT_ONCE)
    operation = await until_shown(world, "4 moving")

    await world.desk.cancel(operation.id, "somebody")
    for gate in gates:
        gate.set()
    ended = await world.desk.ended(operation.id)

    assert ended.state == OperationState.CANCELLED
    assert world.traffic.begun == [vm.name for vm in vms[:4]]
    node = await world.node(world.source.id)
    assert (node.phase, node.spec.scheduling.schedulable) == (Phase.MAINTENANCE, False)
    assert [vm.node_id == world.source.id for vm in [await world.stored(vm.id) for vm in vms] if vm] == [False] * 4 + [
        True
    ] * 2


async def test_node_cannot_be_enabled_or_forgotten_while_it_is_drained(world: DrainWorld) -> None:
    await with_vms(world, "a")
    gate = world.traffic.hold("a")
    await drain(world, AT_ONCE)
    operation = await until_shown(world, "1 moving")

    with pytest.raises(FailedPrecondition, match=f"cancel operation {operation.id}"):
        await world.life.enable(world.source.id)
    with pytest.raises(FailedPrecondition):
        await world.life.decommission(api.DecommissionNodeRequest(id=world.source.id))

    gate.set()
    await world.desk.ended(operation.id)
    assert (await world.life.enable(world.source.id)).status.phase in (Phase.READY, Phase.NOT_READY)


async def test_node_forgotten_by_force_ends_its_drain(world: DrainWorld) -> None:
    await with_vms(world, "a")
    world.traffic.hold("a")
    await drain(world, AT_ONCE)
    operation = await until_shown(world, "1 moving")

    await world.life.decommission(api.DecommissionNodeRequest(id=world.source.id, force=True))

    ended = await world.desk.ended(operation.id)
    assert (ended.state, ended.fault.reason if ended.fault else "") == (OperationState.FAILED, Reason.NODE_NOT_FOUND)


async def test_second_drain_waits_for_the_first_and_finds_nothing_to_do(world: DrainWorld) -> None:
    await with_vms(world, "a")
    gate = world.traffic.hold("a")
    first = asyncio.ensure_future(drain(world))
    await until_shown(world, "1 moving")
    second = asyncio.ensure_future(drain(world))
    await until_shown(world, "on the same node")
    gate.set()

    assert len((await first).migrated_vm_ids) == 1
    assert list((await second).migrated_vm_ids) == []


async def test_moves_that_take_longer_than_the_grace_period_are_cut_short(world: DrainWorld) -> None:
    vms = await with_vms(world, "slow")
    world.traffic.hold("slow")
    draining = asyncio.ensure_future(drain(world, grace_period_sec=60))
    await until_shown(world, "1 moving")
    world.clock.advance(61)

    told = await draining

    assert [failure.vm_id for failure in told.failures] == [vms["slow"].id]
    assert "cancelled" in told.failures[0].error or "60 s" in told.failures[0].error


async def test_repeated_request_is_one_drain(world: DrainWorld) -> None:
    await with_vms(world, "a")
    caller = ANYBODY.with_request("r-1", "digest")

    first, second = await asyncio.gather(drain(world, caller), drain(world, caller))

    assert first == second
    assert (await world.desk.list(OperationFilter(kinds=frozenset({DrainNode.kind})), None, 10)).total_count == 1


async def test_drain_moves_vms_by_the_real_migrations_from_host_to_host(tmp_path: Path) -> None:
    store = create_store(fresh_sqlite(tmp_path), PATIENT)
    await store.open()
    world = World(store, choose=target_chooser(SchedulerConfig(), NodeMemory()))
    await world.worker.register()
    source = await migrating_node(world, "source")
    vms = [await world.create(f"vm-{number}", start=number % 2 == 0) for number in range(5)]
    target = await migrating_node(world, "target")

    told = await world.life.drain(api.DrainNodeRequest(id=source.id))

    assert list(told.migrated_vm_ids) == sorted(vm.id for vm in vms)
    assert world.daemons.of(source.id).vms == {}
    assert world.daemons.of(target.id).vms.keys() == {vm.id for vm in vms}
    assert [(await world.stored(vm.id)).power_state for vm in vms] == [vm.power_state for vm in vms]  # type: ignore[union-attr]
    assert (await world.allocated(source.id)).vcpus == 0
    assert (await world.allocated(target.id)).vcpus == 5
    await store.close()


async def migrating_node(world: World, hostname: str) -> Node:
    node = make_node(hostname=hostname)
    node.spec.supports_live_migration = True
    await world.store.run(lambda tx: tx.insert_node(node))
    return node
