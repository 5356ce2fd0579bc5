"""Snapshots of VMs: take, list, go back, delete."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from google.protobuf.empty_pb2 import Empty

from controlplane.access.visibility import EverythingVisible, Visibility
from controlplane.daemons.node_snapshots import to_snapshot_status
from controlplane.domain import errors, snapshots
from controlplane.domain.vm import Vm
from controlplane.operations import vm_snapshots
from controlplane.operations.desk import ANYBODY, Caller, Order
from controlplane.services.inherited import require_may_regain
from controlplane.services.vm_calls import VmAccess
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.vm_pb2 import Snapshot, VirtualMachine


@dataclass(frozen=True, slots=True)
class SnapshotService:
    """The use cases of snapshots."""

    access: VmAccess
    visibility: Visibility = field(default_factory=EverythingVisible)

    async def create(self, request: api.CreateSnapshotRequest, caller: Caller = ANYBODY) -> Snapshot:
        """Save a VM's disks, and its memory if asked for.

        A caller who does not wait gets what is known before: the id and what was asked for.

        Raises:
            InvalidArgument: memory and quiescing were asked for at once.
            AlreadyExists: the VM has a snapshot of that name.
            FailedPrecondition: its state, a disk, its firmware or its guest's agent does not allow it.
        """
        if request.include_memory and request.quiesce:
            raise errors.quiesce_with_memory()
        parameters = vm_snapshots.parameters_of(request, str(uuid.uuid4()))
        order = Order(
            vm_snapshots.CreateSnapshot.kind,
            request.vm_id,
            parameters=parameters,
            check=lambda vm: vm_snapshots.require_snapshot_allowed(vm, parameters),
        )
        operation = await self.access.desk.submit(order, caller)
        if caller.waits or operation.has_ended:
            return await self.access.desk.answer(operation, Snapshot())
        return Snapshot(
            id=str(operation.parameters["snapshot_id"]),
            name=request.name,
            description=request.description,
            memory_included=request.include_memory,
            quiesced=request.quiesce,
        )

    async def list(self, request: api.ListSnapshotsRequest) -> Sequence[Snapshot]:
        """Ask the VM's host for its snapshots, parents before children.

        Raises:
            Unavailable: the host does not answer; `GetVM` tells what it said last.
        """
        vm, daemon = await self.access.locate(request.vm_id)
        return to_snapshot_status((await daemon.list_snapshots(vm.id)).snapshots).snapshots

    async def revert(self, request: api.RevertToSnapshotRequest, caller: Caller = ANYBODY) -> VirtualMachine:
        """Put a VM back to a snapshot: configuration, disks, and the running guest if its memory was saved.

        Raises:
            NotFound: the VM has no snapshot of that id.
            ResourceExhausted: the VM was larger then, and its node has no room for that, or only such as is kept for
                VMs of nodes that fail.
            PermissionDenied: it had devices of its host that it lacks now, and the caller may not give it those.
        """
        sight = self.visibility.of_caller()

        def check(vm: Vm) -> None:
            snapshots.require_revert_allowed(vm)
            saved = snapshots.find_snapshot(vm, request.snapshot_id)
            require_may_regain(sight, request.snapshot_id, vm.spec, snapshots.spec_after_revert(vm, saved))

        order = Order(
            vm_snapshots.RevertToSnapshot.kind,
            request.vm_id,
            parameters={"snapshot_id": request.snapshot_id, "start": request.start_after_revert},
            check=check,
        )
        return await self.access.done(order, caller)

    async def delete(self, request: api.DeleteSnapshotRequest, caller: Caller = ANYBODY) -> None:
        """Remove a snapshot and keep what the VM is; its children build upon its parent then.

        Raises:
            NotFound: the VM has no snapshot of that id.
        """
        order = Order(
            vm_snapshots.DeleteSnapshot.kind,
            request.vm_id,
            parameters={"snapshot_id": request.snapshot_id},
            check=snapshots.require_delete_allowed,
        )
        operation = await self.access.desk.submit(order, caller)
        if caller.waits:
            await self.access.desk.answer(operation, Empty())
