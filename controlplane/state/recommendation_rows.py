"""Statements about recommendations and balancing runs; each runs in an open transaction and blocks.

Contracts: `interface.Transaction`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, delete, func, insert, literal, select, tuple_, update

from controlplane.domain import errors
from controlplane.domain.query import Cursor, Page
from controlplane.domain.recommendation import OPEN_STATUSES, BalancingRun, Recommendation, RecommendationFilter
from controlplane.state.prepared import StoredRow
from controlplane.state.queries import Condition
from controlplane.state.schema import balancing_runs, recommendations
from controlplane.state.schema_base import UtcMicroseconds

_FIELDS = tuple(field.name for field in dataclasses.fields(Recommendation))
"""Columns have the names of the record's fields."""


def insert_recommendations(connection: Connection, new: Sequence[Recommendation]) -> None:
    """Add recommendations."""
    if new:
        connection.execute(insert(recommendations), [dataclasses.asdict(each) for each in new])


def get(connection: Connection, recommendation_id: str) -> Recommendation | None:
    """Read one."""
    row = connection.execute(select(recommendations).where(recommendations.c.id == recommendation_id)).first()
    return None if row is None else _from_row(row)


def change(connection: Connection, recommendation: Recommendation) -> Recommendation:
    """Write one that was read before, if it is still the same."""
    changed = dataclasses.replace(recommendation, version=recommendation.version + 1)
    unchanged = update(recommendations).where(
        recommendations.c.id == recommendation.id, recommendations.c.version == recommendation.version
    )
    if connection.execute(unchanged.values(dataclasses.asdict(changed))).rowcount == 0:
        raise errors.concurrent_change("recommendation", recommendation.id)
    return changed


def unsettled(connection: Connection) -> list[Recommendation]:
    """Those that are pending or approved, in the order in which they are carried out."""
    open_ones = select(recommendations).where(recommendations.c.status.in_(sorted(OPEN_STATUSES)))
    columns = recommendations.c
    in_order = open_ones.order_by(columns.created_at, columns.run_id, columns.step, columns.id)
    return [_from_row(row) for row in connection.execute(in_order)]


def ended_since(connection: Connection, moment: datetime) -> list[Recommendation]:
    """Those that came to their end, whichever, not before the moment."""
    query = select(recommendations).where(recommendations.c.ended_at >= moment).order_by(recommendations.c.ended_at)
    return [_from_row(row) for row in connection.execute(query)]


def page(
    connection: Connection, wanted: RecommendationFilter, after: Cursor | None, limit: int
) -> Page[Recommendation]:
    """Read a page, newest first."""
    columns = recommendations.c
    conditions: list[Condition] = []
    if wanted.statuses:
        conditions.append(columns.status.in_(sorted(wanted.statuses)))
    if wanted.vm_id:
        conditions.append(columns.vm_id == wanted.vm_id)
    total_count = connection.execute(select(func.count()).select_from(recommendations).where(*conditions)).scalar_one()
    if after is not None:
        position = tuple_(literal(after.created_at, UtcMicroseconds), literal(after.id))
        conditions.append(tuple_(columns.created_at, columns.id) < position)
    query = select(recommendations).where(*conditions).order_by(columns.created_at.desc(), columns.id.desc())
    found = [_from_row(row) for row in connection.execute(query.limit(limit + 1))]
    items = found[:limit]
    more = len(found) > limit
    return Page(items, Cursor(items[-1].created_at, items[-1].id) if more else None, total_count)


def forget(connection: Connection, expired_before: datetime) -> int:
    """Remove those whose time is over and of which nothing may come any more; returns how many."""
    columns = recommendations.c
    over = delete(recommendations).where(
        columns.expires_at < expired_before, columns.status.not_in(sorted(OPEN_STATUSES))
    )
    return connection.execute(over).rowcount


def last_run(connection: Connection) -> BalancingRun:
    """Read the record of the last run."""
    row = connection.execute(select(balancing_runs).where(balancing_runs.c.id == 1)).one()
    return BalancingRun(row.turn, row.ran_at, row.message)


def record_run(connection: Connection, run: BalancingRun) -> bool:
    """Write the run that follows the one of `run.turn`; False if another one came first."""
    mine = update(balancing_runs).where(balancing_runs.c.id == 1, balancing_runs.c.turn == run.turn)
    values = {"turn": run.turn + 1, "ran_at": run.ran_at, "message": run.message}
    return connection.execute(mine.values(values)).rowcount > 0


def _from_row(row: StoredRow) -> Recommendation:
    return Recommendation(**{name: getattr(row, name) for name in _FIELDS})
