"""Which VMs keep others out of more than their host, and the rows that placements take turns by."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from limiquantix.compute.v1.vm_pb2 import VmAffinityRule, VmSpec

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_TURN_COUNT = 16
_BATCH = 1000
_vms = sa.table(
    "vms", sa.column("id", sa.Text), sa.column("spec", sa.LargeBinary), sa.column("reaches_far", sa.Boolean)
)


def upgrade() -> None:
    """Add the column, fill it from the documents, and make the turns."""
    op.add_column("vms", sa.Column("reaches_far", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_index("ix_vms_reaches_far_project_id", "vms", ["reaches_far", "project_id"])
    _mark()
    turns = op.create_table(
        "placement_turns",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_placement_turns"),
    )
    op.get_bind().execute(sa.insert(turns), [{"id": number} for number in range(_TURN_COUNT)])


def downgrade() -> None:
    """Drop them."""
    op.drop_table("placement_turns")
    op.drop_index("ix_vms_reaches_far_project_id", "vms")
    with op.batch_alter_table("vms") as table:
        table.drop_column("reaches_far")


def _mark() -> None:
    connection, last_id = op.get_bind(), ""
    while True:
        some = sa.select(_vms.c.id, _vms.c.spec).where(_vms.c.id > last_id).order_by(_vms.c.id).limit(_BATCH)
        rows = connection.execute(some).all()
        if not rows:
            return
        far = [row.id for row in rows if _reaches_far(row.spec)]
        if far:
            connection.execute(sa.update(_vms).where(_vms.c.id.in_(far)).values(reaches_far=True))
        last_id = rows[-1].id


def _reaches_far(document: bytes) -> bool:
    """Tell it as this revision means it, whatever later programs make of rules."""
    rules = VmSpec.FromString(document).placement.vm_rules
    return any(rule.kind == VmAffinityRule.APART and not rule.weight and rule.topology_key for rule in rules)
