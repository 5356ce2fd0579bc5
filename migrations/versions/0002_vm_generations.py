"""VMs: generation of commands, wanted state, sightings elsewhere, restarts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_COLUMNS = ("generation", "wanted_state", "sightings", "restart_count")


def upgrade() -> None:
    """Make the change; VMs that exist begin at generation 1, and nobody has asked for a state of theirs."""
    op.add_column("vms", sa.Column("generation", sa.BigInteger(), nullable=False, server_default="1"))
    op.add_column("vms", sa.Column("wanted_state", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("vms", sa.Column("sightings", sa.Text(), nullable=False, server_default="{}"))
    op.add_column("vms", sa.Column("restart_count", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_index("ix_vms_wanted_state_power_state", "vms", ["wanted_state", "power_state"])


def downgrade() -> None:
    """Take it back; what only the new schema can hold is lost."""
    op.drop_index("ix_vms_wanted_state_power_state", "vms")
    with op.batch_alter_table("vms") as table:
        for column in reversed(_COLUMNS):
            table.drop_column(column)
