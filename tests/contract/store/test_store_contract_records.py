"""Store contract: what was written is read back, stale or clashing writes are refused, heartbeats are merged."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, datetime, timedelta, timezone

import pytest

from controlplane.domain.node import Capacity, Heartbeat, NodeUsage, Phase
from controlplane.domain.vm import PowerState
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1.node_pb2 import SystemInfo
from limiquantix.compute.v1.vm_pb2 import CpuConfig, MemoryConfig, VmSpec
from limiquantix.errors import Aborted, AlreadyExists, Reason
from tests.support.builders import START_OF_TIME, make_id, make_node, make_vm
from tests.support.stores import CLAIM_OF_ONE, add, node_in, open_store, vm_in


async def test_vm_with_every_field_set_is_read_back_equal(store: Store) -> None:
    node = make_node()
    vm = make_vm(
        node_id=node.id,
        power_state=PowerState.RUNNING,
        last_seen_at=datetime(2031, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        labels={"app": "web", "leer": "", "ключ": "значение"},
        description="two\nlines",
        folder_id=make_id(),
        created_by="someone",
        is_managed=False,
        error_message="it broke",
        lost_reason="gone",
        reported_change_count=2**63 - 1,
    )
    await add(store, node, vm)
    assert await vm_in(store, vm.id) == vm


async def test_node_with_every_field_set_is_read_back_equal(store: Store) -> None:
    node = make_node(
        labels={"zone": "a"},
        annotations={"note": 'quoted "text"'},
        usage=NodeUsage(12.5, 1, 2, 3, 4, 5, 0.25, 0.5, 0.75),
        system=SystemInfo(os_name="Debian", uptime_seconds=2**64 - 1),
        allocated=Capacity(3, 4),
        error_message="a fan stopped",
        phase=Phase.MAINTENANCE,
    )
    await add(store, node)
    assert await node_in(store, node.id) == node


async def test_vm_spec_written_by_a_newer_version_keeps_fields_unknown_here(store: Store) -> None:
    known = VmSpec(cpu=CpuConfig(cores=2), memory=MemoryConfig(size_mib=64))
    unknown_field = b"\xc2\x3e\x03new"  # field 1000, which this version does not have
    vm = make_vm(spec=VmSpec.FromString(known.SerializeToString() + unknown_field))
    await add(store, vm)
    stored = await vm_in(store, vm.id)
    assert stored is not None
    assert stored.spec.SerializeToString().endswith(unknown_field)


async def test_time_in_another_zone_is_read_back_as_the_same_moment_in_utc(store: Store) -> None:
    there = datetime(2025, 6, 1, 12, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    vm = make_vm(created_at=there)
    await add(store, vm)
    stored = await vm_in(store, vm.id)
    assert stored is not None
    assert (stored.created_at, stored.created_at.tzinfo) == (there, UTC)


async def test_reading_what_does_not_exist_gives_nothing(store: Store) -> None:
    async def work(tx: Transaction) -> list[object]:
        return [
            await tx.get_vm("none"),
            await tx.get_node("none"),
            await tx.get_node_by_hostname("none"),
            list(await tx.vms_on_node("none")),
            await tx.nodes_of_vms([]),
            await tx.nodes_of_vms(["none"]),
            await tx.vm_ids_by_node([]),
            list(await tx.all_nodes()),
        ]

    assert await store.read(work) == [None, None, None, [], {}, {}, {}, []]


async def test_vm_name_taken_in_the_project_is_refused_and_free_in_another(store: Store) -> None:
    first = make_vm(name="db")
    await add(store, first, make_vm(name="db", project_id=make_id()))
    with pytest.raises(AlreadyExists, match="'db'") as refusal:
        await add(store, make_vm(name="db"))
    assert refusal.value.reason == Reason.VM_NAME_TAKEN
    assert refusal.value.__cause__ is not None


async def test_vm_renamed_to_a_taken_name_is_refused_and_unchanged(store: Store) -> None:
    taken, other = make_vm(name="taken"), make_vm(name="other")
    await add(store, taken, other)
    with pytest.raises(AlreadyExists):
        await store.run(lambda tx: tx.update_vm(dataclasses.replace(other, name="taken")))
    assert await vm_in(store, other.id) == other


async def test_vm_inserted_twice_is_a_concurrent_change(store: Store) -> None:
    vm = make_vm()
    await add(store, vm)
    with pytest.raises(Aborted) as refusal:
        await add(store, dataclasses.replace(vm, name="another"))
    assert refusal.value.reason == Reason.CONCURRENT_CHANGE


async def test_vm_on_a_node_that_is_gone_is_a_concurrent_change(store: Store) -> None:
    with pytest.raises(Aborted):
        await add(store, make_vm(node_id=make_id()))


async def test_node_of_a_known_hostname_is_a_concurrent_change(store: Store) -> None:
    node = make_node(hostname="alpha")
    await add(store, node)
    with pytest.raises(Aborted) as refusal:
        await add(store, make_node(hostname="alpha"))
    assert refusal.value.reason == Reason.CONCURRENT_CHANGE
    assert await store.read(lambda tx: tx.get_node_by_hostname("alpha")) == node


async def test_work_that_goes_on_after_a_refused_row_fails_and_changes_nothing(store: Store) -> None:
    taken, other = make_vm(name="taken"), make_vm()
    await add(store, taken)

    async def work(tx: Transaction) -> None:
        await tx.insert_vm(other)
        with pytest.raises(AlreadyExists):
            await tx.insert_vm(make_vm(name="taken"))

    with pytest.raises(RuntimeError, match="refused row"):
        await store.run(work)
    assert await vm_in(store, other.id) is None


async def test_update_of_a_stale_vm_is_aborted_and_changes_nothing(store: Store) -> None:
    vm = make_vm(labels={"a": "1", "b": "2"})
    await add(store, vm)
    current = await store.run(lambda tx: tx.update_vm(dataclasses.replace(vm, labels={"a": "9", "c": "3"})))
    assert current.version == vm.version + 1
    with pytest.raises(Aborted) as refusal:
        await store.run(lambda tx: tx.update_vm(dataclasses.replace(vm, description="stale", labels={})))
    assert refusal.value.reason == Reason.CONCURRENT_CHANGE
    assert await vm_in(store, vm.id) == current


async def test_update_of_a_removed_vm_is_aborted(store: Store) -> None:
    vm = make_vm(labels={"a": "1"})
    await add(store, vm)
    assert await store.run(lambda tx: tx.delete_vm(vm.id))
    assert not await store.run(lambda tx: tx.delete_vm(vm.id))
    with pytest.raises(Aborted):
        await store.run(lambda tx: tx.update_vm(vm))
    await add(store, vm)  # its labels went with it, or this would be refused
    assert await vm_in(store, vm.id) == vm


async def test_update_of_a_node_leaves_claims_and_heartbeats_alone(store: Store) -> None:
    node = make_node()
    await add(store, node)
    beat = Heartbeat(node.id, START_OF_TIME + timedelta(days=1), NodeUsage(cpu_percent=50.0))

    async def meanwhile(tx: Transaction) -> None:
        assert await tx.claim(node.id, CLAIM_OF_ONE)
        await tx.record_heartbeats([beat])

    await store.run(meanwhile)
    described = dataclasses.replace(node, phase=Phase.DRAINING, labels={"x": "y"}, annotations={"n": "1"})
    updated = await store.run(lambda tx: tx.update_node(described))
    assert await node_in(store, node.id) == dataclasses.replace(
        updated, allocated=CLAIM_OF_ONE, usage=beat.usage, last_heartbeat_at=beat.at
    )
    with pytest.raises(Aborted):
        await store.run(lambda tx: tx.update_node(described))


async def test_updates_of_one_vm_at_once_are_never_lost(store: Store, url: str) -> None:
    vm = make_vm()
    await add(store, vm)

    async def count_up(tx: Transaction) -> None:
        current = await tx.get_vm(vm.id)
        assert current is not None
        await tx.update_vm(dataclasses.replace(current, reported_change_count=current.reported_change_count + 1))

    async with open_store(url) as replica, asyncio.TaskGroup() as group:
        for each in [store, replica] * 10:
            group.create_task(each.run(count_up))
    current = await vm_in(store, vm.id)
    assert current is not None
    assert (current.reported_change_count, current.version) == (20, vm.version + 20)


async def test_heartbeats_older_than_the_stored_one_are_ignored(store: Store) -> None:
    first, second, third = make_node(), make_node(), make_node(last_heartbeat_at=None)
    await add(store, first, second, third)
    later = START_OF_TIME + timedelta(days=1)
    stale = NodeUsage(cpu_percent=1.0)
    fresh = NodeUsage(cpu_percent=99.0)
    await store.run(
        lambda tx: tx.record_heartbeats(
            [
                Heartbeat(first.id, later, fresh),
                Heartbeat(first.id, later - timedelta(microseconds=1), stale),
                Heartbeat(second.id, START_OF_TIME - timedelta(days=1), stale),
                Heartbeat(third.id, START_OF_TIME - timedelta(days=1), fresh),
                Heartbeat("unknown", later, fresh),
            ]
        )
    )
    stored = [await node_in(store, node.id) for node in (first, second, third)]
    assert [node.usage for node in stored] == [fresh, NodeUsage(), fresh]
    assert [node.version for node in stored] == [1, 1, 1]


async def test_heartbeat_with_an_absurd_number_does_not_stop_those_of_other_nodes(store: Store) -> None:
    liar, honest = make_node(), make_node()
    await add(store, liar, honest)
    later = START_OF_TIME + timedelta(days=1)
    absurd = NodeUsage(memory_used_bytes=2**64 * 2**20)
    await store.run(
        lambda tx: tx.record_heartbeats([Heartbeat(liar.id, later, absurd), Heartbeat(honest.id, later, NodeUsage())])
    )
    assert (await node_in(store, honest.id)).last_heartbeat_at == later
    assert (await node_in(store, liar.id)).usage.memory_used_bytes == 2**63 - 1


async def test_silent_ready_nodes_are_marked_and_others_not(store: Store) -> None:
    limit = START_OF_TIME + timedelta(days=1)
    silent = make_node(last_heartbeat_at=limit - timedelta(microseconds=1))
    never_heard = make_node(last_heartbeat_at=None, created_at=limit - timedelta(seconds=1))
    new = make_node(last_heartbeat_at=None, created_at=limit)
    heard = make_node(last_heartbeat_at=limit)
    maintained = make_node(last_heartbeat_at=START_OF_TIME, phase=Phase.MAINTENANCE)
    await add(store, silent, never_heard, new, heard, maintained)
    now = limit + timedelta(seconds=30)
    marked = await store.run(lambda tx: tx.mark_silent_nodes(limit, now))
    assert list(marked) == sorted([silent.id, never_heard.id])
    assert await node_in(store, silent.id) == dataclasses.replace(
        silent, phase=Phase.NOT_READY, updated_at=now, version=2
    )
    assert [(await node_in(store, node.id)).phase for node in (new, heard, maintained)] == [
        Phase.READY,
        Phase.READY,
        Phase.MAINTENANCE,
    ]
    assert list(await store.run(lambda tx: tx.mark_silent_nodes(limit, now))) == []


async def test_versions_of_all_nodes_are_those_of_their_records(store: Store) -> None:
    first, second, gone = make_node(), make_node(), make_node()
    await add(store, first, second, gone)
    await store.run(lambda tx: tx.update_node(dataclasses.replace(first, phase=Phase.MAINTENANCE)))
    await store.run(lambda tx: tx.delete_node(gone.id))
    assert await store.read(lambda tx: tx.node_versions()) == {first.id: 2, second.id: 1}


async def test_loaded_nodes_are_the_ready_ones_at_or_above_either_limit(store: Store) -> None:
    def using(cpu_percent: float, memory_bytes: int, total_bytes: int = 2**45) -> NodeUsage:
        return NodeUsage(cpu_percent, memory_bytes, total_bytes)

    by_cpu = make_node(usage=using(80.0, 0))
    by_memory = make_node(usage=using(0.0, 2**44))
    idle = make_node(usage=using(79.9, 2**44 - 2**30))
    unheard = make_node(usage=using(0.0, 0, 0))
    away = make_node(usage=using(99.0, 2**45), phase=Phase.NOT_READY)
    await add(store, by_cpu, by_memory, idle, unheard, away)

    found = await store.read(lambda tx: tx.loaded_nodes(80.0, 50.0))

    assert {node.id for node in found} == {by_cpu.id, by_memory.id}
    assert {node.id: node.usage for node in found} == {each.id: each.usage for each in (by_cpu, by_memory)}


async def test_count_of_changes_is_only_taken_from_the_host_that_the_vm_is_placed_on(store: Store) -> None:
    left, node = make_node(), make_node()
    vm = make_vm(node_id=node.id, reported_change_count=1)
    await add(store, left, node, vm)

    async def counts_after(node_id: str, count: int) -> int:
        await store.run(lambda tx: tx.touch_vms(node_id, {vm.id: count}, START_OF_TIME))
        stored = await vm_in(store, vm.id)
        assert stored is not None
        return stored.reported_change_count

    assert await counts_after(left.id, 9) == 1
    assert await counts_after(node.id, 3) == 3
    assert await counts_after(node.id, 2) == 3
