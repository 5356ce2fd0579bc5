"""What a transaction does with nodes and what is claimed on them; a part of `interface.Transaction`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Protocol

from controlplane.domain.event import Event
from controlplane.domain.node import Capacity, Heartbeat, Node, NodeClaims
from controlplane.domain.query import Cursor, NodeFilter, Page


class NodeTransaction(Protocol):
    """Nodes and claims."""

    async def insert_node(self, node: Node, event: Event | None = None) -> None:
        """Add a node.

        Raises:
            Aborted: a node of that host name was added at the same moment.
        """
        ...

    async def get_node(self, node_id: str) -> Node | None:
        """Read one node; None if there is none."""
        ...

    async def get_node_by_hostname(self, hostname: str) -> Node | None:
        """Read the node of a host; None if there is none."""
        ...

    async def update_node(self, node: Node, event: Event | None = None) -> Node:
        """Write a node that was read before, all fields but `allocated`, `usage` and `last_heartbeat_at`.

        Raises:
            Aborted: the row was changed or removed since it was read.
        """
        ...

    async def delete_node(self, node_id: str, event: Event | None = None) -> bool:
        """Remove a node's row, on which no VM may be placed any more; False if it was gone."""
        ...

    async def list_nodes(self, wanted: NodeFilter, after: Cursor | None, limit: int) -> Page[Node]:
        """Read up to `limit` nodes after the cursor, by creation time and id."""
        ...

    async def all_nodes(self) -> Sequence[Node]:
        """Every node; one query."""
        ...

    async def nodes(self, node_ids: Collection[str]) -> Sequence[Node]:
        """Those of the nodes that exist, in no order; one query."""
        ...

    async def node_claims(self) -> Sequence[NodeClaims]:
        """What is claimed on every node, for placement; one query that reads little of each."""
        ...

    async def node_versions(self) -> dict[str, int]:
        """The version of every node, by id: the cheapest way to find out which have changed, of thousands too."""
        ...

    async def loaded_nodes(self, cpu_percent: float, memory_percent: float) -> Sequence[Node]:
        """READY nodes that use at least so much of their processors, or of their memory, as it is recorded."""
        ...

    async def vm_ids_by_node(self, node_ids: Collection[str]) -> dict[str, list[str]]:
        """Ids of the VMs on each of the given nodes; one query."""
        ...

    async def record_heartbeats(self, heartbeats: Sequence[Heartbeat]) -> None:
        """Store usage and time of several heartbeats; touches nothing else, an older one than stored is ignored."""
        ...

    async def mark_silent_nodes(self, heard_before: datetime, now: datetime) -> Sequence[str]:
        """Turn READY nodes whose last heartbeat (or creation) is older into NOT_READY; returns their ids."""
        ...

    # -- claims

    async def claim(self, node_id: str, size: Capacity) -> bool:
        """Add to what is allocated on a node if its capacity allows; False, and nothing changed, if not.

        A negative part gives back; `claim` of a mixed size checks only the growing part.
        """
        ...

    async def occupy(self, node_id: str, size: Capacity) -> None:
        """Add to what is allocated whether it fits or not: what is found on a host is there already."""
        ...

    async def release(self, node_id: str, size: Capacity) -> None:
        """Take a claim back; allocated never goes below 0. Does nothing if the node is gone."""
        ...
