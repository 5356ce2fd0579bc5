"""Refusals about recommendations and alerts, one function each."""

from __future__ import annotations

from limiquantix.errors import FailedPrecondition, NotFound, Reason


def recommendation_not_found(recommendation_id: str) -> NotFound:
    """No recommendation has that id."""
    return NotFound(
        Reason.RECOMMENDATION_NOT_FOUND,
        f"recommendation {recommendation_id} does not exist; they are forgotten a day after they were made",
        metadata={"recommendation_id": recommendation_id},
    )


def recommendation_closed(recommendation_id: str, wanted: str, status: str, why: str) -> FailedPrecondition:
    """What became of the recommendation cannot be changed any more."""
    detail = f" ({why})" if why else ""
    return FailedPrecondition(
        Reason.RECOMMENDATION_CLOSED,
        f"cannot {wanted} recommendation {recommendation_id}: it is {status}{detail}; run the balancing again",
        metadata={"recommendation_id": recommendation_id, "status": status},
    )


def exchange_broken(recommendation_id: str, wanted: str, other_id: str, status: str) -> FailedPrecondition:
    """What belongs to the recommendation will not happen, and it is of no use alone."""
    return FailedPrecondition(
        Reason.RECOMMENDATION_CLOSED,
        f"cannot {wanted} recommendation {recommendation_id}: recommendation {other_id}, with which it is an exchange, "
        f"is {status}; run the balancing again",
        metadata={"recommendation_id": recommendation_id, "exchange_with": other_id, "status": status},
    )


def recommendation_under_way(recommendation_id: str, vm_name: str, operation_id: str) -> FailedPrecondition:
    """The VM, or the one that it is exchanged with, is being moved already."""
    return FailedPrecondition(
        Reason.RECOMMENDATION_CLOSED,
        f"cannot reject recommendation {recommendation_id}: VM {vm_name} is being moved; "
        f"cancel operation {operation_id}",
        metadata={"recommendation_id": recommendation_id, "operation_id": operation_id},
    )


def alert_not_found(alert_id: str) -> NotFound:
    """No alert has that id."""
    return NotFound(
        Reason.ALERT_NOT_FOUND,
        f"alert {alert_id} does not exist; resolved ones are forgotten after some days",
        metadata={"alert_id": alert_id},
    )
