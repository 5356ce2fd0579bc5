"""What decisions about access rest on, kept in memory and level with the database.

A counter in the database tells of every change of projects, folders, roles and bindings, and of VMs that are moved
between folders. It is read every `REFRESH_S`, by every control plane, and at once by the one that made the change.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from controlplane.access.tree import AccessTree
from controlplane.domain import errors
from controlplane.domain.access import Place
from controlplane.state.interface import Store
from limiquantix.errors import ApiError, Unavailable

_log = structlog.get_logger(__name__)

REFRESH_S = 2.0
"""No decision rests on facts that were checked longer ago; what was taken away is gone everywhere after that."""
REPEATED_CHECK_S = 0.2
"""So often at most a caller that names what is not known has the counter read."""
MAX_PLACES = 200_000
"""VMs of which is remembered where they are, about 400 bytes each."""


class AccessMemory:
    """The facts, as this process knows them."""

    def __init__(self, store: Store, now_s: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._now_s = now_s
        self._tree: AccessTree | None = None
        self._checked_s = 0.0
        self._refreshing = asyncio.Lock()
        self._begun_count = 0
        self._failure: ApiError | None = None
        """Of the reading that was begun last, if it failed."""
        self._places: dict[str, Place] = {}

    @property
    def latest(self) -> AccessTree:
        """The facts as they were last read; for what must not wait, and runs after `tree`.

        Raises:
            Unavailable: nothing was read yet.
        """
        if self._tree is None:
            raise errors.state_unavailable("nothing is known of roles yet; the control plane is starting")
        return self._tree

    async def tree(self) -> AccessTree:
        """The facts, checked not longer ago than `REFRESH_S`.

        Raises:
            Unavailable: the database does not answer, so that nobody may do anything.
        """
        tree = self._tree
        if tree is not None and self._now_s() - self._checked_s <= REFRESH_S:
            return tree
        await self._refresh(REFRESH_S)
        return self.latest

    async def rechecked(self) -> AccessTree:
        """The facts, checked a moment ago: before something is said not to exist."""
        await self._refresh(REPEATED_CHECK_S)
        return self.latest

    async def refresh(self) -> None:
        """Read what changed, now: whoever made a change calls this before the answer."""
        await self._refresh(-1.0)

    async def place_of_vm(self, vm_id: str) -> Place | None:
        """Say where a VM is, or was if it is gone; None if nothing is known of it."""
        known = self._places.get(vm_id)
        if known is not None:
            return known
        revision = self.latest.revision
        place = await self._store.read(lambda tx: tx.place_of_vm(vm_id))
        if place is None:
            return await self._store.read(lambda tx: tx.last_place_of_vm(vm_id))
        if revision == self.latest.revision:
            if len(self._places) >= MAX_PLACES:
                self._places.clear()
            self._places[vm_id] = place
        return place

    def known_place(self, vm_id: str) -> Place | None:
        """Where a VM is, if that was asked before; for what must not wait."""
        return self._places.get(vm_id)

    async def keep_level(self) -> None:
        """Check again and again until cancelled: streams that are open decide by `latest`, which no call refreshes."""
        while True:
            try:
                await self._refresh(REFRESH_S / 2)
            except Unavailable as error:
                _log.warning("roles_not_refreshed", error=error.message)
            await asyncio.sleep(REFRESH_S / 2)

    async def _refresh(self, older_than_s: float) -> None:
        asked_s, begun_before_count = self._now_s(), self._begun_count
        async with self._refreshing:
            if self._tree is not None and self._is_checked_since(asked_s, older_than_s):
                return
            if self._failure is not None and self._begun_count > begun_before_count:
                # All who waited for it are told: one after the other, each would wait as long for the same.
                raise self._failure.with_traceback(None)
            begun_s, self._begun_count, self._failure = self._now_s(), self._begun_count + 1, None
            try:
                await self._read()
            except ApiError as error:
                self._failure = error
                raise
            self._checked_s = begun_s

    async def _read(self) -> None:
        known = -1 if self._tree is None else self._tree.revision
        if await self._store.read(lambda tx: tx.access_revision()) != known:
            facts = await self._store.read(lambda tx: tx.access_facts())
            if facts.revision != known:
                self._tree = AccessTree(facts)
                self._places.clear()

    def _is_checked_since(self, asked_s: float, older_than_s: float) -> bool:
        """Whether another caller, who was first, had it checked after this one asked, or lately enough."""
        return self._checked_s >= asked_s or 0 <= self._now_s() - self._checked_s <= older_than_s
