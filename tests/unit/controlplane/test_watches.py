"""What watches of VMs and nodes, and the stream of events, tell."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from controlplane.domain import documents
from controlplane.domain.event import Event, EventType, Severity
from controlplane.domain.node import Phase
from controlplane.domain.vm import DEFAULT_PROJECT_ID, PowerState
from controlplane.events.messages import SYSTEM_TYPES
from controlplane.events.watch import WatchConfig
from limiquantix.compute.v1.node_service_pb2 import (
    NodeUpdate,
    StreamEventsRequest,
    SystemEvent,
    WatchNodeRequest,
    WatchNodesRequest,
)
from limiquantix.compute.v1.vm_service_pb2 import VMUpdate, WatchVMRequest, WatchVMsRequest
from limiquantix.errors import NotFound, OutOfRange, Reason
from tests.support.builders import make_id, make_node, make_vm
from tests.support.control_plane_world import World
from tests.support.stores import add
from tests.support.watching import Watching, change, told, watching


@pytest.fixture
async def watched(world: World) -> AsyncIterator[Watching]:
    """Watches on the world's store, with pages of two rows."""
    async with watching(world.store, watch=WatchConfig(page_size=2, bookmark_s=0.05)) as started:
        yield started


async def newest_revision(watched: Watching) -> int:
    return (await watched.inner_store.run(lambda tx: tx.sequence_events())).revision


def updates_in(events: list[SystemEvent]) -> list[SystemEvent]:
    return [event for event in events if event.metadata["type"] == EventType.VM_UPDATED]


# -- many VMs


async def test_watch_of_vms_begins_with_all_of_them_and_goes_on_with_changes(watched: Watching) -> None:
    vms = [make_vm(name=name) for name in "abcde"]
    await add(watched.store, *vms)
    watcher = watched.start(watched.service.vms(WatchVMsRequest()))
    await watcher.count(5)
    await change(watched.store, vms[1].id, description="changed")
    await add(watched.store, make_vm(name="f"))
    await watched.store.run(lambda tx: tx.delete_vm(vms[0].id))

    updates = await watcher.count(8)

    assert told(updates) == [
        *(("ADDED", name) for name in "abcde"),
        ("MODIFIED", "b"),
        ("ADDED", "f"),
        ("DELETED", "a"),
    ]
    assert [update.revision for update in updates] == [0, 0, 0, 0, 5, 6, 7, 8]
    assert [update.vm.revision for update in updates] == [0, 0, 0, 0, 5, 6, 7, 8]
    assert updates[0].vm == documents.virtual_machine(vms[0])
    assert updates[-1].vm.status.state == PowerState.TERMINATED


async def test_watch_of_one_node_is_told_of_vms_that_come_and_go(watched: Watching) -> None:
    here, there = make_node(), make_node()
    goes, comes = make_vm(name="g", node_id=here.id), make_vm(name="c", node_id=there.id)
    stays = make_vm(name="s", node_id=here.id)
    await add(watched.store, here, there, goes, comes, stays)
    watcher = watched.start(watched.service.vms(WatchVMsRequest(node_id=here.id)))
    elsewhere = watched.start(watched.service.vms(WatchVMsRequest(node_id=there.id)))
    everywhere = watched.start(watched.service.vms(WatchVMsRequest()))
    events = watched.start(watched.service.events(StreamEventsRequest(node_id=here.id)))
    await watcher.count(2)
    await elsewhere.count(1)
    await everywhere.count(3)

    await change(watched.store, goes.id, node_id=there.id)
    await change(watched.store, comes.id, node_id=here.id)
    await change(watched.store, goes.id, description="no news here")
    await change(watched.store, stays.id, description="news here")

    updates = await watcher.count(5)
    assert told(updates) == [("ADDED", "g"), ("ADDED", "s"), ("DELETED", "g"), ("ADDED", "c"), ("MODIFIED", "s")]
    assert updates[2].vm.status.node_id == there.id
    assert told(await elsewhere.count(4)) == [("ADDED", "c"), ("ADDED", "g"), ("DELETED", "c"), ("MODIFIED", "g")]
    assert told(await everywhere.count(7))[3:] == [("MODIFIED", name) for name in "gcgs"]
    heard = await events.until(lambda all_heard: len(updates_in(all_heard)) >= 3)
    assert [event.metadata.get("node_id_before", "") for event in updates_in(heard)] == [here.id, there.id, ""]

    resumed = watched.start(watched.service.vms(WatchVMsRequest(node_id=here.id, from_revision=updates[1].revision)))
    assert told(await resumed.count(3)) == told(updates[2:])


async def test_watch_of_one_node_by_label_needs_both(watched: Watching) -> None:
    here, there = make_node(), make_node()
    vm = make_vm(name="a", node_id=here.id, labels={"tier": "web"})
    await add(watched.store, here, there, vm)
    watcher = watched.start(watched.service.vms(WatchVMsRequest(node_id=here.id, labels={"tier": "web"})))
    await watcher.count(1)

    await change(watched.store, vm.id, node_id=there.id, labels={})
    await change(watched.store, vm.id, node_id=here.id)
    await change(watched.store, vm.id, labels={"tier": "web"})
    await change(watched.store, vm.id, node_id="", labels={"tier": "web"})

    assert told(await watcher.count(4)) == [(kind, "a") for kind in ("ADDED", "DELETED", "ADDED", "DELETED")]


async def test_watch_of_no_vms_tells_by_a_bookmark_where_it_is(watched: Watching) -> None:
    await add(watched.store, make_node())
    watcher = watched.start(watched.service.vms(WatchVMsRequest(send_bookmarks=True)))
    assert (await watcher.until(bool))[0] == VMUpdate(type=VMUpdate.BOOKMARK, revision=1)


async def test_bookmarks_come_while_nothing_changes_and_move_on_with_changes_out_of_view(watched: Watching) -> None:
    await add(watched.store, make_vm(name="a"))
    watcher = watched.start(watched.service.vms(WatchVMsRequest(send_bookmarks=True)))
    quiet = watched.start(watched.service.vms(WatchVMsRequest()))
    await watcher.until(lambda updates: told(updates)[-2:] == [("BOOKMARK", "")] * 2)
    await add(watched.store, make_node())
    updates = await watcher.until(lambda updates: updates[-1].revision == 2)
    assert told(updates)[:2] == [("ADDED", "a"), ("BOOKMARK", "")]
    assert not updates[-1].HasField("vm")
    assert told(await quiet.count(1)) == [("ADDED", "a")]


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({}, "abcd"),
        ({"labels": {"tier": "web"}}, "ab"),
        ({"labels": {"tier": "web", "zone": "1"}}, "b"),
        ({"labels": {"tier": "none"}}, ""),
        ({"project_id": "11111111-1111-4111-8111-111111111111"}, "d"),
        ({"node_id": "22222222-2222-4222-8222-222222222222"}, "c"),
    ],
)
async def test_watch_of_vms_shows_only_what_matches_in_state_and_changes(
    watched: Watching, filters: dict[str, object], names: str
) -> None:
    node = make_node(id="22222222-2222-4222-8222-222222222222")
    vms = [
        make_vm(name="a", labels={"tier": "web"}),
        make_vm(name="b", labels={"tier": "web", "zone": "1"}),
        make_vm(name="c", node_id=node.id),
        make_vm(name="d", project_id="11111111-1111-4111-8111-111111111111"),
    ]
    await add(watched.store, node, *vms)
    request = WatchVMsRequest(**filters, send_bookmarks=True)  # type: ignore[arg-type]
    watcher = watched.start(watched.service.vms(request))
    await watcher.until(lambda updates: "BOOKMARK" in dict(told(updates)))
    for vm in vms:
        await change(watched.store, vm.id, description="changed")
    end = await newest_revision(watched)
    updates = await watcher.until(lambda updates: updates[-1].revision == end)
    seen = [each for each in told(updates) if each[0] != "BOOKMARK"]
    assert seen == [("ADDED", name) for name in names] + [("MODIFIED", name) for name in names]


async def test_vm_that_gains_or_loses_a_wanted_label_enters_or_leaves_the_view(watched: Watching) -> None:
    vm = make_vm(name="a", labels={"tier": "db"})
    await add(watched.store, vm)
    watcher = watched.start(watched.service.vms(WatchVMsRequest(labels={"tier": "web"}, send_bookmarks=True)))
    await watcher.until(bool)
    for labels in ({"tier": "web"}, {"tier": "web", "more": "1"}, {}, {"more": "2"}, {"tier": "web"}):
        await change(watched.store, vm.id, labels=labels)
    await watched.store.run(lambda tx: tx.delete_vm(vm.id))
    end = await newest_revision(watched)
    updates = await watcher.until(lambda updates: updates[-1].revision == end)
    changes = [(kind, update.revision) for (kind, _), update in zip(told(updates), updates, strict=True)]
    assert [each for each in changes if each[0] != "BOOKMARK"] == [
        *(("ADDED", 2), ("MODIFIED", 3), ("DELETED", 4)),
        *(("ADDED", 6), ("DELETED", 7)),
    ]


async def test_vm_deleted_while_out_of_view_is_not_told(watched: Watching) -> None:
    vm = make_vm(labels={"tier": "db"})
    await add(watched.store, vm)
    watcher = watched.start(watched.service.vms(WatchVMsRequest(labels={"tier": "web"}, send_bookmarks=True)))
    await watcher.until(bool)
    await watched.store.run(lambda tx: tx.delete_vm(vm.id))
    end = await newest_revision(watched)
    updates = await watcher.until(lambda updates: updates[-1].revision == end)
    assert {update.type for update in updates} == {VMUpdate.BOOKMARK}


async def test_alert_that_changes_nothing_is_no_update(watched: Watching) -> None:
    vm = make_vm()
    await add(watched.store, vm)
    watcher = watched.start(watched.service.vms(WatchVMsRequest()))
    await watcher.count(1)
    await watched.store.run(lambda tx: tx.log_vm_event(vm, Event(EventType.VM_CONFLICT)))
    await change(watched.store, vm.id)
    assert [update.revision for update in await watcher.count(2)] == [1, 3]


async def test_watchers_share_messages_and_none_is_changed_by_another(watched: Watching) -> None:
    vm = make_vm(labels={"tier": "web"})
    await add(watched.store, vm)
    requests = [WatchVMsRequest(), WatchVMsRequest(), WatchVMsRequest(labels={"tier": "web"})]
    watchers = [watched.start(watched.service.vms(request)) for request in requests]
    for watcher in watchers:
        await watcher.count(1)
    await change(watched.store, vm.id, labels={})
    first, second, third = [(await watcher.count(2))[1] for watcher in watchers]
    assert first is second
    assert (first.type, third.type) == (VMUpdate.MODIFIED, VMUpdate.DELETED)
    assert first.vm == third.vm


# -- continuing


async def test_watch_continues_after_a_revision_without_the_state(watched: Watching) -> None:
    vms = [make_vm(name=name) for name in "abc"]
    await add(watched.store, *vms)
    for vm in vms:
        await change(watched.store, vm.id)
    await newest_revision(watched)
    watcher = watched.start(watched.service.vms(WatchVMsRequest(from_revision=2)))
    await watcher.count(4)
    await change(watched.store, vms[0].id)
    updates = await watcher.count(5)
    assert [update.revision for update in updates] == [3, 4, 5, 6, 7]
    assert told(updates)[0] == ("ADDED", "c")


async def test_watch_continues_from_the_end_of_the_log_with_what_comes(watched: Watching) -> None:
    vm = make_vm()
    await add(watched.store, vm)
    end = await newest_revision(watched)
    watcher = watched.start(watched.service.vms(WatchVMsRequest(from_revision=end, send_bookmarks=True)))
    await watcher.until(bool)
    await change(watched.store, vm.id)
    updates = await watcher.until(lambda updates: updates[-1].revision > end)
    assert updates[0] == VMUpdate(type=VMUpdate.BOOKMARK, revision=end)


@pytest.mark.parametrize("revision", [1, 6, 2**63 - 1])
async def test_watch_cannot_continue_where_the_log_does_not_reach(watched: Watching, revision: int) -> None:
    await add(watched.store, *(make_vm() for _ in range(5)))
    await newest_revision(watched)
    future = datetime.now(UTC) + timedelta(days=1)
    await watched.store.run(lambda tx: tx.compact_events(future, 2))
    for stream in (
        watched.service.vms(WatchVMsRequest(from_revision=revision)),
        watched.service.vm(WatchVMRequest(vm_id=make_id(), from_revision=revision)),
        watched.service.nodes(WatchNodesRequest(from_revision=revision)),
        watched.service.events(StreamEventsRequest(from_revision=revision)),
    ):
        with pytest.raises(OutOfRange) as refusal:
            await watched.start(stream).end()
        assert refusal.value.reason == Reason.REVISION_UNAVAILABLE
        assert refusal.value.metadata == {"from_revision": str(revision), "oldest": "2", "newest": "5"}
    oldest = watched.start(watched.service.vms(WatchVMsRequest(from_revision=2)))
    assert [update.revision for update in await oldest.count(3)] == [3, 4, 5]


# -- one VM


async def test_watch_of_a_vm_ends_when_it_is_deleted(watched: Watching) -> None:
    vm = make_vm(name="a")
    await add(watched.store, vm, make_vm())
    watcher = watched.start(watched.service.vm(WatchVMRequest(vm_id=vm.id)))
    await watcher.count(1)
    await change(watched.store, vm.id, power_state=PowerState.RUNNING)
    await watched.store.run(lambda tx: tx.delete_vm(vm.id))
    messages = await watcher.end()
    assert [message.status.state for message in messages] == [
        PowerState.STOPPED,
        PowerState.RUNNING,
        PowerState.TERMINATED,
    ]
    assert [message.revision for message in messages] == [2, 3, 4]


async def test_watch_of_a_vm_that_does_not_exist_is_refused(watched: Watching) -> None:
    with pytest.raises(NotFound) as refusal:
        await watched.start(watched.service.vm(WatchVMRequest(vm_id=make_id()))).end()
    assert refusal.value.reason == Reason.VM_NOT_FOUND
    await add(watched.store, make_vm())
    await newest_revision(watched)
    with pytest.raises(NotFound):
        await watched.start(watched.service.vm(WatchVMRequest(vm_id=make_id(), from_revision=1))).end()


@pytest.mark.parametrize("is_numbered", [True, False])
async def test_watch_of_a_vm_deleted_meanwhile_continues_to_its_end(watched: Watching, is_numbered: bool) -> None:
    vm = make_vm()
    await add(watched.store, vm)
    await change(watched.store, vm.id)
    await newest_revision(watched)
    await watched.inner_store.run(lambda tx: tx.delete_vm(vm.id))
    if is_numbered:
        await newest_revision(watched)
    messages = await watched.start(watched.service.vm(WatchVMRequest(vm_id=vm.id, from_revision=1))).end()
    assert [message.revision for message in messages] == [2, 3]
    assert messages[-1].status.state == PowerState.TERMINATED


async def test_watch_of_a_vm_deleted_before_the_revision_is_refused(watched: Watching) -> None:
    vm = make_vm()
    await add(watched.store, vm)
    await watched.store.run(lambda tx: tx.delete_vm(vm.id))
    await watched.store.run(lambda tx: tx.log_vm_event(vm, Event(EventType.VM_CONFLICT, "still there")))
    assert await newest_revision(watched) == 3
    with pytest.raises(NotFound):
        await watched.start(watched.service.vm(WatchVMRequest(vm_id=vm.id, from_revision=2))).end()


# -- nodes


async def test_watch_of_nodes_tells_their_vms_and_what_labels_bring_into_view(watched: Watching) -> None:
    nodes = [make_node(hostname=name, labels={"rack": name}) for name in ("a", "b", "c")]
    vm = make_vm(node_id=nodes[0].id)
    await add(watched.store, *nodes, vm)
    every = watched.start(watched.service.nodes(WatchNodesRequest(send_bookmarks=True)))
    some = watched.start(watched.service.nodes(WatchNodesRequest(labels={"rack": "a"})))
    assert [update.node.hostname for update in (await every.until(lambda updates: len(updates) >= 4))[:3]] == [*"abc"]
    await some.count(1)
    other = make_vm(node_id=nodes[0].id)
    await add(watched.store, other)
    changed = await watched.store.run(lambda tx: tx.update_node(replace(nodes[0], phase=Phase.DRAINING)))
    await watched.store.run(lambda tx: tx.update_node(replace(nodes[1], labels={"rack": "a"})))
    await watched.store.run(lambda tx: tx.update_node(replace(changed, labels={})))

    updates = await some.count(4)

    assert [(update.type, update.node.hostname) for update in updates] == [
        (NodeUpdate.ADDED, "a"),
        (NodeUpdate.MODIFIED, "a"),
        (NodeUpdate.ADDED, "b"),
        (NodeUpdate.DELETED, "a"),
    ]
    assert [list(update.node.status.vm_ids) for update in updates[:3]] == [[vm.id], [vm.id, other.id], []]
    assert [update.revision for update in updates] == [update.node.revision for update in updates]
    kinds = {update.type for update in every.messages}
    assert NodeUpdate.BOOKMARK in kinds


async def test_watch_of_a_node_gives_it_now_and_after_each_change(watched: Watching) -> None:
    node = make_node()
    await add(watched.store, node, make_node())
    watcher = watched.start(watched.service.node(WatchNodeRequest(node_id=node.id)))
    await watcher.count(1)
    await watched.store.run(lambda tx: tx.update_node(replace(node, phase=Phase.MAINTENANCE)))
    messages = await watcher.count(2)
    assert [(message.status.phase, message.revision) for message in messages] == [
        (Phase.READY, 2),
        (Phase.MAINTENANCE, 3),
    ]
    again = watched.start(watched.service.node(WatchNodeRequest(node_id=node.id, from_revision=2)))
    assert (await again.count(1))[0] == messages[1]


async def test_watch_of_a_node_that_does_not_exist_is_refused(watched: Watching) -> None:
    await add(watched.store, make_node())
    await newest_revision(watched)
    for revision in (0, 1):
        request = WatchNodeRequest(node_id=make_id(), from_revision=revision)
        with pytest.raises(NotFound) as refusal:
            await watched.start(watched.service.node(request)).end()
        assert refusal.value.reason == Reason.NODE_NOT_FOUND


# -- all events


@pytest.mark.parametrize("kind", EventType)
def test_every_type_of_the_log_has_one_of_the_contract(kind: EventType) -> None:
    name = SystemEvent.EventType.Name(SYSTEM_TYPES[kind])
    assert name.partition("_")[0].lower() in (kind.partition(".")[0], "system", "warning")


async def test_stream_of_events_tells_what_happened_and_to_what(watched: Watching) -> None:
    node = make_node()
    vm = make_vm(name="web", node_id=node.id)
    await add(watched.store, node)
    await newest_revision(watched)
    stream = watched.start(watched.service.events(StreamEventsRequest(from_revision=1)))
    crashed = Event(EventType.VM_CRASHED, "VM web crashed", Severity.ERROR, metadata={"state": "CRASHED"})
    await watched.store.run(lambda tx: tx.insert_vm(vm, Event(EventType.VM_CREATED, actor="alice")))
    await watched.store.run(lambda tx: tx.update_vm(vm, crashed))

    created, event = await stream.count(2)

    assert (created.type, created.message, created.severity) == (SystemEvent.VM_CREATED, "VM created", Severity.INFO)
    assert dict(created.metadata) == {"type": "vm.created", "node_id": node.id, "actor": "alice"}
    assert (event.type, event.message, event.severity) == (SystemEvent.VM_CRASHED, "VM web crashed", Severity.ERROR)
    assert dict(event.metadata) == {"type": "vm.crashed", "node_id": node.id, "state": "CRASHED"}
    assert (event.resource_id, event.source, event.revision) == (vm.id, "control-plane", 3)
    assert abs(event.timestamp.ToDatetime(UTC) - datetime.now(UTC)) < timedelta(minutes=1)
    assert created.id != event.id


async def test_stream_of_events_is_filtered_by_node_and_types(watched: Watching) -> None:
    here, there = make_node(), make_node()
    vm = make_vm(node_id=here.id)
    await add(watched.store, here, there, vm, make_vm(node_id=there.id), make_vm())
    await change(watched.store, vm.id)
    await newest_revision(watched)
    wanted = [SystemEvent.VM_CREATED, SystemEvent.NODE_REGISTERED]
    of_node = watched.start(watched.service.events(StreamEventsRequest(node_id=here.id, from_revision=1)))
    of_types = watched.start(watched.service.events(StreamEventsRequest(types=wanted, from_revision=1)))
    both = watched.start(
        watched.service.events(StreamEventsRequest(node_id=there.id, types=wanted[:1], from_revision=1))
    )
    assert [event.revision for event in await of_node.count(2)] == [3, 6]
    assert [event.revision for event in await of_types.count(4)] == [2, 3, 4, 5]
    assert [event.revision for event in await both.count(1)] == [4]


async def test_fault_17_stream_of_events_begins_now_and_makes_nothing_up(watched: Watching) -> None:
    await add(watched.store, make_vm())
    await newest_revision(watched)
    stream = watched.start(watched.service.events(StreamEventsRequest()))
    other = watched.start(watched.service.vms(WatchVMsRequest(send_bookmarks=True)))
    await other.until(lambda updates: told(updates)[-3:] == [("BOOKMARK", "")] * 3)
    assert stream.messages == []
    late = make_vm(project_id=DEFAULT_PROJECT_ID)
    await add(watched.store, late)
    assert [event.resource_id for event in await stream.count(1)] == [late.id]
