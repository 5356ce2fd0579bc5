"""Snapshots of this host's VMs, as the control plane asks for them."""

from __future__ import annotations

import uuid

from hypervisor.base import Hypervisor
from hypervisor.snapshots import Snapshot, SnapshotRequest, Snapshots
from limiquantix.errors import FailedPrecondition, Reason
from limiquantix.node.v1 import node_daemon_pb2 as pb
from nodedaemon.commands import CREATE_DEADLINE_S, Commands, vm_id_of
from nodedaemon.encode import STATUS_STATES, timestamp
from nodedaemon.templates import Templates

SNAPSHOT_DEADLINE_S = CREATE_DEADLINE_S
"""Saving or reading 64 GiB of memory takes a minute or two on a good disk."""


class VmSnapshots:
    """The part of the service that saves VMs and puts them back."""

    def __init__(self, hypervisor: Hypervisor, commands: Commands, templates: Templates) -> None:
        self._hypervisor = hypervisor
        self._commands = commands
        self._templates = templates

    async def create(self, request: pb.CreateSnapshotRequest) -> pb.SnapshotResponse:
        """Save the VM's state. Idempotent for the same id."""
        snapshots = self._power(vm_id := vm_id_of(request))
        wanted = SnapshotRequest(
            snapshot_id=str(uuid.UUID(request.snapshot_id)),
            name=request.name,
            description=request.description,
            include_memory=request.include_memory,
            quiesce=request.quiesce,
        )

        async def create() -> Snapshot:
            await self._require_no_template(vm_id)
            return await snapshots.create(vm_id, wanted)

        return _encode(await self._commands.change(request, create, deadline_s=SNAPSHOT_DEADLINE_S))

    async def revert(self, request: pb.RevertSnapshotRequest) -> None:
        """Put the VM back. Idempotent."""
        snapshots, snapshot_id = self._power(vm_id := vm_id_of(request)), str(uuid.UUID(request.snapshot_id))

        async def revert() -> None:
            await self._require_no_template(vm_id)
            await snapshots.revert(vm_id, snapshot_id, start=request.start_after_revert)

        await self._commands.change(request, revert, deadline_s=SNAPSHOT_DEADLINE_S)

    async def delete(self, request: pb.DeleteSnapshotRequest) -> None:
        """Remove a snapshot. Idempotent."""
        snapshots, snapshot_id = self._power(vm_id := vm_id_of(request)), str(uuid.UUID(request.snapshot_id))

        async def delete() -> None:
            await self._require_no_template(vm_id)
            await snapshots.delete(vm_id, snapshot_id)

        await self._commands.change(request, delete, deadline_s=SNAPSHOT_DEADLINE_S)

    async def list(self, request: pb.VMIdRequest) -> pb.ListSnapshotsResponse:
        """Read all of them, parents before children."""
        snapshots = self._power(vm_id_of(request))
        found = await self._commands.read(request, snapshots.list)
        return pb.ListSnapshotsResponse(snapshots=[_encode(snapshot) for snapshot in found])

    async def _require_no_template(self, vm_id: str) -> None:
        """Check that nobody else builds upon the VM's images, which snapshots change."""
        if await self._templates.is_template(vm_id):
            raise FailedPrecondition(
                Reason.VM_IS_TEMPLATE,
                f"VM {vm_id} is a template, whose disks must stay as they are; make it an ordinary VM again first",
                metadata={"vm_id": vm_id},
            )

    def _power(self, vm_id: str) -> Snapshots:
        if self._hypervisor.snapshots is None:
            raise FailedPrecondition(
                Reason.HOST_LACKS,
                f"the hypervisor of VM {vm_id} has no snapshots",
                metadata={"vm_id": vm_id},
            )
        return self._hypervisor.snapshots


def _encode(snapshot: Snapshot) -> pb.SnapshotResponse:
    return pb.SnapshotResponse(
        snapshot_id=snapshot.snapshot_id,
        name=snapshot.name,
        description=snapshot.description,
        created_at=timestamp(snapshot.created_at_s),
        vm_state=STATUS_STATES[snapshot.state],
        parent_id=snapshot.parent_id,
        memory_included=snapshot.has_memory,
        quiesced=snapshot.is_quiesced,
        frozen_filesystem_count=snapshot.frozen_filesystem_count,
        size_bytes=snapshot.size_bytes,
        is_current=snapshot.is_current,
    )
