"""Statements about the audit trail; each blocks in an open transaction. Contracts: `audit_interface`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime

from sqlalchemy import (
    Connection,
    bindparam,
    delete,
    false,
    func,
    insert,
    literal,
    or_,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.sql.elements import Tuple

from controlplane.domain import errors
from controlplane.domain.audit import AuditChain, AuditEnd, AuditEntry, AuditFilter, AuditOutcome, AuditRecord
from controlplane.domain.query import Cursor, Page
from controlplane.state.prepared import Prepared, StoredRow
from controlplane.state.queries import Condition
from controlplane.state.records import ColumnValues
from controlplane.state.schema_base import UtcMicroseconds
from controlplane.state.schema_security import audit_chains, audit_records

_ROWS = audit_records.c
_INSERT = Prepared(insert(audit_records))
_END = Prepared(update(audit_records).where(_ROWS.id == bindparam("record_id"), _ROWS.ended_at.is_(None)))
_CHAIN = select(audit_chains).where(audit_chains.c.writer_id == bindparam("wanted_id"))
_CHAIN_HELD = Prepared(_CHAIN.with_for_update())
_CHAIN_READ = Prepared(_CHAIN)
_EXTEND = Prepared(
    update(audit_chains).where(
        audit_chains.c.writer_id == bindparam("read_id"), audit_chains.c.number <= bindparam("at_most")
    )
)


def chain(connection: Connection, writer_id: str, *, to_change: bool) -> AuditChain | None:
    """Read where a process's chain begins and ends."""
    row = (_CHAIN_HELD if to_change else _CHAIN_READ).first(connection, {"wanted_id": writer_id})
    return None if row is None else _chain(row)


def chains(connection: Connection) -> list[AuditChain]:
    """Those of all processes that wrote."""
    return [_chain(row) for row in connection.execute(select(audit_chains).order_by(audit_chains.c.writer_id))]


def chainless_writers(connection: Connection) -> list[str]:
    """Processes that have records, but no chain."""
    known = select(audit_chains.c.writer_id)
    return list(connection.execute(select(_ROWS.writer_id).where(_ROWS.writer_id.not_in(known)).distinct()).scalars())


def append(connection: Connection, longer: AuditChain, records: Sequence[AuditRecord]) -> None:
    """Add records, and write where the chain ends since."""
    try:
        if longer.number == len(records):
            connection.execute(insert(audit_chains), [asdict(longer)])
        else:
            values = asdict(longer) | {"read_id": longer.writer_id, "at_most": longer.number - len(records)}
            if _EXTEND.change(connection, values) == 0:
                raise errors.concurrent_change("audit chain", longer.writer_id)
        for record in records:
            _INSERT.change(connection, _values(record))
    except IntegrityError as error:
        raise errors.concurrent_change("audit chain", longer.writer_id) from error


def end(connection: Connection, ends: Sequence[tuple[AuditEnd, str]]) -> None:
    """Complete records that are not complete."""
    for each, digest in ends:
        _END.change(
            connection,
            {
                "record_id": each.record_id,
                "ended_at": each.ended_at,
                "end_code": each.code,
                "end_message": each.message,
                "end_digest": digest,
            },
        )


def page(connection: Connection, wanted: AuditFilter, after: Cursor | None, limit: int) -> Page[AuditRecord]:
    """Read a page, newest first."""
    conditions = _conditions(wanted)
    total_count = connection.execute(select(func.count()).select_from(audit_records).where(*conditions)).scalar_one()
    if after is not None:
        conditions.append(tuple_(_ROWS.begun_at, _ROWS.id) < _position(after))
    query = select(audit_records).where(*conditions).order_by(_ROWS.begun_at.desc(), _ROWS.id.desc())
    found = [_record(row) for row in connection.execute(query.limit(limit + 1))]
    items = found[:limit]
    more = len(found) > limit
    return Page(items, Cursor(items[-1].entry.begun_at, items[-1].entry.id) if more else None, total_count)


def after(connection: Connection, wanted: AuditFilter, cursor: Cursor | None, limit: int) -> list[AuditRecord]:
    """Read some, oldest first."""
    conditions = _conditions(wanted)
    if cursor is not None:
        conditions.append(tuple_(_ROWS.begun_at, _ROWS.id) > _position(cursor))
    query = select(audit_records).where(*conditions).order_by(_ROWS.begun_at, _ROWS.id).limit(limit)
    return [_record(row) for row in connection.execute(query)]


def of_writer(connection: Connection, writer_id: str, after_number: int, limit: int) -> list[AuditRecord]:
    """Read some of one process, in their order."""
    theirs = select(audit_records).where(_ROWS.writer_id == writer_id, _ROWS.number > after_number)
    return [_record(row) for row in connection.execute(theirs.order_by(_ROWS.number).limit(limit))]


def newest_before(connection: Connection, writer_id: str, before: datetime, limit: int) -> AuditRecord | None:
    """Of a process's first records, the last of those that are all older."""
    newest: AuditRecord | None = None
    for record in of_writer(connection, writer_id, 0, limit):
        if record.entry.begun_at >= before:
            break
        newest = record
    return newest


def forget(connection: Connection, shorter: AuditChain) -> int:
    """Remove the records that the chain says are forgotten, and write the chain."""
    values = asdict(shorter)
    del values["writer_id"]
    connection.execute(update(audit_chains).where(audit_chains.c.writer_id == shorter.writer_id).values(values))
    old = delete(audit_records).where(_ROWS.writer_id == shorter.writer_id, _ROWS.number <= shorter.forgotten_number)
    return connection.execute(old).rowcount


def _position(cursor: Cursor) -> Tuple:
    return tuple_(literal(cursor.created_at, UtcMicroseconds), literal(cursor.id))


def _conditions(wanted: AuditFilter) -> list[Condition]:
    conditions: list[Condition] = []
    if wanted.since is not None:
        conditions.append(_ROWS.begun_at >= wanted.since)
    if wanted.until is not None:
        conditions.append(_ROWS.begun_at < wanted.until)
    if wanted.principal:
        conditions.append(or_(_ROWS.principal_id == wanted.principal, _ROWS.principal_name == wanted.principal))
    if wanted.resource:
        named = func.replace(literal(",") + _ROWS.resources + literal(","), "/", ",/,") + literal(",")
        asked = "," + wanted.resource.replace("/", ",/,") + ","
        conditions.append(or_(named.contains(asked, autoescape=True), _ROWS.project_id == wanted.resource))
    if wanted.method:
        conditions.append(
            or_(_ROWS.method == wanted.method, _ROWS.method.endswith("/" + wanted.method, autoescape=True))
        )
    if wanted.outcomes:
        conditions.append(or_(false(), *(_OUTCOMES[each] for each in sorted(wanted.outcomes))))
    return conditions


_OUTCOMES: dict[AuditOutcome, Condition] = {
    AuditOutcome.DONE: (_ROWS.end_code == 0) & (_ROWS.is_refusal != true()),
    AuditOutcome.FAILED: (_ROWS.end_code != 0) & (_ROWS.is_refusal != true()),
    AuditOutcome.REFUSED: _ROWS.is_refusal == true(),
    AuditOutcome.UNKNOWN: _ROWS.end_code.is_(None) & (_ROWS.is_refusal != true()),
}


def _values(record: AuditRecord) -> ColumnValues:
    ended = record.end
    return asdict(record.entry) | {
        "resources": ",".join(record.entry.resources),
        "writer_id": record.writer_id,
        "number": record.number,
        "digest": record.digest,
        "ended_at": None if ended is None else ended.ended_at,
        "end_code": None if ended is None else ended.code,
        "end_message": "" if ended is None else ended.message,
        "end_digest": record.end_digest,
    }


_ENTRY_FIELDS = tuple(name for name in AuditEntry.__dataclass_fields__ if name != "resources")
_CHAIN_FIELDS = tuple(AuditChain.__dataclass_fields__)


def _record(row: StoredRow) -> AuditRecord:
    ended = None if row.ended_at is None else AuditEnd(row.id, row.ended_at, row.end_code, row.end_message)
    resources = tuple(row.resources.split(",")) if row.resources else ()
    return AuditRecord(
        entry=AuditEntry(resources=resources, **{name: getattr(row, name) for name in _ENTRY_FIELDS}),
        writer_id=row.writer_id,
        number=row.number,
        digest=row.digest,
        end=ended,
        end_digest=row.end_digest,
    )


def _chain(row: StoredRow) -> AuditChain:
    return AuditChain(**{name: getattr(row, name) for name in _CHAIN_FIELDS})
