"""Store contract: migrations of VMs are held against each other by every process that shares the database."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, datetime, timedelta

import pytest

from controlplane.domain.migration import Migration, MigrationRules, turns
from controlplane.domain.node import Capacity
from controlplane.domain.operation import Operation, OperationState
from controlplane.state.interface import Store, Transaction
from tests.support.builders import START_OF_TIME, make_id
from tests.support.stores import open_store

RULES = MigrationRules(node_units=2, cluster_units=3)
LATER = datetime(2030, 1, 1, tzinfo=UTC)


def make_operation(vm_id: str) -> Operation:
    return Operation(
        id=make_id(),
        kind="vm.migrate",
        resource_type="vm",
        resource_id=vm_id,
        project_id="",
        principal="ann",
        created_at=START_OF_TIME,
        steps=(),
        state=OperationState.RUNNING,
        owner_id="me",
        attempt_count=1,
    )


async def add(store: Store, number: int = 0, source: str = "a", target: str = "b", cost: int = 1) -> Migration:
    """Write a migration whose operation is under way."""
    vm_id = make_id()
    operation = make_operation(vm_id)
    asked_at = START_OF_TIME + timedelta(seconds=number)
    migration = Migration(vm_id, operation.id, source, target, asked_at, cost=cost, claimed=Capacity(2, 2**40))

    async def write(tx: Transaction) -> None:
        await tx.insert_operation(operation)
        await tx.put_migration(migration)

    await store.run(write)
    return migration


async def end(store: Store, migration: Migration) -> None:
    async def write(tx: Transaction) -> None:
        operation = await tx.get_operation(migration.operation_id)
        assert operation is not None
        ended = dataclasses.replace(operation, state=OperationState.FAILED, ended_at=LATER)
        assert await tx.advance_operation(ended) is not None

    await store.run(write)


async def begin_all(store: Store) -> tuple[str, ...]:
    """Let those begin that may, as the step that waits does."""

    async def work(tx: Transaction) -> tuple[str, ...]:
        may = turns(await tx.migrations_in_turn(held=True), RULES).may_begin
        await tx.grant_migrations(may, LATER)
        return may

    return await store.run(work)


async def test_migration_is_read_as_it_was_written(store: Store) -> None:
    migration = await add(store)
    assert await store.read(lambda tx: tx.get_migration(migration.vm_id)) == migration
    changed = dataclasses.replace(
        migration, copies_disks=True, ran=False, is_settled=True, granted_at=LATER, claimed=Capacity(0, 0), cost=2
    )
    await store.run(lambda tx: tx.put_migration(changed))
    assert await store.read(lambda tx: tx.get_migration(migration.vm_id)) == changed
    await store.run(lambda tx: tx.remove_migration(migration.vm_id))
    await store.run(lambda tx: tx.remove_migration(migration.vm_id))
    assert await store.read(lambda tx: tx.get_migration(migration.vm_id)) is None


async def test_migrations_of_a_node_are_those_from_and_to_it(store: Store) -> None:
    first, second, third = await add(store, 0, "a", "b"), await add(store, 1, "c", "a"), await add(store, 2, "b", "c")
    for node_id, wanted in (("a", {first, second}), ("b", {first, third}), ("x", set())):
        found = await store.read(lambda tx, node_id=node_id: tx.migrations_of_node(node_id))  # type: ignore[misc]
        assert {each.vm_id for each in found} == {each.vm_id for each in wanted}


async def test_those_worked_on_come_in_the_order_in_which_they_were_asked_for(store: Store) -> None:
    late, early, ended = await add(store, 5), await add(store, 1), await add(store, 3)
    await end(store, ended)
    found = await store.read(lambda tx: tx.migrations_in_turn())
    assert [each.vm_id for each in found] == [early.vm_id, late.vm_id]


async def test_slot_is_free_when_its_operation_has_ended_however_it_ended(store: Store) -> None:
    first, second = await add(store, 0, cost=2), await add(store, 1, cost=2)
    assert await begin_all(store) == (first.vm_id,)
    assert await begin_all(store) == ()
    await end(store, first)
    assert await begin_all(store) == (second.vm_id,)


async def test_many_processes_at_once_let_no_more_begin_than_there_is_room_for(store: Store, url: str) -> None:
    for number in range(12):
        await add(store, number, f"source-{number}", f"target-{number}")
    async with open_store(url) as other:
        begun = await asyncio.gather(*(begin_all(each) for each in (store, other) * 6))
    assert sum(len(each) for each in begun) == RULES.cluster_units


async def test_gate_cannot_be_held_by_who_only_reads(store: Store) -> None:
    with pytest.raises(RuntimeError):
        await store.read(lambda tx: tx.migrations_in_turn(held=True))


async def test_vms_with_an_unfinished_operation_of_a_kind_are_found_whatever_else_is_done_to_others(
    store: Store,
) -> None:
    moving, waiting, other, done = [make_operation(make_id()) for _ in range(4)]
    waiting = dataclasses.replace(waiting, state=OperationState.QUEUED, owner_id="")
    other = dataclasses.replace(other, kind="vm.start")
    done = dataclasses.replace(done, state=OperationState.SUCCEEDED, ended_at=LATER)

    async def write(tx: Transaction) -> None:
        for operation in (moving, waiting, other, done):
            await tx.insert_operation(operation)

    await store.run(write)
    found = await store.read(lambda tx: tx.resources_under("vm.migrate"))
    assert found == {moving.resource_id, waiting.resource_id}
