"""Projects, folders, roles and bindings as the store keeps them, on every kind of database."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.domain.access import ADMIN, VIEWER, Place, Role, VisiblePlaces
from controlplane.domain.folder import FolderFilter
from controlplane.domain.operation import OperationFilter
from controlplane.domain.project import Amounts, Project
from controlplane.domain.query import VmFilter
from controlplane.domain.vm import DEFAULT_PROJECT_ID
from controlplane.state.interface import Store
from limiquantix.compute.v1.vm_pb2 import DiskDevice
from limiquantix.errors import Aborted, AlreadyExists, Reason
from tests.support.access_scene import bound, write
from tests.support.builders import START_OF_TIME, make_folder, make_id, make_project, make_vm
from tests.support.stores import add

ROLE = Role("r1", "consoles", frozenset({"vm.console"}), "d", created_at=START_OF_TIME, created_by="user:a")


async def revision(store: Store) -> int:
    return await store.read(lambda tx: tx.access_revision())


async def test_default_project_is_there_from_the_start_without_a_quota(store: Store) -> None:
    project = await store.read(lambda tx: tx.get_project(DEFAULT_PROJECT_ID))

    assert project is not None
    assert (project.name, project.quota) == ("default", Amounts())


async def test_records_come_back_as_they_were_written(store: Store) -> None:
    project = make_project(quota=Amounts(1, 2, 3, 4), description="d", created_by="user:a")
    folder = make_folder(project_id=project.id, labels={"a": "b"}, description="d", created_by="user:a")
    binding = bound("user:alice", VIEWER, Place(project.id, folder.id))
    await write(store, project, folder, binding)
    await store.run(lambda tx: tx.insert_role(ROLE))

    assert await store.read(lambda tx: tx.get_project(project.id)) == project
    assert await store.read(lambda tx: tx.get_folder(folder.id)) == folder
    assert await store.read(lambda tx: tx.stored_roles()) == [ROLE]
    assert await store.read(lambda tx: tx.bindings()) == [binding]


async def test_facts_are_everything_at_one_revision(store: Store) -> None:
    before = await revision(store)
    project = make_project()
    folder = make_folder(project_id=project.id)
    await write(store, project, folder, bound("user:alice", ADMIN))

    facts = await store.read(lambda tx: tx.access_facts())

    assert facts.revision == before + 1
    assert facts.projects == {DEFAULT_PROJECT_ID: "default", project.id: project.name}
    assert facts.folders[folder.id].project_id == project.id
    assert [each.subject for each in facts.bindings] == ["user:id-of-alice"]


async def test_change_that_fails_leaves_the_revision(store: Store) -> None:
    before = await revision(store)
    with pytest.raises(AlreadyExists) as caught:
        await write(store, make_project(name="default"))

    assert caught.value.reason == Reason.PROJECT_NAME_TAKEN
    assert await revision(store) == before


async def test_folder_names_are_unique_in_their_place_only(store: Store) -> None:
    first = make_folder(name="a")
    await write(store, first, make_folder(name="a", parent_id=first.id), make_folder(name="a", project_id=make_id()))

    with pytest.raises(AlreadyExists) as caught:
        await write(store, make_folder(name="a"))
    assert caught.value.reason == Reason.FOLDER_NAME_TAKEN


async def test_role_names_are_unique(store: Store) -> None:
    await store.run(lambda tx: tx.insert_role(ROLE))
    with pytest.raises(AlreadyExists):
        await store.run(lambda tx: tx.insert_role(replace(ROLE, id="r2")))


async def test_stale_record_is_not_written(store: Store) -> None:
    project, folder = make_project(), make_folder()
    await write(store, project, folder)
    await store.run(lambda tx: tx.update_project(replace(project, name="new")))
    await store.run(lambda tx: tx.update_folder(replace(folder, name="new")))

    with pytest.raises(Aborted):
        await store.run(lambda tx: tx.update_project(replace(project, name="newer")))
    with pytest.raises(Aborted):
        await store.run(lambda tx: tx.update_folder(replace(folder, name="newer")))


async def test_same_binding_twice_is_the_first_one(store: Store) -> None:
    first, again = bound("user:alice", ADMIN), bound("user:alice", ADMIN)
    await write(store, first)

    assert await store.run(lambda tx: tx.insert_binding(again)) == first


async def test_bindings_go_with_their_place_and_with_their_subject(store: Store) -> None:
    project = make_project()
    folder, other = make_folder(project_id=project.id), make_folder()
    gone = [bound("user:a", ADMIN, Place(project.id)), bound("user:a", ADMIN, Place(project.id, folder.id))]
    kept, of_folder = bound("user:a", ADMIN), bound("user:b", ADMIN, Place(DEFAULT_PROJECT_ID, other.id))
    await write(store, project, folder, other, *gone, kept, of_folder)

    await store.run(lambda tx: tx.delete_project(project.id))
    assert {each.id for each in await store.read(lambda tx: tx.bindings())} == {kept.id, of_folder.id}
    assert await store.read(lambda tx: tx.get_folder(folder.id)) is None
    await store.run(lambda tx: tx.delete_folders({other.id}))
    assert await store.run(lambda tx: tx.delete_bindings_of(kept.subject)) == 1
    assert await store.read(lambda tx: tx.bindings()) == []


async def test_amounts_are_of_all_vms_of_the_project(store: Store) -> None:
    project = make_project()
    vms = [make_vm(cores=cores, project_id=project.id) for cores in (1, 4)]
    vms[0].spec.disks.extend([DiskDevice(id="a", size_gib=3), DiskDevice(id="b", size_gib=4)])
    await write(store, project)
    await add(store, *vms, make_vm(cores=8))

    assert await store.read(lambda tx: tx.project_amounts(project.id)) == Amounts(2, 5, 2 * 128 * 2**20, 7)
    assert await store.read(lambda tx: tx.project_amounts(make_id())) == Amounts()


async def test_place_is_held_only_if_all_of_it_is_there(store: Store) -> None:
    project: Project = make_project(quota=Amounts(vm_count=1))
    folder = make_folder(project_id=project.id)
    await write(store, project, folder)

    async def held(place: Place) -> Project | None:
        return await store.run(lambda tx: tx.hold_place(place))

    assert await held(Place(project.id)) == await held(Place(project.id, folder.id)) == project
    assert await held(Place(DEFAULT_PROJECT_ID, folder.id)) is None
    assert await held(Place(project.id, make_id())) is None
    assert await held(Place(make_id())) is None


async def test_place_of_a_vm_is_known_and_after_its_end_its_project(store: Store) -> None:
    vm = make_vm(folder_id="f")
    await add(store, vm)
    assert await store.read(lambda tx: tx.place_of_vm(vm.id)) == Place(vm.project_id, "f")

    await store.run(lambda tx: tx.delete_vm(vm.id))

    assert await store.read(lambda tx: tx.place_of_vm(vm.id)) is None
    assert await store.read(lambda tx: tx.last_place_of_vm(vm.id)) == Place(vm.project_id)
    assert await store.read(lambda tx: tx.last_place_of_vm(make_id())) is None


async def test_lists_show_and_count_what_is_visible_on_every_page(store: Store) -> None:
    project, hidden = make_project(), make_project()
    folder = make_folder(project_id=hidden.id)
    await write(store, project, hidden, folder, make_folder(project_id=hidden.id), make_folder(project_id=project.id))
    seen = [make_vm(project_id=project.id), make_vm(project_id=hidden.id, folder_id=folder.id)]
    await add(store, seen[0], make_vm(project_id=hidden.id), seen[1], make_vm(project_id=hidden.id, folder_id="other"))
    visible = VisiblePlaces(frozenset({project.id}), frozenset({folder.id}))

    first = await store.read(lambda tx: tx.list_vms(VmFilter(visible=visible), None, 1))
    second = await store.read(lambda tx: tx.list_vms(VmFilter(visible=visible), first.next_cursor, 1))

    assert [each.id for page in (first, second) for each in page.items] == [each.id for each in seen]
    assert (first.total_count, second.total_count, second.next_cursor) == (2, 2, None)
    folders = await store.read(lambda tx: tx.list_folders(FolderFilter(visible=visible), None, 10))
    assert (folders.total_count, {each.project_id for each in folders.items}) == (2, {project.id, hidden.id})
    projects = await store.read(lambda tx: tx.list_projects(visible, None, 10))
    assert [each.id for each in projects.items] == [project.id]
    nothing = VisiblePlaces()
    assert (await store.read(lambda tx: tx.list_vms(VmFilter(visible=nothing), None, 9))).total_count == 0
    assert (await store.read(lambda tx: tx.list_folders(FolderFilter(visible=nothing), None, 9))).total_count == 0
    assert (await store.read(lambda tx: tx.list_operations(OperationFilter(visible=nothing), None, 9))).total_count == 0


async def test_vms_of_folders_are_those_directly_in_them(store: Store) -> None:
    vms = [make_vm(folder_id=folder_id) for folder_id in ("a", "b", "c", "")]
    await add(store, *vms)

    found = await store.run(lambda tx: tx.vms_in_folders({"a", "b"}))

    assert {vm.id for vm in found} == {vms[0].id, vms[1].id}
