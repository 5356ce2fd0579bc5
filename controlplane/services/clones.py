"""Clones and templates: VMs made from others, and VMs that are there to be made from.

A clone is where its source's disks are. Whether it may be made is decided in the transaction that claims its room and
writes its row, in which nobody else can change the source: so a template that has a linked clone, also one that is only
being made, is known to have it by whoever wants to delete it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

from controlplane.access.visibility import EverythingVisible, Visibility
from controlplane.domain import errors, vm_spec
from controlplane.domain.access import Place, place_of_new
from controlplane.domain.clones import cloned_spec, refine, refinement_faults
from controlplane.domain.vm import PowerOperation, PowerState, Vm, require_managed, require_state
from controlplane.operations import vm_clone, vm_update
from controlplane.operations.desk import ANYBODY, Caller, Order
from controlplane.operations.steps import Located
from controlplane.scheduler.plan import SchedulerConfig
from controlplane.services.inherited import require_may_inherit
from controlplane.services.macs import random_mac
from controlplane.services.placement import NodeMemory, Placed, place_vm, would_be
from controlplane.services.vm_calls import VmAccess, required
from controlplane.state.interface import Transaction
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.vm_pb2 import VM_ORIGIN_HOST_DISCOVERED, TemplateConfig, VirtualMachine, VmSpec
from limiquantix.errors import InvalidArgument, Reason, ResourceExhausted


@dataclass(frozen=True, slots=True)
class CloneService:
    """The use cases of clones and templates; `memory` only saves reading."""

    access: VmAccess
    scheduler: SchedulerConfig
    now: Callable[[], datetime]
    memory: NodeMemory
    visibility: Visibility = field(default_factory=EverythingVisible)

    async def clone(self, request: api.CloneVMRequest, caller: Caller = ANYBODY) -> VirtualMachine:
        """Make a VM from one that is off. All or nothing.

        Raises:
            NotFound: there is no such source.
            FailedPrecondition: the source is not off, or no template though the clone is to be linked.
            Aborted: something else is being done to the source.
            AlreadyExists: the project has a VM of that name.
            ResourceExhausted: the source's node has no room.
            PermissionDenied: it has devices of its host, or rules about VMs, that the caller may not give to a VM.
            ApiError: whatever the host refused.
        """
        wanted = request.provisioning if request.HasField("provisioning") else None
        source, folder = await self.access.get(request.source_vm_id), await self.access.folder_of(request)

        def make(source: Vm) -> Vm:
            spec = cloned_spec(source, request.clone_type, wanted, _new_id, random_mac)
            return self._draft(
                request.name,
                spec,
                place_of_new(request.project_id, request.folder_id, folder, Place(source.project_id, source.folder_id)),
                dict(source.labels),
                source.description,
                caller,
            )

        return await self._submit(source, request.clone_type, make, caller, start=request.start_on_create)

    async def create(self, request: api.CreateVMRequest, caller: Caller = ANYBODY) -> VirtualMachine:
        """Make a VM from a template; what the request says goes before what the template says. Errors as of `clone`.

        Raises:
            InvalidArgument: the request does not fit the template.
        """
        asked, clone_type = request.spec, request.spec.template.clone_type
        template, folder = await self.access.get(request.template_id), await self.access.folder_of(request)

        def make(source: Vm) -> Vm:
            if not source.spec.template.is_template:
                raise errors.vm_not_template(source.id)
            if request.node_id and request.node_id != source.node_id:
                raise errors.clone_on_other_node(source.id, source.node_id)
            wanted = asked.provisioning if asked.HasField("provisioning") else None
            spec = refine(cloned_spec(source, clone_type, wanted, _new_id, random_mac), asked, _new_id, random_mac)
            _require_sound(source.spec, asked, spec)
            labels, description = {**source.labels, **request.labels}, request.description or source.description
            at_source = Place(source.project_id, source.folder_id)
            place = place_of_new(request.project_id, request.folder_id, folder, at_source)
            return self._draft(request.name, spec, place, labels, description, caller)

        return await self._submit(
            template,
            clone_type,
            make,
            caller,
            start=request.start_on_create,
            validate_only=request.validate_only,
        )

    async def convert(self, request: api.ConvertToTemplateRequest, caller: Caller = ANYBODY) -> VirtualMachine:
        """Make a VM that is off a template. Idempotent.

        Raises:
            FailedPrecondition: it is not off.
        """
        update = vm_update.conversion(request.vm_id)
        order = Order(
            vm_update.ConvertVm.kind,
            request.vm_id,
            parameters=vm_update.parameters_of(update),
            check=lambda vm: vm_update.check_allowed(vm, update),
        )
        return await self.access.done(order, caller)

    def _draft(
        self, name: str, spec: VmSpec, place: Place, labels: dict[str, str], description: str, caller: Caller
    ) -> Vm:
        now = self.now()
        return Vm(
            id=_new_id(),
            name=name,
            project_id=place.project_id,
            folder_id=place.folder_id,
            spec=spec,
            node_id="",
            power_state=PowerState.PROVISIONING,
            created_at=now,
            updated_at=now,
            state_changed_at=now,
            labels=labels,
            description=description,
            created_by=caller.principal,
        )

    async def _submit(
        self,
        source: Vm,
        clone_type: TemplateConfig.CloneType.ValueType,
        make: Callable[[Vm], Vm],
        caller: Caller,
        *,
        start: bool,
        validate_only: bool = False,
    ) -> VirtualMachine:
        vm_id, project_id, sight = _new_id(), make(source).project_id, self.visibility.of_caller()
        placed: Placed | None = None

        async def place(tx: Transaction) -> Located:
            nonlocal placed
            latest = await _clonable(tx, source.id, clone_type)
            draft = replace(make(latest), id=vm_id)
            await require_may_inherit(tx, sight, latest.id, draft.spec)
            placed = await self._place(tx, latest, draft)
            return Located(placed.vm, placed.node)

        if validate_only:
            return await would_be(self.access.store, place)
        order = Order(vm_clone.CloneVm.kind, vm_id, project_id=project_id, parameters={"start": start}, place=place)
        operation = await self.access.desk.submit(order, caller)
        if placed is not None:
            self.memory.keep(placed)
        return await self.access.answer(operation, caller)

    async def _place(self, tx: Transaction, source: Vm, draft: Vm) -> Placed:
        try:
            return await place_vm(tx, draft, self.scheduler, self.memory, source.node_id)
        except ResourceExhausted as error:
            if error.reason in (Reason.NO_FAILOVER_ROOM, Reason.QUOTA_EXCEEDED):
                raise
            node = await tx.get_node(source.node_id)
            hostname = source.node_id if node is None else node.hostname
            raise errors.no_room_beside_source(source.id, hostname, error) from error


async def _clonable(tx: Transaction, vm_id: str, clone_type: TemplateConfig.CloneType.ValueType) -> Vm:
    """Read a VM that a clone can be made of now, and keep others from changing it until the transaction ends."""
    source = await required(tx, vm_id)
    require_managed(source)
    require_state(source, PowerOperation.CLONE)
    if clone_type == TemplateConfig.LINKED and not source.spec.template.is_template:
        raise errors.vm_not_template(source.id)
    if not source.node_id:
        raise errors.vm_not_placed(source.id)
    if source.origin == VM_ORIGIN_HOST_DISCOVERED and not source.spec.disks:
        raise errors.vm_disks_unknown(source.id)
    if queue := await tx.queue_of(source.id):
        raise errors.vm_is_busy(source.id, queue[0].kind)
    return source


def _require_sound(template: VmSpec, asked: VmSpec, spec: VmSpec) -> None:
    faults = [*refinement_faults(template, asked), *vm_spec.violations_of(spec)]
    if faults:
        raise InvalidArgument.from_violations(faults)


def _new_id() -> str:
    return str(uuid.uuid4())
