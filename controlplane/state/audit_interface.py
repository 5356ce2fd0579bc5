"""What a transaction does with the audit trail and with sealed keys; parts of `Transaction`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from controlplane.domain.audit import AuditChain, AuditEnd, AuditFilter, AuditRecord
from controlplane.domain.query import Cursor, Page


@dataclass(frozen=True, slots=True)
class SealedSecret:
    """A secret as it is stored."""

    sealed: bytes
    created_at: datetime


class AuditTransaction(Protocol):
    """Audit records are added, ended once, and forgotten; nothing else changes them."""

    async def audit_chain(self, writer_id: str) -> AuditChain | None:
        """Read where a process's chain begins and ends; None if it has none. Held until the transaction ends."""
        ...

    async def audit_chains(self) -> Sequence[AuditChain]:
        """Those of all processes that wrote."""
        ...

    async def chainless_audit_writers(self) -> Sequence[str]:
        """Processes that have records, but no chain."""
        ...

    async def append_audit(self, chain: AuditChain, records: Sequence[AuditRecord]) -> None:
        """Add records, and write where the chain ends since. The caller read the chain in this transaction.

        Raises:
            Aborted: another process appends to this chain.
        """
        ...

    async def end_audit(self, ends: Sequence[tuple[AuditEnd, str]]) -> None:
        """Complete records, each with its digest; one that is complete already stays as it is."""
        ...

    async def list_audit(self, wanted: AuditFilter, after: Cursor | None, limit: int) -> Page[AuditRecord]:
        """Read up to `limit` records before the cursor, newest first."""
        ...

    async def audit_after(self, wanted: AuditFilter, after: Cursor | None, limit: int) -> Sequence[AuditRecord]:
        """Read up to `limit` records after the cursor, oldest first."""
        ...

    async def audit_of_writer(self, writer_id: str, after_number: int, limit: int) -> Sequence[AuditRecord]:
        """Read up to `limit` records of one process after a number, in their order."""
        ...

    async def newest_audit_before(self, writer_id: str, before: datetime, limit: int) -> AuditRecord | None:
        """Of the first `limit` records of a process, the last that are all older; None if the first is not."""
        ...

    async def forget_audit(self, chain: AuditChain) -> int:
        """Remove a process's records up to `forgotten_number` and write the chain; returns how many."""
        ...


class SecretTransaction(Protocol):
    """Keys and other small secrets, sealed."""

    async def sealed_secrets(self, kind: str) -> Mapping[str, SealedSecret]:
        """All of a kind, by id."""
        ...

    async def add_secret(self, kind: str, secret_id: str, sealed: bytes, at: datetime) -> None:
        """Keep one.

        Raises:
            Aborted: there is one of that kind and id.
        """
        ...

    async def replace_secret(self, kind: str, secret_id: str, sealed: bytes) -> None:
        """Keep another sealed value for the same secret."""
        ...

    async def reseal_vms(self, after_id: str, limit: int) -> str:
        """Seal what is not sealed with the newest key of up to `limit` VMs, by id; repeatable, changes no version.

        Returns:
            The id to go on after; "" at the end.
        """
        ...

    async def reseal_operations(self, after_id: str, limit: int) -> str:
        """The same of operations."""
        ...
