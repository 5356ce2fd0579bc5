"""Lists of past events: filters, limits, what is refused, and how times are written."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from controlplane.domain.event import Event, EventType, Severity
from controlplane.services.event_lists import EventListService
from limiquantix.compute.v1.node_pb2 import NodeEvent
from limiquantix.compute.v1.node_service_pb2 import ListNodeEventsRequest
from limiquantix.compute.v1.vm_service_pb2 import ListVMEventsRequest
from limiquantix.errors import InvalidArgument, NotFound
from tests.support.builders import make_id, make_node, make_vm
from tests.support.control_plane_world import World
from tests.support.stores import add

LOST = Event(EventType.VM_LOST, "VM a is gone", Severity.WARNING)
CRASHED = Event(EventType.VM_CRASHED, "VM a crashed", Severity.ERROR, metadata={"state": "CRASHED"})
CONFLICT = Event(EventType.VM_CONFLICT, "VM a runs twice", Severity.CRITICAL)


async def types(world: World, vm_id: str, **filters: object) -> list[str]:
    request = ListVMEventsRequest(vm_id=vm_id, **filters)  # type: ignore[arg-type]
    return [event.type for event in await EventListService(world.store).of_vm(request)]


async def test_events_of_a_vm_are_listed_newest_first_also_after_it_was_deleted(world: World) -> None:
    vm = make_vm()
    await add(world.store, vm, make_vm())
    await world.store.run(lambda tx: tx.sequence_events())
    await world.store.run(lambda tx: tx.update_vm(vm, CRASHED))
    await world.store.run(lambda tx: tx.delete_vm(vm.id, Event(EventType.VM_DELETED, "gone", actor="alice")))

    events = await EventListService(world.store).of_vm(ListVMEventsRequest(vm_id=vm.id))

    assert [event.type for event in events] == ["vm.deleted", "vm.crashed", "vm.created"]
    assert [event.severity for event in events] == ["info", "error", "info"]
    assert [event.message for event in events] == ["gone", "VM a crashed", "VM created"]
    assert [event.user for event in events] == ["alice", "", ""]
    assert [event.revision for event in events] == [0, 0, 1]
    assert dict(events[1].metadata) == {"state": "CRASHED"}
    assert {event.vm_id for event in events} == {vm.id}
    written = datetime.strptime(events[0].created_at, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    assert abs(written - datetime.now(UTC)) < timedelta(minutes=1)


async def test_events_of_a_vm_are_filtered_by_type_severity_limit_and_time(world: World) -> None:
    vm = make_vm()
    await add(world.store, vm)
    for event in (LOST, CRASHED, CONFLICT):
        await world.store.run(lambda tx, event=event: tx.log_vm_event(vm, event))  # type: ignore[misc]
    assert await types(world, vm.id, type="vm.crashed") == ["vm.crashed"]
    assert await types(world, vm.id, severity="warning") == ["vm.lost"]
    assert await types(world, vm.id, severity="error") == ["vm.conflict", "vm.crashed"]
    assert await types(world, vm.id, severity="info") == ["vm.created"]
    assert await types(world, vm.id, type="vm.crashed", severity="info") == []
    assert await types(world, vm.id, limit=2) == ["vm.conflict", "vm.crashed"]
    listed = await EventListService(world.store).of_vm(ListVMEventsRequest(vm_id=vm.id))
    assert await types(world, vm.id, since=listed[2].created_at) == ["vm.conflict", "vm.crashed"]
    assert await types(world, vm.id, since=listed[0].created_at) == []


async def test_list_without_a_limit_has_fifty_events(world: World) -> None:
    vm = make_vm()
    await add(world.store, vm)
    for _ in range(55):
        await world.store.run(lambda tx: tx.log_vm_event(vm, LOST))
    assert len(await types(world, vm.id)) == 50
    assert len(await types(world, vm.id, limit=1000)) == 56


@pytest.mark.parametrize(
    "since",
    [
        *("1970-01-01T00:00:00Z", "1970-01-01t00:00:00z", "1999-12-31T23:59:59.123456789+05:30"),
        *("0001-01-02T00:00:00Z", "2024-02-29T00:00:00.5-23:59"),
    ],
)
async def test_times_of_rfc_3339_are_understood(world: World, since: str) -> None:
    vm = make_vm()
    await add(world.store, vm)
    assert await types(world, vm.id, since=since) == ["vm.created"]


@pytest.mark.parametrize(
    "since",
    [
        *("yesterday", "2025-01-01", "2025-01-01T00:00:00", "2025-01-01 00:00:00Z", "20250101T000000Z"),
        *("2025-02-30T00:00:00Z", "2025-01-01T24:00:00Z", "2025-01-01T00:00:00+24:00", "2025-01-01T00:00:00.Z"),
        *("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59.999999Z", "２０２５-01-01T00:00:00Z"),  # noqa: RUF001
    ],
)
async def test_other_times_are_refused_with_an_example(world: World, since: str) -> None:
    with pytest.raises(InvalidArgument, match="2025-06-01T12:00:00Z") as refusal:
        await types(world, make_id(), since=since)
    assert [violation.field for violation in refusal.value.violations] == ["since"]


async def test_unknown_filters_are_refused_all_at_once_with_those_there_are(world: World) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        await types(world, make_id(), type="node.ready", severity="INFO", since="x")
    faults = {violation.field: violation.description for violation in refusal.value.violations}
    assert list(faults) == ["type", "severity", "since"]
    assert "vm.conflict, vm.conflict_ended, vm.converted, vm.crashed, vm.created" in faults["type"]
    assert "node." not in faults["type"].removeprefix("there is no 'node.ready'")
    assert "error, info, warning" in faults["severity"]


async def test_vm_nobody_heard_of_is_not_found_but_one_without_matching_events_is(world: World) -> None:
    vm = make_vm()
    await add(world.store, vm)
    await world.store.run(lambda tx: tx.delete_vm(vm.id))
    assert await types(world, vm.id, type="vm.lost") == []
    with pytest.raises(NotFound, match="does not exist"):
        await types(world, make_id())


async def test_events_of_a_node_are_its_own_and_filtered_by_how_bad_they_are(world: World) -> None:
    node = make_node()
    await add(world.store, node, make_node(), make_vm(node_id=node.id))
    said = Event(EventType.NODE_SILENT, "node sends no heartbeats", Severity.CRITICAL)
    await world.store.run(lambda tx: tx.update_node(node, said))
    lists = EventListService(world.store)

    every = await lists.of_node(ListNodeEventsRequest(node_id=node.id))
    bad = await lists.of_node(ListNodeEventsRequest(node_id=node.id, types=[NodeEvent.WARNING, NodeEvent.ERROR]))

    assert [(event.type, event.reason, event.message) for event in every] == [
        (NodeEvent.ERROR, "node.silent", "node sends no heartbeats"),
        (NodeEvent.NORMAL, "node.registered", "node registered"),
    ]
    assert bad == every[:1]
    assert await lists.of_node(ListNodeEventsRequest(node_id=node.id, limit=1)) == every[:1]
    assert await lists.of_node(ListNodeEventsRequest(node_id=node.id, types=[NodeEvent.WARNING])) == []
    assert {event.node_id for event in every} == {node.id}
    with pytest.raises(NotFound):
        await lists.of_node(ListNodeEventsRequest(node_id=make_id()))
