"""Rules about other VMs, places and devices, as placement keeps them, by several processes too: on every database."""

from __future__ import annotations

import asyncio

import pytest

from controlplane.domain.node import Node
from controlplane.domain.vm import Vm
from controlplane.scheduler.plan import SchedulerConfig
from controlplane.services.placement import NodeMemory, place_vm
from controlplane.state.interface import Store
from limiquantix.compute.v1.node_pb2 import HostDevice, Taint
from limiquantix.compute.v1.vm_pb2 import (
    CpuConfig,
    MemoryConfig,
    NodeLabelRule,
    PciDevice,
    PlacementPolicy,
    SpreadRule,
    Toleration,
    VmAffinityRule,
    VmSpec,
)
from limiquantix.errors import ResourceExhausted
from tests.support.builders import make_node, make_vm
from tests.support.stores import add, open_store

DB = {"app": "db"}


def guest(policy: PlacementPolicy | None = None, labels: dict[str, str] | None = None, **spec: object) -> Vm:
    full = VmSpec(cpu=CpuConfig(cores=1), memory=MemoryConfig(size_mib=128), placement=policy, **spec)  # type: ignore[arg-type]
    return make_vm(spec=full, labels=DB if labels is None else labels)


def rule(kind: VmAffinityRule.Kind.ValueType, topology_key: str = "", **labels: str) -> PlacementPolicy:
    return PlacementPolicy(vm_rules=[VmAffinityRule(kind=kind, labels=labels, topology_key=topology_key)])


async def place(store: Store, vm: Vm, memory: NodeMemory) -> str:
    try:
        placed = await store.run(lambda tx: place_vm(tx, vm, SchedulerConfig(), memory))
    except ResourceExhausted:
        return ""
    memory.keep(placed)
    return placed.node.id


def racks(*names: str) -> list[Node]:
    return [make_node(labels={"rack": name}) for name in names]


async def test_vms_apart_by_rack_take_a_rack_each(store: Store) -> None:
    nodes, memory = racks("1", "1", "2"), NodeMemory()
    await add(store, *nodes)
    rack_of = {node.id: node.labels["rack"] for node in nodes}
    found = [await place(store, guest(rule(VmAffinityRule.APART, "rack", app="db")), memory) for _ in range(3)]
    assert sorted(rack_of[node_id] for node_id in found if node_id) == ["1", "2"]
    assert found[2] == ""


async def test_vms_apart_by_rack_placed_at_once_by_two_control_planes_take_a_rack_each(url: str) -> None:
    nodes = racks("1", "1", "2", "2", "3")
    rack_of = {node.id: node.labels["rack"] for node in nodes}
    async with open_store(url) as one, open_store(url) as other:
        await add(one, *nodes)
        memories = {one: NodeMemory(), other: NodeMemory()}
        found = await asyncio.gather(
            *(
                place(store, guest(rule(VmAffinityRule.APART, "rack", app="db")), memories[store])
                for store in (one, other) * 3
            )
        )
    assert sorted(rack_of[node_id] for node_id in found if node_id) == ["1", "2", "3"]


async def test_vm_together_by_label_follows_where_the_others_are(store: Store) -> None:
    nodes, memory = [make_node() for _ in range(4)], NodeMemory()
    await add(store, *nodes)
    beside = rule(VmAffinityRule.TOGETHER, app="db")
    first = await place(store, guest(beside), memory)
    assert {await place(store, guest(beside), memory) for _ in range(3)} == {first}
    assert await place(store, guest(rule(VmAffinityRule.TOGETHER, app="absent")), memory) == ""


async def test_spread_over_zones_stays_even(store: Store) -> None:
    nodes, memory = [make_node(labels={"zone": zone}) for zone in "aab"], NodeMemory()
    await add(store, *nodes)
    zone_of = {node.id: node.labels["zone"] for node in nodes}
    policy = PlacementPolicy(spread_rules=[SpreadRule(topology_key="zone")])
    found = [zone_of[await place(store, guest(policy), memory)] for _ in range(6)]
    assert sorted(found) == ["a", "a", "a", "b", "b", "b"]


async def test_taints_and_labels_of_nodes_are_kept(store: Store) -> None:
    gpu, plain = make_node(labels={"disk": "ssd"}), make_node()
    gpu.spec.scheduling.taints.append(Taint(key="gpu", value="true", effect=Taint.NO_SCHEDULE))
    await add(store, gpu, plain)
    memory = NodeMemory()
    assert await place(store, guest(), memory) == plain.id
    on_ssd = PlacementPolicy(node_rules=[NodeLabelRule(key="disk", operator=NodeLabelRule.IN, values=["ssd"])])
    assert await place(store, guest(on_ssd), memory) == ""
    on_ssd.tolerations.append(Toleration(key="gpu"))
    assert await place(store, guest(on_ssd), memory) == gpu.id


async def test_device_is_given_to_one_vm_only_by_whichever_control_plane(url: str) -> None:
    node, other_node = make_node(), make_node()
    node.spec.devices.append(HostDevice(kind=HostDevice.PCI, address="0000:3b:00.0", vendor_id="10de", product_id="1"))
    async with open_store(url) as one, open_store(url) as other:
        await add(one, node, other_node)
        memories = {one: NodeMemory(), other: NodeMemory()}
        device = PciDevice(host_address="0000:3b:00.0")
        found = await asyncio.gather(
            *(place(store, guest(labels={}, pci_devices=[device]), memories[store]) for store in (one, other) * 2)
        )
    assert sorted(found) == ["", "", "", node.id]


@pytest.mark.parametrize("count", [1, 3])
async def test_view_that_lives_on_sees_vms_that_went(store: Store, count: int) -> None:
    nodes, memory = [make_node() for _ in range(count)], NodeMemory()
    await add(store, *nodes)
    apart = rule(VmAffinityRule.APART, app="db")
    vms = [guest(apart) for _ in range(count)]
    assert all([await place(store, vm, memory) for vm in vms])
    assert await place(store, guest(apart), memory) == ""
    await store.run(lambda tx: tx.delete_vm(vms[0].id))
    assert await place(store, guest(apart), memory)


async def test_rule_about_a_rack_keeps_a_newcomer_without_rules_out_of_it(url: str) -> None:
    nodes = racks("1", "1", "2")
    rack_of = {node.id: node.labels["rack"] for node in nodes}
    async with open_store(url) as one, open_store(url) as other:
        await add(one, *nodes)
        here, there = NodeMemory(), NodeMemory()
        first = await place(one, guest(rule(VmAffinityRule.APART, "rack", app="db")), here)
        for store, memory in ((one, here), (other, there)):
            found = {rack_of.get(await place(store, guest(), memory)) for _ in range(3)}
            assert found == {"1", "2"} - {rack_of[first]}
