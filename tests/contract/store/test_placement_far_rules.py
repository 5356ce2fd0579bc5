"""Rules about more than a host keep newcomers without rules out, by whichever control plane they come and when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from controlplane.domain.migration import Migration
from controlplane.domain.node import Node
from controlplane.domain.vm import Vm
from controlplane.scheduler.plan import SchedulerConfig
from controlplane.services.placement import NodeMemory, place_vm
from controlplane.services.targets import choose_target
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1.node_pb2 import StorageDomain
from limiquantix.compute.v1.vm_pb2 import CpuConfig, MemoryConfig, PlacementPolicy, VmAffinityRule, VmSpec
from limiquantix.errors import ResourceExhausted
from tests.support.builders import START_OF_TIME, make_id, make_node, make_project, make_vm
from tests.support.stores import Stop, add, open_store

DB = {"app": "db"}
APART_BY_RACK = VmAffinityRule(kind=VmAffinityRule.APART, labels=DB, topology_key="rack")
WEAKER = [
    VmAffinityRule(kind=VmAffinityRule.APART, labels=DB),
    VmAffinityRule(kind=VmAffinityRule.APART, labels=DB, topology_key="rack", weight=5),
    VmAffinityRule(kind=VmAffinityRule.TOGETHER, labels=DB, topology_key="rack"),
]


def guest(*rules: VmAffinityRule, labels: dict[str, str] | None = None, **fields: Any) -> Vm:
    placement = PlacementPolicy(vm_rules=rules)
    spec = VmSpec(cpu=CpuConfig(cores=1), memory=MemoryConfig(size_mib=128), placement=placement)
    return make_vm(spec=spec, labels=DB if labels is None else labels, **fields)


def lonely(**fields: Any) -> Vm:
    return guest(APART_BY_RACK, **fields)


def racks(*names: str) -> list[Node]:
    return [make_node(labels={"rack": name}) for name in names]


async def placed(tx: Transaction, vm: Vm) -> str:
    return (await place_vm(tx, vm, SchedulerConfig(), NodeMemory())).node.id


async def place(store: Store, vm: Vm) -> str:
    try:
        return await store.run(lambda tx: placed(tx, vm))
    except ResourceExhausted:
        return ""


async def far(store: Store, project_id: str = "") -> list[tuple[str, str]]:
    found = await store.read(lambda tx: tx.vm_versions_reaching_far(project_id))
    return sorted((each.vm_id, each.node_id) for each in found)


async def test_only_vms_that_keep_others_out_of_more_than_a_host_are_found(store: Store) -> None:
    (node,) = racks("1")
    vm, stranger = lonely(node_id=node.id), lonely(node_id=node.id, project_id=make_id())
    await add(store, node, vm, stranger, lonely(), *(guest(rule, node_id=node.id) for rule in WEAKER))
    assert await far(store, vm.project_id) == [(vm.id, node.id)]
    assert await far(store) == sorted([(vm.id, node.id), (stranger.id, node.id)])


async def test_rule_that_is_changed_is_found_or_found_no_more(store: Store) -> None:
    (node,) = racks("1")
    vm, plain = lonely(node_id=node.id), guest(node_id=node.id)
    await add(store, node, vm, plain)
    await store.run(lambda tx: tx.update_vm(replace(vm, spec=plain.spec)))
    assert await far(store) == []
    await store.run(lambda tx: tx.update_vm(replace(plain, spec=vm.spec)))
    assert await far(store) == [(plain.id, node.id)]


@pytest.mark.parametrize(("first", "second"), [(lonely, guest), (guest, lonely)], ids=["rule first", "rule second"])
async def test_later_of_two_control_planes_waits_for_the_earlier_and_keeps_the_rule(
    url: str, first: Callable[[], Vm], second: Callable[[], Vm]
) -> None:
    nodes = racks("1", "1", "1", "2")
    rack_of = {node.id: node.labels["rack"] for node in nodes}
    async with open_store(url) as one, open_store(url) as other:
        await add(one, *nodes)
        stop = Stop()

        async def place_and_stop(tx: Transaction) -> str:
            node_id = await placed(tx, first())
            stop.here()
            return node_id

        earlier = asyncio.create_task(one.run(place_and_stop))
        await stop.reached()
        later = asyncio.create_task(place(other, second()))
        await asyncio.sleep(0.2)
        assert not later.done()
        stop.go_on()
        assert {rack_of[await earlier], rack_of[await later]} == {"1", "2"}


async def test_many_placed_at_once_by_two_control_planes_keep_the_rule(url: str) -> None:
    nodes = racks(*"111222333")
    rack_of = {node.id: node.labels["rack"] for node in nodes}
    makes: list[Callable[[], Vm]] = [lonely, guest, guest] * 4
    async with open_store(url) as one, open_store(url) as other:
        await add(one, *nodes)
        found = await asyncio.gather(
            *(place(store, make()) for make, store in zip(makes, (one, other) * 6, strict=True))
        )
    of_lonely = [rack_of[node_id] for node_id, make in zip(found, makes, strict=True) if node_id and make is lonely]
    of_others = {rack_of[node_id] for node_id, make in zip(found, makes, strict=True) if node_id and make is guest}
    assert len(of_lonely) == len(set(of_lonely))
    assert not of_others & set(of_lonely)
    assert any(found)


async def test_newcomers_that_only_others_rules_may_mean_do_not_wait_for_each_other(store: Store) -> None:
    """On SQLite they wait as all writers do, which the turn does not add to."""
    nodes = racks(*"1234")
    await add(store, *nodes)
    assert all(await asyncio.gather(*(place(store, guest()) for _ in range(12))))


async def test_other_labels_and_other_projects_are_let_in(store: Store) -> None:
    nodes = racks("1", "1")
    await add(store, *nodes, lonely(node_id=nodes[0].id))
    assert await place(store, guest()) == ""
    assert await place(store, guest(labels={"app": "web"}))
    assert await place(store, guest(labels={}))
    project = make_project()
    await store.run(lambda tx: tx.insert_project(project))
    assert await place(store, guest(project_id=project.id))


async def test_vm_on_its_way_keeps_others_out_of_both_racks(store: Store) -> None:
    nodes = racks("1", "2", "2", "3")
    vm = lonely(node_id=nodes[0].id)
    await add(store, *nodes, vm)
    moving = Migration(vm.id, make_id(), nodes[0].id, nodes[1].id, START_OF_TIME)
    await store.run(lambda tx: tx.put_migration(moving))
    assert {await place(store, guest()) for _ in range(4)} == {nodes[3].id}
    await store.run(lambda tx: tx.put_migration(replace(moving, is_settled=True)))
    assert await place(store, guest()) in {nodes[1].id, nodes[2].id}


@pytest.mark.parametrize("project_id", ["", make_id()], ids=["by label", "by id from another project"])
async def test_vm_that_moves_is_kept_out_too(store: Store, project_id: str) -> None:
    nodes = racks("1", "2", "2", "3")
    for node in nodes:
        node.spec.supports_live_migration = True
        node.spec.storage_domains.append(StorageDomain(id="shared"))
    vm = guest(node_id=nodes[0].id)
    rule = VmAffinityRule(kind=VmAffinityRule.APART, vm_ids=[vm.id], topology_key="rack")
    other = guest(rule, node_id=nodes[1].id, project_id=project_id) if project_id else lonely(node_id=nodes[1].id)
    await add(store, *nodes, vm, other)

    async def choose(tx: Transaction) -> str:
        return (await choose_target(tx, vm, SchedulerConfig(), NodeMemory())).node_id

    assert await store.run(choose) == nodes[3].id


async def test_vm_that_must_be_near_another_waits_while_that_one_moves(url: str) -> None:
    nodes = [make_node(), make_node()]
    partner = make_vm(node_id=nodes[0].id, labels={"app": "cache"})
    near = [
        VmAffinityRule(kind=VmAffinityRule.TOGETHER, vm_ids=[partner.id]),
        VmAffinityRule(kind=VmAffinityRule.TOGETHER, labels={"app": "cache"}),
    ]
    async with open_store(url) as one, open_store(url) as other:
        await add(one, *nodes, partner)
        stop = Stop()

        async def move(tx: Transaction) -> None:
            vm = await tx.get_vm(partner.id)
            assert vm is not None
            stop.here()
            await tx.update_vm(replace(vm, node_id=nodes[1].id))

        moving = asyncio.create_task(one.run(move))
        await stop.reached()
        newcomers = [asyncio.create_task(place(other, guest(rule))) for rule in near]
        await asyncio.sleep(0.2)
        assert not any(each.done() for each in newcomers)
        stop.go_on()
        await moving
        assert [await each for each in newcomers] == [nodes[1].id] * 2
