"""ID tokens of OpenID Connect issuers: whom they vouch for, once everything about them was checked.

Source: OpenID Connect Core 1.0, 3.1.3.7 (ID token validation); RFC 8725.
"""

from __future__ import annotations

import hashlib
import time
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from controlplane.domain import identity_errors
from controlplane.identity.issuer_keys import IssuerKeys
from controlplane.identity.settings import IssuerSettings, TokenAlgorithm
from limiquantix.errors import Unauthenticated

MAX_TOKEN_BYTES: Final = 16 * 1024
_CLOCK_SKEW_S: Final = 60
_OLDEST_S: Final = 600
"""Since a token was issued: it begins a session at once, or was taken from somewhere."""
_MIN_RSA_BITS: Final = 2048
_MAX_NAME_LENGTH: Final = 128
_MAX_GROUP_COUNT: Final = 256


@dataclass(frozen=True, slots=True)
class VouchedFor:
    """Whom an issuer vouches for.

    Attributes:
        subject: is theirs for ever there; `name` and `groups` are as we call them.
        token_digest: tells the token from every other of all issuers; what its signature covers, since signatures can
            be written in more than one way.
    """

    subject: str
    name: str
    display_name: str
    groups: frozenset[str]
    token_digest: bytes


class IssuerTokens:
    """Checks ID tokens of one issuer.

    Args:
        now: an aware clock.
    """

    def __init__(self, settings: IssuerSettings, keys: IssuerKeys, now: Callable[[], datetime] | None = None) -> None:
        self.settings = settings
        self._keys = keys
        self._now_s: Callable[[], float] = time.time if now is None else lambda: now().timestamp()

    async def verify(self, token: str, nonce: str) -> VouchedFor:
        """Say whom a token vouches for.

        Args:
            nonce: that it was asked for with; "" if with none.

        Raises:
            Unauthenticated: ID_TOKEN_REFUSED, with the reason.
            Unavailable: the issuer's keys cannot be read.
        """
        algorithm, key_id = self._header(token)
        key = await self._key(algorithm, key_id)
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                issuer=self.settings.url,
                audience=self.settings.wanted_audience,
                options={
                    "require": ["iss", "sub", "aud", "iat", "exp"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except jwt.InvalidAudienceError as error:
            raise self._refused("it is for another audience") from error
        except jwt.InvalidIssuerError as error:
            raise self._refused("another issuer made it") from error
        except jwt.MissingRequiredClaimError as error:
            raise self._refused(f"it lacks the claim {error.claim!r}") from error
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise self._refused("its signature is wrong, or it is damaged") from error
        self._require_timely(claims)
        self._require_ours(claims, nonce)
        signed = token.rpartition(".")[0]
        digest = hashlib.sha256(f"ID token of {self.settings.url} {signed}".encode()).digest()
        return self._vouched_for(claims, digest)

    def _header(self, token: str) -> tuple[str, str | None]:
        if len(token) > MAX_TOKEN_BYTES:
            raise self._refused(f"it has more than {MAX_TOKEN_BYTES} bytes")
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError) as error:
            raise self._refused("it is no JWT") from error
        algorithm, key_id = header.get("alg"), header.get("kid")
        if algorithm not in self.settings.algorithms:
            allowed = ", ".join(sorted(self.settings.algorithms))
            raise self._refused(f"it is not signed with {allowed}, which identity.issuers allows")
        return str(algorithm), key_id if isinstance(key_id, str) else None

    async def _key(self, algorithm: str, key_id: str | None) -> Any:
        """The key to check with: the one that the token names, and only if it is of the algorithm's kind."""
        found = await self._keys.find(algorithm, key_id)
        if found is None:
            raise self._refused("the issuer has no such key")
        if not _is_of_kind(found, algorithm):
            raise self._refused(f"the issuer's key is not one for {algorithm}")
        return found

    def _require_timely(self, claims: Mapping[str, Any]) -> None:
        issued, ends, begins = claims["iat"], claims["exp"], claims.get("nbf", claims["iat"])
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in (issued, ends, begins)):
            raise self._refused("its times are no numbers")
        now_s = self._now_s()
        if ends <= now_s - _CLOCK_SKEW_S:
            raise self._refused("it has expired")
        if max(issued, begins) > now_s + _CLOCK_SKEW_S:
            raise self._refused("it is from the future; compare the clocks")
        if issued < now_s - _OLDEST_S:
            raise self._refused(f"it was issued more than {_OLDEST_S // 60} minutes ago")

    def _require_ours(self, claims: Mapping[str, Any], nonce: str) -> None:
        """Check for whom it was made: `azp`, where there is one or must be, and the nonce."""
        audiences, party = claims["aud"], claims.get("azp")
        if isinstance(audiences, list) and len(audiences) > 1 and party is None:
            raise self._refused("it is for several audiences and does not say for whom it was made (azp)")
        if party is not None and party != self.settings.client_id:
            raise self._refused("it was made for another client (azp)")
        if claims.get("nonce", "") != nonce:
            raise self._refused("its nonce is another one than that it was asked for with")

    def _vouched_for(self, claims: Mapping[str, Any], token_digest: bytes) -> VouchedFor:
        subject = self._text(claims, "sub")
        claim = self.settings.username_claim
        if claim == "email" and claims.get("email_verified") is not True:
            raise self._refused("its address is not verified (email_verified)")
        name = f"{self._text(claims, claim)}@{self.settings.name}"
        shown = claims.get("name", "")
        return VouchedFor(
            subject=subject,
            name=name,
            display_name=shown if isinstance(shown, str) and _is_plain(shown) else "",
            groups=self._groups(claims),
            token_digest=token_digest,
        )

    def _groups(self, claims: Mapping[str, Any]) -> frozenset[str]:
        if not self.settings.groups_claim:
            return frozenset()
        told = claims.get(self.settings.groups_claim, [])
        listed = [told] if isinstance(told, str) else told
        if not isinstance(listed, list) or len(listed) > _MAX_GROUP_COUNT:
            raise self._refused(f"its {self.settings.groups_claim} are no list of at most {_MAX_GROUP_COUNT} groups")
        if not all(isinstance(each, str) and each and _is_plain(each) for each in listed):
            raise self._refused(f"one of its {self.settings.groups_claim} is no name")
        return frozenset(f"{self.settings.name}:{each}" for each in listed)

    def _text(self, claims: Mapping[str, Any], claim: str) -> str:
        value = claims.get(claim)
        if not isinstance(value, str) or not value or not _is_plain(value):
            raise self._refused(f"its claim {claim!r} is no name")
        return value

    def _refused(self, why: str) -> Unauthenticated:
        return identity_errors.id_token_refused(self.settings.name, why)


def _is_of_kind(key: object, algorithm: str) -> bool:
    """Whether an algorithm is one of the key's; a public key is never taken for something else."""
    match algorithm:
        case TokenAlgorithm.RS256:
            return isinstance(key, RSAPublicKey) and key.key_size >= _MIN_RSA_BITS
        case TokenAlgorithm.ES256:
            return isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)
        case TokenAlgorithm.EDDSA:
            return isinstance(key, Ed25519PublicKey)
    return False


def _is_plain(text: str) -> bool:
    """Whether a text is short, has nothing that cannot be seen, and is in the form in which equal looks are equal."""
    return len(text) <= _MAX_NAME_LENGTH and text.isprintable() and unicodedata.normalize("NFKC", text) == text
