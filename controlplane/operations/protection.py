"""Having hosts note which VMs end with their lease: those that may be started elsewhere when it has ended.

Recorded is only what a host said that it noted. Whatever is not on record is taken not to be so, which keeps a VM from
being restarted upon a lease, and never lets one run twice.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime

from google.protobuf.message import Message

from controlplane.domain.admission import is_restarted_elsewhere
from controlplane.domain.operation import Fault, Json, Operation
from controlplane.domain.vm import Vm
from controlplane.operations.steps import NOTHING, DatabaseStep, Outcome, Run, Step, Workflow
from controlplane.operations.vm_records import document_of, locked
from controlplane.state.interface import Transaction
from limiquantix.compute.v1.vm_pb2 import VmSpec
from limiquantix.errors import ApiError, FailedPrecondition, Reason
from limiquantix.node.v1 import node_daemon_pb2 as node_v1


async def _nothing() -> None:
    """Where nothing is on record that would become wrong."""


async def defined_with_protection(
    define: Callable[[node_v1.CreateVMOnNodeRequest], Awaitable[node_v1.VMStatusResponse]],
    request: node_v1.CreateVMOnNodeRequest,
    spec: VmSpec,
    before_unprotected: Callable[[], Awaitable[None]] = _nothing,
) -> tuple[node_v1.VMStatusResponse, bool]:
    """Have a host define a VM, protected if its policy asks for that and the host can; returns whether it is.

    Args:
        before_unprotected: is done before a host that cannot is asked to define it all the same.
    """
    request.spec.is_protected = is_restarted_elsewhere(spec)
    try:
        return await define(request), request.spec.is_protected
    except FailedPrecondition as error:
        if error.reason != Reason.HOST_LACKS or not request.spec.is_protected:
            raise
    await before_unprotected()
    request.spec.is_protected = False  # a host that takes no leases; what else it may lack, it says again
    return await define(request), False


async def record_protection(tx: Transaction, operation: Operation, *, is_protected: bool) -> None:
    """Write what the host noted."""
    vm = await locked(tx, operation.resource_id)
    if vm.is_protected != is_protected:
        await tx.update_vm(replace(vm, is_protected=is_protected))


def without_unwanted(vm: Vm) -> Vm:
    """Return the VM as its record has to be before its host is told that its policy no longer has it restarted."""
    return vm if is_restarted_elsewhere(vm.spec) else replace(vm, is_protected=False)


class ProtectStep(Step):
    """Have the host note whether the VM ends with its lease. To be so, it is recorded after; not to be so, before.

    A host that cannot, or does not answer, fails nothing: it is asked again when it reports everything.
    """

    name = "protect"

    async def do(self, run: Run) -> Outcome:
        """Tell the host, unless it is known that nothing changed."""
        if not run.parameters.get("protects", True):
            return NOTHING
        try:
            vm, daemon = await run.located()
            is_wanted = is_restarted_elsewhere(vm.spec)
            request = node_v1.SetVMProtectionRequest(
                vm_id=vm.id, is_protected=is_wanted, generation=run.operation.generation
            )
            await daemon.set_vm_protection(request)
        except ApiError as error:
            if error.reason in (Reason.STALE_GENERATION, Reason.STALE_FENCE_TOKEN):
                raise
            return Outcome({"not_told": error.message})
        return Outcome({"is_protected": is_wanted})

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Write what the host noted, unless the policy was changed meanwhile."""
        vm = await locked(tx, run.operation.resource_id)
        if "is_protected" in outcome.result:
            noted = bool(outcome.result["is_protected"]) and is_restarted_elsewhere(vm.spec)
            await record_protection(tx, run.operation, is_protected=noted)
        return outcome


class UnrecordStep(DatabaseStep):
    """Take a VM off the record whose policy no longer has it restarted, before its host is told."""

    name = "unrecord"

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Write it, if it is still so."""
        vm = await locked(tx, run.operation.resource_id)
        if (without := without_unwanted(vm)) != vm:
            await tx.update_vm(without)
        return outcome


class ProtectVm(Workflow):
    """Begun by the reconciler for VMs whose host has not noted what their policy asks for."""

    kind = "vm.protect"
    _steps = (UnrecordStep(), ProtectStep())

    def steps(self, parameters: Json) -> Sequence[Step]:
        """Always both."""
        return self._steps

    async def conclude(self, tx: Transaction, operation: Operation) -> Message:
        """Answer with the VM."""
        return await document_of(tx, operation)

    async def fail(self, tx: Transaction, operation: Operation, fault: Fault, now: datetime) -> None:
        """Nothing; it is asked for again."""
