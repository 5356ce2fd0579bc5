"""Access tokens: what makes one good, and every way known in which one is not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from controlplane.identity.tokens import LIFETIME, MAX_TOKEN_BYTES, TokenMaker, UnknownKeyError
from limiquantix.errors import Reason, Unauthenticated
from tests.support.identity_scene import MAKER

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = Ed25519PrivateKey.generate()
KEYS = {"k1": KEY.public_key()}


def claims(**changes: Any) -> dict[str, Any]:
    now = int(NOW.timestamp())
    good: dict[str, Any] = {
        "iss": MAKER.issuer,
        "sub": "user-1",
        "aud": MAKER.audience,
        "iat": now,
        "nbf": now,
        "exp": now + 900,
        "jti": "1",
        "sid": "session-1",
    }
    return {name: value for name, value in (good | changes).items() if value is not None}


def signed(header: dict[str, Any] | None = None, **changes: Any) -> str:
    return jwt.encode(claims(**changes), KEY, "EdDSA", headers={"kid": "k1", "typ": "at+jwt", **(header or {})})


def part(document: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()


def reason_for(token: str, now: datetime = NOW) -> str:
    with pytest.raises(Unauthenticated) as caught:
        MAKER.verify(token, KEYS, now)
    return caught.value.reason


def test_token_says_who_and_until_when() -> None:
    token = MAKER.sign(KEY, "k1", "user-1", "session-1", NOW)
    found = MAKER.verify(token, KEYS, NOW + timedelta(minutes=14))
    assert (found.user_id, found.session_id, found.expires_at) == ("user-1", "session-1", NOW + LIFETIME)
    header = jwt.get_unverified_header(token)
    assert header == {"alg": "EdDSA", "kid": "k1", "typ": "at+jwt"}
    assert jwt.decode(token, options={"verify_signature": False}).keys() == claims().keys()


def test_token_ends() -> None:
    token = MAKER.sign(KEY, "k1", "user-1", "session-1", NOW)
    assert reason_for(token, NOW + LIFETIME) == Reason.CREDENTIAL_EXPIRED


EPOCH = int(NOW.timestamp())


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "limiquantix://another"},
        {"aud": "another"},
        {"aud": [MAKER.audience]},
        {"aud": [MAKER.audience, "another"]},
        {"nbf": EPOCH + 60},
        {"iat": EPOCH + 60},
        {"exp": EPOCH + 901},
        {"exp": EPOCH + 10**9},
        {"exp": "9999999999"},
        {"exp": float("inf")},
        {"nbf": "0"},
        {"sub": 7},
        {"sid": 7},
        *({name: None} for name in ("iss", "sub", "aud", "iat", "nbf", "exp", "jti", "sid")),
    ],
    ids=str,
)
def test_claim_that_is_not_right_is_refused(changes: dict[str, Any]) -> None:
    assert reason_for(signed(**changes)) == Reason.CREDENTIAL_REFUSED


def test_unsigned_token_is_refused() -> None:
    for algorithm in ("none", "None", "NONE", "nOnE", ""):
        header = {"alg": algorithm, "kid": "k1", "typ": "at+jwt"}
        assert reason_for(f"{part(header)}.{part(claims())}.") == Reason.CREDENTIAL_REFUSED
    head, body, _ = signed().split(".")
    assert reason_for(f"{head}.{body}.") == Reason.CREDENTIAL_REFUSED


@pytest.mark.parametrize("encoding", ["raw", "pem"])
def test_public_key_is_never_a_shared_secret(encoding: str) -> None:
    public = KEY.public_key()
    secret = (
        public.public_bytes_raw()
        if encoding == "raw"
        else public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    for algorithm in ("HS256", "EdDSA"):
        text = f"{part({'alg': algorithm, 'kid': 'k1', 'typ': 'at+jwt'})}.{part(claims())}"
        mac = hmac.new(secret, text.encode(), hashlib.sha256).digest()
        token = f"{text}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
        assert reason_for(token) == Reason.CREDENTIAL_REFUSED


def test_key_in_the_token_itself_is_not_used() -> None:
    stranger = Ed25519PrivateKey.generate()
    jwk = json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(stranger.public_key()))
    header = {
        "kid": "k1",
        "typ": "at+jwt",
        "jwk": jwk,
        "jku": "https://evil.example/keys",
        "x5u": "https://evil.example",
    }
    assert reason_for(jwt.encode(claims(), stranger, "EdDSA", headers=header)) == Reason.CREDENTIAL_REFUSED


def test_other_algorithm_and_other_type_are_refused() -> None:
    rsa = generate_private_key(public_exponent=65537, key_size=2048)
    token = jwt.encode(claims(), rsa, "RS256", headers={"kid": "k1", "typ": "at+jwt"})
    assert reason_for(token) == Reason.CREDENTIAL_REFUSED
    for kind in ("JWT", "id+jwt", "", None):
        assert reason_for(signed({"typ": kind})) == Reason.CREDENTIAL_REFUSED


def test_unknown_key_is_told_from_a_bad_token() -> None:
    with pytest.raises(UnknownKeyError):
        MAKER.verify(signed({"kid": "k2"}), KEYS, NOW)
    head = part({"alg": "EdDSA", "typ": "at+jwt", "kid": ["k1"]})
    assert reason_for(f"{head}.{part(claims())}.AAAA") == Reason.CREDENTIAL_REFUSED


@pytest.mark.parametrize(
    "token",
    ["", ".", "..", "a.b.c", "x" * (MAX_TOKEN_BYTES + 1), "ä.b.c", "\ud800", "\x00", "e30.e30.e30", "W10.W10.W10"],
    ids=lambda token: ascii(token)[:20],
)
def test_what_is_no_token_is_refused(token: str) -> None:
    assert reason_for(token) == Reason.CREDENTIAL_REFUSED


def test_every_changed_byte_is_noticed() -> None:
    token = signed()
    for index in range(len(token)):
        other = "A" if token[index] != "A" else "B"
        changed = token[:index] + other + token[index + 1 :]
        try:
            MAKER.verify(changed, KEYS, NOW)
        except (Unauthenticated, UnknownKeyError):
            continue
        # The last character of a part holds bits that are no part of it.
        assert index == len(token) - 1


def test_clusters_do_not_take_each_others_tokens() -> None:
    token = TokenMaker("limiquantix://another", MAKER.audience).sign(KEY, "k1", "user-1", "session-1", NOW)
    assert reason_for(token) == Reason.CREDENTIAL_REFUSED
