"""Roles and who has them. Nobody gives, takes away or changes what they do not have themselves."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from controlplane.access.calling import caller_name
from controlplane.access.tree import user_subject
from controlplane.access.visibility import EverythingVisible, Sight, Visibility
from controlplane.domain import access_errors
from controlplane.domain.access import (
    BUILT_IN_ROLES,
    EVERYTHING,
    THE_CLUSTER,
    Binding,
    Permissions,
    Place,
    Role,
)
from controlplane.identity.last_admin import keeping_an_admin
from controlplane.services.projects import Refresh, nothing_kept
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1 import role_service_pb2 as api

UserId = Callable[[Transaction, str], Awaitable[str | None]]
"""Finds the id of a user by the name; None if there is no such user."""

_USER = "user:"


@dataclass(frozen=True, slots=True)
class RoleService:
    """The use cases of roles and bindings."""

    store: Store
    now: Callable[[], datetime]
    user_id: UserId
    refresh: Refresh = nothing_kept
    visibility: Visibility = field(default_factory=EverythingVisible)

    async def list(self) -> Sequence[Role]:
        """Read all roles, those that are built in first."""
        return [*BUILT_IN_ROLES.values(), *await self.store.read(lambda tx: tx.stored_roles())]

    async def get(self, role_id: str) -> Role:
        """Read one, by id or name.

        Raises:
            NotFound: there is none.
        """
        return await self.store.read(lambda tx: _required(tx, role_id))

    async def create(self, request: api.CreateRoleRequest) -> Role:
        """Make a role.

        Raises:
            InvalidArgument: what it lists are no permissions.
            AlreadyExists: there is one of that name.
            PermissionDenied: the caller does not have them all.
        """
        role = Role(
            id=str(uuid.uuid4()),
            name=request.name,
            permissions=_permissions(request.permissions),
            description=request.description,
            created_at=self.now(),
            created_by=caller_name(),
        )
        if role.name in BUILT_IN_ROLES:
            raise access_errors.role_name_taken(role.name)
        _require_has(self.visibility.of_caller(), role.permissions, THE_CLUSTER)

        async def work(tx: Transaction) -> None:
            await tx.begin_access_change()
            await tx.insert_role(role)

        await self.store.run(work)
        await self.refresh()
        return role

    async def update(self, request: api.UpdateRoleRequest) -> Role:
        """Change a role for all who have it.

        Raises:
            NotFound: there is none.
            InvalidArgument: what it lists are no permissions.
            FailedPrecondition: it is built in.
            PermissionDenied: the caller does not have all that it holds, or is to hold.
        """
        sight = self.visibility.of_caller()

        async def work(tx: Transaction) -> Role:
            await tx.begin_access_change()
            role = await _required_own(tx, request.id)
            changed = replace(
                role,
                permissions=_permissions(request.permissions) if request.permissions else role.permissions,
                description=request.description if request.HasField("description") else role.description,
            )
            _require_has(sight, role.permissions | changed.permissions, THE_CLUSTER)
            await tx.update_role(changed)
            return changed

        role = await self.store.run(work)
        await self.refresh()
        return role

    async def delete(self, role_id: str) -> None:
        """Delete a role that nobody has.

        Raises:
            NotFound: there is none.
            FailedPrecondition: it is built in, or somebody has it.
        """

        async def work(tx: Transaction) -> None:
            await tx.begin_access_change()
            role = await _required_own(tx, role_id)
            count = sum(binding.role_id == role.id for binding in await tx.bindings())
            if count:
                raise access_errors.role_in_use(role.name, count)
            await tx.delete_role(role.id)

        await self.store.run(work)
        await self.refresh()

    async def bind(self, request: api.BindRoleRequest) -> tuple[Binding, Role]:
        """Give a role. Idempotent.

        Raises:
            NotFound: there is no such role, user, project or folder.
            InvalidArgument: the folder is one of another project.
            PermissionDenied: the caller does not have at that place what the role holds.
        """
        sight, actor = self.visibility.of_caller(), caller_name()

        async def work(tx: Transaction) -> tuple[Binding, Role]:
            await tx.begin_access_change()
            role = await _required(tx, request.role_id)
            place = await _place(tx, request.project_id, request.folder_id)
            _require_has(sight, role.permissions, place)
            binding = Binding(
                id=str(uuid.uuid4()),
                subject=await self._subject(tx, request.subject),
                subject_name=request.subject,
                role_id=role.id,
                place=place,
                created_at=self.now(),
                created_by=actor,
            )
            return await tx.insert_binding(binding), role

        bound = await self.store.run(work)
        await self.refresh()
        return bound

    async def unbind(self, binding_id: str) -> None:
        """Take a role away.

        Raises:
            NotFound: there is no such binding.
            PermissionDenied: the caller does not have at that place what the role holds.
            FailedPrecondition: nobody who may act would be admin of the cluster any more.
        """
        sight = self.visibility.of_caller()

        async def work(tx: Transaction) -> None:
            binding = next((each for each in await tx.bindings() if each.id == binding_id), None)
            if binding is None:
                raise access_errors.binding_not_found(binding_id)
            role = await _required(tx, binding.role_id)
            _require_has(sight, role.permissions, binding.place)
            await tx.delete_binding(binding_id)

        await self.store.run(lambda tx: keeping_an_admin(tx, lambda: work(tx)))
        await self.refresh()

    async def bindings(self, request: api.ListRoleBindingsRequest) -> Sequence[tuple[Binding, Role]]:
        """Read who has which role at one place, oldest first.

        Raises:
            NotFound: there is no such project or folder.
        """

        async def work(tx: Transaction) -> Sequence[tuple[Binding, Role]]:
            place = await _place(tx, request.project_id, request.folder_id)
            roles = {**BUILT_IN_ROLES, **{role.id: role for role in await tx.stored_roles()}}
            return [(each, roles[each.role_id]) for each in await tx.bindings() if each.place == place]

        return await self.store.read(work)

    async def _subject(self, tx: Transaction, named: str) -> str:
        if not named.startswith(_USER):
            return named
        user_id = await self.user_id(tx, named.removeprefix(_USER))
        if user_id is None:
            raise access_errors.subject_not_found(named)
        return user_subject(user_id)


def _require_has(sight: Sight, permissions: Permissions, place: Place) -> None:
    """Check that the caller has what is given, changed or taken away."""
    own = sight.permissions(place)
    missing = frozenset() if own is None else permissions - own
    if missing:
        raise access_errors.role_grants_more(missing, place)


async def _required(tx: Transaction, role_id: str) -> Role:
    """Find a role by id or name."""
    if role_id in BUILT_IN_ROLES:
        return BUILT_IN_ROLES[role_id]
    stored = await tx.stored_roles()
    # By id first: a role whose name is the id of another one must not be taken for it.
    found = [role for role in stored if role.id == role_id] or [role for role in stored if role.name == role_id]
    if not found:
        raise access_errors.role_not_found(role_id)
    return found[0]


async def _required_own(tx: Transaction, role_id: str) -> Role:
    role = await _required(tx, role_id)
    if role.is_built_in:
        raise access_errors.role_is_built_in(role.name)
    return role


async def _place(tx: Transaction, project_id: str, folder_id: str) -> Place:
    if folder_id:
        folder = await tx.get_folder(folder_id)
        if folder is None:
            raise access_errors.folder_not_found(folder_id)
        if project_id not in ("", folder.project_id):
            raise access_errors.folder_elsewhere(folder_id, project_id, "folder_id")
        return Place(folder.project_id, folder_id)
    if project_id and await tx.get_project(project_id) is None:
        raise access_errors.project_not_found(project_id)
    return Place(project_id)


def _permissions(names: Sequence[str]) -> Permissions:
    asked = frozenset(names)
    if unknown := asked - EVERYTHING:
        raise access_errors.permissions_unknown(unknown)
    return asked
