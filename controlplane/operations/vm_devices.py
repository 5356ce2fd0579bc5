"""Operations on a VM's devices: the spec says what the VM has, its host makes it so.

What is attached or grows is written to the spec first, since from then on its MAC address is taken and its size counts
for the project's quota, and then to the host. What is detached or changed is changed on the host first: only the guest
decides whether it lets go. Either way the spec is as the host is when the operation has ended; and if the process dies
between the two, a repeated step finds its work done.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import ClassVar, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from controlplane.daemons.interface import NodeDaemon
from controlplane.domain.event import Event, EventType
from controlplane.domain.operation import Fault, Json, Operation
from controlplane.domain.vm import Vm
from controlplane.operations.quotas import require_room_to_grow
from controlplane.operations.steps import NOTHING, DatabaseStep, Outcome, Run, Step, Workflow
from controlplane.operations.vm_records import document_of, locked, record_failure
from controlplane.operations.vm_settle import in_doubt
from controlplane.state.interface import Transaction
from limiquantix.compute.v1.vm_pb2 import VmSpec
from limiquantix.errors import ApiError, FieldViolation, InvalidArgument, NotFound

MessageT = TypeVar("MessageT", bound=Message)

_PATHS = {
    "disk.discard": "disk.discard_enabled",
    "nic.bandwidth": "nic.qos",
    "nic.network": "nic.host_network",
    "cdrom.": "",
    "size_gib": "new_size_gib",
}
"""Where a field of the host's request has another path than in the caller's."""


def to_json(message: Message) -> Json:
    """Write a device as a parameter of an operation."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def from_json(kind: type[MessageT], document: Json) -> MessageT:
    """Read what `to_json` wrote."""
    return json_format.ParseDict(dict(document), kind())


class AddToSpecStep(DatabaseStep):
    """Write a device into the spec; a MAC address that another VM has is refused here."""

    name = "add_to_spec"

    def __init__(self, device: DeviceStep) -> None:
        self._device = device

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Write it, and keep what undoing needs."""
        vm = await locked(tx, run.operation.resource_id)
        self._device.check(vm, run.parameters)
        changed = replace(vm, spec=self._device.changed(vm.spec, run.parameters), updated_at=run.now())
        await require_room_to_grow(tx, vm, changed)
        text = f"VM {vm.name} is to get {self._device.what(run.parameters)}"
        await tx.update_vm(changed, Event(EventType.VM_UPDATED, text, actor=run.operation.principal))
        return Outcome({}, {"before": to_json(vm.spec)})

    async def record_undo(self, tx: Transaction, run: Run) -> None:
        """Take it out again."""
        vm = await tx.get_vm(run.operation.resource_id)
        if vm is not None:
            restored = replace(vm, spec=from_json(VmSpec, run.parameters["before"]), updated_at=run.now())
            text = f"VM {vm.name} did not get {self._device.what(run.parameters)}"
            await tx.update_vm(restored, Event(EventType.VM_UPDATED, text))


class DeviceStep(Step):
    """Have the host change one device."""

    event: ClassVar[EventType]
    is_in_spec: ClassVar[bool] = False
    """Whether a step before has changed the spec already."""

    async def do(self, run: Run) -> Outcome:
        """Give the command."""
        vm, daemon = await run.located()
        if not self.is_in_spec and not run.is_repeated:
            self.check(vm, run.parameters)
        try:
            await self.act(run, vm, daemon)
        except InvalidArgument as error:
            raise _in_callers_words(error) from error
        return NOTHING

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Write to the spec what the host is now."""
        vm = await locked(tx, run.operation.resource_id)
        spec = vm.spec if self.is_in_spec else self.changed(vm.spec, run.parameters)
        text = f"VM {vm.name}: {self.what(run.parameters)} {self.event.value.rpartition('_')[2]}"
        facts = {"device_id": self.device_id(run.parameters)}
        event = Event(self.event, text, actor=run.operation.principal, metadata=facts)
        await tx.update_vm(replace(vm, spec=spec, error_message="", updated_at=run.now()), event)
        return outcome

    async def undo(self, run: Run) -> None:
        """Have the host take it back, of which nobody knows whether it was done; the spec says what was before."""
        try:
            vm, daemon = await run.located()
            await self.act_back(run, vm, daemon)
        except NotFound:
            return

    async def record_given_up(self, tx: Transaction, run: Run, fault: Fault) -> None:
        """Leave a note, so that the host is told what there is to be when it reports again."""
        vm = await tx.get_vm(run.operation.resource_id)
        if vm is not None:
            unwanted = self.is_unwanted_disk(run.parameters)
            noted = in_doubt(vm, self.device_id(run.parameters), is_unwanted_disk=unwanted)
            text = f"whether the host of VM {vm.name} changed {self.what(run.parameters)} is unknown"
            await tx.update_vm(replace(noted, updated_at=run.now()), Event(EventType.VM_UPDATED, text))

    def is_unwanted_disk(self, parameters: Json) -> bool:
        """Tell whether the device is a disk that was to be new, whose image nobody wants after a failure."""
        return False

    @abstractmethod
    def check(self, vm: Vm, parameters: Json) -> None:
        """Refuse, by raising an `ApiError`, what the VM does not allow."""

    @abstractmethod
    def changed(self, spec: VmSpec, parameters: Json) -> VmSpec:
        """Return the spec with the change."""

    @abstractmethod
    def device_id(self, parameters: Json) -> str:
        """Say which device."""

    @abstractmethod
    def what(self, parameters: Json) -> str:
        """Name the device, for people."""

    @abstractmethod
    async def act(self, run: Run, vm: Vm, daemon: NodeDaemon) -> None:
        """Give the command."""

    @abstractmethod
    async def act_back(self, run: Run, vm: Vm, daemon: NodeDaemon) -> None:
        """Give the command that takes it back; harmless if there is nothing to take back."""


class DeviceWorkflow(Workflow):
    """One change of one device; a failure leaves the VM as it was, with the error."""

    step: ClassVar[DeviceStep]

    def steps(self, parameters: Json) -> Sequence[Step]:
        """The host's part, and before it the spec's for what is attached or grows."""
        return (AddToSpecStep(self.step), self.step) if self.step.is_in_spec else (self.step,)

    async def conclude(self, tx: Transaction, operation: Operation) -> Message:
        """Answer with the VM."""
        return await document_of(tx, operation)

    async def fail(self, tx: Transaction, operation: Operation, fault: Fault, now: datetime) -> None:
        """Leave the error with the VM."""
        await record_failure(tx, operation, fault, now)


def _in_callers_words(error: InvalidArgument) -> ApiError:
    """Rename the fields of a host's refusal to those of the request the caller sent."""
    renamed = []
    for violation in error.violations:
        path = violation.field
        for theirs, ours in _PATHS.items():
            if path.startswith(theirs):
                path = ours + path[len(theirs) :]
        renamed.append(FieldViolation(path, violation.description))
    return InvalidArgument.from_violations(renamed) if renamed else error
