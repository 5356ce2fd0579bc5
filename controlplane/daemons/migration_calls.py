"""The part of a node daemon's calls that is about migrations; see `controlplane.daemons.interface`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from limiquantix.node.v1.node_daemon_pb2 import (
    EndMigrationRequest,
    MigrateVMRequest,
    MigrationForecast,
    MigrationForecastRequest,
    MigrationProgress,
    MigrationRequest,
    MigrationToken,
    PrepareMigrationRequest,
)


class MigrationCalls(Protocol):
    """Moving VMs to another host and taking them in."""

    async def prepare_migration(self, request: PrepareMigrationRequest) -> MigrationToken:
        """Have the target make ready for a VM. Repeated, it gives a token that replaces the one before."""
        ...

    async def receive_migration(self, token: MigrationToken) -> None:
        """Let the VM in that the token was made for, once."""
        ...

    def migrate_vm(self, request: MigrateVMRequest) -> AsyncGenerator[MigrationProgress, None]:
        """Have the source send a VM, or follow it if it does already; errors come while it is iterated.

        A stream that breaks or is closed does not end the migration.
        """
        ...

    async def get_migration(self, request: MigrationRequest) -> MigrationProgress:
        """Ask the source how far it is, or how the last one of the VM ended.

        Raises:
            NotFound: it knows of none.
        """
        ...

    async def cancel_migration(self, request: MigrationRequest) -> None:
        """Have the source stop sending; fine if it does not send.

        Raises:
            FailedPrecondition: there is no way back any more.
        """
        ...

    async def end_migration(self, request: EndMigrationRequest) -> None:
        """Have one of the hosts tidy up; fine if there is nothing.

        Raises:
            FailedPrecondition: the VM is alive where it should not be.
        """
        ...

    async def forecast_migration(self, request: MigrationForecastRequest) -> MigrationForecast:
        """Have the source measure what it would have to carry."""
        ...
