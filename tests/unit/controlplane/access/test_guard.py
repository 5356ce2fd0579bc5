"""The gate: who is let in, what is on record, and that nothing gets past it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from controlplane.access.calling import NobodyCallsError, caller, caller_name, calling
from controlplane.access.limits import CallLimits, CallRates, Rate
from controlplane.access.methods import METHODS, Audience, Target
from controlplane.access.naming import MAX_RULED_VMS
from controlplane.domain.access import ADMIN, BUILT_IN_ROLES, OPERATOR, VIEWER
from controlplane.domain.vm import DEFAULT_PROJECT_ID
from limiquantix.compute.v1 import audit_service_pb2 as audit_api
from limiquantix.compute.v1 import auth_service_pb2 as auth_api
from limiquantix.compute.v1 import folder_service_pb2 as folder_api
from limiquantix.compute.v1 import node_service_pb2 as node_api
from limiquantix.compute.v1 import placement_service_pb2 as placement_api
from limiquantix.compute.v1 import project_service_pb2 as project_api
from limiquantix.compute.v1 import role_service_pb2 as role_api
from limiquantix.compute.v1 import vm_service_pb2 as vm_api
from limiquantix.compute.v1.vm_pb2 import PlacementPolicy, VmAffinityRule, VmSpec
from limiquantix.errors import ApiError, Code, FailedPrecondition, NotFound, Reason, Unauthenticated
from limiquantix.rpc.pipeline import CallPipeline
from tests.support.access_scene import (
    BY_NAME,
    METHOD,
    FakeOrigin,
    Gate,
    bound,
    called_by,
    gate,
    node,
    said_by,
    user,
    write,
)
from tests.support.builders import make_folder, make_id, make_project, make_vm
from tests.support.control_plane_world import World
from tests.support.stores import add

ADA, EVE, VIK, OLA, HOST = user("ada"), user("eve"), user("vik"), user("ola"), node("n")
NOBODY = FakeOrigin()


class Unobserved:
    def call_finished(self, method: str, code: int, duration_s: float) -> None:
        """Of no interest here."""


async def call(
    gate: Gate,
    origin: FakeOrigin,
    method: str,
    request: Message,
    handler: Callable[[], Awaitable[object]] | None = None,
) -> str:
    """Make a call through the pipeline; returns the reason that it was refused with, "" if it was not."""

    async def answer() -> object:
        return caller_name()

    pipeline = CallPipeline({}, Unobserved(), gate.guard)
    try:
        await asyncio.create_task(pipeline.unary(method, request, handler or answer, origin=origin, filled=False))
    except ApiError as error:
        return error.reason
    return ""


@pytest.fixture
async def door(world: World) -> Gate:
    await write(world.store, bound("user:ada", ADMIN), bound("user:vik", VIEWER), bound("user:ola", OPERATOR))
    unhurried = Rate(1e6, 1e6)
    limits = CallLimits(CallRates(people=unhurried, hosts=unhurried, strangers=unhurried))
    return gate(world.store, ADA, EVE, VIK, OLA, HOST, limits=limits)


def filled_request(method: str) -> Message:
    """A request of a method that names things which do not exist."""
    request = GetMessageClass(BY_NAME[method].input_type)()
    for need in METHODS[method].needs:
        for name in (need.field, need.only_if):
            field = request.DESCRIPTOR.fields_by_name.get(name)
            if field is not None and field.type == field.TYPE_STRING and not field.is_repeated:
                setattr(request, name, make_id())
    return request


async def test_every_method_for_every_kind_of_caller(door: Gate) -> None:
    """What a caller of each kind gets, by the table; what roles hold is tested on its own."""
    for method, rule in METHODS.items():
        request = filled_request(method)
        answers = [await call(door, origin, method, request) for origin in (NOBODY, said_by(HOST), said_by(ADA))]
        with_nothing = await call(door, said_by(EVE), method, request)
        if rule.audience is Audience.ANYBODY:
            assert (method, *answers, with_nothing) == (method, "", "", "", "")
        elif rule.audience is Audience.HOSTS:
            unsuited = Reason.CALLER_UNSUITED
            assert (method, *answers, with_nothing) == (method, Reason.NOT_LOGGED_IN, "", unsuited, unsuited)
        else:
            assert (method, *answers) == (method, Reason.NOT_LOGGED_IN, Reason.CALLER_UNSUITED, "")
            is_hidden = with_nothing == Reason.PERMISSION_MISSING or with_nothing.endswith("_NOT_FOUND")
            assert (method, is_hidden) == (method, bool(needs_of(method, request)))


async def test_viewer_and_operator_get_what_their_roles_hold(door: Gate) -> None:
    """At the cluster, so that nothing is hidden from them; what does not exist is not left to the service."""
    for method, rule in METHODS.items():
        if rule.audience is not Audience.PEOPLE:
            continue
        request = filled_request(method)
        for who, role in ((VIK, VIEWER), (OLA, OPERATOR)):
            missing = needs_of(method, request) - BUILT_IN_ROLES[role].permissions
            reason = await call(door, said_by(who), method, request)
            expected = {"", Reason.PROJECT_NOT_FOUND, Reason.FOLDER_NOT_FOUND}
            if missing:
                expected = {Reason.PERMISSION_MISSING, *(each for each in Reason if each.endswith("_NOT_FOUND"))}
            assert reason in expected, (method, role, missing)


def needs_of(method: str, request: Message) -> frozenset[str]:
    """Permissions that a request needs, wherever."""
    filled = {field.name for field, _ in request.ListFields()}
    return frozenset(
        str(need.permission)
        for need in METHODS[method].needs
        if need.only_if in filled | {""} and need.unless not in filled
    )


async def test_changes_are_on_record_with_their_outcome_and_reads_are_not(door: Gate, world: World) -> None:
    vm = make_vm()
    await add(world.store, vm)

    async def fail() -> object:
        raise FailedPrecondition(Reason.VM_STATE_FORBIDS, "it runs")

    async def burst() -> object:
        raise ValueError("a defect")

    start = METHOD + "VMService/StartVM"
    assert await call(door, said_by(ADA), METHOD + "VMService/GetVM", vm_api.GetVMRequest(id=vm.id)) == ""
    assert door.trail.begun == []
    assert await call(door, said_by(ADA), start, vm_api.StartVMRequest(id=vm.id)) == ""
    assert await call(door, said_by(ADA), start, vm_api.StartVMRequest(id=vm.id), fail) == Reason.VM_STATE_FORBIDS
    assert await call(door, said_by(ADA), start, vm_api.StartVMRequest(id=vm.id), burst) == Reason.INTERNAL

    assert door.trail.begun == [("user:ada", start, f"vm/{vm.id},project/{vm.project_id}")] * 3
    assert door.trail.ended == [
        ("record-1", 0),
        ("record-2", Code.FAILED_PRECONDITION),
        ("record-3", Code.INTERNAL),
    ]


async def test_refusals_are_on_record(door: Gate) -> None:
    get = vm_api.GetVMRequest(id=make_id())
    await call(door, said_by(EVE), METHOD + "VMService/GetVM", get)
    await call(door, NOBODY, METHOD + "VMService/GetVM", get)
    await call(door, FakeOrigin((("as", "mallory"),)), METHOD + "VMService/GetVM", get)

    assert [(who, code) for who, _, code in door.trail.refusals] == [
        ("user:eve", Code.NOT_FOUND),
        ("", Code.UNAUTHENTICATED),
        ("", Code.UNAUTHENTICATED),
    ]


async def test_refusal_names_what_it_was_about_as_far_as_that_is_there(door: Gate, world: World) -> None:
    project = make_project()
    folder = make_folder(project_id=project.id)
    vm = make_vm(project_id=project.id, folder_id=folder.id)
    await write(world.store, project, folder)
    await add(world.store, vm)
    of_project, default = f"project/{project.id}", f"project/{DEFAULT_PROJECT_ID}"
    for method, request, named in (
        ("VMService/StartVM", vm_api.StartVMRequest(id=vm.id), f"vm/{vm.id},{of_project}"),
        ("VMService/StartVM", vm_api.StartVMRequest(id=make_id()), ""),
        (
            "VMService/CloneVM",
            vm_api.CloneVMRequest(source_vm_id=vm.id, name="c"),
            f"vm/{vm.id},folder/{folder.id},{of_project}",
        ),
        ("VMService/CreateVM", vm_api.CreateVMRequest(name="n"), default),
        ("FolderService/GetFolder", folder_api.GetFolderRequest(id=folder.id), f"folder/{folder.id},{of_project}"),
        ("ProjectService/GetProject", project_api.GetProjectRequest(id=project.id), of_project),
        ("RoleService/BindRole", role_api.BindRoleRequest(project_id=project.id), of_project),
        ("RoleService/BindRole", role_api.BindRoleRequest(), ""),
        ("NodeService/GetNode", node_api.GetNodeRequest(id="n1"), "node/n1"),
    ):
        assert await call(door, said_by(EVE), METHOD + method, request) != ""
        assert door.trail.refused_about[-1] == named, method


async def test_new_vm_is_on_record_where_it_comes_to_be(door: Gate, world: World) -> None:
    """The first project is that of the record; that of what it is made of comes after it."""
    there, home = make_project(), make_project()
    folder, vm = make_folder(project_id=there.id), make_vm(project_id=home.id)
    await write(world.store, there, home, folder)
    await add(world.store, vm)
    made_of = f"vm/{vm.id},folder/{folder.id},project/{there.id},project/{home.id}"
    for method, request, named in (
        ("CreateVM", vm_api.CreateVMRequest(name="n", folder_id=folder.id), f"folder/{folder.id},project/{there.id}"),
        ("CreateVM", vm_api.CreateVMRequest(name="n", folder_id=folder.id, template_id=vm.id), made_of),
        ("CloneVM", vm_api.CloneVMRequest(name="n", folder_id=folder.id, source_vm_id=vm.id), made_of),
    ):
        assert await call(door, said_by(ADA), f"{METHOD}VMService/{method}", request) == ""
        assert door.trail.begun[-1][2] == named


@pytest.mark.parametrize("named", ["affinity_vms", "anti_affinity_vms", "vm_rules"])
async def test_vms_that_rules_name_are_on_record(door: Gate, world: World, named: str) -> None:
    project = make_project()
    vm, other = make_vm(), make_vm(project_id=project.id)
    await write(world.store, project)
    await add(world.store, vm, other)
    ids = [other.id, make_id()]  # one that is not there is named nowhere
    rule = VmAffinityRule(kind=VmAffinityRule.APART, vm_ids=ids)
    spec = VmSpec(placement=PlacementPolicy(**{named: [rule] if named == "vm_rules" else ids}))  # type: ignore[arg-type]
    default = f"project/{DEFAULT_PROJECT_ID}"

    create, update = vm_api.CreateVMRequest(name="n", spec=spec), vm_api.UpdateVMRequest(id=vm.id, spec=spec)
    await call(door, said_by(ADA), METHOD + "VMService/CreateVM", create)
    await call(door, said_by(ADA), METHOD + "VMService/UpdateVM", update)

    assert [resources for _, _, resources in door.trail.begun] == [
        f"vm/{other.id},{default},project/{project.id}",
        f"vm/{vm.id},vm/{other.id},{default},project/{project.id}",
    ]
    explain = placement_api.ExplainPlacementRequest(candidate=placement_api.PlacementCandidate(spec=spec))
    assert await call(door, said_by(EVE), METHOD + "PlacementService/ExplainPlacement", explain) != ""
    assert door.trail.refused_about[-1] == f"vm/{other.id},project/{project.id},{default}"


@pytest.mark.parametrize("more_count", [0, 1, 80])
async def test_of_many_vms_that_rules_name_some_are_on_record_and_how_many_more(
    door: Gate, world: World, more_count: int
) -> None:
    vms = sorted((make_vm() for _ in range(MAX_RULED_VMS + more_count)), key=lambda vm: vm.id)
    await add(world.store, *vms)
    ids = [vm.id for vm in vms]
    spec = VmSpec(placement=PlacementPolicy(affinity_vms=ids[::2], anti_affinity_vms=ids[1::2]))

    await call(door, said_by(ADA), METHOD + "VMService/CreateVM", vm_api.CreateVMRequest(name="n", spec=spec))

    ((_, _, resources),) = door.trail.begun
    more = [f"vm/and-{more_count}-more"] if more_count else []
    expected = [*(f"vm/{vm_id}" for vm_id in ids[:MAX_RULED_VMS]), *more, f"project/{DEFAULT_PROJECT_ID}"]
    assert resources.split(",") == expected


async def test_change_whose_record_cannot_be_written_does_not_happen(door: Gate, world: World) -> None:
    vm = make_vm()
    await add(world.store, vm)
    happened = []

    async def begin(*_: object) -> str:
        raise FailedPrecondition(Reason.STATE_UNAVAILABLE, "the record cannot be written")

    async def handler() -> object:
        happened.append(1)
        return None

    door.trail.begin = begin  # type: ignore[method-assign, assignment]
    request = vm_api.StartVMRequest(id=vm.id)

    assert await call(door, said_by(ADA), METHOD + "VMService/StartVM", request, handler) == Reason.STATE_UNAVAILABLE
    assert happened == []


async def test_change_that_is_cancelled_is_completed_on_record(door: Gate, world: World) -> None:
    vm = make_vm()
    await add(world.store, vm)
    begun = asyncio.Event()

    async def wait() -> object:
        begun.set()
        await asyncio.Event().wait()
        return None

    request = vm_api.StartVMRequest(id=vm.id)
    task = asyncio.create_task(call(door, said_by(ADA), METHOD + "VMService/StartVM", request, wait))
    await asyncio.wait_for(begun.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert door.trail.ended == [("record-1", Code.CANCELLED)]


async def test_change_that_takes_too_long_is_on_record_as_it_was_answered(door: Gate, world: World) -> None:
    vm = make_vm()
    await add(world.store, vm)

    async def wait() -> object:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()
        return None

    request = vm_api.StartVMRequest(id=vm.id)
    answer = await call(door, said_by(ADA), METHOD + "VMService/StartVM", request, wait)

    assert answer == Reason.DEADLINE_EXCEEDED
    assert door.trail.ended == [("record-1", Code.DEADLINE_EXCEEDED)]


async def test_audited_stream_that_is_left_is_on_record_as_left(door: Gate) -> None:
    async def rows() -> AsyncIterator[str]:
        while True:
            yield "row"

    async def leave() -> None:
        pipeline = CallPipeline({}, Unobserved(), door.guard)
        method, request = METHOD + "AuditService/ExportAuditRecords", audit_api.ExportAuditRecordsRequest()
        async with contextlib.aclosing(pipeline.stream(method, request, rows, origin=said_by(ADA))) as messages:  # type: ignore[type-var]
            await anext(messages)

    await asyncio.create_task(leave())

    assert door.trail.ended == [("record-1", Code.CANCELLED)]


async def test_credential_that_ended_does_not_keep_from_logging_in(door: Gate) -> None:
    stale = FakeOrigin((("as", "mallory"),))

    assert await call(door, stale, METHOD + "AuthService/Login", auth_api.LoginRequest()) == ""
    assert await call(door, stale, METHOD + "VMService/ListVMs", vm_api.ListVMsRequest()) == Reason.NOT_LOGGED_IN


async def test_body_of_a_host_is_checked(door: Gate) -> None:
    method = METHOD + "NodeService/UpdateHeartbeat"
    assert await call(door, said_by(HOST), method, node_api.UpdateHeartbeatRequest()) == ""

    assert door.bodies.asked == [method]


async def test_too_many_calls_are_turned_away_with_a_time(world: World) -> None:
    one = Rate(0.01, 1)
    door = gate(world.store, EVE, limits=CallLimits(CallRates(people=one, strangers=one)))
    request, method = vm_api.ListVMsRequest(), METHOD + "VMService/ListVMs"

    assert [await call(door, said_by(EVE), method, request) for _ in range(2)] == ["", Reason.TOO_MANY_REQUESTS]
    refused = [await call(door, NOBODY, method, request) for _ in range(3)]
    assert refused == [Reason.NOT_LOGGED_IN, Reason.TOO_MANY_REQUESTS, Reason.TOO_MANY_REQUESTS]
    # One record: an address that knocks all the time does not fill the trail.
    assert len(door.trail.refusals) == 1


async def test_call_counts_until_it_has_ended_however_it_does(world: World) -> None:
    few = Rate(1000, 1000, 3)
    door = gate(world.store, EVE, limits=CallLimits(CallRates(people=few)))
    method, request, hold = METHOD + "VMService/ListVMs", vm_api.ListVMsRequest(), asyncio.Event()

    async def failing() -> object:
        raise ValueError("by chance")

    async def answer_of(handler: Callable[[], Awaitable[object]] | None = None) -> str:
        return await call(door, said_by(EVE), method, request, handler)

    for _ in range(4):
        assert await answer_of(failing) == Reason.INTERNAL
        assert await answer_of() == ""
    going_on = [asyncio.create_task(answer_of(hold.wait)) for _ in range(3)]
    await asyncio.sleep(0.1)  # so that all have begun
    assert await answer_of() == Reason.TOO_MANY_REQUESTS
    going_on[0].cancel()
    await asyncio.wait(going_on[:1])
    assert await answer_of() == ""
    hold.set()
    assert await asyncio.gather(*going_on[1:]) == ["", ""]
    assert await asyncio.gather(*(answer_of() for _ in range(3))) == ["", "", ""]


async def test_caller_is_known_inside_a_call_and_nowhere_else(door: Gate) -> None:
    seen = []

    async def handler() -> object:
        seen.append(caller())
        return None

    assert await call(door, said_by(EVE), METHOD + "VMService/ListVMs", vm_api.ListVMsRequest(), handler) == ""
    assert seen == [EVE]
    assert calling.get() is None
    with pytest.raises(NobodyCallsError):
        caller()


def test_needs_of_things_are_of_kinds_that_can_be_found() -> None:
    assert {need.target for rule in METHODS.values() for need in rule.needs} == set(Target)


async def test_stream_knows_its_caller_and_needs_what_its_method_needs(door: Gate, world: World) -> None:
    vm = make_vm()
    await add(world.store, vm)
    pipeline = CallPipeline({}, Unobserved(), door.guard)
    method, request = METHOD + "VMService/WatchVM", vm_api.WatchVMRequest(vm_id=vm.id)

    async def names() -> AsyncIterator[str]:
        for _ in range(2):
            await asyncio.sleep(0)
            yield caller_name()

    async def told(origin: FakeOrigin) -> list[str]:
        return [name async for name in pipeline.stream(method, request, names, origin=origin)]

    assert await asyncio.create_task(told(said_by(VIK))) == ["user:vik"] * 2
    for origin in (said_by(EVE), NOBODY, said_by(HOST)):
        with pytest.raises(ApiError):
            await asyncio.create_task(told(origin))


async def test_stream_goes_on_as_long_as_its_caller_is_the_same_and_may(door: Gate, world: World) -> None:
    vm = make_vm()
    await add(world.store, vm)
    method, request = METHOD + "VMService/WatchVM", vm_api.WatchVMRequest(vm_id=vm.id)
    with called_by(VIK):
        await door.guard.recheck(method, request, said_by(VIK))
        for origin in (said_by(OLA), NOBODY, FakeOrigin((("as", "mallory"),))):
            with pytest.raises(Unauthenticated):
                await door.guard.recheck(method, request, origin)
    with called_by(EVE), pytest.raises(NotFound):
        await door.guard.recheck(method, request, said_by(EVE))


async def test_what_is_open_follows_changes_without_a_call(door: Gate, world: World) -> None:
    await door.memory.tree()
    revision = door.memory.latest.revision
    level = asyncio.create_task(door.memory.keep_level())
    try:
        await write(world.store, bound("user:eve", VIEWER))
        async with asyncio.timeout(30):
            while door.memory.latest.revision == revision:  # noqa: ASYNC110 - it is read again and again
                await asyncio.sleep(0.05)
    finally:
        level.cancel()
