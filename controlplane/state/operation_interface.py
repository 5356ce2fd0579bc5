"""What a transaction does with operations and what they leave behind; a part of `interface.Transaction`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Protocol

from controlplane.domain.migration import Migration
from controlplane.domain.operation import DepartedVm, Operation, OperationFilter, Replica
from controlplane.domain.query import Cursor, Page


class OperationTransaction(Protocol):
    """Operations, the processes that run them, migrations, and VMs that left."""

    async def insert_operation(self, operation: Operation) -> None:
        """Add an operation.

        Raises:
            Aborted: the same request made one at the same moment.
        """
        ...

    async def get_operation(self, operation_id: str) -> Operation | None:
        """Read one operation; None if there is none."""
        ...

    async def operation_of_request(self, principal: str, request_id: str) -> Operation | None:
        """Read the operation that a request made; None if it made none."""
        ...

    async def queue_of(self, resource_id: str) -> Sequence[Operation]:
        """Unfinished operations on a resource in the order in which they run; one that is active comes first."""
        ...

    async def active_resource_ids(self, resource_ids: Collection[str]) -> set[str]:
        """Those of the resources that have unfinished operations; one query."""
        ...

    async def resources_under(self, kind: str) -> set[str]:
        """Ids of the resources that have an unfinished operation of this kind; one query."""
        ...

    async def unfinished_operations(self, known_ids: Collection[str], limit: int) -> Sequence[Operation]:
        """Unfinished operations but those with the given ids, oldest first."""
        ...

    async def advance_operation(self, operation: Operation) -> Operation | None:
        """Write an operation's state, steps, parameters, outcome and times, and return it as stored.

        None, and nothing is written, if it changed since its `version` was read, has ended, or its `owner_id` does not
        own it in this `attempt_count` any more. Never touches a request for cancellation.
        """
        ...

    async def take_operation(self, operation: Operation, version: int) -> bool:
        """Write an operation's owner, attempt and generation too; False if it changed since `version`."""
        ...

    async def request_cancel(self, operation_id: str, reason: str) -> bool:
        """Note that an operation shall be cancelled; False if it has ended or was cancelled before."""
        ...

    async def cancelled_ids(self, owner_id: str) -> Sequence[str]:
        """Unfinished operations of a process that shall be cancelled."""
        ...

    async def list_operations(self, wanted: OperationFilter, after: Cursor | None, limit: int) -> Page[Operation]:
        """Read up to `limit` operations before the cursor, newest first."""
        ...

    async def forget_operations(self, ended_before: datetime, limit: int) -> int:
        """Remove up to `limit` operations that ended before; returns how many."""
        ...

    async def renew_replica(self, replica: Replica) -> None:
        """Count a process's `renewal_count` up, which shows that it lives; adds it if it is not known."""
        ...

    async def all_replicas(self) -> Sequence[Replica]:
        """Every process that is not forgotten."""
        ...

    async def remove_replica(self, replica_id: str) -> None:
        """Forget a process; fine if it is not known."""
        ...

    # -- migrations

    async def put_migration(self, migration: Migration) -> None:
        """Write a VM's last migration, in place of the one before."""
        ...

    async def get_migration(self, vm_id: str) -> Migration | None:
        """Read a VM's last migration; None if there was none, or nothing of it is left to do."""
        ...

    async def remove_migration(self, vm_id: str) -> None:
        """Forget a VM's last migration; fine if there is none."""
        ...

    async def migrations_of_node(self, node_id: str) -> Sequence[Migration]:
        """Those from and to a node."""
        ...

    async def migrations_in_turn(self, *, held: bool = False) -> Sequence[Migration]:
        """Those whose operation has not ended, by when they were asked for.

        Args:
            held: whether others who hold wait until this transaction ends, so that nobody lets one begin beside it.
        """
        ...

    async def grant_migrations(self, vm_ids: Collection[str], at: datetime) -> None:
        """Let some begin."""
        ...

    # -- VMs that left the inventory while their host may still have them

    async def insert_departed(self, departed: DepartedVm) -> None:
        """Note one; noted before, it is replaced."""
        ...

    async def departed(self, node_id: str, vm_ids: Collection[str]) -> dict[str, DepartedVm]:
        """Those of a node and those with one of the ids, by id."""
        ...

    async def remove_departed(self, vm_ids: Collection[str]) -> None:
        """Forget some; fine if they are not noted."""
        ...
