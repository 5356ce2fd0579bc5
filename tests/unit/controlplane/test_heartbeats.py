"""Heartbeats are answered from memory: what they read and write is counted."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from controlplane.domain.alert import AlertKind
from controlplane.domain.node import Heartbeat, Node, NodeUsage, Phase
from controlplane.domain.node_conditions import STORAGE_LOST, conditions_of
from controlplane.scheduler.inventory import inventory_of
from controlplane.services.alert_watch import AlertWatch, Thresholds
from controlplane.services.alerts import AlertService
from controlplane.services.nodes import NodeService
from controlplane.services.usage_book import UsageBook, differs
from controlplane.state.interface import Transaction
from limiquantix.compute.v1.node_pb2 import NodeSpec, StorageDomain
from limiquantix.errors import NotFound
from limiquantix.inventory import state_hash
from tests.support.builders import make_id, make_vm
from tests.support.control_plane_world import World
from tests.support.lease_site import LeaseSite

NOTHING = state_hash({})
USAGE = NodeUsage(cpu_percent=20, memory_used_bytes=50, memory_total_bytes=100, disk_used_bytes=5, disk_total_bytes=100)


@pytest.fixture
async def node_id(world: World) -> str:
    return (await world.add_node()).id


@pytest.fixture
async def site(world: World, node_id: str) -> LeaseSite:
    """A process that has read everything and heard the node once, with what that changes written down."""
    site = LeaseSite(world.store)
    await site.look()
    await site.beat(node_id, state_hash=NOTHING)
    await site.look()
    await site.heartbeats.flush()
    return site


async def change(site: LeaseSite, node_id: str, **fields: object) -> None:
    async def work(tx: Transaction) -> None:
        node = await tx.get_node(node_id)
        assert node is not None
        await tx.update_node(replace(node, **fields))  # type: ignore[arg-type]

    await site.database.run(work)


async def stored(site: LeaseSite, node_id: str) -> Node:
    node = await site.database.read(lambda tx: tx.get_node(node_id))
    assert node is not None
    return node


async def test_heartbeats_write_nothing_but_a_sign_of_life_a_minute(site: LeaseSite, node_id: str) -> None:
    site.store.forget_counts()
    for _ in range(60):  # two minutes
        site.now_s += 2
        await site.heartbeats.refresh()
        site.store.read_count = 0
        await site.beat(node_id, state_hash=NOTHING, cpu_usage_percent=3)
        assert site.store.read_count <= 1  # the digest, as often as the budget allows; see below
        await site.heartbeats.flush()

    assert site.store.run_count == 2


async def test_many_nodes_share_a_budget_of_readings(world: World) -> None:
    site = LeaseSite(world.store)
    nodes = [await world.add_node(hostname=f"host-{n}") for n in range(150)]
    await site.look()
    site.store.forget_counts()
    for _ in range(5):
        for node in nodes:
            await site.beat(node.id, state_hash=NOTHING)

    assert site.store.run_count == 0
    assert site.store.read_count == 20  # of 750 heartbeats at one moment
    await site.heartbeats.refresh()
    assert site.store.read_count == 22, "versions of nodes, and one batch of digests"


async def test_node_that_changed_or_is_gone_is_known_within_moments(site: LeaseSite, node_id: str) -> None:
    await change(site, node_id, phase=Phase.NOT_READY)
    await site.heartbeats.refresh()
    await site.beat(node_id)
    assert (await stored(site, node_id)).phase == Phase.READY

    await site.database.run(lambda tx: tx.delete_node(node_id))
    await site.heartbeats.refresh()
    with pytest.raises(NotFound):
        await site.beat(node_id)
    assert site.hearing.of(node_id) is None
    with pytest.raises(NotFound):
        await site.beat(make_id())


async def test_node_that_is_heard_while_it_is_fenced_stays_as_it_is(site: LeaseSite, node_id: str) -> None:
    fence = await site.fence(node_id)
    await change(site, node_id, phase=Phase.NOT_READY)
    await site.look()
    await site.beat(node_id)
    assert (await stored(site, node_id)).phase == Phase.NOT_READY

    await site.withdraw(fence)
    await site.beat(node_id)
    assert (await stored(site, node_id)).phase == Phase.READY


async def test_silence_is_marked_by_who_decides_and_not_here(site: LeaseSite, node_id: str) -> None:
    site.now_s += 3600
    await site.heartbeats.flush()
    assert (await stored(site, node_id)).phase == Phase.READY


async def test_digest_that_changed_is_looked_at_at_once_and_one_that_stays_later(site: LeaseSite, node_id: str) -> None:
    assert (await site.beat(node_id, state_hash="another")).request_full_sync
    assert not (await site.beat(node_id, state_hash=NOTHING)).request_full_sync

    site.store.forget_counts()
    assert not (await site.beat(node_id, state_hash=NOTHING)).request_full_sync
    assert site.store.read_count == 0
    site.now_s += 2
    await site.heartbeats.refresh()
    site.store.forget_counts()
    assert not (await site.beat(node_id, state_hash=NOTHING)).request_full_sync
    assert site.store.read_count == 0, "the answer waited for what will hardly change it"
    await site.database.run(lambda tx: tx.insert_vm(make_vm(node_id=node_id)))
    await site.heartbeats.refresh()
    assert (await site.beat(node_id, state_hash=NOTHING)).request_full_sync


async def test_nodes_are_shown_as_they_were_heard_here(world: World, site: LeaseSite, node_id: str) -> None:
    service = NodeService(world.store, world.policy, world.clock, site.hearing)
    site.now_s = datetime.now(UTC).timestamp()
    await site.beat(node_id, cpu_usage_percent=77)

    node, _ = await service.get(node_id)

    assert node.last_heartbeat_at == site.now()
    assert node.usage.cpu_percent == 77
    assert (await stored(site, node_id)).usage.cpu_percent != 77


async def test_storage_that_a_host_lost_is_noted_and_not_placed_upon(site: LeaseSite, node_id: str) -> None:
    domains = [StorageDomain(id=make_id(), path="/vms"), StorageDomain(id=make_id(), path="/more")]
    lost, kept = domains
    await change(site, node_id, spec=NodeSpec(storage_domains=domains))
    await site.heartbeats.refresh()

    await site.beat(node_id, lost_storage_ids=[lost.id])
    node = await stored(site, node_id)
    assert inventory_of(node.spec).storage_domain_ids == {kept.id}
    assert "/vms does not answer" in next(each.message for each in conditions_of(node) if each.type == STORAGE_LOST)
    site.store.forget_counts()
    await site.beat(node_id, lost_storage_ids=[lost.id])
    assert site.store.run_count == 0

    vm = make_vm(node_id=node_id, name="database-1")
    await site.database.run(lambda tx: tx.insert_vm(vm))
    watch = AlertWatch(site.database, AlertService(site.database, site.now), Thresholds())
    await watch.look()
    (alert,) = await site.database.read(lambda tx: tx.open_alerts(AlertKind.HA_STORAGE_LOST))
    assert "lost storage /vms" in alert.message
    assert "database-1" in alert.message

    await site.beat(node_id)
    await watch.look()
    assert not await site.database.read(lambda tx: tx.open_alerts(AlertKind.HA_STORAGE_LOST))
    node = await stored(site, node_id)
    assert inventory_of(node.spec).storage_domain_ids == {lost.id, kept.id}
    assert STORAGE_LOST not in [each.type for each in conditions_of(node)]


# -- which heartbeats are written down


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (USAGE, False),
        (replace(USAGE, cpu_percent=24.9), False),
        (replace(USAGE, cpu_percent=15), True),
        (replace(USAGE, memory_used_bytes=52), False),
        (replace(USAGE, memory_used_bytes=53), True),
        (replace(USAGE, disk_used_bytes=7), True),
        (replace(USAGE, running_vm_count=1), True),
        (replace(USAGE, memory_total_bytes=200), True),
        (replace(USAGE, load_1m=9), False),
    ],
)
def test_usage_that_changed_little_is_the_same(new: NodeUsage, expected: bool) -> None:
    assert differs(USAGE, new) is expected


def test_heartbeats_are_due_when_new_when_usage_changed_and_after_a_minute() -> None:
    book, start = UsageBook(), datetime(2026, 1, 1, tzinfo=UTC)

    def due_after(seconds: float, usage: NodeUsage) -> bool:
        at = start + timedelta(seconds=seconds)
        book.note(Heartbeat("n", at, usage))
        due = book.due(at, 10)
        book.stored(due)
        return bool(due)

    busy = replace(USAGE, cpu_percent=90)
    assert due_after(0, USAGE)
    assert not due_after(9, busy)  # not so soon again
    assert due_after(11, busy)
    assert not due_after(60, busy)
    assert due_after(71, busy)
    assert not book.due(start + timedelta(seconds=72), 10)


def test_no_more_are_due_at_once_than_asked_for() -> None:
    book, start = UsageBook(), datetime(2026, 1, 1, tzinfo=UTC)
    for number in range(25):
        book.note(Heartbeat(str(number), start, USAGE))
    taken = 0
    while due := book.due(start, 10):
        assert len(due) <= 10
        book.stored(due)
        taken += len(due)
    assert taken == 25
