"""Alerts of high availability, kept level with what each round of the decision says is wrong."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from controlplane.domain.alert import CLUSTER, AlertKind, AlertSeverity, Finding
from controlplane.domain.event import NODE, VM
from controlplane.ha.model import Alerting, AlertOf
from controlplane.services.alerts import AlertService
from controlplane.services.ha_clock import clock_s

RENEW_S = 15.0
"""Alerts are written at least this often, and at once when they change."""

_RESOURCES = {
    AlertOf.NODE_LOST: NODE,
    AlertOf.FENCE_UNPROVEN: NODE,
    AlertOf.VM_FITS_NOWHERE: VM,
    AlertOf.VM_NOT_RESTARTED: VM,
}
_SEVERITIES = {AlertOf.DISARMED: AlertSeverity.WARNING}


@dataclass(slots=True)
class HaAlerts:
    """Syncs what changed since it last did."""

    alerts: AlertService
    clock: Callable[[], float] = clock_s
    _synced: dict[AlertOf, tuple[float, tuple[Finding, ...]]] = field(default_factory=dict)

    async def sync(self, found: Sequence[Alerting], only: Collection[AlertOf] = tuple(AlertOf)) -> None:
        """Raise, renew and resolve.

        Args:
            only: kinds that this is about; alerts of others stay as they are.

        Raises:
            ApiError: the database does not answer, or another process does the same at this moment.
        """
        now_s = self.clock()
        for kind in only:
            findings = tuple(finding_of(each) for each in found if each.kind == kind)
            synced_s, before = self._synced.get(kind, (-RENEW_S, ()))
            if findings == before and now_s - synced_s < RENEW_S:
                continue
            if await self.alerts.sync(AlertKind(kind), findings):
                self._synced[kind] = (now_s, findings)


def finding_of(alerting: Alerting) -> Finding:
    """Put what the decision says into an alert's words."""
    resource_type = _RESOURCES.get(alerting.kind, CLUSTER)
    severity = _SEVERITIES.get(alerting.kind, AlertSeverity.CRITICAL)
    return Finding(resource_type, alerting.resource_id if resource_type != CLUSTER else "", severity, alerting.message)
