"""Access tokens: signed statements of who logged in, good for minutes, checked without asking anybody.

The algorithm is EdDSA because the key is of that kind, never because a token says so; that excludes `alg=none` and a
public key taken for a shared secret. Sources: RFC 8725 (best practices), RFC 9068 (the type "at+jwt"), RFC 8037.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from controlplane.domain import identity_errors

LIFETIME: Final = timedelta(minutes=15)
MAX_TOKEN_BYTES: Final = 4096
"""What is longer is no token of ours, and is not looked at."""
_ALGORITHM: Final = "EdDSA"
_TYPE: Final = "at+jwt"
_CLOCK_SKEW: Final = timedelta(seconds=30)
"""How far the clocks of two control planes may be apart."""
_REQUIRED: Final = ("iss", "sub", "aud", "iat", "nbf", "exp", "jti", "sid")


@dataclass(frozen=True, slots=True)
class AccessClaims:
    """What a token says, and it was checked."""

    user_id: str
    session_id: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class TokenMaker:
    """Signs and checks tokens of one cluster.

    Attributes:
        issuer: of the tokens: the cluster.
        audience: whom they are for.
    """

    issuer: str
    audience: str

    def sign(self, key: Ed25519PrivateKey, key_id: str, user_id: str, session_id: str, now: datetime) -> str:
        """Make a token that is good from now on."""
        claims = {
            "iss": self.issuer,
            "sub": user_id,
            "aud": self.audience,
            "iat": _seconds(now),
            "nbf": _seconds(now),
            "exp": _seconds(now + LIFETIME),
            "jti": uuid.uuid4().hex,
            "sid": session_id,
        }
        return jwt.encode(claims, key, algorithm=_ALGORITHM, headers={"kid": key_id, "typ": _TYPE})

    def verify(self, token: str, keys: Mapping[str, Ed25519PublicKey], now: datetime) -> AccessClaims:
        """Read a token.

        Raises:
            UnknownKeyError: it names a key that is not among `keys`.
            Unauthenticated: it is not good, CREDENTIAL_EXPIRED if it was once.
        """
        key = keys.get(key_id_of(token))
        if key is None:
            raise UnknownKeyError
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[_ALGORITHM],
                issuer=self.issuer,
                audience=self.audience,
                options={
                    "require": list(_REQUIRED),
                    "strict_aud": True,
                    # Compared below, with the clock that is given.
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise identity_errors.credential_refused() from error
        return _timely(claims, now)


class UnknownKeyError(Exception):
    """A token is signed with a key that is not known, perhaps not yet."""


def key_id_of(token: str) -> str:
    """Return the id of the key that a token claims to be signed with.

    Raises:
        Unauthenticated: it is no token of ours.
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise identity_errors.credential_refused()
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError) as error:
        raise identity_errors.credential_refused() from error
    key_id = header.get("kid")
    if header.get("alg") != _ALGORITHM or header.get("typ") != _TYPE or not isinstance(key_id, str):
        raise identity_errors.credential_refused()
    return key_id


def _timely(claims: Mapping[str, Any], now: datetime) -> AccessClaims:
    times = [claims[name] for name in ("iat", "nbf", "exp")]
    texts = [claims[name] for name in ("sub", "sid")]
    if not all(isinstance(value, int) for value in times) or not all(isinstance(value, str) for value in texts):
        raise identity_errors.credential_refused()
    began, not_before, ends = times
    skew_s, now_s = _CLOCK_SKEW.total_seconds(), now.timestamp()
    if max(began, not_before) > now_s + skew_s or ends - began > LIFETIME.total_seconds():
        raise identity_errors.credential_refused()
    if ends <= now_s:
        raise identity_errors.credential_expired("access token")
    return AccessClaims(texts[0], texts[1], datetime.fromtimestamp(ends, now.tzinfo))


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())
