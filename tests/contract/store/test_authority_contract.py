"""The authority, join tokens and machines: the same on every database, also when several ask at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from controlplane.authority.certificates import LEAF_LIFETIME
from controlplane.domain.machines import REFUSALS_KEPT, JoinToken, MachineRecord, Revocation, StoredAuthority
from controlplane.state.interface import Store, Transaction
from limiquantix.errors import AlreadyExists
from tests.support.builders import START_OF_TIME, make_id

NOW = START_OF_TIME
HOUR = timedelta(hours=1)


def authority_of(name: str) -> StoredAuthority:
    return StoredAuthority(make_id(), f"certificate of {name}", b"sealed " + name.encode(), NOW)


def token_of(**fields: object) -> JoinToken:
    token = JoinToken(make_id(), "digest", "user:eve", NOW, NOW + HOUR, labels={"rack": "r1"})
    return replace(token, **fields)  # type: ignore[arg-type]


def machine_of(hostname: str, **fields: object) -> MachineRecord:
    machine = MachineRecord(make_id(), hostname, NOW, NOW, NOW + 7 * 24 * HOUR, {"rack": "r1"})
    return replace(machine, **fields)  # type: ignore[arg-type]


def _making(each: StoredAuthority) -> Callable[[Transaction], Awaitable[bool]]:
    return lambda tx: tx.insert_authority(each)


def _adding(token: JoinToken) -> Callable[[Transaction], Awaitable[None]]:
    return lambda tx: tx.insert_join_token(token)


def _using(token: JoinToken, node_id: str) -> Callable[[Transaction], Awaitable[bool]]:
    return lambda tx: tx.use_join_token(token.id, node_id, NOW)


def _putting(machine: MachineRecord) -> Callable[[Transaction], Awaitable[None]]:
    return lambda tx: tx.put_machine(machine)


def _removing(machine: MachineRecord, at: datetime) -> Callable[[Transaction], Awaitable[bool]]:
    return lambda tx: tx.remove_machine(machine.node_id, at)


async def test_first_authority_stays_however_many_are_made_at_once(store: Store) -> None:
    assert await store.read(lambda tx: tx.authority()) is None
    made = [authority_of(str(number)) for number in range(6)]
    won = await asyncio.gather(*(store.run(_making(each)) for each in made))
    assert sum(won) == 1
    kept = await store.read(lambda tx: tx.authority())
    assert kept == made[won.index(True)]

    await store.run(lambda tx: tx.update_authority_key(b"sealed anew"))
    assert await store.read(lambda tx: tx.authority()) == replace(kept, sealed_key=b"sealed anew")


async def test_token_is_good_for_one_however_many_use_it_at_once(store: Store) -> None:
    token = token_of(hostname="host-1", node_id=make_id())
    await store.run(lambda tx: tx.insert_join_token(token))
    assert await store.read(lambda tx: tx.get_join_token(token.id)) == token
    nodes = [make_id() for _ in range(6)]
    used = await asyncio.gather(*(store.run(_using(token, node_id)) for node_id in nodes))
    assert sum(used) == 1
    kept = await store.read(lambda tx: tx.get_join_token(token.id))
    assert kept == replace(token, used_at=NOW, used_by=nodes[used.index(True)])
    assert not await store.run(lambda tx: tx.revoke_join_token(token.id, NOW)), "it is used already"


@pytest.mark.parametrize(
    ("fields", "at", "is_good"),
    [
        ({}, NOW, True),
        ({}, NOW + HOUR - timedelta(seconds=1), True),
        ({}, NOW + HOUR, False),
        ({}, NOW - timedelta(seconds=1), False),
        ({"revoked_at": NOW}, NOW, False),
        ({"used_at": NOW}, NOW, False),
    ],
)
async def test_token_is_used_while_it_is_good(
    store: Store, fields: dict[str, object], at: datetime, is_good: bool
) -> None:
    token = token_of(**fields)
    await store.run(lambda tx: tx.insert_join_token(token))
    assert token.is_good(at) is is_good
    assert await store.run(lambda tx: tx.use_join_token(token.id, make_id(), at)) is is_good


async def test_unknown_token_is_nothing(store: Store) -> None:
    assert await store.read(lambda tx: tx.get_join_token(make_id())) is None
    assert not await store.run(lambda tx: tx.use_join_token(make_id(), make_id(), NOW))
    assert not await store.run(lambda tx: tx.revoke_join_token(make_id(), NOW))


async def test_tokens_are_listed_newest_first_and_forgotten_when_old(store: Store) -> None:
    old, new = token_of(), token_of(created_at=NOW + HOUR, expires_at=NOW + 2 * HOUR)
    for token in (old, new):
        await store.run(_adding(token))
    assert await store.run(lambda tx: tx.revoke_join_token(new.id, NOW))
    assert await store.read(lambda tx: tx.list_join_tokens()) == [replace(new, revoked_at=NOW), old]
    assert await store.run(lambda tx: tx.forget_join_tokens(NOW + HOUR + timedelta(seconds=1))) == 1
    assert [token.id for token in await store.read(lambda tx: tx.list_join_tokens())] == [new.id]


async def test_machine_is_found_by_node_and_by_name(store: Store) -> None:
    first, second = machine_of("host-1"), machine_of("host-2")
    for machine in (second, first):
        await store.run(_putting(machine))
    assert await store.read(lambda tx: tx.get_machine(first.node_id)) == first
    assert await store.read(lambda tx: tx.find_machine("host-2")) == second
    assert await store.read(lambda tx: tx.find_machine("host-3")) is None
    assert await store.read(lambda tx: tx.machines()) == [first, second]

    renewed = replace(first, issued_at=NOW + HOUR, ends_at=NOW + 8 * 24 * HOUR)
    await store.run(lambda tx: tx.put_machine(renewed))
    assert await store.read(lambda tx: tx.get_machine(first.node_id)) == renewed
    assert await store.run(lambda tx: tx.remove_machine(first.node_id, NOW))
    assert not await store.run(lambda tx: tx.remove_machine(first.node_id, NOW))


async def test_no_two_machines_have_one_name(store: Store) -> None:
    await store.run(lambda tx: tx.put_machine(machine_of("host-1")))
    with pytest.raises(AlreadyExists, match="host host-1 joined already"):
        await store.run(lambda tx: tx.put_machine(machine_of("host-1")))


async def test_what_is_revoked_stays_so(store: Store) -> None:
    machine = machine_of("host-1")
    await store.run(lambda tx: tx.put_machine(machine))
    assert await store.run(lambda tx: tx.refuse_certificates(machine.node_id, NOW + HOUR))
    assert await store.run(lambda tx: tx.refuse_certificates(machine.node_id, NOW)), "the later one stays"
    await store.run(lambda tx: tx.put_machine(replace(machine, issued_at=NOW + 2 * HOUR)))
    kept = await store.read(lambda tx: tx.get_machine(machine.node_id))
    assert kept is not None
    assert kept.refused_before == NOW + HOUR
    assert not kept.accepts(NOW)
    assert kept.accepts(NOW + HOUR)
    assert not await store.run(lambda tx: tx.refuse_certificates(make_id(), NOW))


async def test_machine_that_is_removed_leaves_a_revocation_behind(store: Store) -> None:
    good, revoked, removed = machine_of("host-1"), machine_of("host-2"), machine_of("host-3")
    for machine in (good, revoked, removed):
        await store.run(_putting(machine))
    assert await store.read(lambda tx: tx.revocations()) == []
    await store.run(lambda tx: tx.refuse_certificates(revoked.node_id, NOW))
    revision = await store.read(lambda tx: tx.machines_revision())
    assert await store.run(lambda tx: tx.remove_machine(removed.node_id, NOW + HOUR))
    assert await store.read(lambda tx: tx.machines_revision()) > revision
    assert await store.read(lambda tx: tx.departure(removed.node_id)) == Revocation(removed.node_id, NOW + HOUR)
    assert await store.read(lambda tx: tx.departure(revoked.node_id)) is None
    assert {(each.node_id, each.refused_before) for each in await store.read(lambda tx: tx.revocations())} == {
        (revoked.node_id, NOW),
        (removed.node_id, NOW + HOUR),
    }


async def test_revocation_of_a_machine_that_came_back_and_left_is_the_latest_of_all(store: Store) -> None:
    machine = machine_of("host-1")
    for hours in (3, 1, 2):
        await store.run(_putting(machine))
        await store.run(_removing(machine, NOW + hours * HOUR))
    assert await store.read(lambda tx: tx.revocations()) == [Revocation(machine.node_id, NOW + 3 * HOUR)]
    await store.run(_putting(replace(machine, refused_before=NOW + 4 * HOUR)))
    assert await store.read(lambda tx: tx.revocations()) == [Revocation(machine.node_id, NOW + 4 * HOUR)]
    await store.run(_removing(machine, NOW))
    assert await store.read(lambda tx: tx.revocations()) == [Revocation(machine.node_id, NOW + 4 * HOUR)]


async def test_departures_are_forgotten_when_no_certificate_can_be_good_any_more(store: Store) -> None:
    old, newer, last = machine_of("host-1"), machine_of("host-2"), machine_of("host-3")
    for machine, at in ((old, NOW), (newer, NOW + HOUR), (last, NOW + HOUR / 2 + REFUSALS_KEPT)):
        await store.run(_putting(machine))
        await store.run(_removing(machine, at))
    left = await store.read(lambda tx: tx.revocations())
    assert {each.node_id for each in left} == {newer.node_id, last.node_id}
    assert REFUSALS_KEPT > LEAF_LIFETIME
