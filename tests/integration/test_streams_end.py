"""Streams that are open end when what they were opened with does, over both transports, also while nothing happens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import grpc
import pytest
import pytest_asyncio
from google.protobuf import json_format
from google.protobuf.message_factory import GetMessageClass

from controlplane.cli.connect_stream import STREAM_TYPE, StreamCut, envelope, read_envelopes
from controlplane.identity.callers import TRUSTED_FOR_S
from limiquantix.rpc.standing import RECHECK_S
from tests.support.access_scene import BY_NAME, METHOD
from tests.support.closed_cluster import ClosedCluster, closed_cluster

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

PROMISED_S: Final = 5.0
NOISE_S: Final = 30.0
"""What a busy machine may add; that what is promised can be kept, the constants say."""
STREAMS: Final = sorted(name.removeprefix(METHOD) for name, method in BY_NAME.items() if method.server_streaming)
REQUESTS: Final[Mapping[str, Mapping[str, str]]] = {
    "NodeService/StreamEvents": {},
    "NodeService/StreamNodeMetrics": {"nodeId": "$node"},
    "NodeService/WatchNode": {"nodeId": "$node"},
    "NodeService/WatchNodes": {},
    "OperationService/WatchOperation": {"id": "$operation"},
    "VMService/StreamMetrics": {"vmId": "$vm"},
    "VMService/WatchVM": {"vmId": "$vm"},
    "VMService/WatchVMs": {},
}
FINITE: Final = {"AuditService/ExportAuditRecords"}
"""Streams that end by themselves, soon."""


@dataclass
class Scene:
    cluster: ClosedCluster
    channel: grpc.aio.Channel
    ids: dict[str, str]

    def request(self, name: str) -> dict[str, str]:
        return {key: self.ids[value[1:]] for key, value in REQUESTS[name].items()}

    async def over_grpc(self, name: str, token: str, begun: asyncio.Event) -> str:
        """Follow a stream to its end; returns the code of what ended it."""
        method = BY_NAME[METHOD + name]
        request = json_format.ParseDict(self.request(name), GetMessageClass(method.input_type)())
        call = self.channel.unary_stream(
            METHOD + name,
            request_serializer=type(request).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )(request, metadata=(("authorization", f"Bearer {token}"),))
        try:
            await call.initial_metadata() if name == "NodeService/StreamEvents" else await anext(aiter(call))
        except grpc.aio.AioRpcError as error:
            return f"refused: {error.code().name}: {error.details()}"
        begun.set()
        try:
            async for _ in call:
                pass
        except grpc.aio.AioRpcError as error:
            return error.code().name.lower()
        return "ended"

    async def over_http(self, name: str, token: str, begun: asyncio.Event) -> str:
        """As `over_grpc`, as Connect's stream of JSON."""
        headers = {"content-type": STREAM_TYPE, "connect-protocol-version": "1", "authorization": f"Bearer {token}"}
        body = envelope(self.request(name))
        async with self.cluster.http.stream("POST", METHOD + name, content=body, headers=headers) as response:
            data = b""
            async for piece in response.aiter_raw():
                data += piece
                begun.set()
            ended = [document for is_end, document in _documents(data) if is_end]
        return str(ended[0].get("error", {}).get("code", "ended"))


def _documents(data: bytes) -> Iterator[tuple[bool, dict[str, Any]]]:
    try:
        yield from read_envelopes([data])
    except StreamCut:
        return


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    async with closed_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        host = await cluster.add_host("host-1")
        spec = {"cpu": {"cores": 1}, "memory": {"sizeMib": "128"}}
        vm = await cluster.done("VMService/CreateVM", {"name": "web", "spec": spec})
        held = host.daemon.hold("start_vm")
        started = await cluster.post("VMService/StartVM", {"id": vm["id"]}, **{"limiquantix-wait": "false"})
        ids = {"vm": vm["id"], "node": host.id, "operation": started.headers["limiquantix-operation-id"]}
        trust = grpc.ssl_channel_credentials(cluster.authority_pem)
        try:
            async with grpc.aio.secure_channel(cluster.addresses.grpc, trust) as channel:
                yield Scene(cluster, channel, ids)
        finally:
            held.release()


async def seen_to_end(
    scene: Scene,
    follow: Callable[..., Coroutine[Any, Any, str]],
    names: list[str],
    token: str,
    end: Callable[[], Awaitable[Any]],
) -> dict[str, str]:
    """Open streams, do what ends them, and say what each ended with, in time."""
    begun = {name: asyncio.Event() for name in names}
    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        following = {name: group.create_task(follow(name, token, begun[name])) for name in names}
        for name in names:
            waiting = group.create_task(begun[name].wait())
            await asyncio.wait({waiting, following[name]}, return_when=asyncio.FIRST_COMPLETED)
            assert waiting.done(), (name, following[name].result())
        await end()
        ended_s = time.monotonic()
        outcomes = {name: await task for name, task in following.items()}
    assert time.monotonic() - ended_s < PROMISED_S + NOISE_S
    return outcomes


async def test_constants_keep_the_promise() -> None:
    assert max(TRUSTED_FOR_S, 2.0) + RECHECK_S / 2 < PROMISED_S


async def test_every_stream_is_tried() -> None:
    assert set(STREAMS) == set(REQUESTS) | FINITE


async def test_all_streams_end_with_their_session(scene: Scene) -> None:
    token = await scene.cluster.new_user("ann", "admin")
    outcomes = await seen_to_end(
        scene, scene.over_grpc, list(REQUESTS), token, lambda: scene.cluster.done("AuthService/Logout", {}, token)
    )
    assert outcomes == dict.fromkeys(REQUESTS, "unauthenticated")


async def test_streams_over_http_end_with_their_user(scene: Scene) -> None:
    token = await scene.cluster.new_user("ben", "admin")
    names = [name for name in REQUESTS if name != "NodeService/StreamEvents"]  # has no first message to wait for
    outcomes = await seen_to_end(
        scene, scene.over_http, names, token, lambda: scene.cluster.done("UserService/DisableUser", {"id": "ben"})
    )
    assert outcomes == dict.fromkeys(names, "unauthenticated")


async def test_stream_ends_with_its_key_and_with_its_role(scene: Scene) -> None:
    names = ["VMService/WatchVM"]
    await scene.cluster.new_user("carl")
    bound = await scene.cluster.done("RoleService/BindRole", {"roleId": "viewer", "subject": "user:carl"})
    token = await scene.cluster.login("carl")
    outcomes = await seen_to_end(
        scene, scene.over_grpc, names, token, lambda: scene.cluster.done("RoleService/UnbindRole", {"id": bound["id"]})
    )
    assert outcomes == {"VMService/WatchVM": "not_found"}, "as a new call is answered: it is hidden now"

    key = await scene.cluster.new_key(permissions=["vm.read"])
    keys = await scene.cluster.done("ApiKeyService/ListApiKeys", {})
    key_id = keys["apiKeys"][-1]["id"]
    outcomes = await seen_to_end(
        scene, scene.over_grpc, names, key, lambda: scene.cluster.done("ApiKeyService/RevokeApiKey", {"id": key_id})
    )
    assert outcomes == {"VMService/WatchVM": "unauthenticated"}


async def test_stream_that_shows_what_is_visible_ends_when_its_caller_leaves_a_group(scene: Scene) -> None:
    await scene.cluster.done("RoleService/BindRole", {"roleId": "viewer", "subject": "group:watchers"})
    await scene.cluster.new_user("dora")
    change = {"id": "dora", "groups": ["watchers"], "replaceGroups": True}
    await scene.cluster.done("UserService/UpdateUser", change)
    token = await scene.cluster.login("dora")
    outcomes = await seen_to_end(
        scene,
        scene.over_grpc,
        ["VMService/WatchVMs"],
        token,
        lambda: scene.cluster.done("UserService/UpdateUser", {"id": "dora", "replaceGroups": True}),
    )
    assert outcomes == {"VMService/WatchVMs": "unauthenticated"}
