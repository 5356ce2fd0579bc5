"""Alerts: kept level with what is found wrong, listed, and acknowledged."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from controlplane.domain import balancing_errors
from controlplane.domain.alert import Alert, AlertFilter, AlertKind, AlertSeverity, Finding
from controlplane.domain.event import NODE, VM, Event, EventType, Severity
from controlplane.domain.query import Cursor, Page
from controlplane.state.interface import Store, Transaction

KEPT: Final = timedelta(days=7)
"""How long a resolved one is shown."""
MAX_CHANGES: Final = 200
"""Of alerts in one transaction: with thousands of nodes lost at once, what saves their VMs must be written between."""
_SEEN_AGAIN_AFTER: Final = timedelta(seconds=30)
"""`last_seen_at` is written no more often than this while nothing else changes of an alert."""

_EVENT_SEVERITIES = {
    AlertSeverity.INFO: Severity.INFO,
    AlertSeverity.WARNING: Severity.WARNING,
    AlertSeverity.CRITICAL: Severity.ERROR,
}


@dataclass(frozen=True, slots=True)
class AlertService:
    """The use cases of alerts."""

    store: Store
    now: Callable[[], datetime]

    async def sync(self, kind: AlertKind, found: Sequence[Finding]) -> bool:
        """Make the open alerts of a kind those of what is found: raise, renew, resolve. May be repeated.

        Returns:
            Whether they are; if not, what is left of very many changes follows with the next call.

        Raises:
            Aborted: another process does the same at this moment, which is as good.
            Unavailable: the database does not answer.
        """
        now = self.now()
        known = await self.store.read(lambda tx: tx.open_alerts(kind))
        if not _changes(known, found, now):
            return True
        return await self.store.run(lambda tx: _sync(tx, kind, found, now))

    async def get(self, alert_id: str) -> Alert:
        """Read one.

        Raises:
            NotFound: there is none of that id.
        """
        return await self.store.read(lambda tx: _required(tx, alert_id))

    async def list(self, wanted: AlertFilter, after: Cursor | None, limit: int) -> Page[Alert]:
        """Read one page, newest first."""
        return await self.store.read(lambda tx: tx.list_alerts(wanted, after, limit))

    async def acknowledge(self, alert_id: str, by: str) -> Alert:
        """Note that somebody knows; the first one stays.

        Raises:
            NotFound: there is none of that id.
        """

        async def work(tx: Transaction) -> Alert:
            await tx.acknowledge_alert(alert_id, by, self.now())
            return await _required(tx, alert_id)

        return await self.store.run(work)

    async def forget(self) -> int:
        """Remove those that were resolved long ago; returns how many."""
        return await self.store.run(lambda tx: tx.forget_alerts(self.now() - KEPT))


async def _required(tx: Transaction, alert_id: str) -> Alert:
    alert = await tx.get_alert(alert_id)
    if alert is None:
        raise balancing_errors.alert_not_found(alert_id)
    return alert


def _changes(known: Sequence[Alert], found: Sequence[Finding], now: datetime) -> bool:
    """Whether there is anything to write."""
    by_resource = {(alert.resource_type, alert.resource_id): alert for alert in known}
    if by_resource.keys() != {(each.resource_type, each.resource_id) for each in found}:
        return True
    return any(_is_news(by_resource[(each.resource_type, each.resource_id)], each, now) for each in found)


def _is_news(alert: Alert, finding: Finding, now: datetime) -> bool:
    return alert.severity != finding.severity or now - alert.last_seen_at >= _SEEN_AGAIN_AFTER


async def _sync(tx: Transaction, kind: AlertKind, found: Sequence[Finding], now: datetime) -> bool:
    known = {(alert.resource_type, alert.resource_id): alert for alert in await tx.open_alerts(kind)}
    left_count = MAX_CHANGES
    for finding in found:
        alert = known.pop((finding.resource_type, finding.resource_id), None)
        if alert is not None and not _is_news(alert, finding, now):
            continue
        if not left_count:
            return False
        left_count -= 1
        if alert is None:
            new = Alert(
                id=str(uuid.uuid4()),
                kind=str(kind),
                severity=finding.severity,
                resource_type=finding.resource_type,
                resource_id=finding.resource_id,
                message=finding.message,
                raised_at=now,
                last_seen_at=now,
            )
            await tx.raise_alert(new)
            await _tell(tx, new, is_raised=True)
        else:
            seen = replace(alert, severity=finding.severity, message=finding.message, last_seen_at=now)
            await tx.update_alert(seen)
    for alert in list(known.values())[:left_count]:
        if await tx.update_alert(replace(alert, resolved_at=now)):
            await _tell(tx, alert, is_raised=False)
    return len(known) <= left_count


async def _tell(tx: Transaction, alert: Alert, *, is_raised: bool) -> None:
    """Add to the log of events what concerns a VM or node."""
    severity = _EVENT_SEVERITIES.get(alert.severity, Severity.WARNING) if is_raised else Severity.INFO
    message = alert.message if is_raised else f"no longer: {alert.message}"
    facts = {"alert_id": alert.id, "alert_kind": alert.kind}
    if alert.resource_type == NODE:
        node = await tx.get_node(alert.resource_id)
        kind = EventType.NODE_ALERT_RAISED if is_raised else EventType.NODE_ALERT_RESOLVED
        if node is not None:
            await tx.log_node_event(node, Event(kind, message, severity, metadata=facts))
    elif alert.resource_type == VM:
        vm = await tx.get_vm(alert.resource_id)
        kind = EventType.VM_ALERT_RAISED if is_raised else EventType.VM_ALERT_RESOLVED
        if vm is not None:
            await tx.log_vm_event(vm, Event(kind, message, severity, metadata=facts))
