"""Statements about migrations of VMs, and the gate through which each passes. Each blocks in an open transaction.

Contracts: `interface.Transaction`.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, exists, insert, or_, select, update

from controlplane.domain.migration import Migration
from controlplane.domain.node import Capacity
from controlplane.state.records import ColumnValues
from controlplane.state.schema import migration_gate, operations, vm_migrations

_IS_WORKED_ON = exists().where(operations.c.id == vm_migrations.c.operation_id, operations.c.ended_at.is_(None))


def put(connection: Connection, migration: Migration) -> None:
    """Write a VM's last migration."""
    values = _values(migration)
    known = update(vm_migrations).where(vm_migrations.c.vm_id == migration.vm_id)
    if connection.execute(known.values(values)).rowcount == 0:
        connection.execute(insert(vm_migrations), values)


def remove(connection: Connection, vm_id: str) -> None:
    """Forget a VM's last migration."""
    connection.execute(delete(vm_migrations).where(vm_migrations.c.vm_id == vm_id))


def get(connection: Connection, vm_id: str) -> Migration | None:
    """Read a VM's last migration."""
    row = connection.execute(select(vm_migrations).where(vm_migrations.c.vm_id == vm_id)).one_or_none()
    return None if row is None else _from_row(row)


def of_node(connection: Connection, node_id: str) -> list[Migration]:
    """Those from and to a node."""
    touches = or_(vm_migrations.c.source_node_id == node_id, vm_migrations.c.target_node_id == node_id)
    found = select(vm_migrations).where(touches).order_by(vm_migrations.c.vm_id)
    return [_from_row(row) for row in connection.execute(found)]


def in_turn(connection: Connection, *, held: bool) -> list[Migration]:
    """Those that are worked on, by when they were asked for; with `held`, nobody else is let in until the end."""
    if held:
        gate = update(migration_gate).where(migration_gate.c.id == 1)
        connection.execute(gate.values(turn=migration_gate.c.turn + 1))
    by_age = select(vm_migrations).where(_IS_WORKED_ON).order_by(vm_migrations.c.asked_at, vm_migrations.c.vm_id)
    return [_from_row(row) for row in connection.execute(by_age)]


def unsettled(connection: Connection) -> list[Migration]:
    """Those of which it is not known where their VMs are."""
    found = select(vm_migrations).where(vm_migrations.c.is_settled.is_(False)).order_by(vm_migrations.c.vm_id)
    return [_from_row(row) for row in connection.execute(found)]


def grant(connection: Connection, vm_ids: Collection[str], at: datetime) -> None:
    """Let some begin."""
    chosen = update(vm_migrations).where(vm_migrations.c.vm_id.in_(sorted(vm_ids)))
    connection.execute(chosen.values(granted_at=at))


def _values(migration: Migration) -> ColumnValues:
    return {
        "vm_id": migration.vm_id,
        "operation_id": migration.operation_id,
        "source_node_id": migration.source_node_id,
        "target_node_id": migration.target_node_id,
        "copies_disks": migration.copies_disks,
        "ran": migration.ran,
        "claimed_vcpus": migration.claimed.vcpus,
        "claimed_memory_bytes": migration.claimed.memory_bytes,
        "cost": migration.cost,
        "is_settled": migration.is_settled,
        "asked_at": migration.asked_at,
        "granted_at": migration.granted_at,
    }


def _from_row(row: Row[Any]) -> Migration:
    return Migration(
        vm_id=row.vm_id,
        operation_id=row.operation_id,
        source_node_id=row.source_node_id,
        target_node_id=row.target_node_id,
        copies_disks=row.copies_disks,
        ran=row.ran,
        claimed=Capacity(row.claimed_vcpus, row.claimed_memory_bytes),
        cost=row.cost,
        is_settled=row.is_settled,
        asked_at=row.asked_at,
        granted_at=row.granted_at,
    )
