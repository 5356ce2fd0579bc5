"""What the steps of VMs write to the database: what a host said, an error, a removal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from google.protobuf.message import Message

from controlplane.daemons.node_spec import STATE_OF_STATUS
from controlplane.domain import documents, errors
from controlplane.domain.event import Event, EventType, Severity, event_of_state
from controlplane.domain.node import Capacity
from controlplane.domain.operation import DepartedVm, Fault, Json, Operation
from controlplane.domain.pending import freed
from controlplane.domain.vm import PowerState, Vm, observed
from controlplane.operations.steps import Outcome
from controlplane.state.interface import Transaction
from limiquantix.compute.v1.vm_pb2 import VmStatus
from limiquantix.errors import Reason
from limiquantix.node.v1.node_daemon_pb2 import VMStatusResponse


async def locked(tx: Transaction, vm_id: str) -> Vm:
    """Read a VM for changing it.

    Raises:
        NotFound: it is gone.
    """
    vm = await tx.get_vm(vm_id)
    if vm is None:
        raise errors.vm_not_found(vm_id)
    return vm


def outcome_of(status: VMStatusResponse) -> Outcome:
    """Keep what a host said of a VM as the result of a step."""
    return Outcome(
        {
            "state": PowerState.Name(STATE_OF_STATUS[status.state]),
            "state_change_count": status.state_change_count,
        }
    )


async def record_status(
    tx: Transaction,
    operation: Operation,
    result: Json,
    now: datetime,
    *,
    wanted: VmStatus.PowerState.ValueType | None = None,
    restart_count: int | None = None,
    is_protected: bool | None = None,
) -> Vm:
    """Write what the host said after an operation; a newer report that came meanwhile wins over its state.

    Args:
        result: as `outcome_of` made it.
        wanted: the state that the operation makes the wanted one; None leaves that.
        restart_count: the new count; None leaves it.
        is_protected: whether the host noted that the VM ends with its lease; None leaves what is recorded of that.
    """
    vm = await locked(tx, operation.resource_id)
    changed = vm
    if result["state_change_count"] >= vm.reported_change_count:
        changed = observed(vm, PowerState.Value(result["state"]), result["state_change_count"], now)
    changed = replace(
        changed,
        error_message="",
        wanted_state=vm.wanted_state if wanted is None else wanted,
        restart_count=vm.restart_count if restart_count is None else restart_count,
        is_protected=vm.is_protected if is_protected is None else is_protected,
    )
    event = event_of_state(vm.name, vm.power_state, changed.power_state, operation.principal)
    return await write_with_claim(tx, vm, changed, event)


async def write_with_claim(tx: Transaction, before: Vm, after: Vm, event: Event | None) -> Vm:
    """Write a VM, and make its claim what it needs now: what it grows by is there already, room or not."""
    written = await tx.update_vm(after, event)
    for release, size in ((True, freed(before, after)), (False, freed(after, before))):
        if size.vcpus or size.memory_bytes:
            await (tx.release if release else tx.occupy)(after.node_id, size)
    return written


async def record_failure(
    tx: Transaction, operation: Operation, fault: Fault, now: datetime, restart_count: int | None = None
) -> None:
    """Write to the VM why its last operation failed; nothing if the VM is gone. `restart_count` None leaves that.

    One that was cancelled is told in the log only: nothing is wrong with the VM.
    """
    vm = await tx.get_vm(operation.resource_id)
    if vm is None:
        return
    was_cancelled = fault.reason == Reason.OPERATION_CANCELLED
    event = Event(
        EventType.VM_OPERATION_FAILED,
        f"{operation.kind} of VM {vm.name} failed: {fault.message}",
        Severity.INFO if was_cancelled else Severity.ERROR,
        operation.principal,
        {"operation_id": operation.id, "kind": operation.kind, "reason": fault.reason},
    )
    if was_cancelled:
        await tx.log_vm_event(vm, event)
        return
    count = vm.restart_count if restart_count is None else restart_count
    await tx.update_vm(replace(vm, error_message=fault.message, restart_count=count, updated_at=now), event)


async def remove(tx: Transaction, vm_id: str, event: Event) -> None:
    """Remove a VM's row and take its claim back; fine if it is gone."""
    vm = await tx.get_vm(vm_id)
    if vm is not None and await tx.delete_vm(vm_id, event):
        await tx.release(vm.node_id, size_of(vm))
        await _forget_migration(tx, vm)


async def _forget_migration(tx: Transaction, vm: Vm) -> None:
    """Take back what an unfinished migration of a removed VM claims, and have its other host cleaned up.

    A host that shares the storage has nothing of its own: what it reports of the VM is found to be left over.
    """
    migration = await tx.get_migration(vm.id)
    if migration is None:
        return
    await tx.release(migration.target_node_id, migration.claimed)
    if migration.copies_disks:
        (other,) = {*migration.node_ids} - {vm.node_id} or {migration.target_node_id}
        reason = "its migration was not finished when it was removed"
        await tx.insert_departed(DepartedVm(vm.id, other, False, reason, vm.updated_at, vm.power_state))
    await tx.remove_migration(vm.id)


def size_of(vm: Vm) -> Capacity:
    """What a VM claims on its node."""
    return Capacity(vm.vcpu_count, vm.memory_bytes)


async def document_of(tx: Transaction, operation: Operation) -> Message:
    """Make the answer of an operation whose method returns the VM."""
    vm = await tx.get_vm(operation.resource_id)
    if vm is None:
        raise errors.vm_not_found(operation.resource_id)
    return documents.virtual_machine(vm)


def capacity_to_json(size: Capacity) -> Json:
    """Write a size as JSON."""
    return {"vcpus": size.vcpus, "memory_bytes": size.memory_bytes}


def capacity_from_json(stored: Mapping[str, int]) -> Capacity:
    """Read what `capacity_to_json` wrote."""
    return Capacity(stored["vcpus"], stored["memory_bytes"])
