"""Refusals about operations and about requests that are repeated, one function each."""

from __future__ import annotations

from limiquantix.errors import (
    Aborted,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Reason,
    ResourceExhausted,
    Unimplemented,
)


def operation_not_found(operation_id: str) -> NotFound:
    """No operation has that id, or it ended so long ago that it was forgotten."""
    return NotFound(
        Reason.OPERATION_NOT_FOUND,
        f"operation {operation_id} does not exist, or ended long ago",
        metadata={"operation_id": operation_id},
    )


def operation_unknown(kind: str) -> Unimplemented:
    """No workflow of this program carries out operations of that kind."""
    return Unimplemented(
        Reason.NOT_IMPLEMENTED,
        f"this control plane does not know operations of kind {kind}; bring all control planes to the same version",
        metadata={"kind": kind},
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


def too_many_operations(resource_id: str, limit: int, resource_type: str = "vm") -> ResourceExhausted:
    """The queue of a resource is full."""
    what = "node" if resource_type == "node" else "VM"
    return ResourceExhausted(
        Reason.TOO_MANY_OPERATIONS,
        f"{limit} operations already wait for {what} {resource_id}; wait for them before asking for more",
        metadata={f"{resource_type}_id": resource_id},
        retry_after_s=1.0,
    )


def request_id_reused(request_id: str) -> InvalidArgument:
    """A request id came again with another body."""
    return InvalidArgument(
        Reason.REQUEST_ID_REUSED,
        f"limiquantix-request-id {request_id!r} was used for another request; take a new one for each",
        metadata={"request_id": request_id},
    )
