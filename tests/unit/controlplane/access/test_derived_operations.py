"""What makes one thing of another, or reaches into one, asks for each that it touches, and names each on record.

The permissions are written down here once more, and taken away one at a time: an API key that has all of them but one
is refused, and so is one that has all of them, but not in every project that is touched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from google.protobuf.message import Message

from controlplane.access.calling import calling
from controlplane.access.limits import CallLimits, CallRates, Rate
from controlplane.domain.access import ADMIN
from controlplane.domain.folder import Folder
from controlplane.domain.principal import Principal, Scope
from controlplane.domain.project import Project
from controlplane.domain.vm import Vm
from limiquantix.compute.v1 import folder_service_pb2 as folder_api
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.errors import ApiError, Code
from tests.support.access_scene import METHOD, Gate, api_key_of, bound, gate, said_by, user, write
from tests.support.builders import make_folder, make_id, make_project, make_vm
from tests.support.control_plane_world import World
from tests.support.stores import add

ADA = user("ada")
UNHURRIED = Rate(1e6, 1e6)


@dataclass
class Scene:
    world: World
    home: Project
    """Of the VM."""
    away: Project
    shelf: Folder
    """At home."""
    vm: Vm
    node_id: str

    def door(self, scope: Scope) -> tuple[Gate, Principal]:
        """A gate that knows one key, of an administrator's."""
        key = api_key_of("ada", scope)
        limits = CallLimits(CallRates(people=UNHURRIED, hosts=UNHURRIED, strangers=UNHURRIED))
        return gate(self.world.store, key, limits=limits), key


@dataclass(frozen=True)
class Derived:
    """An operation: its request, what it needs, and the things it must name on record."""

    method: str
    request: Callable[[Scene], Message]
    needs: frozenset[str]
    touches: Callable[[Scene], set[str]]


def _of_vm(scene: Scene) -> set[str]:
    return {f"vm/{scene.vm.id}"}


def _to_other_project(scene: Scene) -> set[str]:
    return {f"vm/{scene.vm.id}", f"project/{scene.away.id}"}


def _cases() -> Iterator[Derived]:
    def case(
        method: str, request: Callable[[Scene], Message], *needs: str, touches: Callable[[Scene], set[str]] = _of_vm
    ) -> Derived:
        return Derived(f"{METHOD}{method}", request, frozenset(needs), touches)

    yield case("VMService/GetConsole", lambda s: api.GetConsoleRequest(vm_id=s.vm.id), "vm.console")
    yield case("VMService/CreateSnapshot", lambda s: api.CreateSnapshotRequest(vm_id=s.vm.id), "vm.snapshot")
    yield case(
        "VMService/RevertToSnapshot",
        lambda s: api.RevertToSnapshotRequest(vm_id=s.vm.id, snapshot_id=make_id()),
        *("vm.snapshot", "vm.power"),
    )
    yield case("VMService/DeleteSnapshot", lambda s: api.DeleteSnapshotRequest(vm_id=s.vm.id), "vm.snapshot")
    yield case(
        "VMService/CloneVM",
        lambda s: api.CloneVMRequest(source_vm_id=s.vm.id, project_id=s.away.id, start_on_create=True),
        *("vm.clone", "vm.create", "vm.power"),
        touches=_to_other_project,
    )
    yield case(
        "VMService/CreateVM",
        lambda s: api.CreateVMRequest(template_id=s.vm.id, project_id=s.away.id, start_on_create=True),
        *("vm.clone", "vm.create", "vm.power"),
        touches=_to_other_project,
    )
    yield case("VMService/ConvertToTemplate", lambda s: api.ConvertToTemplateRequest(vm_id=s.vm.id), "vm.update")
    yield case(
        "VMService/MigrateVM",
        lambda s: api.MigrateVMRequest(vm_id=s.vm.id, target_node_id=s.node_id),
        *("vm.migrate", "node.read"),
        touches=lambda s: {f"vm/{s.vm.id}", f"node/{s.node_id}"},
    )
    yield case(
        "FolderService/MoveVM",
        lambda s: folder_api.MoveVMRequest(vm_id=s.vm.id, folder_id=s.shelf.id),
        *("vm.update", "vm.create"),
        touches=lambda s: {f"vm/{s.vm.id}", f"folder/{s.shelf.id}"},
    )
    yield case("VMService/ExecuteScript", lambda s: api.ExecuteScriptRequest(vm_id=s.vm.id), "vm.guest")
    yield case("VMService/ReadGuestFile", lambda s: api.ReadGuestFileRequest(vm_id=s.vm.id), "vm.guest")
    yield case("VMService/SetGuestPassword", lambda s: api.SetGuestPasswordRequest(vm_id=s.vm.id), "vm.guest")
    yield case("VMService/TakeOverVM", lambda s: api.TakeOverVMRequest(id=s.vm.id), "vm.update")


CASES = [pytest.param(each, id=each.method.rpartition("/")[2]) for each in _cases()]


@pytest.fixture
async def scene(world: World) -> Scene:
    home, away = make_project(name="home"), make_project(name="away")
    shelf = make_folder(project_id=home.id)
    vm = make_vm(project_id=home.id)
    await write(world.store, home, away, shelf, bound("user:ada", ADMIN))
    await add(world.store, vm)
    return Scene(world, home, away, shelf, vm, make_id())


async def called(scene: Scene, case: Derived, scope: Scope) -> tuple[Code | None, Gate]:
    """Call with such a key; returns what it is refused with."""
    door, key = scene.door(scope)

    async def call() -> None:
        origin = said_by(key)
        await door.guard.admit(case.method, origin)
        async with door.guard.around(case.method, case.request(scene), origin):
            assert calling.get() == key

    try:
        await asyncio.create_task(call())
    except ApiError as error:
        return error.code, door
    return None, door


@pytest.mark.parametrize("case", CASES)
async def test_every_permission_is_needed_and_together_they_suffice(scene: Scene, case: Derived) -> None:
    code, door = await called(scene, case, Scope(permissions=case.needs))

    assert code is None
    (begun,) = door.trail.begun
    assert begun[:2] == (api_key_of("ada").text, case.method)
    assert set(begun[2].split(",")) >= case.touches(scene)
    for missing in case.needs:
        others = case.needs - {missing} | {"vm.read", "project.read", "folder.read"}
        code, door = await called(scene, case, Scope(permissions=others))
        assert code in (Code.PERMISSION_DENIED, Code.NOT_FOUND), missing
        assert (door.trail.begun, [method for _, method, _ in door.trail.refusals]) == ([], [case.method])


@pytest.mark.parametrize("case", CASES)
async def test_everything_that_is_touched_must_be_in_reach(scene: Scene, case: Derived) -> None:
    everywhere = {scene.home.id, scene.away.id}
    reached = {each for each in everywhere if await is_reached(scene, case, everywhere - {each})}

    if "node.read" in case.needs:
        assert await is_reached(scene, case, everywhere) is False, "nodes are the cluster's"
    else:
        assert await is_reached(scene, case, everywhere)
        of_two = case.touches is _to_other_project
        assert reached == (set() if of_two else {scene.away.id})


async def is_reached(scene: Scene, case: Derived, project_ids: set[str]) -> bool:
    """Tell whether a key passes that has everything, but in some projects only."""
    code, _ = await called(scene, case, Scope(frozenset(project_ids)))
    return code is None
