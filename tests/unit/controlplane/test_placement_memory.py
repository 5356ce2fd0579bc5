"""What a process remembers of nodes never makes it place a VM by what is no longer so."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.domain.node import Capacity, Phase
from controlplane.domain.vm import Vm
from controlplane.scheduler.plan import SchedulerConfig
from controlplane.services.placement import NodeMemory, Placed, place_vm
from controlplane.state.interface import Store, Transaction
from limiquantix.errors import ResourceExhausted
from tests.support.builders import GIB, make_node, make_vm
from tests.support.control_plane_world import World
from tests.support.stores import add

SIZE = Capacity(1, 128 * 2**20)
"""Of the VMs that `make_vm` makes."""


async def place(store: Store, memory: NodeMemory, vm: Vm | None = None) -> Placed:
    draft = vm or make_vm()
    placed = await store.run(lambda tx: place_vm(tx, draft, SchedulerConfig(), memory))
    memory.seen = placed.seen
    return placed


async def test_change_of_a_node_is_seen_by_the_next_placement(world: World) -> None:
    memory = NodeMemory()
    node = make_node()
    await add(world.store, node)
    assert (await place(world.store, memory)).node.id == node.id

    moved = replace(node, agent_endpoint="192.0.2.77:9090")
    moved = await world.store.run(lambda tx: tx.update_node(moved))
    assert (await place(world.store, memory)).node.agent_endpoint == "192.0.2.77:9090"

    await world.store.run(lambda tx: tx.update_node(replace(moved, phase=Phase.MAINTENANCE)))
    with pytest.raises(ResourceExhausted, match="not READY"):
        await place(world.store, memory)


async def test_claims_of_others_are_seen_by_the_next_placement(world: World) -> None:
    memory = NodeMemory()
    node = make_node(vcpus=2, memory_bytes=GIB)
    await add(world.store, node)
    await place(world.store, memory)
    assert await world.store.run(lambda tx: tx.claim(node.id, SIZE))
    with pytest.raises(ResourceExhausted, match="lacks CPU"):
        await place(world.store, memory)
    await world.store.run(lambda tx: tx.release(node.id, SIZE))
    assert (await place(world.store, memory)).node.id == node.id


async def test_nodes_that_came_and_went_are_seen_by_the_next_placement(world: World) -> None:
    memory = NodeMemory()
    full, empty = make_node(vcpus=1), make_node()
    await add(world.store, full)
    await place(world.store, memory)
    await add(world.store, empty)
    assert (await place(world.store, memory)).node.id == empty.id
    assert set(memory.seen) == {full.id, empty.id}


async def test_what_is_known_is_not_read_again(world: World) -> None:
    memory = NodeMemory()
    await add(world.store, *(make_node() for _ in range(3)))
    await place(world.store, memory)
    known = {node_id: seen.node for node_id, seen in memory.seen.items()}
    await place(world.store, memory)
    assert all(memory.seen[node_id].node is node for node_id, node in known.items())


async def test_placement_that_is_taken_back_teaches_nothing(world: World) -> None:
    await world.add_node()
    memory = NodeMemory()

    async def work(tx: Transaction) -> None:
        await place_vm(tx, make_vm(), SchedulerConfig(), memory)
        raise ValueError("taken back")

    with pytest.raises(ValueError, match="taken back"):
        await world.store.run(work)
    assert memory.seen == {}
