"""Events as rows for people: the API has three messages for them, which are one thing to a reader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from controlplane.cli.api_client import Document
from controlplane.cli.following import revision_of
from controlplane.cli.output import Column, print_columns
from controlplane.cli.sizes import format_moment

TYPES = (
    "vm.created",
    "vm.updated",
    "vm.cloned",
    "vm.converted",
    "vm.started",
    "vm.stopped",
    "vm.paused",
    "vm.resumed",
    "vm.crashed",
    "vm.state_changed",
    "vm.operation_failed",
    "vm.lost",
    "vm.discovered",
    "vm.taken_over",
    "vm.rules_without_effect",
    "vm.disk_attached",
    "vm.disk_detached",
    "vm.disk_resized",
    "vm.disk_changed",
    "vm.nic_attached",
    "vm.nic_detached",
    "vm.nic_changed",
    "vm.cdrom_attached",
    "vm.cdrom_detached",
    "vm.medium_changed",
    "vm.conflict",
    "vm.conflict_ended",
    "vm.restart_refused",
    "vm.snapshot_deleted",
    "vm.snapshot_reverted",
    "vm.snapshot_created",
    "vm.guest_changed",
    "vm.suspended",
    "vm.migrating",
    "vm.migrated",
    "vm.migration_failed",
    "vm.deleted",
    "node.registered",
    "node.updated",
    "node.ready",
    "node.silent",
    "node.removed",
    "node.cordoned",
    "node.enabled",
    "node.draining",
    "node.drained",
    "node.drain_ended",
    "node.tainted",
    "node.untainted",
    "node.overloaded",
    "node.recovered",
    "node.storage_lost",
    "node.storage_back",
    "node.shutting_down",
    "node.shutdown_cancelled",
    "node.fencing",
    "node.fenced",
    "node.fence_withdrawn",
    "node.fence_ended",
    "vm.failed_over",
    "ha.disarmed",
    "ha.armed",
    "ha.counters_raised",
    "vm.not_evicted",
    "vm.alert_raised",
    "vm.alert_resolved",
    "node.alert_raised",
    "node.alert_resolved",
)
SEVERITIES = ("info", "warning", "error")

_STYLES = {"warning": "yellow", "error": "red"}
COLUMNS = (
    Column("TIME"),
    Column("SEVERITY", styles=_STYLES),
    Column("TYPE"),
    Column("BY"),
    Column("MESSAGE"),
)
WIDE_COLUMNS = (*COLUMNS, Column("ABOUT"), Column("REVISION", is_number=True))
_TYPE_WIDTH, _ACTOR_WIDTH = max(map(len, TYPES)), 9


@dataclass(frozen=True, slots=True)
class EventView:
    """What a reader sees of an event, whichever message it came in; `time` is as the API wrote it."""

    time: str
    severity: str
    type: str
    actor: str
    message: str
    resource_id: str
    revision: int

    @property
    def moment(self) -> datetime:
        """When it was recorded; long ago if the API does not say."""
        return datetime.fromisoformat(self.time) if self.time else datetime.min.replace(tzinfo=UTC)

    def cells(self, *, wide: bool) -> list[str]:
        """Make the cells of `COLUMNS`, or of `WIDE_COLUMNS`."""
        time = format_moment(self.moment) if self.time else ""
        row = [time, self.severity, self.type, self.actor, self.message]
        return [*row, self.resource_id, str(self.revision or "")] if wide else row

    def print_line(self, *, wide: bool) -> None:
        """Print the same as `cells`, as a row of a table that nobody knows the end of."""
        time, severity, kind, actor, *others = self.cells(wide=wide)
        print_columns(
            [
                (time, 0, ""),
                (severity, len("SEVERITY"), _STYLES.get(severity, "")),
                (kind, _TYPE_WIDTH, ""),
                (actor, _ACTOR_WIDTH, ""),
                *((text, 0, "") for text in others),
            ]
        )


View = Callable[[Document], EventView]


def vm_event(event: Document) -> EventView:
    """View a VMEvent."""
    return EventView(
        time=str(event.get("createdAt", "")),
        severity=str(event.get("severity", "")),
        type=str(event.get("type", "")),
        actor=str(event.get("user", "")),
        message=str(event.get("message", "")),
        resource_id=str(event.get("vmId", "")),
        revision=revision_of(event),
    )


def node_event(event: Document) -> EventView:
    """View a NodeEvent, whose type is its severity."""
    return EventView(
        time=str(event.get("timestamp", "")),
        severity=_severity(event.get("type", "NORMAL")),
        type=str(event.get("reason", "")),
        actor="",
        message=str(event.get("message", "")),
        resource_id=str(event.get("nodeId", "")),
        revision=revision_of(event),
    )


def system_event(event: Document) -> EventView:
    """View a SystemEvent, whose metadata have the type that the other two have."""
    metadata = event.get("metadata", {})
    return EventView(
        time=str(event.get("timestamp", "")),
        severity=_severity(event.get("severity", "INFO")),
        type=str(metadata.get("type", event.get("type", "UNKNOWN"))),
        actor=str(metadata.get("actor", "")),
        message=str(event.get("message", "")),
        resource_id=str(event.get("resourceId", "")),
        revision=revision_of(event),
    )


def _severity(word: object) -> str:
    text = str(word).lower()
    return {"normal": "info", "critical": "error"}.get(text, text)
