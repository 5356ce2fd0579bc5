"""Recommended moves of VMs, and the one record of when the cluster was last looked at."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime

from limiquantix.compute.v1.balancing_service_pb2 import Recommendation as RecommendationMessage

Status = RecommendationMessage.Status
"""The contract's enum of what became of a recommendation; values are plain ints in records."""

OPEN_STATUSES = frozenset({Status.PENDING, Status.APPROVED})
"""Those of which something may still come."""


class Automation(enum.StrEnum):
    """How much is done without being asked; the values are those of the configuration."""

    MANUAL = "manual"
    PARTIAL = "partial"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One move, what it costs and gains, and what became of it.

    `is_due` tells that an approved one is to be carried out now. `operation_id` is known once its migration was asked
    for. Loads are in percent. `exchanged_with` is the id of the recommendation that belongs to this one, "" if none
    does: neither is of use alone. `version` counts changes; an update of a stale record is refused.
    """

    id: str
    run_id: str
    step: int
    priority: int
    status: RecommendationMessage.Status.ValueType
    reason: str
    vm_id: str
    vm_name: str
    source_node_id: str
    target_node_id: str
    gain_percent: float
    cost_memory_bytes: int
    cost_dirty_bytes_per_s: int
    cost_duration_ms: int
    source_load_before: float
    source_load_after: float
    target_load_before: float
    target_load_after: float
    created_at: datetime
    expires_at: datetime
    exchanged_with: str = ""
    is_due: bool = False
    decided_at: datetime | None = None
    decided_by: str = ""
    operation_id: str = ""
    status_message: str = ""
    ended_at: datetime | None = None
    version: int = 1


@dataclass(frozen=True, slots=True)
class RecommendationFilter:
    """Which recommendations; an empty part does not filter."""

    statuses: frozenset[int] = frozenset()
    vm_id: str = ""


@dataclass(frozen=True, slots=True)
class BalancingRun:
    """The last run. `turn` counts runs: of several processes that make one at once, one gets to record it."""

    turn: int
    ran_at: datetime | None = None
    message: str = ""
