"""API keys: made once, shown once, kept as digests, with an end and a scope."""

from __future__ import annotations

import hashlib
import re
import secrets
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from controlplane.domain import access_errors, identity_errors
from controlplane.domain.access import EVERYTHING
from controlplane.domain.identity import ApiKey, User
from controlplane.domain.principal import Principal, PrincipalKind, Scope
from controlplane.domain.query import Cursor, Page
from controlplane.identity.callers import KnownCallers
from controlplane.state.interface import Store, Transaction
from limiquantix.errors import FieldViolation, InvalidArgument

PREFIX: Final = "lqk_"
LONGEST: Final = timedelta(days=366)
MAX_PER_USER: Final = 100
_SECRET_BYTES: Final = 32
_SECRET: Final = re.compile(r"lqk_(?P<id>[0-9a-f]{32})_(?P<secret>[A-Za-z0-9_-]{20,128})")


Covers = Callable[[Principal, Principal], Awaitable[bool]]
"""Whether the first may do everywhere all that the second may."""


@dataclass(frozen=True, slots=True)
class KeySecret:
    """What a program calls with, taken apart."""

    key_id: str
    digest: bytes


def split_secret(credential: str) -> KeySecret | None:
    """Take an API key apart; None if it does not look like one."""
    found = _SECRET.fullmatch(credential)
    return None if found is None else KeySecret(str(uuid.UUID(found["id"])), _digest(found["secret"]))


@dataclass(frozen=True, slots=True)
class OwnedKey:
    """A key, with its owner's name."""

    key: ApiKey
    owner_name: str


@dataclass(frozen=True, slots=True)
class ApiKeyService:
    """The use cases of API keys.

    Attributes:
        may_manage: whether somebody may end keys of others, if they `covers` what the key may do.
        now: an aware clock.
    """

    store: Store
    callers: KnownCallers
    may_manage: Callable[[Principal], bool]
    covers: Covers
    now: Callable[[], datetime]

    async def create(self, caller: Principal, name: str, expires_at: datetime, scope: Scope) -> tuple[OwnedKey, str]:
        """Make a key of the caller's; returns it and what to call with, which nobody can read again.

        Raises:
            PermissionDenied: not a user who logged in calls; a key that made keys would outlive its end and its scope.
            InvalidArgument: it would end too late, or its scope names what is no permission.
            ResourceExhausted: the user has `MAX_PER_USER` keys.
        """
        if caller.kind is not PrincipalKind.USER:
            raise identity_errors.needs_session()
        if unknown := scope.permissions - EVERYTHING:
            raise access_errors.permissions_unknown(unknown)
        now = self.now()
        if not now < expires_at <= now + LONGEST:
            fault = f"must be in the next {LONGEST.days} days"
            raise InvalidArgument.from_violations([FieldViolation("expires_at", fault)])
        secret = secrets.token_urlsafe(_SECRET_BYTES)
        key = ApiKey(str(uuid.uuid4()), caller.id, name, _digest(secret), now, expires_at, scope)

        async def work(tx: Transaction) -> None:
            owner = await tx.get_user(caller.id)
            if owner is None or not owner.may_act:
                raise identity_errors.session_ended()
            if await tx.count_api_keys(caller.id) >= MAX_PER_USER:
                raise identity_errors.too_many_api_keys(MAX_PER_USER)
            await tx.insert_api_key(key)

        await self.store.run(work)
        await self.callers.look()
        return OwnedKey(key, caller.name), f"{PREFIX}{uuid.UUID(key.id).hex}_{secret}"

    async def list(
        self, caller: Principal, after: Cursor | None, limit: int, *, all_users: bool
    ) -> tuple[Page[ApiKey], dict[str, str]]:
        """Read a page of one's own keys, or of everybody's; and the names of their owners, by id.

        Raises:
            PermissionDenied: the caller is nobody who has keys.
        """
        owner_id = "" if all_users else _user_id(caller)

        async def work(tx: Transaction) -> tuple[Page[ApiKey], dict[str, str]]:
            page = await tx.list_api_keys(owner_id, after, limit)
            owners = [await tx.get_user(found) for found in {key.owner_id for key in page.items}]
            return page, {owner.id: owner.name for owner in owners if owner is not None}

        return await self.store.read(work)

    async def revoke(self, caller: Principal, key_id: str) -> OwnedKey:
        """End a key; one that has ended stays so. A key may end itself, and no other.

        Raises:
            NotFound: there is none of that id, or it is another's and the caller may not manage users.
            PermissionDenied: the key may do more than the caller.
        """

        async def read(tx: Transaction) -> tuple[ApiKey, User | None]:
            key = await tx.get_api_key(key_id)
            if key is None:
                raise identity_errors.api_key_not_found(key_id)
            return key, await tx.get_user(key.owner_id)

        key, owner = await self.store.read(read)
        await self._require_may_end(caller, key, owner)
        now = self.now()
        if await self.store.run(lambda tx: tx.revoke_api_key(key_id, now)):
            key = replace(key, revoked_at=now)
        await self.callers.look()
        return OwnedKey(key, owner.name if owner is not None else "")

    async def _require_may_end(self, caller: Principal, key: ApiKey, owner: User | None) -> None:
        is_owner = caller.kind is PrincipalKind.USER and caller.id == key.owner_id
        if is_owner or (caller.kind is PrincipalKind.API_KEY and caller.id == key.id):
            return
        if not self.may_manage(caller):
            raise identity_errors.api_key_not_found(key.id)
        if owner is not None and not await self.covers(caller, principal_of_key(key, owner)):
            raise identity_errors.beyond_caller(owner.name, "end a key of")


def principal_of_key(key: ApiKey, owner: User) -> Principal:
    """Say who a program is; it has its owner's groups."""
    name = f"{owner.name}/{key.name}"
    return Principal(PrincipalKind.API_KEY, key.id, name, owner.groups, key.scope, owner_id=owner.id)


def _user_id(caller: Principal) -> str:
    if caller.kind is PrincipalKind.USER:
        return caller.id
    if caller.kind is PrincipalKind.API_KEY:
        return caller.owner_id
    raise identity_errors.needs_session()


def _digest(secret: str) -> bytes:
    """SHA-256 is enough for 256 random bits: there is nothing to guess."""
    return hashlib.sha256(secret.encode()).digest()
