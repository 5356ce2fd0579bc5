"""Starting a VM elsewhere because its host is proven dead: move its record and its claim, define it there, start it.

The proof is read again, and held, in the transaction that moves the VM. From then on the operation only goes forward:
the VM is its new node's, whatever fails after that, and `reconcile.keeper` goes on with it there. Nothing is asked of
the dead host, now or later, but to forget its definition once it is back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import ClassVar

from google.protobuf.message import Message

from controlplane.daemons.interface import NodeDaemon
from controlplane.daemons.node_spec import STATE_OF_STATUS, in_callers_words, to_adopted_spec
from controlplane.domain import errors, ha_errors
from controlplane.domain.admission import is_restarted_elsewhere
from controlplane.domain.event import Event, EventType, Severity
from controlplane.domain.fencing import Fence, proves_dead
from controlplane.domain.guests import without_guest
from controlplane.domain.migration import MigrationWish
from controlplane.domain.node import Node
from controlplane.domain.operation import Fault, Json, Operation
from controlplane.domain.vm import ALIVE_STATES, PowerState, Vm, require_managed, settled, without_failover
from controlplane.operations.protection import defined_with_protection, record_protection
from controlplane.operations.steps import (
    NOTHING,
    DatabaseStep,
    Outcome,
    Run,
    Step,
    Workflow,
)
from controlplane.operations.vm_failover_settle import SettleStep
from controlplane.operations.vm_migration import ChooseTarget
from controlplane.operations.vm_records import document_of, locked, outcome_of, record_failure, record_status, size_of
from controlplane.state.interface import Transaction
from limiquantix.compute.v1.ha_service_pb2 import FenceMethod
from limiquantix.compute.v1.vm_pb2 import VmStatus
from limiquantix.errors import ApiError, Reason
from limiquantix.node.v1 import node_daemon_pb2 as node_v1

_NOT_TO_BE_RESTARTED = frozenset({PowerState.SUSPENDED, PowerState.PROVISIONING, PowerState.TERMINATED})


@dataclass(frozen=True, slots=True)
class FailoverWish:
    """What high availability decided, as it is in the operation's parameters."""

    fence_id: str
    epoch: int
    from_node_id: str
    target_node_id: str

    @classmethod
    def of(cls, parameters: Json) -> FailoverWish:
        """Read it."""
        return cls(
            str(parameters["fence_id"]),
            int(parameters["epoch"]),
            str(parameters["from_node_id"]),
            str(parameters["target_node_id"]),
        )


async def proof_for(tx: Transaction, vm: Vm, wish: FailoverWish) -> Fence:
    """Read the fence that proves a VM dead, and hold it; check that it still does.

    Raises:
        FailedPrecondition: it does not, or the VM is elsewhere, or is not to be restarted.
    """
    if vm.node_id != wish.from_node_id:
        raise ha_errors.not_failed_over(vm.id, f"it is on node {vm.node_id} by now")
    fence = await tx.get_fence(wish.fence_id)
    if fence is None or fence.node_id != vm.node_id or not proves_dead(fence, is_protected=vm.is_protected):
        raise ha_errors.not_failed_over(vm.id, f"fence {wish.fence_id} does not prove that it is dead")
    return fence


def require_restartable(vm: Vm) -> None:
    """Check that the VM shall run, and may be restarted elsewhere.

    Raises:
        FailedPrecondition: says why not.
    """
    require_managed(vm)
    if vm.wanted_state != PowerState.RUNNING:
        raise ha_errors.not_failed_over(vm.id, "it shall not run")
    if not is_restarted_elsewhere(vm.spec) or vm.spec.template.is_template:
        raise ha_errors.not_failed_over(vm.id, "its policy (ha_policy) does not have it restarted")
    if vm.power_state in _NOT_TO_BE_RESTARTED:
        raise ha_errors.not_failed_over(vm.id, f"it is {PowerState.Name(vm.power_state)}")
    elsewhere = sorted(
        node_id for node_id, state in vm.sightings.items() if state in ALIVE_STATES and node_id != vm.node_id
    )
    if elsewhere:
        raise errors.vm_runs_elsewhere(vm.id, elsewhere)


def moved(vm: Vm, node_id: str, fence_id: str, now: datetime) -> Vm:
    """Return the VM on the node that is to start it, off; what its old host said of it counts no more.

    If its policy has it restarted, it is protected there from now on: nothing is there yet, and `AdoptStep` has it
    defined so, or writes first that it is not. So if that node dies too, at any moment, its lease proves the VM dead.
    """
    details = VmStatus()
    details.CopyFrom(without_guest(settled(vm).details))
    details.last_fence_id, details.failover_unfinished = fence_id, True
    return replace(
        vm,
        node_id=node_id,
        power_state=PowerState.STOPPED,
        details=details,
        sightings={},
        reported_change_count=0,
        lost_reason="",
        error_message="",
        is_protected=is_restarted_elsewhere(vm.spec),
        state_changed_at=now,
        updated_at=now,
    )


class ClaimStep(DatabaseStep):
    """Check the proof, claim the room, and move the VM's record, all in one transaction."""

    name = "claim"

    def __init__(self, choose: ChooseTarget) -> None:
        self._choose = choose

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Move it. Whatever is refused here leaves everything as it was.

        Raises:
            Aborted: STALE_EPOCH, another leader decides.
            FailedPrecondition: nothing proves it dead, or it is not to be restarted.
            ResourceExhausted: the node does not take it any more; the error says why.
        """
        wish = FailoverWish.of(run.parameters)
        await tx.require_epoch(wish.epoch)
        vm = await locked(tx, run.operation.resource_id)
        if vm.details.last_fence_id == wish.fence_id and vm.node_id != wish.from_node_id and _is_under_way(vm):
            return outcome  # committed, and the answer was lost: this transaction finds that out and is dropped
        fence = await proof_for(tx, vm, wish)
        require_restartable(vm)
        await require_settled(tx, vm)
        fenced = tuple(each.node_id for each in await tx.current_fences())
        if wish.target_node_id in fenced:
            raise ha_errors.not_failed_over(vm.id, f"node {wish.target_node_id} is being fenced itself")
        chosen = await self._choose(tx, vm, _as_migration(wish, fenced))
        if wish.target_node_id not in chosen.node_ids or not await tx.claim(wish.target_node_id, chosen.size):
            raise errors.no_node_fits(f"node {wish.target_node_id} has no room any more", ())
        await tx.release(wish.from_node_id, size_of(vm))
        there = moved(vm, wish.target_node_id, fence.id, run.now())
        await tx.update_vm(there, failed_over(vm, fence, wish.target_node_id, run.operation, epoch=wish.epoch))
        if size_of(there) != chosen.size:  # a change that waited for its next start waits no more
            await tx.release(wish.target_node_id, chosen.size)
            await tx.occupy(wish.target_node_id, size_of(there))
        return Outcome({"target_node_id": wish.target_node_id, "fence_id": fence.id, "token": fence.token})


async def require_settled(tx: Transaction, vm: Vm) -> None:
    """Check that it is known what became of a VM's last migration, and forget that.

    Raises:
        FailedPrecondition: it is not.
    """
    migration = await tx.get_migration(vm.id)
    if migration is None:
        return
    if not migration.is_settled:
        raise ha_errors.not_failed_over(vm.id, "what became of its last migration is not settled yet")
    # What that left at some host is off there; it is released as every definition that is left behind.
    await tx.remove_migration(vm.id)


def _is_under_way(vm: Vm) -> bool:
    return vm.details.failover_unfinished and vm.wanted_state == PowerState.RUNNING


def _as_migration(wish: FailoverWish, fenced: Sequence[str]) -> MigrationWish:
    return MigrationWish(
        target_node_id=wish.target_node_id, live=False, shared_storage_only=True, excluded_node_ids=tuple(fenced)
    )


def failed_over(
    vm: Vm,
    fence: Fence,
    node_id: str,
    operation: Operation,
    severity: Severity.ValueType = Severity.WARNING,
    **facts: object,
) -> Event:
    """Tell that a VM is started on a node upon a proof; `vm` is as it was before."""
    method = "" if fence.proof is None else FenceMethod.Name(fence.proof.method)
    evidence = "" if fence.proof is None else fence.proof.evidence
    told = {
        "fence_id": fence.id,
        "token": str(fence.token),
        "method": method,
        "from_node_id": vm.node_id,
        "to_node_id": node_id,
        "operation_id": operation.id,
        **{name: str(value) for name, value in facts.items()},
    }
    text = f"VM {vm.name} is started on node {node_id}; node {vm.node_id} is proven dead: {evidence}"
    return Event(EventType.VM_FAILED_OVER, text, severity, operation.principal, told)


async def located_anew(run: Run) -> tuple[Vm, NodeDaemon]:
    """Read the VM, its node and who leads as they are recorded now, and find the daemon.

    Raises:
        NotFound: it is gone.
        FailedPrecondition: it is on no node.
    """

    async def read(tx: Transaction) -> tuple[Vm, Node, int]:
        vm = await locked(tx, run.operation.resource_id)
        node = await tx.get_node(vm.node_id) if vm.node_id else None
        if node is None:
            raise errors.vm_not_placed(vm.id)
        return vm, node, (await tx.leadership()).epoch

    vm, node, epoch = await run.store.read(read)
    return vm, run.daemons.daemon(node, epoch)  # in the event loop, which opens and closes connections


class AdoptStep(Step):
    """Have the new host define the VM, over the disks that are there. What it makes is not undone."""

    name = "define"

    async def do(self, run: Run) -> Outcome:
        """Give the command.

        Raises:
            FailedPrecondition: an image is not there.
        """
        vm, daemon = await located_anew(run)
        if not vm.details.failover_unfinished:
            return NOTHING  # it ran since
        request = node_v1.CreateVMOnNodeRequest(
            vm_id=vm.id,
            name=vm.name,
            spec=to_adopted_spec(vm.spec),
            labels=vm.labels,
            generation=run.operation.generation,
        )
        try:
            status, is_protected = await defined_with_protection(
                daemon.adopt_vm, request, vm.spec, partial(self._unprotected, run)
            )
        except ApiError as error:
            raise in_callers_words(error) from error
        outcome = outcome_of(status)
        return Outcome({**outcome.result, "is_protected": is_protected})

    @staticmethod
    async def _unprotected(run: Run) -> None:
        """Write that the VM will not end with its host's lease, before it is there."""
        await run.store.run(lambda tx: record_protection(tx, run.operation, is_protected=False))

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Write the host's answer."""
        if outcome.result:
            is_protected = bool(outcome.result["is_protected"])
            await record_status(tx, run.operation, outcome.result, run.now(), is_protected=is_protected)
        return outcome


class StartThereStep(Step):
    """Power on at the new host."""

    name = "start"
    wanted: ClassVar[VmStatus.PowerState.ValueType | None] = None
    """State that becomes the wanted one; None leaves that."""

    async def do(self, run: Run) -> Outcome:
        """Start it, unless it runs; or nobody asks for it, and somebody had the VM stopped while this waited."""
        vm, daemon = await located_anew(run)
        if not vm.details.failover_unfinished or (self.wanted is None and vm.wanted_state != PowerState.RUNNING):
            return NOTHING
        status = await daemon.vm_status(vm.id)
        if STATE_OF_STATUS[status.state] not in ALIVE_STATES:
            await daemon.start_vm(vm.id, run.operation.generation)
            status = await daemon.vm_status(vm.id)
        return outcome_of(status)

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Write the host's answer; it did run, whatever becomes of it."""
        if not outcome.result:
            return outcome
        restart_count = run.parameters.get("restart_count")
        vm = await record_status(
            tx, run.operation, outcome.result, run.now(), wanted=self.wanted, restart_count=restart_count
        )
        if vm.details.failover_unfinished:
            await tx.update_vm(without_failover(vm))
        return outcome


class FailoverVm(Workflow):
    """Begun by high availability. What fails before the claim changes nothing; what fails after it goes on later."""

    kind = "vm.failover"

    def __init__(self, choose: ChooseTarget) -> None:
        self._steps = (SettleStep(), ClaimStep(choose), AdoptStep(), StartThereStep())

    def steps(self, parameters: Json) -> Sequence[Step]:
        """Always the same."""
        return self._steps

    async def conclude(self, tx: Transaction, operation: Operation) -> Message:
        """Answer with the VM."""
        return await document_of(tx, operation)

    async def fail(self, tx: Transaction, operation: Operation, fault: Fault, now: datetime) -> None:
        """Leave the error with the VM, unless it turned out to be no longer in need of this."""
        vm = await tx.get_vm(operation.resource_id)
        needs_it = vm is not None and (
            vm.node_id == operation.parameters["from_node_id"] or vm.details.failover_unfinished
        )
        if needs_it and fault.reason not in (Reason.STALE_EPOCH, Reason.OPERATION_CANCELLED):
            await record_failure(tx, operation, fault, now)


class FinishFailover(Workflow):
    """Begun by the reconciler for a VM that was moved and did not run since: define it where it is, and start it."""

    kind = "vm.finish_failover"
    _steps = (AdoptStep(), StartThereStep())

    def steps(self, parameters: Json) -> Sequence[Step]:
        """Always both."""
        return self._steps

    async def conclude(self, tx: Transaction, operation: Operation) -> Message:
        """Answer with the VM."""
        return await document_of(tx, operation)

    async def fail(self, tx: Transaction, operation: Operation, fault: Fault, now: datetime) -> None:
        """Leave the error with the VM; the attempt counts as a restart."""
        await record_failure(tx, operation, fault, now, operation.parameters.get("restart_count"))
