"""The transaction's methods about nodes and claims. Docstrings: the interface's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

from sqlalchemy import Connection

from controlplane.domain.event import Change, Event, EventType, Severity
from controlplane.domain.node import Capacity, Heartbeat, Node, NodeClaims
from controlplane.domain.query import Cursor, NodeFilter, Page
from controlplane.state import node_rows, vm_rows

ResultT = TypeVar("ResultT")


class NodeRecords(ABC):
    """A part of `SqlTransaction`."""

    @abstractmethod
    async def _read(self, function: Callable[[Connection], ResultT]) -> ResultT: ...

    @abstractmethod
    async def _write(self, function: Callable[[Connection], ResultT]) -> ResultT: ...

    @abstractmethod
    def _log_node(
        self,
        connection: Connection,
        node: Node,
        change: Change,
        event: Event,
        labels_before: Mapping[str, str] | None = None,
    ) -> None: ...

    async def insert_node(self, node: Node, event: Event | None = None) -> None:
        """Add a node."""

        def insert(connection: Connection) -> None:
            node_rows.insert_node(connection, node)
            self._log_node(connection, node, Change.ADDED, event or Event(EventType.NODE_REGISTERED))

        await self._write(insert)

    async def get_node(self, node_id: str) -> Node | None:
        """Read one node."""
        return await self._read(lambda connection: node_rows.get_node(connection, node_id))

    async def get_node_by_hostname(self, hostname: str) -> Node | None:
        """Read the node of a host."""
        return await self._read(lambda connection: node_rows.get_node_by_hostname(connection, hostname))

    async def update_node(self, node: Node, event: Event | None = None) -> Node:
        """Write a node that was read before."""

        def change(connection: Connection) -> Node:
            changed, labels_before = node_rows.update_node(connection, node)
            self._log_node(connection, changed, Change.MODIFIED, event or Event(EventType.NODE_UPDATED), labels_before)
            return changed

        return await self._write(change)

    async def delete_node(self, node_id: str, event: Event | None = None) -> bool:
        """Remove a node's row."""

        def remove(connection: Connection) -> bool:
            node = node_rows.get_node(connection, node_id)
            if node is None or not node_rows.delete_node(connection, node_id):
                return False
            gone = replace(node, version=node.version + 1)
            self._log_node(connection, gone, Change.DELETED, event or Event(EventType.NODE_REMOVED))
            return True

        return await self._write(remove)

    async def list_nodes(self, wanted: NodeFilter, after: Cursor | None, limit: int) -> Page[Node]:
        """Read a page of nodes."""
        return await self._read(lambda connection: node_rows.list_nodes(connection, wanted, after, limit))

    async def all_nodes(self) -> Sequence[Node]:
        """Every node."""
        return await self._read(node_rows.all_nodes)

    async def nodes(self, node_ids: Collection[str]) -> Sequence[Node]:
        """Some nodes."""
        return await self._read(lambda connection: node_rows.some_nodes(connection, node_ids))

    async def node_claims(self) -> Sequence[NodeClaims]:
        """What is claimed on every node."""
        return await self._read(node_rows.node_claims)

    async def node_versions(self) -> dict[str, int]:
        """The version of every node."""
        return await self._read(node_rows.node_versions)

    async def loaded_nodes(self, cpu_percent: float, memory_percent: float) -> Sequence[Node]:
        """READY nodes above a load."""
        return await self._read(lambda connection: node_rows.loaded_nodes(connection, cpu_percent, memory_percent))

    async def vm_ids_by_node(self, node_ids: Collection[str]) -> dict[str, list[str]]:
        """Ids of the VMs on each of the nodes."""
        return await self._read(lambda connection: vm_rows.vm_ids_by_node(connection, node_ids))

    async def record_heartbeats(self, heartbeats: Sequence[Heartbeat]) -> None:
        """Store several heartbeats."""
        await self._write(lambda connection: node_rows.record_heartbeats(connection, heartbeats))

    async def mark_silent_nodes(self, heard_before: datetime, now: datetime) -> Sequence[str]:
        """Turn silent READY nodes into NOT_READY."""

        def mark(connection: Connection) -> list[str]:
            silent = node_rows.mark_silent_nodes(connection, heard_before, now)
            for node_id in silent:
                node = node_rows.get_node(connection, node_id)
                if node is not None:
                    said = Event(EventType.NODE_SILENT, f"node {node.hostname} sends no heartbeats", Severity.WARNING)
                    self._log_node(connection, node, Change.MODIFIED, said)
            return silent

        return await self._write(mark)

    # -- claims

    async def claim(self, node_id: str, size: Capacity) -> bool:
        """Add to what is allocated if it fits."""
        return await self._write(lambda connection: node_rows.claim(connection, node_id, size))

    async def occupy(self, node_id: str, size: Capacity) -> None:
        """Add to what is allocated, fit or not."""
        await self._write(lambda connection: node_rows.occupy(connection, node_id, size))

    async def release(self, node_id: str, size: Capacity) -> None:
        """Take a claim back."""
        await self._write(lambda connection: node_rows.release(connection, node_id, size))
