"""Reads the audit trail: pages, exports, and the check that nothing is missing from it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Protocol

from controlplane.audit.chain import ChainCheck, ChainKey
from controlplane.domain.audit import AuditChain, AuditFault, AuditFilter, AuditOutcome, AuditRecord
from controlplane.domain.operation import Operation, OperationFilter
from controlplane.domain.query import Cursor, Page
from controlplane.state.interface import Store, Transaction

BATCH_COUNT: Final = 500
"""Records of one read of an export or a check."""
MAX_FAULTS: Final = 100
_TRIES: Final = 3
_OPERATION_WITHIN: Final = timedelta(seconds=60)
"""From when a call begins until its operation is there, at most."""
_LOOKED_AT: Final = 20


class Settling(Protocol):
    """What writes the trail of this process."""

    async def settle(self) -> None:
        """Wait until what is known so far is written."""
        ...


@dataclass(frozen=True, slots=True)
class AuditView:
    """A record, and the operation by which it happens or happened, if its outcome is not on record."""

    record: AuditRecord
    operation_id: str = ""


@dataclass(frozen=True, slots=True)
class AuditVerdict:
    """What a check found; the first `MAX_FAULTS` faults."""

    record_count: int
    writer_count: int
    faults: Sequence[AuditFault]


@dataclass(frozen=True, slots=True)
class AuditReader:
    """The use cases of audit records."""

    store: Store
    trail: Settling
    key: Callable[[], ChainKey]

    async def list(self, wanted: AuditFilter, after: Cursor | None, limit: int) -> Page[AuditView]:
        """Read one page, newest first."""
        await self.trail.settle()

        async def work(tx: Transaction) -> Page[AuditView]:
            page = await tx.list_audit(wanted, after, limit)
            return Page([await _view(tx, each) for each in page.items], page.next_cursor, page.total_count)

        return await self.store.read(work)

    async def export(self, wanted: AuditFilter) -> AsyncIterator[Sequence[AuditView]]:
        """Read all, oldest first, a batch at a time."""
        await self.trail.settle()
        after: Cursor | None = None
        while True:
            found = await self._batch(wanted, after)
            if found:
                yield found
            if len(found) < BATCH_COUNT:
                return
            last = found[-1].record.entry
            after = Cursor(last.begun_at, last.id)

    async def verify(self) -> AuditVerdict:
        """Compare all chains with their records."""
        await self.trail.settle()
        faults = [
            AuditFault(writer_id, 0, "the chain of these records is missing")
            for writer_id in await self.store.read(lambda tx: tx.chainless_audit_writers())
        ]
        chains = await self.store.read(lambda tx: tx.audit_chains())
        record_count = 0
        for chain in chains:
            count, found = await self._verify(chain)
            record_count += count
            faults += found
        return AuditVerdict(record_count, len(chains), faults[:MAX_FAULTS])

    async def _batch(self, wanted: AuditFilter, after: Cursor | None) -> Sequence[AuditView]:
        async def work(tx: Transaction) -> Sequence[AuditView]:
            return [await _view(tx, each) for each in await tx.audit_after(wanted, after, BATCH_COUNT)]

        return await self.store.read(work)

    async def _verify(self, chain: AuditChain) -> tuple[int, Sequence[AuditFault]]:
        """Check one chain; again if records were forgotten meanwhile, which looks as if they were missing."""
        for _ in range(_TRIES):
            count, faults = await self._compare(chain)
            if not faults:
                return count, faults
            now = await self._chain(chain.writer_id)
            if now is None or now.forgotten_number == chain.forgotten_number:
                return count, faults
            chain = now
        return count, faults

    async def _compare(self, chain: AuditChain) -> tuple[int, Sequence[AuditFault]]:
        check, faults, count = ChainCheck(self.key(), chain), list[AuditFault](), 0
        while check.number < chain.number and len(faults) < MAX_FAULTS:
            records = await self._records(chain.writer_id, check.number)
            here = [each for each in records if each.number <= chain.number]
            faults += check.faults_of(here)
            count += len(here)
            if len(here) < BATCH_COUNT:
                break
        faults += check.faults_at_end()
        return count, faults

    async def _records(self, writer_id: str, after_number: int) -> Sequence[AuditRecord]:
        return await self.store.read(lambda tx: tx.audit_of_writer(writer_id, after_number, BATCH_COUNT))

    async def _chain(self, writer_id: str) -> AuditChain | None:
        return await self.store.read(lambda tx: tx.audit_chain(writer_id))


async def _view(tx: Transaction, record: AuditRecord) -> AuditView:
    if record.outcome is not AuditOutcome.UNKNOWN:
        return AuditView(record)
    operation = await _operation_of(tx, record)
    return AuditView(record, "" if operation is None else operation.id)


async def _operation_of(tx: Transaction, record: AuditRecord) -> Operation | None:
    """Find the operation that a call made: by its request id, or else the first on what it touched since it began."""
    entry = record.entry
    principal = f"{entry.principal_kind}:{entry.principal_name}"
    if entry.request_id:
        return await tx.operation_of_request(principal, entry.request_id)
    until = entry.begun_at + _OPERATION_WITHIN
    for resource in entry.resources:
        wanted = OperationFilter(resource_id=resource.partition("/")[2])
        page = await tx.list_operations(wanted, Cursor(until, ""), _LOOKED_AT)
        for operation in reversed(page.items):
            if operation.created_at >= entry.begun_at and operation.principal == principal:
                return operation
    return None
