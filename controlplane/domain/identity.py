"""Users, their sessions, API keys and what tokens are signed with, as they are stored."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from controlplane.domain.principal import Scope

ANYTHING: Final = Scope()
"""The scope of a key that may do whatever its owner may."""


@dataclass(frozen=True, slots=True)
class User:
    """A person, or the owner of programs.

    Attributes:
        name: unique for ever, also among those that were deleted. Of a local one it holds no "@"; one that an issuer
            vouches for is called "<name there>@<issuer's name>".
        password_hash: argon2id; "" for those that an issuer vouches for.
        issuer, issuer_subject: who vouches for them, and as whom; "" for local ones.
        version: counted up by every change.
    """

    id: str
    name: str
    created_at: datetime
    display_name: str = ""
    password_hash: str = ""
    issuer: str = ""
    issuer_subject: str = ""
    groups: frozenset[str] = frozenset()
    is_disabled: bool = False
    password_changed_at: datetime | None = None
    deleted_at: datetime | None = None
    version: int = 1

    @property
    def is_local(self) -> bool:
        """Whether they log in with a password that is kept here."""
        return not self.issuer

    @property
    def may_act(self) -> bool:
        """Whether they may log in, and their sessions and keys count."""
        return not self.is_disabled and self.deleted_at is None


@dataclass(frozen=True, slots=True)
class UserFilter:
    """Which users; an empty part does not filter."""

    group: str = ""
    include_disabled: bool = True


@dataclass(frozen=True, slots=True)
class UserSession:
    """One login, with all tokens that came of it.

    Attributes:
        ends_at: when its newest refresh token ends.
        origin: the address from which it began.
    """

    id: str
    user_id: str
    began_at: datetime
    ends_at: datetime
    origin: str
    revoked_at: datetime | None = None
    revoked_because: str = ""


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """A refresh token, without what it is itself; `digest` is SHA-256."""

    digest: bytes
    session_id: str
    ends_at: datetime
    used_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that signs access tokens; `number` counts up, `sealed` is its private part."""

    number: int
    id: str
    sealed: bytes
    created_at: datetime
    signs_until: datetime
    verifies_until: datetime


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What a program calls with, in its owner's name; `digest` is SHA-256 of its secret."""

    id: str
    owner_id: str
    name: str
    digest: bytes
    created_at: datetime
    expires_at: datetime
    scope: Scope = ANYTHING
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class LoginFailures:
    """Tries of one kind that failed or still go on: how many in a row, and until when nobody may try."""

    key: str
    count: int
    last_at: datetime
    waits_until: datetime


@dataclass(frozen=True, slots=True)
class WhoMayCall:
    """What changed of what decides whether a token or key still counts.

    Attributes:
        revision: counted up by every change to any of it.
        users: those that changed, deleted ones too.
        revoked_session_ids: all of those whose access tokens may not have ended by themselves yet.
        api_keys: those that changed, revoked ones too.
    """

    revision: int
    users: tuple[User, ...]
    revoked_session_ids: frozenset[str]
    api_keys: tuple[ApiKey, ...]
