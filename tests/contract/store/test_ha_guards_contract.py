"""Store contract of high availability: what hosts said of their guards, and which VMs are restarted elsewhere."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from controlplane.domain.fencing import NodeGuard
from controlplane.domain.node import Node
from controlplane.domain.vm import PowerState, Vm
from controlplane.state.interface import Store
from limiquantix.compute.v1.vm_pb2 import HaPolicy, VmSpec
from tests.support.builders import START_OF_TIME, make_node, make_vm
from tests.support.stores import add

SECOND = timedelta(seconds=1)


@pytest.fixture
async def node(store: Store) -> Node:
    new = make_node(hostname="lost")
    await add(store, new)
    return new


# -- guards


def guard_of(node: Node, *, can: bool = True, version: int = 1, after_s: int = 0) -> NodeGuard:
    obstacle = "" if can else "no /dev/watchdog"
    return NodeGuard(node.id, version, can, obstacle, "boot-1", START_OF_TIME + after_s * SECOND)


async def test_guards_are_what_hosts_said_last(store: Store, node: Node) -> None:
    gone = make_node()
    await store.run(lambda tx: tx.note_guards([guard_of(node, version=4), guard_of(gone)]))
    assert await store.read(lambda tx: tx.node_guards()) == [guard_of(node, version=4)]
    await store.run(lambda tx: tx.note_guards([guard_of(node, can=False, version=3, after_s=5)]))
    assert await store.read(lambda tx: tx.node_guards()) == [guard_of(node, can=False, version=4, after_s=5)]
    await store.run(lambda tx: tx.delete_node(node.id))
    assert await store.read(lambda tx: tx.node_guards()) == []


async def test_ability_that_was_heard_earlier_does_not_undo_that_it_is_gone(store: Store, node: Node) -> None:
    lost = guard_of(node, can=False, after_s=5)
    await store.run(lambda tx: tx.note_guards([lost]))
    await store.run(lambda tx: tx.note_guards([guard_of(node, after_s=4)]))
    assert await store.read(lambda tx: tx.node_guards()) == [lost]
    await store.run(lambda tx: tx.note_guards([guard_of(node, after_s=6)]))
    (back,) = await store.read(lambda tx: tx.node_guards())
    assert back.can_self_fence
    await store.run(lambda tx: tx.note_guards([guard_of(node, can=False, after_s=1)]))
    (lost_again,) = await store.read(lambda tx: tx.node_guards())
    assert not lost_again.can_self_fence


async def test_guard_of_one_node_noted_by_two_processes_at_once_is_there_once(
    store: Store, other: Store, node: Node
) -> None:
    async def note(at: Store, version: int) -> None:
        await at.run(lambda tx: tx.note_guards([guard_of(node, version=version)]))

    await asyncio.gather(*(note(each, version) for version in range(1, 5) for each in (store, other)))
    (guard,) = await store.read(lambda tx: tx.node_guards())
    assert guard.ha_version == 4


# -- VMs


async def test_vms_to_restart_are_those_that_shall_run_and_whose_policy_says_so(store: Store, node: Node) -> None:
    elsewhere = make_node()

    def vm(**fields: Any) -> Vm:
        policy = HaPolicy(auto_restart=True)
        defaults = {"spec": VmSpec(ha_policy=policy), "wanted_state": PowerState.RUNNING, "node_id": node.id}
        return make_vm(**{**defaults, **fields})

    first, second = vm(), vm(power_state=PowerState.RUNNING, is_protected=True)
    others = [
        vm(wanted_state=PowerState.STOPPED),
        vm(is_managed=False),
        vm(node_id=elsewhere.id),
        vm(spec=VmSpec()),
        vm(spec=VmSpec(ha_policy=HaPolicy(auto_restart=True, condition=HaPolicy.NEVER))),
    ]
    await add(store, elsewhere, first, second, *others)
    assert list(await store.read(lambda tx: tx.vms_to_restart([node.id]))) == [first, second]
    assert len(await store.read(lambda tx: tx.vms_to_restart([node.id, elsewhere.id]))) == 3
    assert await store.read(lambda tx: tx.vms_to_restart([])) == []
