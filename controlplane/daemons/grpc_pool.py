"""Node daemons over gRPC: one channel a node, kept while the node's endpoint stays the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import grpc
from google.protobuf.message import Message

from controlplane.daemons.grpc_devices import GrpcDeviceCalls
from controlplane.daemons.grpc_failover import GrpcFailoverCalls
from controlplane.daemons.grpc_guests import GrpcGuestCalls
from controlplane.daemons.grpc_migrations import GrpcMigrationCalls
from controlplane.domain import errors
from controlplane.domain.node import Node
from limiquantix.errors import Reason, Unavailable
from limiquantix.node.v1 import node_daemon_pb2 as node_v1
from limiquantix.node.v1.node_daemon_pb2_grpc import NodeDaemonServiceStub
from limiquantix.rpc.channel import open_channel
from limiquantix.rpc.server import TlsFiles
from limiquantix.rpc.status import from_rpc_error

if TYPE_CHECKING:
    from limiquantix.node.v1.node_daemon_pb2_grpc import NodeDaemonServiceAsyncStub

ResponseT = TypeVar("ResponseT")

TOKEN_KEY: Final = "limiquantix-fence-token"  # noqa: S105 - a name, no secret
EPOCH_KEY: Final = "limiquantix-epoch"
"""Metadata of calls: what daemons compare with what they know, see decision 23."""

_CLOSE_GRACE_S = 1.0


@dataclass(frozen=True, slots=True)
class CallTimeouts:
    """How long to wait for a daemon, in seconds.

    `query_s` for reads, `power_s` for start, pause and the like, `create_s` where disk images are made or removed,
    `copy_s` where whole disks are copied: a little more than the daemon allows itself, so that its reason is heard.
    A graceful stop gets the guest's own time and `power_s` on top.
    """

    query_s: float = 5.0
    power_s: float = 60.0
    create_s: float = 300.0
    copy_s: float = 4 * 3600.0 + 300.0


@dataclass(frozen=True, slots=True)
class Told:
    """What all calls on one object tell the daemon; an epoch of 0 is not told."""

    fence_token: int
    epoch: int = 0

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """As it goes with a call."""
        token = (TOKEN_KEY, str(self.fence_token))
        return (token, (EPOCH_KEY, str(self.epoch))) if self.epoch else (token,)


class GrpcNodeDaemon(GrpcDeviceCalls, GrpcFailoverCalls, GrpcGuestCalls, GrpcMigrationCalls):
    """One node's daemon as it is called with one token; the channel behind it is shared."""

    def __init__(self, stub: NodeDaemonServiceAsyncStub, peer: str, timeouts: CallTimeouts, told: Told) -> None:
        self._stub = stub
        self._peer = peer
        self._timeouts = timeouts
        self.told = told
        self._metadata = told.metadata

    async def _call(self, method: Callable[..., Awaitable[ResponseT]], request: Message, timeout_s: float) -> ResponseT:
        try:
            return await method(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, peer=self._peer) from error
        except grpc.aio.UsageError as error:
            raise self._moved() from error  # the channel was closed before the call
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Nobody cancelled the caller: the channel was closed under the call, which the library tells in this way.
            raise self._moved() from None

    def _moved(self) -> Unavailable:
        return Unavailable(
            Reason.NODE_UNREACHABLE,
            f"{self._peer} is called at another address now, or no longer; look at the VM and try again",
            metadata={"peer": self._peer},
        )

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

    async def metrics(self, request: node_v1.StreamMetricsRequest) -> AsyncGenerator[node_v1.NodeMetrics, None]:
        call = None
        try:
            call = self._stub.StreamMetrics(request, metadata=self._metadata)
            async for metrics in call:
                yield metrics
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, peer=self._peer) from error
        except grpc.aio.UsageError as error:
            raise self._moved() from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise self._moved() from None  # see `_call`
        finally:
            if call is not None:
                call.cancel()

    async def console_log(self, request: node_v1.GetConsoleLogRequest) -> node_v1.GetConsoleLogResponse:
        return await self._call(self._stub.GetConsoleLog, request, self._timeouts.query_s)


def _vm(vm_id: str, generation: int = 0) -> node_v1.VMIdRequest:
    return node_v1.VMIdRequest(vm_id=vm_id, generation=generation)


@dataclass(slots=True)
class _Connection:
    """The way to one node, and the object that calls were last made on."""

    endpoint: str
    channel: grpc.aio.Channel
    stub: NodeDaemonServiceAsyncStub
    latest: GrpcNodeDaemon | None = None


class GrpcDaemonPool:
    """Channels to all nodes, opened on first use and replaced when a node moves to another endpoint."""

    def __init__(self, timeouts: CallTimeouts, tls: TlsFiles | None = None) -> None:
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
                return known
            self._close_later(known.channel)
        channel = open_channel(node.agent_endpoint, self._tls)
        made = self._open[node.id] = _Connection(node.agent_endpoint, channel, NodeDaemonServiceStub(channel))
        return made

    def _close_later(self, channel: grpc.aio.Channel) -> None:
        task = asyncio.get_running_loop().create_task(channel.close(_CLOSE_GRACE_S))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close every channel; calls in flight get a second to finish."""
        for connection in self._open.values():
            self._close_later(connection.channel)
        self._open.clear()
        if self._closing:
            await asyncio.wait(self._closing, timeout=_CLOSE_GRACE_S * 3)
