"""Projects with quotas, folders, roles and who has them."""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

from limiquantix.compute.v1.vm_pb2 import VmSpec

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

_DEFAULT_PROJECT_ID = "00000000-0000-0000-0000-000000000001"
_BATCH = 1000
_vms = sa.table(
    "vms",
    sa.column("id", sa.Text),
    sa.column("project_id", sa.Text),
    sa.column("folder_id", sa.Text),
    sa.column("spec", sa.LargeBinary),
    sa.column("disk_gib", sa.BigInteger),
)
_operations = sa.table(
    "operations", sa.column("kind", sa.Text), sa.column("resource_type", sa.Text), sa.column("project_id", sa.Text)
)


def upgrade() -> None:
    """Make the tables, the default project, and a project for every id that VMs name."""
    op.add_column("vms", sa.Column("disk_gib", sa.BigInteger(), nullable=False, server_default="0"))
    _fill_disks()
    op.create_index(
        "ix_vms_project_id_vcpus_memory_bytes_disk_gib", "vms", ["project_id", "vcpus", "memory_bytes", "disk_gib"]
    )
    op.create_index("ix_vms_folder_id", "vms", ["folder_id"])
    _mend_operations()
    _make_projects()
    op.create_table(
        "folders",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("parent_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_folders"),
        sa.UniqueConstraint("project_id", "parent_id", "name", name="uq_folders_project_id_parent_id_name"),
    )
    op.create_index("ix_folders_created_at_id", "folders", ["created_at", "id"])
    op.create_table(
        "roles",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("permissions", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_roles"),
        sa.UniqueConstraint("name", name="uq_roles_name"),
    )
    op.create_table(
        "role_bindings",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("subject_name", sa.Text(), nullable=False),
        sa.Column("role_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("folder_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_role_bindings"),
        sa.UniqueConstraint(
            *("subject", "role_id", "project_id", "folder_id"),
            name="uq_role_bindings_subject_role_id_project_id_folder_id",
        ),
    )
    head = op.create_table(
        "access_head",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_access_head"),
    )
    op.get_bind().execute(sa.insert(head), [{"id": 1, "revision": 1}])


def downgrade() -> None:
    """Drop them; VMs are in no folder any more."""
    for table in ("access_head", "role_bindings", "roles", "folders", "projects"):
        op.drop_table(table)
    op.get_bind().execute(sa.update(_vms).where(_vms.c.folder_id != "").values(folder_id=""))
    op.drop_index("ix_vms_folder_id", "vms")
    op.drop_index("ix_vms_project_id_vcpus_memory_bytes_disk_gib", "vms")
    with op.batch_alter_table("vms") as vms:
        vms.drop_column("disk_gib")


def _fill_disks() -> None:
    connection, last_id = op.get_bind(), ""
    write = (
        sa.update(_vms).where(_vms.c.id == sa.bindparam("vm")).values(disk_gib=sa.bindparam("gib", type_=sa.BigInteger))
    )
    while True:
        some = sa.select(_vms.c.id, _vms.c.spec).where(_vms.c.id > last_id).order_by(_vms.c.id).limit(_BATCH)
        rows = connection.execute(some).all()
        if not rows:
            return
        sizes = [
            {"vm": row.id, "gib": sum(disk.size_gib for disk in VmSpec.FromString(row.spec).disks)} for row in rows
        ]
        connection.execute(write, sizes)
        last_id = rows[-1].id


def _mend_operations() -> None:
    """Those that made VMs were recorded with the project in place of the kind of resource, and without a project."""
    columns = _operations.c
    mistaken = sa.and_(columns.kind.in_(["vm.create", "vm.clone"]), columns.project_id == "")
    mended = {"project_id": columns.resource_type, "resource_type": "vm"}
    op.get_bind().execute(sa.update(_operations).where(mistaken).values(mended))


def _make_projects() -> None:
    projects = op.create_table(
        "projects",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("quota_vm_count", sa.BigInteger(), nullable=False),
        sa.Column("quota_vcpus", sa.BigInteger(), nullable=False),
        sa.Column("quota_memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("quota_disk_gib", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_projects"),
        sa.UniqueConstraint("name", name="uq_projects_name"),
    )
    op.create_index("ix_projects_created_at_id", "projects", ["created_at", "id"])
    named = set(op.get_bind().execute(sa.select(_vms.c.project_id).distinct()).scalars()) - {_DEFAULT_PROJECT_ID}
    now_us = time.time_ns() // 1000
    fixed = {
        "description": "",
        "quota_vm_count": 0,
        "quota_vcpus": 0,
        "quota_memory_bytes": 0,
        "quota_disk_gib": 0,
        "created_at": now_us,
        "updated_at": now_us,
        "created_by": "",
        "version": 1,
    }
    rows = [{"id": _DEFAULT_PROJECT_ID, "name": "default"}, *({"id": each, "name": each} for each in sorted(named))]
    op.get_bind().execute(sa.insert(projects), [fixed | row for row in rows])
