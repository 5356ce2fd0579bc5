"""Sessions on every kind of database: begun, gone on with, ended; on several control planes at once."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from controlplane.identity.callers import LOOK_EVERY_S, TRUSTED_FOR_S
from controlplane.identity.oidc import VouchedFor
from controlplane.identity.sessions import REFRESH_LIFETIME, Tokens
from controlplane.identity.settings import IssuerSettings
from controlplane.identity.tokens import LIFETIME
from controlplane.state.interface import Store
from limiquantix.errors import ApiError, Code, FailedPrecondition, Reason, ResourceExhausted, Unauthenticated
from tests.support.identity_scene import HOME, PASSWORD, ROOT, Clock, Plane, cheap_hasher


async def login(plane: Plane, name: str = "alice", password: str = PASSWORD, origin: str = HOME) -> Tokens:
    return await plane.sessions.login(name, password, origin)


async def refusal(plane: Plane, name: str, password: str, origin: str = HOME) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await plane.sessions.login(name, password, origin)
    return caught.value


async def test_access_token_of_a_login_says_who_calls_on_every_control_plane(plane: Plane, second: Plane) -> None:
    alice = await plane.add_user("alice", "operators")
    tokens = await login(plane)
    for each in (plane, second):
        who = await each.who(tokens.access_token)
        assert (who.id, who.name, who.groups) == (alice.id, "alice", frozenset({"operators"}))
        assert who.session_id


async def test_unknown_name_wrong_password_disabled_and_deleted_get_one_answer(plane: Plane) -> None:
    for name in ("alice", "bob", "carol"):
        await plane.add_user(name)
    await plane.users.disable(ROOT, "bob")
    await plane.users.delete(ROOT, "carol")

    refusals = [
        await refusal(plane, "nobody", PASSWORD),
        await refusal(plane, "alice", "wrong"),
        await refusal(plane, "bob", PASSWORD),
        await refusal(plane, "carol", PASSWORD),
    ]
    assert {(error.code, error.reason, error.message) for error in refusals} == {
        (Code.UNAUTHENTICATED, Reason.LOGIN_FAILED, refusals[0].message)
    }
    assert all(not error.metadata for error in refusals)


async def test_access_token_ends_and_refresh_token_goes_on(plane: Plane, clock: Clock) -> None:
    await plane.add_user()
    tokens = await login(plane)
    await plane.who(tokens.access_token)
    clock.later(minutes=15, seconds=1)
    with pytest.raises(Unauthenticated) as caught:
        await plane.who(tokens.access_token)
    assert caught.value.reason == Reason.CREDENTIAL_EXPIRED

    further = await plane.sessions.refresh(tokens.refresh_token)
    assert (await plane.who(further.access_token)).name == "alice"
    assert further.refresh_token != tokens.refresh_token


async def test_refresh_token_used_twice_ends_the_session_everywhere(plane: Plane, second: Plane, clock: Clock) -> None:
    await plane.add_user()
    stolen = await login(plane)
    further = await plane.sessions.refresh(stolen.refresh_token)
    await second.who(further.access_token)

    with pytest.raises(Unauthenticated) as caught:
        await plane.sessions.refresh(stolen.refresh_token)
    assert caught.value.reason == Reason.SESSION_ENDED
    with pytest.raises(Unauthenticated):
        await plane.sessions.refresh(further.refresh_token)
    with pytest.raises(Unauthenticated):
        await plane.who(further.access_token)
    clock.later(seconds=TRUSTED_FOR_S)
    with pytest.raises(Unauthenticated):
        await second.who(further.access_token)


async def test_one_of_many_who_use_a_refresh_token_at_once_gets_on_and_the_session_ends(
    plane: Plane, second: Plane
) -> None:
    await plane.add_user()
    tokens = await login(plane)
    planes = [plane, second] * 4
    results = await asyncio.gather(
        *(each.sessions.refresh(tokens.refresh_token) for each in planes), return_exceptions=True
    )
    won = [each for each in results if isinstance(each, Tokens)]
    assert len(won) == 1
    assert all(isinstance(each, Unauthenticated) for each in results if each is not won[0])
    with pytest.raises(Unauthenticated):
        await plane.sessions.refresh(won[0].refresh_token)


async def test_refresh_token_ends_after_seven_days(plane: Plane, clock: Clock) -> None:
    await plane.add_user()
    tokens = await login(plane)
    assert tokens.refresh_expires_at == clock() + REFRESH_LIFETIME
    clock.later(days=7)
    with pytest.raises(Unauthenticated):
        await plane.sessions.refresh(tokens.refresh_token)


async def test_what_is_no_refresh_token_is_refused(plane: Plane) -> None:
    for token in ("", "lqr_", "lqr_unknown", "no token", "lqk_0", "\ud800"):
        with pytest.raises(Unauthenticated):
            await plane.sessions.refresh(token)


async def test_logout_ends_this_session_and_no_other(plane: Plane) -> None:
    await plane.add_user()
    here, elsewhere = await login(plane), await login(plane)
    await plane.sessions.logout((await plane.who(here.access_token)).session_id)
    with pytest.raises(Unauthenticated) as caught:
        await plane.who(here.access_token)
    assert caught.value.reason == Reason.SESSION_ENDED
    with pytest.raises(Unauthenticated):
        await plane.sessions.refresh(here.refresh_token)
    assert (await plane.who(elsewhere.access_token)).name == "alice"


async def test_disabled_user_is_out_at_once_here_and_within_seconds_elsewhere(
    plane: Plane, second: Plane, clock: Clock
) -> None:
    await plane.add_user()
    tokens = await login(plane)
    await second.who(tokens.access_token)
    await plane.users.disable(ROOT, "alice")

    with pytest.raises(Unauthenticated):
        await plane.who(tokens.access_token)
    clock.later(seconds=TRUSTED_FOR_S)
    assert TRUSTED_FOR_S + LOOK_EVERY_S < 6
    with pytest.raises(Unauthenticated):
        await second.who(tokens.access_token)
    with pytest.raises(Unauthenticated):
        await second.sessions.refresh(tokens.refresh_token)

    await plane.users.enable(ROOT, "alice")
    with pytest.raises(Unauthenticated):
        await plane.who(tokens.access_token)
    assert (await plane.who((await login(plane)).access_token)).name == "alice"


async def test_change_of_password_needs_the_old_one_and_ends_other_sessions(plane: Plane) -> None:
    await plane.add_user()
    here, elsewhere = await login(plane), await login(plane)
    who = await plane.who(here.access_token)
    with pytest.raises(Unauthenticated):
        await plane.sessions.change_password(who, "wrong", "another good one", HOME)
    await plane.sessions.change_password(who, PASSWORD, "another good one", HOME)

    assert (await plane.who(here.access_token)).name == "alice"
    with pytest.raises(Unauthenticated):
        await plane.who(elsewhere.access_token)
    assert (await refusal(plane, "alice", PASSWORD)).reason == Reason.LOGIN_FAILED
    await login(plane, password="another good one")


async def test_reset_password_is_made_once_and_ends_all_sessions(plane: Plane) -> None:
    await plane.add_user()
    tokens = await login(plane)
    made = await plane.users.reset_password(ROOT, "alice", None)
    assert len(made) >= 20
    with pytest.raises(Unauthenticated):
        await plane.who(tokens.access_token)
    await login(plane, password=made)


async def test_login_makes_the_hash_anew_when_parameters_changed(store: Store, clock: Clock) -> None:
    await Plane(store, clock).add_user()
    stricter = Plane(store, clock, cheap_hasher(passes=2))
    before = await stricter.users.get("alice")
    await login(stricter)
    after = await stricter.users.get("alice")
    assert stricter.passwords.is_outdated(before.password_hash)
    assert not stricter.passwords.is_outdated(after.password_hash)
    await login(stricter)


async def test_failures_for_a_name_make_everybody_wait_longer_and_longer(
    plane: Plane, second: Plane, clock: Clock
) -> None:
    await plane.add_user()
    for number in range(5):
        error = await refusal((plane, second)[number % 2], "alice", "wrong", f"ipv4:198.51.100.{number}:1")
        assert error.reason == Reason.LOGIN_FAILED
    waits = []
    for _ in range(4):
        error = await refusal(second, "alice", PASSWORD, "ipv4:203.0.113.9:1")
        assert isinstance(error, ResourceExhausted)
        assert error.reason == Reason.TOO_MANY_LOGINS
        assert error.retry_after_s is not None
        waits.append(error.retry_after_s)
        clock.later(seconds=error.retry_after_s)
        await refusal(plane, "alice", "wrong", "ipv4:203.0.113.9:1")
    assert waits == [1, 2, 4, 8]
    clock.later(minutes=5)
    await login(plane)
    assert (await refusal(plane, "alice", "wrong")).reason == Reason.LOGIN_FAILED


async def test_name_that_is_not_there_waits_like_one_that_is(plane: Plane) -> None:
    await plane.add_user()
    reasons = {
        name: [(await refusal(plane, name, "wrong", f"ipv4:198.51.{index}.1:1")).reason for index in range(8)]
        for name in ("alice", "nobody")
    }
    assert reasons["alice"] == reasons["nobody"]
    assert Reason.TOO_MANY_LOGINS in reasons["alice"]


async def test_strangers_cannot_keep_out_whoever_logged_in_from_there_before(plane: Plane) -> None:
    await plane.add_user()
    await login(plane)
    for number in range(8):
        await refusal(plane, "alice", "wrong", f"ipv4:198.51.100.{number}:1")
    assert (await refusal(plane, "alice", PASSWORD, "ipv4:203.0.113.9:1")).reason == Reason.TOO_MANY_LOGINS
    await login(plane)
    assert (await refusal(plane, "alice", PASSWORD, "ipv4:203.0.113.9:1")).reason == Reason.TOO_MANY_LOGINS


async def test_address_that_tries_many_names_has_to_wait(plane: Plane) -> None:
    reasons = [(await refusal(plane, f"user{number}", "wrong")).reason for number in range(33)]
    assert reasons[:30] == [Reason.LOGIN_FAILED] * 30
    assert Reason.TOO_MANY_LOGINS in reasons[30:]


async def test_whoever_shares_the_address_of_one_who_tries_many_names_logs_in_as_before(plane: Plane) -> None:
    await plane.add_user()
    await plane.add_user("bob")
    await login(plane)
    for number in range(33):
        await refusal(plane, f"user{number}", "wrong")
    assert (await refusal(plane, "bob", PASSWORD)).reason == Reason.TOO_MANY_LOGINS
    await login(plane)
    assert [(await refusal(plane, "alice", "wrong")).reason for _ in range(6)][-1] == Reason.TOO_MANY_LOGINS


async def test_many_at_once_are_no_more_than_one_after_the_other(plane: Plane, second: Plane) -> None:
    await plane.add_user()
    tries = [
        (plane, second)[number % 2].sessions.login("alice", "wrong", f"ipv4:198.51.100.{number}:1")
        for number in range(20)
    ]
    results = await asyncio.gather(*tries, return_exceptions=True)
    compared = [error for error in results if isinstance(error, Unauthenticated)]
    assert len(compared) <= 6
    assert len(compared) + sum(isinstance(error, ResourceExhausted) for error in results) == 20


async def test_what_ended_is_forgotten_and_what_goes_on_is_not(plane: Plane, clock: Clock) -> None:
    await plane.add_user()
    await login(plane)
    await plane.sessions.logout((await plane.who((await login(plane)).access_token)).session_id)
    await refusal(plane, "nobody", "wrong")
    assert await plane.sessions.forget() == 0
    clock.later(days=6)
    tokens = await login(plane)
    clock.later(days=6)
    assert await plane.sessions.forget() >= 3
    assert (await plane.sessions.refresh(tokens.refresh_token)).user.name == "alice"


async def test_issuers_token_begins_one_session_on_all_control_planes(plane: Plane, second: Plane) -> None:
    issuer = IssuerSettings(name="corp", url="https://idp.example.com", client_id="cli")
    who = VouchedFor("1", "ann@corp", "", frozenset(), b"digest of her token")
    outcomes = await asyncio.gather(
        *(each.sessions.exchange(issuer, who, HOME) for each in (plane, second, plane, second)), return_exceptions=True
    )
    assert sorted(type(each).__name__ for each in outcomes) == ["Tokens", *["Unauthenticated"] * 3], outcomes
    with pytest.raises(Unauthenticated, match="used before"):
        await second.sessions.exchange(issuer, who, HOME)
    await plane.sessions.exchange(issuer, replace(who, token_digest=b"digest of her next one"), HOME)


async def test_one_cannot_disable_oneself(plane: Plane) -> None:
    await plane.add_user("alice", "admins")
    who = await plane.who((await login(plane)).access_token)
    for change in (plane.users.disable, plane.users.delete):
        with pytest.raises(FailedPrecondition):
            await change(who, "alice")


async def test_lifetimes_are_those_that_are_documented(plane: Plane, clock: Clock) -> None:
    await plane.add_user()
    tokens = await login(plane)
    assert tokens.access_expires_at - clock() == LIFETIME
    assert LIFETIME.total_seconds() == 15 * 60
    assert REFRESH_LIFETIME.days == 7
