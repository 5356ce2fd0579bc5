"""VMs that must be apart never land on one node, whoever places them and when: on every kind of database."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from controlplane.domain.vm import Vm
from controlplane.scheduler.plan import SchedulerConfig
from controlplane.services.placement import NodeMemory, place_vm
from controlplane.state.interface import Store
from limiquantix.compute.v1.vm_pb2 import CpuConfig, MemoryConfig, PlacementPolicy, VmAffinityRule, VmSpec
from limiquantix.errors import InvalidArgument, ResourceExhausted
from tests.support.builders import make_id, make_node, make_vm
from tests.support.stores import add, open_store, vm_in

APART = VmAffinityRule(kind=VmAffinityRule.APART, labels={"app": "db"})


def db(*, policy: PlacementPolicy | None = None, **fields: Any) -> Vm:
    spec = VmSpec(cpu=CpuConfig(cores=1), memory=MemoryConfig(size_mib=128), placement=policy)
    return make_vm(spec=spec, labels={"app": "db"}, **fields)


def apart(**fields: Any) -> Vm:
    return db(policy=PlacementPolicy(vm_rules=[APART]), **fields)


async def place(store: Store, vm: Vm, memory: NodeMemory | None = None) -> Vm:
    known = memory or NodeMemory()
    placed = await store.run(lambda tx: place_vm(tx, vm, SchedulerConfig(), known))
    known.keep(placed)
    return placed.vm


async def place_or_not(store: Store, vm: Vm, memory: NodeMemory) -> str:
    try:
        return (await place(store, vm, memory)).node_id
    except ResourceExhausted:
        return ""


async def test_rule_of_a_vm_that_is_there_keeps_a_newcomer_without_rules_off(store: Store) -> None:
    nodes = [make_node() for _ in range(3)]
    await add(store, *nodes)
    memory = NodeMemory()
    first = await place(store, apart(), memory)
    others = {(await place(store, db(), memory)).node_id for _ in range(6)}
    assert first.node_id not in others
    assert len(others) == 2


async def test_newcomer_that_is_kept_off_everywhere_is_told_so_and_leaves_no_claim(store: Store) -> None:
    nodes = [make_node(hostname=f"h{number:02}") for number in range(12)]
    vms = [apart(node_id=node.id) for node in nodes]
    await add(store, *nodes, *vms)
    with pytest.raises(ResourceExhausted, match="12 nodes: 12 run VMs it must not run beside"):
        await place(store, db())
    assert {(claims.vcpus, claims.memory_bytes) for claims in await store.read(lambda tx: tx.node_claims())} == {(0, 0)}


async def test_rule_that_was_taken_back_keeps_nobody_off(store: Store) -> None:
    node = make_node()
    await add(store, node)
    memory = NodeMemory()
    first = await place(store, apart(), memory)
    stored = await vm_in(store, first.id)
    assert stored is not None
    spec = VmSpec()
    spec.CopyFrom(stored.spec)
    spec.ClearField("placement")
    await store.run(lambda tx: tx.update_vm(replace(stored, spec=spec)))
    assert (await place(store, db(), memory)).node_id == node.id


async def test_rule_by_label_holds_within_its_project_and_a_rule_by_id_everywhere(store: Store) -> None:
    node = make_node()
    stranger = apart(node_id=node.id, project_id=make_id())
    await add(store, node, stranger)
    assert (await place(store, db())).node_id == node.id
    newcomer = db()
    named = make_vm(node_id=node.id, spec=VmSpec(placement=PlacementPolicy(anti_affinity_vms=[newcomer.id])))
    await add(store, named)
    with pytest.raises(ResourceExhausted):
        await place(store, newcomer)


@pytest.mark.parametrize("second", [apart, db], ids=["both have the rule", "one has the rule"])
async def test_vms_placed_at_once_by_two_control_planes_are_apart(url: str, second: Any) -> None:
    nodes = [make_node() for _ in range(4)]
    async with open_store(url) as one, open_store(url) as other:
        await add(one, *nodes)
        memories = NodeMemory(), NodeMemory()
        makes = [(one, apart, memories[0]), (other, second, memories[1])] * 3
        found = await asyncio.gather(*(place_or_not(store, make(), memory) for store, make, memory in makes))
        lonely = [node_id for node_id, (_, make, _) in zip(found, makes, strict=True) if make is apart and node_id]
        assert len(set(lonely)) == len(lonely)
        others = {node_id for node_id, (_, make, _) in zip(found, makes, strict=True) if make is db}
        assert not others & set(lonely)
        claims = {each.node_id: each.vcpus for each in await one.read(lambda tx: tx.node_claims())}
        placed = [node_id for node_id in found if node_id]
        assert claims == {node.id: placed.count(node.id) for node in nodes}


async def test_company_that_contradicts_is_refused_when_it_is_made(store: Store) -> None:
    node = make_node()
    newcomer = db(policy=None)
    loner = make_vm(name="loner", node_id=node.id, spec=VmSpec(placement=PlacementPolicy(vm_rules=[APART])))
    await add(store, node, loner)
    newcomer.spec.placement.affinity_vms.append(loner.id)
    with pytest.raises(InvalidArgument, match="VM loner must not be beside this VM") as refusal:
        await place(store, newcomer)
    assert refusal.value.violations[0].field == "spec.placement.affinity_vms[0]"
