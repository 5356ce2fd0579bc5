"""A control plane as its configuration builds it, all doors closed, in this process; hosts that joined, and people.

Only ports, directories and the first administrator's hash, which costs nothing, differ from what an operator starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import httpx

from controlplane.app import Addresses
from limiquantix import join_token
from limiquantix.compute.v1.node_pb2 import Node
from limiquantix.compute.v1.node_service_pb2 import UpdateHeartbeatRequest
from limiquantix.errors import ApiError, Code
from limiquantix.node.v1.node_daemon_pb2_grpc import add_NodeDaemonServiceServicer_to_server
from limiquantix.rpc.channel import open_channel
from limiquantix.rpc.credentials import MachineCredentials
from limiquantix.rpc.identity import CONTROL_PLANE_SERVER_NAME
from limiquantix.rpc.pipeline import CallPipeline
from limiquantix.rpc.server import RpcServer
from nodedaemon.control_plane import GrpcControlPlane
from nodedaemon.identity.door import ControlPlanesOnly
from nodedaemon.identity.files import NodeIdentity
from nodedaemon.identity.joining import join
from telemetry.metrics import RpcMetrics, build_registry
from tests.support import entry as entries
from tests.support.closed_plane import closed_plane
from tests.support.control_plane_world import register_request
from tests.support.databases import fresh_sqlite
from tests.support.fake_daemons import FakeDaemon, FakeDaemonServicer
from tests.support.running_control_plane import JsonAnswer

LOOPBACK = "127.0.0.1:0"
ADMINISTRATOR, PASSWORD = entries.ADMINISTRATOR, entries.PASSWORD
DEADLINE_S = 40.0
BEAT_S = 1.0
_DAEMON_SERVICE = "limiquantix.node.v1.NodeDaemonService"
_KEY_LASTS = timedelta(days=1)


@dataclass(frozen=True)
class JoinedHost:
    """A host with a certificate of the cluster. `control` is how its daemon calls; `channel` carries any other call."""

    identity: NodeIdentity
    hostname: str
    control: GrpcControlPlane
    channel: grpc.aio.Channel
    daemon: FakeDaemon
    endpoint: str

    @property
    def id(self) -> str:
        return self.identity.machine.id

    async def register(self) -> Node:
        """Have the cluster put it into use."""
        return await self.control.register(register_request(self.hostname, agent_endpoint=self.endpoint))

    async def live(self) -> None:
        """Beat until cancelled; ends when nobody is to hear it any more."""
        while True:
            try:
                await self.control.heartbeat(UpdateHeartbeatRequest(node_id=self.id, state_hash="unknown"))
            except ApiError as error:
                if error.code in (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED, Code.NOT_FOUND):
                    return
            await asyncio.sleep(BEAT_S)


@dataclass(frozen=True)
class ClosedCluster:
    """A control plane that serves. `token` is the administrator's access token."""

    addresses: Addresses
    authority_pem: bytes
    http: httpx.AsyncClient
    token: str
    stack: AsyncExitStack

    @property
    def trust(self) -> ssl.SSLContext:
        """Whom clients believe."""
        return ssl.create_default_context(cadata=self.authority_pem.decode())

    async def post(self, path: str, body: Any, token: str | None = None, **headers: str) -> JsonAnswer:
        """Call "Service/Method" with JSON, as the administrator if no token is given, as nobody if it is ""."""
        bearer = self.token if token is None else token
        sent = {"content-type": "application/json", **({"authorization": f"Bearer {bearer}"} if bearer else {})}
        content = body if isinstance(body, bytes | str) else json.dumps(body)
        answer = await self.http.post(f"/limiquantix.compute.v1.{path}", content=content, headers={**sent, **headers})
        return JsonAnswer(answer.status_code, answer.json(), answer.headers)

    async def done(self, path: str, body: Any, token: str | None = None) -> Any:
        """Call a method that must succeed; returns its answer."""
        answer = await self.post(path, body, token)
        assert answer.status == 200, (path, answer.document)
        return answer.document

    async def new_key(self, **scope: Any) -> str:
        """Make an API key of the administrator's, for clients that last longer than an access token."""
        ends_at = (datetime.now(UTC) + _KEY_LASTS).isoformat()
        made = await self.done("ApiKeyService/CreateApiKey", {"name": "key", "expiresAt": ends_at, **scope})
        return str(made["secret"])

    async def new_user(self, name: str, role: str = "", **place: str) -> str:
        """Make a user, with a role if one is named; returns an access token."""
        await self.done("UserService/CreateUser", {"name": name, "password": PASSWORD})
        if role:
            await self.done("RoleService/BindRole", {"roleId": role, "subject": f"user:{name}", **place})
        return await self.login(name)

    async def login(self, name: str) -> str:
        tokens = await self.done("AuthService/Login", {"name": name, "password": PASSWORD}, "")
        return str(tokens["accessToken"])

    async def add_host(self, hostname: str) -> JoinedHost:
        """Take a host in and put it into use; it says that it lives until the end, or until it is turned away."""
        host = await self.join(hostname)
        await host.register()
        beats = asyncio.create_task(host.live(), name=f"beats of {hostname}")
        self.stack.callback(beats.cancel)
        return host

    async def join(self, hostname: str) -> JoinedHost:
        """Take a host in, whose daemon answers as a fake one does; it is not registered yet."""
        made = await self.done("JoinService/CreateJoinToken", {})
        identity = await join(join_token.decode(made["token"]), hostname, [self.addresses.grpc])
        return await self.stack.enter_async_context(_host(self, identity, hostname))


@contextlib.asynccontextmanager
async def _host(cluster: ClosedCluster, identity: NodeIdentity, hostname: str) -> AsyncIterator[JoinedHost]:
    credentials, daemon = MachineCredentials(identity.certificate), FakeDaemon()
    servicer = FakeDaemonServicer(daemon)  # type: ignore[abstract]
    server = RpcServer(
        CallPipeline({}, RpcMetrics(build_registry()), ControlPlanesOnly(identity.machine.cluster_id)),
        [_DAEMON_SERVICE],
        lambda rpc: add_NodeDaemonServiceServicer_to_server(servicer, rpc),
        credentials.server(asks_for_certificate=True),
    )
    port = await server.start(LOOPBACK)
    control = GrpcControlPlane([cluster.addresses.hosts], credentials)
    try:
        async with open_channel(cluster.addresses.hosts, credentials.channel(), CONTROL_PLANE_SERVER_NAME) as channel:
            yield JoinedHost(identity, hostname, control, channel, daemon, f"127.0.0.1:{port}")
    finally:
        await control.close()
        await server.stop(0)


@contextlib.asynccontextmanager
async def closed_cluster(directory: Path, **sections: Any) -> AsyncIterator[ClosedCluster]:
    """Run a control plane with these sections of its configuration, and log its administrator in."""
    async with closed_plane(directory, fresh_sqlite(directory), **sections) as plane, AsyncExitStack() as stack:
        entry = plane.entry
        addresses = Addresses(entry.http_url.removeprefix("https://"), entry.grpc_address, entry.hosts_address)
        client = httpx.AsyncClient(base_url=entry.http_url, verify=entry.trust, timeout=DEADLINE_S)
        nobody = ClosedCluster(addresses, entry.authority.encode(), await stack.enter_async_context(client), "", stack)
        yield replace(nobody, token=await nobody.login(ADMINISTRATOR))
