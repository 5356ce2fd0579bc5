"""Every refusal of the control plane, one function each: reason, message and metadata are made in one place."""

from __future__ import annotations

from collections.abc import Sequence

from controlplane.domain.node import Capacity, Node
from limiquantix.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    NotFound,
    OutOfRange,
    Reason,
    ResourceExhausted,
    Unavailable,
)


def vm_not_found(vm_id: str) -> NotFound:
    """No VM has that id."""
    return NotFound(Reason.VM_NOT_FOUND, f"VM {vm_id} does not exist", metadata={"vm_id": vm_id})


def vm_name_taken(name: str, project_id: str) -> AlreadyExists:
    """Names are unique within a project."""
    return AlreadyExists(
        Reason.VM_NAME_TAKEN,
        f"project {project_id} already has a VM named {name!r}; choose another name",
        metadata={"name": name, "project_id": project_id},
    )


def vm_state_forbids(vm_id: str, operation: str, state: str, allowed: Sequence[str], hint: str) -> FailedPrecondition:
    """The VM's power state does not allow the operation."""
    message = f"cannot {operation} VM {vm_id} while it is {state}; it must be {' or '.join(allowed)}"
    return FailedPrecondition(
        Reason.VM_STATE_FORBIDS,
        f"{message}: {hint}" if hint else message,
        metadata={"vm_id": vm_id, "state": state, "allowed": ",".join(allowed)},
    )


def console_absent(vm_id: str, kind: str) -> FailedPrecondition:
    """The VM has no console of that kind."""
    return FailedPrecondition(
        Reason.CONSOLE_ABSENT,
        f"VM {vm_id} has no {kind} console; ask for VNC, SPICE or its serial line",
        metadata={"vm_id": vm_id, "type": kind},
    )


def node_not_found(node_id: str) -> NotFound:
    """No node has that id."""
    return NotFound(Reason.NODE_NOT_FOUND, f"node {node_id} does not exist", metadata={"node_id": node_id})


def node_state_forbids(node: Node, operation: str, phase: str, hint: str) -> FailedPrecondition:
    """The node's phase does not allow the operation."""
    return FailedPrecondition(
        Reason.NODE_STATE_FORBIDS,
        f"cannot {operation} node {node.hostname} while it is {phase}: {hint}",
        metadata={"node_id": node.id, "phase": phase},
    )


def node_has_vms(node: Node, names: Sequence[str]) -> FailedPrecondition:
    """VMs are placed on a node that shall be forgotten."""
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return FailedPrecondition(
        Reason.NODE_HAS_VMS,
        f"node {node.hostname} has {len(names)} VMs ({shown}); drain it first, or set force, which leaves them LOST",
        metadata={"node_id": node.id, "vm_count": str(len(names))},
    )


def node_is_target(node: Node, count: int) -> FailedPrecondition:
    """VMs are on their way to a node that shall be forgotten."""
    return FailedPrecondition(
        Reason.NODE_HAS_VMS,
        f"{count} migrations from or to node {node.hostname} have not ended; wait for them, or set force",
        metadata={"node_id": node.id, "migration_count": str(count)},
    )


def drain_target_invalid(hostname: str) -> FailedPrecondition:
    """The node that shall take the VMs of another one cannot."""
    return FailedPrecondition(
        Reason.NODE_STATE_FORBIDS,
        f"node {hostname} cannot take its own VMs; name another node, or none to let the scheduler choose",
    )


def vm_not_placed(vm_id: str) -> FailedPrecondition:
    """The VM is on no node."""
    return FailedPrecondition(
        Reason.NODE_NOT_PLACED, f"VM {vm_id} is on no node, so there is nothing to act on", metadata={"vm_id": vm_id}
    )


PER_NODE = "node."
"""What keys of metadata begin with that say something of one node; its name follows."""


def no_node_fits(summary: str, per_node: Sequence[tuple[str, str]]) -> ResourceExhausted:
    """No node can take the VM; `per_node` has (host name, reason) for each one there is."""
    return ResourceExhausted(
        Reason.NO_NODE_FITS, summary, metadata={f"{PER_NODE}{hostname}": reason for hostname, reason in per_node}
    )


def no_room_to_grow(vm_id: str, growth: Capacity, node: Node | None) -> ResourceExhausted:
    """The VM's node cannot hold the larger size."""
    room = "which is gone"
    if node is not None:
        vcpus = node.capacity.vcpus - node.allocated.vcpus
        memory_mib = (node.capacity.memory_bytes - node.allocated.memory_bytes) // 2**20
        room = f"which has {max(vcpus, 0)} vCPUs and {max(memory_mib, 0)} MiB free"
    return ResourceExhausted(
        Reason.NO_NODE_FITS,
        f"VM {vm_id} needs {growth.vcpus} more vCPUs and {growth.memory_bytes // 2**20} more MiB on its node, {room}",
        metadata={"vm_id": vm_id},
    )


def node_has_no_agent(hostname: str) -> Unavailable:
    """The node never said where its daemon listens."""
    return Unavailable(
        Reason.NODE_UNREACHABLE,
        f"node {hostname} has no agent endpoint; its daemon must register again",
        metadata={"node": hostname},
    )


def node_silent(hostname: str) -> Unavailable:
    """The node's daemon has a stream open and says nothing on it."""
    return Unavailable(
        Reason.NODE_UNREACHABLE,
        f"node {hostname} stopped sending its measures; look at its daemon, and try again",
        metadata={"node": hostname},
    )


def page_token_invalid() -> InvalidArgument:
    """A page token that this server did not make, or made for another query."""
    return InvalidArgument(
        Reason.PAGE_TOKEN_INVALID,
        "page_token does not belong to this query; begin again without it",
        violations=[FieldViolation("page_token", "does not belong to this query")],
    )


def concurrent_change(kind: str, record_id: str) -> Aborted:
    """The row changed between reading and writing it."""
    return Aborted(
        Reason.CONCURRENT_CHANGE,
        f"{kind} {record_id} was changed by another caller at the same time; read it again and repeat the call",
        metadata={"kind": kind, "id": record_id},
    )


def state_unavailable(detail: str) -> Unavailable:
    """The database does not answer."""
    return Unavailable(Reason.STATE_UNAVAILABLE, f"the database does not answer: {detail}", retry_after_s=1.0)


def vm_not_managed(vm_id: str) -> FailedPrecondition:
    """The VM was found on a host and nobody took it over."""
    return FailedPrecondition(
        Reason.VM_NOT_MANAGED,
        f"VM {vm_id} was found on its host and is only shown; take it over before you change it",
        metadata={"vm_id": vm_id},
    )


def vm_runs_elsewhere(vm_id: str, node_ids: Sequence[str]) -> FailedPrecondition:
    """Another host says that the VM runs there: starting it here would let two guests write to one disk."""
    where = ", ".join(node_ids)
    return FailedPrecondition(
        Reason.VM_RUNS_ELSEWHERE,
        f"VM {vm_id} runs on node {where} too, where it does not belong; stop and remove it there first",
        metadata={"vm_id": vm_id, "node_ids": ",".join(node_ids)},
    )


def watch_too_slow(revision: int) -> ResourceExhausted:
    """A watcher does not take its changes as fast as they come."""
    return ResourceExhausted(
        Reason.WATCH_TOO_SLOW,
        f"this watch does not keep up with the changes and was ended; continue with from_revision {revision}",
        metadata={"from_revision": str(revision)},
    )


def revision_unavailable(revision: int, oldest: int, newest: int) -> OutOfRange:
    """The log does not hold what a watch would continue with."""
    return OutOfRange(
        Reason.REVISION_UNAVAILABLE,
        f"the log of events holds what came after revision {oldest} up to {newest}, so a watch cannot continue from "
        f"{revision}; begin anew without from_revision",
        metadata={"from_revision": str(revision), "oldest": str(oldest), "newest": str(newest)},
    )


def snapshot_not_found(vm_id: str, snapshot_id: str) -> NotFound:
    """The VM has no snapshot with that id."""
    return NotFound(
        Reason.SNAPSHOT_NOT_FOUND,
        f"VM {vm_id} has no snapshot {snapshot_id}",
        metadata={"vm_id": vm_id, "snapshot_id": snapshot_id},
    )


def snapshot_name_taken(vm_id: str, name: str) -> AlreadyExists:
    """Names are unique among the snapshots of a VM."""
    return AlreadyExists(
        Reason.SNAPSHOT_NAME_TAKEN,
        f"VM {vm_id} already has a snapshot named {name!r}; choose another name",
        metadata={"vm_id": vm_id, "name": name},
    )


def too_many_snapshots(vm_id: str, limit: int) -> ResourceExhausted:
    """The VM has as many snapshots as it may have."""
    return ResourceExhausted(
        Reason.TOO_MANY_SNAPSHOTS,
        f"VM {vm_id} has {limit} snapshots, which is as many as a VM may have; delete one that is not needed",
        metadata={"vm_id": vm_id, "limit": str(limit)},
    )


def quiesce_with_memory() -> InvalidArgument:
    """A guest that is saved with its memory has nothing to write out."""
    return InvalidArgument.from_violations(
        [FieldViolation("quiesce", "cannot be combined with include_memory, which saves what was not written out too")]
    )


def vm_is_template(vm_id: str, operation: str) -> FailedPrecondition:
    """Others may be built upon the VM's disks, so nothing may write to them."""
    return FailedPrecondition(
        Reason.VM_IS_TEMPLATE,
        f"cannot {operation} VM {vm_id}: it is a template; clone it, or make it an ordinary VM again first",
        metadata={"vm_id": vm_id},
    )


def vm_disks_unknown(vm_id: str) -> FailedPrecondition:
    """Another tool defined the VM, so what it is made of is known to its host only."""
    return FailedPrecondition(
        Reason.VM_NOT_MANAGED,
        f"VM {vm_id} was defined by another tool, and its disks are not known here; clone it with that tool",
        metadata={"vm_id": vm_id},
    )


def vm_not_template(vm_id: str) -> FailedPrecondition:
    """Only a template keeps still enough for others to be built upon it."""
    return FailedPrecondition(
        Reason.VM_NOT_TEMPLATE,
        f"VM {vm_id} is no template; convert it to one first, or make a FULL clone of it by CloneVM",
        metadata={"vm_id": vm_id},
    )


def template_in_use(vm_id: str, clone_ids: Sequence[str]) -> FailedPrecondition:
    """The disks of other VMs are built upon the template's."""
    more = f" and {len(clone_ids) - 1} more" if len(clone_ids) > 1 else ""
    return FailedPrecondition(
        Reason.TEMPLATE_IN_USE,
        f"template {vm_id} has linked clones, whose disks are built upon its own: VM {clone_ids[0]}{more}; delete "
        "them first",
        metadata={"vm_id": vm_id, "clone_count": str(len(clone_ids))},
    )


def vm_is_busy(vm_id: str, kind: str) -> Aborted:
    """Another operation on the VM has not ended, so it is not known what the VM will be."""
    return Aborted(
        Reason.CONCURRENT_CHANGE,
        f"{kind} of VM {vm_id} is under way; wait for it and repeat the call",
        metadata={"kind": "vm", "id": vm_id},
    )


def no_room_beside_source(source_id: str, hostname: str, why: ResourceExhausted) -> ResourceExhausted:
    """A clone has to be where its source's disks are, and that node does not take it."""
    return ResourceExhausted(
        Reason.NO_NODE_FITS,
        f"a clone of VM {source_id} must be on its node {hostname}, where its disks are: {why.message}",
        metadata=why.metadata,
    )


def clone_on_other_node(source_id: str, node_id: str) -> FailedPrecondition:
    """A node was asked for that does not have the disks."""
    return FailedPrecondition(
        Reason.NO_NODE_FITS,
        f"the disks of template {source_id} are on node {node_id}, so the VM must be there; leave node_id out",
        metadata={"vm_id": source_id, "node_id": node_id},
    )


def device_not_found(vm_id: str, kind: str, device_id: str) -> NotFound:
    """The VM has no device of that kind and id."""
    return NotFound(
        Reason.DEVICE_NOT_FOUND,
        f"VM {vm_id} has no {kind} {device_id}; GetVM lists its devices",
        metadata={"vm_id": vm_id, "device_id": device_id},
    )


def device_exists(vm_id: str, device_id: str) -> AlreadyExists:
    """Ids of devices are unique within a VM."""
    return AlreadyExists(
        Reason.DEVICE_EXISTS,
        f"VM {vm_id} has a device {device_id} already; leave the id out, or detach that one first",
        metadata={"vm_id": vm_id, "device_id": device_id},
    )


def too_many_devices(vm_id: str, kind: str, limit: int) -> ResourceExhausted:
    """No more fit a VM."""
    return ResourceExhausted(
        Reason.TOO_MANY_DEVICES,
        f"VM {vm_id} has {limit} devices of the kind {kind}, and no more fit; detach one first",
        metadata={"vm_id": vm_id, "limit": str(limit)},
    )


def no_hotplug(vm_id: str, what: str, state: str) -> FailedPrecondition:
    """Some devices come and go only while a VM is off."""
    return FailedPrecondition(
        Reason.VM_STATE_FORBIDS,
        f"{what} cannot be attached to or detached from VM {vm_id} while it is {state}; stop it first",
        metadata={"vm_id": vm_id, "state": state},
    )


def mac_taken(mac_address: str, holder_id: str) -> AlreadyExists:
    """MAC addresses are unique in the cluster; `holder_id` is "" if the other VM came at the same moment."""
    holder = f"VM {holder_id}" if holder_id else "another VM"
    return AlreadyExists(
        Reason.MAC_TAKEN,
        f"MAC address {mac_address} belongs to {holder}; leave it out to have one made",
        metadata={"mac_address": mac_address, "vm_id": holder_id},
    )
