"""What a migration writes to the database: where the VM is, what it claims where, and what is left to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from controlplane.daemons.node_spec import STATE_OF_STATUS
from controlplane.domain.event import Event, EventType, Severity
from controlplane.domain.migration import NOTHING_CLAIMED, Migration
from controlplane.domain.node import Capacity
from controlplane.domain.vm import Vm, lost, observed
from controlplane.operations.vm_records import size_of
from controlplane.state.interface import Transaction
from limiquantix.compute.v1.vm_pb2 import VmStatus
from limiquantix.node.v1.node_daemon_pb2 import VMStatusResponse

GONE_REASON = "removed while it was migrated"


async def hand_over(
    tx: Transaction,
    vm: Vm,
    migration: Migration,
    state: VmStatus.PowerState.ValueType,
    change_count: int,
    now: datetime,
    actor: str,
    facts: Mapping[str, str],
) -> Vm:
    """Write that the VM is on its target now: its place and its claim move together, in this transaction.

    Args:
        state: power state that the target told with `change_count`, which counts its own reports.
    """
    sightings = {node_id: seen for node_id, seen in vm.sightings.items() if node_id not in migration.node_ids}
    # It is not protected there before it is known that its host noted it.
    there = replace(
        vm,
        node_id=migration.target_node_id,
        sightings=sightings,
        error_message="",
        is_protected=False,
        updated_at=now,
    )
    moved = observed(there, state, change_count, now)
    event = Event(
        EventType.VM_MIGRATED,
        f"VM {vm.name} was migrated from node {migration.source_node_id} to node {migration.target_node_id}",
        actor=actor,
        metadata={
            "source_node_id": migration.source_node_id,
            "target_node_id": migration.target_node_id,
            "operation_id": migration.operation_id,
            **facts,
        },
    )
    written = await tx.update_vm(moved, event)
    await tx.put_migration(replace(migration, claimed=NOTHING_CLAIMED, is_settled=True))
    give_back = {migration.source_node_id: size_of(vm)}
    rest = _difference(migration.claimed, size_of(moved))
    if rest != NOTHING_CLAIMED:
        give_back[migration.target_node_id] = rest
    for node_id in sorted(give_back):  # always in this order, so that two that cross do not wait for each other
        await _give_back(tx, node_id, give_back[node_id])
    return written


async def stay(tx: Transaction, migration: Migration, *, is_tidy: bool) -> None:
    """Write that the VM is on its source: the claim on the target goes; what is left to tidy up stays noted."""
    await _give_back(tx, migration.target_node_id, migration.claimed)
    if is_tidy:
        await tx.remove_migration(migration.vm_id)
    else:
        await tx.put_migration(replace(migration, claimed=NOTHING_CLAIMED, is_settled=True))


async def vanish(tx: Transaction, vm: Vm, migration: Migration, now: datetime) -> None:
    """Write that neither host has the VM any more."""
    text = f"VM {vm.name} is on neither node {migration.source_node_id} nor node {migration.target_node_id} any more"
    await tx.update_vm(lost(vm, GONE_REASON, now), Event(EventType.VM_LOST, text, Severity.CRITICAL))
    await stay(tx, migration, is_tidy=True)


def at_source(vm: Vm, status: VMStatusResponse, now: datetime) -> Vm:
    """Return the VM as its source says it is, unless a newer report is known."""
    if status.state_change_count < vm.reported_change_count:
        return vm
    return observed(vm, STATE_OF_STATUS[status.state], status.state_change_count, now)


def _difference(larger: Capacity, smaller: Capacity) -> Capacity:
    return Capacity(larger.vcpus - smaller.vcpus, larger.memory_bytes - smaller.memory_bytes)


async def _give_back(tx: Transaction, node_id: str, size: Capacity) -> None:
    """Release what is positive of a size, and take what is negative, room or not: it is there already."""
    released = Capacity(max(size.vcpus, 0), max(size.memory_bytes, 0))
    taken = Capacity(max(-size.vcpus, 0), max(-size.memory_bytes, 0))
    if released != NOTHING_CLAIMED:
        await tx.release(node_id, released)
    if taken != NOTHING_CLAIMED:
        await tx.occupy(node_id, taken)
