"""Migrations in the failure harness: the calls about them. Its only host never sends a VM anywhere."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from google.protobuf.message import Message

from limiquantix.errors import FailedPrecondition, Reason
from limiquantix.node.v1 import node_daemon_pb2 as pb


class MigrationHostCalls:
    """Part of `HostCalls`."""

    async def _call(self, method: str, request: Message) -> Any:
        raise NotImplementedError

    async def prepare_migration(self, request: pb.PrepareMigrationRequest) -> pb.MigrationToken:
        """See `NodeDaemon`, as all below."""
        return await self._call("PrepareMigration", request)  # type: ignore[no-any-return]

    async def receive_migration(self, token: pb.MigrationToken) -> None:
        await self._call("ReceiveMigration", token)

    async def migrate_vm(self, request: pb.MigrateVMRequest) -> AsyncGenerator[pb.MigrationProgress, None]:
        raise FailedPrecondition(Reason.MIGRATION_REFUSED, f"VM {request.vm_id} has nowhere to go: there is one host")
        yield pb.MigrationProgress()  # makes it a generator

    async def get_migration(self, request: pb.MigrationRequest) -> pb.MigrationProgress:
        return await self._call("GetMigration", request)  # type: ignore[no-any-return]

    async def cancel_migration(self, request: pb.MigrationRequest) -> None:
        await self._call("CancelMigration", request)

    async def end_migration(self, request: pb.EndMigrationRequest) -> None:
        await self._call("EndMigration", request)

    async def forecast_migration(self, request: pb.MigrationForecastRequest) -> pb.MigrationForecast:
        return await self._call("ForecastMigration", request)  # type: ignore[no-any-return]
