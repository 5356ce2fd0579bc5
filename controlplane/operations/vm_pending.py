"""What an update of a VM in memory writes: which changes wait for its next start, and what it has on its node.

While such an update goes on, what is claimed is at each moment what the row says that the VM needs: the larger of the
size that runs and the one that is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from controlplane.daemons.node_spec import STATE_OF_STATUS, to_node_spec
from controlplane.domain import pending
from controlplane.domain.event import Event, EventType, event_of_state
from controlplane.domain.operation import Json, Operation
from controlplane.domain.pending import Size
from controlplane.domain.vm import PowerState, Vm, observed
from controlplane.operations.steps import Outcome
from controlplane.operations.vm_records import write_with_claim
from controlplane.state.interface import Transaction
from limiquantix.compute.v1.vm_pb2 import VmSpec
from limiquantix.node.v1.node_daemon_pb2 import ResizeVMResponse


def is_known_to_host(before: VmSpec, after: VmSpec) -> bool:
    """Whether a host has to know the difference."""
    return to_node_spec(before) != to_node_spec(after)


def outcome_of_resizing(answer: ResizeVMResponse) -> Outcome:
    """Keep what a host said that a VM runs with."""
    return Outcome(
        {
            "vcpu_count": answer.vcpu_count,
            "memory_mib": answer.memory_mib,
            "obstacles": list(answer.obstacles),
            "state": PowerState.Name(STATE_OF_STATUS[answer.status.state]),
            "state_change_count": answer.status.state_change_count,
        }
    )


async def record_effect(tx: Transaction, vm: Vm, operation: Operation, result: Json, now: datetime) -> None:
    """Write what is in effect and what waits, and give back what the VM no longer needs."""
    seen = vm
    if result["state_change_count"] >= vm.reported_change_count:
        seen = observed(vm, PowerState.Value(result["state"]), result["state_change_count"], now)
    running = Size(int(result["vcpu_count"]), int(result["memory_mib"]))
    changed = replace(pending.with_effect(seen, running, result["obstacles"]), updated_at=now)
    await write_with_claim(
        tx, vm, changed, event_of_state(vm.name, vm.power_state, changed.power_state, operation.principal)
    )


async def note_running(tx: Transaction, operation: Operation, running: Size) -> None:
    """Write what a VM in memory has, after its old definition was given back to it; not if others know better."""
    vm = await tx.get_vm(operation.resource_id)
    if vm is None or vm.generation != operation.generation:
        return
    noted = pending.with_effect(vm, running, ())
    if noted.details != vm.details:
        await write_with_claim(tx, vm, noted, Event(EventType.VM_UPDATED, f"VM {vm.name} was changed"))


async def take_back(tx: Transaction, vm: Vm, spec: VmSpec, others: Vm, waiting: Sequence[str]) -> None:
    """Put a VM's earlier spec back.

    Args:
        others: the VM with its earlier labels and description.
        waiting: what was pending then.
    """
    restored = pending.taken_back(others, spec, waiting)
    await write_with_claim(tx, vm, restored, Event(EventType.VM_UPDATED, f"the change of VM {vm.name} was taken back"))
