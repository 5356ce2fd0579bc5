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
        f"VM {vm_id} has no {kind} console; ask for VNC",
        metadata={"vm_id": vm_id, "type": kind},
    )


def node_not_found(node_id: str) -> NotFound:
    """No node has that id."""
    return NotFound(Reason.NODE_NOT_FOUND, f"node {node_id} does not exist", metadata={"node_id": node_id})


def vm_not_placed(vm_id: str) -> FailedPrecondition:
    """The VM is on no node."""
    return FailedPrecondition(
        Reason.NODE_NOT_PLACED, f"VM {vm_id} is on no node, so there is nothing to act on", metadata={"vm_id": vm_id}
    )


def no_node_fits(summary: str, per_node: Sequence[tuple[str, str]]) -> ResourceExhausted:
    """No node can take the VM; `per_node` has (host name, reason) for each one there is."""
    return ResourceExhausted(
        Reason.NO_NODE_FITS, summary, metadata={f"node.{hostname}": reason for hostname, reason in per_node}
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


def operation_not_found(operation_id: str) -> NotFound:
    """No operation has that id, or it ended so long ago that it was forgotten."""
    return NotFound(
        Reason.OPERATION_NOT_FOUND,
        f"operation {operation_id} does not exist, or ended long ago",
        metadata={"operation_id": operation_id},
    )


def operation_ended(operation_id: str, state: str) -> FailedPrecondition:
    """The operation has ended, so there is nothing to cancel."""
    return FailedPrecondition(
        Reason.OPERATION_ENDED,
        f"operation {operation_id} has ended already: {state}",
        metadata={"operation_id": operation_id, "state": state},
    )


def operation_cancelled(operation_id: str, why: str) -> Aborted:
    """The operation was cancelled before it had its effect."""
    return Aborted(
        Reason.OPERATION_CANCELLED,
        f"operation {operation_id} was cancelled: {why}",
        metadata={"operation_id": operation_id},
    )


def too_many_operations(resource_id: str, limit: int) -> ResourceExhausted:
    """The queue of a resource is full."""
    return ResourceExhausted(
        Reason.TOO_MANY_OPERATIONS,
        f"{limit} operations already wait for VM {resource_id}; wait for them before asking for more",
        metadata={"vm_id": resource_id},
        retry_after_s=1.0,
    )


def request_id_reused(request_id: str) -> InvalidArgument:
    """A request id came again with another body."""
    return InvalidArgument(
        Reason.REQUEST_ID_REUSED,
        f"limiquantix-request-id {request_id!r} was used for another request; take a new one for each",
        metadata={"request_id": request_id},
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
