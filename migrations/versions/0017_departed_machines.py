"""Hosts that were forgotten, whose certificates others must not believe meanwhile."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "departed_machines",
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("refused_before", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("node_id", name="pk_departed_machines"),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("departed_machines")
