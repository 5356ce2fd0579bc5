"""People and programs on a store: all parts of `controlplane.identity` put together, with a clock that tests move."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from argon2 import PasswordHasher

from controlplane.domain.identity import User
from controlplane.domain.principal import Principal, PrincipalKind
from controlplane.identity.api_keys import ApiKeyService
from controlplane.identity.authenticator import BearerAuthenticator
from controlplane.identity.callers import KnownCallers
from controlplane.identity.passwords import Passwords
from controlplane.identity.sessions import SessionService
from controlplane.identity.signing_keys import SigningKeys
from controlplane.identity.tokens import TokenMaker
from controlplane.identity.users import UserService
from controlplane.secrets.box import KEY_BYTES, SecretBox
from controlplane.state.interface import Store

PASSWORD = "correct horse battery"
HOME = "ipv4:192.0.2.7:51234"
ROOT = Principal(PrincipalKind.SYSTEM, "setup", "setup")
KEY = os.urandom(KEY_BYTES)
MAKER = TokenMaker("limiquantix://cluster", "limiquantix")


def cheap_hasher(passes: int = 1) -> PasswordHasher:
    """A hasher of the real kind that takes next to no time."""
    return PasswordHasher(time_cost=passes, memory_cost=64, parallelism=1)


@dataclass
class Clock:
    """Tells what time it is; `later` moves it, and the seconds of `monotonic` with it."""

    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    _passed_s: float = 0.0

    def __call__(self) -> datetime:
        return self.now

    def monotonic(self) -> float:
        return time.monotonic() + self._passed_s

    def later(self, **by: float) -> None:
        step = timedelta(**by)
        self.now += step
        self._passed_s += step.total_seconds()


@dataclass(frozen=True)
class Origin:
    """A call, as far as it says where it comes from and what it carries."""

    metadata: tuple[tuple[str, str | bytes], ...] = ()

    @classmethod
    def bearing(cls, credential: str) -> Origin:
        return cls((("authorization", f"Bearer {credential}"),))

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]]:
        return self.metadata

    def peer(self) -> str:
        return HOME

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return {}


class Plane:
    """One control plane's parts on a store. Its powers: whoever is in the group "admins" covers everybody, and no
    one else covers those."""

    def __init__(self, store: Store, clock: Clock, hasher: PasswordHasher | None = None) -> None:
        self.store = store
        self.clock = clock
        self.passwords = Passwords(hasher or cheap_hasher())
        self.callers = KnownCallers(store, clock, clock.monotonic)
        self.keys = SigningKeys(store, SecretBox([KEY]), MAKER, clock, clock.monotonic)
        self.sessions = SessionService(store, self.passwords, self.keys, self.callers, clock)
        self.users = UserService(store, self.passwords, self.callers, _covers, clock)
        self.api_keys = ApiKeyService(store, self.callers, _is_admin, _covers, clock)
        self.authenticator = BearerAuthenticator(self.keys, self.callers, clock)

    async def add_user(self, name: str = "alice", *groups: str) -> User:
        return await self.users.create(ROOT, name, "", frozenset(groups), PASSWORD)

    async def who(self, credential: str) -> Principal:
        principal = await self.authenticator.authenticate(Origin.bearing(credential))
        assert principal is not None
        return principal


async def _covers(first: Principal, second: Principal) -> bool:
    return _is_admin(first) or not _is_admin(second)


def _is_admin(principal: Principal) -> bool:
    return principal.kind is PrincipalKind.SYSTEM or "admins" in principal.groups
