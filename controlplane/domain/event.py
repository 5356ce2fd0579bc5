"""Events: what happened, to what, and what it is since then.

There is one log of them for everything. An entry that changed a record carries the record's document after the change,
which is what watches send; one that only tells something (an alert) carries none.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from limiquantix.compute.v1.node_service_pb2 import SystemEvent
from limiquantix.compute.v1.vm_pb2 import VmStatus

Severity = SystemEvent.Severity
"""The contract's enum of severities; values are plain ints in records."""

VM = "vm"
NODE = "node"
CLUSTER = "cluster"
"""Kinds of resources that events are about; the cluster as a whole has the id ""."""


NODE_BEFORE = "node_id_before"
"""In the metadata of a change of a VM that is placed elsewhere since: where it was, "" for nowhere."""


FOLDER_BEFORE = "folder_id_before"
"""In the metadata of a change of a VM that is shown in another folder since: where it was, "" for the root."""


class Change(enum.IntEnum):
    """What an event did to its resource's record."""

    NONE = 0
    ADDED = 1
    MODIFIED = 2
    DELETED = 3


class EventType(enum.StrEnum):
    """Stable names of what can happen, `ListVMEvents` filters by them."""

    VM_CREATED = "vm.created"
    VM_UPDATED = "vm.updated"
    VM_STARTED = "vm.started"
    VM_STOPPED = "vm.stopped"
    VM_PAUSED = "vm.paused"
    VM_RESUMED = "vm.resumed"
    VM_CRASHED = "vm.crashed"
    VM_STATE_CHANGED = "vm.state_changed"
    VM_OPERATION_FAILED = "vm.operation_failed"
    VM_LOST = "vm.lost"
    VM_DISCOVERED = "vm.discovered"
    VM_TAKEN_OVER = "vm.taken_over"
    VM_RULES_WITHOUT_EFFECT = "vm.rules_without_effect"
    VM_CONFLICT = "vm.conflict"
    VM_CONFLICT_ENDED = "vm.conflict_ended"
    VM_RESTART_REFUSED = "vm.restart_refused"
    VM_SUSPENDED = "vm.suspended"
    VM_SNAPSHOT_CREATED = "vm.snapshot_created"
    VM_SNAPSHOT_REVERTED = "vm.snapshot_reverted"
    VM_SNAPSHOT_DELETED = "vm.snapshot_deleted"
    VM_CLONED = "vm.cloned"
    VM_CONVERTED = "vm.converted"
    VM_DISK_ATTACHED = "vm.disk_attached"
    VM_DISK_DETACHED = "vm.disk_detached"
    VM_DISK_RESIZED = "vm.disk_resized"
    VM_DISK_CHANGED = "vm.disk_changed"
    VM_NIC_ATTACHED = "vm.nic_attached"
    VM_NIC_DETACHED = "vm.nic_detached"
    VM_NIC_CHANGED = "vm.nic_changed"
    VM_CDROM_ATTACHED = "vm.cdrom_attached"
    VM_CDROM_DETACHED = "vm.cdrom_detached"
    VM_MEDIUM_CHANGED = "vm.medium_changed"
    VM_GUEST_CHANGED = "vm.guest_changed"
    VM_MIGRATING = "vm.migrating"
    VM_MIGRATED = "vm.migrated"
    VM_MIGRATION_FAILED = "vm.migration_failed"
    VM_DELETED = "vm.deleted"
    NODE_REGISTERED = "node.registered"
    NODE_UPDATED = "node.updated"
    NODE_READY = "node.ready"
    NODE_SILENT = "node.silent"
    NODE_REMOVED = "node.removed"
    NODE_CORDONED = "node.cordoned"
    NODE_ENABLED = "node.enabled"
    NODE_DRAINING = "node.draining"
    NODE_DRAINED = "node.drained"
    NODE_DRAIN_ENDED = "node.drain_ended"
    NODE_TAINTED = "node.tainted"
    NODE_UNTAINTED = "node.untainted"
    NODE_OVERLOADED = "node.overloaded"
    NODE_RECOVERED = "node.recovered"
    NODE_STORAGE_LOST = "node.storage_lost"
    NODE_STORAGE_BACK = "node.storage_back"
    NODE_SHUTTING_DOWN = "node.shutting_down"
    NODE_SHUTDOWN_CANCELLED = "node.shutdown_cancelled"
    NODE_FENCING = "node.fencing"
    NODE_FENCED = "node.fenced"
    NODE_FENCE_WITHDRAWN = "node.fence_withdrawn"
    NODE_FENCE_ENDED = "node.fence_ended"
    VM_FAILED_OVER = "vm.failed_over"
    HA_DISARMED = "ha.disarmed"
    HA_ARMED = "ha.armed"
    HA_COUNTERS_RAISED = "ha.counters_raised"
    VM_NOT_EVICTED = "vm.not_evicted"
    VM_ALERT_RAISED = "vm.alert_raised"
    VM_ALERT_RESOLVED = "vm.alert_resolved"
    NODE_ALERT_RAISED = "node.alert_raised"
    NODE_ALERT_RESOLVED = "node.alert_resolved"


@dataclass(frozen=True, slots=True)
class Event:
    """What the writer of a change says of it.

    `actor` is who asked for it ("" for the host itself); `metadata` are facts for programs, never secrets.
    """

    type: EventType
    message: str = ""
    severity: SystemEvent.Severity.ValueType = Severity.INFO
    actor: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    def of_move(self, node_before: str, node_id: str) -> Event:
        """Return the event of a change of a VM that was on one node and is on another, which may be the same."""
        return self if node_before == node_id else replace(self, metadata={**self.metadata, NODE_BEFORE: node_before})


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """One entry of the log.

    `revision` is its place in the order of everything, 0 until it has one, some milliseconds after it was written.
    `resource_version` orders the entries of one resource. `document` is the serialized `VirtualMachine` or `Node`
    after the change, b"" without a change. `labels_before` are the labels that the resource had until this change,
    None if they are the same: a watch that filters by labels tells from it what left its view.
    """

    id: str
    revision: int
    recorded_at: datetime
    resource_type: str
    resource_id: str
    resource_version: int
    project_id: str
    node_id: str
    change: Change
    event: Event
    document: bytes = b""
    labels_before: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which entries; an empty part does not filter."""

    resource_id: str = ""
    node_id: str = ""
    types: frozenset[str] = frozenset()
    severities: frozenset[int] = frozenset()
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class LogPosition:
    """How far the log reaches: the newest revision, and the newest one that was removed (0 if none was)."""

    revision: int
    compacted_revision: int


_OF_STATE: Mapping[int, tuple[EventType, str, SystemEvent.Severity.ValueType]] = {
    VmStatus.RUNNING: (EventType.VM_STARTED, "runs", Severity.INFO),
    VmStatus.STOPPED: (EventType.VM_STOPPED, "is off", Severity.INFO),
    VmStatus.PAUSED: (EventType.VM_PAUSED, "is paused", Severity.INFO),
    VmStatus.SUSPENDED: (EventType.VM_SUSPENDED, "is saved to disk", Severity.INFO),
    VmStatus.CRASHED: (EventType.VM_CRASHED, "crashed", Severity.ERROR),
}


def event_of_state(
    name: str, before: VmStatus.PowerState.ValueType, after: VmStatus.PowerState.ValueType, actor: str = ""
) -> Event:
    """Say that a VM's power state changed; `actor` is who asked for it, "" if its host or guest did it by itself."""
    facts = {"state": VmStatus.PowerState.Name(after), "state_before": VmStatus.PowerState.Name(before)}
    if before == after:
        return Event(EventType.VM_UPDATED, f"VM {name} was changed", actor=actor)
    if before == VmStatus.PROVISIONING and after == VmStatus.STOPPED:
        return Event(EventType.VM_UPDATED, f"VM {name} is defined on its host", actor=actor, metadata=facts)
    if before == VmStatus.PAUSED and after == VmStatus.RUNNING:
        return Event(EventType.VM_RESUMED, f"VM {name} runs on", actor=actor, metadata=facts)
    default = (EventType.VM_STATE_CHANGED, f"is {facts['state']} now", Severity.INFO)
    kind, words, severity = _OF_STATE.get(after, default)
    return Event(kind, f"VM {name} {words}", severity, actor, facts)
