"""The transaction's methods about recommendations, balancing runs and alerts. Docstrings: the interface's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeVar

from sqlalchemy import Connection

from controlplane.domain.alert import Alert, AlertFilter
from controlplane.domain.migration import Migration
from controlplane.domain.placement import VmClaim
from controlplane.domain.query import Cursor, Page
from controlplane.domain.recommendation import BalancingRun, Recommendation, RecommendationFilter
from controlplane.domain.vm import Vm
from controlplane.state import alert_rows, migration_rows, placement_rows, recommendation_rows, vm_rows

ResultT = TypeVar("ResultT")


class BalancingRecords(ABC):
    """A part of `SqlTransaction`."""

    @abstractmethod
    async def _read(self, function: Callable[[Connection], ResultT]) -> ResultT: ...

    @abstractmethod
    async def _write(self, function: Callable[[Connection], ResultT]) -> ResultT: ...

    async def insert_recommendations(self, new: Sequence[Recommendation]) -> None:
        """Add recommendations."""
        await self._write(lambda connection: recommendation_rows.insert_recommendations(connection, new))

    async def get_recommendation(self, recommendation_id: str) -> Recommendation | None:
        """Read one recommendation."""
        return await self._read(lambda connection: recommendation_rows.get(connection, recommendation_id))

    async def update_recommendation(self, recommendation: Recommendation) -> Recommendation:
        """Write a recommendation that was read before."""
        return await self._write(lambda connection: recommendation_rows.change(connection, recommendation))

    async def open_recommendations(self) -> Sequence[Recommendation]:
        """Pending and approved ones."""
        return await self._read(recommendation_rows.unsettled)

    async def recommendations_ended_since(self, moment: datetime) -> Sequence[Recommendation]:
        """Those that came to their end, not before the moment."""
        return await self._read(lambda connection: recommendation_rows.ended_since(connection, moment))

    async def list_recommendations(
        self, wanted: RecommendationFilter, after: Cursor | None, limit: int
    ) -> Page[Recommendation]:
        """Read a page of recommendations."""
        return await self._read(lambda connection: recommendation_rows.page(connection, wanted, after, limit))

    async def forget_recommendations(self, expired_before: datetime) -> int:
        """Remove recommendations whose time is over."""
        return await self._write(lambda connection: recommendation_rows.forget(connection, expired_before))

    async def last_balancing_run(self) -> BalancingRun:
        """Read the last run."""
        return await self._read(recommendation_rows.last_run)

    async def record_balancing_run(self, run: BalancingRun) -> bool:
        """Write a run if none came before it."""
        return await self._write(lambda connection: recommendation_rows.record_run(connection, run))

    async def vms_in_conflict(self) -> Sequence[Vm]:
        """VMs that several hosts have."""
        return await self._read(vm_rows.vms_in_conflict)

    async def vm_claims(self) -> Sequence[VmClaim]:
        """Claims of all placed VMs."""
        return await self._read(placement_rows.claims)

    async def unsettled_migrations(self) -> Sequence[Migration]:
        """Migrations that may end either way."""
        return await self._read(migration_rows.unsettled)

    async def raise_alert(self, alert: Alert) -> None:
        """Add an open alert."""
        await self._write(lambda connection: alert_rows.raise_alert(connection, alert))

    async def get_alert(self, alert_id: str) -> Alert | None:
        """Read one alert."""
        return await self._read(lambda connection: alert_rows.get(connection, alert_id))

    async def open_alerts(self, kind: str = "") -> Sequence[Alert]:
        """Alerts that are not resolved."""
        return await self._read(lambda connection: alert_rows.open_alerts(connection, kind))

    async def update_alert(self, alert: Alert) -> bool:
        """Write an open alert."""
        return await self._write(lambda connection: alert_rows.change(connection, alert))

    async def acknowledge_alert(self, alert_id: str, by: str, at: datetime) -> bool:
        """Note who knows of an alert."""
        return await self._write(lambda connection: alert_rows.acknowledge(connection, alert_id, by, at))

    async def list_alerts(self, wanted: AlertFilter, after: Cursor | None, limit: int) -> Page[Alert]:
        """Read a page of alerts."""
        return await self._read(lambda connection: alert_rows.page(connection, wanted, after, limit))

    async def forget_alerts(self, resolved_before: datetime) -> int:
        """Remove alerts that were resolved long ago."""
        return await self._write(lambda connection: alert_rows.forget(connection, resolved_before))
