"""Statements about roles and bindings, and what decisions about access rest on; each runs in an open transaction and
blocks.

Contracts: `interface.Transaction`.
"""

from __future__ import annotations

import dataclasses

from sqlalchemy import Connection, bindparam, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from controlplane.domain import access_errors
from controlplane.domain.access import AccessFacts, Binding, FolderPlace, Place, Role
from controlplane.domain.event import VM
from controlplane.state.faults import Constraint, broken_constraint
from controlplane.state.prepared import Prepared, StoredRow
from controlplane.state.schema import events, vms
from controlplane.state.schema_security import access_head, folders, projects, role_bindings, roles

_REVISION = Prepared(select(access_head.c.revision).where(access_head.c.id == 1))
_PLACE_OF_VM = Prepared(select(vms.c.project_id, vms.c.folder_id).where(vms.c.id == bindparam("wanted_id")))


def begin_change(connection: Connection) -> int:
    """Hold the head's row, and count it up."""
    head = update(access_head).where(access_head.c.id == 1).values(revision=access_head.c.revision + 1)
    return int(connection.execute(head.returning(access_head.c.revision)).scalar_one())


def revision(connection: Connection) -> int:
    """Read the head."""
    (head,) = _REVISION.all(connection, {})
    return int(head.revision)


def facts(connection: Connection) -> AccessFacts:
    """Read everything; in a reader it is of one snapshot."""
    return AccessFacts(
        revision=revision(connection),
        projects={row.id: row.name for row in connection.execute(select(projects.c.id, projects.c.name))},
        folders={
            row.id: FolderPlace(row.project_id, row.parent_id)
            for row in connection.execute(select(folders.c.id, folders.c.project_id, folders.c.parent_id))
        },
        roles={role.id: role for role in stored_roles(connection)},
        bindings=tuple(bindings(connection)),
    )


def place_of_vm(connection: Connection, vm_id: str) -> Place | None:
    """Where a VM is."""
    row = _PLACE_OF_VM.first(connection, {"wanted_id": vm_id})
    return None if row is None else Place(row.project_id, row.folder_id)


def last_place_of_vm(connection: Connection, vm_id: str) -> Place | None:
    """Where a VM was; in which folder is not known."""
    told = select(events.c.project_id).where(events.c.resource_id == vm_id, events.c.resource_type == VM)
    past = connection.execute(told.order_by(events.c.revision.desc()).limit(1)).first()
    return None if past is None else Place(past.project_id)


def insert_role(connection: Connection, role: Role) -> None:
    """Add a role."""
    try:
        connection.execute(insert(roles), [{"id": role.id, "created_at": role.created_at, **_role_values(role)}])
    except IntegrityError as error:
        if broken_constraint(error) is not Constraint.UNIQUE:
            raise
        raise access_errors.role_name_taken(role.name) from error


def update_role(connection: Connection, role: Role) -> None:
    """Write a role."""
    connection.execute(update(roles).where(roles.c.id == role.id).values(_role_values(role)))


def delete_role(connection: Connection, role_id: str) -> None:
    """Remove a role."""
    connection.execute(delete(roles).where(roles.c.id == role_id))


def stored_roles(connection: Connection) -> list[Role]:
    """Every role that is stored, by name."""
    return [
        Role(
            row.id,
            row.name,
            frozenset(row.permissions),
            row.description,
            created_at=row.created_at,
            created_by=row.created_by,
        )
        for row in connection.execute(select(roles).order_by(roles.c.name))
    ]


def insert_binding(connection: Connection, binding: Binding) -> Binding:
    """Give a role, unless the subject has it there."""
    place = binding.place
    same = select(role_bindings).where(
        role_bindings.c.subject == binding.subject,
        role_bindings.c.role_id == binding.role_id,
        role_bindings.c.project_id == place.project_id,
        role_bindings.c.folder_id == place.folder_id,
    )
    known = connection.execute(same).first()
    if known is not None:
        return _binding(known)
    values = {field.name: getattr(binding, field.name) for field in dataclasses.fields(binding)}
    del values["place"]
    connection.execute(
        insert(role_bindings), [{**values, "project_id": place.project_id, "folder_id": place.folder_id}]
    )
    return binding


def delete_binding(connection: Connection, binding_id: str) -> None:
    """Take a role away."""
    connection.execute(delete(role_bindings).where(role_bindings.c.id == binding_id))


def delete_bindings_of(connection: Connection, subject: str) -> int:
    """Take all roles of a subject away."""
    return connection.execute(delete(role_bindings).where(role_bindings.c.subject == subject)).rowcount


def bindings(connection: Connection) -> list[Binding]:
    """Every binding, oldest first."""
    ordered = select(role_bindings).order_by(role_bindings.c.created_at, role_bindings.c.id)
    return [_binding(row) for row in connection.execute(ordered)]


def _binding(row: StoredRow) -> Binding:
    place = Place(row.project_id, row.folder_id)
    return Binding(row.id, row.subject, row.subject_name, row.role_id, place, row.created_at, row.created_by)


def _role_values(role: Role) -> dict[str, object]:
    return {
        "name": role.name,
        "description": role.description,
        "permissions": sorted(role.permissions),
        "created_by": role.created_by,
    }
