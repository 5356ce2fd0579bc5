"""What a control plane that dies, or was only slow, in the middle of a drain leaves to the next one."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controlplane.domain.node import Phase
from controlplane.domain.operation import OperationFilter, OperationState
from controlplane.operations.desk import ANYBODY
from controlplane.operations.vm_life import CreateVm
from controlplane.operations.vm_migration import MigrateVm
from controlplane.state.factory import create_store
from controlplane.state.interface import Store
from limiquantix.compute.v1 import node_service_pb2 as api
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
    until,
    until_shown,
    with_vms,
)
from tests.support.dying_store import DyingStore
from tests.support.simple_moves import SimpleMigrateVm, Traffic
from tests.support.stores import PATIENT


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[DrainWorld]:
    async with drain_world(tmp_path) as made:
        yield made


async def test_process_that_dies_leaves_the_drain_to_the_next_which_forgets_nobody(world: DrainWorld) -> None:
    vms = await with_vms(world, "a", "b", "c")
    gate = world.traffic.hold("c")
    await drain(world, AT_ONCE)
    operation = await until_shown(world, "2 of 3 moved, 1 moving")

    await world.crash()
    await world.take_over()
    gate.set()
    ended = await world.desk.ended(operation.id)

    assert (ended.state, ended.attempt_count) == (OperationState.SUCCEEDED, 2)
    told = await world.desk.answer(ended, api.DrainNodeResponse())
    assert list(told.migrated_vm_ids) == sorted(vm.id for vm in vms.values())
    moves = await world.desk.list(OperationFilter(kinds=frozenset({MigrateVm.kind})), None, 10)
    assert moves.total_count == 3


async def test_process_that_dies_again_and_again_moves_each_vm_once(world: DrainWorld) -> None:
    vms = {f"vm-{number}": await world.create(f"vm-{number}", start=True) for number in range(6)}
    await other_node(world, hostname="target")
    await drain(world, AT_ONCE)
    for _ in range(8):
        await asyncio.sleep(0.015)
        await world.crash()
        await world.take_over()
    operation = await operation_of(world)
    ended = await world.desk.ended(operation.id)

    told = await world.desk.answer(ended, api.DrainNodeResponse())
    assert list(told.migrated_vm_ids) == sorted(vm.id for vm in vms.values())
    moves = await world.desk.list(OperationFilter(kinds=frozenset({MigrateVm.kind})), None, 100)
    assert sorted(move.resource_id for move in moves.items) == sorted(vm.id for vm in vms.values())
    assert {move.state for move in moves.items} == {OperationState.SUCCEEDED}
    assert (await world.node(world.source.id)).phase == Phase.MAINTENANCE
    assert (await world.allocated(world.source.id)).memory_bytes == 0


async def test_process_that_was_only_slow_stops_when_another_has_the_drain(world: DrainWorld) -> None:
    vms = await with_vms(world, "a", "b")
    gate = world.traffic.hold("b")
    await drain(world, AT_ONCE)
    operation = await until_shown(world, "1 of 2 moved, 1 moving")
    slow = world.worker

    world.restart()  # the old process goes on, but for the rest of the world it is dead
    await world.worker.register()
    await world.take_over()
    await until_taken(world, operation.id)
    gate.set()
    ended = await world.desk.ended(operation.id)

    async with asyncio.timeout(60):
        await slow.idle()
    assert (ended.state, ended.owner_id) == (OperationState.SUCCEEDED, world.worker.replica_id)
    told = await world.desk.answer(ended, api.DrainNodeResponse())
    assert list(told.migrated_vm_ids) == sorted(vm.id for vm in vms.values())
    assert world.traffic.begun.count("a") == 1


async def until_taken(world: World, operation_id: str) -> None:
    async def is_taken() -> bool:
        return (await world.desk.get(operation_id)).owner_id == world.worker.replica_id

    await until(is_taken)


@pytest.mark.parametrize("after_commit", [False, True], ids=["before the commit", "after it"])
async def test_process_that_dies_at_any_write_leaves_a_drain_that_the_next_one_finishes(
    tmp_path: Path, after_commit: bool
) -> None:
    for write in range(1, 400):
        directory = tmp_path / str(write)
        directory.mkdir()
        inner = create_store(fresh_sqlite(directory), PATIENT)
        await inner.open()
        try:
            has_died = await dies_and_is_finished(inner, write, after_commit=after_commit)
        finally:
            await inner.close()
        if not has_died:
            assert write > 15, "a drain of three VMs writes more often than that"
            return
    raise AssertionError("the drain never came through")


async def dies_and_is_finished(inner: Store, write: int, *, after_commit: bool) -> bool:
    """Let a process die at a write of a drain; the next one has to finish it. False if the drain ended before that."""
    traffic = Traffic()
    world = DrainWorld(inner, other_workflows=(SimpleMigrateVm(traffic),))
    await world.worker.register()
    source = world.source = await world.add_node(hostname="source")
    vms = [await world.create(name, start=name != "off") for name in ("a", "off", "stuck")]
    await world.add_node(hostname="target")
    traffic.forbidden["stuck"] = immovable("stuck")

    dying = world.store = DyingStore(inner)
    world.restart()
    await world.worker.register()
    dying.die_at(write, after_commit=after_commit)
    caller = ANYBODY.with_request("r-1", "digest")
    asking = asyncio.ensure_future(drain(world, caller, force=True))
    death = asyncio.ensure_future(dying.died.wait())
    async with asyncio.timeout(60):
        await asyncio.wait({asking, death}, return_when=asyncio.FIRST_COMPLETED)
    has_died = dying.died.is_set()
    death.cancel()
    if has_died:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        world.store = inner
        await world.crash()
        await world.take_over()
        told = await drain(world, caller, force=True)
    else:
        told = await asking

    moved = [vms[0].id, vms[1].id]
    assert list(told.migrated_vm_ids) == sorted(moved), write
    assert list(told.stopped_vm_ids) == [vms[2].id], (write, told)
    assert list(told.failures) == [], write
    node = await world.node(source.id)
    assert (node.phase, node.allocated.vcpus) == (Phase.MAINTENANCE, 1)
    operations = (await world.desk.list(OperationFilter(), None, 1000)).items
    begun = Counter((each.kind, each.resource_id) for each in operations if each.kind != CreateVm.kind)
    assert set(begun.values()) == {1}, (write, begun)
    await world.worker.abandon()
    return has_died
