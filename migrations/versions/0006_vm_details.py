"""What is known of a VM beyond its power state, and which template a linked clone's disks stand on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; VMs that exist have nothing in them."""
    op.add_column("vms", sa.Column("details", sa.LargeBinary(), nullable=True))
    op.add_column("vms", sa.Column("linked_to", sa.Text(), nullable=True))
    op.create_index("ix_vms_linked_to", "vms", ["linked_to"])


def downgrade() -> None:
    """Drop them."""
    op.drop_index("ix_vms_linked_to", "vms")
    with op.batch_alter_table("vms") as table:
        table.drop_column("linked_to")
        table.drop_column("details")
