"""Projects, folders and roles: made, changed, moved and taken away, and what is refused."""

from __future__ import annotations

import pytest

from controlplane.access.memory import AccessMemory
from controlplane.access.visibility import CallersVisibility
from controlplane.api.folder_servicer import FolderServicer
from controlplane.domain.access import ADMIN, BUILT_IN_ROLES, OPERATOR, VIEWER, Place
from controlplane.domain.folder import MAX_DEPTH
from controlplane.domain.project import Amounts
from controlplane.domain.vm import DEFAULT_PROJECT_ID
from controlplane.services.folders import FolderService, ShownFolder
from controlplane.services.projects import ProjectService
from controlplane.services.roles import RoleService
from controlplane.state.interface import Transaction
from limiquantix.compute.v1 import folder_service_pb2 as folder_api
from limiquantix.compute.v1 import project_service_pb2 as project_api
from limiquantix.compute.v1 import role_service_pb2 as role_api
from limiquantix.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Reason
from tests.support.access_scene import bound, called_by, user, write
from tests.support.builders import make_id, make_project, make_vm
from tests.support.control_plane_world import World
from tests.support.stores import add

ADA, PIA = user("ada"), user("pia")
"""Admin of the cluster, and of one project."""


async def id_of(tx: Transaction, name: str) -> str | None:
    return None if name == "nobody" else f"id-of-{name}"


@pytest.fixture
def projects(world: World) -> ProjectService:
    return ProjectService(world.store, world.clock)


@pytest.fixture
def folders(world: World) -> FolderService:
    return FolderService(world.store, world.clock)


@pytest.fixture
async def roles(world: World) -> RoleService:
    """Asked within calls, by people who have what is bound here."""
    await write(world.store, bound("user:ada", ADMIN))
    memory = AccessMemory(world.store)
    await memory.tree()
    return RoleService(world.store, world.clock, id_of, memory.refresh, CallersVisibility(memory))


# -- projects


async def test_project_is_made_changed_and_deleted(projects: ProjectService) -> None:
    quota = project_api.ProjectQuota(vm_count=2, memory_mib=1024)
    with called_by(ADA):
        made = await projects.create(project_api.CreateProjectRequest(name="shop", quota=quota))
    assert (made.quota, made.created_by) == (Amounts(2, 0, 2**30, 0), "user:ada")

    renamed = await projects.update(project_api.UpdateProjectRequest(id=made.id, name="store"))
    assert (renamed.name, renamed.quota) == ("store", made.quota)
    unlimited = await projects.update(project_api.UpdateProjectRequest(id=made.id, quota=project_api.ProjectQuota()))
    assert (unlimited.name, unlimited.quota) == ("store", Amounts())
    await projects.delete(made.id)
    with pytest.raises(NotFound):
        await projects.get(made.id)


async def test_project_with_vms_stays_and_the_default_one_always(projects: ProjectService, world: World) -> None:
    project = make_project()
    await write(world.store, project)
    await add(world.store, make_vm(project_id=project.id))

    with pytest.raises(FailedPrecondition) as caught:
        await projects.delete(project.id)
    assert caught.value.reason == Reason.PROJECT_NOT_EMPTY
    assert (await projects.get(project.id))[1].vm_count == 1
    with pytest.raises(FailedPrecondition) as caught:
        await projects.delete(DEFAULT_PROJECT_ID)
    assert caught.value.reason == Reason.PROJECT_IS_DEFAULT


async def test_project_names_are_unique(projects: ProjectService) -> None:
    with pytest.raises(AlreadyExists):
        await projects.create(project_api.CreateProjectRequest(name="default"))


# -- folders


async def make(
    folders: FolderService, name: str, parent: ShownFolder | None = None, project_id: str = ""
) -> ShownFolder:
    parent_id = "" if parent is None else parent.folder.id
    return await folders.create(folder_api.CreateFolderRequest(name=name, parent_id=parent_id, project_id=project_id))


async def test_folders_know_their_path_and_children(folders: FolderService) -> None:
    top = await make(folders, "top")
    below = await make(folders, "below", top)

    assert (below.path, below.folder.project_id, below.folder.type) == ("top/below", DEFAULT_PROJECT_ID, "vm")
    assert (await folders.get(top.folder.id)).child_count == 1
    tree = await FolderServicer(folders).GetFolderTree(folder_api.GetFolderTreeRequest(), None)  # type: ignore[arg-type]
    assert [child.folder.path for child in tree.children] == ["top"]
    assert [child.folder.path for child in tree.children[0].children] == ["top/below"]
    shallow = await FolderServicer(folders).GetFolderTree(folder_api.GetFolderTreeRequest(depth=1), None)  # type: ignore[arg-type]
    assert not shallow.children[0].children


async def test_folder_is_refused_where_it_cannot_be(folders: FolderService, world: World) -> None:
    project = make_project()
    await write(world.store, project)
    top = await make(folders, "top")

    with pytest.raises(AlreadyExists):
        await make(folders, "top")
    with pytest.raises(InvalidArgument):
        await make(folders, "x", top, project.id)
    with pytest.raises(NotFound):
        await make(folders, "x", project_id=make_id())
    with pytest.raises(InvalidArgument):
        await folders.create(folder_api.CreateFolderRequest(name="x", type="cellar"))


async def test_folder_moves_but_never_below_itself(folders: FolderService) -> None:
    top, other = await make(folders, "top"), await make(folders, "other")
    below = await make(folders, "below", top)

    moved = await folders.update(folder_api.UpdateFolderRequest(id=top.folder.id, parent_id=other.folder.id))
    assert moved.path == "other/top"
    assert (await folders.get(below.folder.id)).path == "other/top/below"
    for target in (top, below):
        with pytest.raises(FailedPrecondition) as caught:
            await folders.update(folder_api.UpdateFolderRequest(id=top.folder.id, parent_id=target.folder.id))
        assert caught.value.reason == Reason.FOLDER_MOVE_REFUSED


async def test_folders_are_not_deeper_than_they_may_be(folders: FolderService) -> None:
    deepest = await make(folders, "0")
    for level in range(1, MAX_DEPTH):
        deepest = await make(folders, str(level), deepest)
    with pytest.raises(FailedPrecondition):
        await make(folders, "one more", deepest)
    pair = await make(folders, "pair")
    await make(folders, "of it", pair)
    parent_id = deepest.folder.parent_id
    with pytest.raises(FailedPrecondition):
        await folders.update(folder_api.UpdateFolderRequest(id=pair.folder.id, parent_id=parent_id))


async def test_folder_with_something_in_it_is_deleted_by_force_and_its_vms_are_moved(
    folders: FolderService, world: World
) -> None:
    top, target = await make(folders, "top"), await make(folders, "target")
    below = await make(folders, "below", top)
    vms = [make_vm(folder_id=top.folder.id), make_vm(folder_id=below.folder.id)]
    await add(world.store, *vms)

    with pytest.raises(FailedPrecondition) as caught:
        await folders.delete(folder_api.DeleteFolderRequest(id=top.folder.id))
    assert (caught.value.metadata["folder_count"], caught.value.metadata["vm_count"]) == ("1", "2")
    with pytest.raises(FailedPrecondition):
        await folders.delete(folder_api.DeleteFolderRequest(id=top.folder.id, force=True, move_vms_to=below.folder.id))
    await folders.delete(folder_api.DeleteFolderRequest(id=top.folder.id, force=True, move_vms_to=target.folder.id))

    stored = [await world.stored(vm.id) for vm in vms]
    assert [vm and vm.folder_id for vm in stored] == [target.folder.id] * 2
    with pytest.raises(NotFound):
        await folders.get(below.folder.id)


async def test_vm_is_moved_within_its_project_only(folders: FolderService, world: World) -> None:
    project, vm = make_project(), make_vm()
    await write(world.store, project)
    await add(world.store, vm)
    here, elsewhere = await make(folders, "here"), await make(folders, "elsewhere", project_id=project.id)
    move = folder_api.MoveVMRequest(vm_id=vm.id, folder_id=here.folder.id)

    first, again = await folders.move_vm(move), await folders.move_vm(move)
    assert first.folder_id == here.folder.id
    assert again == first
    with pytest.raises(InvalidArgument):
        await folders.move_vm(folder_api.MoveVMRequest(vm_id=vm.id, folder_id=elsewhere.folder.id))


# -- roles


def bind(role: str, subject: str = "user:bob", project_id: str = "") -> role_api.BindRoleRequest:
    return role_api.BindRoleRequest(subject=subject, role_id=role, project_id=project_id)


async def test_role_is_given_once_to_the_user_behind_the_name(roles: RoleService) -> None:
    with called_by(ADA):
        first, _ = await roles.bind(bind(VIEWER))
        again, role = await roles.bind(bind(VIEWER))

    assert first == again
    assert (first.subject, first.subject_name, role.id) == ("user:id-of-bob", "user:bob", VIEWER)
    with called_by(ADA), pytest.raises(NotFound) as caught:
        await roles.bind(bind(VIEWER, "user:nobody"))
    assert caught.value.reason == Reason.SUBJECT_NOT_FOUND


async def test_nobody_gives_or_takes_what_they_do_not_have(roles: RoleService, world: World) -> None:
    project = make_project()
    below, above = bound("user:bob", ADMIN, Place(project.id)), bound("user:bob", VIEWER)
    await write(world.store, project, bound("user:pia", ADMIN, Place(project.id)), below, above)
    await roles.refresh()
    with called_by(PIA):
        await roles.bind(bind(OPERATOR, project_id=project.id))
        await roles.unbind(below.id)
        for refused in (
            roles.bind(bind(VIEWER)),
            roles.unbind(above.id),
            roles.create(role_api.CreateRoleRequest(name="r", permissions=["vm.read"])),
        ):
            with pytest.raises(PermissionDenied) as caught:
                await refused
            assert caught.value.reason == Reason.ROLE_GRANTS_MORE


async def test_role_of_ones_own_is_made_changed_and_deleted(roles: RoleService) -> None:
    with called_by(ADA):
        made = await roles.create(role_api.CreateRoleRequest(name="consoles", permissions=["vm.console"]))
        binding, _ = await roles.bind(bind("consoles"))
        changed = await roles.update(role_api.UpdateRoleRequest(id="consoles", permissions=["vm.read"]))
        assert (await roles.get(made.id)).permissions == changed.permissions == {"vm.read"}
        with pytest.raises(FailedPrecondition) as caught:
            await roles.delete("consoles")
        assert caught.value.reason == Reason.ROLE_IN_USE
        await roles.unbind(binding.id)
        await roles.delete("consoles")
        with pytest.raises(NotFound):
            await roles.get(made.id)


async def test_roles_that_are_built_in_stay_as_they_are(roles: RoleService) -> None:
    with called_by(ADA):
        for name in BUILT_IN_ROLES:
            with pytest.raises(FailedPrecondition):
                await roles.update(role_api.UpdateRoleRequest(id=name, permissions=["vm.read"]))
            with pytest.raises(FailedPrecondition):
                await roles.delete(name)
            with pytest.raises(AlreadyExists):
                await roles.create(role_api.CreateRoleRequest(name=name, permissions=["vm.read"]))
        with pytest.raises(InvalidArgument, match=r"vm\.teleport"):
            await roles.create(role_api.CreateRoleRequest(name="r", permissions=["vm.teleport"]))
    assert [role.name for role in await roles.list()] == list(BUILT_IN_ROLES)


async def test_bindings_are_listed_by_place(roles: RoleService, world: World) -> None:
    project = make_project()
    await write(world.store, project, bound("group:ops", OPERATOR, Place(project.id)))

    at_cluster = await roles.bindings(role_api.ListRoleBindingsRequest())
    in_project = await roles.bindings(role_api.ListRoleBindingsRequest(project_id=project.id))

    assert [binding.subject_name for binding, _ in at_cluster] == ["user:ada"]
    assert [(binding.subject_name, role.name) for binding, role in in_project] == [("group:ops", OPERATOR)]
