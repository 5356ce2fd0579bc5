"""Who asked for a fence, and in which boot its host was: no longer words in its reason and a process's memory."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_BY_PERSON = "operator:%"
"""How reasons began that a person gave; then came who, a colon, and the reason."""


def upgrade() -> None:
    """Add the columns, filled in as far as can be told."""
    op.add_column("fences", sa.Column("asked_by", sa.Text(), nullable=False, server_default=""))
    op.add_column("fences", sa.Column("boot_id", sa.Text(), nullable=False, server_default=""))
    fences = sa.table("fences", *map(sa.column, ("node_id", "reason", "asked_by", "boot_id", "current_node_id")))
    guards = sa.table("node_guards", *map(sa.column, ("node_id", "boot_id")))
    op.execute(fences.update().where(fences.c.reason.like(_BY_PERSON)).values(asked_by="an operator"))
    boot = sa.select(guards.c.boot_id).where(guards.c.node_id == fences.c.node_id).scalar_subquery()
    is_current = fences.c.current_node_id.is_not(None)
    op.execute(fences.update().where(is_current).values(boot_id=sa.func.coalesce(boot, "")))


def downgrade() -> None:
    """Drop them."""
    with op.batch_alter_table("fences") as fences:
        fences.drop_column("boot_id")
        fences.drop_column("asked_by")
