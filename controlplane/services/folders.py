"""Folders: the tree of a project, and where in it VMs are shown.

A folder is seen by who may read it; of those above it that somebody does not see, not even the names are told.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from controlplane.access.calling import caller_name
from controlplane.access.tree import AccessTree
from controlplane.access.visibility import EverythingVisible, Sight, Visibility
from controlplane.domain import access_errors, documents
from controlplane.domain.access import Permission, Place, VisiblePlaces
from controlplane.domain.event import FOLDER_BEFORE, Event, EventType
from controlplane.domain.folder import DEFAULT_TYPE, MAX_DEPTH, TYPES, Folder, FolderFilter, FolderTreeOf
from controlplane.domain.query import Page
from controlplane.domain.vm import DEFAULT_PROJECT_ID, Vm
from controlplane.services.page_tokens import decode_cursor, page_limit
from controlplane.services.projects import Refresh, nothing_kept
from controlplane.services.vm_calls import required
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1 import folder_service_pb2 as api
from limiquantix.compute.v1.vm_pb2 import VirtualMachine

_OF_WHAT_MOVES = ("vm.", "folder.")
"""How permissions begin that are about things in folders."""


@dataclass(frozen=True, slots=True)
class ShownFolder:
    """A folder with what the tree says of it."""

    folder: Folder
    path: str
    child_count: int


@dataclass(frozen=True, slots=True)
class FolderService:
    """The use cases of folders."""

    store: Store
    now: Callable[[], datetime]
    refresh: Refresh = nothing_kept
    visibility: Visibility = field(default_factory=EverythingVisible)

    async def create(self, request: api.CreateFolderRequest) -> ShownFolder:
        """Make a folder.

        Raises:
            NotFound: there is no such project or parent.
            InvalidArgument: the parent is one of another project, or the type is none.
            AlreadyExists: the parent has one of that name.
            FailedPrecondition: the parent is as deep as folders may be.
        """
        _require_type(request.type)
        now, actor, visible = self.now(), caller_name(), self._visible()

        async def work(tx: Transaction) -> ShownFolder:
            await tx.begin_access_change()
            parent = await _required_or_root(tx, request.parent_id)
            project_id = request.project_id or (parent.project_id if parent else DEFAULT_PROJECT_ID)
            if await tx.get_project(project_id) is None:
                raise access_errors.project_not_found(project_id)
            folder = Folder(
                id=str(uuid.uuid4()),
                project_id=project_id,
                parent_id=request.parent_id,
                name=request.name,
                type=request.type or DEFAULT_TYPE,
                created_at=now,
                updated_at=now,
                description=request.description,
                labels=dict(request.labels),
                created_by=actor,
            )
            tree = FolderTreeOf(await tx.folders_of_project(project_id))
            _require_place(tree, folder, parent, 1, "parent_id")
            await tx.insert_folder(folder)
            return await _shown(tx, folder, visible)

        return await self._changed(work)

    async def get(self, folder_id: str) -> ShownFolder:
        """Read one.

        Raises:
            NotFound: there is none of that id.
        """

        visible = self._visible()

        async def work(tx: Transaction) -> ShownFolder:
            return await _shown(tx, await _required(tx, folder_id), visible)

        return await self.store.read(work)

    async def list(self, request: api.ListFoldersRequest) -> Page[ShownFolder]:
        """Read one page of those that the caller may see, oldest first.

        Raises:
            InvalidArgument: the page token belongs to another query.
        """
        visible = self._visible()
        wanted = FolderFilter(request.project_id, request.parent_id, request.type, visible)
        after = decode_cursor(request.page_token, request)

        async def work(tx: Transaction) -> Page[ShownFolder]:
            page = await tx.list_folders(wanted, after, page_limit(request.page_size))
            trees = {
                project_id: FolderTreeOf(await tx.folders_of_project(project_id))
                for project_id in sorted({folder.project_id for folder in page.items})
            }
            shown = [shown_in(trees[folder.project_id], folder, visible) for folder in page.items]
            return Page(shown, page.next_cursor, page.total_count)

        return await self.store.read(work)

    async def tree(self, request: api.GetFolderTreeRequest) -> tuple[FolderTreeOf, Folder, VisiblePlaces | None]:
        """Read a folder, or the root of a project as a folder without a name, and all folders of its project.

        Raises:
            NotFound: there is no such project or folder, or the caller may see nothing of it.
        """
        visible = self._visible()

        async def work(tx: Transaction) -> tuple[FolderTreeOf, Folder, VisiblePlaces | None]:
            if request.root_id:
                root = await _required(tx, request.root_id)
                if not _sees(visible, root) or request.project_id not in ("", root.project_id):
                    raise access_errors.folder_not_found(request.root_id)
                return FolderTreeOf(await tx.folders_of_project(root.project_id)), root, visible
            project = await tx.get_project(request.project_id or DEFAULT_PROJECT_ID)
            folders = [] if project is None else await tx.folders_of_project(project.id)
            if project is None or not _sees_of_project(visible, project.id, folders):
                raise access_errors.project_not_found(request.project_id or DEFAULT_PROJECT_ID)
            root = Folder("", project.id, "", "", "", project.created_at, project.updated_at)
            return FolderTreeOf(folders), root, visible

        return await self.store.read(work)

    async def update(self, request: api.UpdateFolderRequest) -> ShownFolder:
        """Rename, move, describe or label a folder; what the request leaves empty stays.

        Raises:
            NotFound: there is none of that id, or no such parent.
            InvalidArgument: the parent is one of another project.
            AlreadyExists: there is one of that name in its place.
            FailedPrecondition: it would be below itself, or too deep.
            PermissionDenied: by the move others would get, or lose, what the caller does not have.
        """
        visible, sight = self._visible(), self.visibility.of_caller()

        async def work(tx: Transaction) -> ShownFolder:
            await tx.begin_access_change()
            folder = await _required(tx, request.id)
            if request.parent_id:
                parent = await _required_or_root(tx, request.parent_id)
                tree = FolderTreeOf(await tx.folders_of_project(folder.project_id))
                _require_place(tree, folder, parent, tree.height(folder.id), "parent_id")
                if folder in tree.lineage(request.parent_id):
                    raise access_errors.folder_below_itself(folder.id)
                here, there = (Place(folder.project_id, each) for each in (folder.parent_id, request.parent_id))
                await _require_may_move(tx, sight, Place(folder.project_id, folder.id), here, there)
            changed = replace(
                folder,
                name=request.name or folder.name,
                parent_id=request.parent_id or folder.parent_id,
                description=request.description or folder.description,
                labels=dict(request.labels) or folder.labels,
                updated_at=self.now(),
            )
            return await _shown(tx, await tx.update_folder(changed), visible)

        return await self._changed(work)

    async def delete(self, request: api.DeleteFolderRequest) -> None:
        """Delete a folder; with `force` also those below it, and the VMs in them are shown elsewhere.

        Raises:
            NotFound: there is none of that id, or none to move VMs to.
            InvalidArgument: VMs are to move to another project.
            FailedPrecondition: it is not empty and `force` is not set, or VMs are to move to what is deleted.
            PermissionDenied: as `update`, of the VMs.
        """
        actor, sight = caller_name(), self.visibility.of_caller()

        async def work(tx: Transaction) -> None:
            await tx.begin_access_change()
            folder = await _required(tx, request.id)
            doomed = FolderTreeOf(await tx.folders_of_project(folder.project_id)).subtree(folder.id)
            target = await _required_or_root(tx, request.move_vms_to)
            if target is not None and target.project_id != folder.project_id:
                raise access_errors.folder_elsewhere(target.id, folder.project_id, "move_vms_to")
            if target is not None and target in doomed:
                raise access_errors.folder_below_itself(target.id)
            ids = {each.id for each in doomed}
            if request.force:
                there = Place(folder.project_id, request.move_vms_to)
                for here in (Place(folder.project_id, each) for each in sorted(ids)):
                    await _require_may_move(tx, sight, here, here, there)
            await tx.delete_folders(ids)  # first: from now on nobody can put a VM into one
            vms = await tx.vms_in_folders(ids)
            if not request.force and (len(doomed) > 1 or vms):
                raise access_errors.folder_not_empty(folder.id, len(doomed) - 1, len(vms))
            for vm in vms:
                await self._move(tx, vm, "" if target is None else target.id, actor)

        await self.store.run(work)
        await self.refresh()

    async def move_vm(self, request: api.MoveVMRequest) -> VirtualMachine:
        """Show a VM in another folder of its project. Idempotent.

        Raises:
            NotFound: there is no such VM or folder.
            InvalidArgument: the folder is one of another project.
            PermissionDenied: by the move others would get, or lose, what the caller does not have.
        """
        actor, sight = caller_name(), self.visibility.of_caller()

        async def work(tx: Transaction) -> Vm:
            await tx.begin_access_change()
            vm = await required(tx, request.vm_id)
            folder = await _required_or_root(tx, request.folder_id)
            if folder is not None and folder.project_id != vm.project_id:
                raise access_errors.folder_elsewhere(folder.id, vm.project_id, "folder_id")
            if vm.folder_id == request.folder_id:
                return vm
            here, there = (Place(vm.project_id, each) for each in (vm.folder_id, request.folder_id))
            await _require_may_move(tx, sight, here, here, there)
            return await self._move(tx, vm, request.folder_id, actor)

        vm = await self.store.run(work)
        await self.refresh()
        return documents.virtual_machine(vm)

    def _visible(self) -> VisiblePlaces | None:
        return self.visibility.of_caller().places(Permission.FOLDER_READ)

    async def _move(self, tx: Transaction, vm: Vm, folder_id: str, actor: str) -> Vm:
        text = f"VM {vm.name} is shown in another folder"
        event = Event(EventType.VM_UPDATED, text, actor=actor, metadata={FOLDER_BEFORE: vm.folder_id})
        return await tx.update_vm(replace(vm, folder_id=folder_id, updated_at=self.now()), event)

    async def _changed(self, work: Callable[[Transaction], Awaitable[ShownFolder]]) -> ShownFolder:
        shown = await self.store.run(work)
        await self.refresh()
        return shown


async def _required(tx: Transaction, folder_id: str) -> Folder:
    folder = await tx.get_folder(folder_id)
    if folder is None:
        raise access_errors.folder_not_found(folder_id)
    return folder


async def _shown(tx: Transaction, folder: Folder, visible: VisiblePlaces | None) -> ShownFolder:
    return shown_in(FolderTreeOf(await tx.folders_of_project(folder.project_id)), folder, visible)


async def _required_or_root(tx: Transaction, folder_id: str) -> Folder | None:
    return await _required(tx, folder_id) if folder_id else None


def shown_in(tree: FolderTreeOf, folder: Folder, visible: VisiblePlaces | None) -> ShownFolder:
    """Make what somebody sees of a folder."""
    names = [each.name for each in reversed(tree.lineage(folder.id)) if _sees(visible, each)]
    return ShownFolder(folder, "/".join(names), len(visible_children(tree, folder.id, visible)))


def visible_children(tree: FolderTreeOf, folder_id: str, visible: VisiblePlaces | None) -> Sequence[Folder]:
    """Folders directly below one that somebody sees."""
    return [each for each in tree.children(folder_id) if _sees(visible, each)]


def _sees(visible: VisiblePlaces | None, folder: Folder) -> bool:
    return visible is None or visible.shows(folder.project_id, folder.id)


def _sees_of_project(visible: VisiblePlaces | None, project_id: str, folders: Sequence[Folder]) -> bool:
    if visible is None or project_id in visible.project_ids:
        return True
    return any(folder.id in visible.folder_ids for folder in folders)


async def _require_may_move(tx: Transaction, sight: Sight, moved: Place, here: Place, there: Place) -> None:
    """Check that nobody gets or loses by a move what the caller does not have: roles are bound to places.

    Args:
        moved: what moves, as it is before; here and there are what it stands under.
    """
    own = sight.permissions(moved)
    if own is None:
        return
    differing = AccessTree(await tx.access_facts()).differing(here, there)
    missing = {each for each in differing if each.startswith(_OF_WHAT_MOVES)} - own
    if missing:
        raise access_errors.move_grants_more(missing, moved)


def _require_type(kind: str) -> None:
    if kind and kind not in TYPES:
        raise access_errors.folder_type_unknown(kind)


def _require_place(tree: FolderTreeOf, folder: Folder, parent: Folder | None, height: int, field: str) -> None:
    """Check that a folder, with the levels it takes, may be where it is to come."""
    if parent is not None and parent.project_id != folder.project_id:
        raise access_errors.folder_elsewhere(parent.id, folder.project_id, field)
    if len(tree.lineage(parent.id) if parent else ()) + height > MAX_DEPTH:
        raise access_errors.folder_too_deep()
