"""What is done when nobody knows whether a host made a change of a VM's devices: it is told once more what they are.

A change whose undoing was given up, since the host did not answer, leaves a note with the VM (`devices_in_doubt`). When
the host reports again, it compares what it has with what is recorded, and the note goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from google.protobuf.message import Message

from controlplane.daemons import node_spec
from controlplane.domain.event import Event, EventType
from controlplane.domain.operation import Fault, Json, Operation
from controlplane.domain.vm import PowerOperation, Vm, require_managed, require_state
from controlplane.operations.steps import NOTHING, Outcome, Run, Step, Workflow
from controlplane.operations.vm_records import document_of, locked
from controlplane.state.interface import Transaction
from limiquantix.compute.v1.vm_pb2 import VmStatus
from limiquantix.node.v1 import node_daemon_pb2 as node_v1


def in_doubt(vm: Vm, device_id: str, *, is_unwanted_disk: bool = False) -> Vm:
    """Return the VM with a note that its host may have another device than is recorded.

    Args:
        is_unwanted_disk: whether the device is a disk that was to be new, whose image nobody wants any more.
    """
    details = VmStatus()
    details.CopyFrom(vm.details)
    if device_id not in details.devices_in_doubt:
        details.devices_in_doubt.append(device_id)
    if is_unwanted_disk and device_id not in details.unwanted_disks:
        details.unwanted_disks.append(device_id)
    return replace(vm, details=details)


def require_settleable(vm: Vm) -> None:
    """Check that the host may be told now.

    Raises:
        FailedPrecondition: the VM is saved, or is not ours.
    """
    require_managed(vm)
    require_state(vm, PowerOperation.ATTACH)


class SettleStep(Step):
    """Tell the host."""

    name = "settle"

    async def do(self, run: Run) -> Outcome:
        """Give the command."""
        vm, daemon = await run.located()
        require_settleable(vm)
        spec = node_spec.to_node_spec(vm.spec)
        request = node_v1.SettleDevicesRequest(
            vm_id=vm.id,
            disks=[node_spec.as_existing(disk) for disk in spec.disks],
            nics=spec.nics,
            cdroms=spec.cdroms,
            unwanted_disk_ids=vm.details.unwanted_disks,
            generation=run.operation.generation,
        )
        for nic in request.nics:
            nic.boot_index = 0
        for cdrom in request.cdroms:
            cdrom.boot_index = 0
        await daemon.settle_devices(request)
        return NOTHING

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Take the note away."""
        vm = await locked(tx, run.operation.resource_id)
        details = VmStatus()
        details.CopyFrom(vm.details)
        details.ClearField("devices_in_doubt")
        details.ClearField("unwanted_disks")
        event = Event(EventType.VM_UPDATED, f"the devices of VM {vm.name} are those that are recorded")
        await tx.update_vm(replace(vm, details=details, updated_at=run.now()), event)
        return outcome


class SettleDevices(Workflow):
    """Begun by the reconciler when a host reports a VM with devices in doubt; a failure is tried again then."""

    kind = "vm.settle_devices"
    _step = SettleStep()

    def steps(self, parameters: Json) -> Sequence[Step]:
        """Just the one."""
        return (self._step,)

    async def conclude(self, tx: Transaction, operation: Operation) -> Message:
        """Answer with the VM."""
        return await document_of(tx, operation)

    async def fail(self, tx: Transaction, operation: Operation, fault: Fault, now: datetime) -> None:
        """Nothing; the note stays."""
