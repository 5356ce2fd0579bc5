"""Virtual machines: create, read, change, power, delete.

Every mutation keeps one order: check, record the intent (claim and row) in one transaction, let the host act, record
what the host says. The recorded power state is always the host's own word; a host that does not answer changes nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from controlplane.daemons.interface import DaemonPool, NodeDaemon
from controlplane.domain import errors
from controlplane.domain.node import Capacity
from controlplane.domain.query import Page, VmFilter
from controlplane.domain.vm import DEFAULT_PROJECT_ID, PowerOperation, PowerState, Vm, observed, require_state
from controlplane.domain.vm_spec import filled_in
from controlplane.scheduler.plan import SchedulerConfig
from controlplane.services.host_reports import SyncTracker
from controlplane.services.macs import random_mac
from controlplane.services.node_spec import STATE_OF_STATUS, in_callers_words, to_node_spec
from controlplane.services.page_tokens import decode_cursor, page_limit
from controlplane.services.placement import place_vm
from controlplane.services.vm_operations import VmOperations
from controlplane.services.vm_updates import VmChange, change_of
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.vm_pb2 import DisplayConfig
from limiquantix.errors import ApiError, DeadlineExceeded, NotFound, Unavailable
from limiquantix.node.v1 import node_daemon_pb2 as node_v1

_log = structlog.get_logger(__name__)

Clock = Callable[[], datetime]

DEFAULT_STOP_TIMEOUT_S = 30
"""How long a guest gets to shut down when the caller does not say (documented behaviour, section 2)."""

MAX_CONSOLE_LOG_BYTES = 64 * 1024
"""Console log read when the caller does not say how much."""


@dataclass(frozen=True, slots=True)
class VmService:
    """The use cases of VMs; holds no state of its own but the operations under way."""

    store: Store
    daemons: DaemonPool
    operations: VmOperations
    syncs: SyncTracker
    scheduler: SchedulerConfig
    now: Clock

    # -- reading

    async def get(self, vm_id: str) -> Vm:
        """Read one VM.

        Raises:
            NotFound: there is none of that id.
        """
        return await self.store.read(lambda tx: _required(tx, vm_id))

    async def list(self, request: api.ListVMsRequest) -> Page[Vm]:
        """Read one page of VMs, oldest first.

        Raises:
            InvalidArgument: the page token belongs to another query.
        """
        wanted = VmFilter(
            project_id=request.project_id,
            node_id=request.node_id,
            labels=dict(request.labels),
            states=frozenset(request.states),
        )
        after = decode_cursor(request.page_token, request)
        return await self.store.read(lambda tx: tx.list_vms(wanted, after, page_limit(request.page_size)))

    async def console(self, request: api.GetConsoleRequest) -> node_v1.ConsoleInfoResponse:
        """Ask the VM's host where its graphical console listens.

        Raises:
            FailedPrecondition: the VM has no console of the kind asked for, or is not running.
        """
        vm, daemon = await self._locate(request.vm_id)
        if request.type != DisplayConfig.VNC:
            raise errors.console_absent(vm.id, DisplayConfig.DisplayType.Name(request.type))
        return await daemon.console(vm.id)

    async def console_log(self, request: api.GetConsoleLogRequest) -> node_v1.GetConsoleLogResponse:
        """Read a piece of what the guest wrote to its serial console."""
        vm, daemon = await self._locate(request.vm_id)
        return await daemon.console_log(
            node_v1.GetConsoleLogRequest(
                vm_id=vm.id, offset=request.offset, max_bytes=request.max_bytes or MAX_CONSOLE_LOG_BYTES
            )
        )

    # -- creating and deleting

    async def create(self, request: api.CreateVMRequest) -> Vm:
        """Place and define a VM, and start it if asked. All or nothing: a failure leaves no row, claim, domain or file.

        Raises:
            AlreadyExists: the project has a VM of that name.
            ResourceExhausted: no node fits.
            ApiError: whatever the host refused.
        """
        now = self.now()
        draft = Vm(
            id=str(uuid.uuid4()),
            name=request.name,
            project_id=request.project_id or DEFAULT_PROJECT_ID,
            spec=filled_in(request.spec, lambda: str(uuid.uuid4()), random_mac),
            node_id="",
            power_state=PowerState.PROVISIONING,
            created_at=now,
            updated_at=now,
            state_changed_at=now,
            labels=dict(request.labels),
            description=request.description,
        )
        return await self.operations.run(draft.id, self._create(draft, request.node_id, request.start_on_create))

    async def _create(self, draft: Vm, pinned_node_id: str, start: bool) -> Vm:
        vm = await self.store.run(lambda tx: place_vm(tx, draft, self.scheduler, pinned_node_id))
        try:
            daemon = await self._daemon_of(vm)
            await daemon.create_vm(
                node_v1.CreateVMOnNodeRequest(vm_id=vm.id, name=vm.name, spec=to_node_spec(vm.spec), labels=vm.labels)
            )
            if start:
                await daemon.start_vm(vm.id)
            return await self._record_status(vm, daemon)
        except BaseException as error:
            await self._undo_create(vm)
            if isinstance(error, ApiError):
                raise in_callers_words(error) from error
            raise

    async def _undo_create(self, vm: Vm) -> None:
        """Take back what a failed create did. Never raises an `ApiError`: the caller must hear why it failed."""
        try:
            daemon = await self._daemon_of(vm)
            await daemon.force_stop_vm(vm.id)
        except ApiError as error:
            _log.info("undo_force_stop_skipped", vm_id=vm.id, reason=error.reason)
        try:
            daemon = await self._daemon_of(vm)
            await daemon.delete_vm(vm.id)
        except ApiError as error:
            _log.warning("undo_left_vm_on_node", vm_id=vm.id, node_id=vm.node_id, reason=error.reason)
        try:
            await self.store.run(lambda tx: _remove(tx, vm.id))
        except ApiError as error:
            # The row stays PROVISIONING, and the node's next full sync removes it: ask for one.
            self.syncs.forget(vm.node_id)
            _log.error("undo_left_row", vm_id=vm.id, node_id=vm.node_id, reason=error.reason)

    async def delete(self, request: api.DeleteVMRequest) -> None:
        """Delete a VM: its definition and images on the host, its row and its claim.

        `force` stops it first. `remove_from_inventory_only` forgets the VM and leaves the host alone.

        Raises:
            FailedPrecondition: it runs and `force` is not set.
            Unavailable: its host does not answer; the VM stays as it is.
        """
        await self.operations.run(request.id, self._delete(request))

    async def _delete(self, request: api.DeleteVMRequest) -> None:
        vm = await self.get(request.id)
        if not request.remove_from_inventory_only:
            if not request.force:
                require_state(vm, PowerOperation.DELETE)
            daemon = await self._daemon_of(vm)
            if request.force:
                await _ignoring_absence(daemon.force_stop_vm(vm.id))
            await daemon.delete_vm(vm.id)
        await self.store.run(lambda tx: _remove(tx, vm.id))

    # -- changing

    async def update(self, request: api.UpdateVMRequest) -> Vm:
        """Change labels, description or spec. A spec that the host must know takes a VM that is off.

        Raises:
            FailedPrecondition: it is not off and the change needs that.
            ResourceExhausted: its node has no room for the larger size.
        """
        return await self.operations.run(request.id, self._update(request))

    async def _update(self, request: api.UpdateVMRequest) -> Vm:
        vm = await self.get(request.id)
        change = change_of(vm, request)
        new_spec = to_node_spec(change.spec) if change.spec is not None else None
        if new_spec is None or new_spec == to_node_spec(vm.spec):
            return await self.store.run(lambda tx: self._apply_change(tx, vm.id, change))
        resizes = (change.spec.cpu, change.spec.memory) != (vm.spec.cpu, vm.spec.memory) if change.spec else False
        require_state(vm, PowerOperation.RESIZE if resizes else PowerOperation.RECONFIGURE)
        daemon = await self._daemon_of(vm)
        updated = await self.store.run(lambda tx: self._apply_change(tx, vm.id, change))
        grown, shrunk = _size_changes(vm, updated)
        try:
            await daemon.reconfigure_vm(
                node_v1.ReconfigureVMRequest(vm_id=vm.id, name=vm.name, spec=new_spec, labels=updated.labels)
            )
        except BaseException as error:
            if isinstance(error, Unavailable | DeadlineExceeded):
                await _restore_on_host(vm, daemon)
            await self.store.run(lambda tx: self._undo_change(tx, vm, grown))
            if isinstance(error, ApiError):
                raise in_callers_words(error) from error
            raise
        if shrunk != Capacity(0, 0):
            await self.store.run(lambda tx: tx.release(vm.node_id, shrunk))
        return updated

    async def _apply_change(self, tx: Transaction, vm_id: str, change: VmChange) -> Vm:
        """Write the change and claim what grows. What shrinks stays claimed until the host has agreed to it."""
        vm = await _required(tx, vm_id)
        changed = replace(
            vm,
            spec=vm.spec if change.spec is None else change.spec,
            labels=vm.labels if change.labels is None else change.labels,
            description=vm.description if change.description is None else change.description,
            updated_at=self.now(),
        )
        growth, _ = _size_changes(vm, changed)
        if growth != Capacity(0, 0) and not await tx.claim(vm.node_id, growth):
            node = await tx.get_node(vm.node_id)
            raise errors.no_room_to_grow(vm.id, growth, node)
        return await tx.update_vm(changed)

    async def _undo_change(self, tx: Transaction, before: Vm, grown: Capacity) -> None:
        current = await _required(tx, before.id)
        restored = replace(current, spec=before.spec, labels=before.labels, description=before.description)
        await tx.update_vm(replace(restored, updated_at=self.now()))
        await tx.release(before.node_id, grown)

    # -- power

    async def start(self, vm_id: str) -> Vm:
        """Start a VM that is off."""
        return await self._power(vm_id, PowerOperation.START, lambda daemon: daemon.start_vm(vm_id))

    async def reboot(self, request: api.RebootVMRequest) -> Vm:
        """Reboot the guest of a running VM; `force` cuts the power and starts it again instead of asking the guest."""

        async def act(daemon: NodeDaemon) -> None:
            if request.force:
                await daemon.force_stop_vm(request.id)
                await daemon.start_vm(request.id)
            else:
                await daemon.reboot_vm(request.id)

        return await self._power(request.id, PowerOperation.REBOOT, act)

    async def pause(self, vm_id: str) -> Vm:
        """Stop the vCPUs of a running VM."""
        return await self._power(vm_id, PowerOperation.PAUSE, lambda daemon: daemon.pause_vm(vm_id))

    async def resume(self, vm_id: str) -> Vm:
        """Let a paused VM run again."""
        return await self._power(vm_id, PowerOperation.RESUME, lambda daemon: daemon.resume_vm(vm_id))

    async def stop(self, request: api.StopVMRequest) -> Vm:
        """Stop a VM.

        Without `force` the guest gets `timeout_sec` (30 by default) to shut down, then the call fails and the VM runs
        on. With `force` it gets `timeout_sec` (0 by default), then the plug is pulled.

        Raises:
            FailedPrecondition: it is off already, or the guest did not shut down in time.
        """

        async def act(daemon: NodeDaemon) -> None:
            if not request.force:
                await daemon.stop_vm(request.id, request.timeout_sec or DEFAULT_STOP_TIMEOUT_S)
                return
            if request.timeout_sec:
                try:
                    await daemon.stop_vm(request.id, request.timeout_sec)
                except ApiError as error:
                    _log.info("graceful_stop_gave_up", vm_id=request.id, reason=error.reason)
            await daemon.force_stop_vm(request.id)

        return await self._power(request.id, PowerOperation.STOP, act)

    async def _power(self, vm_id: str, operation: PowerOperation, act: Callable[[NodeDaemon], Awaitable[None]]) -> Vm:
        return await self.operations.run(vm_id, self._power_in_turn(vm_id, operation, act))

    async def _power_in_turn(
        self, vm_id: str, operation: PowerOperation, act: Callable[[NodeDaemon], Awaitable[None]]
    ) -> Vm:
        vm = await self.get(vm_id)
        require_state(vm, operation)
        daemon = await self._daemon_of(vm)
        try:
            await act(daemon)
            return await self._record_status(vm, daemon)
        except ApiError as error:
            await self._record_error(vm_id, error.message)
            raise

    # -- what the host says

    async def _record_status(self, vm: Vm, daemon: NodeDaemon) -> Vm:
        """Ask the host what the VM is now and store the answer; a newer report that came meanwhile wins."""
        status = await daemon.vm_status(vm.id)

        async def store_status(tx: Transaction) -> Vm:
            current = await _required(tx, vm.id)
            if status.state_change_count < current.reported_change_count:
                return current
            seen = observed(current, STATE_OF_STATUS[status.state], status.state_change_count, self.now())
            return await tx.update_vm(replace(seen, error_message=""))

        return await self.store.run(store_status)

    async def _record_error(self, vm_id: str, message: str) -> None:
        async def store_error(tx: Transaction) -> None:
            current = await tx.get_vm(vm_id)
            if current is not None:
                await tx.update_vm(replace(current, error_message=message, updated_at=self.now()))

        try:
            await self.store.run(store_error)
        except ApiError as error:  # the caller must hear of the operation's failure, not of this one
            _log.warning("error_message_not_stored", vm_id=vm_id, reason=error.reason)

    # -- where the VM is

    async def _locate(self, vm_id: str) -> tuple[Vm, NodeDaemon]:
        vm = await self.get(vm_id)
        return vm, await self._daemon_of(vm)

    async def _daemon_of(self, vm: Vm) -> NodeDaemon:
        if not vm.node_id:
            raise errors.vm_not_placed(vm.id)
        node = await self.store.read(lambda tx: tx.get_node(vm.node_id))
        if node is None:
            raise errors.vm_not_placed(vm.id)
        return self.daemons.daemon(node)


def _size_changes(before: Vm, after: Vm) -> tuple[Capacity, Capacity]:
    """How much a VM grows and how much it shrinks; of CPU and memory, one may grow while the other shrinks."""
    vcpus, memory_bytes = after.vcpu_count - before.vcpu_count, after.memory_bytes - before.memory_bytes
    return Capacity(max(vcpus, 0), max(memory_bytes, 0)), Capacity(max(-vcpus, 0), max(-memory_bytes, 0))


async def _required(tx: Transaction, vm_id: str) -> Vm:
    vm = await tx.get_vm(vm_id)
    if vm is None:
        raise errors.vm_not_found(vm_id)
    return vm


async def _remove(tx: Transaction, vm_id: str) -> None:
    vm = await tx.get_vm(vm_id)
    if vm is not None and await tx.delete_vm(vm_id):
        await tx.release(vm.node_id, Capacity(vm.vcpu_count, vm.memory_bytes))


async def _restore_on_host(before: Vm, daemon: NodeDaemon) -> None:
    """Give a VM its old definition again, of which nobody knows whether the host replaced it. Raises no `ApiError`."""
    try:
        await daemon.reconfigure_vm(
            node_v1.ReconfigureVMRequest(
                vm_id=before.id, name=before.name, spec=to_node_spec(before.spec), labels=before.labels
            )
        )
    except ApiError as error:
        _log.warning("undo_left_definition_on_node", vm_id=before.id, node_id=before.node_id, reason=error.reason)


async def _ignoring_absence(call: Awaitable[None]) -> None:
    try:
        await call
    except NotFound:
        return
