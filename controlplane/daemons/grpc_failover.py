"""The calls that are about VMs of hosts that failed, over gRPC; see `controlplane.daemons.grpc_pool`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import Message

from limiquantix.node.v1 import node_daemon_pb2 as node_v1

if TYPE_CHECKING:
    from controlplane.daemons.grpc_pool import CallTimeouts
    from limiquantix.node.v1.node_daemon_pb2_grpc import NodeDaemonServiceAsyncStub

ResponseT = TypeVar("ResponseT")


class GrpcFailoverCalls:
    """Part of `GrpcNodeDaemon`, which has the stub and the timeouts."""

    _stub: NodeDaemonServiceAsyncStub
    _timeouts: CallTimeouts

    async def _call(self, method: Callable[..., Awaitable[ResponseT]], request: Message, timeout_s: float) -> ResponseT:
        raise NotImplementedError

    async def adopt_vm(self, request: node_v1.CreateVMOnNodeRequest) -> node_v1.VMStatusResponse:
        return (await self._call(self._stub.AdoptVM, request, self._timeouts.create_s)).status

    async def release_vm(self, vm_id: str, generation: int) -> None:
        request = node_v1.VMIdRequest(vm_id=vm_id, generation=generation)
        await self._call(self._stub.ReleaseVM, request, self._timeouts.power_s)

    async def set_vm_protection(self, request: node_v1.SetVMProtectionRequest) -> None:
        await self._call(self._stub.SetVMProtection, request, self._timeouts.query_s)
