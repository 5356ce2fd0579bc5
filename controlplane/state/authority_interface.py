"""What a transaction does with the authority, join tokens and machines; a part of `Transaction`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from controlplane.domain.machines import JoinToken, MachineRecord, Revocation, StoredAuthority


class AuthorityTransaction(Protocol):
    """Who is which machine."""

    async def authority(self) -> StoredAuthority | None:
        """Read the cluster's authority; None before there is one."""
        ...

    async def insert_authority(self, made: StoredAuthority) -> bool:
        """Keep the first authority; False if there is one already, which stays."""
        ...

    async def update_authority_key(self, sealed_key: bytes) -> None:
        """Write its key, sealed anew."""
        ...

    async def insert_join_token(self, token: JoinToken) -> None:
        """Add a token."""
        ...

    async def get_join_token(self, token_id: str) -> JoinToken | None:
        """Read one token; None if there is none."""
        ...

    async def list_join_tokens(self) -> Sequence[JoinToken]:
        """Read all tokens that are kept, newest first."""
        ...

    async def use_join_token(self, token_id: str, node_id: str, now: datetime) -> bool:
        """Use a token up; False if it is not good (any more). Of any number of callers one gets True."""
        ...

    async def revoke_join_token(self, token_id: str, now: datetime) -> bool:
        """Have a token be of no use; False if there is none that is unused."""
        ...

    async def forget_join_tokens(self, expired_before: datetime) -> int:
        """Remove tokens that expired long ago; returns how many."""
        ...

    async def get_machine(self, node_id: str) -> MachineRecord | None:
        """Read what is known of a host that joined; None if none did."""
        ...

    async def find_machine(self, hostname: str) -> MachineRecord | None:
        """Find the host that joined with this name; None if none did."""
        ...

    async def machines(self) -> Sequence[MachineRecord]:
        """Read all."""
        ...

    async def machines_revision(self) -> int:
        """Read a number that grows whenever a host joins, is forgotten, or has its certificates refused."""
        ...

    async def put_machine(self, machine: MachineRecord) -> None:
        """Write what is known of a host, whether it is new or not; `refused_before` never becomes earlier.

        Raises:
            AlreadyExists: another host joined with its name.
        """
        ...

    async def refuse_certificates(self, node_id: str, issued_before: datetime) -> bool:
        """Have certificates that were issued before then be good no more; False if no such host joined."""
        ...

    async def remove_machine(self, node_id: str, now: datetime) -> bool:
        """Forget a host but for the fact that no certificate from before now is good. False if there is none."""
        ...

    async def revocations(self) -> Sequence[Revocation]:
        """Read whose certificates are good no more: of hosts, and of those that were forgotten in the last weeks."""
        ...

    async def departure(self, node_id: str) -> Revocation | None:
        """Read what is remembered of a host that was forgotten."""
        ...
