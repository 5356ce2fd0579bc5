"""Tables of the control plane's database, in SQL that SQLite and PostgreSQL both understand.

No native enums, triggers, advisory locks or serial keys: what is here must also run on distributed databases that speak
PostgreSQL's protocol. Ids are made by the control plane.

The contract's messages (`VmSpec`, `NodeSpec`, `SystemInfo`) are the documents and are stored as serialized protobuf:
what a newer version put into them survives an older version's write, because protobuf keeps unknown fields. Columns
beside a document (`vcpus`, `memory_bytes`, `role_*`) are copies made in the same write, in `controlplane.state.records`
only, for what is filtered or summed in SQL; they are never read back into a record.

A change here needs a migration in the package `migrations`; a test compares the two.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

REVISION = "0001"
"""Alembic revision these tables belong to: the newest one in `migrations.versions`."""

MAX_STORED_INTEGER = 2**63 - 1
"""Both databases have signed 64-bit integers only."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    }
)
"""Every constraint has a name: migrations can drop it, and an error can be told from another without reading text."""


class UtcMicroseconds(TypeDecorator[datetime]):
    """An aware datetime as whole microseconds since 1970 in UTC: exact, ordered and the same in every database.

    Raises:
        ValueError: on writing a naive datetime, whose meaning would depend on the machine.
    """

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        """Turn a datetime into the stored number."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone; records hold aware datetimes only")
        return (value - _EPOCH) // _MICROSECOND

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        """Turn the stored number into a datetime in UTC."""
        return None if value is None else _EPOCH + timedelta(microseconds=value)


class SaturatedInteger(TypeDecorator[int]):
    """A number that hosts report as uint64; beyond the database's range the largest storable one is kept.

    Heartbeats are written many at a time: one host's absurd number must not lose those of all others.
    """

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> int | None:
        """Cap the number at what the database can hold."""
        return None if value is None else min(value, MAX_STORED_INTEGER)


nodes = Table(
    "nodes",
    metadata,
    Column("id", Text, primary_key=True),
    Column("hostname", Text, nullable=False),
    Column("management_ip", Text, nullable=False),
    Column("agent_endpoint", Text, nullable=False),
    Column("spec", LargeBinary, nullable=False),
    Column("system", LargeBinary, nullable=False),
    Column("annotations", JSON, nullable=False),
    Column("phase", Integer, nullable=False),
    Column("error_message", Text, nullable=False),
    Column("role_compute", Boolean, nullable=False),
    Column("role_storage", Boolean, nullable=False),
    Column("role_control_plane", Boolean, nullable=False),
    Column("capacity_vcpus", BigInteger, nullable=False),
    Column("capacity_memory_bytes", BigInteger, nullable=False),
    Column("allocated_vcpus", BigInteger, nullable=False),
    Column("allocated_memory_bytes", BigInteger, nullable=False),
    Column("usage_cpu_percent", Double, nullable=False),
    Column("usage_memory_used_bytes", SaturatedInteger, nullable=False),
    Column("usage_memory_total_bytes", SaturatedInteger, nullable=False),
    Column("usage_disk_used_bytes", SaturatedInteger, nullable=False),
    Column("usage_disk_total_bytes", SaturatedInteger, nullable=False),
    Column("usage_running_vm_count", BigInteger, nullable=False),
    Column("usage_load_1m", Double, nullable=False),
    Column("usage_load_5m", Double, nullable=False),
    Column("usage_load_15m", Double, nullable=False),
    Column("created_at", UtcMicroseconds, nullable=False),
    Column("updated_at", UtcMicroseconds, nullable=False),
    Column("last_heartbeat_at", UtcMicroseconds, nullable=True),
    Column("version", BigInteger, nullable=False),
    UniqueConstraint("hostname"),
    CheckConstraint("capacity_vcpus >= 0", name="capacity_vcpus_not_negative"),
    CheckConstraint("capacity_memory_bytes >= 0", name="capacity_memory_bytes_not_negative"),
    # Not `allocated <= capacity`: a host may come back smaller than what already runs on it.
    CheckConstraint("allocated_vcpus >= 0", name="allocated_vcpus_not_negative"),
    CheckConstraint("allocated_memory_bytes >= 0", name="allocated_memory_bytes_not_negative"),
    CheckConstraint("version >= 1", name="version_positive"),
    Index(None, "created_at", "id"),
)

vms = Table(
    "vms",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("node_id", Text, ForeignKey("nodes.id"), nullable=True),
    Column("power_state", Integer, nullable=False),
    Column("vcpus", BigInteger, nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("description", Text, nullable=False),
    Column("folder_id", Text, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("origin", Integer, nullable=False),
    Column("is_managed", Boolean, nullable=False),
    Column("error_message", Text, nullable=False),
    Column("lost_reason", Text, nullable=False),
    Column("reported_change_count", SaturatedInteger, nullable=False),
    Column("created_at", UtcMicroseconds, nullable=False),
    Column("updated_at", UtcMicroseconds, nullable=False),
    Column("state_changed_at", UtcMicroseconds, nullable=False),
    Column("last_seen_at", UtcMicroseconds, nullable=True),
    Column("version", BigInteger, nullable=False),
    # Last, because a row's long part is best skipped when the short columns are enough.
    Column("spec", LargeBinary, nullable=False),
    UniqueConstraint("project_id", "name"),
    CheckConstraint("vcpus >= 0", name="vcpus_not_negative"),
    CheckConstraint("memory_bytes >= 0", name="memory_bytes_not_negative"),
    CheckConstraint("version >= 1", name="version_positive"),
    Index(None, "created_at", "id"),
    Index(None, "project_id", "created_at", "id"),
    Index(None, "node_id", "created_at", "id"),
    Index(None, "power_state", "created_at", "id"),
)


def _label_table(name: str, owner: Table, owner_column: str) -> Table:
    """Make the table of one kind's labels; they go with the row they belong to."""
    return Table(
        name,
        metadata,
        Column(owner_column, Text, ForeignKey(owner.c.id, ondelete="CASCADE"), primary_key=True),
        Column("key", Text, primary_key=True),
        Column("value", Text, nullable=False),
        Index(None, "key", "value", owner_column),
    )


vm_labels = _label_table("vm_labels", vms, "vm_id")
node_labels = _label_table("node_labels", nodes, "node_id")
