"""Virtual machines: create, read, change, power, delete.

Every mutation is an operation: checked and recorded with its intent in one transaction, carried out by the worker, and
waited for as long as its caller likes. What it does is in `controlplane.operations`. The recorded power state is always
the host's own word; a host that does not answer changes nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

from google.protobuf.empty_pb2 import Empty

from controlplane.access.visibility import EverythingVisible, Visibility
from controlplane.domain import errors
from controlplane.domain.access import Permission, Place, place_of_new
from controlplane.domain.operation import Json
from controlplane.domain.query import Page, VmFilter
from controlplane.domain.vm import (
    DEFAULT_PROJECT_ID,
    PowerOperation,
    PowerState,
    Vm,
    require_managed,
    require_state,
)
from controlplane.domain.vm_spec import filled_in
from controlplane.operations import vm_life, vm_power, vm_update
from controlplane.operations.desk import ANYBODY, Caller, Order
from controlplane.operations.steps import Located
from controlplane.operations.vm_start_elsewhere import elsewhere_if_dead
from controlplane.scheduler.plan import SchedulerConfig
from controlplane.services.macs import asked_macs, random_mac, with_free_macs
from controlplane.services.page_tokens import decode_cursor, page_limit
from controlplane.services.placement import NodeMemory, Placed, place_vm, would_be
from controlplane.services.vm_calls import VmAccess
from controlplane.state.interface import Transaction
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.vm_pb2 import ConsoleInfo, DisplayConfig, VirtualMachine
from limiquantix.node.v1 import node_daemon_pb2 as node_v1

MAX_CONSOLE_LOG_BYTES = 64 * 1024
"""Console log read when the caller does not say how much."""

_DISPLAY_TYPES = {
    DisplayConfig.VNC: node_v1.CONSOLE_TYPE_UNSPECIFIED,  # it is the default, so it means whichever display there is
    DisplayConfig.SPICE: node_v1.CONSOLE_TYPE_SPICE,
}
_CONSOLE_TYPES = {
    ConsoleInfo.CONSOLE_TYPE_VNC: node_v1.CONSOLE_TYPE_VNC,
    ConsoleInfo.CONSOLE_TYPE_SPICE: node_v1.CONSOLE_TYPE_SPICE,
    ConsoleInfo.CONSOLE_TYPE_SERIAL: node_v1.CONSOLE_TYPE_SERIAL,
}


@dataclass(frozen=True, slots=True)
class VmService:
    """The use cases of VMs; holds no state of its own but `memory`, which only saves reading."""

    access: VmAccess
    scheduler: SchedulerConfig
    now: Callable[[], datetime]
    memory: NodeMemory = field(default_factory=NodeMemory)
    visibility: Visibility = field(default_factory=EverythingVisible)

    # -- reading

    async def get(self, vm_id: str) -> Vm:
        """Read one VM.

        Raises:
            NotFound: there is none of that id.
        """
        return await self.access.get(vm_id)

    async def list(self, request: api.ListVMsRequest) -> Page[Vm]:
        """Read one page of the VMs that the caller may see, oldest first.

        Raises:
            InvalidArgument: the page token belongs to another query.
        """
        wanted = VmFilter(
            project_id=request.project_id,
            node_id=request.node_id,
            labels=dict(request.labels),
            states=frozenset(request.states),
            visible=self.visibility.of_caller().places(Permission.VM_READ),
        )
        after = decode_cursor(request.page_token, request)
        return await self.access.store.read(lambda tx: tx.list_vms(wanted, after, page_limit(request.page_size)))

    async def console(self, request: api.GetConsoleRequest) -> node_v1.ConsoleInfoResponse:
        """Have the VM's host make a one-time entry to a console.

        Raises:
            FailedPrecondition: the VM has no console of the kind asked for, or is not running.
        """
        vm, daemon = await self.access.locate(request.vm_id)
        kind = _CONSOLE_TYPES.get(request.console_type, _DISPLAY_TYPES.get(request.type))
        if kind is None:
            raise errors.console_absent(vm.id, DisplayConfig.DisplayType.Name(request.type))
        return await daemon.open_console(node_v1.OpenConsoleRequest(vm_id=vm.id, type=kind))

    async def console_log(self, request: api.GetConsoleLogRequest) -> node_v1.GetConsoleLogResponse:
        """Read a piece of what the guest wrote to its serial console."""
        vm, daemon = await self.access.locate(request.vm_id)
        return await daemon.console_log(
            node_v1.GetConsoleLogRequest(
                vm_id=vm.id, offset=request.offset, max_bytes=request.max_bytes or MAX_CONSOLE_LOG_BYTES
            )
        )

    # -- creating and deleting

    async def create(self, request: api.CreateVMRequest, caller: Caller = ANYBODY) -> VirtualMachine:
        """Place and define a VM, and start it if asked. All or nothing: a failure leaves no row, claim, domain or file.

        A request that is only to be validated is decided like any other, and then nothing of it is kept.

        Raises:
            AlreadyExists: the project has a VM of that name.
            NotFound: there is no such project or folder.
            ResourceExhausted: no node fits, or it is more than the project's quota.
            ApiError: whatever the host refused.
        """
        now, folder = self.now(), await self.access.folder_of(request)
        at = place_of_new(request.project_id, request.folder_id, folder, Place(DEFAULT_PROJECT_ID))
        draft = Vm(
            id=str(uuid.uuid4()),
            name=request.name,
            project_id=at.project_id,
            spec=filled_in(request.spec, lambda: str(uuid.uuid4()), random_mac),
            node_id="",
            power_state=PowerState.PROVISIONING,
            created_at=now,
            updated_at=now,
            state_changed_at=now,
            labels=dict(request.labels),
            description=request.description,
            folder_id=at.folder_id,
            created_by=caller.principal,
        )

        placed: Placed | None = None

        async def place(tx: Transaction) -> Located:
            nonlocal placed
            free = replace(draft, spec=await with_free_macs(tx, draft.spec, asked_macs(request.spec)))
            placed = await place_vm(tx, free, self.scheduler, self.memory, request.node_id)
            return Located(placed.vm, placed.node)

        if request.validate_only:
            return await would_be(self.access.store, place)
        order = Order(
            vm_life.CreateVm.kind,
            draft.id,
            project_id=draft.project_id,
            parameters={"start": request.start_on_create},
            place=place,
        )
        operation = await self.access.desk.submit(order, caller)
        if placed is not None:
            self.memory.keep(placed)
        return await self.access.answer(operation, caller)

    async def delete(self, request: api.DeleteVMRequest, caller: Caller = ANYBODY) -> None:
        """Delete a VM: its definition and images on the host, its row and its claim.

        `force` stops it first, and does not wait for what can be interrupted. `remove_from_inventory_only` forgets the
        VM and leaves the host alone.

        Raises:
            FailedPrecondition: it runs and `force` is not set.
            Unavailable: its host does not answer; the VM stays as it is.
        """
        forgets = request.remove_from_inventory_only

        def check(vm: Vm) -> None:
            if not forgets:
                require_managed(vm)
                if not request.force:
                    require_state(vm, PowerOperation.DELETE)

        order = Order(
            vm_life.DeleteVm.kind,
            request.id,
            parameters={"force": request.force, "inventory_only": forgets},
            check=check,
            preempts=request.force or forgets,
        )
        operation = await self.access.desk.submit(order, caller)
        if caller.waits:
            await self.access.desk.answer(operation, Empty())

    async def take_over(self, request: api.TakeOverVMRequest, caller: Caller = ANYBODY) -> VirtualMachine:
        """Manage a VM that was found on a host and only shown so far. Idempotent."""
        return await self.access.done(Order(vm_life.TakeOverVm.kind, request.id), caller)

    # -- changing

    async def update(self, request: api.UpdateVMRequest, caller: Caller = ANYBODY) -> VirtualMachine:
        """Change labels, description or spec. What a VM in memory cannot have at once waits for its next start.

        Raises:
            FailedPrecondition: its state does not allow the change.
            ResourceExhausted: its node has no room for the larger size, or it would take room that is kept for VMs of
                nodes that fail: by its size, or by being one of those that are restarted.
        """
        order = Order(
            vm_update.UpdateVm.kind,
            request.id,
            parameters=vm_update.parameters_of(request),
            check=lambda vm: vm_update.check_allowed(vm, request),
        )
        return await self.access.done(order, caller)

    # -- power

    async def start(self, vm_id: str, caller: Caller = ANYBODY) -> VirtualMachine:
        """Start a VM that is off; one whose node is proven dead on another node that reaches its disks.

        Raises:
            FailedPrecondition: it runs, or its node is fenced and nothing proves that it does not run there.
            ResourceExhausted: its node is fenced, and no other one takes it or reaches its disks.
        """

        order = Order(
            vm_power.StartVm.kind,
            vm_id,
            check=lambda vm: vm_power.require_allowed(vm, PowerOperation.START),
            revise=elsewhere_if_dead,
        )
        return await self.access.done(order, caller)

    async def reboot(self, request: api.RebootVMRequest, caller: Caller = ANYBODY) -> VirtualMachine:
        """Reboot the guest of a running VM; `force` cuts the power and starts it again instead of asking the guest."""
        parameters = {"force": request.force}
        return await self._power(vm_power.RebootVm.kind, PowerOperation.REBOOT, request.id, caller, parameters)

    async def pause(self, vm_id: str, caller: Caller = ANYBODY) -> VirtualMachine:
        """Stop the vCPUs of a running VM."""
        return await self._power(vm_power.PauseVm.kind, PowerOperation.PAUSE, vm_id, caller)

    async def resume(self, vm_id: str, caller: Caller = ANYBODY) -> VirtualMachine:
        """Let a paused VM run again."""
        return await self._power(vm_power.ResumeVm.kind, PowerOperation.RESUME, vm_id, caller)

    async def suspend(self, vm_id: str, caller: Caller = ANYBODY) -> VirtualMachine:
        """Save the memory of a running VM to disk and let go of it; a start continues where the guest was."""
        return await self._power(vm_power.SuspendVm.kind, PowerOperation.SUSPEND, vm_id, caller)

    async def stop(self, request: api.StopVMRequest, caller: Caller = ANYBODY) -> VirtualMachine:
        """Stop a VM.

        Without `force` the guest gets `timeout_sec` (30 by default) to shut down, then the call fails and the VM runs
        on. With `force` it gets `timeout_sec` (0 by default), then the plug is pulled; a forced stop does not wait for
        what can be interrupted, and drops what a suspended VM has saved.

        Raises:
            FailedPrecondition: it is off already, or the guest did not shut down in time.
        """
        parameters = {"force": request.force, "timeout_sec": request.timeout_sec}
        operation = PowerOperation.FORCE_STOP if request.force else PowerOperation.STOP
        return await self._power(
            vm_power.StopVm.kind, operation, request.id, caller, parameters, preempts=request.force
        )

    async def _power(
        self,
        kind: str,
        operation: PowerOperation,
        vm_id: str,
        caller: Caller,
        parameters: Json | None = None,
        *,
        preempts: bool = False,
    ) -> VirtualMachine:
        order = Order(
            kind,
            vm_id,
            parameters=parameters or {},
            check=lambda vm: vm_power.require_allowed(vm, operation),
            preempts=preempts,
        )
        return await self.access.done(order, caller)
