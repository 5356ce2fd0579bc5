"""What the guard asks: who calls, what they may do, and who keeps the record of it."""

from __future__ import annotations

from typing import Protocol

from google.protobuf.message import Message

from controlplane.domain.principal import Principal
from limiquantix.rpc.pipeline import CallOrigin


class Authenticator(Protocol):
    """Knows one kind of credential."""

    async def authenticate(self, origin: CallOrigin) -> Principal | None:
        """Find out who calls; None if the call carries no credential of this kind.

        Raises:
            Unauthenticated: it carries one that is not good.
        """
        ...


class CallsNoted(Protocol):
    """Is told over which connections calls are made."""

    def known_called(self, peer: str) -> None:
        """Note a call of somebody known; `peer` as `CallOrigin.peer` has it."""
        ...

    def stranger_called(self, peer: str) -> None:
        """Note a call of somebody unknown that was not one too many."""
        ...


class AuditTrail(Protocol):
    """Keeps a record of what was asked and what became of it."""

    async def begin(
        self, principal: Principal | None, method: str, request: Message, resource: str, origin: CallOrigin
    ) -> str:
        """Write down that a change begins, before it does; returns the record's id.

        Args:
            principal: None for a method that anybody may call, such as a login.
            resource: what is touched, "vm/<id>"; several are separated by a comma; "" for the cluster.

        Raises:
            Unavailable: it cannot be written, and so the change must not happen.
        """
        ...

    async def end(self, record_id: str, code: int, message: str) -> None:
        """Complete the record of a change that ended; `code` is 0 or a `limiquantix.errors.Code`."""
        ...

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
        """Write down that a call was refused; `principal` is None and `request` too if nobody was recognised."""
        ...
