"""All nodes, looked at again and again: what did not change is neither read nor made anew."""

from __future__ import annotations

from dataclasses import replace

from controlplane.domain.node import Capacity, Phase
from controlplane.services.node_roll import NodeRoll
from controlplane.services.seen import NodesAtOnce, NodesKept
from controlplane.state.interface import Store
from tests.support.builders import GIB, make_node
from tests.support.stores import CLAIM_OF_ONE, add


async def test_look_that_finds_nothing_new_gives_the_very_same_object(store: Store) -> None:
    node = make_node(vcpus=8, memory_bytes=8 * GIB)
    await add(store, node)

    first = await store.read(NodesAtOnce().look)

    assert await store.read(first.look) is first
    assert first.nodes[node.id].node == node


async def test_look_reads_what_changed_and_keeps_the_rest(store: Store) -> None:
    claimed, changed, gone = (make_node(vcpus=8, memory_bytes=8 * GIB) for _ in range(3))
    await add(store, claimed, changed, gone)
    first = await store.read(NodesAtOnce().look)
    assert await store.run(lambda tx: tx.claim(claimed.id, CLAIM_OF_ONE))
    await store.run(lambda tx: tx.update_node(replace(changed, phase=Phase.MAINTENANCE)))
    await store.run(lambda tx: tx.delete_node(gone.id))

    second = await store.read(first.look)

    assert second.nodes.keys() == {claimed.id, changed.id}
    assert second.nodes[claimed.id].node is first.nodes[claimed.id].node
    assert second.nodes[claimed.id].current.allocated == CLAIM_OF_ONE
    assert first.nodes[claimed.id].current.allocated == Capacity(0, 0)
    assert second.nodes[changed.id].node.phase == Phase.MAINTENANCE


async def test_roll_of_nodes_takes_those_that_were_read_already(store: Store) -> None:
    known, changed = make_node(), make_node()
    await add(store, known, changed)
    kept = NodesKept(await store.read(NodesAtOnce().look))
    await store.run(lambda tx: tx.update_node(replace(changed, phase=Phase.MAINTENANCE)))
    roll = NodeRoll(store, kept=kept)

    news = await roll.refresh()

    assert {node.id: node.version for node in news.changed} == {known.id: 1, changed.id: 2}
    assert await roll.node(known.id) is kept.at_once.nodes[known.id].node
    assert (await roll.node(changed.id)).phase == Phase.MAINTENANCE
    assert (await roll.refresh()) == ([], set())
