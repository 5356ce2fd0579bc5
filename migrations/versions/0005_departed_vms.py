"""VMs that left the inventory while their host may still have them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "departed_vms",
        sa.Column("vm_id", sa.Text(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("is_kept", sa.Boolean(), nullable=False),
        sa.Column("power_state", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("departed_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("vm_id", name="pk_departed_vms"),
    )
    op.create_index("ix_departed_vms_node_id", "departed_vms", ["node_id"])


def downgrade() -> None:
    """Drop the table."""
    op.drop_table("departed_vms")
