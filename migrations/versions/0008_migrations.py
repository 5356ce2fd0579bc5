"""Migrations of VMs that are under way, wait for their turn, or left something to settle."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables, and the gate's one row."""
    op.create_table(
        "vm_migrations",
        sa.Column("vm_id", sa.Text(), nullable=False),
        sa.Column("operation_id", sa.Text(), nullable=False),
        sa.Column("source_node_id", sa.Text(), nullable=False),
        sa.Column("target_node_id", sa.Text(), nullable=False),
        sa.Column("copies_disks", sa.Boolean(), nullable=False),
        sa.Column("ran", sa.Boolean(), nullable=False),
        sa.Column("claimed_vcpus", sa.BigInteger(), nullable=False),
        sa.Column("claimed_memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("cost", sa.Integer(), nullable=False),
        sa.Column("is_settled", sa.Boolean(), nullable=False),
        sa.Column("asked_at", sa.BigInteger(), nullable=False),
        sa.Column("granted_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("cost >= 1", name=op.f("ck_vm_migrations_cost_positive")),
        sa.PrimaryKeyConstraint("vm_id", name="pk_vm_migrations"),
    )
    op.create_index("ix_vm_migrations_source_node_id", "vm_migrations", ["source_node_id"])
    op.create_index("ix_vm_migrations_target_node_id", "vm_migrations", ["target_node_id"])
    gate = op.create_table(
        "migration_gate",
        sa.Column("id", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("turn", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_migration_gate"),
    )
    op.bulk_insert(gate, [{"id": 1, "turn": 0}])


def downgrade() -> None:
    """Drop them."""
    op.drop_table("migration_gate")
    op.drop_table("vm_migrations")
