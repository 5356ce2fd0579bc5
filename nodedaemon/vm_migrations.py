"""Migrations as the control plane asks for them: both parts of one host, and what they share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path

from hypervisor.base import Hypervisor
from limiquantix.node.v1 import node_daemon_pb2 as pb
from nodedaemon.commands import Commands
from nodedaemon.disk_images import DiskImages
from nodedaemon.first_boot_media import FirstBootMedia
from nodedaemon.migration_records import MigrationRecords
from nodedaemon.migration_sources import MigrationSources
from nodedaemon.migration_targets import MigrationTargets
from nodedaemon.nic_bandwidth import NicBandwidths
from nodedaemon.storage_paths import StoragePaths
from nodedaemon.templates import Templates

__all__ = ["MigrationSettings", "VmMigrations"]


@dataclass(frozen=True, slots=True)
class MigrationSettings:
    """Where a daemon keeps what it knows of migrations, None for in memory, and where its host logs consoles.

    `now_s` is Unix time.
    """

    records_dir: Path | None = None
    console_log_dir: Path = Path("/var/log/limiquantix")
    now_s: Callable[[], float] = time.time


class VmMigrations:
    """The part of the service that moves VMs; `start` it before it is asked anything."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        commands: Commands,
        images: DiskImages,
        paths: StoragePaths,
        *,
        first_boot: FirstBootMedia,
        bandwidths: NicBandwidths,
        templates: Templates,
        settings: MigrationSettings,
        node_id: Callable[[], str],
    ) -> None:
        self._hypervisor = hypervisor
        self._records = MigrationRecords(settings.records_dir, settings.now_s)
        self._targets = MigrationTargets(
            hypervisor,
            commands,
            images,
            paths,
            first_boot,
            bandwidths,
            self._records,
            node_id=node_id,
            console_log_dir=settings.console_log_dir,
            now_s=settings.now_s,
        )
        self._sources = MigrationSources(
            hypervisor,
            commands,
            images,
            paths,
            templates,
            self._records,
            node_id=node_id,
            console_log_dir=settings.console_log_dir,
            now_s=settings.now_s,
        )
        self._arrivals: asyncio.Task[None] | None = None
        self._unsubscribe: Callable[[], None] | None = None

    async def start(self) -> None:
        """Read what an earlier process knew, follow what it left under way, and look out for arrivals."""
        await self._records.load()
        self._unsubscribe = self._hypervisor.subscribe(self._targets.on_event)
        self._arrivals = asyncio.create_task(self._targets.run(), name="migration-arrivals")
        self._sources.resume()

    async def close(self) -> None:
        """Follow no more; migrations go on. Safe to call twice."""
        if self._unsubscribe is not None:
            self._unsubscribe()
        if self._arrivals is not None:
            self._arrivals.cancel()
            await asyncio.gather(self._arrivals, return_exceptions=True)
        await self._sources.close()

    async def prepare(self, request: pb.PrepareMigrationRequest) -> pb.MigrationToken:
        """Get ready, on the target."""
        return await self._targets.prepare(request)

    async def receive(self, token: pb.MigrationToken) -> None:
        """Let a VM in, on the target."""
        await self._targets.receive(token)

    def migrate(self, request: pb.MigrateVMRequest) -> AsyncGenerator[pb.MigrationProgress, None]:
        """Send a VM, on the source, or follow it."""
        return self._sources.migrate(request)

    async def get(self, request: pb.MigrationRequest) -> pb.MigrationProgress:
        """Say how far it is, on the source."""
        return await self._sources.get(request)

    async def cancel(self, request: pb.MigrationRequest) -> None:
        """Stop sending, on the source."""
        await self._sources.cancel(request)

    async def end(self, request: pb.EndMigrationRequest) -> None:
        """Tidy up, on either."""
        if request.role == pb.MIGRATION_ROLE_SOURCE:
            await self._sources.end(request)
        else:
            await self._targets.end(request)

    async def forecast(self, request: pb.MigrationForecastRequest) -> pb.MigrationForecast:
        """Measure what it would carry, on the source."""
        return await self._sources.forecast(request)
