"""Store contract: the log of events, which every change writes, and which gives each entry its place."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from controlplane.domain.event import (
    NODE,
    VM,
    Change,
    Event,
    EventFilter,
    EventType,
    LoggedEvent,
    LogPosition,
    Severity,
)
from controlplane.domain.node import Phase
from controlplane.domain.vm import PowerState
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1.node_pb2 import Node
from limiquantix.compute.v1.vm_pb2 import VirtualMachine
from tests.support.builders import START_OF_TIME, make_node, make_vm
from tests.support.stores import add, open_store

THE_FUTURE = datetime.now(UTC) + timedelta(days=1)


async def numbered(store: Store) -> Sequence[LoggedEvent]:
    """Give every entry a revision, and read all."""
    await store.run(lambda tx: tx.sequence_events())
    return await store.read(lambda tx: tx.events_after(0, 10_000))


async def test_every_change_of_a_vm_is_logged_with_what_the_vm_is_then(store: Store) -> None:
    vm = make_vm(labels={"tier": "web"})
    await store.run(lambda tx: tx.insert_vm(vm, Event(EventType.VM_CREATED, "made", actor="alice")))
    changed = await store.run(lambda tx: tx.update_vm(replace(vm, description="new", labels={"tier": "db"})))
    await store.run(lambda tx: tx.update_vm(replace(changed, description="newer")))
    await store.run(lambda tx: tx.delete_vm(vm.id))

    log = await numbered(store)

    documents = [VirtualMachine.FromString(entry.document) for entry in log]
    assert [entry.change for entry in log] == [Change.ADDED, Change.MODIFIED, Change.MODIFIED, Change.DELETED]
    assert [entry.revision for entry in log] == [1, 2, 3, 4]
    assert [entry.resource_version for entry in log] == [1, 2, 3, 4]
    assert [entry.labels_before for entry in log] == [None, {"tier": "web"}, None, None]
    assert [document.description for document in documents] == ["", "new", "newer", "newer"]
    assert documents[-1].status.state == PowerState.TERMINATED
    assert log[0].event == Event(EventType.VM_CREATED, "made", actor="alice")
    assert {(entry.resource_type, entry.resource_id, entry.project_id) for entry in log} == {(VM, vm.id, vm.project_id)}


async def test_every_change_of_a_node_is_logged_but_no_claim_and_no_heartbeat(store: Store) -> None:
    node = make_node(labels={"rack": "1"}, last_heartbeat_at=START_OF_TIME)
    await add(store, node)
    await store.run(lambda tx: tx.update_node(replace(node, phase=Phase.READY, labels={})))
    await store.run(lambda tx: tx.claim(node.id, node.capacity))
    await store.run(lambda tx: tx.mark_silent_nodes(THE_FUTURE, THE_FUTURE))

    log = await numbered(store)

    assert [entry.event.type for entry in log] == [
        EventType.NODE_REGISTERED,
        EventType.NODE_UPDATED,
        EventType.NODE_SILENT,
    ]
    assert [entry.labels_before for entry in log] == [None, {"rack": "1"}, None]
    assert Node.FromString(log[-1].document).status.phase == Phase.NOT_READY
    assert {(entry.resource_type, entry.node_id) for entry in log} == {(NODE, node.id)}


async def test_alert_is_logged_without_a_document(store: Store) -> None:
    vm = make_vm()
    await add(store, vm)
    alert = Event(EventType.VM_CONFLICT, "twice", Severity.ERROR, metadata={"node": "n"})
    await store.run(lambda tx: tx.log_vm_event(vm, alert))
    entry = (await numbered(store))[-1]
    assert (entry.change, entry.document, entry.event) == (Change.NONE, b"", alert)


async def test_work_that_fails_leaves_nothing_in_the_log(store: Store) -> None:
    async def work(tx: Transaction) -> None:
        await tx.insert_vm(make_vm())
        raise LookupError

    with pytest.raises(LookupError):
        await store.run(work)
    assert await numbered(store) == []


async def test_entries_have_no_revision_until_they_are_numbered(store: Store) -> None:
    vms = [make_vm() for _ in range(3)]
    await add(store, *vms)
    waiting = await store.read(lambda tx: tx.unnumbered_event_ids())
    assert (len(waiting), await store.read(lambda tx: tx.events_after(0, 10))) == (3, [])
    assert await store.read(lambda tx: tx.log_position()) == LogPosition(0, 0)

    assert await store.run(lambda tx: tx.sequence_events()) == LogPosition(3, 0)

    log = await store.read(lambda tx: tx.events_after(0, 10))
    assert [entry.resource_id for entry in log] == [vm.id for vm in vms]  # as they were written in one transaction
    assert {entry.id for entry in log} == waiting
    assert await store.read(lambda tx: tx.unnumbered_event_ids()) == set()
    assert await store.read(lambda tx: tx.log_position()) == LogPosition(3, 0)
    assert await store.run(lambda tx: tx.sequence_events()) == LogPosition(3, 0)


async def test_revisions_have_no_gaps_when_replicas_number_and_write_at_once(store: Store, url: str) -> None:
    async with open_store(url) as replica:

        async def write(each: Store) -> None:
            for _ in range(15):
                await add(each, make_vm())
                await each.run(lambda tx: tx.sequence_events())

        async with asyncio.TaskGroup() as group:
            for each in (store, replica, store, replica):
                group.create_task(write(each))
        log = await numbered(replica)
    assert [entry.revision for entry in log] == list(range(1, 61))


async def test_reader_who_sees_a_revision_sees_all_smaller_ones(store: Store, url: str) -> None:
    async with open_store(url) as replica:

        async def write() -> None:
            for _ in range(40):
                await add(store, make_vm())

        writing = asyncio.gather(write(), write())
        seen: list[int] = []
        while not writing.done() or len(await replica.read(lambda tx: tx.unnumbered_event_ids())) > 0:
            await replica.run(lambda tx: tx.sequence_events())
            after = len(seen)
            seen.extend(entry.revision for entry in await store.read(lambda tx, a=after: tx.events_after(a, 7)))  # type: ignore[misc]
        await writing
    assert seen == list(range(1, len(seen) + 1))


async def test_newest_events_are_filtered_and_those_without_a_revision_come_first(store: Store) -> None:
    node = make_node()
    vm, other = make_vm(node_id=node.id), make_vm()
    await add(store, node, vm, other)
    await store.run(lambda tx: tx.sequence_events())
    await store.run(lambda tx: tx.log_vm_event(vm, Event(EventType.VM_CRASHED, "1", Severity.ERROR)))
    await store.run(lambda tx: tx.log_vm_event(vm, Event(EventType.VM_LOST, "2", Severity.WARNING)))

    async def found(limit: int = 100, **wanted: object) -> list[str]:
        entries = await store.read(lambda tx: tx.newest_events(EventFilter(**wanted), limit))  # type: ignore[arg-type]
        return [entry.event.type for entry in entries]

    of_vm = ["vm.lost", "vm.crashed", "vm.created"]
    assert await found(resource_id=vm.id) == of_vm
    assert await found(1, resource_id=vm.id) == of_vm[:1]
    assert await found(2, resource_id=vm.id) == of_vm[:2]
    assert await found(node_id=node.id) == [*of_vm, "node.registered"]
    assert await found(resource_id=vm.id, severities=frozenset({Severity.ERROR})) == ["vm.crashed"]
    assert await found(types=frozenset({"vm.created"})) == ["vm.created", "vm.created"]
    assert await found(since=THE_FUTURE) == []
    assert len(await found(since=THE_FUTURE - timedelta(days=2))) == 5
    assert await found(resource_id="none") == []
    before = await found(resource_id=vm.id)
    await store.run(lambda tx: tx.sequence_events())
    assert await found(resource_id=vm.id) == before


async def test_compaction_removes_the_oldest_in_chunks_but_never_the_newest(store: Store) -> None:
    await add(store, *(make_vm() for _ in range(10)))
    await store.run(lambda tx: tx.sequence_events())
    await add(store, make_vm())

    assert await store.run(lambda tx: tx.compact_events(THE_FUTURE - timedelta(days=2), 100)) == 0
    assert await store.run(lambda tx: tx.compact_events(THE_FUTURE, 4)) == 4
    assert await store.read(lambda tx: tx.log_position()) == LogPosition(10, 4)
    assert await store.run(lambda tx: tx.compact_events(THE_FUTURE, 100)) == 5
    assert await store.run(lambda tx: tx.compact_events(THE_FUTURE, 100)) == 0

    assert await store.read(lambda tx: tx.log_position()) == LogPosition(10, 9)
    assert [entry.revision for entry in await numbered(store)] == [10, 11]
