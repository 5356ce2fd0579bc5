"""Users, API keys and signing keys on every kind of database."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

import jwt
import pytest

from controlplane.domain.access import THE_CLUSTER, VIEWER, Binding
from controlplane.domain.identity import User, UserFilter
from controlplane.domain.principal import Principal, PrincipalKind, Scope
from controlplane.domain.query import Cursor
from controlplane.identity.api_keys import LONGEST, MAX_PER_USER
from controlplane.identity.callers import TRUSTED_FOR_S
from controlplane.identity.signing_keys import SIGNS_FOR, SigningKeys
from controlplane.secrets.box import KEY_BYTES, SecretBox
from controlplane.state.interface import Store, Transaction
from limiquantix.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Reason,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from tests.support.identity_scene import HOME, MAKER, PASSWORD, ROOT, Clock, Origin, Plane
from tests.support.quickness import best_s
from tests.support.slow_store import SlowStore


async def caller_of(plane: Plane, name: str) -> Principal:
    return await plane.who((await plane.sessions.login(name, PASSWORD, HOME)).access_token)


# -- users


async def test_user_is_found_by_id_and_by_name(plane: Plane) -> None:
    alice = await plane.users.create(ROOT, "alice", "Alice Archer", frozenset({"a", "b"}), PASSWORD)
    for named in (alice.id, "alice"):
        found = await plane.users.get(named)
        assert replace(found, created_at=alice.created_at, password_changed_at=None) == replace(
            alice, password_changed_at=None
        )
    assert PASSWORD not in alice.password_hash
    assert alice.password_hash.startswith("$argon2id$")
    for absent in ("bob", "00000000-0000-0000-0000-000000000000"):
        with pytest.raises(NotFound) as caught:
            await plane.users.get(absent)
        assert caught.value.reason == Reason.USER_NOT_FOUND


async def test_name_is_given_once_and_never_again(plane: Plane, second: Plane) -> None:
    results: list[Any] = await asyncio.gather(
        *(each.add_user() for each in (plane, second, plane, second)), return_exceptions=True
    )
    assert sum(not isinstance(each, Exception) for each in results) == 1
    assert all(isinstance(each, AlreadyExists | Aborted) for each in results if isinstance(each, Exception))
    await plane.users.delete(ROOT, "alice")
    with pytest.raises(NotFound):
        await plane.users.get("alice")
    with pytest.raises(AlreadyExists, match="was deleted"):
        await second.add_user()


async def test_password_that_is_not_fit_is_not_told_again(plane: Plane) -> None:
    for password in ("short", "x" * 1025, "aaaaaaaaaaaaaaaa", "alice" * 8):
        with pytest.raises(InvalidArgument) as caught:
            await plane.users.create(ROOT, "alice", "", frozenset(), password)
        assert password not in str(caught.value)


async def test_name_that_could_be_an_id_is_refused(plane: Plane) -> None:
    with pytest.raises(InvalidArgument):
        await plane.add_user("abcdef12-0000-4000-8000-000000000000")


async def test_users_are_listed_in_pages_with_the_true_total(plane: Plane, clock: Clock) -> None:
    for index in range(5):
        await plane.add_user(f"user{index}", *(("even",) if index % 2 == 0 else ()))
        clock.later(seconds=1)
    await plane.users.delete(ROOT, "user1")
    for wanted, names in (
        (UserFilter(), ["user0", "user2", "user3", "user4"]),
        (UserFilter("even"), ["user0", "user2", "user4"]),
        (UserFilter("absent"), []),
    ):
        seen: list[str] = []
        after: Cursor | None = None
        while True:
            page = await plane.users.list(wanted, after, 2)
            assert page.total_count == len(names)
            seen += [user.name for user in page.items]
            after = page.next_cursor
            if after is None:
                break
        assert seen == names


async def test_who_may_do_less_changes_nothing_of_who_may_do_more(plane: Plane) -> None:
    await plane.add_user("root", "admins")
    await plane.add_user("helpdesk")
    helper = await caller_of(plane, "helpdesk")
    users = plane.users
    for refused in (
        users.reset_password(helper, "root", None),
        users.disable(helper, "root"),
        users.delete(helper, "root"),
        users.update(helper, "root", "Root", None),
        users.update(helper, "helpdesk", None, frozenset({"admins"})),
        users.revoke_sessions(helper, "root"),
        users.create(helper, "mine", "", frozenset({"admins"}), PASSWORD),
    ):
        with pytest.raises(PermissionDenied):
            await refused
    assert (await users.get("root")).groups == {"admins"}
    assert not (await users.get("root")).is_disabled


async def test_deleted_user_leaves_no_roles_sessions_or_keys(plane: Plane) -> None:
    alice = await plane.add_user()
    who = await caller_of(plane, "alice")
    _, secret = await plane.api_keys.create(who, "ci", plane.clock() + timedelta(days=1), Scope())

    async def bind(tx: Transaction) -> None:
        await tx.begin_access_change()
        await tx.insert_binding(Binding("b1", f"user:{alice.id}", "user:alice", VIEWER, THE_CLUSTER, plane.clock()))

    await plane.store.run(bind)
    await plane.who(secret)
    await plane.users.delete(ROOT, alice.id)
    assert await plane.store.read(lambda tx: tx.bindings()) == []
    with pytest.raises(Unauthenticated):
        await plane.who(secret)


async def test_change_that_meets_another_is_refused(plane: Plane) -> None:
    alice = await plane.add_user()
    await plane.users.update(ROOT, "alice", "Alice", None)

    async def stale(tx: Transaction) -> None:
        await tx.update_user(replace(alice, display_name="late"))

    with pytest.raises(Aborted):
        await plane.store.run(stale)
    assert (await plane.users.get("alice")).display_name == "Alice"


# -- API keys


async def test_key_acts_for_its_owner_within_its_scope(plane: Plane, second: Plane) -> None:
    alice = await plane.add_user("alice", "operators")
    scope = Scope(frozenset({"00000000-0000-0000-0000-000000000001"}), frozenset({"vm.read"}))
    owned, secret = await plane.api_keys.create(
        await caller_of(plane, "alice"), "ci", plane.clock() + timedelta(days=30), scope
    )
    assert secret.startswith("lqk_")
    for each in (plane, second):
        who = await each.who(secret)
        assert who == Principal(
            PrincipalKind.API_KEY, owned.key.id, "alice/ci", frozenset({"operators"}), scope, owner_id=alice.id
        )
    stored = await plane.store.read(lambda tx: tx.get_api_key(owned.key.id))
    assert stored is not None
    assert secret.rpartition("_")[2].encode() not in stored.digest


async def test_key_ends_by_its_time_by_hand_and_with_its_owner(plane: Plane, second: Plane, clock: Clock) -> None:
    await plane.add_user()
    alice = await caller_of(plane, "alice")
    short, by_time = await plane.api_keys.create(alice, "short", clock() + timedelta(hours=1), Scope())
    revoked, by_hand = await plane.api_keys.create(alice, "revoked", clock() + timedelta(days=9), Scope())
    _, with_owner = await plane.api_keys.create(alice, "owned", clock() + timedelta(days=9), Scope())
    for secret in (by_time, by_hand, with_owner):
        for each in (plane, second):
            await each.who(secret)

    clock.later(hours=1)
    for each in (plane, second):
        with pytest.raises(Unauthenticated) as caught:
            await each.who(by_time)
        assert caught.value.reason == Reason.CREDENTIAL_EXPIRED
    await plane.api_keys.revoke(alice, revoked.key.id)
    await plane.api_keys.revoke(alice, revoked.key.id)
    await plane.users.disable(ROOT, "alice")
    clock.later(seconds=TRUSTED_FOR_S)
    for secret in (by_hand, with_owner):
        for each in (plane, second):
            with pytest.raises(Unauthenticated) as caught:
                await each.who(secret)
            assert caught.value.reason == Reason.CREDENTIAL_REFUSED
    assert short.key.id != revoked.key.id


async def test_secret_of_another_key_is_refused(plane: Plane) -> None:
    await plane.add_user()
    alice = await caller_of(plane, "alice")
    _, first = await plane.api_keys.create(alice, "one", plane.clock() + timedelta(days=1), Scope())
    _, other = await plane.api_keys.create(alice, "two", plane.clock() + timedelta(days=1), Scope())
    mixed = "_".join([*first.split("_", 2)[:2], other.split("_", 2)[2]])
    unknown = "_".join(["lqk", "0" * 32, other.split("_", 2)[2]])
    for secret in (mixed, unknown, first[:-1], first + "A", first.upper(), "lqk_", "lqk_x_y"):
        with pytest.raises(Unauthenticated):
            await plane.who(secret)


async def test_only_a_user_who_logged_in_makes_keys(plane: Plane, clock: Clock) -> None:
    await plane.add_user()
    alice = await caller_of(plane, "alice")
    soon = clock() + timedelta(days=1)
    owned, secret = await plane.api_keys.create(alice, "ci", soon, Scope())
    key = await plane.who(secret)
    for caller in (key, Principal(PrincipalKind.NODE, "n1", "host")):
        with pytest.raises(PermissionDenied):
            await plane.api_keys.create(caller, "another", soon, Scope())
    with pytest.raises(PermissionDenied):
        await plane.sessions.change_password(key, PASSWORD, "another good one", HOME)
    assert (await plane.api_keys.revoke(key, owned.key.id)).key.revoked_at is not None


async def test_key_needs_an_end_within_a_year_and_permissions_that_there_are(plane: Plane, clock: Clock) -> None:
    await plane.add_user()
    alice = await caller_of(plane, "alice")
    for ends_at in (clock(), clock() - timedelta(days=1), clock() + LONGEST + timedelta(seconds=1)):
        with pytest.raises(InvalidArgument):
            await plane.api_keys.create(alice, "ci", ends_at, Scope())
    with pytest.raises(InvalidArgument, match=r"vm\.raed"):
        await plane.api_keys.create(
            alice, "ci", clock() + timedelta(days=1), Scope(permissions=frozenset({"vm.raed", "vm.read"}))
        )


async def test_keys_of_others_are_not_there_but_for_who_manages_users(plane: Plane, clock: Clock) -> None:
    for name, groups in (("alice", ()), ("bob", ()), ("root", ("admins",))):
        await plane.add_user(name, *groups)
    alice, bob, root = [await caller_of(plane, name) for name in ("alice", "bob", "root")]
    owned, _ = await plane.api_keys.create(alice, "ci", clock() + timedelta(days=1), Scope())
    with pytest.raises(NotFound):
        await plane.api_keys.revoke(bob, owned.key.id)
    page, _ = await plane.api_keys.list(bob, None, 10, all_users=False)
    assert (list(page.items), page.total_count) == ([], 0)
    page, owners = await plane.api_keys.list(root, None, 10, all_users=True)
    assert [(key.name, owners[key.owner_id]) for key in page.items] == [("ci", "alice")]
    assert (await plane.api_keys.revoke(root, owned.key.id)).owner_name == "alice"
    assert (await plane.api_keys.list(alice, None, 10, all_users=False))[0].total_count == 0


async def test_key_that_may_more_is_not_ended_by_who_manages_users(plane: Plane, clock: Clock) -> None:
    await plane.add_user("root", "admins")
    await plane.add_user("helen")
    owned, secret = await plane.api_keys.create(
        await caller_of(plane, "root"), "ci", clock() + timedelta(days=1), Scope()
    )
    keys = replace(plane.api_keys, may_manage=lambda _: True)
    with pytest.raises(PermissionDenied):
        await keys.revoke(await caller_of(plane, "helen"), owned.key.id)
    await keys.revoke(await plane.who(secret), owned.key.id)


async def test_user_has_so_many_keys_and_no_more(plane: Plane, clock: Clock) -> None:
    await plane.add_user()
    alice = await caller_of(plane, "alice")
    ends_at = clock() + timedelta(days=1)
    results = await asyncio.gather(
        *(plane.api_keys.create(alice, f"k{index}", ends_at, Scope()) for index in range(MAX_PER_USER + 5)),
        return_exceptions=True,
    )
    assert sum(isinstance(each, ResourceExhausted) for each in results) == 5
    assert sum(isinstance(each, tuple) for each in results) == MAX_PER_USER


async def test_use_of_a_key_is_written_now_and_then_and_not_with_every_call(plane: Plane, clock: Clock) -> None:
    await plane.add_user()
    owned, secret = await plane.api_keys.create(
        await caller_of(plane, "alice"), "ci", clock() + timedelta(days=1), Scope()
    )

    async def last_used() -> Any:
        key = await plane.store.read(lambda tx: tx.get_api_key(owned.key.id))
        return None if key is None else key.last_used_at

    await plane.who(secret)
    assert await last_used() is None
    await plane.callers.write_uses()
    assert await last_used() == clock()
    before = await plane.store.read(lambda tx: tx.identity_revision())
    clock.later(minutes=2)
    await plane.who(secret)
    await plane.callers.write_uses()
    assert await last_used() == clock()
    assert await plane.store.read(lambda tx: tx.identity_revision()) == before


# -- what calls carry


async def test_call_without_a_bearer_is_for_others_to_recognise(plane: Plane) -> None:
    for metadata in ((), (("x-other", "1"),), (("authorization", "Basic YTpi"),), (("authorization", ""),)):
        assert await plane.authenticator.authenticate(Origin(metadata)) is None


async def test_two_credentials_are_none(plane: Plane) -> None:
    await plane.add_user()
    token = (await plane.sessions.login("alice", PASSWORD, HOME)).access_token
    twice = Origin((("authorization", f"Bearer {token}"),) * 2)
    with pytest.raises(Unauthenticated):
        await plane.authenticator.authenticate(twice)


async def test_nonsense_is_refused(plane: Plane) -> None:
    for credential in ("x", "a.b.c", "lqr_abc", "x" * 100_000, "\ud800", "\x00"):
        with pytest.raises(Unauthenticated):
            await plane.who(credential)


async def test_nobody_may_call_when_it_cannot_be_known_who_may(plane: Plane, second: Plane, clock: Clock) -> None:
    await plane.add_user()
    token = (await plane.sessions.login("alice", PASSWORD, HOME)).access_token
    await second.who(token)
    await second.store.close()
    assert (await second.who(token)).name == "alice"
    clock.later(seconds=TRUSTED_FOR_S)
    with pytest.raises(Unavailable):
        await second.who(token)


async def test_recognising_a_caller_again_is_cheap(plane: Plane) -> None:
    await plane.add_user()
    token = (await plane.sessions.login("alice", PASSWORD, HOME)).access_token
    origin = Origin.bearing(token)
    await plane.authenticator.authenticate(origin)
    assert await best_s(lambda: plane.authenticator.authenticate(origin), 200e-6) < 200e-6


# -- signing keys


async def test_keys_change_daily_and_old_tokens_stay_good_until_their_end(
    plane: Plane, second: Plane, clock: Clock
) -> None:
    await plane.add_user()
    await plane.keys.sign("u", "s")
    clock.later(hours=23, minutes=59)
    old = (await plane.sessions.login("alice", PASSWORD, HOME)).access_token
    await second.who(old)
    clock.later(minutes=2)
    new = (await plane.sessions.login("alice", PASSWORD, HOME)).access_token
    key_ids = [jwt.get_unverified_header(token)["kid"] for token in (old, new)]
    assert key_ids[0] != key_ids[1]
    assert (await plane.who(old)).name == "alice"
    assert (await second.who(new)).name == "alice"
    assert timedelta(days=1) == SIGNS_FOR


async def test_planes_that_begin_at_once_share_one_key(plane: Plane, second: Plane) -> None:
    tokens = await asyncio.gather(*(each.keys.sign("u", "s") for each in (plane, second) * 3))
    assert len({jwt.get_unverified_header(token)["kid"] for token, _ in tokens}) == 1
    assert len(await plane.store.read(lambda tx: tx.signing_keys())) == 1


async def test_key_is_of_no_use_without_the_box_and_another_one_is_made(
    plane: Plane, store: Store, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    token, _ = await plane.keys.sign("u", "s")
    stranger = SigningKeys(store, SecretBox([os.urandom(KEY_BYTES)]), MAKER, clock)
    with caplog.at_level(logging.WARNING, SigningKeys.__module__):
        with pytest.raises(Unauthenticated):
            await stranger.verify(token)
        other, _ = await stranger.sign("u", "s")
        assert (await stranger.verify(other)).user_id == "u"
    assert "cannot be opened" in caplog.text


async def test_invented_keys_do_not_make_us_read_all_the_time(store: Store, clock: Clock) -> None:
    read = SlowStore(store)
    keys = SigningKeys(read, SecretBox([os.urandom(KEY_BYTES)]), MAKER, clock)
    await keys.sign("u", "s")
    head = jwt.utils.base64url_encode(b'{"alg":"EdDSA","typ":"at+jwt","kid":"invented"}').decode()
    began_s = time.monotonic()
    for _ in range(50):
        with pytest.raises(Unauthenticated):
            await keys.verify(f"{head}.e30.AAAA")
    assert read.read_count <= 1 + (time.monotonic() - began_s)  # once a second


async def test_issuers_users_are_not_given_passwords_or_groups_here(plane: Plane, clock: Clock) -> None:
    user = User("00000000-0000-4000-8000-000000000001", "al@corp", clock(), issuer="https://idp", issuer_subject="1")
    await plane.store.run(lambda tx: tx.insert_user(user))
    with pytest.raises(FailedPrecondition):
        await plane.users.reset_password(ROOT, "al@corp", None)
    with pytest.raises(FailedPrecondition):
        await plane.users.update(ROOT, "al@corp", None, frozenset({"a"}))
