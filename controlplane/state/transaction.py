"""The interface's transaction: each method takes one function of `vm_rows` or `node_rows` to the database."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from controlplane.domain.node import Capacity, Heartbeat, Node
from controlplane.domain.query import Cursor, NodeFilter, Page, VmFilter
from controlplane.domain.vm import Vm
from controlplane.state import node_rows, vm_rows
from controlplane.state.engine import Session

ResultT = TypeVar("ResultT")


class SqlTransaction:
    """One open transaction; of no use after `Store.run` or `Store.read` returned. Docstrings: the interface's.

    A row that a constraint refused ends the transaction, as PostgreSQL has it: the error must leave the work, and what
    else is tried raises RuntimeError. SQLite would go on, and the difference would be found in production only.
    """

    def __init__(self, session: Session, *, read_only: bool) -> None:
        self._session = session
        self._read_only = read_only
        self._refused_by: Exception | None = None

    def require_usable(self) -> None:
        """Check that no row was refused.

        Raises:
            RuntimeError: the work went on after a refusal.
        """
        if self._refused_by is not None:
            raise RuntimeError(
                "a refused row ended the transaction; let its error leave the work"
            ) from self._refused_by

    # -- virtual machines

    async def insert_vm(self, vm: Vm) -> None:
        """Add a VM."""
        await self._write(lambda connection: vm_rows.insert_vm(connection, vm))

    async def get_vm(self, vm_id: str) -> Vm | None:
        """Read one VM."""
        return await self._read(lambda connection: vm_rows.get_vm(connection, vm_id))

    async def update_vm(self, vm: Vm) -> Vm:
        """Write a VM that was read before."""
        return await self._write(lambda connection: vm_rows.update_vm(connection, vm))

    async def delete_vm(self, vm_id: str) -> bool:
        """Remove a VM's row."""
        return await self._write(lambda connection: vm_rows.delete_vm(connection, vm_id))

    async def list_vms(self, wanted: VmFilter, after: Cursor | None, limit: int) -> Page[Vm]:
        """Read a page of VMs."""
        return await self._read(lambda connection: vm_rows.list_vms(connection, wanted, after, limit))

    async def vms_on_node(self, node_id: str) -> Sequence[Vm]:
        """Every VM placed on the node."""
        return await self._read(lambda connection: vm_rows.vms_on_node(connection, node_id))

    async def nodes_of_vms(self, vm_ids: Collection[str]) -> dict[str, str]:
        """Node ids of the given VMs."""
        return await self._read(lambda connection: vm_rows.nodes_of_vms(connection, vm_ids))

    # -- nodes

    async def insert_node(self, node: Node) -> None:
        """Add a node."""
        await self._write(lambda connection: node_rows.insert_node(connection, node))

    async def get_node(self, node_id: str) -> Node | None:
        """Read one node."""
        return await self._read(lambda connection: node_rows.get_node(connection, node_id))

    async def get_node_by_hostname(self, hostname: str) -> Node | None:
        """Read the node of a host."""
        return await self._read(lambda connection: node_rows.get_node_by_hostname(connection, hostname))

    async def update_node(self, node: Node) -> Node:
        """Write a node that was read before."""
        return await self._write(lambda connection: node_rows.update_node(connection, node))

    async def list_nodes(self, wanted: NodeFilter, after: Cursor | None, limit: int) -> Page[Node]:
        """Read a page of nodes."""
        return await self._read(lambda connection: node_rows.list_nodes(connection, wanted, after, limit))

    async def all_nodes(self) -> Sequence[Node]:
        """Every node."""
        return await self._read(node_rows.all_nodes)

    async def vm_ids_by_node(self, node_ids: Collection[str]) -> dict[str, list[str]]:
        """Ids of the VMs on each of the nodes."""
        return await self._read(lambda connection: vm_rows.vm_ids_by_node(connection, node_ids))

    async def record_heartbeats(self, heartbeats: Sequence[Heartbeat]) -> None:
        """Store several heartbeats."""
        await self._write(lambda connection: node_rows.record_heartbeats(connection, heartbeats))

    async def mark_silent_nodes(self, heard_before: datetime, now: datetime) -> Sequence[str]:
        """Turn silent READY nodes into NOT_READY."""
        return await self._write(lambda connection: node_rows.mark_silent_nodes(connection, heard_before, now))

    # -- claims

    async def claim(self, node_id: str, size: Capacity) -> bool:
        """Add to what is allocated if it fits."""
        return await self._write(lambda connection: node_rows.claim(connection, node_id, size))

    async def release(self, node_id: str, size: Capacity) -> None:
        """Take a claim back."""
        await self._write(lambda connection: node_rows.release(connection, node_id, size))

    async def _read(self, function: Callable[[Connection], ResultT]) -> ResultT:
        self.require_usable()
        return await self._session.call(function)

    async def _write(self, function: Callable[[Connection], ResultT]) -> ResultT:
        if self._read_only:
            raise RuntimeError("Store.read got work that writes; use Store.run")
        self.require_usable()
        try:
            return await self._session.call(function)
        except Exception as error:
            if isinstance(error, IntegrityError) or isinstance(error.__cause__, IntegrityError):
                self._refused_by = error
            raise
