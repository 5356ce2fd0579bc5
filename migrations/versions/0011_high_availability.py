"""Leadership, fences and their proofs, guards of hosts, and which VMs end with their host's lease."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns and tables, and the single rows."""
    op.add_column("nodes", sa.Column("fence_token", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_index("ix_nodes_fence_token_id", "nodes", ["fence_token", "id"])
    op.add_column("vms", sa.Column("is_protected", sa.Boolean(), nullable=False, server_default=sa.false()))
    leadership = op.create_table(
        "leadership",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("leader_id", sa.Text(), nullable=False),
        sa.Column("hostname", sa.Text(), nullable=False),
        sa.Column("taken_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_leadership"),
    )
    settings = op.create_table(
        "ha_settings",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("is_armed", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("changed_by", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.BigInteger(), nullable=True),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("longest_wait_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_ha_settings"),
    )
    op.create_table(
        "fences",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("opened_at", sa.BigInteger(), nullable=False),
        sa.Column("heard_by", sa.Text(), nullable=False),
        sa.Column("method", sa.Integer(), nullable=False),
        sa.Column("evidence", sa.Text(), nullable=False),
        sa.Column("witness", sa.Text(), nullable=False),
        sa.Column("proof_epoch", sa.BigInteger(), nullable=False),
        sa.Column("proven_at", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("current_node_id", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_fences"),
        sa.UniqueConstraint("token", name="uq_fences_token"),
        sa.UniqueConstraint("current_node_id", name="uq_fences_current_node_id"),
    )
    op.create_index("ix_fences_opened_at_id", "fences", ["opened_at", "id"])
    op.create_index("ix_fences_node_id_token", "fences", ["node_id", "token"])
    op.create_table(
        "node_guards",
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("ha_version", sa.BigInteger(), nullable=False),
        sa.Column("can_self_fence", sa.Boolean(), nullable=False),
        sa.Column("obstacle", sa.Text(), nullable=False),
        sa.Column("boot_id", sa.Text(), nullable=False),
        sa.Column("noted_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("node_id", name="pk_node_guards"),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name="fk_node_guards_node_id_nodes", ondelete="CASCADE"),
    )
    first = {"id": 1, "epoch": 0, "leader_id": "", "hostname": "", "taken_at": None}
    op.get_bind().execute(sa.insert(leadership), [first])
    armed = {"id": 1, "is_armed": True, "reason": "", "changed_by": "", "changed_at": None, "version": 1}
    op.get_bind().execute(sa.insert(settings), [armed | {"longest_wait_ms": 0}])


def downgrade() -> None:
    """Drop them."""
    for name in ("node_guards", "fences", "ha_settings", "leadership"):
        op.drop_table(name)
    with op.batch_alter_table("vms") as table:
        table.drop_column("is_protected")
    op.drop_index("ix_nodes_fence_token_id", "nodes")
    with op.batch_alter_table("nodes") as table:
        table.drop_column("fence_token")
