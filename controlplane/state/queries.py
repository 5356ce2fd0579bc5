"""Parts of statements that VMs and nodes share: labels, pages, counts and the order of rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Table,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    tuple_,
)

from controlplane.domain.access import VisiblePlaces
from controlplane.domain.folder import Folder
from controlplane.domain.node import Node
from controlplane.domain.operation import Operation
from controlplane.domain.project import Project
from controlplane.domain.query import Cursor, Page
from controlplane.domain.vm import Vm
from controlplane.state.prepared import Prepared
from controlplane.state.schema import node_labels, vm_labels
from controlplane.state.schema_base import UtcMicroseconds

Condition = ColumnElement[bool]
RecordT = TypeVar("RecordT", Vm, Node, Operation, Project, Folder)


def in_order(table: Table, conditions: Sequence[Condition]) -> Select[Any]:
    """Every matching row, oldest first."""
    return select(table).where(*conditions).order_by(table.c.created_at, table.c.id)


def page_query(table: Table, conditions: Sequence[Condition], after: Cursor | None, limit: int) -> Select[Any]:
    """Select one row more than a page: whether it comes tells if there is a next page.

    Raises:
        ValueError: a limit below 1.
    """
    if limit < 1:
        raise ValueError(f"a page of {limit} rows is not possible")
    query = in_order(table, conditions)
    if after is not None:
        position = tuple_(literal(after.created_at, UtcMicroseconds), literal(after.id))
        query = query.where(tuple_(table.c.created_at, table.c.id) > position)
    return query.limit(limit + 1)


def page(found: Sequence[RecordT], limit: int, total_count: int) -> Page[RecordT]:
    """Make the page of what `page_query` found."""
    items = found[:limit]
    more = len(found) > limit
    return Page(items, Cursor(items[-1].created_at, items[-1].id) if more else None, total_count)


def in_sight(
    visible: VisiblePlaces | None, project_id: ColumnElement[str], folder_id: ColumnElement[str]
) -> list[Condition]:
    """The condition that a thing is in the part of the tree that somebody sees; none for who sees all of it."""
    if visible is None:
        return []
    seen = project_id.in_(sorted(visible.project_ids))
    return [or_(seen, folder_id.in_(sorted(visible.folder_ids)))] if visible.folder_ids else [seen]


def count(connection: Connection, table: Table, conditions: Sequence[Condition]) -> int:
    """Count matching rows."""
    return int(connection.execute(select(func.count()).select_from(table).where(*conditions)).scalar_one())


def labelled(table: Table, labels_table: Table, wanted: Mapping[str, str]) -> list[Condition]:
    """One condition for each wanted label, quickest where every matching row is visited: looks up the labels first."""
    owner = _owner_column(labels_table)
    return [
        table.c.id.in_(select(owner).where(labels_table.c.key == key, labels_table.c.value == value))
        for key, value in sorted(wanted.items())
    ]


def labelled_in_order(table: Table, labels_table: Table, wanted: Mapping[str, str]) -> list[Condition]:
    """The same conditions for a page: rows are visited in order, and SQLite stops when the page is full.

    With `labelled` it would sort all matching rows first: 15 ms instead of 0.2 ms for 9,000 of 10,000 VMs.
    """
    owner = _owner_column(labels_table)
    return [
        exists().where(owner == table.c.id, labels_table.c.key == key, labels_table.c.value == value)
        for key, value in sorted(wanted.items())
    ]


def read_labels(connection: Connection, table: Table, owner_ids: Collection[str]) -> dict[str, dict[str, str]]:
    """Labels of all the given owners, with one query; owners without any are absent."""
    labels: dict[str, dict[str, str]] = {}
    if owner_ids:
        for row in connection.execute(_LABELS_OF[table.name], {"owner_ids": list(owner_ids)}):
            labels.setdefault(row[0], {})[row.key] = row.value
    return labels


def labels_of(connection: Connection, table: Table, owner_id: str) -> dict[str, str]:
    """Labels of one owner."""
    return {row.key: row.value for row in _LABELS_OF_ONE[table.name].all(connection, {"wanted_id": owner_id})}


def replace_labels(
    connection: Connection, table: Table, owner_id: str, wanted: Mapping[str, str]
) -> Mapping[str, str] | None:
    """Turn the stored labels of one owner into the wanted ones; writes nothing if they are the same.

    Returns:
        The labels it had until now; None if they are the same.
    """
    stored = labels_of(connection, table, owner_id)
    stale = [key for key, value in stored.items() if wanted.get(key) != value]
    if stale:
        connection.execute(delete(table).where(_owner_column(table) == owner_id, table.c.key.in_(stale)))
    insert_labels(
        connection, table, owner_id, {key: value for key, value in wanted.items() if stored.get(key) != value}
    )
    return None if stored == dict(wanted) else stored


def insert_labels(connection: Connection, table: Table, owner_id: str, labels: Mapping[str, str]) -> None:
    """Add labels that the owner does not have yet."""
    if labels:
        owner = _owner_column(table).name
        rows = [{owner: owner_id, "key": key, "value": value} for key, value in labels.items()]
        connection.execute(insert(table), rows)


def _owner_column(table: Table) -> ColumnElement[str]:
    """The column of a label table that says whose label a row is: its first."""
    return table.c[0]


def _labels_query(table: Table) -> Select[Any]:
    owner_column = _owner_column(table)
    return select(owner_column, table.c.key, table.c.value).where(
        owner_column.in_(bindparam("owner_ids", expanding=True))
    )


_LABELS_OF: Mapping[str, Select[Any]] = {table.name: _labels_query(table) for table in (vm_labels, node_labels)}
_LABELS_OF_ONE: Mapping[str, Prepared] = {
    table.name: Prepared(select(table.c.key, table.c.value).where(_owner_column(table) == bindparam("wanted_id")))
    for table in (vm_labels, node_labels)
}
