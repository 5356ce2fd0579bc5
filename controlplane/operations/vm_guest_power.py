"""Shutting a guest down by its own agent: an operation on the VM's power, which ends when the agent took it in.

That the VM is off then, its host tells when it is. What is wanted is known before: nobody starts it again.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from controlplane.daemons.node_spec import STATE_OF_STATUS
from controlplane.domain.operation import Json, Operation
from controlplane.domain.vm import PowerOperation, PowerState, Vm, require_managed, require_state
from controlplane.operations.steps import Outcome, Run, Step
from controlplane.operations.vm_power import PowerWorkflow
from controlplane.operations.vm_records import outcome_of, record_status
from controlplane.state.interface import Transaction
from limiquantix.compute.v1.vm_service_pb2 import GuestShutdownRequest, GuestShutdownResponse
from limiquantix.errors import ApiError, Reason
from limiquantix.node.v1.node_daemon_pb2 import ShutdownGuestRequest


def parameters_of(request: GuestShutdownRequest) -> Json:
    """Say what the operation needs to know of its request."""
    return {"reboot": request.reboot, "delay_sec": request.delay_seconds, "message": request.message}


def require_shutdown_allowed(vm: Vm, *, reboots: bool) -> None:
    """Check what can be checked before a host is asked.

    Raises:
        FailedPrecondition: the VM does not run, or is not ours.
    """
    require_managed(vm)
    require_state(vm, PowerOperation.REBOOT if reboots else PowerOperation.STOP)


class GuestShutdownStep(Step):
    """Have the agent begin; a repeated one that is to power off finds its work done where the VM is off."""

    name = "shut_down"

    async def do(self, run: Run) -> Outcome:
        """Give the command. What the agent refuses is its answer, and no failure of the operation."""
        vm, daemon = await run.located()
        reboots = bool(run.parameters["reboot"])
        if run.is_repeated:
            status = await daemon.vm_status(vm.id)
            if not reboots and STATE_OF_STATUS[status.state] == PowerState.STOPPED:
                return _outcome(status, accepted=True)
        else:
            require_shutdown_allowed(vm, reboots=reboots)
        request = ShutdownGuestRequest(
            vm_id=vm.id,
            reboot=reboots,
            delay_seconds=int(run.parameters["delay_sec"]),
            message=str(run.parameters["message"]),
            generation=run.operation.generation,
        )
        try:
            await daemon.shut_down_guest(request)
        except ApiError as error:
            if error.reason != Reason.GUEST_AGENT_REFUSED:
                raise
            return _outcome(await daemon.vm_status(vm.id), accepted=False, error=error.message)
        return _outcome(await daemon.vm_status(vm.id), accepted=True)

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Write what the host says, and that the VM shall be off, if its guest goes down for good."""
        ends = outcome.result["accepted"] and not run.parameters["reboot"]
        wanted = PowerState.STOPPED if ends else None
        await record_status(
            tx, run.operation, outcome.result, run.now(), wanted=wanted, restart_count=0 if ends else None
        )
        return outcome


class GuestShutdown(PowerWorkflow):
    """`GuestShutdown`."""

    kind = "vm.guest_shutdown"
    step = GuestShutdownStep()

    async def conclude(self, tx: Transaction, operation: Operation) -> Message:
        """Answer whether the agent took it in."""
        result = operation.steps[0].result
        return GuestShutdownResponse(accepted=bool(result["accepted"]), error=str(result["error"]))


def _outcome(status: Any, *, accepted: bool, error: str = "") -> Outcome:
    return Outcome({**outcome_of(status).result, "accepted": accepted, "error": error})
