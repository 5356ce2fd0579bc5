"""ID tokens of a real issuer on loopback: what is checked of them, and how its keys are found."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jwt
import pydantic
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from controlplane.identity.issuer_keys import IssuerKeys
from controlplane.identity.oidc import IssuerTokens
from controlplane.identity.settings import IdentitySettings, IssuerSettings, TokenAlgorithm
from limiquantix.errors import ApiError, Reason, Unauthenticated, Unavailable
from tests.support.databases import fresh_sqlite
from tests.support.identity_scene import HOME, ROOT, Clock, Plane
from tests.support.oidc_issuer import CLIENT, Issuer, running_issuer
from tests.support.stores import open_store


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with running_issuer() as running:
        yield running


def settings_of(issuer: Issuer, **changes: Any) -> IssuerSettings:
    return IssuerSettings.model_validate({"name": "corp", "url": issuer.url, "client_id": CLIENT, **changes})


def tokens_of(issuer: Issuer, clock: Clock | None = None, **changes: Any) -> IssuerTokens:
    settings, clock = settings_of(issuer, **changes), clock or Clock()
    return IssuerTokens(settings, IssuerKeys(settings, clock=clock.monotonic))


async def refusal(tokens: IssuerTokens, token: str, nonce: str = "") -> str:
    with pytest.raises(Unauthenticated) as caught:
        await tokens.verify(token, nonce)
    assert caught.value.reason == Reason.ID_TOKEN_REFUSED
    return caught.value.message


async def test_good_token_says_who_it_is_in_our_words(issuer: Issuer) -> None:
    who = await tokens_of(issuer).verify(issuer.token(), "")
    assert (who.subject, who.name, who.display_name) == ("248289761001", "alice@corp", "Alice Archer")
    assert who.groups == {"corp:operators"}


@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA"])
async def test_other_algorithms_are_good_if_they_are_allowed(issuer: Issuer, algorithm: str) -> None:
    key_id = issuer.add_key(algorithm)
    assert (await tokens_of(issuer, algorithms=[algorithm]).verify(issuer.token(key_id), "")).name == "alice@corp"
    assert "is not signed with RS256" in await refusal(tokens_of(issuer), issuer.token(key_id))


@dataclass(frozen=True)
class FromNow:
    """A time by its distance from when the test runs, which may be long after it was collected."""

    seconds: int

    def __str__(self) -> str:
        return f"now{self.seconds:+d}"

    __repr__ = __str__

    @property
    def at(self) -> int:
        return int(time.time()) + self.seconds


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"iss": "https://elsewhere.example"}, "another issuer"),
        ({"aud": "somebody-else"}, "another audience"),
        ({"aud": [CLIENT, "somebody-else"]}, "several audiences"),
        ({"aud": [CLIENT, "somebody-else"], "azp": "somebody-else"}, "another client"),
        ({"azp": "somebody-else"}, "another client"),
        ({"exp": FromNow(-120), "iat": FromNow(-300)}, "expired"),
        ({"iat": FromNow(600), "exp": FromNow(900)}, "from the future"),
        ({"nbf": FromNow(600)}, "from the future"),
        ({"iat": FromNow(-3600)}, "more than 10 minutes ago"),
        ({"exp": None}, "lacks the claim 'exp'"),
        ({"iat": None}, "lacks the claim 'iat'"),
        ({"aud": None}, "lacks the claim 'aud'"),
        ({"sub": None}, "lacks the claim 'sub'"),
        ({"exp": "soon"}, "no numbers"),
        ({"exp": True}, "no numbers"),
        ({"nonce": "of-somebody"}, "nonce"),
        ({"preferred_username": None}, "'preferred_username' is no name"),
        ({"preferred_username": "al\u0000ice"}, "'preferred_username' is no name"),
        ({"preferred_username": "\ufb01ona"}, "'preferred_username' is no name"),
        ({"groups": {"a": 1}}, "no list"),
        ({"groups": ["a"] * 257}, "no list"),
        ({"groups": [1]}, "is no name"),
        ({"groups": ["a\nb"]}, "is no name"),
    ],
    ids=str,
)
async def test_claim_that_is_not_right_is_refused_with_the_reason(
    issuer: Issuer, changes: dict[str, Any], why: str
) -> None:
    claims: dict[str, Any] = {
        name: value.at if isinstance(value, FromNow) else value for name, value in changes.items()
    }
    assert why in await refusal(tokens_of(issuer), issuer.token(**claims))


async def test_several_audiences_are_good_if_it_was_made_for_us(issuer: Issuer) -> None:
    token = issuer.token(aud=[CLIENT, "other"], azp=CLIENT)
    assert (await tokens_of(issuer).verify(token, "")).name == "alice@corp"


async def test_nonce_must_be_the_one_that_was_asked_for(issuer: Issuer) -> None:
    token, tokens = issuer.token(nonce="n-0S6_WzA2Mj"), tokens_of(issuer)
    assert (await tokens.verify(token, "n-0S6_WzA2Mj")).name == "alice@corp"
    assert "nonce" in await refusal(tokens, token, "another")
    assert "nonce" in await refusal(tokens, issuer.token(), "n-0S6_WzA2Mj")


async def test_signature_must_be_of_the_named_key(issuer: Issuer) -> None:
    tokens = tokens_of(issuer)
    named = next(iter(issuer.keys))
    stranger = generate_private_key(public_exponent=65537, key_size=2048)
    forged = jwt.encode(issuer.claims(), stranger, algorithm="RS256", headers={"kid": named})
    assert "signature is wrong" in await refusal(tokens, forged)
    head, body, signature = issuer.token().split(".")
    assert "signature is wrong" in await refusal(tokens, f"{head}.{body}.{signature[:-8]}AAAAAAAA")
    unsigned = jwt.encode(issuer.claims(), "", algorithm="none", headers={"kid": named})
    assert "is not signed with" in await refusal(tokens, unsigned)
    for nonsense in ("", "a.b.c", "x" * 20_000, "ä.ö.ü", "\x00"):
        await refusal(tokens, nonsense)


async def test_public_key_is_never_taken_for_a_shared_secret(issuer: Issuer) -> None:
    key_id, (_, private) = next(iter(issuer.keys.items()))
    pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def part(document: dict[str, Any]) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=")

    signed = part({"alg": "HS256", "typ": "JWT", "kid": key_id}) + b"." + part(issuer.claims())
    mac = base64.urlsafe_b64encode(hmac.new(pem, signed, hashlib.sha256).digest()).rstrip(b"=")
    assert "is not signed with" in await refusal(tokens_of(issuer), (signed + b"." + mac).decode())


async def test_short_rsa_key_is_refused(issuer: Issuer) -> None:
    key_id = issuer.add_key(bits=1024)
    assert "not one for RS256" in await refusal(tokens_of(issuer), issuer.token(key_id))


async def test_key_of_another_kind_than_the_algorithm_is_not_found(issuer: Issuer) -> None:
    tokens = tokens_of(issuer, algorithms=["RS256", "ES256"])
    of_curve = issuer.add_key("ES256")
    forged = issuer.token(header={"kid": of_curve})
    assert "no such key" in await refusal(tokens, forged)


async def test_email_counts_only_if_it_is_verified(issuer: Issuer) -> None:
    tokens = tokens_of(issuer, username_claim="email")
    token = issuer.token(email="alice@example.com", email_verified=True)
    assert (await tokens.verify(token, "")).name == "alice@example.com@corp"
    assert "not verified" in await refusal(tokens, issuer.token(email="alice@example.com"))
    assert "not verified" in await refusal(tokens, issuer.token(email="alice@example.com", email_verified="true"))


async def test_new_key_is_found_and_old_one_forgotten(issuer: Issuer) -> None:
    clock = Clock()
    tokens = tokens_of(issuer, clock)
    old = issuer.token()
    await tokens.verify(old, "")
    new_id = issuer.add_key()
    del issuer.keys[next(iter(issuer.keys))]
    clock.later(seconds=31)
    assert (await tokens.verify(issuer.token(new_id), "")).name == "alice@corp"
    assert "no such key" in await refusal(tokens, old)


async def test_invented_keys_do_not_make_us_ask_all_the_time(issuer: Issuer) -> None:
    tokens = tokens_of(issuer)
    for number in range(20):
        assert "no such key" in await refusal(tokens, issuer.token(header={"kid": f"invented-{number}"}))
    assert issuer.key_requests == 1


async def test_known_keys_serve_while_the_issuer_is_away_but_not_for_ever(issuer: Issuer) -> None:
    clock = Clock()
    tokens = tokens_of(issuer, clock)
    token = issuer.token()
    await tokens.verify(token, "")
    issuer.is_away = True
    clock.later(hours=2)
    assert (await tokens.verify(token, "")).name == "alice@corp"
    clock.later(hours=25)
    with pytest.raises(Unavailable) as caught:
        await tokens.verify(token, "")
    assert caught.value.reason == Reason.ISSUER_UNAVAILABLE


async def unavailable(issuer: Issuer) -> str:
    with pytest.raises(Unavailable) as caught:
        await tokens_of(issuer).verify(issuer.token(), "")
    return caught.value.message


async def test_keys_are_fetched_from_nowhere_else(issuer: Issuer) -> None:
    issuer.redirects_to = "http://127.0.0.1:1/keys"
    assert "HTTP 302" in await unavailable(issuer)
    issuer.redirects_to = ""
    for url, why in (
        ("http://169.254.169.254/latest/meta-data", "without TLS"),
        ("http://idp.example.com/keys", "without TLS"),
        ("file:///etc/shadow", "none"),
        ("https://user:secret@idp.example.com/keys", "none"),
        (None, "names no keys"),
    ):
        issuer.discovery = {"jwks_uri": url}
        assert why in await unavailable(issuer)
    issuer.discovery = {"issuer": "https://elsewhere.example"}
    assert "another issuer's" in await unavailable(issuer)


async def test_issuer_elsewhere_cannot_send_us_to_this_machine() -> None:
    settings = IssuerSettings(name="corp", url="https://idp.example.com", client_id=CLIENT)

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.host == "idp.example.com"
        document = {"issuer": settings.url, "jwks_uri": "https://localhost:8080/keys"}
        return httpx.Response(200, stream=httpx.ByteStream(json.dumps(document).encode()))

    keys = IssuerKeys(settings, httpx.MockTransport(answer))
    with pytest.raises(Unavailable, match="address of this machine"):
        await keys.find("RS256", "any")


class _Drip(httpx.AsyncByteStream):
    """An answer of which a byte comes now and then, always in time for whoever waits for the next one only."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("drips", [False, True], ids=["never begins", "never ends"])
async def test_issuer_that_is_slow_holds_nobody_up_for_long(drips: bool) -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        if not drips:
            await asyncio.Event().wait()
        return httpx.Response(200, stream=_Drip())

    settings = IssuerSettings(name="corp", url="https://idp.example.com", client_id=CLIENT)
    keys = IssuerKeys(settings, httpx.MockTransport(answer), limit_s=0.2)
    with pytest.raises(Unavailable, match=r"no answer within 0\.2 s"):
        async with asyncio.timeout(30):
            await keys.find("RS256", "any")


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"x" * 300_000, "more than"),
        (b"<html>", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "no JSON object"),
        (b'{"keys": 1}', "no key set"),
    ],
    ids=["huge", "html", "deep", "list", "number"],
)
async def test_answer_that_makes_no_sense_is_refused(issuer: Issuer, body: bytes, why: str) -> None:
    issuer.body = body
    assert why in await unavailable(issuer)


async def test_keys_that_make_no_sense_are_left_out(issuer: Issuer) -> None:
    issuer.body = b'{"keys": [1, {}, {"kty": "RSA"}, {"kty": "oct", "k": "AAAA"}, {"kty": "EC", "crv": "P-521"}]}'
    assert "no such key" in await refusal(tokens_of(issuer), issuer.token())


async def test_first_login_makes_a_user_and_later_ones_renew_it(issuer: Issuer, tmp_path: Path) -> None:
    settings = settings_of(issuer)
    tokens = tokens_of(issuer)
    async with open_store(fresh_sqlite(tmp_path)) as store:
        plane = Plane(store, Clock())
        first = await plane.sessions.exchange(settings, await tokens.verify(issuer.token(), ""), HOME)
        who = await plane.who(first.access_token)
        assert (who.name, who.groups) == ("alice@corp", frozenset({"corp:operators"}))
        changed = issuer.token(groups=["auditors"], preferred_username="alice2")
        again = await plane.sessions.exchange(settings, await tokens.verify(changed, ""), HOME)
        assert again.user.id == first.user.id
        await plane.callers.look()
        assert (await plane.who(first.access_token)).groups == {"corp:auditors"}
        of_another = await refused_exchange(plane, settings, tokens, issuer.token(sub="another"))
        with pytest.raises(Unauthenticated):
            await plane.sessions.login("alice@corp", "", HOME)

        await plane.users.disable(ROOT, "alice@corp")
        of_disabled = await refused_exchange(plane, settings, tokens, issuer.token())
        await plane.users.delete(ROOT, "alice@corp")
        of_deleted = await refused_exchange(plane, settings, tokens, issuer.token())
        nobody = settings.model_copy(update={"creates_users": False})
        of_nobody = await refused_exchange(plane, nobody, tokens, issuer.token(sub="nobody"))
        assert of_another == of_disabled == of_deleted == of_nobody, "nothing tells whether there is such a user"


async def refused_exchange(plane: Plane, settings: IssuerSettings, tokens: IssuerTokens, token: str) -> str:
    with pytest.raises(ApiError) as caught:
        await plane.sessions.exchange(settings, await tokens.verify(token, ""), HOME)
    assert caught.value.reason == Reason.ID_TOKEN_REFUSED
    return caught.value.message


async def test_token_begins_one_session_however_its_signature_is_written(issuer: Issuer, tmp_path: Path) -> None:
    key_id = issuer.add_key("ES256")
    settings = settings_of(issuer, algorithms=frozenset({"ES256"}))
    tokens = IssuerTokens(settings, IssuerKeys(settings))
    token = issuer.token(key_id)
    async with open_store(fresh_sqlite(tmp_path)) as store:
        plane = Plane(store, Clock())
        await plane.sessions.exchange(settings, await tokens.verify(token, ""), HOME)
        for again in (token, _with_other_signature(token)):
            assert "used before" in await refused_exchange(plane, settings, tokens, again)


def _with_other_signature(token: str) -> str:
    """Write an ECDSA signature (r, s) as (r, n - s), which is as good."""
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    signed, _, signature = token.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    other = raw[:32] + (order - int.from_bytes(raw[32:], "big")).to_bytes(32, "big")
    return f"{signed}.{base64.urlsafe_b64encode(other).decode().rstrip('=')}"


async def test_nobody_is_made_a_user_where_that_is_not_allowed(issuer: Issuer, tmp_path: Path) -> None:
    settings = settings_of(issuer, creates_users=False)
    async with open_store(fresh_sqlite(tmp_path)) as store:
        plane = Plane(store, Clock())
        with pytest.raises(Unauthenticated, match="may not log in here"):
            await plane.sessions.exchange(settings, await tokens_of(issuer).verify(issuer.token(), ""), HOME)


@pytest.mark.parametrize(
    "url", ["http://idp.example.com", "https://idp.example.com?x=1", "https://u:p@idp.example.com", "ftp://x", "idp"]
)
def test_issuer_must_be_reached_by_tls(url: str) -> None:
    with pytest.raises(pydantic.ValidationError):
        IssuerSettings(name="corp", url=url, client_id=CLIENT)


def test_issuers_differ_and_shared_secrets_are_no_algorithm() -> None:
    one = {"name": "corp", "url": "https://idp.example.com", "client_id": CLIENT}
    with pytest.raises(pydantic.ValidationError):
        IdentitySettings.model_validate({"issuers": [one, one]})
    with pytest.raises(pydantic.ValidationError):
        IssuerSettings.model_validate({**one, "algorithms": ["HS256"]})
    assert {str(each) for each in TokenAlgorithm} == {"RS256", "ES256", "EdDSA"}
