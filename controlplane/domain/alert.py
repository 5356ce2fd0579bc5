"""Alerts: what is wrong now. Raised and resolved by what is seen, not by anybody's word."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime

from limiquantix.compute.v1.alert_service_pb2 import Alert as AlertMessage

AlertSeverity = AlertMessage.Severity
"""The contract's enum of severities; values are plain ints in records."""

CLUSTER = "cluster"
"""Kind of resource of an alert that is about no single VM or node; its id is ""."""


class AlertKind(enum.StrEnum):
    """Stable names of what can be wrong."""

    NODE_OVERLOADED = "node.overloaded"
    NODE_SILENT = "node.silent"
    RECOMMENDATION_CRITICAL = "balancing.critical"
    VM_CONFLICT = "vm.conflict"
    NO_HEADROOM = "cluster.no_headroom"
    HA_NODE_LOST = "ha.node_lost"
    HA_FENCE_UNPROVEN = "ha.fence_unproven"
    HA_VM_FITS_NOWHERE = "ha.vm_fits_nowhere"
    HA_VM_NOT_RESTARTED = "ha.vm_not_restarted"
    HA_BRAKE = "ha.brake"
    HA_DISARMED = "ha.disarmed"
    HA_NOTHING_DECIDED = "ha.nothing_decided"
    HA_STORAGE_LOST = "ha.storage_lost"
    HA_GUEST_SILENT = "ha.guest_silent"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is found wrong at the moment."""

    resource_type: str
    resource_id: str
    severity: AlertMessage.Severity.ValueType
    message: str


@dataclass(frozen=True, slots=True)
class Alert:
    """One thing that is or was wrong; there is at most one of a kind about a resource that is not resolved."""

    id: str
    kind: str
    severity: AlertMessage.Severity.ValueType
    resource_type: str
    resource_id: str
    message: str
    raised_at: datetime
    last_seen_at: datetime
    resolved_at: datetime | None = None
    acknowledged_at: datetime | None = None
    acknowledged_by: str = ""


@dataclass(frozen=True, slots=True)
class AlertFilter:
    """Which alerts; an empty part does not filter."""

    include_resolved: bool = False
    resource_id: str = ""
    kinds: frozenset[str] = frozenset()
