"""FolderService on the wire: decode, call the service, encode."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from controlplane.domain.access import VisiblePlaces
from controlplane.domain.documents import timestamp
from controlplane.domain.folder import Folder, FolderTreeOf
from controlplane.services.folders import FolderService, ShownFolder, shown_in, visible_children
from controlplane.services.page_tokens import encode_cursor
from limiquantix.compute.v1 import folder_pb2, vm_pb2
from limiquantix.compute.v1 import folder_service_pb2 as api
from limiquantix.compute.v1.folder_service_pb2_grpc import FolderServiceServicer
from limiquantix.rpc.pipeline import CallContext


class FolderServicer(FolderServiceServicer):
    """All methods of the contract."""

    def __init__(self, folders: FolderService) -> None:
        self._folders = folders

    async def CreateFolder(self, request: api.CreateFolderRequest, context: CallContext) -> folder_pb2.Folder:
        return to_message(await self._folders.create(request))

    async def GetFolder(self, request: api.GetFolderRequest, context: CallContext) -> folder_pb2.Folder:
        return to_message(await self._folders.get(request.id))

    async def ListFolders(self, request: api.ListFoldersRequest, context: CallContext) -> api.ListFoldersResponse:
        page = await self._folders.list(request)
        return api.ListFoldersResponse(
            folders=[to_message(shown) for shown in page.items],
            next_page_token=encode_cursor(page.next_cursor, request),
            total_count=page.total_count,
        )

    async def UpdateFolder(self, request: api.UpdateFolderRequest, context: CallContext) -> folder_pb2.Folder:
        return to_message(await self._folders.update(request))

    async def DeleteFolder(self, request: api.DeleteFolderRequest, context: CallContext) -> Empty:
        await self._folders.delete(request)
        return Empty()

    async def GetFolderTree(self, request: api.GetFolderTreeRequest, context: CallContext) -> folder_pb2.FolderTree:
        tree, root, visible = await self._folders.tree(request)
        return _branch(tree, root, visible, request.type, request.depth or -1)

    async def MoveVM(self, request: api.MoveVMRequest, context: CallContext) -> vm_pb2.VirtualMachine:
        return await self._folders.move_vm(request)


def to_message(shown: ShownFolder) -> folder_pb2.Folder:
    """Encode a folder."""
    folder = shown.folder
    return folder_pb2.Folder(
        id=folder.id,
        name=folder.name,
        parent_id=folder.parent_id,
        project_id=folder.project_id,
        type=folder.type,
        description=folder.description,
        path=shown.path,
        child_count=shown.child_count,
        labels=folder.labels,
        created_at=timestamp(folder.created_at),
        updated_at=timestamp(folder.updated_at),
        created_by=folder.created_by,
    )


def _branch(
    tree: FolderTreeOf, folder: Folder, visible: VisiblePlaces | None, kind: str, level_count: int
) -> folder_pb2.FolderTree:
    """Encode a folder with what is below it; a negative `level_count` is without end, which is not far."""
    message = folder_pb2.FolderTree(folder=to_message(shown_in(tree, folder, visible)))
    if level_count:
        for child in visible_children(tree, folder.id, visible):
            if kind in ("", child.type):
                message.children.append(_branch(tree, child, visible, kind, level_count - 1))
    return message
