"""Refusals about leadership, fences and high availability's settings, one function each."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from controlplane.domain.errors import PER_NODE
from controlplane.domain.fencing import HaSettings
from controlplane.domain.node import Node
from limiquantix.errors import (
    Aborted,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    NotFound,
    Reason,
    ResourceExhausted,
    Unavailable,
)


def stale_epoch(epoch: int, newest: int, leader_id: str) -> Aborted:
    """Somebody else decides by now."""
    return Aborted(
        Reason.STALE_EPOCH,
        f"epoch {epoch} is over: {leader_id or 'another process'} decides in epoch {newest}; "
        "nothing of this one is written any more",
        metadata={"epoch": str(epoch), "newest_epoch": str(newest), "leader_id": leader_id},
    )


def fence_not_found(fence_id: str) -> NotFound:
    """No fence has that id."""
    return NotFound(
        Reason.FENCE_NOT_FOUND,
        f"fence {fence_id} does not exist; those that ended are forgotten as events are",
        metadata={"fence_id": fence_id},
    )


def fence_exists(node_id: str) -> Aborted:
    """The node has a fence that is open or proven."""
    return Aborted(
        Reason.FENCE_EXISTS,
        f"node {node_id} is being fenced already; read its fence and decide anew",
        metadata={"node_id": node_id},
    )


def fence_objected(fence_id: str, node_id: str, heard_by: str) -> Aborted:
    """Somebody heard the node meanwhile, so that nothing proves it dead."""
    return Aborted(
        Reason.FENCE_OBJECTED,
        f"process {heard_by} heard node {node_id} since fence {fence_id} was opened: it is not off",
        metadata={"fence_id": fence_id, "node_id": node_id, "heard_by": heard_by},
    )


def fence_withdrawn(fence_id: str, node_id: str) -> Aborted:
    """The fence that a person's word was about is over."""
    return Aborted(
        Reason.FENCE_OBJECTED,
        f"fence {fence_id} was withdrawn meanwhile, since node {node_id} was heard: it is not off",
        metadata={"fence_id": fence_id, "node_id": node_id},
    )


def hostname_differs(node: Node, said: str) -> InvalidArgument:
    """Whoever says that a host is dead named another one."""
    return InvalidArgument(
        Reason.FIELD_VIOLATIONS,
        f"node {node.id} is host {node.hostname}, not {said}; look again which machine is off",
        metadata={"node_id": node.id, "hostname": node.hostname},
        violations=[FieldViolation("hostname", f"is not {node.hostname}, the host name of the node")],
    )


def node_is_heard(node: Node, heard_at: datetime, silent_s: float, needed_s: float) -> FailedPrecondition:
    """The host lives, as far as can be told; nobody may say that it is dead."""
    return FailedPrecondition(
        Reason.NODE_IS_HEARD,
        f"node {node.hostname} was heard {silent_s:.1f} s ago, at {heard_at.isoformat(timespec='seconds')}: it is not "
        f"off; confirm once it has been silent for {needed_s:g} s, or fence it with `limiquantix ha fence-node`",
        metadata={"node_id": node.id, "heard_at": heard_at.isoformat()},
    )


def not_listening_long_enough(hostname: str, listened_s: float, needed_s: float) -> FailedPrecondition:
    """This process has not listened for as long as a silence must last."""
    return FailedPrecondition(
        Reason.NODE_IS_HEARD,
        f"this process has listened for {listened_s:.1f} s only, so it cannot tell that node {hostname} is silent; "
        f"repeat in {max(needed_s - listened_s, 0.0) + 0.1:.1f} s",
        metadata={"hostname": hostname},
    )


def nothing_is_fenced(inactive: str, settings: HaSettings) -> FailedPrecondition:
    """High availability is switched off by configuration (`inactive` says how), or was disarmed."""
    disarmed = f"{settings.changed_by} disarmed high availability ({settings.reason}); arm it with `limiquantix ha arm`"
    return FailedPrecondition(Reason.HA_INACTIVE, f"nothing is fenced now: {inactive or disarmed}")


def node_fenced(node: Node, fence_id: str) -> Unavailable:
    """The host is proven dead; nothing is asked of it, and asking again is of no use."""
    return Unavailable(
        Reason.NODE_FENCED,
        f"node {node.hostname} is fenced (fence {fence_id}), so nothing is asked of it; VMs whose policy says so are "
        "started on other nodes, others when you start them, if their disks are reached there; all else waits until it "
        "is back",
        metadata={"node_id": node.id, "fence_id": fence_id},
    )


def not_failed_over(vm_id: str, why: str) -> FailedPrecondition:
    """The VM is not started elsewhere; nothing was touched."""
    return FailedPrecondition(
        Reason.FAILOVER_REFUSED, f"VM {vm_id} is not started on another node: {why}", metadata={"vm_id": vm_id}
    )


def not_proven_dead(vm_id: str, node_id: str, fence_id: str) -> FailedPrecondition:
    """The fence of its node proves only those VMs dead that end with the host's lease."""
    return FailedPrecondition(
        Reason.FAILOVER_REFUSED,
        f"VM {vm_id} is not started on another node: the end of its host's lease (fence {fence_id}) proves only those "
        "VMs dead that high availability protects; once you have seen that the host is off, say so with "
        "`limiquantix ha confirm-dead`, and start it again",
        metadata={"vm_id": vm_id, "node_id": node_id, "fence_id": fence_id},
    )


def no_failover_room(kept: str, lack: str, per_node: Sequence[tuple[str, str]]) -> ResourceExhausted:
    """The VM has room, but would take what is kept for VMs of nodes that fail; `per_node` is as for `no_node_fits`."""
    return ResourceExhausted(
        Reason.NO_FAILOVER_ROOM,
        f"the cluster keeps {kept}: with this VM, {lack}; add a node, remove VMs, or change ha.admission in the "
        "configuration of the control plane",
        metadata={f"{PER_NODE}{hostname}": reason for hostname, reason in per_node},
    )


def change_takes_failover_room(vm_id: str, kept: str, lack: str) -> ResourceExhausted:
    """The VM would be larger, or one that is restarted elsewhere, and there would be no room for that."""
    return ResourceExhausted(
        Reason.NO_FAILOVER_ROOM,
        f"the cluster keeps {kept}: once VM {vm_id} were changed, {lack}; add a node, remove VMs, or change "
        "ha.admission in the configuration of the control plane",
        metadata={"vm_id": vm_id},
    )


def drain_takes_failover_room(hostname: str, kept: str, lack: str) -> FailedPrecondition:
    """Without the node there would be no room for VMs of nodes that fail."""
    return FailedPrecondition(
        Reason.NO_FAILOVER_ROOM,
        f"the cluster keeps {kept}: once node {hostname} were drained, {lack}; add a node, remove VMs, or drain it all "
        "the same with force, which also stops VMs that cannot be moved",
        metadata={"hostname": hostname},
    )


def room_changed_meanwhile() -> Aborted:
    """There was plenty of room when the placement began, and is not any more."""
    return Aborted(
        Reason.CONCURRENT_CHANGE, "many VMs were placed at this moment, and room is getting scarce; ask again"
    )
