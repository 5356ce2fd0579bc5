"""What the control plane remembers, as the services see it.

One `Store`, whose work is done in transactions. `Store.run` may call the given function more than once (the database
asks for that under contention), so it must do nothing but use the transaction: no call to a daemon, no log of success.

Capacity is never read and then written: `claim` is one conditional statement, atomic on any number of control planes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Protocol, TypeVar

from controlplane.domain.event import Event, EventFilter, LoggedEvent, LogPosition
from controlplane.domain.node import Capacity, Heartbeat, Node, NodeClaims
from controlplane.domain.operation import DepartedVm, Operation, OperationFilter, Replica
from controlplane.domain.query import Cursor, NodeFilter, Page, VmFilter
from controlplane.domain.vm import Vm
from limiquantix.compute.v1.vm_pb2 import VmStatus

ResultT = TypeVar("ResultT")


class Transaction(Protocol):
    """Reads and writes that happen together or not at all."""

    # -- virtual machines

    async def insert_vm(self, vm: Vm, event: Event | None = None) -> None:
        """Add a VM. Here and in all that changes a VM or node, `event` is what the log says of it.

        Raises:
            AlreadyExists: its project has a VM of that name.
        """
        ...

    async def get_vm(self, vm_id: str) -> Vm | None:
        """Read one VM; None if there is none.

        In a transaction that writes, others cannot change the VM until it ends. Whoever needs several reads them in the
        order of their ids, and VMs before it claims on nodes, so that two do not wait for each other.
        """
        ...

    async def update_vm(self, vm: Vm, event: Event | None = None) -> Vm:
        """Write a VM that was read before, all fields but `generation`, and return it with its new `version`.

        Raises:
            Aborted: the row was changed or removed since it was read.
        """
        ...

    async def delete_vm(self, vm_id: str, event: Event | None = None) -> bool:
        """Remove a VM's row; False if it was gone. Its claim is released separately."""
        ...

    async def next_generation(self, vm_id: str, at_least: int = 0) -> int | None:
        """Count a VM's generation up, beyond `at_least`, and return it; None if there is no such VM.

        Holds the VM's row until the transaction ends, so that of two callers one waits.
        """
        ...

    async def touch_vms(self, change_counts: Mapping[str, int], seen_at: datetime) -> None:
        """Note when VMs were last reported and with which change count: no new version, no event.

        Smaller counts than the stored ones are ignored.
        """
        ...

    async def vms_seen_by(self, node_id: str) -> Sequence[Vm]:
        """VMs with a sighting by the node."""
        ...

    async def stopped_against_will(self) -> Sequence[Vm]:
        """Managed VMs whose wanted state is RUNNING and that are STOPPED or CRASHED."""
        ...

    async def mac_holders(self, mac_addresses: Collection[str]) -> Mapping[str, str]:
        """Ids of the VMs that have these MAC addresses, by address; addresses that nobody has are left out."""
        ...

    async def linked_clones(self, vm_id: str) -> Sequence[str]:
        """Ids of the VMs whose disks are built upon this one's, oldest first, those that are being made included."""
        ...

    async def is_name_taken(self, project_id: str, name: str) -> bool:
        """Whether the project has a VM of that name."""
        ...

    async def power_states_on_node(self, node_id: str) -> dict[str, VmStatus.PowerState.ValueType]:
        """Recorded state of each VM placed on the node, by id; one query that reads no documents."""
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

    # -- operations

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

    # -- the log of events

    async def log_vm_event(self, vm: Vm, event: Event) -> None:
        """Tell something of a VM that changes no record."""
        ...

    async def sequence_events(self) -> LogPosition:
        """Give revisions to all entries that have none; returns where the log ends then.

        Of several processes one does it at a time. Whoever sees a revision sees all smaller ones.
        """
        ...

    async def log_position(self) -> LogPosition:
        """Say where the log ends."""
        ...

    async def unnumbered_event_ids(self) -> set[str]:
        """Entries without a revision: what a snapshot read in this transaction has, but no revision tells."""
        ...

    async def events_after(self, revision: int, limit: int) -> Sequence[LoggedEvent]:
        """Up to `limit` entries with larger revisions, in order."""
        ...

    async def newest_events(self, wanted: EventFilter, limit: int) -> Sequence[LoggedEvent]:
        """Up to `limit` matching entries, newest first, those without a revision included."""
        ...

    async def compact_events(self, recorded_before: datetime, limit: int) -> int:
        """Remove up to `limit` of the oldest entries; returns how many. The newest entry always stays."""
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

        The work is repeated as a whole when the database reports a serialisation conflict (bounded). It runs in another
        thread and must await nothing but the transaction; it may read what services keep in memory, not change it.

        Raises:
            Unavailable: the database does not answer; whether a commit in flight happened is unknown.
        """
        ...

    async def read(self, work: Callable[[Transaction], Awaitable[ResultT]]) -> ResultT:
        """Do read-only work on one consistent snapshot."""
        ...


class SchemaMismatch(Exception):
    """The database's schema is not the one this program was built for; the message names the command to run."""
