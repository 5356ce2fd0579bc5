"""Moving a VM that does not start where it is to another node, which starts it.

Only where it is off by the word of its own node, which lets go of its definition first: so nothing is left there that
could be started beside the one that goes on elsewhere. Disks stay, so only nodes that reach them are asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from controlplane.domain import errors
from controlplane.domain.event import Event, EventType, Severity
from controlplane.domain.migration import MigrationWish
from controlplane.domain.operation import Fault, Json, Operation
from controlplane.domain.placement import LOST_EVERY_RACE
from controlplane.domain.vm import PowerOperation, Vm, require_state, with_failover
from controlplane.operations.steps import DatabaseStep, Outcome, Run, Step
from controlplane.operations.vm_failover import (
    FinishFailover,
    located_anew,
    moved,
    require_restartable,
)
from controlplane.operations.vm_migration import ChooseTarget, Chosen
from controlplane.operations.vm_records import locked, size_of
from controlplane.state.interface import Transaction


class MarkStep(DatabaseStep):
    """Before its node lets go of a VM, see that another one takes it, and note that it is to be defined anew.

    Whatever fails after that, `FinishFailover` defines and starts it wherever it is then.
    """

    name = "mark"

    def __init__(self, choose: ChooseTarget) -> None:
        self._choose = choose

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Note it; nothing for one that was moved and did not run since.

        Raises:
            FailedPrecondition: it runs by now, or is not to be restarted.
            ResourceExhausted: no other node takes it; the error has one reason per node.
        """
        vm = await locked(tx, run.operation.resource_id)
        if not vm.details.failover_unfinished:
            require_restartable(vm)
            require_state(vm, PowerOperation.START)
            await _chosen(self._choose, tx, vm)
            await tx.update_vm(with_failover(vm))
        return outcome


class LetGoStep(Step):
    """Have the VM's node let go of it: it says that the VM does not run there."""

    name = "let_go"

    async def do(self, run: Run) -> Outcome:
        """Give the command.

        Raises:
            FailedPrecondition: the VM runs there.
        """
        vm, daemon = await located_anew(run)
        if vm.details.failover_unfinished:
            await daemon.release_vm(vm.id, run.operation.generation)
        return Outcome({}, {"from_node_id": vm.node_id})


class MoveStep(DatabaseStep):
    """Claim room on another node, and move the VM's record there."""

    name = "claim"

    def __init__(self, choose: ChooseTarget) -> None:
        self._choose = choose

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Move it, unless it ran meanwhile.

        Raises:
            ResourceExhausted: no other node takes it; the error has one reason per node.
        """
        vm = await locked(tx, run.operation.resource_id)
        if vm.node_id != run.parameters["from_node_id"] or not vm.details.failover_unfinished:
            return outcome
        require_restartable(vm)
        chosen = await _chosen(self._choose, tx, vm)
        for node_id in chosen.node_ids:
            if await tx.claim(node_id, chosen.size):
                await tx.release(vm.node_id, size_of(vm))
                text = f"VM {vm.name} is started on node {node_id}, since it could not be on node {vm.node_id}"
                facts = {"from_node_id": vm.node_id, "to_node_id": node_id, "operation_id": run.operation.id}
                event = Event(EventType.VM_FAILED_OVER, text, Severity.WARNING, run.operation.principal, facts)
                await tx.update_vm(moved(vm, node_id, vm.details.last_fence_id, run.now()), event)
                return Outcome({"target_node_id": node_id})
        raise errors.no_node_fits(LOST_EVERY_RACE, ())


async def _chosen(choose: ChooseTarget, tx: Transaction, vm: Vm) -> Chosen:
    """Choose a node that lives, has room and reaches the disks."""
    fenced = tuple(each.node_id for each in await tx.current_fences())
    return await choose(tx, vm, MigrationWish(shared_storage_only=True, excluded_node_ids=fenced))


class RelocateVm(FinishFailover):
    """Begun by the reconciler when a VM did not start where it is: have its node let go of it, and go on elsewhere."""

    kind = "vm.relocate"

    def __init__(self, choose: ChooseTarget) -> None:
        self._relocation = (MarkStep(choose), LetGoStep(), MoveStep(choose), *self._steps)

    def steps(self, parameters: Json) -> Sequence[Step]:
        """Always the same."""
        return self._relocation

    async def fail(self, tx: Transaction, operation: Operation, fault: Fault, now: datetime) -> None:
        """Leave the error with the VM, beside that of its last start if nothing was touched; it counts as a restart."""
        vm = await tx.get_vm(operation.resource_id)
        if vm is not None and not vm.details.failover_unfinished:
            fault = replace(fault, message=f"{vm.error_message}; on other nodes: {fault.message}")
        await super().fail(tx, operation, fault, now)
