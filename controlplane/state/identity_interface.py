"""What a transaction does with users, sessions, API keys and signing keys; a part of `interface.Transaction`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

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


class IdentityTransaction(Protocol):
    """People and programs."""

    async def insert_user(self, user: User) -> None:
        """Add a user.

        Raises:
            AlreadyExists: the name is taken, or was by one who was deleted.
            Aborted: another process adds the same person of an issuer at this moment.
        """
        ...

    async def get_user(self, user_id: str) -> User | None:
        """Read one by id, deleted ones too; in a transaction that writes, nobody else changes it until the end."""
        ...

    async def user_named(self, name: str) -> User | None:
        """Read one by name, as `get_user`."""
        ...

    async def user_of_issuer(self, issuer: str, subject: str) -> User | None:
        """Read whom an issuer vouches for, as `get_user`."""
        ...

    async def update_user(self, user: User) -> User:
        """Write a user who was read before, and return it with its new version.

        Raises:
            Aborted: it was changed since.
        """
        ...

    async def list_users(self, wanted: UserFilter, after: Cursor | None, limit: int) -> Page[User]:
        """Read a page of those that are not deleted, oldest first."""
        ...

    async def insert_session(self, session: UserSession, token: RefreshToken) -> None:
        """Add a session and its first refresh token."""
        ...

    async def get_session(self, session_id: str) -> UserSession | None:
        """Read one."""
        ...

    async def get_refresh_token(self, digest: bytes) -> RefreshToken | None:
        """Read one, used or not."""
        ...

    async def insert_used_token(self, token: RefreshToken) -> None:
        """Remember a token that was good for beginning a session, as a used one of that session.

        Raises:
            Aborted: another process remembers it at this moment.
        """
        ...

    async def use_refresh_token(self, used: RefreshToken, new: RefreshToken, at: datetime) -> bool:
        """Put a new token in the place of one; False if somebody used that before, and then nothing is changed."""
        ...

    async def revoke_session(self, session_id: str, because: str, at: datetime) -> bool:
        """End a session; False if it has ended, or there is none."""
        ...

    async def revoke_sessions(self, user_id: str, because: str, at: datetime, but: str = "") -> int:
        """End all sessions of a user but one; returns how many."""
        ...

    async def insert_api_key(self, key: ApiKey) -> None:
        """Add a key."""
        ...

    async def get_api_key(self, key_id: str) -> ApiKey | None:
        """Read one, revoked or not."""
        ...

    async def revoke_api_key(self, key_id: str, at: datetime) -> bool:
        """End a key; False if it has ended, or there is none."""
        ...

    async def revoke_api_keys(self, owner_id: str, at: datetime) -> int:
        """End all keys of a user; returns how many."""
        ...

    async def note_api_keys_used(self, used_at: dict[str, datetime]) -> None:
        """Note when keys were last used; an earlier time than what is stored changes nothing. Who may call is not."""
        ...

    async def count_api_keys(self, owner_id: str) -> int:
        """Say how many keys of a user are not revoked."""
        ...

    async def list_api_keys(self, owner_id: str, after: Cursor | None, limit: int) -> Page[ApiKey]:
        """Read a page of keys that are not revoked, oldest first; of all users if `owner_id` is ""."""
        ...

    async def signing_keys(self) -> Sequence[SigningKey]:
        """Read all, newest first."""
        ...

    async def insert_signing_key(self, key: SigningKey) -> None:
        """Add the next one.

        Raises:
            Aborted: another process was faster; whoever begins anew reads that one.
        """
        ...

    async def login_failures(self, keys: Sequence[str]) -> Sequence[LoginFailures]:
        """Read what is counted of these; in a transaction that writes, others wait for its end to count them."""
        ...

    async def write_login_failures(self, counted: Sequence[LoginFailures], before: Sequence[LoginFailures]) -> None:
        """Write counts; those of 0 are removed.

        Args:
            before: what `login_failures` gave of them in this transaction.

        Raises:
            Aborted: another process counted one of them for the first time.
        """
        ...

    async def forget_identities(self, before: datetime, known_before: datetime) -> int:
        """Remove sessions, keys and counts of failures whose end was before; returns how many.

        Args:
            known_before: for counts of addresses whence somebody logged in.
        """
        ...

    async def identity_revision(self) -> int:
        """Say how often it changed who may call."""
        ...

    async def who_may_call(self, after_revision: int, revoked_since: datetime) -> WhoMayCall:
        """Read what changed of who may call after a revision, 0 for everything; revoked sessions since a time."""
        ...
