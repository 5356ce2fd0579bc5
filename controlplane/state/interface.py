"""What the control plane remembers, as the services see it.

One `Store`, whose work is done in transactions. `Store.run` may call the given function more than once (the database
asks for that under contention), so it must do nothing but use the transaction: no call to a daemon, no log of success.

Capacity is never read and then written: `claim` is one conditional statement, atomic on any number of control planes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import datetime
from typing import Protocol, TypeVar

from controlplane.domain.node import Capacity, Heartbeat, Node
from controlplane.domain.query import Cursor, NodeFilter, Page, VmFilter
from controlplane.domain.vm import Vm

ResultT = TypeVar("ResultT")


class Transaction(Protocol):
    """Reads and writes that happen together or not at all."""

    # -- virtual machines

    async def insert_vm(self, vm: Vm) -> None:
        """Add a VM.

        Raises:
            AlreadyExists: its project has a VM of that name.
        """
        ...

    async def get_vm(self, vm_id: str) -> Vm | None:
        """Read one VM; None if there is none."""
        ...

    async def update_vm(self, vm: Vm) -> Vm:
        """Write every field of a VM that was read before, and return it with its new `version`.

        Raises:
            Aborted: the row was changed or removed since it was read.
        """
        ...

    async def delete_vm(self, vm_id: str) -> bool:
        """Remove a VM's row; False if it was gone. Its claim is released separately."""
        ...

    async def list_vms(self, wanted: VmFilter, after: Cursor | None, limit: int) -> Page[Vm]:
        """Read up to `limit` VMs after the cursor, by creation time and id."""
        ...

    async def vms_on_node(self, node_id: str) -> Sequence[Vm]:
        """Every VM placed on the node."""
        ...

    async def nodes_of_vms(self, vm_ids: Collection[str]) -> dict[str, str]:
        """Node id of each of the given VMs that exists and is placed; one query."""
        ...

    # -- nodes

    async def insert_node(self, node: Node) -> None:
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

    async def update_node(self, node: Node) -> Node:
        """Write a node that was read before, all fields but `allocated`, `usage` and `last_heartbeat_at`.

        Raises:
            Aborted: the row was changed or removed since it was read.
        """
        ...

    async def list_nodes(self, wanted: NodeFilter, after: Cursor | None, limit: int) -> Page[Node]:
        """Read up to `limit` nodes after the cursor, by creation time and id."""
        ...

    async def all_nodes(self) -> Sequence[Node]:
        """Every node, for placement; one query."""
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

    async def release(self, node_id: str, size: Capacity) -> None:
        """Take a claim back; allocated never goes below 0. Does nothing if the node is gone."""
        ...


class Store(Protocol):
    """The control plane's memory."""

    async def open(self) -> None:
        """Connect and check that the schema is the one this version needs.

        Raises:
            SchemaMismatch: the database needs `limiquantix-controlplane migrate` first, or is newer than this program.
            Unavailable: the database does not answer.
        """
        ...

    async def close(self) -> None:
        """Let go of the database; safe to call twice."""
        ...

    async def ping(self) -> None:
        """Read something small.

        Raises:
            Unavailable: the database does not answer within a second or two.
        """
        ...

    async def run(self, work: Callable[[Transaction], Awaitable[ResultT]]) -> ResultT:
        """Do the work in one transaction and commit it; on any exception nothing of it remains.

        The work is repeated as a whole when the database reports a serialisation conflict (bounded).

        Raises:
            Unavailable: the database does not answer; whether a commit in flight happened is unknown.
        """
        ...

    async def read(self, work: Callable[[Transaction], Awaitable[ResultT]]) -> ResultT:
        """Do read-only work on one consistent snapshot."""
        ...


class SchemaMismatch(Exception):
    """The database's schema is not the one this program was built for; the message names the command to run."""
