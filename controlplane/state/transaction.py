"""The interface's transaction: each method takes functions of the `*_rows` modules to the database.

Whatever changes a VM or a node adds an entry to the log of events in the same transaction, here, so that no caller can
forget it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from controlplane.domain import documents
from controlplane.domain.event import (
    NODE,
    VM,
    Change,
    Event,
    EventFilter,
    EventType,
    LoggedEvent,
    LogPosition,
    Severity,
)
from controlplane.domain.node import Capacity, Heartbeat, Node, NodeClaims
from controlplane.domain.operation import DepartedVm, Operation, OperationFilter, Replica
from controlplane.domain.query import Cursor, NodeFilter, Page, VmFilter
from controlplane.domain.vm import PowerState, Vm
from controlplane.state import event_rows, mac_rows, node_rows, operation_rows, vm_rows
from controlplane.state.engine import Session
from limiquantix.compute.v1.vm_pb2 import VmStatus

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
        self._event_count = 0
        self._vms_read: list[Sequence[Vm]] = []
        self._macs_read: dict[str, frozenset[str]] = {}
        """MAC addresses of each VM as it was read, so that a write that changes none costs nothing."""

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

    async def insert_vm(self, vm: Vm, event: Event | None = None) -> None:
        """Add a VM."""

        def insert(connection: Connection) -> None:
            vm_rows.insert_vm(connection, vm)
            mac_rows.replace(connection, vm.id, frozenset(), mac_rows.addresses_of(vm.spec))
            self._log_vm(connection, vm, Change.ADDED, event or Event(EventType.VM_CREATED))

        await self._write(insert)

    async def get_vm(self, vm_id: str) -> Vm | None:
        """Read one VM."""
        vm = await self._read(lambda connection: vm_rows.get_vm(connection, vm_id, to_change=not self._read_only))
        if vm is not None:
            self._noted([vm])
        return vm

    async def update_vm(self, vm: Vm, event: Event | None = None) -> Vm:
        """Write a VM that was read before."""

        def change(connection: Connection) -> Vm:
            changed, labels_before = vm_rows.update_vm(connection, vm)
            before, after = self._macs_of(vm.id), mac_rows.addresses_of(vm.spec)
            if before != after and (before is not None or after):
                mac_rows.replace(connection, vm.id, before, after)
                self._macs_read[vm.id] = after
            self._log_vm(connection, changed, Change.MODIFIED, event or Event(EventType.VM_UPDATED), labels_before)
            return changed

        return await self._write(change)

    async def delete_vm(self, vm_id: str, event: Event | None = None) -> bool:
        """Remove a VM's row."""

        def remove(connection: Connection) -> bool:
            vm = vm_rows.get_vm(connection, vm_id, to_change=True)
            if vm is None or not vm_rows.delete_vm(connection, vm_id):
                return False
            gone = replace(vm, power_state=PowerState.TERMINATED, version=vm.version + 1)
            self._log_vm(connection, gone, Change.DELETED, event or Event(EventType.VM_DELETED))
            return True

        return await self._write(remove)

    def _noted(self, vms: Sequence[Vm]) -> Sequence[Vm]:
        """Note these VMs as they were read; what of them matters is worked out when one is written."""
        if not self._read_only:
            self._vms_read.append(vms)
        return vms

    def _macs_of(self, vm_id: str) -> frozenset[str] | None:
        """Return the MAC addresses that a VM had when it was read; None if it was not read."""
        self._macs_read.update((vm.id, mac_rows.addresses_of(vm.spec)) for vms in self._vms_read for vm in vms)
        self._vms_read.clear()
        return self._macs_read.get(vm_id)

    async def next_generation(self, vm_id: str, at_least: int = 0) -> int | None:
        """Count a VM's generation up."""
        return await self._write(lambda connection: vm_rows.next_generation(connection, vm_id, at_least))

    async def touch_vms(self, change_counts: Mapping[str, int], seen_at: datetime) -> None:
        """Note when VMs were last reported."""
        await self._write(lambda connection: vm_rows.touch_vms(connection, change_counts, seen_at))

    async def vms_seen_by(self, node_id: str) -> Sequence[Vm]:
        """VMs that belong elsewhere, but that the node said it has."""
        return self._noted(await self._read(lambda connection: vm_rows.vms_seen_by(connection, node_id)))

    async def stopped_against_will(self) -> Sequence[Vm]:
        """Managed VMs that shall run and do not."""
        return self._noted(await self._read(vm_rows.stopped_against_will))

    async def mac_holders(self, mac_addresses: Collection[str]) -> Mapping[str, str]:
        """Ids of the VMs that have these MAC addresses."""
        return await self._read(lambda connection: mac_rows.holders(connection, mac_addresses))

    async def linked_clones(self, vm_id: str) -> Sequence[str]:
        """Ids of the VMs whose disks are built upon this one's."""
        return await self._read(lambda connection: vm_rows.linked_clones(connection, vm_id))

    async def is_name_taken(self, project_id: str, name: str) -> bool:
        """Whether the project has a VM of that name."""
        return await self._read(lambda connection: vm_rows.is_name_taken(connection, project_id, name))

    async def power_states_on_node(self, node_id: str) -> dict[str, VmStatus.PowerState.ValueType]:
        """Recorded state of each VM placed on the node."""
        return await self._read(lambda connection: vm_rows.power_states_on_node(connection, node_id))

    async def list_vms(self, wanted: VmFilter, after: Cursor | None, limit: int) -> Page[Vm]:
        """Read a page of VMs."""
        page = await self._read(lambda connection: vm_rows.list_vms(connection, wanted, after, limit))
        self._noted(page.items)
        return page

    async def vms_on_node(self, node_id: str) -> Sequence[Vm]:
        """Every VM placed on the node."""
        return self._noted(await self._read(lambda connection: vm_rows.vms_on_node(connection, node_id)))

    async def nodes_of_vms(self, vm_ids: Collection[str]) -> dict[str, str]:
        """Node ids of the given VMs."""
        return await self._read(lambda connection: vm_rows.nodes_of_vms(connection, vm_ids))

    # -- nodes

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

    # -- operations

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

    # -- events

    async def log_vm_event(self, vm: Vm, event: Event) -> None:
        """Tell something of a VM that changes no record."""
        await self._write(lambda connection: self._log_vm(connection, vm, Change.NONE, event))

    async def sequence_events(self) -> LogPosition:
        """Give revisions."""
        return await self._write(event_rows.sequence)

    async def log_position(self) -> LogPosition:
        """Say where the log ends."""
        return await self._read(event_rows.position)

    async def unnumbered_event_ids(self) -> set[str]:
        """Entries without a revision."""
        return await self._read(event_rows.unnumbered_ids)

    async def events_after(self, revision: int, limit: int) -> Sequence[LoggedEvent]:
        """Entries with larger revisions."""
        return await self._read(lambda connection: event_rows.after(connection, revision, limit))

    async def newest_events(self, wanted: EventFilter, limit: int) -> Sequence[LoggedEvent]:
        """Matching entries, newest first."""
        return await self._read(lambda connection: event_rows.newest(connection, wanted, limit))

    async def compact_events(self, recorded_before: datetime, limit: int) -> int:
        """Remove the oldest entries."""
        return await self._write(lambda connection: event_rows.compact(connection, recorded_before, limit))

    def _log_vm(
        self,
        connection: Connection,
        vm: Vm,
        change: Change,
        event: Event,
        labels_before: Mapping[str, str] | None = None,
    ) -> None:
        document = b"" if change is Change.NONE else documents.virtual_machine(vm).SerializeToString()
        entry = LoggedEvent(
            id="",
            revision=0,
            recorded_at=datetime.now(UTC),
            resource_type=VM,
            resource_id=vm.id,
            resource_version=vm.version,
            project_id=vm.project_id,
            node_id=vm.node_id,
            change=change,
            event=event,
            document=document,
            labels_before=labels_before,
        )
        self._append(connection, entry)

    def _log_node(
        self,
        connection: Connection,
        node: Node,
        change: Change,
        event: Event,
        labels_before: Mapping[str, str] | None = None,
    ) -> None:
        entry = LoggedEvent(
            id="",
            revision=0,
            recorded_at=datetime.now(UTC),
            resource_type=NODE,
            resource_id=node.id,
            resource_version=node.version,
            project_id="",
            node_id=node.id,
            change=change,
            event=event,
            document=documents.node(node, ()).SerializeToString(),
            labels_before=labels_before,
        )
        self._append(connection, entry)

    def _append(self, connection: Connection, entry: LoggedEvent) -> None:
        event_rows.append(connection, entry, self._event_count)
        self._event_count += 1

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
