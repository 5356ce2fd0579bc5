"""What a transaction does with recommendations and alerts; a part of `interface.Transaction`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from controlplane.domain.alert import Alert, AlertFilter
from controlplane.domain.migration import Migration
from controlplane.domain.placement import VmClaim
from controlplane.domain.query import Cursor, Page
from controlplane.domain.recommendation import BalancingRun, Recommendation, RecommendationFilter
from controlplane.domain.vm import Vm


class BalancingTransaction(Protocol):
    """Recommendations, balancing runs and alerts."""

    async def insert_recommendations(self, new: Sequence[Recommendation]) -> None:
        """Add some."""
        ...

    async def get_recommendation(self, recommendation_id: str) -> Recommendation | None:
        """Read one; None if there is none."""
        ...

    async def update_recommendation(self, recommendation: Recommendation) -> Recommendation:
        """Write one that was read before, and return it with its new `version`.

        Raises:
            Aborted: it was changed or forgotten since it was read.
        """
        ...

    async def open_recommendations(self) -> Sequence[Recommendation]:
        """Pending and approved ones, in the order in which they are carried out."""
        ...

    async def recommendations_ended_since(self, moment: datetime) -> Sequence[Recommendation]:
        """Those that were applied, rejected, overtaken or failed, not before the moment, in that order."""
        ...

    async def list_recommendations(
        self, wanted: RecommendationFilter, after: Cursor | None, limit: int
    ) -> Page[Recommendation]:
        """Read up to `limit` recommendations before the cursor, newest first."""
        ...

    async def forget_recommendations(self, expired_before: datetime) -> int:
        """Remove those that expired before and are neither pending nor approved; returns how many."""
        ...

    async def last_balancing_run(self) -> BalancingRun:
        """Read the record of the last run."""
        ...

    async def record_balancing_run(self, run: BalancingRun) -> bool:
        """Write what came of the run after `run.turn`; False, and nothing written, if another one recorded that."""
        ...

    async def vms_in_conflict(self) -> Sequence[Vm]:
        """VMs with sightings, of whichever nodes."""
        ...

    async def vm_claims(self) -> Sequence[VmClaim]:
        """What every placed VM claims on its node; one query that reads no documents."""
        ...

    async def unsettled_migrations(self) -> Sequence[Migration]:
        """Migrations of which it is not known yet where their VMs are, whether or not they are worked on."""
        ...

    async def raise_alert(self, alert: Alert) -> None:
        """Add an open alert.

        Raises:
            Aborted: another process raised it at the same moment.
        """
        ...

    async def get_alert(self, alert_id: str) -> Alert | None:
        """Read one; None if there is none."""
        ...

    async def open_alerts(self, kind: str = "") -> Sequence[Alert]:
        """Alerts that are not resolved, of one kind or of all, oldest first."""
        ...

    async def update_alert(self, alert: Alert) -> bool:
        """Write an alert that is not resolved in the database; False, and nothing written, if it is."""
        ...

    async def acknowledge_alert(self, alert_id: str, by: str, at: datetime) -> bool:
        """Note that somebody knows; False if there is no such alert, or somebody knew before."""
        ...

    async def list_alerts(self, wanted: AlertFilter, after: Cursor | None, limit: int) -> Page[Alert]:
        """Read up to `limit` alerts before the cursor, newest first."""
        ...

    async def forget_alerts(self, resolved_before: datetime) -> int:
        """Remove those that were resolved before; returns how many."""
        ...
