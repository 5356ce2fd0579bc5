"""What a transaction does with leadership, fences and what hosts told of their guards; a part of `Transaction`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Protocol

from controlplane.domain.fencing import Counters, Fence, FenceFilter, HaSettings, Leadership, Marks, NodeGuard
from controlplane.domain.query import Cursor, Page
from controlplane.domain.vm import Vm


class HaTransaction(Protocol):
    """Leadership, fences, guards, settings."""

    async def leadership(self) -> Leadership:
        """Read who decides."""
        ...

    async def take_leadership(self, leader_id: str, hostname: str, at: datetime) -> Leadership:
        """Begin a new epoch, larger than every one before; the process that had the last one can write nothing more."""
        ...

    async def require_epoch(self, epoch: int) -> None:
        """Hold the epoch until the transaction ends: nobody else can begin one meanwhile.

        Raises:
            Aborted: a newer epoch was begun, reason STALE_EPOCH; whoever asked decides no more.
        """
        ...

    async def ha_settings(self) -> HaSettings:
        """Read the settings."""
        ...

    async def update_ha_settings(self, settings: HaSettings) -> HaSettings:
        """Write settings that were read before, and return them with their new `version`; the log of events has it.

        Raises:
            Aborted: they were changed since.
        """
        ...

    async def declare_wait(self, wait_ms: int, *, may_shorten: bool = False) -> int:
        """Have `longest_wait_ms` of the settings be no less than this; returns what it is then.

        Changes no version, and nothing that hosts are told.

        Args:
            may_shorten: it becomes this even if it was more. Unsafe while a process lives, or may have granted a lease
                that lasts still, whose times need more.
        """
        ...

    async def raise_counters(self, known: Counters) -> Counters:
        """Have the database count on from numbers that others were told, where they are larger than it knows.

        It knows of less after it was restored from an older backup. Nothing ever becomes smaller. The log of events has
        it (HA_COUNTERS_RAISED).

        Returns:
            Those that became larger. The version of the settings becomes one more than is known, since what a host
            knows under that may not be what the settings say.
        """
        ...

    async def open_fence(self, fence: Fence) -> Fence:
        """Record the intent to fence a node, with the next token, which is the node's once it is over; returns it.

        The log of events has it (NODE_FENCING). The node's record has a new version since.

        Raises:
            Aborted: the node has a current fence, reason FENCE_EXISTS.
            NotFound: there is no such node.
        """
        ...

    async def get_fence(self, fence_id: str) -> Fence | None:
        """Read one; None if there is none. In a transaction that writes, nobody changes it until that ends."""
        ...

    async def update_fence(self, fence: Fence) -> Fence:
        """Write one that was read before, and return it with its new `version`.

        Tells nothing in the log of events; the caller does.

        Raises:
            Aborted: it was changed since; with reason FENCE_OBJECTED, somebody heard the node, and it cannot be proven
                by any method but an operator's word.
        """
        ...

    async def current_fences(self) -> Sequence[Fence]:
        """Those that are open or proven, oldest first."""
        ...

    async def list_fences(self, wanted: FenceFilter, after: Cursor | None, limit: int) -> Page[Fence]:
        """Read up to `limit` fences before the cursor, newest first."""
        ...

    async def object_to_fences(self, node_ids: Collection[str], heard_by: str) -> Sequence[str]:
        """Note in the fences of these nodes that they are heard; returns the nodes of which nobody had said so.

        In those that are open, and in those by which only protected VMs are proven dead.
        """
        ...

    async def forget_fences(self, ended_before: datetime) -> int:
        """Remove those that ended before; returns how many. The newest of a node stays, for its token."""
        ...

    async def marks(self) -> Marks:
        """Read what a process that grants leases must know; one small query or two."""
        ...

    async def node_guards(self) -> Sequence[NodeGuard]:
        """What is recorded of every host's guard."""
        ...

    async def note_guards(self, guards: Sequence[NodeGuard]) -> None:
        """Write what hosts told; a smaller `ha_version` than is recorded is not taken, nor an ability heard earlier."""
        ...

    async def vms_to_restart(self, node_ids: Collection[str]) -> Sequence[Vm]:
        """Managed VMs on these nodes that shall run and whose policy has them restarted elsewhere."""
        ...
