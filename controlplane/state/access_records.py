"""The transaction's methods about projects, folders, roles and who has them. Docstrings: the interface's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from sqlalchemy import Connection

from controlplane.domain.access import AccessFacts, Binding, Place, Role, VisiblePlaces
from controlplane.domain.folder import Folder, FolderFilter
from controlplane.domain.project import Amounts, Project
from controlplane.domain.query import Cursor, Page
from controlplane.domain.vm import Vm
from controlplane.state import access_rows, project_rows

ResultT = TypeVar("ResultT")


class AccessRecords(ABC):
    """A part of `SqlTransaction`."""

    @abstractmethod
    async def _read(self, function: Callable[[Connection], ResultT]) -> ResultT: ...

    @abstractmethod
    async def _write(self, function: Callable[[Connection], ResultT]) -> ResultT: ...

    async def begin_access_change(self) -> int:
        """Hold the right to change the tree and the roles until the transaction ends."""
        return await self._write(access_rows.begin_change)

    async def access_revision(self) -> int:
        """Read how often anything of it changed."""
        return await self._read(access_rows.revision)

    async def access_facts(self) -> AccessFacts:
        """Read everything that decisions rest on."""
        return await self._read(access_rows.facts)

    async def place_of_vm(self, vm_id: str) -> Place | None:
        """Say where a VM is."""
        return await self._read(lambda connection: access_rows.place_of_vm(connection, vm_id))

    async def last_place_of_vm(self, vm_id: str) -> Place | None:
        """Say to which project a VM belonged that is gone."""
        return await self._read(lambda connection: access_rows.last_place_of_vm(connection, vm_id))

    async def insert_project(self, project: Project) -> None:
        """Add a project."""
        await self._write(lambda connection: project_rows.insert_project(connection, project))

    async def get_project(self, project_id: str) -> Project | None:
        """Read one project."""
        return await self._read(lambda connection: project_rows.get_project(connection, project_id))

    async def update_project(self, project: Project) -> Project:
        """Write a project that was read before, and return it with its new `version`."""
        return await self._write(lambda connection: project_rows.update_project(connection, project))

    async def delete_project(self, project_id: str) -> None:
        """Remove a project with its folders and with all bindings in it."""
        await self._write(lambda connection: project_rows.delete_project(connection, project_id))

    async def list_projects(self, visible: VisiblePlaces | None, after: Cursor | None, limit: int) -> Page[Project]:
        """Read up to `limit` projects after the cursor, by creation time and id."""
        return await self._read(lambda connection: project_rows.list_projects(connection, visible, after, limit))

    async def project_amounts(self, project_id: str) -> Amounts:
        """Sum up what the VMs of a project take."""
        return await self._read(lambda connection: project_rows.amounts(connection, project_id))

    async def hold_place(self, place: Place) -> Project | None:
        """Keep a project, and the folder if one is named, from being removed until the transaction ends."""
        return await self._write(lambda connection: project_rows.hold_place(connection, place))

    async def insert_folder(self, folder: Folder) -> None:
        """Add a folder."""
        await self._write(lambda connection: project_rows.insert_folder(connection, folder))

    async def get_folder(self, folder_id: str) -> Folder | None:
        """Read one folder."""
        return await self._read(lambda connection: project_rows.get_folder(connection, folder_id))

    async def update_folder(self, folder: Folder) -> Folder:
        """Write a folder that was read before, and return it with its new `version`. Raises as `update_project`."""
        return await self._write(lambda connection: project_rows.update_folder(connection, folder))

    async def delete_folders(self, folder_ids: Collection[str]) -> None:
        """Remove folders, with the bindings at them."""
        await self._write(lambda connection: project_rows.delete_folders(connection, folder_ids))

    async def list_folders(self, wanted: FolderFilter, after: Cursor | None, limit: int) -> Page[Folder]:
        """Read up to `limit` folders after the cursor, by creation time and id."""
        return await self._read(lambda connection: project_rows.list_folders(connection, wanted, after, limit))

    async def folders_of_project(self, project_id: str) -> Sequence[Folder]:
        """Every folder of a project."""
        return await self._read(lambda connection: project_rows.folders_of_project(connection, project_id))

    async def vms_in_folders(self, folder_ids: Collection[str]) -> Sequence[Vm]:
        """Every VM directly in one of the folders, by id."""
        return await self._write(lambda connection: project_rows.vms_in_folders(connection, folder_ids))

    async def insert_role(self, role: Role) -> None:
        """Add a role."""
        await self._write(lambda connection: access_rows.insert_role(connection, role))

    async def update_role(self, role: Role) -> None:
        """Write a role's description and permissions."""
        await self._write(lambda connection: access_rows.update_role(connection, role))

    async def delete_role(self, role_id: str) -> None:
        """Remove a role that nobody has."""
        await self._write(lambda connection: access_rows.delete_role(connection, role_id))

    async def stored_roles(self) -> Sequence[Role]:
        """Every role that is not built in."""
        return await self._read(access_rows.stored_roles)

    async def insert_binding(self, binding: Binding) -> Binding:
        """Give a role."""
        return await self._write(lambda connection: access_rows.insert_binding(connection, binding))

    async def delete_binding(self, binding_id: str) -> None:
        """Take a role away."""
        await self._write(lambda connection: access_rows.delete_binding(connection, binding_id))

    async def delete_bindings_of(self, subject: str) -> int:
        """Take all roles of a subject away, which is gone."""
        return await self._write(lambda connection: access_rows.delete_bindings_of(connection, subject))

    async def bindings(self) -> Sequence[Binding]:
        """Every binding, oldest first."""
        return await self._read(access_rows.bindings)
