"""`StartVM` of a VM whose host is proven dead: it is moved to a node that reaches its disks, and started there.

Somebody asks for it, so its policy does not matter; the proof does, as when high availability does it by itself. The
host lets go of its definition once it is back, as of every VM that was started elsewhere meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from google.protobuf.message import Message

from controlplane.domain import errors, ha_errors
from controlplane.domain.event import Severity
from controlplane.domain.fencing import Fence, FenceState, proves_dead
from controlplane.domain.migration import MigrationWish
from controlplane.domain.operation import Fault, Json, Operation
from controlplane.domain.placement import LOST_EVERY_RACE
from controlplane.domain.vm import ALIVE_STATES, PowerOperation, PowerState, Vm, require_managed
from controlplane.operations.desk import Order
from controlplane.operations.steps import DatabaseStep, Outcome, Run, Step, Workflow
from controlplane.operations.vm_failover import (
    AdoptStep,
    StartThereStep,
    failed_over,
    moved,
    require_settled,
)
from controlplane.operations.vm_migration import ChooseTarget
from controlplane.operations.vm_records import document_of, locked, record_failure, size_of
from controlplane.state.interface import Transaction

_NEVER_STARTED_ELSEWHERE = {
    PowerState.SUSPENDED: "its memory is saved on that host; use it again once the host is back",
    PowerState.PROVISIONING: "it is being created",
    PowerState.TERMINATED: "it is deleted",
}
_COUNTED_ANEW: Json = {"restart_count": 0}
"""Of restarts that nobody asked for."""


async def elsewhere_if_dead(tx: Transaction, vm: Vm, order: Order) -> Order:
    """Make of the order to start a VM where it is one to start it elsewhere, if its host is proven dead.

    One that was moved and did not run since is defined where it is first.
    """
    for fence in await tx.current_fences():
        if fence.node_id == vm.node_id and fence.state == FenceState.PROVEN:
            parameters = {"fence_id": fence.id, "from_node_id": vm.node_id, **_COUNTED_ANEW}
            return replace(order, kind=StartElsewhere.kind, parameters=parameters, check=_require_startable)
    if not vm.details.failover_unfinished:
        return order
    return replace(order, kind=StartElsewhere.kind, parameters=_COUNTED_ANEW)


def _require_startable(vm: Vm) -> None:
    """Check what can be checked before the proof is held. What is proven dead is off, whatever its host said last.

    Raises:
        FailedPrecondition: says why it cannot be started elsewhere.
    """
    require_managed(vm)
    if vm.spec.template.is_template:
        raise errors.vm_is_template(vm.id, PowerOperation.START.value)
    if why := _NEVER_STARTED_ELSEWHERE.get(vm.power_state):
        raise ha_errors.not_failed_over(vm.id, why)
    elsewhere = sorted(
        node_id for node_id, state in vm.sightings.items() if state in ALIVE_STATES and node_id != vm.node_id
    )
    if elsewhere:
        raise errors.vm_runs_elsewhere(vm.id, elsewhere)


class RehomeStep(DatabaseStep):
    """Check the proof, claim room on a node that reaches the disks, and move the VM's record, in one transaction."""

    name = "claim"

    def __init__(self, choose: ChooseTarget) -> None:
        self._choose = choose

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Move it. Whatever is refused here leaves everything as it was.

        Raises:
            FailedPrecondition: nothing proves it dead.
            ResourceExhausted: no other node takes it, or reaches its disks; the error has one reason per node.
        """
        vm = await locked(tx, run.operation.resource_id)
        fence_id, from_node_id = str(run.parameters["fence_id"]), str(run.parameters["from_node_id"])
        if vm.node_id != from_node_id:
            if vm.details.last_fence_id == fence_id and vm.details.failover_unfinished:
                return outcome  # committed, and the answer was lost: this transaction finds that out and is dropped
            raise ha_errors.not_failed_over(vm.id, f"it is on node {vm.node_id} by now; start it again")
        fence = await _proof_for(tx, vm, fence_id)
        _require_startable(vm)
        await require_settled(tx, vm)
        fenced = tuple(each.node_id for each in await tx.current_fences())
        wish = MigrationWish(live=False, shared_storage_only=True, excluded_node_ids=fenced)
        chosen = await self._choose(tx, vm, wish)
        for node_id in chosen.node_ids:
            if not await tx.claim(node_id, chosen.size):
                continue
            await tx.release(from_node_id, size_of(vm))
            there = moved(vm, node_id, fence.id, run.now())
            await tx.update_vm(there, failed_over(vm, fence, node_id, run.operation, Severity.INFO))
            if size_of(there) != chosen.size:  # a change that waited for its next start waits no more
                await tx.release(node_id, chosen.size)
                await tx.occupy(node_id, size_of(there))
            return Outcome({"target_node_id": node_id, "fence_id": fence.id, "token": fence.token})
        raise errors.no_node_fits(LOST_EVERY_RACE, ())


async def _proof_for(tx: Transaction, vm: Vm, fence_id: str) -> Fence:
    """Read the fence that proves a VM dead, and hold it.

    Raises:
        FailedPrecondition: it does not.
    """
    fence = await tx.get_fence(fence_id)
    if fence is None or fence.node_id != vm.node_id or fence.state != FenceState.PROVEN:
        raise ha_errors.not_failed_over(vm.id, f"its node is not fenced any more (fence {fence_id}); start it again")
    if not proves_dead(fence, is_protected=vm.is_protected):
        raise ha_errors.not_proven_dead(vm.id, fence.node_id, fence_id)
    return fence


class StartAskedStep(StartThereStep):
    """Power on at the new host; it shall run from then on."""

    wanted = PowerState.RUNNING


class StartElsewhere(Workflow):
    """Begun by `StartVM` where the VM's host is proven dead, or an earlier start elsewhere did not come to an end.

    What fails after the claim leaves the VM on its new node, not defined there; the next start goes on with that.
    """

    kind = "vm.start_elsewhere"

    def __init__(self, choose: ChooseTarget) -> None:
        self._there = (AdoptStep(), StartAskedStep())
        self._all = (RehomeStep(choose), *self._there)

    def steps(self, parameters: Json) -> Sequence[Step]:
        """Without a fence the VM is on its new node already."""
        return self._all if "fence_id" in parameters else self._there

    async def conclude(self, tx: Transaction, operation: Operation) -> Message:
        """Answer with the VM."""
        return await document_of(tx, operation)

    async def fail(self, tx: Transaction, operation: Operation, fault: Fault, now: datetime) -> None:
        """Leave the error with the VM."""
        await record_failure(tx, operation, fault, now)
