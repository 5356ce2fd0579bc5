"""Statements about operations, the processes that work on them and departed VMs; each blocks in an open transaction.

Contracts: `interface.Transaction`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, bindparam, delete, func, insert, literal, or_, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from controlplane.domain import errors
from controlplane.domain.access import VisiblePlaces
from controlplane.domain.operation import (
    DepartedVm,
    Fault,
    Operation,
    OperationFilter,
    OperationState,
    Replica,
    StepRecord,
)
from controlplane.domain.query import Cursor, Page
from controlplane.state import queries
from controlplane.state.faults import Constraint, broken_constraint
from controlplane.state.prepared import Prepared, StoredRow
from controlplane.state.records import ColumnValues, opened_digest, opened_parameters, sealed_digest, sealed_parameters
from controlplane.state.schema import departed_vms, operations, replicas, vms
from controlplane.state.schema_base import UtcMicroseconds
from controlplane.state.seals import Seals, seals_of

_UNFINISHED = operations.c.ended_at.is_(None)

_INSERT = Prepared(insert(operations))
_BY_ID = Prepared(select(operations).where(operations.c.id == bindparam("wanted_id")))
_OF_REQUEST = Prepared(
    select(operations).where(
        operations.c.principal == bindparam("asked_by"), operations.c.request_id == bindparam("wanted_id")
    )
)
_QUEUE = Prepared(
    select(operations)
    .where(operations.c.resource_id == bindparam("wanted_id"), _UNFINISHED)
    .order_by(operations.c.preempts.desc(), operations.c.position)
)
_ADVANCE = Prepared(
    update(operations).where(
        operations.c.id == bindparam("read_id"),
        operations.c.owner_id == bindparam("read_owner"),
        operations.c.attempt_count == bindparam("read_attempt"),
        operations.c.version == bindparam("read_version"),
        _UNFINISHED,
    )
)


def insert_operation(connection: Connection, operation: Operation) -> None:
    """Add an operation; one of the same request is `Aborted`."""
    try:
        _INSERT.change(connection, _values(operation, seals_of(connection)))
    except IntegrityError as error:
        if broken_constraint(error) is Constraint.CHECK:
            raise
        raise errors.concurrent_change("operation", operation.id) from error


def get_operation(connection: Connection, operation_id: str) -> Operation | None:
    """Read one operation."""
    row = _BY_ID.first(connection, {"wanted_id": operation_id})
    return None if row is None else _from_row(row, seals_of(connection))


def operation_of_request(connection: Connection, principal: str, request_id: str) -> Operation | None:
    """Read the operation that a request made."""
    row = _OF_REQUEST.first(connection, {"asked_by": principal, "wanted_id": request_id})
    return None if row is None else _from_row(row, seals_of(connection))


def queue_of(connection: Connection, resource_id: str) -> list[Operation]:
    """Unfinished operations on a resource, in the order in which they run; an active one comes first."""
    seals = seals_of(connection)
    found = [_from_row(row, seals) for row in _QUEUE.all(connection, {"wanted_id": resource_id})]
    return sorted(found, key=lambda operation: operation.state == OperationState.QUEUED)


def newest_generation(connection: Connection, resource_id: str) -> int:
    """Largest generation or position of the operations on a resource that are not forgotten; 0 if there are none."""
    largest = select(func.max(operations.c.generation), func.max(operations.c.position))
    generation, position = connection.execute(largest.where(operations.c.resource_id == resource_id)).one()
    return max(generation or 0, position or 0)


def active_resource_ids(connection: Connection, resource_ids: Collection[str]) -> set[str]:
    """Those of the resources that have unfinished operations."""
    if not resource_ids:
        return set()
    busy = select(operations.c.resource_id).where(operations.c.resource_id.in_(sorted(resource_ids)), _UNFINISHED)
    return set(connection.execute(busy.distinct()).scalars())


def resources_under(connection: Connection, kind: str) -> set[str]:
    """Those that have an unfinished operation of a kind."""
    busy = select(operations.c.resource_id).where(_UNFINISHED, operations.c.kind == kind)
    return set(connection.execute(busy.distinct()).scalars())


def unfinished_operations(connection: Connection, known_ids: Collection[str], limit: int) -> list[Operation]:
    """Unfinished operations but those known, oldest first."""
    others = select(operations).where(_UNFINISHED, operations.c.id.not_in(sorted(known_ids)))
    in_order = others.order_by(operations.c.created_at, operations.c.id).limit(limit)
    seals = seals_of(connection)
    return [_from_row(row, seals) for row in connection.execute(in_order)]


def advance_operation(connection: Connection, operation: Operation) -> Operation | None:
    """Write an operation's progress if the stored version is the record's and its owner still owns it."""
    changed = dataclasses.replace(operation, version=operation.version + 1)
    values = _progress(changed, seals_of(connection)) | {
        "version": changed.version,
        "read_id": operation.id,
        "read_owner": operation.owner_id,
        "read_attempt": operation.attempt_count,
        "read_version": operation.version,
    }
    return changed if _ADVANCE.change(connection, values) > 0 else None


def take_operation(connection: Connection, operation: Operation, version: int) -> bool:
    """Make the record's owner the owner, if nothing changed since `version`."""
    unchanged = update(operations).where(operations.c.id == operation.id, operations.c.version == version, _UNFINISHED)
    values = _progress(operation, seals_of(connection)) | {
        "owner_id": operation.owner_id,
        "attempt_count": operation.attempt_count,
        "generation": operation.generation,
        "version": version + 1,
    }
    return connection.execute(unchanged.values(values)).rowcount > 0


def request_cancel(connection: Connection, operation_id: str, reason: str) -> bool:
    """Note that an unfinished operation shall be cancelled; the first reason stays."""
    wanted = update(operations).where(operations.c.id == operation_id, _UNFINISHED, operations.c.cancel_requested == "")
    values = {"cancel_requested": reason, "version": operations.c.version + 1}
    return connection.execute(wanted.values(values)).rowcount > 0


def cancelled_ids(connection: Connection, owner_id: str) -> list[str]:
    """Unfinished operations of a process that shall be cancelled."""
    wanted = select(operations.c.id).where(
        _UNFINISHED, operations.c.owner_id == owner_id, operations.c.cancel_requested != ""
    )
    return list(connection.execute(wanted).scalars())


def list_operations(
    connection: Connection, wanted: OperationFilter, after: Cursor | None, limit: int
) -> Page[Operation]:
    """Read a page, newest first, and the true total."""
    conditions: list[queries.Condition] = [] if wanted.visible is None else [_in_sight(wanted.visible)]
    if wanted.resource_id:
        conditions.append(operations.c.resource_id == wanted.resource_id)
    if wanted.project_id:
        conditions.append(operations.c.project_id == wanted.project_id)
    if wanted.kinds:
        conditions.append(operations.c.kind.in_(sorted(wanted.kinds)))
    if wanted.states:
        conditions.append(operations.c.state.in_(sorted(wanted.states)))
    total = queries.count(connection, operations, conditions)
    query = select(operations).where(*conditions)
    if after is not None:
        position = tuple_(literal(after.created_at, UtcMicroseconds), literal(after.id))
        query = query.where(tuple_(operations.c.created_at, operations.c.id) < position)
    query = query.order_by(operations.c.created_at.desc(), operations.c.id.desc()).limit(limit + 1)
    seals = seals_of(connection)
    return queries.page([_from_row(row, seals) for row in connection.execute(query)], limit, total)


def _in_sight(visible: VisiblePlaces) -> queries.Condition:
    """The condition that what an operation is about is in a part of the tree; nodes belong to the cluster."""
    seen = operations.c.project_id.in_([*sorted(visible.project_ids), *([""] if visible.sees_cluster else [])])
    if not visible.folder_ids:
        return seen
    inside = select(vms.c.id).where(vms.c.folder_id.in_(sorted(visible.folder_ids)))
    return or_(seen, operations.c.resource_id.in_(inside))


def forget_operations(connection: Connection, ended_before: datetime, limit: int) -> int:
    """Remove operations that ended long ago."""
    old = select(operations.c.id).where(operations.c.ended_at < literal(ended_before, UtcMicroseconds)).limit(limit)
    ids = list(connection.execute(old).scalars())
    if ids:
        connection.execute(delete(operations).where(operations.c.id.in_(ids)))
    return len(ids)


# -- processes


def renew_replica(connection: Connection, replica: Replica) -> None:
    """Show that a process lives; adds it if it is new."""
    mine = update(replicas).where(replicas.c.id == replica.id)
    values = {"renewed_at": replica.renewed_at, "renewal_count": replicas.c.renewal_count + 1}
    if connection.execute(mine.values(values)).rowcount == 0:
        connection.execute(insert(replicas), dataclasses.asdict(replica))


def all_replicas(connection: Connection) -> list[Replica]:
    """Every process that is not forgotten."""
    return [Replica(**row._mapping) for row in connection.execute(select(replicas))]


def remove_replica(connection: Connection, replica_id: str) -> None:
    """Forget a process."""
    connection.execute(delete(replicas).where(replicas.c.id == replica_id))


# -- departed VMs


def insert_departed(connection: Connection, departed: DepartedVm) -> None:
    """Note a departed VM; noted before, it is replaced."""
    remove_departed(connection, [departed.vm_id])
    connection.execute(insert(departed_vms), dataclasses.asdict(departed))


def departed(connection: Connection, node_id: str, vm_ids: Collection[str]) -> dict[str, DepartedVm]:
    """Those departed of a node, or all of them that have one of the ids."""
    wanted: Select[Any] = select(departed_vms).where(
        or_(departed_vms.c.node_id == node_id, departed_vms.c.vm_id.in_(sorted(vm_ids)))
    )
    return {row.vm_id: DepartedVm(**row._mapping) for row in connection.execute(wanted)}


def remove_departed(connection: Connection, vm_ids: Collection[str]) -> None:
    """Forget departed VMs."""
    if vm_ids:
        connection.execute(delete(departed_vms).where(departed_vms.c.vm_id.in_(sorted(vm_ids))))


# -- rows and records


def _values(operation: Operation, seals: Seals) -> ColumnValues:
    return {
        "id": operation.id,
        "kind": operation.kind,
        "resource_type": operation.resource_type,
        "resource_id": operation.resource_id,
        "project_id": operation.project_id,
        "principal": operation.principal,
        "request_id": operation.request_id or None,
        "request_digest": sealed_digest(operation.request_digest, operation.id, seals),
        "position": operation.position,
        "generation": operation.generation,
        "preempts": operation.preempts,
        "owner_id": operation.owner_id,
        "attempt_count": operation.attempt_count,
        "cancel_requested": operation.cancel_requested,
        "created_at": operation.created_at,
        "version": operation.version,
        **_progress(operation, seals),
    }


def _progress(operation: Operation, seals: Seals) -> ColumnValues:
    """What the owner of an operation writes as it goes on."""
    fault = operation.fault
    return {
        "state": operation.state,
        "parameters": sealed_parameters(operation.parameters, operation.id, seals),
        "steps": [{"name": s.name, "state": s.state, "result": dict(s.result)} for s in operation.steps],
        "fault": None if fault is None else dataclasses.asdict(fault),
        "response": operation.response,
        "waiting_for": operation.waiting_for,
        "started_at": operation.started_at,
        "ended_at": operation.ended_at,
    }


def _from_row(row: StoredRow, seals: Seals) -> Operation:
    return Operation(
        id=row.id,
        kind=row.kind,
        resource_type=row.resource_type,
        resource_id=row.resource_id,
        project_id=row.project_id,
        principal=row.principal,
        created_at=row.created_at,
        steps=tuple(StepRecord(step["name"], step["state"], step["result"]) for step in row.steps),
        parameters=opened_parameters(row.parameters, row.id, seals),
        request_id=row.request_id or "",
        request_digest=opened_digest(row.request_digest, row.id, seals),
        state=row.state,
        position=row.position,
        generation=row.generation,
        preempts=row.preempts,
        fault=None if row.fault is None else _fault(row.fault),
        response=bytes(row.response),
        owner_id=row.owner_id,
        attempt_count=row.attempt_count,
        cancel_requested=row.cancel_requested,
        waiting_for=row.waiting_for,
        started_at=row.started_at,
        ended_at=row.ended_at,
        version=row.version,
    )


def _fault(stored: Mapping[str, Any]) -> Fault:
    violations: Sequence[Sequence[str]] = stored["violations"]
    return Fault(**{**stored, "violations": tuple((path, text) for path, text in violations)})
