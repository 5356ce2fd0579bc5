"""Leases granted with heartbeats, what hosts say of their guards, and objections to fences of nodes that are heard."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from controlplane.domain.fencing import NodeGuard
from controlplane.domain.ha_times import HaTimes
from controlplane.state.interface import Transaction
from limiquantix.compute.v1.node_service_pb2 import UpdateHeartbeatResponse
from tests.support.control_plane_world import World
from tests.support.lease_site import LeaseSite
from tests.support.migration_cluster import until


@pytest.fixture
async def node_id(world: World) -> str:
    return (await world.add_node()).id


@pytest.fixture
async def site(world: World, node_id: str) -> LeaseSite:
    """A process that has read everything."""
    site = LeaseSite(world.store)
    await site.look()
    return site


def lease_ms(answer: UpdateHeartbeatResponse) -> int:
    return answer.lease.duration_ms if answer.HasField("lease") else 0


async def guard_of(site: LeaseSite, node_id: str) -> NodeGuard | None:
    guards = await site.database.read(lambda tx: tx.node_guards())
    return next((guard for guard in guards if guard.node_id == node_id), None)


async def disarm(site: LeaseSite) -> None:
    async def work(tx: Transaction) -> None:
        await tx.update_ha_settings(replace(await tx.ha_settings(), is_armed=False))

    await site.database.run(work)


async def test_heartbeat_is_answered_with_a_lease_and_what_is_known(site: LeaseSite, node_id: str) -> None:
    answer = await site.beat(node_id)

    assert lease_ms(answer) == 9000
    assert (answer.ha_is_armed, answer.ha_version, answer.fence_token) == (True, 1, 0)
    assert answer.heartbeat_interval_secs == 2


@pytest.mark.parametrize("publishes", [True, False])
async def test_fenced_node_gets_no_lease_and_is_not_told_that_it_is_armed(
    site: LeaseSite, node_id: str, publishes: bool
) -> None:
    fence = await site.fence(node_id, publishes=publishes)
    assert lease_ms(await site.beat(node_id)) == 9000  # not read yet, which is what freshness_s allows for
    await site.look()

    answer = await site.beat(node_id)

    assert lease_ms(answer) == 0
    assert (answer.ha_version, answer.fence_token) == (0, fence.token)

    await site.withdraw(fence)
    await site.look()
    again = await site.beat(node_id)
    assert (lease_ms(again), again.ha_is_armed, again.fence_token) == (9000, True, fence.token)


async def test_disarmament_is_told_also_to_a_node_without_a_lease(site: LeaseSite, node_id: str) -> None:
    await disarm(site)
    await site.fence(node_id)
    await site.look()

    answer = await site.beat(node_id)

    assert (lease_ms(answer), answer.ha_is_armed, answer.ha_version) == (0, False, 2)


async def test_leases_go_on_while_the_database_is_away_and_nothing_old_is_told(site: LeaseSite, node_id: str) -> None:
    await site.beat(node_id)
    await site.look()
    site.store.is_away = True
    for _ in range(30):
        site.now_s += 2.1
        await site.leases.marks.read_published()
        answer = await site.beat(node_id)
        assert lease_ms(answer) == 9000
        assert (answer.ha_version, answer.epoch, answer.ha_is_armed) == (0, 0, False)

    site.coordinator.is_away = True
    site.now_s += 2.1
    assert lease_ms(await site.beat(node_id)) == 0


async def test_database_that_hangs_delays_no_answer_for_long(site: LeaseSite, node_id: str) -> None:
    await site.beat(node_id)
    site.store.hangs = True
    site.now_s += 10  # everything that was read is old by now
    await site.leases.marks.read_published()

    async with asyncio.timeout(30):
        assert lease_ms(await site.beat(node_id, state_hash="something-else")) == 9000


# -- guards


async def test_what_a_host_says_of_its_guard_is_recorded_once(site: LeaseSite, node_id: str) -> None:
    await site.beat(node_id)
    await site.look()
    guard = await guard_of(site, node_id)
    assert guard is not None
    assert (guard.can_self_fence, guard.ha_version, guard.boot_id) == (True, 1, "boot-1")

    site.store.forget_counts()
    for _ in range(5):
        site.now_s += 2
        await site.beat(node_id)
        await site.leases.guards.sync()
    assert site.store.run_count == 0


async def test_host_that_has_begun_to_fence_itself_is_asked_for_everything_once(site: LeaseSite, node_id: str) -> None:
    """Its VMs that are there already are protected upon that."""
    await site.look()
    for can_self_fence, wanted in ((False, False), (True, True), (True, False), (False, False), (True, True)):
        obstacle = "" if can_self_fence else "no guard runs"
        said = {"can_self_fence": can_self_fence, "self_fencing_obstacle": obstacle}
        await site.beat(node_id, **said)
        await site.look()  # it is on record now
        assert (await site.beat(node_id, **said)).request_full_sync is wanted
        assert not (await site.beat(node_id, **said)).request_full_sync


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"can_self_fence": False, "self_fencing_obstacle": "its guard does not run"}, "its guard does not run"),
        ({"self_fences_within_ms": 1501}, "1501 ms"),
        ({"self_fences_within_ms": 0}, "does not say"),
    ],
)
async def test_host_that_lost_its_guard_gets_no_lease_before_that_is_recorded(
    site: LeaseSite, node_id: str, said: dict[str, Any], why: str
) -> None:
    await site.beat(node_id)
    await site.look()
    assert lease_ms(await site.beat(node_id)) == 9000

    assert lease_ms(await site.beat(node_id, **said)) == 0  # its end would be taken for a proof
    await site.look()

    assert lease_ms(await site.beat(node_id, **said)) == 9000
    guard = await guard_of(site, node_id)
    assert guard is not None
    assert not guard.can_self_fence
    assert why in guard.obstacle


async def test_process_that_has_not_read_the_guards_trusts_no_host_without_one(world: World, node_id: str) -> None:
    site = LeaseSite(world.store)
    await site.leases.marks.read_recorded()

    assert lease_ms(await site.beat(node_id, can_self_fence=False)) == 0
    assert lease_ms(await site.beat(node_id)) == 9000


async def test_what_another_process_recorded_is_read(world: World, site: LeaseSite, node_id: str) -> None:
    other = LeaseSite(world.store, replica_id="replica-2", now_s=site.now_s)
    await site.beat(node_id, can_self_fence=False)
    await site.look()
    await other.look()
    other.now_s += 1
    await other.beat(node_id)
    await other.look()
    site.now_s += 11
    await site.look()

    assert lease_ms(await site.beat(node_id, can_self_fence=False)) == 0


# -- objections


async def test_process_objects_with_every_heartbeat_of_a_fenced_node_but_not_without(
    site: LeaseSite, node_id: str
) -> None:
    await site.beat(node_id)
    site.now_s += 1
    fence = await site.fence(node_id)
    await site.look()
    assert await site.heard_by(fence) == ""  # that heartbeat was before the fence

    site.now_s += 1
    await site.beat(node_id)
    await site.look()
    assert await site.heard_by(fence) == "replica-1"

    site.store.forget_counts()
    await site.leases.object()
    assert site.store.run_count == 0

    current = await site.database.read(lambda tx: tx.current_fences())
    await site.database.run(lambda tx: tx.update_fence(replace(current[0], heard_by="")))
    site.now_s += 1
    await site.beat(node_id)
    await site.leases.object()
    assert await site.heard_by(fence) == "replica-1"


async def test_heartbeat_of_long_ago_is_no_objection(site: LeaseSite, node_id: str) -> None:
    fence = await site.fence(node_id)
    await site.look()
    site.now_s += 1
    await site.beat(node_id)
    site.now_s += 3.1  # one and a half intervals

    await site.look()

    assert await site.heard_by(fence) == ""


async def test_next_fence_of_a_node_is_objected_to_again(site: LeaseSite, node_id: str) -> None:
    for _ in range(2):
        fence = await site.fence(node_id)
        await site.look()
        site.now_s += 1
        await site.beat(node_id)
        await site.look()
        assert await site.heard_by(fence) == "replica-1"
        await site.withdraw(fence)


async def test_process_that_could_not_say_how_long_its_leases_last_grants_none(world: World, node_id: str) -> None:
    site = LeaseSite(world.store, times=HaTimes(lease_s=20.0, proof_wait_s=30.0))
    site.store.is_away = True
    running = asyncio.create_task(site.leases.run())
    try:
        await until(lambda: site.store.run_count > 0)
        assert not site.leases.marks.may_grant(node_id)
        site.store.is_away = False
        await until(lambda: site.leases.marks.may_grant(node_id))
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    settings = await world.store.read(lambda tx: tx.ha_settings())
    assert settings.longest_wait_ms == site.times.declared_wait_ms >= 24_500
