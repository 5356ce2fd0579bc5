"""The machines that joined, as a process knows them: asked at every call of a host, so never from the database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import structlog

from controlplane.domain.machines import MachineRecord, Revocation
from controlplane.state.interface import Store, Transaction
from limiquantix.errors import ApiError

REFRESH_S: Final = 2.0
"""After so long, at most, what one control plane was told of is known to all."""
UNKNOWN_LOOK_EVERY_S: Final = 0.5
"""A host that was removed keeps its certificate for days, and must not make this process read at each of its calls."""
_MAX_MISSED: Final = 10_000
STALE_S: Final = 60.0
"""A process that could not read for so long says so: certificates that were revoked meanwhile are good here still. That
is better than to turn hosts away, and end their leases, because the database is being restarted."""

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class MachineMemory:
    """Owned by the event loop's thread; `run` keeps it fresh.

    Attributes:
        newest_revocation: when certificates of a host were last revoked.
    """

    store: Store
    clock: Callable[[], float] = time.monotonic
    newest_revocation: datetime | None = None
    _machines: dict[str, MachineRecord] = field(default_factory=dict)
    _missed_s: dict[str, float] = field(default_factory=dict)
    """When hosts that are not known were last looked for."""
    _revision: int = -1
    _read_s: float | None = None

    async def refresh(self) -> None:
        """Read what changed: one number, mostly.

        Raises:
            ApiError: the database does not answer; what was known before stays.
        """
        began_s = self.clock()
        revision = await self.store.read(lambda tx: tx.machines_revision())
        if revision != self._revision:
            # The number first: what changes between the two is read again, and nothing is missed.
            found, revocations = await self.store.read(_machines_and_revocations)
            self._machines = {machine.node_id: machine for machine in found}
            self._revision = revision
            self.newest_revocation = max((each.refused_before for each in revocations), default=None)
            self._missed_s.clear()
        self._read_s = began_s

    async def of(self, node_id: str) -> MachineRecord | None:
        """Return what is known of a host; one that joined since the last look is looked for.

        Raises:
            ApiError: it is not known here, and the database does not answer.
        """
        known = self._machines.get(node_id)
        if known is not None or self.clock() - self._missed_s.get(node_id, float("-inf")) < UNKNOWN_LOOK_EVERY_S:
            return known
        found = await self.store.read(lambda tx: tx.get_machine(node_id))
        if found is not None:
            # A refresh meanwhile may have read what was newer.
            return self._machines.setdefault(node_id, found)
        if len(self._missed_s) >= _MAX_MISSED:
            self._missed_s.clear()
        self._missed_s[node_id] = self.clock()
        return self._machines.get(node_id)

    async def run(self) -> None:
        """Refresh until cancelled."""
        while True:
            await asyncio.sleep(REFRESH_S)
            try:
                await self.refresh()
            except ApiError as error:
                if self._read_s is None or self.clock() - self._read_s > STALE_S:
                    _log.warning("revoked_certificates_not_read", reason=error.reason, message=error.message)


async def _machines_and_revocations(tx: Transaction) -> tuple[Sequence[MachineRecord], Sequence[Revocation]]:
    return await tx.machines(), await tx.revocations()
