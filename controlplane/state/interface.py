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
from controlplane.domain.node import Node
from controlplane.domain.query import Cursor, Page, VmFilter
from controlplane.domain.vm import Vm
from controlplane.state.access_interface import AccessTransaction
from controlplane.state.audit_interface import AuditTransaction, SecretTransaction
from controlplane.state.authority_interface import AuthorityTransaction
from controlplane.state.balancing_interface import BalancingTransaction
from controlplane.state.ha_interface import HaTransaction
from controlplane.state.identity_interface import IdentityTransaction
from controlplane.state.node_interface import NodeTransaction
from controlplane.state.operation_interface import OperationTransaction
from controlplane.state.placement_interface import PlacementTransaction
from limiquantix.compute.v1.vm_pb2 import VmStatus

ResultT = TypeVar("ResultT")


class Transaction(
    NodeTransaction,
    PlacementTransaction,
    OperationTransaction,
    BalancingTransaction,
    HaTransaction,
    AuthorityTransaction,
    AccessTransaction,
    IdentityTransaction,
    AuditTransaction,
    SecretTransaction,
    Protocol,
):
    """Reads and writes that happen together or not at all: of VMs and the log here, of the rest by its parts."""

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

        The event of one that is placed elsewhere now tells where it was; see `NODE_BEFORE`.

        Raises:
            Aborted: the row was changed or removed since it was read.
        """
        ...

    async def delete_vm(self, vm_id: str, event: Event | None = None) -> bool:
        """Remove a VM's row; False if it was gone. Its claim is released separately."""
        ...

    async def next_generation(self, resource_id: str, at_least: int = 0) -> int | None:
        """Count up the generation of a VM or node, beyond `at_least`, and return it; None if there is none of that id.

        Holds the row until the transaction ends, so that of two callers one waits. A node keeps no count of its own,
        since its host takes no commands about itself: its next one is beyond those of its operations.
        """
        ...

    async def touch_vms(self, node_id: str, change_counts: Mapping[str, int], seen_at: datetime) -> None:
        """Note when VMs were last reported by their node and with which change count: no new version, no event.

        Smaller counts than the stored ones are ignored, and those of VMs that are placed elsewhere by then.
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

    # -- the log of events

    async def log_vm_event(self, vm: Vm, event: Event) -> None:
        """Tell something of a VM that changes no record."""
        ...

    async def log_node_event(self, node: Node, event: Event) -> None:
        """Tell something of a node that changes no record."""
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
