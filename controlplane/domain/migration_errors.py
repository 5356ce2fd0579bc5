"""Refusals and failures of migrations, one function each, as in `controlplane.domain.errors`."""

from __future__ import annotations

from collections.abc import Mapping

from limiquantix.errors import Aborted, DeadlineExceeded, FailedPrecondition, Reason


def refused(vm_id: str, why: str, **facts: str) -> FailedPrecondition:
    """The VM cannot move as it is asked for; nothing was touched."""
    return FailedPrecondition(
        Reason.MIGRATION_REFUSED, f"VM {vm_id} cannot be migrated: {why}", metadata={"vm_id": vm_id, **facts}
    )


def same_node(vm_id: str, node_id: str) -> FailedPrecondition:
    """It is there already."""
    return refused(vm_id, f"it is on node {node_id} already; name another node, or none", node_id=node_id)


def failed(vm_id: str, why: str, hostname: str, facts: Mapping[str, str]) -> Aborted:
    """It was begun and did not succeed; the VM is where it was."""
    return Aborted(
        Reason.MIGRATION_FAILED,
        f"the migration of VM {vm_id} failed, and it is on node {hostname} as before: {why}",
        metadata={"vm_id": vm_id, **facts},
    )


def gone(vm_id: str, source: str, target: str) -> Aborted:
    """Neither host has the VM any more."""
    return Aborted(
        Reason.MIGRATION_FAILED,
        f"neither node {source} nor node {target} has VM {vm_id} any more; it was removed while it was migrated",
        metadata={"vm_id": vm_id},
    )


def unsettled(vm_id: str, source: str, target: str, views: str) -> DeadlineExceeded:
    """It is not known on which of the two hosts the VM is."""
    return DeadlineExceeded(
        Reason.MIGRATION_UNSETTLED,
        f"it is not known whether VM {vm_id} is on node {source} or on node {target} ({views}); nothing is done to it "
        "until both answer, and then its place is settled without being asked for",
        metadata={"vm_id": vm_id, "views": views},
    )
