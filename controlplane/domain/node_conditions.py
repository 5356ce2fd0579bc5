"""What is said of a node beside its phase: whether it takes VMs, by order or not, and whether its load is too much."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from controlplane.domain.node import Node, Phase
from limiquantix.compute.v1.node_pb2 import NodeCondition

CORDON_REASON = "limiquantix.io/cordon-reason"
CORDON_SINCE = "limiquantix.io/cordon-since"
OVERLOAD_REASON = "limiquantix.io/overload-reason"
OVERLOAD_SINCE = "limiquantix.io/overload-since"
"""Annotations that the control plane keeps, of which the conditions are made."""

READY, CORDONED, OVERLOADED, STORAGE_LOST = "Ready", "Cordoned", "Overloaded", "StorageLost"

_READINESS = {
    Phase.READY: (NodeCondition.TRUE, "Heard", "it sends heartbeats"),
    Phase.NOT_READY: (NodeCondition.FALSE, "Silent", "it sends no heartbeats; look at its daemon and its network"),
    Phase.MAINTENANCE: (NodeCondition.FALSE, "Maintenance", "it is in maintenance; enable it when that is over"),
    Phase.DRAINING: (NodeCondition.FALSE, "Draining", "its VMs are being moved away"),
    Phase.OFFLINE: (NodeCondition.FALSE, "Offline", "it was shut down by order"),
}
_UNHEARD = (NodeCondition.UNKNOWN, "NotHeard", "nothing was heard of it yet")


def conditions_of(node: Node) -> list[NodeCondition]:
    """Make the conditions of a node, in a fixed order."""
    status, reason, message = _READINESS.get(node.phase, _UNHEARD)
    return [
        NodeCondition(type=READY, status=status, reason=reason, message=message),
        _cordoned(node),
        _overloaded(node),
        *_storage_lost(node),
    ]


def _cordoned(node: Node) -> NodeCondition:
    notes = node.annotations
    if node.phase == Phase.DRAINING:
        reason = "Draining"
    elif node.phase == Phase.MAINTENANCE:
        reason = "Maintenance"
    elif not node.spec.scheduling.schedulable:
        reason = "Unschedulable"
    else:
        return NodeCondition(type=CORDONED, status=NodeCondition.FALSE, reason="Schedulable")
    said = notes.get(CORDON_REASON, "it takes no new VMs, by order")
    condition = NodeCondition(type=CORDONED, status=NodeCondition.TRUE, reason=reason, message=said)
    return _since(condition, notes.get(CORDON_SINCE, ""))


def _overloaded(node: Node) -> NodeCondition:
    said = node.annotations.get(OVERLOAD_REASON, "")
    if not said:
        return NodeCondition(type=OVERLOADED, status=NodeCondition.FALSE, reason="LoadBelowLimits")
    condition = NodeCondition(type=OVERLOADED, status=NodeCondition.TRUE, reason="LoadAboveLimits", message=said)
    return _since(condition, node.annotations.get(OVERLOAD_SINCE, ""))


def _storage_lost(node: Node) -> list[NodeCondition]:
    """Say so only where it is so: most nodes never lose storage."""
    lost = [domain.path or domain.id for domain in node.spec.storage_domains if domain.is_lost]
    if not lost:
        return []
    message = f"{', '.join(lost)} does not answer, or is read-only"
    return [NodeCondition(type=STORAGE_LOST, status=NodeCondition.TRUE, reason="DoesNotAnswer", message=message)]


def _since(condition: NodeCondition, since: str) -> NodeCondition:
    if since:
        moment = Timestamp()
        moment.FromDatetime(datetime.fromisoformat(since))
        condition.last_transition.CopyFrom(moment)
    return condition
