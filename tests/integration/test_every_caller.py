"""Every method, called by everybody, over every port: who is let in, who is told what, and who learns of nothing."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from google.protobuf import json_format
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.support.access_scene import BY_NAME, METHOD
from tests.support.caller_scene import CallerScene, Way, caller_scene
from tests.support.every_caller import (
    COLUMNS,
    DEADLINE_S,
    LET_IN,
    Answer,
    Doors,
    GrpcDoor,
    Row,
    fault,
    filled,
    names_in,
    read_table,
)

TABLE = read_table(Path(__file__).with_name("every_caller.txt"))
SERVICES = sorted({row.method.partition("/")[0] for row in TABLE})
NOT_IDS = frozenset({"hostname", "endpoint", "password", "tomorrow", "request", "name"})
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].methods_by_name
THROUGH_A_PROXY = {"x-forwarded-for": "192.0.2.7"}

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[CallerScene]:
    async with caller_scene(tmp_path_factory.mktemp("cluster")) as scene:
        yield scene


async def test_table_has_every_method_and_no_other() -> None:
    assert {METHOD + row.method for row in TABLE} == set(BY_NAME)


DERIVED = {
    "GetConsole": {"vmId": "$vm"},
    "GetConsoleLog": {"vmId": "$vm"},
    "CreateSnapshot": {"vmId": "$vm", "name": "kept"},
    "RevertToSnapshot": {"vmId": "$vm", "snapshotId": "$unknown"},
    "CloneVM": {"sourceVmId": "$vm", "name": "copy", "projectId": "$project"},
    "MigrateVM": {"vmId": "$vm", "validateOnly": True},
    "ReadGuestFile": {"vmId": "$vm", "path": "/etc/hosts"},
}
"""What reaches into a VM, or makes another thing of it."""


@pytest.mark.parametrize("method", DERIVED)
async def test_reaching_into_a_vm_is_on_record_done_or_refused(scene: CallerScene, method: str) -> None:
    # Tried before all else, whose refusals are more in a minute than are told apart on record.
    body = filled(DERIVED[method], scene.things)
    for column, is_refused in (("viewer", True), ("operator", False), ("unbound", True)):
        await scene.cluster.post(f"VMService/{method}", body, scene.tokens[column])
        wanted = {"principal": column, "method": method, "resource": scene.things["vm"]}
        records = (await scene.cluster.done("AuditService/ListAuditRecords", {"filter": wanted}))["records"]
        newest = records[0]
        assert (newest["outcome"] == "AUDIT_OUTCOME_REFUSED") is is_refused, newest
        assert f"vm/{scene.things['vm']}" in newest["resources"]
        assert newest["address"]


@pytest.mark.parametrize("service", SERVICES)
async def test_every_caller_is_answered_as_the_table_says(scene: CallerScene, service: str) -> None:
    rows = [row for row in TABLE if row.method.startswith(f"{service}/")]
    async with scene.ways() as ways:
        faults = [
            f"{row.method} {row.body} by {way.text}, for whom it should be {row.words[way.column]}: {wrong}"
            for row in rows
            for way in ways
            if (wrong := await wrong_with(scene, way, row))
        ]
    assert not faults, "\n" + "\n".join(faults)


async def wrong_with(scene: CallerScene, way: Way, row: Row) -> str:
    """Make one call, and, of what should be hidden, a second one for what does not exist; "" if all is well."""
    word, method = row.words[way.column], BY_NAME[METHOD + row.method]
    named = set(names_in(row.body))
    await scene.freshen(named)
    door = await scene.door_for(way, row.method)
    answer = await door.call(method, request_of(method, row, scene.things), word)
    if word in LET_IN:
        await scene.freshen(named, all_over=True)
    if wrong := fault(word, answer, scene.marks):
        return wrong
    if word == "hidden":
        absent = {thing: str(uuid.uuid4()) for thing in named - NOT_IDS}
        other = await door.call(method, request_of(method, row, {**scene.things, **absent}), word)
        for thing, value in absent.items():
            other = Answer(other.code, other.said.replace(value.encode(), scene.things[thing].encode()), other.reason)
        if other != answer:
            return f"{answer.said!r} and, of what does not exist, {other.said!r}"
    return ""


def request_of(method: MethodDescriptor, row: Row, things: dict[str, str]) -> Message:
    return json_format.ParseDict(filled(row.body, things), GetMessageClass(method.input_type)())


async def test_port_for_hosts_lets_nobody_in_without_a_certificate_of_the_cluster(scene: CallerScene) -> None:
    doors, at = Doors(), scene.cluster.addresses
    trusting = grpc.ssl_channel_credentials(scene.cluster.authority_pem)
    method = BY_NAME[METHOD + "NodeService/UpdateHeartbeat"]
    (row,) = [row for row in TABLE if METHOD + row.method == f"/{method.containing_service.full_name}/{method.name}"]
    request = request_of(method, row, scene.things)
    async with doors.stack:
        for token in ("", scene.cluster.token):
            door = await doors.grpc(at.hosts, trusting, token)
            assert (await door.call(method, request, "login")).code == "UNAVAILABLE"


async def test_every_column_is_tried(scene: CallerScene) -> None:
    async with scene.ways() as ways:
        assert [column for column in COLUMNS if column not in {way.column for way in ways}] == []


# -- what is served beside the contract


async def test_health_is_told_to_anybody_and_watched_by_the_known_only(scene: CallerScene) -> None:
    async with scene.ways() as ways:
        for way in ways:
            if isinstance(way.door, GrpcDoor):
                answer = await way.door.call(HEALTH["Check"], health_pb2.HealthCheckRequest(), "yes")
                assert answer.code == "OK", way.text
                is_known = way.column not in ("nobody", "revoked node")
                watched = await way.door.call(HEALTH["Watch"], health_pb2.HealthCheckRequest(), "shown")
                assert watched.code == ("OK" if is_known else "UNAUTHENTICATED"), way.text


async def test_services_are_described_to_people_who_say_who_they_are(scene: CallerScene) -> None:
    async with scene.ways() as ways:
        for way in ways:
            if isinstance(way.door, GrpcDoor):
                expected = {"nobody": "UNAUTHENTICATED"}.get(way.column, "OK")
                if way.column in scene.hosts:
                    expected = "UNIMPLEMENTED"
                assert await reflection_by(way.door) == expected, way.text


async def reflection_by(door: GrpcDoor) -> str:
    """Ask for the services; anew where a refusal crossed the request, which the library tells as INTERNAL."""
    for _ in range(5):
        if (code := await _reflection_by(door)) != "INTERNAL":
            break
    return code


async def _reflection_by(door: GrpcDoor) -> str:
    stub = reflection_pb2_grpc.ServerReflectionStub(door.channel)
    asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
    try:
        answers = [
            each async for each in stub.ServerReflectionInfo(iter(asked), metadata=door.metadata, timeout=DEADLINE_S)
        ]
    except grpc.aio.AioRpcError as error:
        return error.code().name
    assert "limiquantix.compute.v1.VMService" in {each.name for each in answers[0].list_services_response.service}
    return "OK"


@pytest.mark.parametrize("path", ["/health", "/healthz", "/live", "/ready", "/api/v1/info", "/openapi.json"])
async def test_plain_endpoints_tell_everybody_nothing_of_the_cluster(scene: CallerScene, path: str) -> None:
    answer = await scene.cluster.http.get(path, headers=THROUGH_A_PROXY)

    assert answer.status_code == 200
    assert not [mark for mark in scene.marks if mark in answer.text]


async def test_metrics_are_for_the_machine_itself_and_for_those_who_see_the_cluster(scene: CallerScene) -> None:
    async def status(token: str, **headers: str) -> int:
        bearer = {"authorization": f"Bearer {token}"} if token else {}
        return (await scene.cluster.http.get("/metrics", headers={**headers, **bearer})).status_code

    assert await status("") == 200
    assert await status("", **THROUGH_A_PROXY) == 401
    told = {column: await status(token, **THROUGH_A_PROXY) for column, token in scene.tokens.items()}
    assert {column for column, code in told.items() if code == 200} == {"cluster viewer", "cluster operator", "admin"}
    assert set(told.values()) == {200, 403}
    assert await status(scene.key, **THROUGH_A_PROXY) == 200


async def test_why_nothing_fits_names_hosts_to_those_who_see_them_only(scene: CallerScene) -> None:
    spec = {"cpu": {"cores": 1}, "memory": {"sizeMib": 2**23}}
    body = {"name": "too-large", "projectId": scene.things["project"], "spec": spec}
    for column, is_told in (("operator", False), ("cluster operator", True)):
        refused = await scene.cluster.post("VMService/CreateVM", body, scene.tokens[column])
        assert refused.detail(ErrorInfo).reason == "NO_NODE_FITS"
        assert "lack memory" in refused.document["message"]
        assert ("node.host-1" in refused.detail(ErrorInfo).metadata) is is_told, column
