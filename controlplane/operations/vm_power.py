"""Operations on a VM's power. The recorded state is always the host's own word, asked for after acting."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import ClassVar

import structlog
from google.protobuf.message import Message

from controlplane.daemons.interface import NodeDaemon
from controlplane.daemons.node_spec import STATE_OF_STATUS
from controlplane.domain import errors
from controlplane.domain.guests import without_guest
from controlplane.domain.operation import Fault, Json, Operation
from controlplane.domain.vm import (
    ALIVE_STATES,
    PowerOperation,
    PowerState,
    Vm,
    require_managed,
    require_state,
    settled,
)
from controlplane.operations.steps import NOTHING, Outcome, Run, Step, Workflow
from controlplane.operations.vm_records import (
    document_of,
    locked,
    outcome_of,
    record_failure,
    record_status,
    write_with_claim,
)
from controlplane.state.interface import Transaction
from limiquantix.compute.v1.vm_pb2 import VmStatus
from limiquantix.errors import ApiError, Reason

_log = structlog.get_logger(__name__)

DEFAULT_STOP_TIMEOUT_S = 30
"""How long a guest gets to shut down when the caller does not say (documented behaviour, section 2)."""


def require_allowed(vm: Vm, operation: PowerOperation) -> None:
    """Check what can be checked before a host is asked.

    Raises:
        FailedPrecondition: the VM's state, or another host that runs it, forbids the operation.
    """
    require_managed(vm)
    if operation in _STOPS and _would_be_started_again(vm):
        return
    require_state(vm, operation)
    if operation is PowerOperation.START:
        elsewhere = sorted(node_id for node_id, state in vm.sightings.items() if state in ALIVE_STATES)
        if elsewhere:
            raise errors.vm_runs_elsewhere(vm.id, elsewhere)


_STOPS = frozenset({PowerOperation.STOP, PowerOperation.FORCE_STOP})


def _would_be_started_again(vm: Vm) -> bool:
    """Whether it is off, but not because anybody asked: stopping it is how to say that it shall stay so."""
    is_off = vm.power_state in (PowerState.STOPPED, PowerState.CRASHED)
    return is_off and vm.wanted_state == PowerState.RUNNING and vm.spec.ha_policy.auto_restart


class PowerStep(Step):
    """Let the host act, then ask it what the VM is."""

    operation: ClassVar[PowerOperation]
    reached: ClassVar[frozenset[int]] = frozenset()
    """States in which a repeated step finds its work done; none if it cannot be told from the state."""
    wanted: ClassVar[VmStatus.PowerState.ValueType | None] = None
    """State that the operation makes the wanted one; None leaves that."""

    async def do(self, run: Run) -> Outcome:
        """Act unless an earlier try has."""
        vm, daemon = await run.located()
        if not self.is_due(run, vm):
            return NOTHING
        if run.is_repeated:
            status = await daemon.vm_status(vm.id)
            if STATE_OF_STATUS[status.state] in self.reached:
                return outcome_of(status)
        else:
            require_allowed(vm, self.asked(run))
        await self.act(run, daemon, vm.id)
        return outcome_of(await daemon.vm_status(vm.id))

    def is_due(self, run: Run, vm: Vm) -> bool:
        """Whether there is anything to do, by what the VM is when its turn has come."""
        return True

    def asked(self, run: Run) -> PowerOperation:
        """Say what the VM's state has to allow."""
        return self.operation

    @abstractmethod
    async def act(self, run: Run, daemon: NodeDaemon, vm_id: str) -> None:
        """Give the command."""

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Write the host's answer."""
        if not outcome.result:
            return outcome
        # A restart that nobody asked for is counted.
        count = int(run.parameters.get("restart_count", 0)) if self.wanted is not None else None
        await record_status(tx, run.operation, outcome.result, run.now(), wanted=self.wanted, restart_count=count)
        return outcome


class StartStep(PowerStep):
    """Power on."""

    name = "start"
    operation = PowerOperation.START
    reached = frozenset(ALIVE_STATES)
    wanted = PowerState.RUNNING

    def is_due(self, run: Run, vm: Vm) -> bool:
        """Not for a restart that nobody asked for, if somebody had the VM stopped while it waited."""
        return "restart_count" not in run.parameters or vm.wanted_state == PowerState.RUNNING

    async def act(self, run: Run, daemon: NodeDaemon, vm_id: str) -> None:
        """Give the command."""
        await daemon.start_vm(vm_id, run.operation.generation)


class StopStep(PowerStep):
    """Ask the guest, and with `force` cut the power when its time is up."""

    name = "stop"
    operation = PowerOperation.STOP
    reached = frozenset({PowerState.STOPPED})
    wanted = PowerState.STOPPED
    is_interruptible = True

    def asked(self, run: Run) -> PowerOperation:
        """By force, also what is saved to disk is dropped."""
        return PowerOperation.FORCE_STOP if run.parameters["force"] else PowerOperation.STOP

    async def act(self, run: Run, daemon: NodeDaemon, vm_id: str) -> None:
        """Give the commands; the guest gets `timeout_sec`, 30 s by default without `force` and none with it."""
        timeout_s, generation = int(run.parameters["timeout_sec"]), run.operation.generation
        if not run.parameters["force"]:
            await daemon.stop_vm(vm_id, timeout_s or DEFAULT_STOP_TIMEOUT_S, generation)
            return
        if timeout_s and not run.is_repeated:
            try:
                await daemon.stop_vm(vm_id, timeout_s, generation)
            except ApiError as error:
                if error.reason == Reason.STALE_GENERATION:
                    raise
                _log.info("graceful_stop_gave_up", vm_id=vm_id, reason=error.reason)
        await daemon.force_stop_vm(vm_id, generation)


class RebootStep(PowerStep):
    """Restart the guest; with `force` cut the power and start it again. Repeated, it reboots once more."""

    name = "reboot"
    operation = PowerOperation.REBOOT

    async def act(self, run: Run, daemon: NodeDaemon, vm_id: str) -> None:
        """Give the commands."""
        generation = run.operation.generation
        if run.parameters["force"]:
            await daemon.force_stop_vm(vm_id, generation)
            await daemon.start_vm(vm_id, generation)
        else:
            await daemon.reboot_vm(vm_id, generation)

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Write the host's answer; a forced reboot is a start, with which changes that waited took effect.

        What the guest said before it is no word of the one that starts now. A reset that nobody asked for is counted.
        """
        recorded = await super().record(tx, run, outcome)
        if run.parameters["force"]:
            vm = await locked(tx, run.operation.resource_id)
            started = settled(vm)
            count = int(run.parameters.get("restart_count", vm.restart_count))
            after = replace(started, details=without_guest(started.details), restart_count=count)
            if after != vm:
                await write_with_claim(tx, vm, after, None)
        return recorded


class PauseStep(PowerStep):
    """Stop the vCPUs."""

    name = "pause"
    operation = PowerOperation.PAUSE
    reached = frozenset({PowerState.PAUSED})

    async def act(self, run: Run, daemon: NodeDaemon, vm_id: str) -> None:
        """Give the command."""
        await daemon.pause_vm(vm_id, run.operation.generation)


class ResumeStep(PowerStep):
    """Let the vCPUs go on."""

    name = "resume"
    operation = PowerOperation.RESUME
    reached = frozenset({PowerState.RUNNING})

    async def act(self, run: Run, daemon: NodeDaemon, vm_id: str) -> None:
        """Give the command."""
        await daemon.resume_vm(vm_id, run.operation.generation)


class SuspendStep(PowerStep):
    """Save the memory to disk. The VM is still wanted as before: nobody starts it meanwhile but whoever asks for it."""

    name = "suspend"
    operation = PowerOperation.SUSPEND
    reached = frozenset({PowerState.SUSPENDED})

    async def act(self, run: Run, daemon: NodeDaemon, vm_id: str) -> None:
        """Give the command."""
        await daemon.suspend_vm(vm_id, run.operation.generation)


class PowerWorkflow(Workflow):
    """One power step; a failure leaves the VM as its host says it is, with the error."""

    step: ClassVar[Step]

    def steps(self, parameters: Json) -> Sequence[Step]:
        """Just the one."""
        return (self.step,)

    async def conclude(self, tx: Transaction, operation: Operation) -> Message:
        """Answer with the VM."""
        return await document_of(tx, operation)

    async def fail(self, tx: Transaction, operation: Operation, fault: Fault, now: datetime) -> None:
        """Leave the error with the VM; a restart that nobody asked for counts even if it failed."""
        restart_count = operation.parameters.get("restart_count")
        await record_failure(tx, operation, fault, now, restart_count)


class StartVm(PowerWorkflow):
    """`StartVM`."""

    kind = "vm.start"
    step = StartStep()


class StopVm(PowerWorkflow):
    """`StopVM`."""

    kind = "vm.stop"
    step = StopStep()


class RebootVm(PowerWorkflow):
    """`RebootVM`."""

    kind = "vm.reboot"
    step = RebootStep()


class PauseVm(PowerWorkflow):
    """`PauseVM`."""

    kind = "vm.pause"
    step = PauseStep()


class ResumeVm(PowerWorkflow):
    """`ResumeVM`."""

    kind = "vm.resume"
    step = ResumeStep()


class SuspendVm(PowerWorkflow):
    """`SuspendVM`."""

    kind = "vm.suspend"
    step = SuspendStep()
