"""Alerts on every kind of database: level with what is wrong, one open one a thing, acknowledged once."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from controlplane.domain.alert import Alert, AlertFilter, AlertKind, AlertSeverity, Finding
from controlplane.domain.event import EventFilter, EventType
from controlplane.domain.node import Node, Phase
from controlplane.domain.recommendation import Status
from controlplane.domain.vm import PowerState
from controlplane.drs.snapshot import Priority
from controlplane.services.alerts import KEPT, MAX_CHANGES
from controlplane.state.interface import Store, Transaction
from limiquantix.errors import Aborted, NotFound
from tests.support.balancing_scene import Scene
from tests.support.builders import GIB, make_id


@pytest.fixture
def scene(store: Store) -> Scene:
    return Scene(store)


async def open_kinds(scene: Scene) -> dict[str, str]:
    """Kinds of the open alerts, and what each is about."""
    page = await scene.alerts.list(AlertFilter(), None, 100)
    return {alert.kind: alert.resource_id for alert in page.items}


async def only(scene: Scene, *, include_resolved: bool = False) -> Alert:
    (alert,) = (await scene.alerts.list(AlertFilter(include_resolved), None, 100)).items
    return alert


async def events_of(scene: Scene, resource_id: str) -> list[EventType]:
    found = await scene.store.read(lambda tx: tx.newest_events(EventFilter(resource_id), 100))
    return [entry.event.type for entry in found if "alert" in entry.event.type]


async def test_overloaded_node_raises_one_alert_that_ends_when_it_is_clearly_below(scene: Scene) -> None:
    node = await scene.add_node("hot")
    await scene.measure(node, 85.0, 20.0)
    for _ in range(3):
        await scene.watch.look()
        scene.later(60)
    alert = await only(scene)
    assert (alert.kind, alert.severity) == (AlertKind.NODE_OVERLOADED, AlertSeverity.WARNING)
    assert alert.message == "node hot uses 85 % CPU (threshold 80 %)"
    assert alert.last_seen_at > alert.raised_at

    await scene.measure(node, 78.0, 20.0)
    await scene.watch.look()
    assert (await only(scene)).resolved_at is None
    await scene.measure(node, 96.0, 97.0)
    await scene.watch.look()
    assert (await only(scene)).severity == AlertSeverity.CRITICAL
    await scene.measure(node, 70.0, 20.0)
    await scene.watch.look()

    assert await open_kinds(scene) == {}
    assert (await only(scene, include_resolved=True)).resolved_at == scene.clock()
    assert await events_of(scene, node.id) == [EventType.NODE_ALERT_RESOLVED, EventType.NODE_ALERT_RAISED]


async def test_silent_node_raises_an_alert_until_it_is_heard_again(scene: Scene) -> None:
    node = await scene.add_node("gone", phase=Phase.NOT_READY)
    await scene.watch.look()
    assert await open_kinds(scene) == {"node.silent": node.id}

    await set_phase(scene, node, Phase.READY)
    await scene.watch.look()
    assert await open_kinds(scene) == {}


async def set_phase(scene: Scene, node: Node, phase: Phase.ValueType) -> None:
    async def change(tx: Transaction) -> None:
        found = await tx.get_node(node.id)
        assert found is not None
        await tx.update_node(replace(found, phase=phase))

    await scene.store.run(change)


async def test_vm_on_two_hosts_raises_an_alert_that_names_both(scene: Scene) -> None:
    one, other = await scene.add_node("one"), await scene.add_node("other")
    vm = await scene.add_vm(one, "twice", sightings={other.id: PowerState.RUNNING})

    await scene.watch.look()

    alert = await only(scene)
    assert (alert.kind, alert.resource_id) == ("vm.conflict", vm.id)
    assert alert.message == "VM twice belongs to one and was seen on other (RUNNING) too; stop one of them on its host"
    assert await events_of(scene, vm.id) == [EventType.VM_ALERT_RAISED]


async def test_critical_recommendation_raises_an_alert_until_somebody_decides(scene: Scene) -> None:
    busy, _, _ = await scene.busy_and_idle()
    await scene.measure(busy, 99.0, 60.0)
    made = (await scene.service.run()).recommendations
    assert made[0].priority == Priority.CRITICAL

    await scene.watch.look()
    assert (await open_kinds(scene))["balancing.critical"] in {each.vm_id for each in made}
    for each in made:
        assert (await scene.service.reject(each.id, "", "alice")).status == Status.REJECTED
    await scene.watch.look()

    assert "balancing.critical" not in await open_kinds(scene)


async def test_cluster_that_survives_no_failure_raises_an_alert(scene: Scene) -> None:
    one = await scene.add_node("one", memory_bytes=16 * GIB)
    await scene.add_vm(one, "big", memory_mib=12 * 1024)
    await scene.watch.look()
    assert await open_kinds(scene) == {}  # of a single node it is no news

    two = await scene.add_node("two", memory_bytes=16 * GIB)
    await scene.add_vm(two, "big too", memory_mib=12 * 1024)
    await scene.watch.look()
    assert await open_kinds(scene) == {"cluster.no_headroom": ""}

    await scene.add_node("three", memory_bytes=16 * GIB)
    await scene.watch.look()
    assert await open_kinds(scene) == {}


async def test_same_finding_by_several_processes_at_once_raises_one_alert(scene: Scene) -> None:
    finding = Finding("node", make_id(), AlertSeverity.WARNING, "it burns")

    outcomes = await asyncio.gather(
        *(scene.alerts.sync(AlertKind.NODE_OVERLOADED, [finding]) for _ in range(5)), return_exceptions=True
    )

    assert {type(each) for each in outcomes} <= {bool, Aborted}
    assert (await only(scene)).message == "it burns"


async def test_very_many_changes_are_written_a_part_at_a_time(scene: Scene) -> None:
    findings = [Finding("node", make_id(), AlertSeverity.WARNING, "gone") for _ in range(MAX_CHANGES + 2)]

    async def open_count() -> int:
        return (await scene.alerts.list(AlertFilter(), None, 1)).total_count

    assert not await scene.alerts.sync(AlertKind.NODE_SILENT, findings)
    assert await open_count() == MAX_CHANGES
    assert await scene.alerts.sync(AlertKind.NODE_SILENT, findings)
    assert await open_count() == MAX_CHANGES + 2
    assert not await scene.alerts.sync(AlertKind.NODE_SILENT, [])
    assert await open_count() == 2
    assert await scene.alerts.sync(AlertKind.NODE_SILENT, [])
    assert await open_count() == 0


async def test_alert_that_comes_again_is_a_new_one(scene: Scene) -> None:
    finding = Finding("node", make_id(), AlertSeverity.WARNING, "it burns")
    for _ in range(2):
        await scene.alerts.sync(AlertKind.NODE_OVERLOADED, [finding])
        await scene.alerts.sync(AlertKind.NODE_OVERLOADED, [])
        scene.later(1)

    page = await scene.alerts.list(AlertFilter(include_resolved=True), None, 10)
    assert page.total_count == 2
    assert page.items[0].raised_at > page.items[1].raised_at


async def test_acknowledgement_is_kept_and_the_first_one_stays(scene: Scene) -> None:
    finding = Finding("node", make_id(), AlertSeverity.WARNING, "it burns")
    await scene.alerts.sync(AlertKind.NODE_OVERLOADED, [finding])
    alert = await only(scene)

    first = await scene.alerts.acknowledge(alert.id, "alice")
    scene.later(60)
    await scene.alerts.sync(AlertKind.NODE_OVERLOADED, [finding])
    second = await scene.alerts.acknowledge(alert.id, "bob")

    assert (first.acknowledged_by, second.acknowledged_by) == ("alice", "alice")
    assert second.last_seen_at == scene.clock()
    with pytest.raises(NotFound):
        await scene.alerts.acknowledge(make_id(), "alice")
    with pytest.raises(NotFound):
        await scene.alerts.get(make_id())


async def test_resolved_alerts_are_forgotten_and_lists_are_filtered_and_paged(scene: Scene) -> None:
    ids = [make_id() for _ in range(3)]
    for number, resource_id in enumerate(ids):
        finding = Finding("node", resource_id, AlertSeverity.INFO, str(number))
        known = [Finding("node", each, AlertSeverity.INFO, "") for each in ids[:number]]
        await scene.alerts.sync(AlertKind.NODE_SILENT, [*known, finding])
        scene.later(1)

    first = await scene.alerts.list(AlertFilter(kinds=frozenset({"node.silent"})), None, 2)
    second = await scene.alerts.list(AlertFilter(kinds=frozenset({"node.silent"})), first.next_cursor, 2)
    assert [alert.resource_id for alert in (*first.items, *second.items)] == ids[::-1]
    assert (first.total_count, second.next_cursor) == (3, None)
    of_one = await scene.alerts.list(AlertFilter(resource_id=ids[1]), None, 10)
    assert [alert.resource_id for alert in of_one.items] == [ids[1]]

    await scene.alerts.sync(AlertKind.NODE_SILENT, [])
    scene.later(KEPT.total_seconds() + 1)
    assert await scene.alerts.forget() == 3
