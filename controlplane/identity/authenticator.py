"""Recognises what calls carry in `authorization: Bearer`: an access token, or an API key.

Called for every call, so nothing here waits for the database or does arithmetic twice: a token that was found good is
remembered by its digest, and compared with `KnownCallers` by a look into a dictionary.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from controlplane.domain import identity_errors
from controlplane.domain.identity import User
from controlplane.domain.principal import Principal, PrincipalKind
from controlplane.identity.api_keys import principal_of_key, split_secret
from controlplane.identity.callers import KnownCallers
from controlplane.identity.signing_keys import SigningKeys
from controlplane.identity.tokens import MAX_TOKEN_BYTES
from limiquantix.rpc.pipeline import CallOrigin

AUTHORIZATION: Final = "authorization"
_SCHEME: Final = "bearer "
_DIGEST_BYTES: Final = 32
MAX_REMEMBERED: Final = 20_000
"""Tokens and keys in use at once; some 400 bytes each."""


@dataclass(slots=True)
class _Remembered:
    """A credential that was found good: until when, and who its bearer was at which revision."""

    expires_at: datetime
    subject_id: str
    session_id: str
    is_key: bool
    revision: int = -1
    principal: Principal | None = None


class BearerAuthenticator:
    """Knows access tokens and API keys. Owned by the event loop's thread.

    Args:
        now: an aware clock.
    """

    def __init__(self, keys: SigningKeys, callers: KnownCallers, now: Callable[[], datetime]) -> None:
        self._keys = keys
        self._callers = callers
        self._now = now
        self._remembered: dict[bytes, _Remembered] = {}

    async def authenticate(self, origin: CallOrigin) -> Principal | None:
        """Say who calls; None for a call without such a credential.

        Raises:
            Unauthenticated: the credential is not good, or no longer.
            Unavailable: the database does not answer, and who may call was read too long ago.
        """
        credential = bearer_of(origin)
        if credential is None:
            return None
        if len(credential) > MAX_TOKEN_BYTES:
            raise identity_errors.credential_refused()
        # Python's own digest and not one of OpenSSL's, which takes twice as long where the processor did something else
        # before: that is once a call.
        digest = hashlib.blake2b(credential.encode("utf-8", "replace"), digest_size=_DIGEST_BYTES).digest()
        known = self._remembered.get(digest)
        if known is None:
            known = await self._examine(credential)
            self._remember(digest, known)
        elif known.expires_at <= self._now():
            del self._remembered[digest]
            raise identity_errors.credential_expired("API key" if known.is_key else "access token")
        if not self._callers.is_trusted():
            await self._callers.ensure()
        if known.revision != self._callers.revision or known.principal is None:
            revision = self._callers.revision
            known.principal = await (self._bearer_of_key(known) if known.is_key else self._bearer_of_token(known))
            known.revision = revision
        if known.is_key:
            self._callers.used(known.subject_id)
        return known.principal

    async def _examine(self, credential: str) -> _Remembered:
        secret = split_secret(credential)
        if secret is None:
            claims = await self._keys.verify(credential)
            return _Remembered(claims.expires_at, claims.user_id, claims.session_id, is_key=False)
        await self._callers.ensure()
        key = await self._callers.api_key(secret.key_id)
        # Compared with something in any case: how long it takes does not tell whether there is a key of that id.
        is_right = hmac.compare_digest(secret.digest, key.digest if key is not None else bytes(len(secret.digest)))
        if key is None or not is_right:
            raise identity_errors.credential_refused()
        if key.expires_at <= self._now():
            raise identity_errors.credential_expired("API key")
        return _Remembered(key.expires_at, key.id, "", is_key=True)

    async def _bearer_of_token(self, known: _Remembered) -> Principal:
        user = await self._callers.user(known.subject_id)
        if user is None or not user.may_act or self._callers.is_revoked(known.session_id):
            raise identity_errors.session_ended()
        return principal_of(user, known.session_id)

    async def _bearer_of_key(self, known: _Remembered) -> Principal:
        key = await self._callers.api_key(known.subject_id)
        owner = await self._callers.user(key.owner_id) if key is not None else None
        if key is None or owner is None or not owner.may_act:
            raise identity_errors.credential_refused()
        return principal_of_key(key, owner)

    def _remember(self, digest: bytes, known: _Remembered) -> None:
        if len(self._remembered) >= MAX_REMEMBERED:
            # Room for many at once, since all are looked at for it.
            now = self._now()
            good = [(key, each) for key, each in self._remembered.items() if each.expires_at > now]
            self._remembered = dict(good[-MAX_REMEMBERED * 3 // 4 :])
        self._remembered[digest] = known


def bearer_of(origin: CallOrigin) -> str | None:
    """Return what a call carries as its bearer's; None if it carries nothing of the kind.

    Raises:
        Unauthenticated: it carries several, so that nobody can say who calls.
    """
    found: str | bytes | None = None
    for key, value in origin.invocation_metadata() or ():
        if key == AUTHORIZATION:
            if found is not None:
                raise identity_errors.credential_refused()
            found = value
    if found is None:
        return None
    text = found.decode("ascii", "replace") if isinstance(found, bytes) else found
    return text[len(_SCHEME) :].strip() if text[: len(_SCHEME)].lower() == _SCHEME else None


def principal_of(user: User, session_id: str) -> Principal:
    """Say who a user is who logged in."""
    return Principal(PrincipalKind.USER, user.id, user.name, user.groups, session_id=session_id)
