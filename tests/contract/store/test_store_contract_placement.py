"""Store contract: what placement reads of the VMs that there are, and the turn that it takes."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from controlplane.domain.migration import Migration
from controlplane.domain.node import Node
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1.vm_pb2 import CpuConfig, PlacementPolicy, VmSpec
from tests.support.builders import START_OF_TIME, make_id, make_node, make_vm
from tests.support.stores import Stop, add, open_store


async def test_placed_vms_are_found_by_project_node_or_all(store: Store) -> None:
    first, second, project = make_node(), make_node(), make_id()
    here = make_vm(node_id=first.id, project_id=project)
    there = make_vm(node_id=second.id, project_id=project)
    other, nowhere = make_vm(node_id=first.id), make_vm(project_id=project)
    await add(store, first, second, here, there, other, nowhere)

    async def read(tx: Transaction) -> list[set[str]]:
        found = [
            await tx.vm_versions(project_id=project),
            await tx.vm_versions(node_id=first.id),
            await tx.vm_versions(),
        ]
        return [{vm.vm_id for vm in each} for each in found]

    assert await store.read(read) == [{here.id, there.id}, {here.id, other.id}, {here.id, there.id, other.id}]


async def test_version_is_that_of_the_record(store: Store) -> None:
    node = make_node()
    vm = make_vm(node_id=node.id)
    await add(store, node, vm)
    changed = await store.run(lambda tx: tx.update_vm(replace(vm, labels={"a": "1"})))
    (found,) = await store.read(lambda tx: tx.vm_versions(node_id=node.id))
    assert found == (vm.id, changed.version, node.id)


async def test_selectors_mean_all_labels_within_the_project_and_ids_mean_any_vm(store: Store) -> None:
    node, project = make_node(), make_id()
    both = make_vm(node_id=node.id, project_id=project, labels={"app": "a", "tier": "1"})
    one = make_vm(node_id=node.id, project_id=project, labels={"app": "a"})
    other = make_vm(node_id=node.id, labels={"app": "a", "tier": "1"})
    unplaced = make_vm(project_id=project, labels={"app": "a", "tier": "1"})
    await add(store, node, both, one, other, unplaced)

    async def found(*selectors: dict[str, str], ids: tuple[str, ...] = ()) -> set[str]:
        rows = await store.read(lambda tx: tx.vm_versions_selected(project, selectors, ids))
        return {row.vm_id for row in rows}

    assert await found({"app": "a", "tier": "1"}) == {both.id}
    assert await found({"app": "a"}, {"tier": "1"}) == {both.id, one.id}
    assert await found({"app": "b"}) == set()
    assert await found(ids=(other.id, unplaced.id, make_id())) == {other.id}
    assert await found({"tier": "1"}, ids=(both.id,)) == {both.id}
    assert await found() == set()


async def test_standing_vm_has_what_placement_reads(store: Store) -> None:
    node = make_node()
    policy = PlacementPolicy(excluded_nodes=["x"])
    vm = make_vm(node_id=node.id, spec=VmSpec(cpu=CpuConfig(cores=3), placement=policy), labels={"a": "1"})
    nowhere = make_vm()
    await add(store, node, vm, nowhere)
    found = {each.id: each for each in await store.read(lambda tx: tx.standing_vms([vm.id, nowhere.id, make_id()]))}
    assert set(found) == {vm.id, nowhere.id}
    standing = found[vm.id]
    assert (standing.node_id, standing.name, standing.project_id) == (node.id, vm.name, vm.project_id)
    assert (standing.vcpus, dict(standing.labels), standing.spec) == (3, {"a": "1"}, vm.spec)
    assert found[nowhere.id].node_id == ""


async def test_more_vms_than_a_statement_has_values_are_read(store: Store) -> None:
    ids = [make_id() for _ in range(40_000)]
    assert await store.read(lambda tx: tx.standing_vms(ids)) == []
    assert await store.read(lambda tx: tx.vm_versions_selected("", [], ids)) == []


async def test_turn_is_taken_by_one_after_the_other_and_the_later_sees_what_the_earlier_wrote(url: str) -> None:
    node = make_node()
    async with open_store(url) as one, open_store(url) as other:
        await add(one, node)
        stop = Stop()

        async def first(tx: Transaction) -> None:
            await tx.take_placement_turn()
            stop.here()
            await tx.insert_vm(make_vm(node_id=node.id, labels={"app": "a"}))

        async def second(tx: Transaction) -> int:
            await tx.take_placement_turn()
            return len(await tx.vm_versions(node_id=node.id))

        earlier = asyncio.create_task(one.run(first))
        await stop.reached()
        later = asyncio.create_task(other.run(second))
        await asyncio.sleep(0.2)
        assert not later.done()
        stop.go_on()
        await earlier
        assert await later == 1


async def test_names_and_labels_of_nodes_are_read(store: Store) -> None:
    plain, labelled = make_node(), make_node(labels={"rack": "1", "zone": "a"})
    await add(store, plain, labelled)
    found = {node.id: (node.hostname, dict(node.labels)) for node in await store.read(lambda tx: tx.node_names())}
    assert found == {plain.id: (plain.hostname, {}), labelled.id: (labelled.hostname, {"rack": "1", "zone": "a"})}


async def test_vm_on_its_way_counts_at_both_ends_until_it_is_settled(store: Store) -> None:
    source, target = make_node(), make_node()
    vm = make_vm(node_id=source.id)
    await add(store, source, target, vm)
    moving = Migration(vm.id, make_id(), source.id, target.id, START_OF_TIME)

    async def there(node: Node) -> list[str]:
        return [each.vm_id for each in await store.read(lambda tx: tx.vm_versions(node_id=node.id))]

    await store.run(lambda tx: tx.put_migration(moving))
    assert (await there(source), await there(target)) == ([vm.id], [vm.id])
    await store.run(lambda tx: tx.put_migration(replace(moving, is_settled=True)))
    assert (await there(source), await there(target)) == ([vm.id], [])
