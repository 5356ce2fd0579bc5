"""What the life of nodes needs of a store: turns of a node's operations, removal, and where a VM was before."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from controlplane.domain.event import NODE_BEFORE, Change, EventFilter, EventType
from controlplane.domain.operation import Operation
from controlplane.state.interface import Store, Transaction
from tests.support.builders import START_OF_TIME, make_id, make_node, make_vm
from tests.support.stores import CLAIM_OF_ONE, Stop, add


def make_drain(node_id: str, position: int, generation: int = 0) -> Operation:
    return Operation(
        id=make_id(),
        kind="node.drain",
        resource_type="node",
        resource_id=node_id,
        project_id="",
        principal="ann",
        created_at=START_OF_TIME,
        steps=(),
        position=position,
        generation=generation,
    )


async def test_turns_of_a_node_are_beyond_those_of_its_operations(store: Store) -> None:
    node = make_node()
    await add(store, node)
    assert await store.run(lambda tx: tx.next_generation(node.id)) == 1

    await store.run(lambda tx: tx.insert_operation(make_drain(node.id, 7, generation=3)))
    assert await store.run(lambda tx: tx.next_generation(node.id)) == 8
    assert await store.run(lambda tx: tx.next_generation(node.id, 20)) == 21
    assert await store.run(lambda tx: tx.next_generation(make_id())) is None


async def test_turn_of_a_node_changes_nothing_of_it(store: Store) -> None:
    node = make_node()
    await add(store, node)

    await store.run(lambda tx: tx.next_generation(node.id))

    assert await store.read(lambda tx: tx.get_node(node.id)) == node


async def test_of_two_who_want_a_nodes_turn_one_waits(store: Store) -> None:
    node = make_node()
    await add(store, node)
    stop = Stop()

    async def first(tx: Transaction) -> int | None:
        turn = await tx.next_generation(node.id)
        stop.here()
        assert turn is not None
        await tx.insert_operation(make_drain(node.id, turn))
        return turn

    one = asyncio.ensure_future(store.run(first))
    await stop.reached()
    two = asyncio.ensure_future(store.run(lambda tx: tx.next_generation(node.id)))
    stop.go_on()

    assert (await one, await two) == (1, 2)


async def test_node_is_removed_with_its_labels_and_told(store: Store) -> None:
    node = make_node(labels={"zone": "a"})
    await add(store, node)

    assert await store.run(lambda tx: tx.delete_node(node.id))
    assert not await store.run(lambda tx: tx.delete_node(node.id))

    assert await store.read(lambda tx: tx.get_node(node.id)) is None
    newest = (await store.read(lambda tx: tx.newest_events(EventFilter(resource_id=node.id), 10)))[0]
    assert (newest.change, newest.event.type) == (Change.DELETED, EventType.NODE_REMOVED)
    again = replace(node, id=make_id())
    await add(store, again)
    assert await store.read(lambda tx: tx.get_node(again.id)) == again


async def test_node_with_vms_cannot_be_removed(store: Store) -> None:
    node = make_node()
    await add(store, node, make_vm(node_id=node.id))

    with pytest.raises(Exception, match=r"(?i)foreign key"):
        await store.run(lambda tx: tx.delete_node(node.id))
    assert await store.read(lambda tx: tx.get_node(node.id)) is not None


async def test_claim_on_a_node_that_is_being_removed_finds_none(store: Store) -> None:
    node = make_node()
    await add(store, node)
    stop = Stop()

    async def remove(tx: Transaction) -> bool:
        await tx.next_generation(node.id)
        stop.here()
        return await tx.delete_node(node.id)

    removing = asyncio.ensure_future(store.run(remove))
    await stop.reached()
    claiming = asyncio.ensure_future(store.run(lambda tx: tx.claim(node.id, CLAIM_OF_ONE)))
    stop.go_on()

    assert await removing
    assert not await claiming


async def test_change_of_a_vm_that_is_elsewhere_now_tells_where_it_was(store: Store) -> None:
    here, there = make_node(), make_node()
    vm = make_vm(node_id=here.id)
    await add(store, here, there, vm)

    async def move(tx: Transaction) -> None:
        read = await tx.get_vm(vm.id)
        assert read is not None
        moved = await tx.update_vm(replace(read, node_id=there.id))
        await tx.update_vm(replace(moved, description="still there"))

    await store.run(move)
    unread = await store.read(lambda tx: tx.get_vm(vm.id))
    assert unread is not None
    await store.run(lambda tx: tx.update_vm(replace(unread, node_id="")))

    found = await store.read(lambda tx: tx.newest_events(EventFilter(resource_id=vm.id), 3))
    assert [entry.event.metadata.get(NODE_BEFORE) for entry in reversed(found)] == [here.id, None, there.id]
