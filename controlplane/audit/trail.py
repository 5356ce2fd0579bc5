"""Writes the audit trail of one process: what begins, before it does; how it ended; and what was refused.

Records that wait go into one transaction together, and nothing waits for more of them to come. A change waits for its
beginning to be on record, not for its end: an end that a crash loses leaves the outcome unknown, and the operation
tells.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

import structlog
from google.protobuf.message import Message

from controlplane.audit.chain import ChainKey
from controlplane.audit.describing import MAX_TEXT_CHARS, bounded, entry_of
from controlplane.audit.refusals import Refusals
from controlplane.domain import errors
from controlplane.domain.audit import AuditChain, AuditEnd, AuditEntry, AuditRecord
from controlplane.domain.principal import Principal
from controlplane.state.interface import Store, Transaction
from limiquantix.errors import ApiError
from limiquantix.rpc.pipeline import CallOrigin

MAX_BATCH: Final = 500
"""Records in one transaction."""
MAX_WAITING: Final = 10_000
"""Records, and ends, that wait for the database; beyond, changes are refused."""

_TIDY_EVERY_S: Final = 60.0
_FORGOTTEN_AT_ONCE: Final = 1000

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Waiting:
    entry: AuditEntry
    written: asyncio.Future[None]


class Trail:
    """The `AuditTrail` of the guard. Owned by the event loop's thread.

    Args:
        key: asked for whenever something is written, since it lies in the store, sealed.
        retention: older records are forgotten by `run`.
    """

    def __init__(
        self, store: Store, key: Callable[[], ChainKey], now: Callable[[], datetime], retention: timedelta
    ) -> None:
        self.writer_id = str(uuid.uuid4())
        self._store = store
        self._key = key
        self._now = now
        self._retention = retention
        self._waiting: deque[_Waiting] = deque()
        self._ends: deque[AuditEnd] = deque()
        self._digests: dict[str, str] = {}
        """Of the records that have not ended, by id."""
        self._refusals = Refusals()
        self._writing: asyncio.Task[None] | None = None

    async def begin(
        self, principal: Principal | None, method: str, request: Message, resource: str, origin: CallOrigin
    ) -> str:
        """Write down that a change begins; see the interface."""
        entry = entry_of(principal, method, request, resource, origin, self._now())
        await self.write(entry)
        return entry.id

    async def write(self, entry: AuditEntry) -> None:
        """Write down what begins, and is no call; raises as `begin`."""
        await asyncio.shield(self._put(entry).written)

    async def end(self, record_id: str, code: int, message: str) -> None:
        """Complete a record, soon; see the interface. Does not wait for it, and a second end changes nothing."""
        if record_id not in self._digests:
            return
        if len(self._ends) >= MAX_WAITING:
            raise errors.state_unavailable(f"{MAX_WAITING} ends of audit records wait for it already")
        self._ends.append(AuditEnd(record_id, self._now(), code, bounded(message, MAX_TEXT_CHARS)))
        self._write_soon()

    async def refused(
        self,
        principal: Principal | None,
        method: str,
        request: Message | None,
        resource: str,
        origin: CallOrigin,
        code: int,
        message: str,
    ) -> None:
        """Write down that a call was refused, soon; those that are alike are counted for a minute."""
        described = entry_of(principal, method, request, resource, origin, self._now())
        refusal = replace(described, is_refusal=True, code=code, message=bounded(message, MAX_TEXT_CHARS))
        now_s = time.monotonic()
        for entry in (*self._refusals.told(now_s), self._refusals.note(refusal, now_s)):
            if entry is not None:
                self._put(self._named_anew(entry))

    async def settle(self) -> None:
        """Wait until what is known so far is written, counted refusals too.

        Raises:
            Unavailable: the database does not answer.
        """
        for entry in self._refusals.told():
            self._put(self._named_anew(entry))
        self._write_soon()
        if self._writing is not None:
            await asyncio.shield(self._writing)
        if self._ends or self._waiting:
            raise errors.state_unavailable("audit records wait to be written")

    async def run(self) -> None:
        """Keep it tidy until cancelled: write what was counted, retry ends, forget what is old."""
        while True:
            await asyncio.sleep(_TIDY_EVERY_S)
            try:
                await self.settle()
                await self.forget()
            except ApiError as error:
                _log.warning("audit_trail_not_tidied", error=error.message)

    async def forget(self) -> int:
        """Remove records older than the retention; returns how many."""
        before, removed_count = self._now() - self._retention, 0
        for chain in await self._store.read(lambda tx: tx.audit_chains()):
            while removed := await self._store.run(lambda tx, chain=chain: self._forget(tx, chain.writer_id, before)):  # type: ignore[misc]
                removed_count += removed
        return removed_count

    async def _forget(self, tx: Transaction, writer_id: str, before: datetime) -> int:
        chain = await tx.audit_chain(writer_id)
        last = await tx.newest_audit_before(writer_id, before, _FORGOTTEN_AT_ONCE)
        if chain is None or last is None:
            return 0
        return await tx.forget_audit(self._key().forgotten(chain, last))

    # -- writing

    def _named_anew(self, entry: AuditEntry) -> AuditEntry:
        return replace(entry, id=str(uuid.uuid4()))

    def _put(self, entry: AuditEntry) -> _Waiting:
        if len(self._waiting) >= MAX_WAITING:
            raise errors.state_unavailable(f"{MAX_WAITING} audit records wait for it already")
        waiting = _Waiting(entry, asyncio.get_running_loop().create_future())
        waiting.written.add_done_callback(_take_note)
        self._waiting.append(waiting)
        self._write_soon()
        return waiting

    def _write_soon(self) -> None:
        if (self._waiting or self._ends) and (self._writing is None or self._writing.done()):
            self._writing = asyncio.get_running_loop().create_task(self._write_all())

    async def _write_all(self) -> None:
        """Write what waits, and what comes meanwhile; ends that cannot be written stay for the next time."""
        while self._waiting or self._ends:
            batch = [self._waiting.popleft() for _ in range(min(MAX_BATCH, len(self._waiting)))]
            ends = [self._ends[index] for index in range(min(MAX_BATCH, len(self._ends)))]
            try:
                records = await self._write([each.entry for each in batch], ends)
            except Exception as error:  # noqa: BLE001 - the callers', who each wait for it
                _log.warning("audit_records_not_written", record_count=len(batch), error=str(error))
                for each in batch:
                    each.written.set_exception(_as_refusal(error))
                if not self._waiting:
                    return
                continue
            for end in ends:
                self._ends.popleft()
                self._digests.pop(end.record_id, None)
            for each, record in zip(batch, records, strict=True):
                if not record.entry.is_refusal:
                    self._digests[record.entry.id] = record.digest
                each.written.set_result(None)

    async def _write(self, entries: Sequence[AuditEntry], ends: Sequence[AuditEnd]) -> Sequence[AuditRecord]:
        key = self._key()
        signed = [(end, key.ended(self._digests[end.record_id], end)) for end in ends if end.record_id in self._digests]

        async def work(tx: Transaction) -> Sequence[AuditRecord]:
            records: Sequence[AuditRecord] = ()
            if entries:
                chain = await tx.audit_chain(self.writer_id) or AuditChain(self.writer_id)
                longer, records = key.extended(chain, entries)
                await tx.append_audit(longer, records)
            await tx.end_audit(signed)
            return records

        return await self._store.run(work)


def _as_refusal(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    return errors.state_unavailable("the audit trail cannot be written, and nothing is changed without it")


def _take_note(written: asyncio.Future[None]) -> None:
    """Look at the outcome, for those that nobody waits for; it was logged."""
    if not written.cancelled():
        written.exception()
