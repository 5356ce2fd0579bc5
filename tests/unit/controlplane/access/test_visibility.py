"""Lists, counts and streams show what the caller may see, and follow when that changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import pytest

from controlplane.access.memory import AccessMemory
from controlplane.access.visibility import CallersVisibility
from controlplane.api.operation_servicer import OperationServicer
from controlplane.domain.access import VIEWER, Place
from controlplane.domain.folder import Folder
from controlplane.domain.project import Project
from controlplane.domain.vm import Vm
from controlplane.events.hub import EventHub
from controlplane.events.watch import Watches
from controlplane.services.folders import FolderService
from controlplane.services.projects import ProjectService
from controlplane.services.vm_calls import VmAccess
from controlplane.services.vms import VmService
from controlplane.services.watches import WatchService
from limiquantix.compute.v1 import folder_service_pb2 as folder_api
from limiquantix.compute.v1 import node_service_pb2 as node_api
from limiquantix.compute.v1 import operation_service_pb2 as operation_api
from limiquantix.compute.v1 import project_service_pb2 as project_api
from limiquantix.compute.v1 import vm_service_pb2 as vm_api
from limiquantix.errors import NotFound
from tests.support.access_scene import bound, called_by, user, write
from tests.support.builders import make_folder, make_project, make_vm
from tests.support.control_plane_world import World
from tests.support.identity_scene import ROOT
from tests.support.stores import add

VIK, EVE = user("vik"), user("eve")
LIMIT_S = 30


@dataclass
class Scene:
    world: World
    memory: AccessMemory
    visibility: CallersVisibility
    project: Project
    folder: Folder
    """In another project, with a folder below it that is seen too, and one beside it that is not."""
    seen: list[Vm]

    @property
    def vms(self) -> VmService:
        access = VmAccess(self.world.store, self.world.daemons, self.world.desk)
        return VmService(access, self.world.scheduler, self.world.clock, visibility=self.visibility)

    @property
    def folders(self) -> FolderService:
        return FolderService(self.world.store, self.world.clock, self.memory.refresh, self.visibility)


@pytest.fixture
async def scene(world: World) -> Scene:
    """Vik sees one project, and in another one a folder."""
    project, other = make_project(), make_project()
    folder = make_folder(project_id=other.id, name="top")
    below = make_folder(project_id=other.id, parent_id=folder.id, name="below")
    beside = make_folder(project_id=other.id, name="beside")
    await write(world.store, project, other, folder, below, beside)
    await write(
        world.store,
        bound("user:vik", VIEWER, Place(project.id)),
        bound("user:vik", VIEWER, Place(other.id, folder.id)),
    )
    seen = [
        make_vm(project_id=project.id),
        make_vm(project_id=other.id, folder_id=folder.id),
        make_vm(project_id=other.id, folder_id=below.id),
    ]
    hidden = [make_vm(project_id=other.id), make_vm(project_id=other.id, folder_id=beside.id), make_vm()]
    await add(world.store, *seen, *hidden)
    memory = AccessMemory(world.store)
    await memory.tree()
    return Scene(world, memory, CallersVisibility(memory), project, folder, seen)


async def test_vms_are_listed_and_counted_as_far_as_they_are_seen(scene: Scene) -> None:
    with called_by(VIK):
        page = await scene.vms.list(vm_api.ListVMsRequest(page_size=2))
        hidden = await scene.vms.list(vm_api.ListVMsRequest(project_id=make_project().id))
    with called_by(EVE):
        nothing = await scene.vms.list(vm_api.ListVMsRequest())

    assert ([vm.id for vm in page.items], page.total_count) == ([vm.id for vm in scene.seen[:2]], 3)
    assert (list(hidden.items), list(nothing.items), nothing.total_count, nothing.next_cursor) == ([], [], 0, None)


async def test_projects_and_folders_are_listed_as_far_as_they_are_seen(scene: Scene) -> None:
    projects = ProjectService(scene.world.store, scene.world.clock, visibility=scene.visibility)
    with called_by(VIK):
        listed = await projects.list(project_api.ListProjectsRequest())
        folders = await scene.folders.list(folder_api.ListFoldersRequest())

    assert [project.id for project in listed.items] == [scene.project.id]
    assert [(shown.path, shown.child_count) for shown in folders.items] == [("top", 1), ("top/below", 0)]
    assert folders.total_count == 2


async def test_tree_shows_what_is_seen_of_a_project(scene: Scene) -> None:
    with called_by(VIK):
        tree, root, visible = await scene.folders.tree(
            folder_api.GetFolderTreeRequest(project_id=scene.folder.project_id)
        )
    assert visible is not None
    assert {each.name for each in tree.children(root.id) if visible.shows(each.project_id, each.id)} == {"top"}
    with called_by(EVE), pytest.raises(NotFound):
        await scene.folders.tree(folder_api.GetFolderTreeRequest(project_id=scene.folder.project_id))
    with called_by(EVE), pytest.raises(NotFound):
        await scene.folders.tree(folder_api.GetFolderTreeRequest(root_id=scene.folder.id))


async def test_operations_are_listed_as_far_as_what_they_are_about_is_seen(scene: Scene) -> None:
    await scene.world.add_node()
    await scene.world.create("hidden")
    shown = await scene.world.vms.create(
        vm_api.CreateVMRequest(
            name="shown", project_id=scene.folder.project_id, folder_id=scene.folder.id, spec=make_vm().spec
        )
    )
    servicer = OperationServicer(scene.world.desk, scene.visibility)
    with called_by(VIK):
        page = await servicer.ListOperations(operation_api.ListOperationsRequest(), None)  # type: ignore[arg-type]

    assert ([each.resource_id for each in page.operations], page.total_count) == ([shown.id], 1)


async def test_watch_shows_what_is_seen_and_what_leaves_it(scene: Scene) -> None:
    store = scene.world.store
    hub = EventHub(store)
    running = asyncio.create_task(hub.run())
    watches = WatchService(Watches(store, hub), scene.visibility)
    with called_by(VIK):
        stream = watches.vms(vm_api.WatchVMsRequest())
        events = watches.events(node_api.StreamEventsRequest())
    try:
        async with asyncio.timeout(LIMIT_S), aclosing(stream), aclosing(events):
            first = [await anext(stream) for _ in scene.seen]
            following = asyncio.create_task(_next(events))
            while hub.subscription_count < 2:  # noqa: ASYNC110 - until it listens, nothing is news to it
                await asyncio.sleep(0)
            await add(store, make_vm(), new := make_vm(project_id=scene.project.id))
            hub.wake()
            added, event = await anext(stream), await following
            with called_by(ROOT):
                await scene.folders.move_vm(folder_api.MoveVMRequest(vm_id=scene.seen[1].id))
            hub.wake()
            left = await anext(stream)
    finally:
        running.cancel()

    assert {update.vm.id for update in first} == {vm.id for vm in scene.seen}
    assert (added.type, added.vm.id) == (vm_api.VMUpdate.ADDED, new.id)
    assert event.resource_id == new.id
    assert (left.type, left.vm.id) == (vm_api.VMUpdate.DELETED, scene.seen[1].id)


async def _next(stream: AsyncGenerator[node_api.SystemEvent, None]) -> node_api.SystemEvent:
    return await anext(stream)
