"""A control plane that only listens: it keeps what node daemons send, and can be told to fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import grpc

from limiquantix.compute.v1 import join_service_pb2_grpc, node_pb2, node_service_pb2_grpc
from limiquantix.compute.v1 import node_service_pb2 as pb
from limiquantix.compute.v1.join_service_pb2 import RenewCertificateRequest, RenewCertificateResponse
from limiquantix.rpc.identity import identity_of_peer
from limiquantix.rpc.validation import violations_of
from tests.support.own_cluster import control_plane_credentials, own_cluster

DEADLINE_S = 60


@dataclass
class FakeControlPlane(node_service_pb2_grpc.NodeServiceServicer, join_service_pb2_grpc.JoinServiceServicer):
    """Wait for what was received with `until`; set the other fields to choose the answers."""

    address: str = ""
    registrations: list[pb.RegisterNodeRequest] = field(default_factory=list)
    heartbeats: list[pb.UpdateHeartbeatRequest] = field(default_factory=list)
    syncs: list[pb.SyncFullStateRequest] = field(default_factory=list)
    changes: list[pb.VMChangeNotification] = field(default_factory=list)
    shutdowns: list[pb.AnnounceShutdownRequest] = field(default_factory=list)
    renewals: list[RenewCertificateRequest] = field(default_factory=list)
    shutdown_answer: pb.AnnounceShutdownResponse = field(
        default_factory=lambda: pb.AnnounceShutdownResponse(policy=pb.AnnounceShutdownResponse.FREEZE)
    )
    heartbeat_answer: pb.UpdateHeartbeatResponse = field(
        default_factory=lambda: pb.UpdateHeartbeatResponse(acknowledged=True, fences_read_ms_ago=0)
    )
    failing: dict[str, grpc.StatusCode] = field(default_factory=dict)
    """Methods that fail, by name."""
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something was received that makes `holds` true."""
        async with asyncio.timeout(DEADLINE_S), self._news:
            await self._news.wait_for(holds)

    def states_of(self, vm_id: str) -> list[pb.VMStatusReport]:
        """What was reported of one VM by itself, in order of arrival."""
        return [change.vm for change in self.changes if change.vm.id == vm_id]

    async def _take(self, method: str, request: Any, received: list[Any], context: Any) -> None:
        assert violations_of(request) == []
        async with self._news:
            received.append(request)
            self._news.notify_all()
        if method in self.failing:
            await context.abort(self.failing[method], "told to fail")

    async def RegisterNode(self, request: pb.RegisterNodeRequest, context: Any) -> node_pb2.Node:
        await self._take("RegisterNode", request, self.registrations, context)
        machine = identity_of_peer(context.auth_context())
        assert machine is not None
        return node_pb2.Node(id=machine.id, hostname=request.hostname)

    async def RenewCertificate(self, request: RenewCertificateRequest, context: Any) -> RenewCertificateResponse:
        await self._take("RenewCertificate", request, self.renewals, context)
        machine = identity_of_peer(context.auth_context())
        assert machine is not None
        signed = own_cluster().authority.certify(machine, request.certificate_request.encode(), datetime.now(UTC))
        return RenewCertificateResponse(certificate=signed.decode())

    async def UpdateHeartbeat(self, request: pb.UpdateHeartbeatRequest, context: Any) -> pb.UpdateHeartbeatResponse:
        await self._take("UpdateHeartbeat", request, self.heartbeats, context)
        return self.heartbeat_answer

    async def AnnounceShutdown(self, request: pb.AnnounceShutdownRequest, context: Any) -> pb.AnnounceShutdownResponse:
        await self._take("AnnounceShutdown", request, self.shutdowns, context)
        return self.shutdown_answer

    async def SyncFullState(self, request: pb.SyncFullStateRequest, context: Any) -> pb.SyncFullStateResponse:
        await self._take("SyncFullState", request, self.syncs, context)
        return pb.SyncFullStateResponse(acknowledged=True)

    async def NotifyVMChange(self, request: pb.VMChangeNotification, context: Any) -> pb.VMChangeAck:
        await self._take("NotifyVMChange", request, self.changes, context)
        return pb.VMChangeAck(acknowledged=True, action="UPDATED")


@asynccontextmanager
async def fake_control_plane() -> AsyncIterator[FakeControlPlane]:
    """Serve one of the tests' own cluster on a free port of the loopback address."""
    fake = FakeControlPlane()  # type: ignore[abstract]
    server = grpc.aio.server()
    credentials = control_plane_credentials().server(asks_for_certificate=True)
    node_service_pb2_grpc.add_NodeServiceServicer_to_server(fake, server)
    join_service_pb2_grpc.add_JoinServiceServicer_to_server(fake, server)
    fake.address = f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"
    await server.start()
    try:
        yield fake
    finally:
        await server.stop(0)
