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
)
from controlplane.domain.node import Node
from controlplane.domain.query import Cursor, Page, VmFilter
from controlplane.domain.vm import PowerState, Vm
from controlplane.state import (
    event_rows,
    mac_rows,
    node_rows,
    operation_rows,
    vm_rows,
)
from controlplane.state.access_records import AccessRecords
from controlplane.state.audit_records import AuditRecords
from controlplane.state.authority_records import AuthorityRecords
from controlplane.state.balancing_records import BalancingRecords
from controlplane.state.engine import Session
from controlplane.state.ha_records import HaRecords
from controlplane.state.identity_records import IdentityRecords
from controlplane.state.node_records import NodeRecords
from controlplane.state.operation_records import OperationRecords
from controlplane.state.placement_reads import PlacementReads
from limiquantix.compute.v1.vm_pb2 import VmStatus

ResultT = TypeVar("ResultT")


class SqlTransaction(
    NodeRecords,
    PlacementReads,
    OperationRecords,
    BalancingRecords,
    HaRecords,
    AuthorityRecords,
    AccessRecords,
    IdentityRecords,
    AuditRecords,
):
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
        self._node_ids_read: dict[str, str] = {}  # as they were read, or written since

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
            before, after = self._macs_of(vm.id), mac_rows.addresses_of(vm.spec)
            node_before = self._node_before(connection, vm)
            changed, labels_before = vm_rows.update_vm(connection, vm)
            if before != after and (before is not None or after):
                mac_rows.replace(connection, vm.id, before, after)
                self._macs_read[vm.id] = after
            said = (event or Event(EventType.VM_UPDATED)).of_move(node_before, vm.node_id)
            self._log_vm(connection, changed, Change.MODIFIED, said, labels_before)
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
        for vm in (vm for vms in self._vms_read for vm in vms):
            self._macs_read[vm.id] = mac_rows.addresses_of(vm.spec)
            self._node_ids_read[vm.id] = vm.node_id
        self._vms_read.clear()
        return self._macs_read.get(vm_id)

    def _node_before(self, connection: Connection, vm: Vm) -> str:
        """Return where the VM is placed so far: as it was read, which costs nothing, or else as it is stored."""
        if vm.id not in self._node_ids_read:
            self._node_ids_read[vm.id] = vm_rows.nodes_of_vms(connection, [vm.id]).get(vm.id, "")
        before, self._node_ids_read[vm.id] = self._node_ids_read[vm.id], vm.node_id
        return before

    async def next_generation(self, resource_id: str, at_least: int = 0) -> int | None:
        """Count a generation up."""

        def count(connection: Connection) -> int | None:
            of_vm = vm_rows.next_generation(connection, resource_id, at_least)
            if of_vm is not None or not node_rows.hold(connection, resource_id):
                return of_vm
            return max(operation_rows.newest_generation(connection, resource_id), at_least) + 1

        return await self._write(count)

    async def touch_vms(self, node_id: str, change_counts: Mapping[str, int], seen_at: datetime) -> None:
        """Note when VMs were last reported."""
        await self._write(lambda connection: vm_rows.touch_vms(connection, node_id, change_counts, seen_at))

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

    # -- events

    async def log_vm_event(self, vm: Vm, event: Event) -> None:
        """Tell something of a VM that changes no record."""
        await self._write(lambda connection: self._log_vm(connection, vm, Change.NONE, event))

    async def log_node_event(self, node: Node, event: Event) -> None:
        """Tell something of a node that changes no record."""
        await self._write(lambda connection: self._log_node(connection, node, Change.NONE, event))

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
            document=b"" if change is Change.NONE else documents.node(node, ()).SerializeToString(),
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
