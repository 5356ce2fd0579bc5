"""Whatever secret is sent to a control plane, by any method, over any transport and in any shape, is nowhere after."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
import pytest_asyncio
import structlog
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from controlplane.cli.connect_stream import STREAM_TYPE, envelope
from limiquantix.rpc.redaction import may_hold_secrets
from telemetry.logs import LogFormat, configure_logging
from tests.support.access_scene import BY_NAME, METHOD
from tests.support.canaries import CANARY, LONG, at_path, named, paths, planted
from tests.support.closed_cluster import DEADLINE_S, ClosedCluster, closed_cluster

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

TAKES_SECRETS: Final = sorted(
    name.removeprefix(METHOD) for name, method in BY_NAME.items() if may_hold_secrets(method.input_type)
)
READS: Final = sorted(
    name.removeprefix(METHOD)
    for name, method in BY_NAME.items()
    if not method.server_streaming and name.rpartition("/")[2].startswith(("Get", "List", "Who", "Explain", "Plan"))
)
STREAMS: Final = ("AuditService/ExportAuditRecords",)
PAGES: Final = ("/metrics", "/health", "/ready", "/api/v1/info", "/openapi.json")
TOO_LONG: Final = CANARY + "x" * 100_000
WRONG: Final[tuple[Any, ...]] = ([CANARY], {CANARY: CANARY}, f"{CANARY}\x00\n", TOO_LONG, f"{CANARY}\ud800", 47.5)
"""Values that no secret field takes, of which errors could tell."""


@dataclass
class Watched:
    """A cluster, and everything that came out of it."""

    cluster: ClosedCluster
    channel: grpc.aio.Channel
    directory: Path
    log: io.StringIO
    vm_id: str = ""
    node_id: str = ""
    heard: list[str] = field(default_factory=list)

    async def over_grpc(self, name: str, request: Message) -> None:
        method = BY_NAME[METHOD + name]
        call = self.channel.unary_unary(
            METHOD + name,
            request_serializer=type(request).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        try:
            answer = await call(request, metadata=self._metadata(), timeout=DEADLINE_S)
            self.heard.append(f"{name}: {answer}")
        except grpc.aio.AioRpcError as error:
            self.heard.append(f"{name}: {error.details()} {error.trailing_metadata()}")

    async def over_json(self, name: str, body: Any) -> int:
        headers = {"content-type": "application/json", **dict(self._metadata())}
        answer = await self.cluster.http.post(METHOD + name, content=json.dumps(body), headers=headers)
        self.heard.append(f"{name}: {answer.headers} {answer.text}")
        return answer.status_code

    async def read_everything(self) -> None:
        for name in READS:
            fields = BY_NAME[METHOD + name].input_type.fields_by_name
            ids = {"vmId": self.vm_id, "nodeId": self.node_id, "id": self.vm_id if "VM" in name else self.node_id}
            body = {key: value for key, value in ids.items() if _snake(key) in fields}
            await self.over_json(name, body)
        for name in STREAMS:
            headers = {"content-type": STREAM_TYPE, "connect-protocol-version": "1", **dict(self._metadata())}
            answer = await self.cluster.http.post(METHOD + name, content=envelope({}), headers=headers)
            self.heard.append(f"{name}: {answer.content.decode('utf-8', 'replace')}")
        for path in PAGES:
            page = await self.cluster.http.get(path, headers=dict(self._metadata()))
            self.heard.append(f"{path}: {page.text}")

    def found(self) -> list[str]:
        """Name every place where the secret is, and forget what was heard."""
        places = [str(p) for p in self.directory.rglob("*") if p.is_file() and CANARY.encode() in p.read_bytes()]
        places += [f"heard {each[:2000]}" for each in self.heard if CANARY in each]
        places += [f"log: {line[:2000]}" for line in self.log.getvalue().splitlines() if CANARY in line]
        self.heard.clear()
        return places

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.cluster.token}"), ("limiquantix-request-id", f"r{len(self.heard)}"))


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Watched]:
    root, log = logging.getLogger(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    configure_logging("debug", LogFormat.JSON, log)
    logging.getLogger("httpcore").setLevel(logging.WARNING)  # of the test's own client
    directory = tmp_path_factory.mktemp("cluster")
    try:
        async with closed_cluster(directory) as cluster:
            host = await cluster.add_host("host-1")
            trust = grpc.ssl_channel_credentials(cluster.authority_pem)
            async with grpc.aio.secure_channel(cluster.addresses.grpc, trust) as channel:
                scene = Watched(cluster, channel, directory, log, node_id=host.id)
                spec = {"cpu": {"cores": 1}, "memory": {"sizeMib": "128"}, "display": {"password": CANARY}}
                scene.vm_id = (await cluster.done("VMService/CreateVM", {"name": "web", "spec": spec}))["id"]
                assert CANARY in str(list(host.daemon.vms.values())), "its guest needs it"
                yield scene
    finally:
        root.handlers[:], root.level = handlers, level
        logging.getLogger("httpcore").setLevel(logging.NOTSET)
        structlog.reset_defaults()


@pytest.mark.parametrize("name", TAKES_SECRETS)
async def test_no_answer_log_or_file_tells_a_secret(watched: Watched, name: str) -> None:
    kind = BY_NAME[METHOD + name].input_type
    for request in (planted(kind), named(planted(kind), watched.vm_id)):
        assert CANARY.encode() in request.SerializeToString(), "there is something to be found"
        await watched.over_grpc(name, request)
        await watched.over_json(name, json_format.MessageToDict(request))
    for path in paths(kind):
        for wrong in WRONG:
            assert await watched.over_json(name, at_path(path, wrong)) < 500
    assert watched.found() == []


async def test_nothing_that_can_be_read_tells_any_of_them(watched: Watched) -> None:
    await watched.read_everything()
    heard = "".join(watched.heard)
    assert all(f"/{name.rpartition('/')[2]}" in heard for name in TAKES_SECRETS), "the trail is among what was read"
    assert watched.found() == []


async def test_password_of_a_user_who_was_made_is_found_nowhere(watched: Watched) -> None:
    """And that what is looked for is there: the user can log in with it."""
    await watched.cluster.done("UserService/CreateUser", {"name": "kim", "password": LONG})
    tokens = await watched.cluster.done("AuthService/Login", {"name": "kim", "password": LONG}, "")
    await watched.cluster.done(
        "AuthService/ChangePassword",
        {"currentPassword": LONG, "newPassword": f"{LONG} again"},
        tokens["accessToken"],
    )
    await watched.read_everything()
    heard = "".join(watched.heard)
    assert "kim" in heard
    for told in (tokens["accessToken"], tokens["refreshToken"]):
        assert told not in heard
        assert told not in watched.log.getvalue()
    assert watched.found() == []
