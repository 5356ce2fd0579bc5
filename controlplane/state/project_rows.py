"""Statements about projects, what their VMs take, and folders; each runs in an open transaction and blocks.

Contracts: `interface.Transaction`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from controlplane.domain import access_errors, errors
from controlplane.domain.access import Place, VisiblePlaces
from controlplane.domain.folder import Folder, FolderFilter
from controlplane.domain.project import UNLIMITED, Amounts, Project
from controlplane.domain.query import Cursor, Page
from controlplane.domain.vm import Vm
from controlplane.state import queries, vm_rows
from controlplane.state.faults import Constraint, broken_constraint
from controlplane.state.prepared import Prepared, StoredRow
from controlplane.state.schema import vms
from controlplane.state.schema_security import folders, projects, role_bindings

_WITH_ID = select(projects).where(projects.c.id == bindparam("wanted_id"))
_BY_ID = Prepared(_WITH_ID)
_KEPT = Prepared(_WITH_ID.with_for_update(read=True, key_share=True))
"""Nobody removes it; many may keep it at once. SQLite, whose writers queue anyway, just reads it."""
_HELD = Prepared(_WITH_ID.with_for_update(key_share=True))
"""Nobody else holds it."""
_KEPT_FOLDER = Prepared(
    select(folders.c.id)
    .where(folders.c.id == bindparam("wanted_id"), folders.c.project_id == bindparam("wanted_project"))
    .with_for_update(read=True, key_share=True)
)
_SUMS = Prepared(
    select(
        func.count().label("vm_count"),
        func.coalesce(func.sum(vms.c.vcpus), 0).label("vcpus"),
        func.coalesce(func.sum(vms.c.memory_bytes), 0).label("memory_bytes"),
        func.coalesce(func.sum(vms.c.disk_gib), 0).label("disk_gib"),
    ).where(vms.c.project_id == bindparam("wanted_id"))
)


def insert_project(connection: Connection, project: Project) -> None:
    """Add a project."""
    try:
        connection.execute(insert(projects), [_project_values(project)])
    except IntegrityError as error:
        _refuse(error, project)


def get_project(connection: Connection, project_id: str) -> Project | None:
    """Read one."""
    row = _BY_ID.first(connection, {"wanted_id": project_id})
    return None if row is None else _project(row)


def update_project(connection: Connection, project: Project) -> Project:
    """Write a project if the stored version is the record's."""
    changed = dataclasses.replace(project, version=project.version + 1)
    mine = update(projects).where(projects.c.id == project.id, projects.c.version == project.version)
    try:
        row_count = connection.execute(mine.values(_project_values(changed))).rowcount
    except IntegrityError as error:
        _refuse(error, project)
    if not row_count:
        raise errors.concurrent_change("project", project.id)
    return changed


def delete_project(connection: Connection, project_id: str) -> None:
    """Remove a project with what is in it but for VMs."""
    connection.execute(delete(projects).where(projects.c.id == project_id))
    connection.execute(delete(role_bindings).where(role_bindings.c.project_id == project_id))
    connection.execute(delete(folders).where(folders.c.project_id == project_id))


def list_projects(
    connection: Connection, visible: VisiblePlaces | None, after: Cursor | None, limit: int
) -> Page[Project]:
    """Read a page and the true total of what is visible."""
    conditions = [] if visible is None else [projects.c.id.in_(sorted(visible.project_ids))]
    rows = connection.execute(queries.page_query(projects, conditions, after, limit))
    return queries.page([_project(row) for row in rows], limit, queries.count(connection, projects, conditions))


def amounts(connection: Connection, project_id: str) -> Amounts:
    """Sum up what the VMs of a project take; PostgreSQL sums integers as decimals."""
    (sums,) = _SUMS.all(connection, {"wanted_id": project_id})
    return Amounts(int(sums.vm_count), int(sums.vcpus), int(sums.memory_bytes), int(sums.disk_gib))


def hold_place(connection: Connection, place: Place) -> Project | None:
    """Keep project and folder; hold a project that has a quota."""
    if place.folder_id:
        wanted = {"wanted_id": place.folder_id, "wanted_project": place.project_id}
        if _KEPT_FOLDER.first(connection, wanted) is None:
            return None
    known = get_project(connection, place.project_id)
    if known is None:
        return None
    held = (_KEPT if known.quota == UNLIMITED else _HELD).first(connection, {"wanted_id": place.project_id})
    return None if held is None else _project(held)


def insert_folder(connection: Connection, folder: Folder) -> None:
    """Add a folder."""
    try:
        connection.execute(insert(folders), [_folder_values(folder)])
    except IntegrityError as error:
        _refuse(error, folder)


def get_folder(connection: Connection, folder_id: str) -> Folder | None:
    """Read one."""
    row = connection.execute(select(folders).where(folders.c.id == folder_id)).first()
    return None if row is None else _folder(row)


def update_folder(connection: Connection, folder: Folder) -> Folder:
    """Write a folder if the stored version is the record's."""
    changed = dataclasses.replace(folder, version=folder.version + 1)
    mine = update(folders).where(folders.c.id == folder.id, folders.c.version == folder.version)
    try:
        row_count = connection.execute(mine.values(_folder_values(changed))).rowcount
    except IntegrityError as error:
        _refuse(error, folder)
    if not row_count:
        raise errors.concurrent_change("folder", folder.id)
    return changed


def delete_folders(connection: Connection, folder_ids: Collection[str]) -> None:
    """Remove folders with the bindings at them."""
    connection.execute(delete(folders).where(folders.c.id.in_(sorted(folder_ids))))
    connection.execute(delete(role_bindings).where(role_bindings.c.folder_id.in_(sorted(folder_ids))))


def list_folders(connection: Connection, wanted: FolderFilter, after: Cursor | None, limit: int) -> Page[Folder]:
    """Read a page and the true total of what is visible."""
    conditions = queries.in_sight(wanted.visible, folders.c.project_id, folders.c.id)
    for name in ("project_id", "parent_id", "type"):
        if getattr(wanted, name):
            conditions.append(folders.c[name] == getattr(wanted, name))
    rows = connection.execute(queries.page_query(folders, conditions, after, limit))
    return queries.page([_folder(row) for row in rows], limit, queries.count(connection, folders, conditions))


def folders_of_project(connection: Connection, project_id: str) -> list[Folder]:
    """Every folder of a project."""
    return [_folder(row) for row in connection.execute(select(folders).where(folders.c.project_id == project_id))]


def vms_in_folders(connection: Connection, folder_ids: Collection[str]) -> list[Vm]:
    """Every VM directly in one of the folders, in the order in which several may be held."""
    inside = select(vms.c.id).where(vms.c.folder_id.in_(sorted(folder_ids))).order_by(vms.c.id)
    found = (vm_rows.get_vm(connection, vm_id, to_change=True) for vm_id in list(connection.execute(inside).scalars()))
    return [vm for vm in found if vm is not None and vm.folder_id in folder_ids]


def _project(row: StoredRow) -> Project:
    return Project(
        id=row.id,
        name=row.name,
        created_at=row.created_at,
        updated_at=row.updated_at,
        description=row.description,
        quota=Amounts(row.quota_vm_count, row.quota_vcpus, row.quota_memory_bytes, row.quota_disk_gib),
        created_by=row.created_by,
        version=row.version,
    )


def _project_values(project: Project) -> Mapping[str, Any]:
    quota = {f"quota_{name}": value for name, value in dataclasses.asdict(project.quota).items()}
    names = ("id", "name", "description", "created_at", "updated_at", "created_by", "version")
    return {**{name: getattr(project, name) for name in names}, **quota}


def _folder(row: StoredRow) -> Folder:
    return Folder(**{field.name: getattr(row, field.name) for field in dataclasses.fields(Folder)})


def _folder_values(folder: Folder) -> Mapping[str, Any]:
    values = {field.name: getattr(folder, field.name) for field in dataclasses.fields(folder)}
    return {**values, "labels": dict(folder.labels)}


def _refuse(error: IntegrityError, record: Project | Folder) -> NoReturn:
    """Raise what a broken constraint means: only names are unique beside ids, which are ours."""
    if broken_constraint(error) is not Constraint.UNIQUE:
        raise error
    taken = access_errors.folder_name_taken if isinstance(record, Folder) else access_errors.project_name_taken
    raise taken(record.name) from error
