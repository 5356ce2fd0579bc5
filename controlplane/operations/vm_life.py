"""Operations that bring VMs into the inventory and out of it."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import replace
from datetime import datetime

import structlog
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from controlplane.daemons.interface import NodeDaemon
from controlplane.daemons.node_spec import in_callers_words, to_node_spec
from controlplane.domain import errors
from controlplane.domain.event import Event, EventType, Severity
from controlplane.domain.operation import DepartedVm, Fault, Json, Operation
from controlplane.domain.vm import PowerOperation, require_managed, require_state
from controlplane.operations.protection import defined_with_protection
from controlplane.operations.steps import NOTHING, DatabaseStep, Outcome, Run, Step, Workflow
from controlplane.operations.vm_power import StartStep
from controlplane.operations.vm_records import (
    document_of,
    locked,
    outcome_of,
    record_failure,
    record_status,
    remove,
)
from controlplane.state.interface import Transaction
from limiquantix.errors import ApiError, NotFound
from limiquantix.node.v1 import node_daemon_pb2 as node_v1

_log = structlog.get_logger(__name__)


class DefineStep(Step):
    """Have the host make the images and define the VM, off."""

    name = "define"

    async def do(self, run: Run) -> Outcome:
        """Give the command."""
        vm, daemon = await run.located()
        request = node_v1.CreateVMOnNodeRequest(
            vm_id=vm.id,
            name=vm.name,
            spec=to_node_spec(vm.spec),
            labels=vm.labels,
            generation=run.operation.generation,
        )
        try:
            status, is_protected = await defined_with_protection(daemon.create_vm, request, vm.spec)
        except ApiError as error:
            raise in_callers_words(error) from error
        return Outcome({**outcome_of(status).result, "is_protected": is_protected})

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Write the host's answer."""
        is_protected = bool(outcome.result["is_protected"])
        await record_status(tx, run.operation, outcome.result, run.now(), is_protected=is_protected)
        return outcome

    async def undo(self, run: Run) -> None:
        """Remove whatever there is of it, running or not."""
        try:
            vm, daemon = await run.located()
        except NotFound:
            return
        await remove_from_host(daemon, vm.id, run.operation.generation)

    async def record_given_up(self, tx: Transaction, run: Run, fault: Fault) -> None:
        """Remember the host's leftovers, so that they are removed when it reports them."""
        vm = await tx.get_vm(run.operation.resource_id)
        if vm is not None:
            reason = f"creating it failed, and then its host could not be asked to remove it: {fault.message}"
            await tx.insert_departed(DepartedVm(vm.id, vm.node_id, False, reason, run.now(), vm.power_state))


class CreateVm(Workflow):
    """`CreateVM`: the row and the claim are written with the operation; a failure leaves nothing behind."""

    kind = "vm.create"
    _define, _start = DefineStep(), StartStep()

    def steps(self, parameters: Json) -> Sequence[Step]:
        """Define, and start if asked for."""
        return (self._define, self._start) if parameters.get("start") else (self._define,)

    async def conclude(self, tx: Transaction, operation: Operation) -> Message:
        """Answer with the VM."""
        return await document_of(tx, operation)

    async def fail(self, tx: Transaction, operation: Operation, fault: Fault, now: datetime) -> None:
        """Remove the row and take the claim back."""
        event = Event(
            EventType.VM_DELETED,
            f"creating it failed: {fault.message}",
            Severity.ERROR,
            operation.principal,
            {"operation_id": operation.id, "reason": fault.reason},
        )
        await remove(tx, operation.resource_id, event)


class RemoveStep(Step):
    """Remove the VM from its host, then from the inventory."""

    name = "remove"

    async def do(self, run: Run) -> Outcome:
        """Give the commands; a VM that is gone from the inventory needs none."""
        try:
            vm, daemon = await run.located()
        except NotFound:
            return NOTHING
        require_managed(vm)
        if vm.spec.template.is_template:  # a clone that is asked for from now on is refused, since this is under way
            require_unused(vm.id, await run.store.read(lambda tx: tx.linked_clones(vm.id)))
        if not run.parameters["force"] and not run.is_repeated:
            require_state(vm, PowerOperation.DELETE)
        generation = run.operation.generation
        if run.parameters["force"]:
            await _ignoring_absence(daemon.force_stop_vm(vm.id, generation))
        await daemon.delete_vm(vm.id, generation)
        return NOTHING

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Remove the row, and take the claim back."""
        await remove(tx, run.operation.resource_id, Event(EventType.VM_DELETED, actor=run.operation.principal))
        return outcome


class ForgetStep(DatabaseStep):
    """Remove the VM from the inventory and leave its host alone."""

    name = "forget"

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Remove the row, and remember not to show the VM again."""
        vm = await tx.get_vm(run.operation.resource_id)
        if vm is not None:
            require_unused(vm.id, await tx.linked_clones(vm.id))
            reason = "removed from the inventory only"
            await tx.insert_departed(DepartedVm(vm.id, vm.node_id, True, reason, run.now(), vm.power_state))
            await remove(tx, vm.id, Event(EventType.VM_DELETED, reason, actor=run.operation.principal))
        return outcome


class DeleteVm(Workflow):
    """`DeleteVM`; a failure leaves the VM, with the error."""

    kind = "vm.delete"
    _remove, _forget = RemoveStep(), ForgetStep()

    def steps(self, parameters: Json) -> Sequence[Step]:
        """Remove it everywhere, or forget it."""
        return (self._forget,) if parameters.get("inventory_only") else (self._remove,)

    async def conclude(self, tx: Transaction, operation: Operation) -> Message:
        """Nothing to tell."""
        return Empty()

    async def fail(self, tx: Transaction, operation: Operation, fault: Fault, now: datetime) -> None:
        """Leave the error with the VM."""
        await record_failure(tx, operation, fault, now)


class TakeOverStep(DatabaseStep):
    """Manage a VM that was only shown."""

    name = "take_over"

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Write it; nothing changes if it is managed already."""
        vm = await locked(tx, run.operation.resource_id)
        if not vm.is_managed:
            event = Event(EventType.VM_TAKEN_OVER, f"VM {vm.name} is managed now", actor=run.operation.principal)
            await tx.update_vm(replace(vm, is_managed=True, updated_at=run.now()), event)
        return outcome


class TakeOverVm(Workflow):
    """`TakeOverVM`."""

    kind = "vm.take_over"
    _step = TakeOverStep()

    def steps(self, parameters: Json) -> Sequence[Step]:
        """Just the one."""
        return (self._step,)

    async def conclude(self, tx: Transaction, operation: Operation) -> Message:
        """Answer with the VM."""
        return await document_of(tx, operation)


class RemoveLeftoverStep(Step):
    """Remove from a host what a failed create or a delete left there."""

    name = "remove_leftover"

    async def do(self, run: Run) -> Outcome:
        """Give the commands."""
        node_id = str(run.parameters["node_id"])
        node = await run.store.read(lambda tx: tx.get_node(node_id))
        if node is None:
            raise errors.node_not_found(node_id)
        await remove_from_host(run.daemons.daemon(node), run.operation.resource_id, run.operation.generation)
        return NOTHING

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Nothing needs to be remembered any more."""
        await tx.remove_departed([run.operation.resource_id])
        return outcome


class CleanUpVm(Workflow):
    """Of a VM that is in no inventory; begun by the reconciler when a host reports it."""

    kind = "vm.clean_up"
    _step = RemoveLeftoverStep()

    def steps(self, parameters: Json) -> Sequence[Step]:
        """Just the one."""
        return (self._step,)

    async def conclude(self, tx: Transaction, operation: Operation) -> Message:
        """Nothing to tell."""
        return Empty()


def require_unused(vm_id: str, clone_ids: Sequence[str]) -> None:
    """Check that nothing is built upon a VM.

    Raises:
        FailedPrecondition: there are linked clones.
    """
    if clone_ids:
        raise errors.template_in_use(vm_id, clone_ids)


async def remove_from_host(daemon: NodeDaemon, vm_id: str, generation: int) -> None:
    """Remove a VM from a host, running or not; fine if it is not there.

    Raises:
        Unavailable: the host does not answer.
    """
    await _ignoring_absence(daemon.force_stop_vm(vm_id, generation))
    await daemon.delete_vm(vm_id, generation)


async def _ignoring_absence(call: Awaitable[None]) -> None:
    try:
        await call
    except NotFound:
        return
