"""What operations ask before they take room that is kept for VMs of nodes that fail; services answer."""

from __future__ import annotations

from typing import Protocol

from controlplane.domain.vm import Vm
from controlplane.state.interface import Transaction


class RoomRules(Protocol):
    """Asked in the transaction that takes the room, before it holds any node."""

    async def require_for_change(self, tx: Transaction, before: Vm, after: Vm) -> None:
        """Check that a placed VM may become larger, or one that is restarted elsewhere.

        Args:
            before: as it is recorded; held already.

        Raises:
            ResourceExhausted: it would take room that is kept.
        """
        ...

    async def require_for_drain(self, tx: Transaction, node_id: str, target_node_id: str) -> None:
        """Check that a node may be emptied; one that is being emptied may.

        Args:
            target_node_id: the only node that its VMs go to; "" for all.

        Raises:
            NotFound: there is no such node.
            FailedPrecondition: its VMs would take room that is kept.
        """
        ...


class NothingKept:
    """Where no room is kept, everything may take it."""

    async def require_for_change(self, tx: Transaction, before: Vm, after: Vm) -> None:
        """Refuse nothing."""

    async def require_for_drain(self, tx: Transaction, node_id: str, target_node_id: str) -> None:
        """Refuse nothing."""
