"""The transaction's methods about operations, migrations and VMs that left. Docstrings: the interface's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import TypeVar

from sqlalchemy import Connection

from controlplane.domain.migration import Migration
from controlplane.domain.operation import DepartedVm, Operation, OperationFilter, Replica
from controlplane.domain.query import Cursor, Page
from controlplane.state import migration_rows, operation_rows

ResultT = TypeVar("ResultT")


class OperationRecords(ABC):
    """A part of `SqlTransaction`."""

    @abstractmethod
    async def _read(self, function: Callable[[Connection], ResultT]) -> ResultT: ...

    @abstractmethod
    async def _write(self, function: Callable[[Connection], ResultT]) -> ResultT: ...

    async def insert_operation(self, operation: Operation) -> None:
        """Add an operation."""
        await self._write(lambda connection: operation_rows.insert_operation(connection, operation))

    async def get_operation(self, operation_id: str) -> Operation | None:
        """Read one operation."""
        return await self._read(lambda connection: operation_rows.get_operation(connection, operation_id))

    async def operation_of_request(self, principal: str, request_id: str) -> Operation | None:
        """Read the operation that a request made."""
        return await self._read(
            lambda connection: operation_rows.operation_of_request(connection, principal, request_id)
        )

    async def queue_of(self, resource_id: str) -> Sequence[Operation]:
        """Unfinished operations on a resource."""
        return await self._read(lambda connection: operation_rows.queue_of(connection, resource_id))

    async def active_resource_ids(self, resource_ids: Collection[str]) -> set[str]:
        """Those of the resources that have unfinished operations."""
        return await self._read(lambda connection: operation_rows.active_resource_ids(connection, resource_ids))

    async def resources_under(self, kind: str) -> set[str]:
        """Those that have an unfinished operation of a kind."""
        return await self._read(lambda connection: operation_rows.resources_under(connection, kind))

    async def unfinished_operations(self, known_ids: Collection[str], limit: int) -> Sequence[Operation]:
        """Unfinished operations but those known."""
        return await self._read(lambda connection: operation_rows.unfinished_operations(connection, known_ids, limit))

    async def advance_operation(self, operation: Operation) -> Operation | None:
        """Write an operation's progress."""
        return await self._write(lambda connection: operation_rows.advance_operation(connection, operation))

    async def take_operation(self, operation: Operation, version: int) -> bool:
        """Become an operation's owner."""
        return await self._write(lambda connection: operation_rows.take_operation(connection, operation, version))

    async def request_cancel(self, operation_id: str, reason: str) -> bool:
        """Note that an operation shall be cancelled."""
        return await self._write(lambda connection: operation_rows.request_cancel(connection, operation_id, reason))

    async def cancelled_ids(self, owner_id: str) -> Sequence[str]:
        """Operations of a process that shall be cancelled."""
        return await self._read(lambda connection: operation_rows.cancelled_ids(connection, owner_id))

    async def list_operations(self, wanted: OperationFilter, after: Cursor | None, limit: int) -> Page[Operation]:
        """Read a page of operations."""
        return await self._read(lambda connection: operation_rows.list_operations(connection, wanted, after, limit))

    async def forget_operations(self, ended_before: datetime, limit: int) -> int:
        """Remove operations that ended long ago."""
        return await self._write(lambda connection: operation_rows.forget_operations(connection, ended_before, limit))

    async def renew_replica(self, replica: Replica) -> None:
        """Show that a process lives."""
        await self._write(lambda connection: operation_rows.renew_replica(connection, replica))

    async def all_replicas(self) -> Sequence[Replica]:
        """Every process that is not forgotten."""
        return await self._read(operation_rows.all_replicas)

    async def remove_replica(self, replica_id: str) -> None:
        """Forget a process."""
        await self._write(lambda connection: operation_rows.remove_replica(connection, replica_id))

    # -- migrations

    async def put_migration(self, migration: Migration) -> None:
        """Write a VM's last migration."""
        await self._write(lambda connection: migration_rows.put(connection, migration))

    async def get_migration(self, vm_id: str) -> Migration | None:
        """Read a VM's last migration."""
        return await self._read(lambda connection: migration_rows.get(connection, vm_id))

    async def remove_migration(self, vm_id: str) -> None:
        """Forget a VM's last migration."""
        await self._write(lambda connection: migration_rows.remove(connection, vm_id))

    async def migrations_of_node(self, node_id: str) -> Sequence[Migration]:
        """Those from and to a node."""
        return await self._read(lambda connection: migration_rows.of_node(connection, node_id))

    async def migrations_in_turn(self, *, held: bool = False) -> Sequence[Migration]:
        """Those that are worked on."""
        do = self._write if held else self._read
        return await do(lambda connection: migration_rows.in_turn(connection, held=held))

    async def grant_migrations(self, vm_ids: Collection[str], at: datetime) -> None:
        """Let some begin."""
        await self._write(lambda connection: migration_rows.grant(connection, vm_ids, at))

    # -- VMs that left

    async def insert_departed(self, departed: DepartedVm) -> None:
        """Note a departed VM."""
        await self._write(lambda connection: operation_rows.insert_departed(connection, departed))

    async def departed(self, node_id: str, vm_ids: Collection[str]) -> dict[str, DepartedVm]:
        """Departed VMs."""
        return await self._read(lambda connection: operation_rows.departed(connection, node_id, vm_ids))

    async def remove_departed(self, vm_ids: Collection[str]) -> None:
        """Forget departed VMs."""
        await self._write(lambda connection: operation_rows.remove_departed(connection, vm_ids))
