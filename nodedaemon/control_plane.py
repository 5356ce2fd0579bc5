"""The control plane as this daemon calls it: every call has a deadline and fails as an `ApiError`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import grpc

from limiquantix.compute.v1.node_pb2 import Node
from limiquantix.compute.v1.node_service_pb2 import (
    AnnounceShutdownRequest,
    AnnounceShutdownResponse,
    RegisterNodeRequest,
    SyncFullStateRequest,
    SyncFullStateResponse,
    UpdateHeartbeatRequest,
    UpdateHeartbeatResponse,
    VMChangeAck,
    VMChangeNotification,
)
from limiquantix.compute.v1.node_service_pb2_grpc import NodeServiceStub
from limiquantix.rpc.channel import CROWD_CONNECT_LIMIT_MS
from limiquantix.rpc.credentials import LastingStub, Tls
from limiquantix.rpc.identity import CONTROL_PLANE_SERVER_NAME
from limiquantix.rpc.status import from_rpc_error

if TYPE_CHECKING:  # the asynchronous stub's type exists for type checkers only
    from limiquantix.compute.v1.node_service_pb2_grpc import NodeServiceAsyncStub

AnswerT = TypeVar("AnswerT")

CALL_DEADLINE_S = 5.0
HEARTBEAT_DEADLINE_S = 2.0
"""A lease outlasts several of these, so that one lost answer costs nothing."""
SYNC_DEADLINE_S = 30.0
"""A full inventory of 20,000 VMs is some MiB to send and as many rows to compare."""

_TRY_NEXT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class ControlPlane(Protocol):
    """What registration and reporting need of the control plane."""

    async def register(self, request: RegisterNodeRequest) -> Node:
        """Announce this host."""
        ...

    async def heartbeat(self, request: UpdateHeartbeatRequest) -> UpdateHeartbeatResponse:
        """Say that this host lives."""
        ...

    async def sync_full_state(self, request: SyncFullStateRequest) -> SyncFullStateResponse:
        """Send the whole inventory."""
        ...

    async def notify_vm_change(self, request: VMChangeNotification) -> VMChangeAck:
        """Send one VM's newest state."""
        ...


class GrpcControlPlane:
    """The control plane over gRPC; connects at the first call and again by itself.

    Args:
        addresses: instances of it, at least one. Calls go to the one that answered last; where it does not answer, the
            others are tried in turn before the call fails, each with the whole deadline.
        tls: with the certificate of this host, the other side has to show that it is a control plane of the cluster.
    """

    def __init__(self, addresses: Sequence[str], tls: Tls) -> None:
        self._addresses = tuple(addresses)
        server_name = CONTROL_PLANE_SERVER_NAME if tls is not None else ""
        self._stubs: list[LastingStub[NodeServiceAsyncStub]] = [
            LastingStub(NodeServiceStub, address, tls, server_name, CROWD_CONNECT_LIMIT_MS) for address in addresses
        ]
        self._answering = 0

    async def close(self) -> None:
        """Let go of the connections."""
        await asyncio.gather(*(stub.close_soon() for stub in self._stubs))

    async def register(self, request: RegisterNodeRequest) -> Node:
        """See `ControlPlane`."""
        return await self._call(lambda stub: stub.RegisterNode(request, timeout=CALL_DEADLINE_S))

    async def heartbeat(self, request: UpdateHeartbeatRequest) -> UpdateHeartbeatResponse:
        """See `ControlPlane`."""
        return await self._call(lambda stub: stub.UpdateHeartbeat(request, timeout=HEARTBEAT_DEADLINE_S))

    async def announce_shutdown(self, request: AnnounceShutdownRequest) -> AnnounceShutdownResponse:
        """Say that this host is about to go."""
        return await self._call(lambda stub: stub.AnnounceShutdown(request, timeout=CALL_DEADLINE_S))

    async def sync_full_state(self, request: SyncFullStateRequest) -> SyncFullStateResponse:
        """See `ControlPlane`."""
        return await self._call(lambda stub: stub.SyncFullState(request, timeout=SYNC_DEADLINE_S))

    async def notify_vm_change(self, request: VMChangeNotification) -> VMChangeAck:
        """See `ControlPlane`."""
        return await self._call(lambda stub: stub.NotifyVMChange(request, timeout=CALL_DEADLINE_S))

    async def _call(self, call: Callable[[NodeServiceAsyncStub], Awaitable[AnswerT]]) -> AnswerT:
        """Call an instance that answers. Every call may be made twice: to one that took it, and to the next."""
        count, first = len(self._stubs), self._answering
        for index in ((first + offset) % count for offset in range(count)):
            try:
                answer = await call(self._stubs[index].get())
            except grpc.aio.AioRpcError as error:
                failure = from_rpc_error(error, peer=f"control plane {self._addresses[index]}")
                failure.__cause__ = error
                if error.code() not in _TRY_NEXT:
                    break
            else:
                self._answering = index
                return answer
        raise failure
