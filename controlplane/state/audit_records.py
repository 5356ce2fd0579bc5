"""The transaction's methods about the audit trail and sealed secrets. Docstrings: the interface's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

from sqlalchemy import Connection

from controlplane.domain.audit import AuditChain, AuditEnd, AuditFilter, AuditRecord
from controlplane.domain.query import Cursor, Page
from controlplane.state import audit_rows, secret_rows
from controlplane.state.audit_interface import SealedSecret

ResultT = TypeVar("ResultT")


class AuditRecords(ABC):
    """A part of `SqlTransaction`."""

    _read_only: bool

    @abstractmethod
    async def _read(self, function: Callable[[Connection], ResultT]) -> ResultT: ...

    @abstractmethod
    async def _write(self, function: Callable[[Connection], ResultT]) -> ResultT: ...

    async def audit_chain(self, writer_id: str) -> AuditChain | None:
        """Read where a process's chain begins and ends."""
        to_change = not self._read_only
        return await self._read(lambda connection: audit_rows.chain(connection, writer_id, to_change=to_change))

    async def audit_chains(self) -> Sequence[AuditChain]:
        """Those of all processes that wrote."""
        return await self._read(audit_rows.chains)

    async def chainless_audit_writers(self) -> Sequence[str]:
        """Processes that have records, but no chain."""
        return await self._read(audit_rows.chainless_writers)

    async def append_audit(self, chain: AuditChain, records: Sequence[AuditRecord]) -> None:
        """Add records."""
        await self._write(lambda connection: audit_rows.append(connection, chain, records))

    async def end_audit(self, ends: Sequence[tuple[AuditEnd, str]]) -> None:
        """Complete records."""
        await self._write(lambda connection: audit_rows.end(connection, ends))

    async def list_audit(self, wanted: AuditFilter, after: Cursor | None, limit: int) -> Page[AuditRecord]:
        """Read a page, newest first."""
        return await self._read(lambda connection: audit_rows.page(connection, wanted, after, limit))

    async def audit_after(self, wanted: AuditFilter, after: Cursor | None, limit: int) -> Sequence[AuditRecord]:
        """Read some, oldest first."""
        return await self._read(lambda connection: audit_rows.after(connection, wanted, after, limit))

    async def audit_of_writer(self, writer_id: str, after_number: int, limit: int) -> Sequence[AuditRecord]:
        """Read some of one process."""
        return await self._read(lambda connection: audit_rows.of_writer(connection, writer_id, after_number, limit))

    async def newest_audit_before(self, writer_id: str, before: datetime, limit: int) -> AuditRecord | None:
        """Of a process's first records, the last of those that are all older."""
        return await self._read(lambda connection: audit_rows.newest_before(connection, writer_id, before, limit))

    async def forget_audit(self, chain: AuditChain) -> int:
        """Remove a process's records."""
        return await self._write(lambda connection: audit_rows.forget(connection, chain))

    # -- secrets

    async def sealed_secrets(self, kind: str) -> Mapping[str, SealedSecret]:
        """All of a kind."""
        return await self._read(lambda connection: secret_rows.all_of(connection, kind))

    async def add_secret(self, kind: str, secret_id: str, sealed: bytes, at: datetime) -> None:
        """Keep one."""
        await self._write(lambda connection: secret_rows.add(connection, kind, secret_id, sealed, at))

    async def replace_secret(self, kind: str, secret_id: str, sealed: bytes) -> None:
        """Keep another sealed value."""
        await self._write(lambda connection: secret_rows.replace(connection, kind, secret_id, sealed))

    async def reseal_vms(self, after_id: str, limit: int) -> str:
        """Seal what is not sealed with the newest key of some VMs."""
        return await self._write(lambda connection: secret_rows.reseal_vms(connection, after_id, limit))

    async def reseal_operations(self, after_id: str, limit: int) -> str:
        """The same of operations."""
        return await self._write(lambda connection: secret_rows.reseal_operations(connection, after_id, limit))
