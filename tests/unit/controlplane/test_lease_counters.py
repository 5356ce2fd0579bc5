"""Hosts that know larger numbers than the database: it counts on from them, and they get leases again."""

from __future__ import annotations

import pytest

from controlplane.domain.fencing import HaSettings, Marks
from controlplane.domain.node import NodeUsage
from controlplane.services.hearing import Heard
from controlplane.services.lease_counters import is_ahead
from limiquantix.compute.v1.node_service_pb2 import UpdateHeartbeatRequest
from limiquantix.errors import Unavailable
from tests.support.builders import START_OF_TIME
from tests.support.control_plane_world import World
from tests.support.lease_site import LeaseSite


@pytest.fixture
async def node_id(world: World) -> str:
    return (await world.add_node()).id


@pytest.fixture
async def site(world: World, node_id: str) -> LeaseSite:
    site = LeaseSite(world.store)
    await site.look()
    return site


async def test_host_that_knows_more_than_a_restored_database_is_told_what_it_believes_within_two_readings(
    site: LeaseSite, node_id: str
) -> None:
    before = await site.beat(node_id, known_epoch=12, known_fence_token=7, known_ha_version=4)
    assert (before.epoch, before.fence_token, before.ha_version) == (0, 0, 1)  # which it takes for old

    for _ in range(2):
        site.now_s += 0.5
        await site.look()
    after = await site.beat(node_id, known_epoch=12, known_fence_token=7, known_ha_version=4)

    assert (after.epoch, after.fence_token) == (12, 7)
    assert (after.ha_version, after.ha_is_armed) == (5, True)


async def test_settings_whose_version_hosts_know_are_told_under_a_newer_one(site: LeaseSite, node_id: str) -> None:
    # It was disarmed under version 4 when the backup, which says armed, was made: it must learn that it is armed.
    await site.beat(node_id, known_ha_version=4)
    for _ in range(2):
        site.now_s += 0.5
        await site.look()

    settings = await site.database.read(lambda tx: tx.ha_settings())

    assert (settings.version, settings.is_armed) == (5, True)


async def test_reading_that_is_only_older_than_what_the_host_knows_writes_nothing(
    site: LeaseSite, node_id: str
) -> None:
    # Another process took the lead, fenced the node and gave it back since this one read.
    taken = await site.database.run(lambda tx: tx.take_leadership("b", "host-b", site.now()))
    fence = await site.fence(node_id, publishes=False)
    await site.beat(node_id, known_epoch=taken.epoch, known_fence_token=fence.token)
    await site.leases.counters.sync()
    site.now_s += 0.5
    await site.leases.marks.read_recorded()
    site.store.forget_counts()

    await site.leases.counters.sync()

    assert site.store.run_count == 0


async def test_hosts_that_know_no_more_than_the_database_cost_nothing(site: LeaseSite, node_id: str) -> None:
    await site.beat(node_id)
    await site.look()
    site.store.forget_counts()

    for _ in range(3):
        site.now_s += 0.5
        await site.beat(node_id)
        await site.leases.counters.sync()

    assert (site.store.run_count, site.store.read_count) == (0, 0)


async def test_what_was_learnt_while_the_database_is_away_is_recorded_once_it_is_back(
    site: LeaseSite, node_id: str
) -> None:
    await site.beat(node_id, known_epoch=3)
    site.now_s += 0.5
    await site.leases.marks.read_recorded()
    site.store.is_away = True
    with pytest.raises(Unavailable, match="does not answer"):
        await site.leases.counters.sync()
    site.store.is_away = False

    await site.leases.counters.sync()

    assert (await site.database.read(lambda tx: tx.leadership())).epoch == 3


@pytest.mark.parametrize("field", ["known_epoch", "known_ha_version", "known_fence_token"])
def test_each_number_counts(field: str) -> None:
    recorded = Marks(epoch=5, settings=HaSettings(version=5), revoked={}, tokens={"n": 5})

    def heard(number: int) -> Heard:
        return Heard("n", 0.0, START_OF_TIME, NodeUsage(), **{field: number})  # type: ignore[arg-type]

    assert not is_ahead(heard(5), recorded)
    assert is_ahead(heard(6), recorded)


async def test_host_is_commanded_again_also_where_high_availability_is_switched_off(world: World, node_id: str) -> None:
    beat = UpdateHeartbeatRequest(node_id=node_id, known_epoch=12, known_fence_token=7)

    await world.heartbeats.heartbeat(beat)

    assert (await world.node(node_id)).fence_token == 7
    version = (await world.node(node_id)).version
    await world.heartbeats.heartbeat(beat)
    assert (await world.node(node_id)).version == version
    assert (await world.store.read(lambda tx: tx.leadership())).epoch == 12
