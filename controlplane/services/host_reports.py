"""What hosts report of their VMs, taken into the records.

Hosts own the observed state. A report is dropped when a newer one of the same VM was stored (`state_change_count`), and
it is never believed from a node the VM is not placed on: two nodes claiming one VM is a conflict for a person to see,
not something to be overwritten by whoever speaks last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import structlog

from controlplane.domain import errors
from controlplane.domain.node import Capacity
from controlplane.domain.vm import PowerState, Vm, lost, observed
from controlplane.services.node_spec import STATE_OF_REPORT
from controlplane.services.vm_operations import VmOperations
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1 import node_service_pb2 as api

_log = structlog.get_logger(__name__)

LOST_REASON = "removed on its host outside the control plane"


class SyncTracker:
    """Remembers which nodes told this process their whole state since it started, or since they registered."""

    def __init__(self) -> None:
        self._synced: set[str] = set()

    def is_due(self, node_id: str) -> bool:
        """Whether the node should send its full state."""
        return node_id not in self._synced

    def done(self, node_id: str) -> None:
        """The node sent its full state."""
        self._synced.add(node_id)

    def forget(self, node_id: str) -> None:
        """Ask the node again; it restarted."""
        self._synced.discard(node_id)


@dataclass(slots=True)
class SyncOutcome:
    """What a full sync found."""

    reconciled: int = 0
    unknown: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    abandoned: list[str] = field(default_factory=list)
    """Creates that a dead control plane left before the host had done anything; removed."""
    misplaced: list[tuple[str, str]] = field(default_factory=list)
    """(VM id, node it is placed on) of VMs this node has though they belong elsewhere."""


@dataclass(frozen=True, slots=True)
class HostReportService:
    """Takes in single changes and full states."""

    store: Store
    operations: VmOperations
    syncs: SyncTracker
    now: Callable[[], datetime]

    async def vm_changed(self, request: api.VMChangeNotification) -> str:
        """Take in one change.

        Returns:
            What was done: "UPDATED", "LOST", "STALE" (a newer report is stored), "UNKNOWN" (no such VM) or "MISPLACED".
        """
        done = await self.store.run(lambda tx: self._vm_changed(tx, request))
        if done == "MISPLACED":
            _log.error("vm_misplaced", vm_id=request.vm.id, reported_by=request.node_id)
        return done

    async def _vm_changed(self, tx: Transaction, request: api.VMChangeNotification) -> str:
        report = request.vm
        vm = await tx.get_vm(report.id)
        if vm is None:
            return "UNKNOWN"
        if vm.node_id != request.node_id:
            return "MISPLACED"
        if report.state_change_count < vm.reported_change_count:
            return "STALE"
        if request.event_type == api.VM_CHANGE_DELETED:
            gone = replace(vm, reported_change_count=report.state_change_count)
            await tx.update_vm(lost(gone, LOST_REASON, self.now()))
            return "LOST"
        await tx.update_vm(self._seen(vm, report))
        return "UPDATED"

    def _seen(self, vm: Vm, report: api.VMStatusReport) -> Vm:
        state = STATE_OF_REPORT.get(report.state, PowerState.UNKNOWN)
        return observed(vm, state, report.state_change_count, self.now())

    async def full_state(self, request: api.SyncFullStateRequest) -> SyncOutcome:
        """Compare everything a node has with everything placed there, in one transaction. Idempotent.

        Raises:
            NotFound: no such node; its daemon must register.
        """
        outcome = await self.store.run(lambda tx: self._full_state(tx, request))
        self.syncs.done(request.node_id)
        if outcome.lost or outcome.abandoned or outcome.misplaced:
            _log.warning(
                "full_sync_differs",
                node_id=request.node_id,
                lost=outcome.lost,
                abandoned=outcome.abandoned,
                misplaced=outcome.misplaced,
            )
        return outcome

    async def _full_state(self, tx: Transaction, request: api.SyncFullStateRequest) -> SyncOutcome:
        if await tx.get_node(request.node_id) is None:
            raise errors.node_not_found(request.node_id)
        outcome = SyncOutcome()
        reports = {report.id: report for report in request.vms}
        for vm in await tx.vms_on_node(request.node_id):
            report = reports.pop(vm.id, None)
            if report is None:
                await self._missing_on_host(tx, vm, request.as_of_change_count, outcome)
            else:
                outcome.reconciled += 1
                if report.state_change_count >= vm.reported_change_count:
                    await tx.update_vm(self._seen(vm, report))
        await self._not_placed_here(tx, list(reports), outcome)
        return outcome

    async def _missing_on_host(self, tx: Transaction, vm: Vm, as_of_count: int, outcome: SyncOutcome) -> None:
        is_newer_than_list = as_of_count and vm.reported_change_count > as_of_count
        if self.operations.is_active(vm.id) or vm.power_state == PowerState.LOST or is_newer_than_list:
            return
        if vm.power_state == PowerState.PROVISIONING:
            await tx.delete_vm(vm.id)
            await tx.release(vm.node_id, Capacity(vm.vcpu_count, vm.memory_bytes))
            outcome.abandoned.append(vm.id)
            return
        await tx.update_vm(lost(vm, LOST_REASON, self.now()))
        outcome.lost.append(vm.id)

    async def _not_placed_here(self, tx: Transaction, vm_ids: Sequence[str], outcome: SyncOutcome) -> None:
        placed = await tx.nodes_of_vms(vm_ids)
        for vm_id in vm_ids:
            if vm_id in placed:
                outcome.misplaced.append((vm_id, placed[vm_id]))
            else:
                outcome.unknown.append(vm_id)
