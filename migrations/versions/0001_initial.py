"""Nodes, VMs and their labels."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables; nodes first, because VMs point to them."""
    _create_nodes()
    _create_vms()
    _create_labels("vm_labels", "vms", "vm_id")
    _create_labels("node_labels", "nodes", "node_id")


def downgrade() -> None:
    """Drop the tables with everything in them."""
    for table in ("node_labels", "vm_labels", "vms", "nodes"):
        op.drop_table(table)


def _create_nodes() -> None:
    op.create_table(
        "nodes",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("hostname", sa.Text(), nullable=False),
        sa.Column("management_ip", sa.Text(), nullable=False),
        sa.Column("agent_endpoint", sa.Text(), nullable=False),
        sa.Column("spec", sa.LargeBinary(), nullable=False),
        sa.Column("system", sa.LargeBinary(), nullable=False),
        sa.Column("annotations", sa.JSON(), nullable=False),
        sa.Column("phase", sa.Integer(), nullable=False),
        sa.Column("error_message", sa.Text(), nullable=False),
        sa.Column("role_compute", sa.Boolean(), nullable=False),
        sa.Column("role_storage", sa.Boolean(), nullable=False),
        sa.Column("role_control_plane", sa.Boolean(), nullable=False),
        sa.Column("capacity_vcpus", sa.BigInteger(), nullable=False),
        sa.Column("capacity_memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("allocated_vcpus", sa.BigInteger(), nullable=False),
        sa.Column("allocated_memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("usage_cpu_percent", sa.Double(), nullable=False),
        sa.Column("usage_memory_used_bytes", sa.BigInteger(), nullable=False),
        sa.Column("usage_memory_total_bytes", sa.BigInteger(), nullable=False),
        sa.Column("usage_disk_used_bytes", sa.BigInteger(), nullable=False),
        sa.Column("usage_disk_total_bytes", sa.BigInteger(), nullable=False),
        sa.Column("usage_running_vm_count", sa.BigInteger(), nullable=False),
        sa.Column("usage_load_1m", sa.Double(), nullable=False),
        sa.Column("usage_load_5m", sa.Double(), nullable=False),
        sa.Column("usage_load_15m", sa.Double(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("last_heartbeat_at", sa.BigInteger(), nullable=True),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_nodes"),
        sa.UniqueConstraint("hostname", name="uq_nodes_hostname"),
        *_not_negative("nodes", "capacity_vcpus", "capacity_memory_bytes", "allocated_vcpus", "allocated_memory_bytes"),
        sa.CheckConstraint("version >= 1", name=op.f("ck_nodes_version_positive")),
    )
    op.create_index("ix_nodes_created_at_id", "nodes", ["created_at", "id"])


def _create_vms() -> None:
    op.create_table(
        "vms",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=True),
        sa.Column("power_state", sa.Integer(), nullable=False),
        sa.Column("vcpus", sa.BigInteger(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("folder_id", sa.Text(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("origin", sa.Integer(), nullable=False),
        sa.Column("is_managed", sa.Boolean(), nullable=False),
        sa.Column("error_message", sa.Text(), nullable=False),
        sa.Column("lost_reason", sa.Text(), nullable=False),
        sa.Column("reported_change_count", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("state_changed_at", sa.BigInteger(), nullable=False),
        sa.Column("last_seen_at", sa.BigInteger(), nullable=True),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("spec", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_vms"),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name="fk_vms_node_id"),
        sa.UniqueConstraint("project_id", "name", name="uq_vms_project_id_name"),
        *_not_negative("vms", "vcpus", "memory_bytes"),
        sa.CheckConstraint("version >= 1", name=op.f("ck_vms_version_positive")),
    )
    op.create_index("ix_vms_created_at_id", "vms", ["created_at", "id"])
    for column in ("project_id", "node_id", "power_state"):
        op.create_index(f"ix_vms_{column}_created_at_id", "vms", [column, "created_at", "id"])


def _create_labels(table: str, owner: str, owner_column: str) -> None:
    op.create_table(
        table,
        sa.Column(owner_column, sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint(owner_column, "key", name=f"pk_{table}"),
        sa.ForeignKeyConstraint([owner_column], [f"{owner}.id"], name=f"fk_{table}_{owner_column}", ondelete="CASCADE"),
    )
    op.create_index(f"ix_{table}_key_value_{owner_column}", table, ["key", "value", owner_column])


def _not_negative(table: str, *columns: str) -> list[sa.CheckConstraint]:
    return [sa.CheckConstraint(f"{column} >= 0", name=op.f(f"ck_{table}_{column}_not_negative")) for column in columns]
