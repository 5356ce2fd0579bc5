"""Who may call, in memory: what every token and key is compared with, never older than some seconds.

Read anew as soon as its revision in the database is another one. `run` looks every `LOOK_EVERY_S`; if it does not come
to that, whoever asks looks. Where the database does not answer for too long, nobody may call any more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final

from controlplane.domain import identity_errors
from controlplane.domain.identity import ApiKey, User, WhoMayCall
from controlplane.identity.tokens import LIFETIME
from controlplane.state.interface import Store
from limiquantix.errors import ApiError

LOOK_EVERY_S: Final = 1.5
TRUSTED_FOR_S: Final = 4.0
"""Older than this it is looked at before anybody is let in; with one look's time, this is below 5 s."""
_UNKNOWN_LOOK_EVERY_S: Final = 0.5
"""Somebody who is not known may be new; a stranger must not make this process read all the time."""
_REMEMBERS: Final = LIFETIME + timedelta(minutes=1)
"""A session that was revoked is of interest as long as its last access token could be good."""
_USES_WRITTEN_EVERY_S: Final = 60.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Known:
    """One reading."""

    revision: int = 0
    users: Mapping[str, User] = field(default_factory=lambda: MappingProxyType({}))
    revoked_session_ids: frozenset[str] = frozenset()
    api_keys: Mapping[str, ApiKey] = field(default_factory=lambda: MappingProxyType({}))

    def with_changes(self, found: WhoMayCall) -> _Known:
        """Bring it level with what was found to have changed since."""
        users = {**self.users, **{user.id: user for user in found.users}}
        api_keys = {**self.api_keys, **{key.id: key for key in found.api_keys}}
        for user in found.users:
            if user.deleted_at is not None:
                del users[user.id]
        for key in found.api_keys:
            if key.revoked_at is not None:
                del api_keys[key.id]
        return _Known(found.revision, MappingProxyType(users), found.revoked_session_ids, MappingProxyType(api_keys))


class KnownCallers:
    """Users, revoked sessions and API keys. Owned by the event loop's thread.

    Args:
        now: an aware clock.
        clock: seconds that only ever grow.
    """

    def __init__(self, store: Store, now: Callable[[], datetime], clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._now = now
        self._clock = clock
        self._known = _Known()
        self._looked_s = float("-inf")
        self._turn = asyncio.Lock()
        self._begun_count = 0
        self._ended_number = 0
        """Of the last look that came to an end, which one that is cancelled does not."""
        self._failure: ApiError | None = None
        """Of that look, if it failed."""
        self._used_at: dict[str, datetime] = {}
        self._uses_written_s = clock()

    @property
    def revision(self) -> int:
        """Which reading this is; another number means that something may be different."""
        return self._known.revision

    def is_trusted(self) -> bool:
        """Whether what is known is young enough."""
        return self._clock() - self._looked_s < TRUSTED_FOR_S

    async def ensure(self) -> None:
        """Look if what is known is too old.

        Raises:
            Unavailable: the database does not answer.
        """
        if self.is_trusted():
            return
        begun_before_count = self._begun_count
        async with self._turn:
            if self.is_trusted():
                return
            try:
                await self._look(begun_before_count)
            except ApiError as error:
                age_s = self._clock() - self._looked_s
                raise identity_errors.identities_stale(min(age_s, 1e6)) from error

    async def look(self) -> None:
        """See what others changed, and this process itself.

        Raises:
            Unavailable: the database does not answer.
        """
        begun_before_count = self._begun_count
        async with self._turn:
            await self._look(begun_before_count)

    async def _look(self, begun_before_count: int) -> None:
        """Look, unless another did who began after so many looks; then what came of that holds here too."""
        if self._ended_number > begun_before_count:
            if self._failure is not None:
                raise self._failure.with_traceback(None)
            return
        self._begun_count += 1
        began_s = self._clock()
        try:
            await self._read()
        except ApiError as error:
            self._ended_number, self._failure = self._begun_count, error
            raise
        self._ended_number, self._failure, self._looked_s = self._begun_count, None, began_s

    async def _read(self) -> None:
        since, known = self._now() - _REMEMBERS, self._known
        if await self._store.read(lambda tx: tx.identity_revision()) != known.revision:
            found = await self._store.read(lambda tx: tx.who_may_call(known.revision, since))
            self._known = known.with_changes(found)

    async def user(self, user_id: str) -> User | None:
        """Return a user who is not deleted; looks once if there is none, since they may be new."""
        return self._known.users.get(user_id) or (
            self._known.users.get(user_id) if await self._looked_for_news() else None
        )

    async def api_key(self, key_id: str) -> ApiKey | None:
        """Return a key that is not revoked; looks once if there is none, since it may be new."""
        return self._known.api_keys.get(key_id) or (
            self._known.api_keys.get(key_id) if await self._looked_for_news() else None
        )

    def is_revoked(self, session_id: str) -> bool:
        """Whether a session was ended."""
        return session_id in self._known.revoked_session_ids

    async def _looked_for_news(self) -> bool:
        begun_before_count = self._begun_count
        async with self._turn:
            if self._clock() - self._looked_s < _UNKNOWN_LOOK_EVERY_S:
                return True  # somebody else looked meanwhile, or has just now
            await self._look(begun_before_count)
        return True

    def used(self, key_id: str) -> None:
        """Take note that a key is used; written now and then by `run`."""
        self._used_at[key_id] = self._now()

    async def run(self) -> None:
        """Keep level with the database until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self.look()
                if self._clock() - self._uses_written_s >= _USES_WRITTEN_EVERY_S:
                    await self.write_uses()
            except ApiError as error:
                _log.warning("who may call cannot be read: %s", error.message)

    async def write_uses(self) -> None:
        """Write when keys were last used.

        Raises:
            Unavailable: the database does not answer; it is written with the next ones.
        """
        self._uses_written_s = self._clock()
        if not self._used_at:
            return
        used_at, self._used_at = self._used_at, {}
        try:
            await self._store.run(lambda tx: tx.note_api_keys_used(used_at))
        except ApiError:
            self._used_at = used_at | self._used_at
            raise
