"""Migration calls over gRPC; see `grpc_pool`."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from controlplane.daemons.grpc_calls import GrpcCalls
from limiquantix.node.v1 import node_daemon_pb2 as node_v1


class GrpcMigrationCalls(GrpcCalls):
    """Part of `GrpcNodeDaemon`."""

    async def prepare_migration(self, request: node_v1.PrepareMigrationRequest) -> node_v1.MigrationToken:
        return await self._call(self._stub.PrepareMigration, request, self._timeouts.create_s)

    async def receive_migration(self, token: node_v1.MigrationToken) -> None:
        await self._call(self._stub.ReceiveMigration, token, self._timeouts.power_s)

    def migrate_vm(self, request: node_v1.MigrateVMRequest) -> AsyncGenerator[node_v1.MigrationProgress, None]:
        return self._stream(self._stub.MigrateVM, request)

    async def get_migration(self, request: node_v1.MigrationRequest) -> node_v1.MigrationProgress:
        return await self._call(self._stub.GetMigration, request, self._timeouts.query_s)

    async def cancel_migration(self, request: node_v1.MigrationRequest) -> None:
        await self._call(self._stub.CancelMigration, request, self._timeouts.power_s)

    async def end_migration(self, request: node_v1.EndMigrationRequest) -> None:
        await self._call(self._stub.EndMigration, request, self._timeouts.create_s)

    async def forecast_migration(self, request: node_v1.MigrationForecastRequest) -> node_v1.MigrationForecast:
        timeout_s = self._timeouts.query_s + (request.sample_sec or 1)
        return await self._call(self._stub.ForecastMigration, request, timeout_s)
