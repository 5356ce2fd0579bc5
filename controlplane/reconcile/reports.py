"""Takes in what hosts report: single changes, whole states, and the digest of their state in each heartbeat."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

import structlog

from controlplane.daemons.node_spec import REPORT_OF_STATE
from controlplane.domain import errors
from controlplane.domain.event import Event, EventType, Severity
from controlplane.domain.migration import Migration
from controlplane.domain.operation import DepartedVm
from controlplane.domain.snapshots import abandoned_of
from controlplane.domain.vm import ALIVE_STATES, DEFAULT_PROJECT_ID, PowerState, Vm
from controlplane.operations.desk import OperationDesk
from controlplane.operations.vm_records import remove, size_of
from controlplane.reconcile import judgement, repairs
from controlplane.reconcile.judgement import Finding, Verdict
from controlplane.reconcile.repairs import Leftover
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1 import node_service_pb2 as api
from limiquantix.errors import Aborted
from limiquantix.inventory import state_hash

_log = structlog.get_logger(__name__)

ResultT = TypeVar("ResultT")

_MAX_TRIES = 5
"""A whole state is compared in one transaction, which meets others that change the same VMs."""

_NOT_ON_HOST = frozenset({PowerState.PROVISIONING, PowerState.LOST, PowerState.TERMINATED})


@dataclass(slots=True)
class SyncOutcome:
    """What a full sync found: ids of VMs, but for those that are as they should be, which are counted."""

    reconciled: int = 0
    discovered: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    abandoned: list[str] = field(default_factory=list)
    leftovers: list[Leftover] = field(default_factory=list)
    half_deleted: list[str] = field(default_factory=list)
    otherwise_defined: list[str] = field(default_factory=list)
    unsettled: list[str] = field(default_factory=list)
    """VMs with devices in doubt."""
    unsettled_migrations: list[str] = field(default_factory=list)
    """VMs whose last migration left something to do on this node."""
    left_behind: list[str] = field(default_factory=list)
    """VMs that were started elsewhere after this node failed, of which it still has the definition."""
    unprotected: list[str] = field(default_factory=list)
    """VMs of which the node has not noted what their policy asks for."""
    abandoned_snapshots: list[tuple[str, str]] = field(default_factory=list)
    """(VM id, snapshot id) of what failed creations may have left there."""
    misplaced: list[tuple[str, str]] = field(default_factory=list)
    """(VM id, node it is placed on) of VMs this node has though they belong elsewhere."""


@dataclass(frozen=True, slots=True)
class HostReportService:
    """Takes in reports; holds no state of its own."""

    store: Store
    desk: OperationDesk
    now: Callable[[], datetime]

    # -- one change

    async def vm_changed(self, request: api.VMChangeNotification) -> str:
        """Take in one change.

        Returns:
            What was done, see `VMChangeAck.action`.
        """
        if await self.store.read(lambda tx: self._is_known(tx, request)):
            return Finding.UPDATED.value  # mostly: what a command of ours did, which its answer told already
        done = await self._repeated(lambda tx: self._vm_changed(tx, request))
        if done is Finding.HALF_DELETED:
            await repairs.delete_again(self.desk, request.vm.id)
        if done is Finding.MISPLACED:
            _log.error("vm_misplaced", vm_id=request.vm.id, reported_by=request.node_id)
        return done.value

    async def _is_known(self, tx: Transaction, request: api.VMChangeNotification) -> bool:
        """Whether the record says just what the report does."""
        vm, report = await tx.get_vm(request.vm.id), request.vm
        return (
            vm is not None
            and request.event_type != api.VM_CHANGE_DELETED
            and vm.node_id == request.node_id
            and vm.reported_change_count == report.state_change_count
            and vm.power_state == judgement.reported_state(report)
            and judgement.with_guest_of(vm, report) is vm
        )

    async def _vm_changed(self, tx: Transaction, request: api.VMChangeNotification) -> Finding:
        report, node_id = request.vm, request.node_id
        is_gone = request.event_type == api.VM_CHANGE_DELETED
        vm = await tx.get_vm(report.id)
        if vm is None:
            if is_gone or report.is_managed:
                # What we define is known before a host has it: this VM is being deleted, or a full sync tells more.
                return Finding.IGNORED
            return await self._unknown(tx, node_id, report)
        if await self._is_migrating(tx, vm, node_id, await tx.get_migration(vm.id), None if is_gone else report):
            return Finding.KEPT
        if is_gone:
            return await self._absent(tx, vm.id, node_id, report.state_change_count)
        verdict = judgement.judge_present(vm, node_id, report, self.now())
        if verdict.finding is Finding.UPDATED and verdict.vm is None:
            await tx.touch_vms(node_id, {vm.id: report.state_change_count}, self.now())
        return await self._apply(tx, verdict)

    # -- everything

    async def full_state(self, request: api.SyncFullStateRequest) -> SyncOutcome:
        """Compare everything a node has with everything recorded of it, in one transaction. Idempotent.

        Raises:
            NotFound: no such node; its daemon must register.
        """
        outcome = await self._repeated(lambda tx: self._full_state(tx, request))
        for leftover in outcome.leftovers:
            await repairs.clean_up(self.desk, request.node_id, leftover, self.now())
        for vm_id in outcome.half_deleted:
            await repairs.delete_again(self.desk, vm_id)
        for vm_id, snapshot_id in outcome.abandoned_snapshots:
            await repairs.drop_snapshot(self.desk, vm_id, snapshot_id)
        for vm_id in outcome.unsettled:
            await repairs.settle_devices(self.desk, vm_id)
        for vm_id in outcome.unsettled_migrations:
            await repairs.settle_migration(self.desk, vm_id)
        for vm_id in outcome.left_behind:
            await repairs.release(self.desk, vm_id, request.node_id, self.now())
        for vm_id in outcome.unprotected:
            await repairs.protect(self.desk, vm_id)
        for vm_id in outcome.otherwise_defined:
            await repairs.define_again(self.desk, vm_id)
        if outcome.lost or outcome.abandoned or outcome.misplaced or outcome.discovered or outcome.leftovers:
            _log.warning(
                "full_sync_differs",
                node_id=request.node_id,
                lost=outcome.lost,
                discovered=outcome.discovered,
                abandoned=outcome.abandoned,
                leftovers=[leftover.id for leftover in outcome.leftovers],
                misplaced=outcome.misplaced,
            )
        return outcome

    async def _full_state(self, tx: Transaction, request: api.SyncFullStateRequest) -> SyncOutcome:
        node_id, now = request.node_id, self.now()
        if await tx.get_node(node_id) is None:
            raise errors.node_not_found(node_id)
        outcome = SyncOutcome()
        reports = {report.id: report for report in request.vms}
        unchanged: dict[str, int] = {}
        otherwise_defined: list[str] = []
        unsettled: list[str] = []
        present: list[Vm] = []
        migrations = {each.vm_id: each for each in await tx.migrations_of_node(node_id)}
        for vm in sorted(await tx.vms_on_node(node_id), key=lambda vm: vm.id):
            report = reports.pop(vm.id, None)
            if await self._is_migrating(tx, vm, node_id, migrations.get(vm.id), report):
                continue
            if report is None:
                finding = await self._absent(tx, vm.id, node_id, request.as_of_change_count)
                self._count(finding, vm.id, outcome)
                continue
            verdict = judgement.judge_present(vm, node_id, report, now)
            outcome.reconciled += 1
            if verdict.finding is Finding.UPDATED and verdict.vm is None:
                unchanged[vm.id] = report.state_change_count
            await self._apply(tx, verdict)
            if vm.details.devices_in_doubt:
                unsettled.append(vm.id)
            present.append(vm)
            outcome.abandoned_snapshots += [(vm.id, each) for each in abandoned_of(vm)]
            if verdict.finding is Finding.UPDATED and repairs.is_otherwise_defined(verdict.vm or vm, report):
                otherwise_defined.append(vm.id)
        await tx.touch_vms(node_id, unchanged, now)
        outcome.unprotected = await repairs.not_as_protected_as_asked(tx, node_id, present)
        busy = await tx.active_resource_ids([*otherwise_defined, *unsettled])  # they may just be changing
        outcome.unsettled = [vm_id for vm_id in unsettled if vm_id not in busy]
        moving = await tx.active_resource_ids(migrations)
        outcome.unsettled_migrations = [vm_id for vm_id in migrations if vm_id not in moving]
        outcome.otherwise_defined = [vm_id for vm_id in otherwise_defined if vm_id not in busy]
        await self._not_placed_here(tx, node_id, reports, migrations, outcome)
        return outcome

    @staticmethod
    def _count(finding: Finding, vm_id: str, outcome: SyncOutcome) -> None:
        if finding is Finding.LOST:
            outcome.lost.append(vm_id)
        elif finding is Finding.ABANDONED:
            outcome.abandoned.append(vm_id)
        elif finding is Finding.HALF_DELETED:
            outcome.half_deleted.append(vm_id)

    async def _not_placed_here(
        self,
        tx: Transaction,
        node_id: str,
        reports: Mapping[str, api.VMStatusReport],
        migrations: Mapping[str, Migration],
        outcome: SyncOutcome,
    ) -> None:
        """Take in what the node has beyond what is placed there, and that it lost what it had beyond that."""
        now = self.now()
        departed = await tx.departed(node_id, reports)
        gone = [each for vm_id, each in departed.items() if each.node_id == node_id and vm_id not in reports]
        await tx.remove_departed([each.vm_id for each in gone if each.is_kept])
        # Images of the others may be left even without a VM, which nobody reports.
        outcome.leftovers += [Leftover(each.vm_id, each.power_state) for each in gone if not each.is_kept]
        for vm_id in sorted(reports):
            vm = await tx.get_vm(vm_id)
            if vm is not None and await self._is_migrating(tx, vm, node_id, migrations.get(vm_id), reports[vm_id]):
                continue
            if vm is not None:
                verdict = judgement.judge_present(vm, node_id, reports[vm_id], now)
                if verdict.finding is Finding.MISPLACED:
                    outcome.misplaced.append((vm_id, vm.node_id))
                elif verdict.finding is Finding.LEFT_BEHIND:
                    outcome.left_behind.append(vm_id)
                await self._apply(tx, verdict)
                continue
            match await self._unknown(tx, node_id, reports[vm_id], departed.get(vm_id)):
                case Finding.DISCOVERED:
                    outcome.discovered.append(vm_id)
                case Finding.LEFTOVER:
                    state, generation = judgement.reported_state(reports[vm_id]), reports[vm_id].generation
                    outcome.leftovers.append(Leftover(vm_id, state, generation))
        for vm in await tx.vms_seen_by(node_id):
            if vm.id not in reports:
                await self._absent(tx, vm.id, node_id, 0)

    # -- what both need

    @staticmethod
    async def _is_migrating(
        tx: Transaction, vm: Vm, node_id: str, migration: Migration | None, report: api.VMStatusReport | None
    ) -> bool:
        """Whether what a node says of a VM, None that it has it not, is left to a migration of it."""
        if migration is None:
            return False
        is_alive = report is not None and judgement.reported_state(report) in ALIVE_STATES
        is_busy = bool(await tx.active_resource_ids([vm.id]))
        return judgement.is_left_to_migration(vm, node_id, migration, is_alive=is_alive, is_busy=is_busy)

    async def _absent(self, tx: Transaction, vm_id: str, node_id: str, change_count: int) -> Finding:
        """Take in that a host does not have a VM.

        The VM is read again and held first, then its operations: one that ends must write the VM, so it is seen as
        unfinished now or has ended before, and then what it wrote is seen. In the other order, a VM whose creation
        ends between the two would look abandoned.
        """
        vm = await tx.get_vm(vm_id)
        if vm is None:
            return Finding.KEPT
        is_busy = bool(await tx.active_resource_ids([vm_id]))
        verdict = judgement.judge_absent(vm, node_id, change_count, self.now(), is_busy=is_busy)
        if verdict.finding is Finding.LOST and vm.is_managed and await repairs.is_half_deleted(tx, vm_id):
            return Finding.HALF_DELETED
        return await self._apply(tx, verdict)

    async def _apply(self, tx: Transaction, verdict: Verdict) -> Finding:
        if verdict.vm is not None and verdict.event is not None:
            if verdict.removes:
                await remove(tx, verdict.vm.id, verdict.event)
            else:
                await tx.update_vm(verdict.vm, verdict.event)
                if verdict.freed is not None:
                    await tx.release(verdict.vm.node_id, verdict.freed)
                if verdict.claimed is not None:
                    await tx.occupy(verdict.vm.node_id, verdict.claimed)
        return verdict.finding

    async def _unknown(
        self, tx: Transaction, node_id: str, report: api.VMStatusReport, departed: DepartedVm | None = None
    ) -> Finding:
        """Take in a VM that a host has and the inventory does not."""
        if departed is None:
            departed = (await tx.departed("", [report.id])).get(report.id)
        finding = judgement.judge_unknown(departed, was_ours=await repairs.was_ours(tx, report.id))
        if finding is Finding.DISCOVERED:
            await self._discover(tx, node_id, report)
        elif departed is not None and departed.power_state != judgement.reported_state(report):
            state = judgement.reported_state(report)
            await tx.insert_departed(
                DepartedVm(report.id, node_id, departed.is_kept, departed.reason, departed.departed_at, state)
            )
        return finding

    async def _discover(self, tx: Transaction, node_id: str, report: api.VMStatusReport) -> None:
        name = await self._free_name(tx, report)
        vm = judgement.discovered(report, node_id, name, self.now())
        event = Event(
            EventType.VM_DISCOVERED,
            f"VM {name} was found on its host; it is shown and left alone until it is taken over",
            Severity.WARNING,
        )
        await tx.insert_vm(vm, event)
        await tx.occupy(node_id, size_of(vm))

    @staticmethod
    async def _free_name(tx: Transaction, report: api.VMStatusReport) -> str:
        """Find a name for a VM whose own one may be taken, or none."""
        for name in (report.name, f"{report.name[:246]}-{report.id[:8]}"):
            if name and not await tx.is_name_taken(DEFAULT_PROJECT_ID, name):
                return name
        return report.id

    async def _repeated(self, work: Callable[[Transaction], Awaitable[ResultT]]) -> ResultT:
        """Do the work, again if what it read was changed by others before it wrote."""
        for _ in range(_MAX_TRIES - 1):
            try:
                return await self.store.run(work)
            except Aborted as error:
                _log.debug("report_repeated", reason=error.reason)
        return await self.store.run(work)


async def expected_hash(tx: Transaction, node_id: str) -> str:
    """Work out which digest a node would report if it had what is recorded; see `limiquantix.inventory`."""
    states = {
        vm_id: state for vm_id, state in (await tx.power_states_on_node(node_id)).items() if state not in _NOT_ON_HOST
    }
    states |= {vm.id: vm.sightings[node_id] for vm in await tx.vms_seen_by(node_id)}
    for vm_id, each in (await tx.departed(node_id, ())).items():
        # What is still to be removed there makes the digests differ, whether the host has a VM of it or images only:
        # each full state that is sent therefore begins its removal again, until it is done.
        states[vm_id] = each.power_state if each.is_kept else PowerState.UNKNOWN
    unfinished = {each.vm_id: each for each in await tx.migrations_of_node(node_id)}
    for vm_id in unfinished.keys() - await tx.active_resource_ids(unfinished):
        # As above: what a migration left is settled whenever one of its hosts sends a full state.
        if not (unfinished[vm_id].is_settled and vm_id in states):
            states[vm_id] = PowerState.UNKNOWN
    return state_hash({vm_id: REPORT_OF_STATE[state] for vm_id, state in states.items()})
