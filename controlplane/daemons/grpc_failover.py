"""The calls that are about VMs of hosts that failed, over gRPC; see `grpc_pool`."""

from __future__ import annotations

from controlplane.daemons.grpc_calls import GrpcCalls
from limiquantix.node.v1 import node_daemon_pb2 as node_v1


class GrpcFailoverCalls(GrpcCalls):
    """Part of `GrpcNodeDaemon`."""

    async def adopt_vm(self, request: node_v1.CreateVMOnNodeRequest) -> node_v1.VMStatusResponse:
        return (await self._call(self._stub.AdoptVM, request, self._timeouts.create_s)).status

    async def release_vm(self, vm_id: str, generation: int) -> None:
        request = node_v1.VMIdRequest(vm_id=vm_id, generation=generation)
        await self._call(self._stub.ReleaseVM, request, self._timeouts.power_s)

    async def set_vm_protection(self, request: node_v1.SetVMProtectionRequest) -> None:
        await self._call(self._stub.SetVMProtection, request, self._timeouts.query_s)
