"""Snapshots as a node daemon tells of them, in the words of our own contract."""

from __future__ import annotations

from collections.abc import Iterable

from controlplane.daemons.node_spec import STATE_OF_STATUS
from limiquantix.compute.v1.vm_pb2 import Snapshot, SnapshotStatus
from limiquantix.node.v1.node_daemon_pb2 import SnapshotResponse


def to_snapshot(told: SnapshotResponse) -> Snapshot:
    """Translate one snapshot."""
    return Snapshot(
        id=told.snapshot_id,
        name=told.name,
        description=told.description,
        parent_id=told.parent_id,
        memory_included=told.memory_included,
        quiesced=told.quiesced,
        created_at=told.created_at,
        size_bytes=told.size_bytes,
        frozen_filesystem_count=told.frozen_filesystem_count,
        power_state=STATE_OF_STATUS[told.vm_state],
        is_current=told.is_current,
    )


def to_snapshot_status(told: Iterable[SnapshotResponse]) -> SnapshotStatus:
    """Translate all snapshots of a VM."""
    snapshots = [to_snapshot(each) for each in told]
    current = next((each.id for each in snapshots if each.is_current), "")
    return SnapshotStatus(current_snapshot_id=current, snapshots=snapshots)
