"""Entries of the log as the contract's messages of events."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC

from controlplane.domain.documents import timestamp
from controlplane.domain.event import EventType, LoggedEvent, Severity
from limiquantix.compute.v1.node_pb2 import NodeEvent
from limiquantix.compute.v1.node_service_pb2 import SystemEvent
from limiquantix.compute.v1.vm_service_pb2 import VMEvent

SOURCE = "control-plane"
"""What writes the log, also of what hosts report."""

SYSTEM_TYPES: Mapping[EventType, SystemEvent.EventType.ValueType] = {
    **{kind: SystemEvent.NODE_CHANGED if kind.startswith("node.") else SystemEvent.VM_CHANGED for kind in EventType},
    EventType.VM_CREATED: SystemEvent.VM_CREATED,
    EventType.VM_STARTED: SystemEvent.VM_STARTED,
    EventType.VM_STOPPED: SystemEvent.VM_STOPPED,
    EventType.VM_CRASHED: SystemEvent.VM_CRASHED,
    EventType.VM_LOST: SystemEvent.VM_LOST,
    EventType.VM_DISCOVERED: SystemEvent.VM_DISCOVERED,
    EventType.VM_CONFLICT: SystemEvent.VM_CONFLICT,
    EventType.VM_CONFLICT_ENDED: SystemEvent.VM_CONFLICT,
    EventType.VM_DELETED: SystemEvent.VM_DELETED,
    EventType.NODE_REGISTERED: SystemEvent.NODE_REGISTERED,
    EventType.NODE_READY: SystemEvent.NODE_READY,
    EventType.NODE_SILENT: SystemEvent.NODE_SILENT,
    EventType.NODE_REMOVED: SystemEvent.NODE_REMOVED,
    EventType.NODE_OVERLOADED: SystemEvent.SYSTEM_OVERLOAD,
    EventType.NODE_RECOVERED: SystemEvent.SYSTEM_RECOVERED,
    EventType.HA_DISARMED: SystemEvent.WARNING_ISSUED,
    EventType.HA_ARMED: SystemEvent.SYSTEM_RECOVERED,
    EventType.HA_COUNTERS_RAISED: SystemEvent.WARNING_ISSUED,
}
"""The contract's coarser types; an event's metadata have its own type too."""

VM_SEVERITIES: Mapping[str, frozenset[int]] = {
    "info": frozenset({Severity.INFO}),
    "warning": frozenset({Severity.WARNING}),
    "error": frozenset({Severity.ERROR, Severity.CRITICAL}),
}
"""Words of `VMEvent.severity` and what they stand for."""

NODE_SEVERITIES: Mapping[int, frozenset[int]] = {
    NodeEvent.NORMAL: VM_SEVERITIES["info"],
    NodeEvent.WARNING: VM_SEVERITIES["warning"],
    NodeEvent.ERROR: VM_SEVERITIES["error"],
}

_VM_WORDS = {severity: word for word, severities in VM_SEVERITIES.items() for severity in severities}
_NODE_TYPES = {
    Severity.INFO: NodeEvent.NORMAL,
    Severity.WARNING: NodeEvent.WARNING,
    Severity.ERROR: NodeEvent.ERROR,
    Severity.CRITICAL: NodeEvent.ERROR,
}


def system_event(entry: LoggedEvent) -> SystemEvent:
    """Encode an entry for `StreamEvents`."""
    event = entry.event
    facts = {"type": str(event.type)}
    if entry.node_id:
        facts["node_id"] = entry.node_id
    if event.actor:
        facts["actor"] = event.actor
    return SystemEvent(
        id=entry.id,
        timestamp=timestamp(entry.recorded_at),
        type=SYSTEM_TYPES[event.type],
        severity=event.severity,
        source=SOURCE,
        message=_sentence(entry),
        resource_id=entry.resource_id,
        metadata={**facts, **event.metadata},
        revision=entry.revision,
    )


def vm_event(entry: LoggedEvent) -> VMEvent:
    """Encode an entry for `ListVMEvents`."""
    event = entry.event
    recorded_at = entry.recorded_at.astimezone(UTC).replace(tzinfo=None)
    return VMEvent(
        id=entry.id,
        vm_id=entry.resource_id,
        type=event.type,
        message=_sentence(entry),
        user=event.actor,
        severity=_VM_WORDS[event.severity],
        created_at=f"{recorded_at.isoformat(timespec='microseconds')}Z",
        metadata=event.metadata,
        revision=entry.revision,
    )


def node_event(entry: LoggedEvent) -> NodeEvent:
    """Encode an entry for `ListNodeEvents`."""
    return NodeEvent(
        id=entry.id,
        node_id=entry.node_id,
        type=_NODE_TYPES[entry.event.severity],
        reason=entry.event.type,
        message=_sentence(entry),
        timestamp=timestamp(entry.recorded_at),
        revision=entry.revision,
    )


def _sentence(entry: LoggedEvent) -> str:
    """What the writer said, or its type in words: "VM state changed"."""
    if entry.event.message:
        return entry.event.message
    kind, _, what = entry.event.type.partition(".")
    return f"{'VM' if kind == 'vm' else kind} {what.replace('_', ' ')}"
