"""A control plane's two ports and a host's, with the certificates of a cluster, on loopback; no VM is touched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.message import Message

from controlplane.access.calling import calling
from controlplane.access.interface import Authenticator
from controlplane.api.join_servicer import JoinServicer
from controlplane.authority.certificates import Authority
from controlplane.authority.cluster import Cluster, open_cluster
from controlplane.authority.host_calls import MachineAuthenticator, OwnWords
from controlplane.authority.joining import JoiningService
from controlplane.authority.machine_memory import MachineMemory
from controlplane.authority.migration_authority import MigrationAuthority
from controlplane.authority.migration_certificates import MigrationCertificates
from controlplane.authority.own_certificate import OwnCertificate
from controlplane.domain import machine_errors
from controlplane.domain.principal import Principal, PrincipalKind
from controlplane.secrets.box import SecretBox
from controlplane.state.interface import Store
from limiquantix import join_token
from limiquantix.compute.v1 import node_pb2
from limiquantix.compute.v1 import node_service_pb2 as api
from limiquantix.compute.v1.join_service_pb2 import JoinNodeRequest, JoinNodeResponse
from limiquantix.compute.v1.join_service_pb2_grpc import add_JoinServiceServicer_to_server
from limiquantix.compute.v1.node_service_pb2_grpc import NodeServiceServicer, add_NodeServiceServicer_to_server
from limiquantix.join_token import JoinTokenText
from limiquantix.node.v1.node_daemon_pb2_grpc import add_NodeDaemonServiceServicer_to_server
from limiquantix.rpc.credentials import MachineCertificate, MachineCredentials
from limiquantix.rpc.identity import MachineIdentity
from limiquantix.rpc.pipeline import CallContext, CallOrigin, CallPipeline
from limiquantix.rpc.server import RpcServer
from nodedaemon.identity.door import ControlPlanesOnly
from nodedaemon.identity.files import NodeIdentity
from telemetry.metrics import RpcMetrics, build_registry
from tests.support.fake_daemons import FakeDaemon, FakeDaemonServicer

LOOPBACK = "127.0.0.1:0"
NAMES = ("127.0.0.1", "localhost")
JOIN_SERVICE = "limiquantix.compute.v1.JoinService"
NODE_SERVICE = "limiquantix.compute.v1.NodeService"
DAEMON_SERVICE = "limiquantix.node.v1.NodeDaemonService"


def certificate_of(authority: Authority, identity: MachineIdentity, age: timedelta = timedelta()) -> MachineCertificate:
    """Make what a machine shows, issued some time ago."""
    pair = authority.issue(identity, datetime.now(UTC) - age, NAMES)
    return MachineCertificate(pair.certificate_pem, pair.key_pem, authority.certificate_pem)


class _EverybodyIsEve:
    """The guard of the port for people: asks nobody, and takes all for one person."""

    async def admit(self, method: str, origin: CallOrigin) -> None:
        calling.set(Principal(PrincipalKind.USER, "eve", "eve"))

    @asynccontextmanager
    async def around(self, method: str, request: Message, origin: CallOrigin) -> AsyncIterator[None]:
        yield

    async def recheck(self, method: str, request: Message, origin: CallOrigin) -> None:
        """Eve stays."""


class _HostsOnly:
    """The guard of the port for hosts."""

    def __init__(self, authenticator: Authenticator, words: OwnWords) -> None:
        self._authenticator = authenticator
        self._words = words

    async def admit(self, method: str, origin: CallOrigin) -> None:
        principal = await self._authenticator.authenticate(origin)
        if principal is None:
            raise machine_errors.no_certificate()
        calling.set(principal)

    def around(self, method: str, request: Message, origin: CallOrigin) -> AbstractAsyncContextManager[None]:
        return self._checked(method, request)

    async def recheck(self, method: str, request: Message, origin: CallOrigin) -> None:
        await self.admit(method, origin)

    @asynccontextmanager
    async def _checked(self, method: str, request: Message) -> AsyncIterator[None]:
        principal = calling.get()
        assert principal is not None
        await self._words.require_own(principal, method, request)
        yield


class HeardNodes(NodeServiceServicer):
    """Answers hosts, and remembers who called; a registration waits while `gate` is closed."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []
        self.serials: set[bytes] = set()
        self.gate = asyncio.Event()
        self.gate.set()
        self.is_waiting = asyncio.Event()

    async def RegisterNode(self, request: api.RegisterNodeRequest, context: CallContext) -> node_pb2.Node:
        self.is_waiting.set()
        await self.gate.wait()
        return node_pb2.Node(id=self._note("RegisterNode", context), hostname=request.hostname)

    async def UpdateHeartbeat(
        self, request: api.UpdateHeartbeatRequest, context: CallContext
    ) -> api.UpdateHeartbeatResponse:
        self._note("UpdateHeartbeat", context)
        return api.UpdateHeartbeatResponse(acknowledged=True)

    async def NotifyVMChange(self, request: api.VMChangeNotification, context: CallContext) -> api.VMChangeAck:
        self._note("NotifyVMChange", context)
        return api.VMChangeAck(acknowledged=True)

    def _note(self, method: str, context: Any) -> str:
        principal = calling.get()
        assert principal is not None
        self.heard.append((method, principal.text))
        self.serials.update(context.auth_context()["x509_pem_cert"])
        return principal.id


class CountingJoins(JoinServicer):
    """Counts what was told to it."""

    join_count = 0

    async def JoinNode(self, request: JoinNodeRequest, context: CallContext) -> JoinNodeResponse:
        self.join_count += 1
        return await super().JoinNode(request, context)


class MachineSite:
    """The control plane's side. `people` and `hosts` are its addresses."""

    def __init__(self, store: Store, cluster: Cluster) -> None:
        self.store = store
        self.cluster = cluster
        self.shift = timedelta()
        self.machines = MachineMemory(store)
        self.own = OwnCertificate(cluster, "cp-1", NAMES, self.now)
        self.nodes = HeardNodes()  # type: ignore[abstract]
        self.people = self.hosts = ""
        self.joining = JoiningService(store, cluster, (), self.now)
        self.migrations = MigrationCertificates(store, MigrationAuthority(cluster), self.now)
        self.joins: CountingJoins
        self._stack = AsyncExitStack()

    def now(self) -> datetime:
        """The control plane's clock, which a test may set."""
        return datetime.now(UTC) + self.shift

    async def start(self) -> None:
        """Listen."""
        authenticator = MachineAuthenticator(self.cluster.id, self.machines)
        on_hosts = JoinServicer(self.joining, (), self.machines, self.migrations)

        def add_host_services(server: Any) -> None:
            add_NodeServiceServicer_to_server(self.nodes, server)
            add_JoinServiceServicer_to_server(on_hosts, server)

        self.hosts = await self._listen(
            CallPipeline({}, _metrics(), _HostsOnly(authenticator, OwnWords(self.store))),
            (NODE_SERVICE, JOIN_SERVICE),
            add_host_services,
            asks_for_certificate=True,
        )
        self.joins = CountingJoins(self.joining, (self.hosts,), self.machines, self.migrations)
        self.people = await self._listen(
            CallPipeline({}, _metrics(), _EverybodyIsEve()),
            (JOIN_SERVICE,),
            lambda server: add_JoinServiceServicer_to_server(self.joins, server),
            asks_for_certificate=False,
        )
        self.joining = replace(self.joining, addresses=(self.people,))

    async def _listen(
        self, pipeline: CallPipeline, services: Sequence[str], add: Any, *, asks_for_certificate: bool
    ) -> str:
        tls = self.own.credentials.server(asks_for_certificate=asks_for_certificate)
        server = RpcServer(pipeline, services, add, tls)
        port = await server.start(LOOPBACK)
        self._stack.push_async_callback(server.stop, 0)
        return f"127.0.0.1:{port}"

    async def stop(self) -> None:
        """Listen no more."""
        await self._stack.aclose()

    async def token(self, **fields: Any) -> JoinTokenText:
        """Make a token, as it comes out of its text."""
        text, _ = await self.joining.create_token("user:eve", **fields)
        return join_token.decode(text.encode())


@asynccontextmanager
async def machine_site(store: Store) -> AsyncIterator[MachineSite]:
    """Make a site, which listens until the end."""
    site = MachineSite(store, await open_cluster(store, SecretBox([bytes(32)]), datetime.now(UTC)))
    await site.start()
    try:
        yield site
    finally:
        await site.stop()


@asynccontextmanager
async def daemon_of(identity: NodeIdentity, credentials: MachineCredentials) -> AsyncIterator[str]:
    """Have a host's daemon listen; yields its address."""
    servicer = FakeDaemonServicer(FakeDaemon())  # type: ignore[abstract]
    server = RpcServer(
        CallPipeline({}, _metrics(), ControlPlanesOnly(identity.machine.cluster_id)),
        [DAEMON_SERVICE],
        lambda rpc: add_NodeDaemonServiceServicer_to_server(servicer, rpc),
        credentials.server(asks_for_certificate=True),
    )
    port = await server.start(LOOPBACK)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def _metrics() -> RpcMetrics:
    return RpcMetrics(build_registry())
