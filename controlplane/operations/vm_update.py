"""`UpdateVM`: the change and the room it needs are written first, then the host redefines the VM."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from google.protobuf import json_format
from google.protobuf.message import Message

from controlplane.daemons.interface import NodeDaemon
from controlplane.daemons.node_spec import in_callers_words, to_node_spec
from controlplane.domain import errors, pending
from controlplane.domain.admission import is_restarted_elsewhere
from controlplane.domain.clones import is_same_but_for_role
from controlplane.domain.event import Event, EventType
from controlplane.domain.node import Capacity
from controlplane.domain.operation import Fault, Json, Operation
from controlplane.domain.vm import ALIVE_STATES, PowerOperation, Vm, require_managed, require_state
from controlplane.operations import vm_pending, vm_rules
from controlplane.operations.protection import ProtectStep, without_unwanted
from controlplane.operations.quotas import require_room_to_grow
from controlplane.operations.room_rules import NothingKept, RoomRules
from controlplane.operations.steps import NOTHING, DatabaseStep, Outcome, Run, Step, Workflow
from controlplane.operations.vm_changes import VmChange, change_of
from controlplane.operations.vm_records import (
    capacity_from_json,
    capacity_to_json,
    document_of,
    locked,
    record_failure,
)
from controlplane.state.interface import Transaction
from limiquantix.compute.v1.vm_pb2 import VmSpec
from limiquantix.compute.v1.vm_service_pb2 import UpdateVMRequest
from limiquantix.errors import ApiError, NotFound
from limiquantix.node.v1 import node_daemon_pb2 as node_v1

_ONLY_WHILE_OFF = ("firmware", "provisioning")
"""Parts of a spec behind which files of the host stand, which are made anew while nothing uses them."""
_NO_ROOM = Capacity(0, 0)


def parameters_of(request: UpdateVMRequest) -> Json:
    """What the steps need of a request. The mask's paths are kept apart: as JSON, not every path can be written."""
    whole = UpdateVMRequest()
    whole.CopyFrom(request)
    whole.ClearField("update_mask")
    fields = json_format.MessageToDict(whole, preserving_proto_field_name=True)
    paths = list(request.update_mask.paths)
    touches_policy = request.spec.HasField("ha_policy") or any(_reaches_policy(path) for path in paths)
    return {"request": fields, "paths": paths, "may_protect": touches_policy}


def _reaches_policy(path: str) -> bool:
    return path in ("*", "spec") or path.startswith("spec.ha_policy")


def redefinition() -> Json:
    """What the steps need in order to change nothing, and have the host define the VM as it is recorded."""
    return {**parameters_of(UpdateVMRequest()), "redefines": True}


def _request_of(parameters: Json) -> UpdateVMRequest:
    request = json_format.ParseDict(parameters["request"], UpdateVMRequest())
    request.update_mask.paths.extend(parameters["paths"])
    return request


def check_allowed(vm: Vm, request: UpdateVMRequest) -> None:
    """Check what can be checked before the change is written.

    Raises:
        InvalidArgument: the request does not fit the VM.
        FailedPrecondition: the host must know, and the VM's state does not allow that.
    """
    require_managed(vm)
    change = change_of(vm, request)
    if change.spec is not None and vm.spec.template.is_template != change.spec.template.is_template:
        require_state(vm, PowerOperation.CONVERT)
        if not is_same_but_for_role(vm.spec, change.spec):
            raise errors.vm_is_template(vm.id, "change more than that of")
    elif change.spec is not None and vm.spec.template.is_template and change.spec != vm.spec:
        raise errors.vm_is_template(vm.id, "change")
    elif change.spec is not None and _reaches_host(vm, change):
        resizes = (change.spec.cpu, change.spec.memory) != (vm.spec.cpu, vm.spec.memory)
        require_state(vm, PowerOperation.RESIZE if resizes else PowerOperation.UPDATE)
        if any(getattr(change.spec, name) != getattr(vm.spec, name) for name in _ONLY_WHILE_OFF):
            require_state(vm, PowerOperation.RECONFIGURE)


def require_redefinable(vm: Vm) -> None:
    """Check that the VM's host can be given the definition that is recorded: off, a template too, or in memory.

    Raises:
        FailedPrecondition: its state does not allow that.
    """
    require_state(vm, PowerOperation.UPDATE if vm.power_state in ALIVE_STATES else PowerOperation.CONVERT)


def _reaches_host(vm: Vm, change: VmChange) -> bool:
    return change.spec is not None and to_node_spec(change.spec) != to_node_spec(vm.spec)


class Role(enum.Enum):
    """What a VM becomes; the value completes the sentence "VM x ..."."""

    TEMPLATE = "is a template now"
    ORDINARY = "is no template any more"


def _role_change(vm: Vm, change: VmChange) -> Role | None:
    if change.spec is None or change.spec.template.is_template == vm.spec.template.is_template:
        return None
    return Role.TEMPLATE if change.spec.template.is_template else Role.ORDINARY


def _event_of(vm: Vm, role: Role | None, actor: str) -> Event:
    if role is None:
        return Event(EventType.VM_UPDATED, f"VM {vm.name} was changed", actor=actor)
    facts = {"is_template": str(role is Role.TEMPLATE).lower()}
    return Event(EventType.VM_CONVERTED, f"VM {vm.name} {role.value}", actor=actor, metadata=facts)


class ApplyStep(DatabaseStep):
    """Write the change and claim what grows. What shrinks stays claimed until the host has agreed to it."""

    name = "apply"

    def __init__(self, room: RoomRules) -> None:
        self._room = room

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Write it, and keep what undoing needs."""
        request = _request_of(run.parameters)
        vm = await locked(tx, run.operation.resource_id)
        check_allowed(vm, request)
        redefines = bool(run.parameters.get("redefines"))
        if redefines:
            require_redefinable(vm)
        change = change_of(vm, request)
        role = _role_change(vm, change)
        if role is Role.ORDINARY and (clone_ids := await tx.linked_clones(vm.id)):
            raise errors.template_in_use(vm.id, clone_ids)
        changed = replace(
            vm,
            spec=vm.spec if change.spec is None else change.spec,
            labels=vm.labels if change.labels is None else change.labels,
            description=vm.description if change.description is None else change.description,
            error_message="",
            updated_at=run.now(),
        )
        if change.spec is not None and change.spec.placement != vm.spec.placement:
            await vm_rules.require_sound(tx, changed)
            await vm_rules.tell_findings(tx, changed, run.operation.principal)
        reaches_host = redefines or _reaches_host(vm, change)
        is_live = reaches_host and vm.power_state in ALIVE_STATES
        if is_live:
            changed = pending.with_change(vm, changed, vm_pending.is_known_to_host)
        grown, shrunk = _size_changes(vm, changed)
        await self._room.require_for_change(tx, vm, changed)
        if grown != _NO_ROOM and not await tx.claim(vm.node_id, grown):
            raise errors.no_room_to_grow(vm.id, grown, await tx.get_node(vm.node_id))
        await require_room_to_grow(tx, vm, changed)
        await tx.update_vm(without_unwanted(changed), _event_of(vm, role, run.operation.principal))
        if not reaches_host and shrunk != _NO_ROOM:
            await tx.release(vm.node_id, shrunk)
        return Outcome(
            {"reaches_host": reaches_host},
            {
                "reaches_host": reaches_host,
                "protects": is_restarted_elsewhere(vm.spec) != is_restarted_elsewhere(changed.spec),
                "is_live": is_live,
                "pending": list(vm.details.pending_changes),
                "grown": capacity_to_json(grown),
                "shrunk": capacity_to_json(shrunk),
                "before": {
                    "spec": json_format.MessageToDict(vm.spec, preserving_proto_field_name=True),
                    "labels": dict(vm.labels),
                    "description": vm.description,
                },
            },
        )

    async def record_undo(self, tx: Transaction, run: Run) -> None:
        """Put back what was there before, and give back what grew."""
        vm = await tx.get_vm(run.operation.resource_id)
        if vm is None:
            return
        before = run.parameters["before"]
        others = replace(vm, labels=before["labels"], description=before["description"], updated_at=run.now())
        if run.parameters.get("is_live"):
            await vm_pending.take_back(tx, vm, _spec_before(run), others, run.parameters["pending"])
            return
        restored = replace(others, spec=_spec_before(run))
        await tx.update_vm(restored, Event(EventType.VM_UPDATED, f"the change of VM {vm.name} was taken back"))
        await tx.release(vm.node_id, capacity_from_json(run.parameters["grown"]))


class ReconfigureStep(Step):
    """Have the host redefine the VM, if it must know of the change; one in memory gets at once what it can have."""

    name = "reconfigure"

    async def do(self, run: Run) -> Outcome:
        """Give the command."""
        if run.parameters["reaches_host"]:
            vm, daemon = await run.located()
            try:
                return await self._define(run, vm, daemon, vm.spec)
            except ApiError as error:
                raise in_callers_words(error) from error
        return NOTHING

    async def record(self, tx: Transaction, run: Run, outcome: Outcome) -> Outcome:
        """Give back what shrank; of a VM in memory, write what of the change waits."""
        if run.parameters.get("is_live"):
            vm = await locked(tx, run.operation.resource_id)
            await vm_pending.record_effect(tx, vm, run.operation, outcome.result, run.now())
            return outcome
        shrunk = capacity_from_json(run.parameters["shrunk"])
        if run.parameters["reaches_host"] and shrunk != _NO_ROOM:
            vm = await locked(tx, run.operation.resource_id)
            await tx.release(vm.node_id, shrunk)
        return outcome

    async def undo(self, run: Run) -> None:
        """Give the VM its old definition again, of which nobody knows whether the host replaced it."""
        if not run.parameters.get("reaches_host"):
            return
        try:
            vm, daemon = await run.located()
        except NotFound:
            return
        result = (await self._define(run, vm, daemon, _spec_before(run))).result
        if result:
            running = pending.Size(int(result["vcpu_count"]), int(result["memory_mib"]))
            await run.store.run(lambda tx: vm_pending.note_running(tx, run.operation, running))

    async def record_given_up(self, tx: Transaction, run: Run, fault: Fault) -> None:
        """Keep room for the larger size as long as the VM may run with it: nobody knows."""
        vm = await tx.get_vm(run.operation.resource_id)
        if vm is not None and run.parameters.get("is_live"):
            running, asked = pending.running_size(vm), pending.size_of_spec(vm.spec)
            most = pending.Size(max(running.vcpu_count, asked.vcpu_count), max(running.memory_mib, asked.memory_mib))
            await vm_pending.note_running(tx, run.operation, most)

    async def _define(self, run: Run, vm: Vm, daemon: NodeDaemon, spec: VmSpec) -> Outcome:
        request = node_v1.ReconfigureVMRequest(
            vm_id=vm.id,
            name=vm.name,
            spec=to_node_spec(spec),
            labels=vm.labels,
            generation=run.operation.generation,
        )
        if run.parameters.get("is_live"):
            return vm_pending.outcome_of_resizing(await daemon.resize_vm(request))
        await daemon.reconfigure_vm(request)
        return NOTHING


class UpdateVm(Workflow):
    """`UpdateVM`; a failure leaves the VM as it was, with the error."""

    kind = "vm.update"
    _protect = ProtectStep()

    def __init__(self, room: RoomRules | None = None) -> None:
        self._steps = (ApplyStep(room or NothingKept()), ReconfigureStep())

    def steps(self, parameters: Json) -> Sequence[Step]:
        """The second has nothing to do where the host needs not know; the third is there if the policy may change."""
        return (*self._steps, self._protect) if parameters.get("may_protect") else self._steps

    async def conclude(self, tx: Transaction, operation: Operation) -> Message:
        """Answer with the VM."""
        return await document_of(tx, operation)

    async def fail(self, tx: Transaction, operation: Operation, fault: Fault, now: datetime) -> None:
        """Leave the error with the VM, unless nothing was changed: then it was only refused."""
        if "before" in operation.parameters:
            await record_failure(tx, operation, fault, now)


class ConvertVm(UpdateVm):
    """`ConvertToTemplate`: the same as an update that says so."""

    kind = "vm.convert_to_template"


def conversion(vm_id: str) -> UpdateVMRequest:
    """Make the request that turns a VM into a template."""
    request = UpdateVMRequest(id=vm_id)
    request.spec.template.is_template = True
    request.update_mask.paths.append("spec.template.is_template")
    return request


def _spec_before(run: Run) -> VmSpec:
    return json_format.ParseDict(run.parameters["before"]["spec"], VmSpec())


def _size_changes(before: Vm, after: Vm) -> tuple[Capacity, Capacity]:
    """How much a VM grows and how much it shrinks; of CPU and memory, one may grow while the other shrinks."""
    vcpus, memory_bytes = after.vcpu_count - before.vcpu_count, after.memory_bytes - before.memory_bytes
    return Capacity(max(vcpus, 0), max(memory_bytes, 0)), Capacity(max(-vcpus, 0), max(-memory_bytes, 0))
