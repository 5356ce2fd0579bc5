"""The control plane as this daemon calls it: every call has a deadline and fails as an `ApiError`."""

from __future__ import annotations

from typing import Protocol

import grpc

from limiquantix.compute.v1.node_pb2 import Node
from limiquantix.compute.v1.node_service_pb2 import (
    RegisterNodeRequest,
    SyncFullStateRequest,
    SyncFullStateResponse,
    UpdateHeartbeatRequest,
    UpdateHeartbeatResponse,
    VMChangeAck,
    VMChangeNotification,
)
from limiquantix.compute.v1.node_service_pb2_grpc import NodeServiceStub
from limiquantix.rpc.channel import open_channel
from limiquantix.rpc.server import TlsFiles
from limiquantix.rpc.status import from_rpc_error

CALL_DEADLINE_S = 5.0
SYNC_DEADLINE_S = 30.0
"""A full inventory of 20,000 VMs is some MiB to send and as many rows to compare."""


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
    """The control plane over gRPC; connects at the first call and again by itself."""

    def __init__(self, address: str, tls: TlsFiles | None) -> None:
        self._peer = f"control plane {address}"
        self._channel = open_channel(address, tls)
        self._stub = NodeServiceStub(self._channel)

    async def close(self) -> None:
        """Let go of the connection."""
        await self._channel.close()

    async def register(self, request: RegisterNodeRequest) -> Node:
        """See `ControlPlane`."""
        try:
            return await self._stub.RegisterNode(request, timeout=CALL_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, peer=self._peer) from error

    async def heartbeat(self, request: UpdateHeartbeatRequest) -> UpdateHeartbeatResponse:
        """See `ControlPlane`."""
        try:
            return await self._stub.UpdateHeartbeat(request, timeout=CALL_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, peer=self._peer) from error

    async def sync_full_state(self, request: SyncFullStateRequest) -> SyncFullStateResponse:
        """See `ControlPlane`."""
        try:
            return await self._stub.SyncFullState(request, timeout=SYNC_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, peer=self._peer) from error

    async def notify_vm_change(self, request: VMChangeNotification) -> VMChangeAck:
        """See `ControlPlane`."""
        try:
            return await self._stub.NotifyVMChange(request, timeout=CALL_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, peer=self._peer) from error
