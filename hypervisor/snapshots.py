"""Snapshots of one host's VMs: the optional power to put a VM back to what it was.

A snapshot holds the VM's configuration and the contents of its disks, and with memory the running guest too. Those of
one VM form a tree: each builds upon the one that was current when it was made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from hypervisor.types import PowerState


@dataclass(frozen=True, slots=True)
class SnapshotRequest:
    """What to save.

    `snapshot_id` is a UUID of the caller's making, lower case. `name` is text for people, unique within the VM. With
    `include_memory` the guest goes on from there after a revert, without it the revert leaves the VM off. `quiesce` has
    the guest's agent freeze its file systems meanwhile, so that they need no repair after a revert; with memory there
    is nothing to freeze for.
    """

    snapshot_id: str
    name: str
    description: str = ""
    include_memory: bool = False
    quiesce: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One saved state.

    `state` is what the VM was when it was saved. `size_bytes` is what it takes on the host: the saved memory, and what
    the disks hold for it alone. `is_current` says that the VM's present state builds upon it.
    """

    snapshot_id: str
    name: str
    description: str
    parent_id: str
    created_at_s: float
    state: PowerState
    has_memory: bool
    is_quiesced: bool
    frozen_filesystem_count: int
    size_bytes: int
    is_current: bool


class Snapshots(ABC):
    """Snapshots of one host's VMs; see `Hypervisor` for the rules that hold for every method.

    They last through `reconfigure`, and go with `delete` of the VM.
    """

    @abstractmethod
    async def create(self, vm_id: str, request: SnapshotRequest) -> Snapshot:
        """Save the VM's state. Idempotent: where there is one of this id, that is returned.

        What a call left half done that was cut short is removed first. A guest that was frozen is thawed in any case:
        also if the call fails, is cancelled, or this process dies, then when its successor opens the backend.

        Raises:
            WrongState: it is saved to disk; or it has no guest in memory, and memory or quiescing was asked for.
            SnapshotNameTaken: another snapshot of the VM has the name.
            SnapshotUnsupported: a disk or the firmware cannot be saved; the message says which.
            CannotQuiesce: the guest's agent does not answer in time, or cannot freeze; nothing is saved.
        """

    @abstractmethod
    async def revert(self, vm_id: str, snapshot_id: str, *, start: bool = False) -> None:
        """Put configuration, disks and, if saved, the guest back; what the VM is now is lost. Idempotent.

        Args:
            start: have the VM run afterwards. Without, one saved with its memory is what it was, running or paused,
                and any other is off.

        Raises:
            SnapshotNotFound: the VM has none of that id.
            SnapshotUnsupported: a disk no longer holds it; nothing was changed.
        """

    @abstractmethod
    async def delete(self, vm_id: str, snapshot_id: str) -> None:
        """Remove a snapshot, whatever the VM is; its children then build upon its parent.

        Succeeds if there is none of that id, and removes what is left of one whose creation was cut short.
        """

    @abstractmethod
    async def list(self, vm_id: str) -> Sequence[Snapshot]:
        """Every snapshot of the VM, also those of other tools, parents before children."""


def in_tree_order(snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    """Order snapshots parents before children, siblings by age; one whose parent is not there counts as a root."""
    known = {snapshot.snapshot_id for snapshot in snapshots}
    by_parent: dict[str, list[Snapshot]] = {}
    for snapshot in sorted(snapshots, key=lambda each: (each.created_at_s, each.snapshot_id)):
        by_parent.setdefault(snapshot.parent_id if snapshot.parent_id in known else "", []).append(snapshot)
    ordered: list[Snapshot] = []
    waiting = by_parent.get("", [])[::-1]
    while waiting:
        snapshot = waiting.pop()
        ordered.append(snapshot)
        waiting.extend(by_parent.get(snapshot.snapshot_id, [])[::-1])
    return ordered
