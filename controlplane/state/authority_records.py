"""The transaction's methods about the authority, join tokens and machines. Docstrings: the interface's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeVar

from sqlalchemy import Connection

from controlplane.domain.machines import JoinToken, MachineRecord, Revocation, StoredAuthority
from controlplane.state import authority_rows

ResultT = TypeVar("ResultT")


class AuthorityRecords(ABC):
    """A part of `SqlTransaction`."""

    @abstractmethod
    async def _read(self, function: Callable[[Connection], ResultT]) -> ResultT: ...

    @abstractmethod
    async def _write(self, function: Callable[[Connection], ResultT]) -> ResultT: ...

    async def authority(self) -> StoredAuthority | None:
        """Read the authority."""
        return await self._read(authority_rows.get_authority)

    async def insert_authority(self, made: StoredAuthority) -> bool:
        """Keep the first authority."""
        return await self._write(lambda connection: authority_rows.insert_authority(connection, made))

    async def update_authority_key(self, sealed_key: bytes) -> None:
        """Write its key."""
        await self._write(lambda connection: authority_rows.update_authority_key(connection, sealed_key))

    async def insert_join_token(self, token: JoinToken) -> None:
        """Add a token."""
        await self._write(lambda connection: authority_rows.insert_token(connection, token))

    async def get_join_token(self, token_id: str) -> JoinToken | None:
        """Read a token."""
        return await self._read(lambda connection: authority_rows.get_token(connection, token_id))

    async def list_join_tokens(self) -> Sequence[JoinToken]:
        """Read all tokens."""
        return await self._read(authority_rows.list_tokens)

    async def use_join_token(self, token_id: str, node_id: str, now: datetime) -> bool:
        """Use a token up."""
        return await self._write(lambda connection: authority_rows.use_token(connection, token_id, node_id, now))

    async def revoke_join_token(self, token_id: str, now: datetime) -> bool:
        """Have a token be of no use."""
        return await self._write(lambda connection: authority_rows.revoke_token(connection, token_id, now))

    async def forget_join_tokens(self, expired_before: datetime) -> int:
        """Remove old tokens."""
        return await self._write(lambda connection: authority_rows.forget_tokens(connection, expired_before))

    async def get_machine(self, node_id: str) -> MachineRecord | None:
        """Read a host."""
        return await self._read(lambda connection: authority_rows.get_machine(connection, node_id))

    async def find_machine(self, hostname: str) -> MachineRecord | None:
        """Find a host by its name."""
        return await self._read(lambda connection: authority_rows.find_machine(connection, hostname))

    async def machines(self) -> Sequence[MachineRecord]:
        """Read all hosts."""
        return await self._read(authority_rows.all_machines)

    async def machines_revision(self) -> int:
        """Read how often machines changed."""
        return await self._read(authority_rows.machines_revision)

    async def put_machine(self, machine: MachineRecord) -> None:
        """Write a host."""
        await self._write(lambda connection: authority_rows.put_machine(connection, machine))

    async def refuse_certificates(self, node_id: str, issued_before: datetime) -> bool:
        """Revoke older certificates of a host."""
        return await self._write(
            lambda connection: authority_rows.refuse_certificates(connection, node_id, issued_before)
        )

    async def remove_machine(self, node_id: str, now: datetime) -> bool:
        """Forget a host."""
        return await self._write(lambda connection: authority_rows.remove_machine(connection, node_id, now))

    async def revocations(self) -> Sequence[Revocation]:
        """Read all revocations."""
        return await self._read(authority_rows.all_revocations)

    async def departure(self, node_id: str) -> Revocation | None:
        """Read what is left of a host."""
        return await self._read(lambda connection: authority_rows.get_departure(connection, node_id))
