"""Which VM has which MAC address, so that no two have the same one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from limiquantix.compute.v1.vm_pb2 import VmSpec

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table, and fill it from the VMs that exist; of those that share an address, the oldest has it."""
    macs = op.create_table(
        "vm_macs",
        sa.Column("mac_address", sa.Text(), nullable=False),
        sa.Column("vm_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["vm_id"], ["vms.id"], name="fk_vm_macs_vm_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("mac_address", name="pk_vm_macs"),
    )
    op.create_index("ix_vm_macs_vm_id", "vm_macs", ["vm_id"])
    connection = op.get_bind()
    vms = sa.table("vms", sa.column("id"), sa.column("spec", sa.LargeBinary()), sa.column("created_at"))
    holders: dict[str, str] = {}
    for row in connection.execute(sa.select(vms.c.id, vms.c.spec).order_by(vms.c.created_at, vms.c.id)):
        for nic in VmSpec.FromString(row.spec).nics:
            if nic.mac_address:
                holders.setdefault(nic.mac_address.lower(), row.id)
    if holders:
        rows = [{"mac_address": address, "vm_id": vm_id} for address, vm_id in sorted(holders.items())]
        connection.execute(sa.insert(macs), rows)


def downgrade() -> None:
    """Drop it."""
    op.drop_index("ix_vm_macs_vm_id", "vm_macs")
    op.drop_table("vm_macs")
