"""What a transaction does with projects, folders, roles and who has them; a part of `Transaction`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from controlplane.domain.access import AccessFacts, Binding, Place, Role, VisiblePlaces
from controlplane.domain.folder import Folder, FolderFilter
from controlplane.domain.project import Amounts, Project
from controlplane.domain.query import Cursor, Page
from controlplane.domain.vm import Vm


class AccessTransaction(Protocol):
    """Projects, folders, roles, bindings.

    Whoever changes any of them, or moves VMs between folders, calls `begin_access_change` before it reads.
    """

    async def begin_access_change(self) -> int:
        """Hold the right to change the tree and the roles until the transaction ends; returns the new revision."""
        ...

    async def access_revision(self) -> int:
        """Read how often anything of it changed; one small query."""
        ...

    async def access_facts(self) -> AccessFacts:
        """Read everything that decisions rest on."""
        ...

    async def place_of_vm(self, vm_id: str) -> Place | None:
        """Say where a VM is; None if there is none of that id."""
        ...

    async def last_place_of_vm(self, vm_id: str) -> Place | None:
        """Say to which project a VM belonged that is gone; None if the log knows nothing of one."""
        ...

    # -- projects

    async def insert_project(self, project: Project) -> None:
        """Add a project.

        Raises:
            AlreadyExists: there is one of that name.
        """
        ...

    async def get_project(self, project_id: str) -> Project | None:
        """Read one project; None if there is none."""
        ...

    async def update_project(self, project: Project) -> Project:
        """Write a project that was read before, and return it with its new `version`.

        Raises:
            AlreadyExists: there is another one of that name.
            Aborted: it was changed since.
        """
        ...

    async def delete_project(self, project_id: str) -> None:
        """Remove a project with its folders and with all bindings in it; nobody can add a VM to it from now on."""
        ...

    async def list_projects(self, visible: VisiblePlaces | None, after: Cursor | None, limit: int) -> Page[Project]:
        """Read up to `limit` projects after the cursor, by creation time and id; None shows all."""
        ...

    async def project_amounts(self, project_id: str) -> Amounts:
        """Sum up what the VMs of a project take."""
        ...

    async def hold_place(self, place: Place) -> Project | None:
        """Keep a project, and the folder if one is named, from being removed until the transaction ends.

        If the project has a quota, others who ask wait until then, so that what is summed up afterwards holds. Asked
        last in a transaction, after nodes and VMs are held.

        Returns:
            The project; None if it, or the folder in it, does not exist.
        """
        ...

    # -- folders

    async def insert_folder(self, folder: Folder) -> None:
        """Add a folder.

        Raises:
            AlreadyExists: there is one of that name in the same place.
        """
        ...

    async def get_folder(self, folder_id: str) -> Folder | None:
        """Read one folder; None if there is none."""
        ...

    async def update_folder(self, folder: Folder) -> Folder:
        """Write a folder that was read before, and return it with its new `version`. Raises as `update_project`."""
        ...

    async def delete_folders(self, folder_ids: Collection[str]) -> None:
        """Remove folders, with the bindings at them."""
        ...

    async def list_folders(self, wanted: FolderFilter, after: Cursor | None, limit: int) -> Page[Folder]:
        """Read up to `limit` folders after the cursor, by creation time and id."""
        ...

    async def folders_of_project(self, project_id: str) -> Sequence[Folder]:
        """Every folder of a project."""
        ...

    async def vms_in_folders(self, folder_ids: Collection[str]) -> Sequence[Vm]:
        """Every VM directly in one of the folders, by id; held until the transaction ends."""
        ...

    # -- roles

    async def insert_role(self, role: Role) -> None:
        """Add a role.

        Raises:
            AlreadyExists: there is one of that name.
        """
        ...

    async def update_role(self, role: Role) -> None:
        """Write a role's description and permissions."""
        ...

    async def delete_role(self, role_id: str) -> None:
        """Remove a role that nobody has."""
        ...

    async def stored_roles(self) -> Sequence[Role]:
        """Every role that is not built in."""
        ...

    async def insert_binding(self, binding: Binding) -> Binding:
        """Give a role; returns the binding that there was already, if the subject had the role at that place."""
        ...

    async def delete_binding(self, binding_id: str) -> None:
        """Take a role away."""
        ...

    async def delete_bindings_of(self, subject: str) -> int:
        """Take all roles of a subject away, which is gone; returns how many."""
        ...

    async def bindings(self) -> Sequence[Binding]:
        """Every binding, oldest first."""
        ...
