"""`CloneVM`, and `CreateVM` from a template: like creating a VM, but its disks come from another one's."""

from __future__ import annotations

from collections.abc import Sequence

from controlplane.domain.event import Event, EventType
from controlplane.domain.operation import Json
from controlplane.operations.steps import Outcome, Run, Step
from controlplane.operations.vm_life import CreateVm, DefineStep
from controlplane.operations.vm_power import StartStep
from controlplane.operations.vm_records import locked
from controlplane.state.interface import Transaction


class CloneStep(DefineStep):
    """Have the host make the disks from the source's, and define the VM, off. May be cut short: it is undone then."""

    name = "clone"
    is_interruptible = True

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Write the host's answer, and where the VM came from."""
        await super().record(tx, run, outcome)
        vm = await locked(tx, run.operation.resource_id)
        template = vm.spec.template
        facts = {"source_vm_id": template.source_template_id or template.source_vm_id, "linked": _yes(vm.linked_to)}
        said = f"VM {vm.name} was cloned from VM {facts['source_vm_id']}"
        await tx.log_vm_event(vm, Event(EventType.VM_CLONED, said, actor=run.operation.principal, metadata=facts))
        return outcome


class CloneVm(CreateVm):
    """The row, the claim and the tie to a template are written with the operation; a failure leaves nothing behind."""

    kind = "vm.clone"
    _clone, _power = CloneStep(), StartStep()

    def steps(self, parameters: Json) -> Sequence[Step]:
        """Clone, and start if asked for."""
        return (self._clone, self._power) if parameters.get("start") else (self._clone,)


def _yes(text: str) -> str:
    return "true" if text else "false"
