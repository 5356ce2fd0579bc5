"""Migration calls over gRPC; see `controlplane.daemons.grpc_pool`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import grpc
from google.protobuf.message import Message

from limiquantix.errors import Unavailable
from limiquantix.node.v1 import node_daemon_pb2 as node_v1
from limiquantix.rpc.status import from_rpc_error

if TYPE_CHECKING:
    from controlplane.daemons.grpc_pool import CallTimeouts
    from limiquantix.node.v1.node_daemon_pb2_grpc import NodeDaemonServiceAsyncStub

ResponseT = TypeVar("ResponseT")


class GrpcMigrationCalls:
    """Part of `GrpcNodeDaemon`, which has the stub, the name of the peer and the timeouts."""

    _stub: NodeDaemonServiceAsyncStub
    _peer: str
    _metadata: tuple[tuple[str, str], ...]
    _timeouts: CallTimeouts

    async def _call(self, method: Callable[..., Awaitable[ResponseT]], request: Message, timeout_s: float) -> ResponseT:
        raise NotImplementedError

    def _moved(self) -> Unavailable:
        raise NotImplementedError

    async def prepare_migration(self, request: node_v1.PrepareMigrationRequest) -> node_v1.MigrationToken:
        return await self._call(self._stub.PrepareMigration, request, self._timeouts.create_s)

    async def receive_migration(self, token: node_v1.MigrationToken) -> None:
        await self._call(self._stub.ReceiveMigration, token, self._timeouts.power_s)

    async def migrate_vm(self, request: node_v1.MigrateVMRequest) -> AsyncGenerator[node_v1.MigrationProgress, None]:
        call = None
        try:
            # As long as it takes; who reads gives up on a silent stream.
            call = self._stub.MigrateVM(request, metadata=self._metadata)
            async for progress in call:
                yield progress
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, peer=self._peer) from error
        except grpc.aio.UsageError as error:
            raise self._moved() from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise self._moved() from None  # the channel was closed under the call
        finally:
            if call is not None:
                call.cancel()

    async def get_migration(self, request: node_v1.MigrationRequest) -> node_v1.MigrationProgress:
        return await self._call(self._stub.GetMigration, request, self._timeouts.query_s)

    async def cancel_migration(self, request: node_v1.MigrationRequest) -> None:
        await self._call(self._stub.CancelMigration, request, self._timeouts.power_s)

    async def end_migration(self, request: node_v1.EndMigrationRequest) -> None:
        await self._call(self._stub.EndMigration, request, self._timeouts.create_s)

    async def forecast_migration(self, request: node_v1.MigrationForecastRequest) -> node_v1.MigrationForecast:
        timeout_s = self._timeouts.query_s + (request.sample_sec or 1)
        return await self._call(self._stub.ForecastMigration, request, timeout_s)
