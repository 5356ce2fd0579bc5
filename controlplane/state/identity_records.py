"""The transaction's methods about people and programs. Docstrings: the interface's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeVar

from sqlalchemy import Connection

from controlplane.domain.identity import (
    ApiKey,
    LoginFailures,
    RefreshToken,
    SigningKey,
    User,
    UserFilter,
    UserSession,
    WhoMayCall,
)
from controlplane.domain.query import Cursor, Page
from controlplane.state import identity_rows

ResultT = TypeVar("ResultT")


class IdentityRecords(ABC):
    """A part of `SqlTransaction`."""

    _read_only: bool

    @abstractmethod
    async def _read(self, function: Callable[[Connection], ResultT]) -> ResultT: ...

    @abstractmethod
    async def _write(self, function: Callable[[Connection], ResultT]) -> ResultT: ...

    async def insert_user(self, user: User) -> None:
        """Add a user."""
        await self._write(lambda connection: identity_rows.insert_user(connection, user))

    async def get_user(self, user_id: str) -> User | None:
        """Read one by id."""
        return await self._find({"id": user_id})

    async def user_named(self, name: str) -> User | None:
        """Read one by name."""
        return await self._find({"name": name})

    async def user_of_issuer(self, issuer: str, subject: str) -> User | None:
        """Read whom an issuer vouches for."""
        return await self._find({"issuer": issuer, "issuer_subject": subject})

    async def _find(self, by: dict[str, str]) -> User | None:
        return await self._read(
            lambda connection: identity_rows.find_user(connection, by, to_change=not self._read_only)
        )

    async def update_user(self, user: User) -> User:
        """Write a user who was read before."""
        return await self._write(lambda connection: identity_rows.update_user(connection, user))

    async def list_users(self, wanted: UserFilter, after: Cursor | None, limit: int) -> Page[User]:
        """Read a page of users."""
        return await self._read(lambda connection: identity_rows.list_users(connection, wanted, after, limit))

    async def insert_session(self, session: UserSession, token: RefreshToken) -> None:
        """Add a session."""
        await self._write(lambda connection: identity_rows.insert_session(connection, session, token))

    async def get_session(self, session_id: str) -> UserSession | None:
        """Read a session."""
        return await self._read(lambda connection: identity_rows.get_session(connection, session_id))

    async def get_refresh_token(self, digest: bytes) -> RefreshToken | None:
        """Read a refresh token."""
        return await self._read(lambda connection: identity_rows.get_refresh_token(connection, digest))

    async def insert_used_token(self, token: RefreshToken) -> None:
        """Remember a token that began a session."""
        await self._write(lambda connection: identity_rows.insert_used_token(connection, token))

    async def use_refresh_token(self, used: RefreshToken, new: RefreshToken, at: datetime) -> bool:
        """Put a new token in the place of one."""
        return await self._write(lambda connection: identity_rows.use_refresh_token(connection, used, new, at))

    async def revoke_session(self, session_id: str, because: str, at: datetime) -> bool:
        """End a session."""
        return await self._write(lambda connection: identity_rows.revoke_session(connection, session_id, because, at))

    async def revoke_sessions(self, user_id: str, because: str, at: datetime, but: str = "") -> int:
        """End the sessions of a user."""
        return await self._write(
            lambda connection: identity_rows.revoke_sessions(connection, user_id, because, at, but)
        )

    async def insert_api_key(self, key: ApiKey) -> None:
        """Add a key."""
        await self._write(lambda connection: identity_rows.insert_api_key(connection, key))

    async def get_api_key(self, key_id: str) -> ApiKey | None:
        """Read a key."""
        return await self._read(lambda connection: identity_rows.get_api_key(connection, key_id))

    async def revoke_api_key(self, key_id: str, at: datetime) -> bool:
        """End a key."""
        return await self._write(lambda connection: identity_rows.revoke_api_keys(connection, {"id": key_id}, at) > 0)

    async def revoke_api_keys(self, owner_id: str, at: datetime) -> int:
        """End all keys of a user."""
        return await self._write(
            lambda connection: identity_rows.revoke_api_keys(connection, {"owner_id": owner_id}, at)
        )

    async def note_api_keys_used(self, used_at: dict[str, datetime]) -> None:
        """Note when keys were last used."""
        await self._write(lambda connection: identity_rows.note_api_keys_used(connection, used_at))

    async def count_api_keys(self, owner_id: str) -> int:
        """Count the keys of a user."""
        return await self._read(lambda connection: identity_rows.count_api_keys(connection, owner_id))

    async def list_api_keys(self, owner_id: str, after: Cursor | None, limit: int) -> Page[ApiKey]:
        """Read a page of keys."""
        return await self._read(lambda connection: identity_rows.list_api_keys(connection, owner_id, after, limit))

    async def signing_keys(self) -> Sequence[SigningKey]:
        """Read all signing keys."""
        return await self._read(identity_rows.all_signing_keys)

    async def insert_signing_key(self, key: SigningKey) -> None:
        """Add the next signing key."""
        await self._write(lambda connection: identity_rows.insert_signing_key(connection, key))

    async def login_failures(self, keys: Sequence[str]) -> Sequence[LoginFailures]:
        """Read what is counted of failed logins."""
        return await self._read(
            lambda connection: identity_rows.get_failures(connection, keys, to_change=not self._read_only)
        )

    async def write_login_failures(self, counted: Sequence[LoginFailures], before: Sequence[LoginFailures]) -> None:
        """Write what is counted of failed logins."""
        await self._write(lambda connection: identity_rows.write_failures(connection, counted, before))

    async def forget_identities(self, before: datetime, known_before: datetime) -> int:
        """Remove what ended long ago."""
        return await self._write(lambda connection: identity_rows.forget(connection, before, known_before))

    async def identity_revision(self) -> int:
        """How often it changed who may call."""
        return await self._read(identity_rows.revision)

    async def who_may_call(self, after_revision: int, revoked_since: datetime) -> WhoMayCall:
        """Read who may call."""
        return await self._read(
            lambda connection: identity_rows.who_may_call(connection, after_revision, revoked_since)
        )
