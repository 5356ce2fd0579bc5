"""Statements about alerts; each runs in an open transaction and blocks. Contracts: `interface.Transaction`.

That a thing has one open alert at most is kept by the unique `open_key`, which a resolved one has no longer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, delete, func, insert, literal, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from controlplane.domain import errors
from controlplane.domain.alert import Alert, AlertFilter
from controlplane.domain.query import Cursor, Page
from controlplane.state.faults import Constraint, broken_constraint
from controlplane.state.prepared import StoredRow
from controlplane.state.queries import Condition
from controlplane.state.schema import alerts
from controlplane.state.schema_base import UtcMicroseconds

_FIELDS = tuple(field.name for field in dataclasses.fields(Alert))


def raise_alert(connection: Connection, alert: Alert) -> None:
    """Add an open alert; one that another process added at the same moment is Aborted."""
    values = {**dataclasses.asdict(alert), "open_key": _open_key(alert)}
    try:
        connection.execute(insert(alerts), [values])
    except IntegrityError as error:
        if broken_constraint(error) is Constraint.CHECK:
            raise
        raise errors.concurrent_change("alert", alert.id) from error


def get(connection: Connection, alert_id: str) -> Alert | None:
    """Read one."""
    row = connection.execute(select(alerts).where(alerts.c.id == alert_id)).first()
    return None if row is None else _from_row(row)


def open_alerts(connection: Connection, kind: str = "") -> list[Alert]:
    """Those that are not resolved, of one kind or of all, oldest first."""
    conditions = [alerts.c.resolved_at.is_(None), *([alerts.c.kind == kind] if kind else [])]
    rows = connection.execute(select(alerts).where(*conditions).order_by(alerts.c.raised_at, alerts.c.id))
    return [_from_row(row) for row in rows]


def change(connection: Connection, alert: Alert) -> bool:
    """Write an alert that is open in the database; False if it is not."""
    values = dataclasses.asdict(alert)
    values["open_key"] = _open_key(alert)
    still_open = update(alerts).where(alerts.c.id == alert.id, alerts.c.resolved_at.is_(None))
    return connection.execute(still_open.values(values)).rowcount > 0


def acknowledge(connection: Connection, alert_id: str, by: str, at: datetime) -> bool:
    """Note who knows; False if there is none of that id, or somebody knew before."""
    new = update(alerts).where(alerts.c.id == alert_id, alerts.c.acknowledged_at.is_(None))
    return connection.execute(new.values(acknowledged_at=at, acknowledged_by=by)).rowcount > 0


def page(connection: Connection, wanted: AlertFilter, after: Cursor | None, limit: int) -> Page[Alert]:
    """Read a page, newest first."""
    columns = alerts.c
    conditions: list[Condition] = []
    if not wanted.include_resolved:
        conditions.append(columns.resolved_at.is_(None))
    if wanted.resource_id:
        conditions.append(columns.resource_id == wanted.resource_id)
    if wanted.kinds:
        conditions.append(columns.kind.in_(sorted(wanted.kinds)))
    total_count = connection.execute(select(func.count()).select_from(alerts).where(*conditions)).scalar_one()
    if after is not None:
        position = tuple_(literal(after.created_at, UtcMicroseconds), literal(after.id))
        conditions.append(tuple_(columns.raised_at, columns.id) < position)
    query = select(alerts).where(*conditions).order_by(columns.raised_at.desc(), columns.id.desc())
    found = [_from_row(row) for row in connection.execute(query.limit(limit + 1))]
    items: Sequence[Alert] = found[:limit]
    more = len(found) > limit
    return Page(items, Cursor(items[-1].raised_at, items[-1].id) if more else None, total_count)


def forget(connection: Connection, resolved_before: datetime) -> int:
    """Remove those that were resolved long ago; returns how many."""
    return connection.execute(delete(alerts).where(alerts.c.resolved_at < resolved_before)).rowcount


def _open_key(alert: Alert) -> str | None:
    return None if alert.resolved_at is not None else f"{alert.kind} {alert.resource_type} {alert.resource_id}"


def _from_row(row: StoredRow) -> Alert:
    return Alert(**{name: getattr(row, name) for name in _FIELDS})
