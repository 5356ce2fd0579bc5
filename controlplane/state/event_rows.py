"""Statements about the log of events; each blocks in an open transaction. Contracts: `interface.Transaction`.

Writers add entries without a revision, so they need not wait for each other. Soon after, one process at a time, the one
that holds the lock of the head's row, gives revisions to what is committed (`sequence`). So whoever sees a revision
sees all smaller ones, and revisions have no gaps: what a watch needs, without a place where every transaction queues.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

from sqlalchemy import Connection, Integer, bindparam, delete, insert, literal, null, select, update

from controlplane.domain.event import NODE, Change, Event, EventFilter, EventType, LoggedEvent, LogPosition
from controlplane.state.prepared import Prepared, StoredRow
from controlplane.state.schema import event_log_head, events
from controlplane.state.schema_base import UtcMicroseconds

_NUMBERED_AT_ONCE = 5_000
"""Bounds the time that the head's lock is held, after a time in which nobody numbered."""

_OLD_OF_TEN = 9
"""Of ten entries, how many must be old for all of them to be removed."""

_NUMBER = update(events).where(events.c.id == bindparam("event_id")).values(revision=bindparam("given"))
_INSERT = Prepared(insert(events))
_AFTER = Prepared(
    select(events)
    .where(events.c.revision > bindparam("seen"))
    .order_by(events.c.revision)
    .limit(bindparam("most", type_=Integer))
)
_POSITION = Prepared(select(event_log_head).where(event_log_head.c.id == 1))
_UNNUMBERED = events.c.revision.is_(None)


def append(connection: Connection, logged: LoggedEvent, position: int) -> None:
    """Add an entry; `position` orders the entries of one transaction."""
    event = logged.event
    _INSERT.change(
        connection,
        {
            "id": logged.id or str(uuid.uuid4()),
            "revision": None,
            "recorded_at": logged.recorded_at,
            "position": position,
            "resource_type": logged.resource_type,
            "resource_id": logged.resource_id,
            "resource_version": logged.resource_version,
            "project_id": logged.project_id,
            "node_id": logged.node_id,
            "change": int(logged.change),
            "type": str(event.type),
            "severity": event.severity,
            "message": event.message,
            "actor": event.actor,
            "metadata": dict(event.metadata),
            "labels_before": None if logged.labels_before is None else dict(logged.labels_before),
            "document": logged.document,
        },
    )


def sequence(connection: Connection) -> LogPosition:
    """Give revisions to the entries that have none, the oldest few thousand; returns where the log ends then."""
    # Before reading what there is: whoever else wants to number waits here, and then sees what we numbered.
    lock = update(event_log_head).where(event_log_head.c.id == 1).values(revision=event_log_head.c.revision)
    head = connection.execute(lock.returning(event_log_head.c.revision, event_log_head.c.compacted_revision)).one()
    columns = (
        *(events.c.id, events.c.resource_id, events.c.resource_version),
        *(events.c.change, events.c.recorded_at, events.c.position),
    )
    waiting = connection.execute(select(*columns).where(_UNNUMBERED)).all()
    if not waiting:
        return LogPosition(head.revision, head.compacted_revision)
    numbered = [
        {"event_id": row.id, "given": number}
        for number, row in enumerate(_in_order(waiting)[:_NUMBERED_AT_ONCE], head.revision + 1)
    ]
    connection.execute(_NUMBER, numbered)
    end = head.revision + len(numbered)
    connection.execute(update(event_log_head).where(event_log_head.c.id == 1).values(revision=end))
    return LogPosition(end, head.compacted_revision)


def _in_order(rows: Sequence[Any]) -> list[Any]:
    """Sort by time; entries of one resource keep its own order, which no clock can turn around."""
    by_time = sorted(rows, key=lambda row: (row.recorded_at, row.position, row.id))
    of_resource: dict[str, list[Any]] = {}
    for row in by_time:
        of_resource.setdefault(row.resource_id, []).append(row)
    next_of = {resource_id: iter(_in_own_order(theirs)) for resource_id, theirs in of_resource.items()}
    return [next(next_of[row.resource_id]) for row in by_time]


def _in_own_order(rows: list[Any]) -> list[Any]:
    """Put entries of one resource, sorted by time, into the order of its versions if time contradicts that.

    Versions alone would not do: they begin anew when a VM that was removed is found on its host again.
    """
    changes = [row for row in rows if row.change != Change.NONE]
    if all(_may_follow(before, after) for before, after in pairwise(changes)):
        return rows
    return sorted(rows, key=lambda row: (row.resource_version, row.recorded_at, row.position))


def _may_follow(before: Any, after: Any) -> bool:
    if after.change == Change.ADDED or before.change == Change.DELETED:
        return bool(after.change == Change.ADDED and before.change == Change.DELETED)
    return bool(after.resource_version > before.resource_version)


def position(connection: Connection) -> LogPosition:
    """Say where the log ends."""
    (head,) = _POSITION.all(connection, {})
    return LogPosition(head.revision, head.compacted_revision)


def unnumbered_ids(connection: Connection) -> set[str]:
    """Entries that are committed and have no revision yet."""
    return set(connection.execute(select(events.c.id).where(_UNNUMBERED)).scalars())


def after(connection: Connection, revision: int, limit: int) -> list[LoggedEvent]:
    """Entries with larger revisions, in order."""
    return [_from_row(row) for row in _AFTER.all(connection, {"seen": revision, "most": limit})]


def newest(connection: Connection, wanted: EventFilter, limit: int) -> list[LoggedEvent]:
    """Matching entries, newest first; those without a revision are the newest of all."""
    conditions = []
    if wanted.resource_id:
        conditions.append(events.c.resource_id == wanted.resource_id)
    if wanted.node_id:
        conditions.append(events.c.node_id == wanted.node_id)
    if wanted.types:
        conditions.append(events.c.type.in_(sorted(wanted.types)))
    if wanted.severities:
        conditions.append(events.c.severity.in_(sorted(wanted.severities)))
    if wanted.since is not None:
        conditions.append(events.c.recorded_at >= literal(wanted.since, UtcMicroseconds))
    fresh = (
        select(events).where(*conditions, _UNNUMBERED).order_by(events.c.recorded_at.desc(), events.c.position.desc())
    )
    found = [_from_row(row) for row in connection.execute(fresh.limit(limit))]
    settled = select(events).where(*conditions, events.c.revision.is_not(null())).order_by(events.c.revision.desc())
    return found + [_from_row(row) for row in connection.execute(settled.limit(limit - len(found)))]


def compact(connection: Connection, recorded_before: datetime, limit: int) -> int:
    """Remove the oldest entries, up to `limit` and never the newest one; returns how many.

    The log is cut where its entries are young. A few that are younger or older than those around them do not count: the
    clock of whoever wrote them was wrong, which must neither empty the log nor let it grow without end.
    """
    log = position(connection)
    oldest = (
        select(events.c.revision, events.c.recorded_at)
        .where(events.c.revision.is_not(null()), events.c.revision < log.revision)
        .order_by(events.c.revision)
        .limit(limit)
    )
    old_count = cut_count = end = 0
    for count, row in enumerate(connection.execute(oldest), 1):
        if row.recorded_at < recorded_before:
            old_count += 1
            if old_count * 10 >= count * _OLD_OF_TEN:
                cut_count, end = count, row.revision
    if cut_count:
        connection.execute(delete(events).where(events.c.revision <= end))
        head = update(event_log_head).where(event_log_head.c.id == 1, event_log_head.c.compacted_revision < end)
        connection.execute(head.values(compacted_revision=end))
    return cut_count


def _from_row(row: StoredRow) -> LoggedEvent:
    labels: Mapping[str, str] | None = row.labels_before
    return LoggedEvent(
        id=row.id,
        revision=row.revision or 0,
        recorded_at=row.recorded_at,
        resource_type=row.resource_type,
        resource_id=row.resource_id,
        resource_version=row.resource_version,
        project_id=row.project_id,
        node_id=row.node_id,
        change=Change(row.change),
        event=Event(_type_of(row.type, row.resource_type), row.message, row.severity, row.actor, row.metadata),
        document=bytes(row.document),
        labels_before=labels,
    )


def _type_of(stored: str, resource_type: str) -> EventType:
    """Read a type. One that only a newer version has, which shares the database while it is rolled out, is a change."""
    try:
        return EventType(stored)
    except ValueError:
        return EventType.NODE_UPDATED if resource_type == NODE else EventType.VM_UPDATED
