"""Node daemons over gRPC: one channel a node, kept while the node's endpoint stays the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from controlplane.daemons.grpc_calls import CallTimeouts, Told
from controlplane.daemons.grpc_devices import GrpcDeviceCalls
from controlplane.daemons.grpc_failover import GrpcFailoverCalls
from controlplane.daemons.grpc_guests import GrpcGuestCalls
from controlplane.daemons.grpc_migrations import GrpcMigrationCalls
from controlplane.domain import errors
from controlplane.domain.node import Node
from limiquantix.node.v1 import node_daemon_pb2 as node_v1
from limiquantix.node.v1.node_daemon_pb2_grpc import NodeDaemonServiceStub
from limiquantix.rpc.credentials import LastingStub, Tls
from limiquantix.rpc.identity import node_server_name

if TYPE_CHECKING:
    from limiquantix.node.v1.node_daemon_pb2_grpc import NodeDaemonServiceAsyncStub

_CLOSE_TIMEOUT_S = 3.0


class GrpcNodeDaemon(GrpcDeviceCalls, GrpcFailoverCalls, GrpcGuestCalls, GrpcMigrationCalls):
    """One node's daemon as it is called with one token; the channel behind it is shared."""

    async def create_vm(self, request: node_v1.CreateVMOnNodeRequest) -> node_v1.VMStatusResponse:
        copies = any(disk.HasField("clone_of") and not disk.clone_of.linked for disk in request.spec.disks)
        timeout_s = self._timeouts.copy_s if copies else self._timeouts.create_s
        answer = await self._call(self._stub.CreateVM, request, timeout_s)
        # A daemon of an older version does not say.
        return answer.status if answer.HasField("status") else await self.vm_status(request.vm_id)

    async def reconfigure_vm(self, request: node_v1.ReconfigureVMRequest) -> None:
        await self._call(self._stub.ReconfigureVM, request, self._timeouts.create_s)

    async def resize_vm(self, request: node_v1.ReconfigureVMRequest) -> node_v1.ResizeVMResponse:
        return await self._call(self._stub.ResizeVM, request, self._timeouts.create_s)

    async def delete_vm(self, vm_id: str, generation: int) -> None:
        await self._call(self._stub.DeleteVM, _vm(vm_id, generation), self._timeouts.create_s)

    async def start_vm(self, vm_id: str, generation: int) -> None:
        await self._call(self._stub.StartVM, _vm(vm_id, generation), self._timeouts.power_s)

    async def stop_vm(self, vm_id: str, timeout_s: int, generation: int) -> None:
        request = node_v1.StopVMRequest(vm_id=vm_id, timeout_seconds=timeout_s, generation=generation)
        await self._call(self._stub.StopVM, request, timeout_s + self._timeouts.power_s)

    async def force_stop_vm(self, vm_id: str, generation: int) -> None:
        await self._call(self._stub.ForceStopVM, _vm(vm_id, generation), self._timeouts.power_s)

    async def reboot_vm(self, vm_id: str, generation: int) -> None:
        await self._call(self._stub.RebootVM, _vm(vm_id, generation), self._timeouts.power_s)

    async def pause_vm(self, vm_id: str, generation: int) -> None:
        await self._call(self._stub.PauseVM, _vm(vm_id, generation), self._timeouts.power_s)

    async def resume_vm(self, vm_id: str, generation: int) -> None:
        await self._call(self._stub.ResumeVM, _vm(vm_id, generation), self._timeouts.power_s)

    async def suspend_vm(self, vm_id: str, generation: int) -> None:
        await self._call(self._stub.SuspendVM, _vm(vm_id, generation), self._timeouts.create_s)

    async def create_snapshot(self, request: node_v1.CreateSnapshotRequest) -> node_v1.SnapshotResponse:
        return await self._call(self._stub.CreateSnapshot, request, self._timeouts.create_s)

    async def revert_snapshot(self, request: node_v1.RevertSnapshotRequest) -> None:
        await self._call(self._stub.RevertSnapshot, request, self._timeouts.create_s)

    async def delete_snapshot(self, request: node_v1.DeleteSnapshotRequest) -> None:
        await self._call(self._stub.DeleteSnapshot, request, self._timeouts.create_s)

    async def list_snapshots(self, vm_id: str) -> node_v1.ListSnapshotsResponse:
        return await self._call(self._stub.ListSnapshots, _vm(vm_id), self._timeouts.query_s)

    async def vm_status(self, vm_id: str) -> node_v1.VMStatusResponse:
        request = node_v1.VMIdRequest(vm_id=vm_id, state_only=True)
        return await self._call(self._stub.GetVMStatus, request, self._timeouts.query_s)

    async def open_console(self, request: node_v1.OpenConsoleRequest) -> node_v1.ConsoleInfoResponse:
        return await self._call(self._stub.OpenConsole, request, self._timeouts.query_s)

    def metrics(self, request: node_v1.StreamMetricsRequest) -> AsyncGenerator[node_v1.NodeMetrics, None]:
        return self._stream(self._stub.StreamMetrics, request)

    async def console_log(self, request: node_v1.GetConsoleLogRequest) -> node_v1.GetConsoleLogResponse:
        return await self._call(self._stub.GetConsoleLog, request, self._timeouts.query_s)


def _vm(vm_id: str, generation: int = 0) -> node_v1.VMIdRequest:
    return node_v1.VMIdRequest(vm_id=vm_id, generation=generation)


@dataclass(slots=True)
class _Connection:
    """The way to one node, and the object that calls were last made on."""

    endpoint: str
    lasting: LastingStub[NodeDaemonServiceAsyncStub]
    stub: NodeDaemonServiceAsyncStub
    latest: GrpcNodeDaemon | None = None


class GrpcDaemonPool:
    """Channels to all nodes, opened on first use and replaced when a node moves to another endpoint.

    Args:
        tls: with the certificate of this control plane, each node has to show that it is the one that is meant.
    """

    def __init__(self, timeouts: CallTimeouts, tls: Tls = None) -> None:
        self._timeouts = timeouts
        self._tls = tls
        self._open: dict[str, _Connection] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def daemon(self, node: Node, epoch: int = 0) -> GrpcNodeDaemon:
        """Return the daemon of a node, see `DaemonPool`."""
        if not node.agent_endpoint:
            raise errors.node_has_no_agent(node.hostname)
        connection, told = self._connection(node), Told(node.fence_token, epoch)
        daemon = connection.latest
        if daemon is None or daemon.told != told:
            peer = f"node {node.hostname} ({node.agent_endpoint})"
            daemon = connection.latest = GrpcNodeDaemon(connection.stub, peer, self._timeouts, told)
        return daemon

    def _connection(self, node: Node) -> _Connection:
        known = self._open.get(node.id)
        if known is not None:
            if known.endpoint == node.agent_endpoint:
                stub = known.lasting.get()
                if stub is not known.stub:
                    known.stub, known.latest = stub, None
                return known
            self._close_later(known)
        server_name = node_server_name(node.id) if self._tls is not None else ""
        lasting: LastingStub[NodeDaemonServiceAsyncStub] = LastingStub(
            NodeDaemonServiceStub, node.agent_endpoint, self._tls, server_name
        )
        made = self._open[node.id] = _Connection(node.agent_endpoint, lasting, lasting.get())
        return made

    def _close_later(self, connection: _Connection) -> None:
        task = connection.lasting.close_soon()
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close every channel; calls in flight get a second to finish."""
        for connection in self._open.values():
            self._close_later(connection)
        self._open.clear()
        if self._closing:
            await asyncio.wait(self._closing, timeout=_CLOSE_TIMEOUT_S)
