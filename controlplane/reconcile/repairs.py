"""Asks for the operations that end what others left half done on a host, which a full state of that host shows.

They are looked for in every full state anew, so nothing is lost if one cannot be asked for now or fails again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from controlplane.domain import errors
from controlplane.domain.admission import is_restarted_elsewhere
from controlplane.domain.back_off import back_off_s
from controlplane.domain.operation import DepartedVm, Operation, OperationFilter, OperationState
from controlplane.domain.pending import Size, size_of_spec
from controlplane.domain.snapshots import require_delete_allowed
from controlplane.domain.vm import Vm, require_managed
from controlplane.operations.desk import Caller, OperationDesk, Order
from controlplane.operations.protection import ProtectVm
from controlplane.operations.vm_clone import CloneVm
from controlplane.operations.vm_life import CleanUpVm, CreateVm, DeleteVm, RemoveStep, TakeOverVm
from controlplane.operations.vm_migration_settle import SettleMigration
from controlplane.operations.vm_migration_settle import require_settleable as require_place
from controlplane.operations.vm_release import ReleaseVm
from controlplane.operations.vm_settle import SettleDevices, require_settleable
from controlplane.operations.vm_snapshots import DeleteSnapshot
from controlplane.operations.vm_update import ConvertVm, UpdateVm, redefinition, require_redefinable
from controlplane.state.interface import Transaction
from limiquantix.compute.v1.node_service_pb2 import VMStatusReport
from limiquantix.compute.v1.vm_pb2 import VmStatus
from limiquantix.errors import ApiError, Reason

_log = structlog.get_logger(__name__)

RECONCILER = Caller(principal="system:reconcile")

_NOT_BEGUN = frozenset(
    {
        Reason.VM_STATE_FORBIDS,
        Reason.VM_NOT_MANAGED,
        Reason.NODE_NOT_PLACED,
        Reason.VM_NOT_FOUND,
        Reason.TEMPLATE_IN_USE,
        Reason.VM_BEING_CLONED,
    }
)
"""Faults of a deletion that say for sure that nothing was deleted."""

_WITHOUT_HOST = frozenset({TakeOverVm.kind, UpdateVm.kind, ConvertVm.kind})
"""Kinds that need no host; an update says in its first step's result if it did."""

_OPERATIONS_LOOKED_AT = 32


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something of a VM that is in no inventory: the VM itself, or only images of it, which no host reports.

    `generation` is the newest one that the host told of, 0 if it did not tell.
    """

    id: str
    state: VmStatus.PowerState.ValueType
    generation: int = 0


async def was_ours(tx: Transaction, vm_id: str) -> bool:
    """Whether it is on record that we deleted a VM, or failed to create it."""
    ours = OperationFilter(resource_id=vm_id, kinds=frozenset({CreateVm.kind, CloneVm.kind, DeleteVm.kind}))
    for operation in (await tx.list_operations(ours, None, 10)).items:
        succeeded = operation.state == OperationState.SUCCEEDED
        if (operation.kind == DeleteVm.kind) == succeeded and operation.has_ended:
            return True
    return False


async def is_half_deleted(tx: Transaction, vm_id: str) -> bool:
    """Whether a deletion of the VM failed when its host may have begun with it, and nothing showed the VM there since.

    What was tried in vain after the deletion shows nothing: the VM may not have been there any more.
    """
    page = await tx.list_operations(OperationFilter(resource_id=vm_id), None, _OPERATIONS_LOOKED_AT)
    in_order = sorted(page.items, key=lambda operation: operation.generation)  # that in which they were worked on
    for operation in reversed(in_order):
        if _is_deletion_in_doubt(operation):
            return True
        if _shows_vm(operation):
            return False
    return False


def _is_deletion_in_doubt(operation: Operation) -> bool:
    return (
        operation.kind == DeleteVm.kind
        and operation.steps[0].name == RemoveStep.name
        and operation.fault is not None
        and operation.fault.reason not in _NOT_BEGUN
    )


def _shows_vm(operation: Operation) -> bool:
    """Whether an operation cannot have succeeded without its host having the VM."""
    asked_host = operation.kind not in _WITHOUT_HOST or any(step.result.get("reaches_host") for step in operation.steps)
    return operation.state == OperationState.SUCCEEDED and asked_host


def is_otherwise_defined(vm: Vm, report: VMStatusReport) -> bool:
    """Whether a host defines a VM of ours, off or in memory, in another size than is recorded, or in another role."""
    if not vm.is_managed or not report.vcpu_count or not report.memory_mib:  # of an older daemon, which does not say
        return False
    try:
        require_redefinable(vm)
    except ApiError:
        return False
    if report.HasField("is_template") and report.is_template != vm.spec.template.is_template:
        return True
    return Size(report.vcpu_count, report.memory_mib) != size_of_spec(vm.spec)


async def clean_up(desk: OperationDesk, node_id: str, leftover: Leftover, now: datetime) -> None:
    """Have a host remove what a failed create or a delete left there, unless that is under way.

    Until that is done it is on record: after half of it, the host does not report the VM any more.
    """

    async def note(tx: Transaction) -> None:
        if await tx.active_resource_ids([leftover.id]):
            raise errors.concurrent_change("vm", leftover.id)
        if leftover.id not in await tx.departed("", [leftover.id]):
            reason = "its host has it, though it was deleted, or failed to be created"
            await tx.insert_departed(DepartedVm(leftover.id, node_id, False, reason, now, leftover.state))

    order = Order(
        CleanUpVm.kind,
        leftover.id,
        parameters={"node_id": node_id},
        place=note,
        generation=leftover.generation + 1,
    )
    await _ask(desk, order)


async def delete_again(desk: OperationDesk, vm_id: str) -> None:
    """Have a deletion carried to its end of which the host had begun."""
    order = Order(DeleteVm.kind, vm_id, parameters={"force": True, "inventory_only": False}, check=require_managed)
    await _ask(desk, order)


async def drop_snapshot(desk: OperationDesk, vm_id: str, snapshot_id: str) -> None:
    """Have a host remove what it may have of a snapshot whose creation failed."""
    parameters = {"snapshot_id": snapshot_id, "is_leftover": True}
    await _ask(desk, Order(DeleteSnapshot.kind, vm_id, parameters=parameters, check=require_delete_allowed))


async def settle_devices(desk: OperationDesk, vm_id: str) -> None:
    """Have a host make a VM's devices those that are recorded."""
    await _ask(desk, Order(SettleDevices.kind, vm_id, check=require_settleable))


async def settle_migration(desk: OperationDesk, vm_id: str) -> None:
    """Have it found out where a VM is after its migration, and its hosts tidied up."""
    await _ask(desk, Order(SettleMigration.kind, vm_id, check=require_place))


async def release(desk: OperationDesk, vm_id: str, node_id: str, now: datetime) -> None:
    """Have a host that is back forget a VM that was started elsewhere; its disks stay.

    After failures in a row it is asked for again later each time: the host may report everything every few seconds.
    """
    wanted = OperationFilter(resource_id=vm_id, kinds=frozenset({ReleaseVm.kind}))
    failures = []
    for operation in (await desk.list(wanted, None, _OPERATIONS_LOOKED_AT)).items:
        if not operation.has_ended:
            return
        if operation.state != OperationState.FAILED:
            break
        failures.append(operation)
    last = failures[0].ended_at if failures else None
    if last is not None and now - last < timedelta(seconds=back_off_s(len(failures))):
        return
    await _ask(desk, Order(ReleaseVm.kind, vm_id, parameters={"node_id": node_id}, check=require_managed))


async def protect(desk: OperationDesk, vm_id: str) -> None:
    """Have a host note whether a VM ends with its lease."""
    await _ask(desk, Order(ProtectVm.kind, vm_id, check=require_place))


async def not_as_protected_as_asked(tx: Transaction, node_id: str, vms: Sequence[Vm]) -> list[str]:
    """Ids of those VMs of a node that are to be protected and are not, or the other way round, and are not busy.

    None of a node that is known not to be able to.
    """
    found = [vm.id for vm in vms if vm.is_managed and vm.is_protected != is_restarted_elsewhere(vm.spec)]
    if not found:
        return []
    guards = {guard.node_id: guard for guard in await tx.node_guards()}
    if node_id not in guards or not guards[node_id].can_self_fence:
        return []
    busy = await tx.active_resource_ids(found)
    return [vm_id for vm_id in found if vm_id not in busy]


async def define_again(desk: OperationDesk, vm_id: str) -> None:
    """Have a host define a VM as it is recorded."""

    def check(vm: Vm) -> None:
        require_managed(vm)
        require_redefinable(vm)

    await _ask(desk, Order(UpdateVm.kind, vm_id, parameters=redefinition(), check=check))


async def _ask(desk: OperationDesk, order: Order) -> None:
    try:
        operation = await desk.submit(order, RECONCILER)
    except ApiError as error:  # the next full state shows it again
        _log.info("repair_not_begun", kind=order.kind, vm_id=order.resource_id, reason=error.reason)
    else:
        _log.warning("repair_begun", kind=order.kind, vm_id=order.resource_id, operation_id=operation.id)
