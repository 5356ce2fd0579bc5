"""The control plane's composition root and its command: the only file that names concrete classes."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pydantic
import structlog
import uvloop
from sqlalchemy.exc import DBAPIError

from controlplane.api.checks import CHECKS
from controlplane.api.http.application import build_application
from controlplane.api.http.connect import ServiceApplication
from controlplane.api.http.endpoints import routes, version
from controlplane.api.http.server import HttpServer
from controlplane.api.node_servicer import NodeServicer
from controlplane.api.operation_servicer import OperationServicer
from controlplane.api.unfilled import FolderServicer
from controlplane.api.vm_servicer import VmServicer, VmServices
from controlplane.config import (
    ConfigFileUnusable,
    ControlPlaneConfig,
    DatabaseSettings,
    TlsSettings,
    is_loopback,
    load_config,
)
from controlplane.daemons.grpc_pool import CallTimeouts, GrpcDaemonPool
from controlplane.domain.node import CapacityPolicy
from controlplane.events.compaction import CompactionConfig, EventLogCompactor
from controlplane.events.hub import EventHub
from controlplane.events.waking_store import WakingStore
from controlplane.events.watch import Watches
from controlplane.operations.catalogue import WORKFLOWS
from controlplane.operations.desk import OperationDesk
from controlplane.operations.news import OperationNews
from controlplane.operations.runner import RetryPolicy, Runner
from controlplane.operations.worker import OperationWorker, WorkerConfig
from controlplane.reconcile.keeper import Keeper
from controlplane.reconcile.reports import HostReportService
from controlplane.scheduler.plan import SchedulerConfig
from controlplane.services.event_lists import EventListService
from controlplane.services.heartbeats import HeartbeatConfig, HeartbeatService
from controlplane.services.metrics import MetricsService
from controlplane.services.metrics_feeds import MetricsFeeds
from controlplane.services.nodes import NodeService
from controlplane.services.vm_calls import VmAccess
from controlplane.services.watches import WatchService
from controlplane.state.engine import SWITCH_INTERVAL_S, StoreLimits
from controlplane.state.factory import create_store, migrate
from controlplane.state.faults import unavailability
from controlplane.state.interface import SchemaMismatch, Store
from limiquantix.compute.v1 import folder_service_pb2, node_service_pb2, operation_service_pb2, vm_service_pb2
from limiquantix.compute.v1.folder_service_pb2_grpc import add_FolderServiceServicer_to_server
from limiquantix.compute.v1.node_service_pb2_grpc import add_NodeServiceServicer_to_server
from limiquantix.compute.v1.operation_service_pb2_grpc import add_OperationServiceServicer_to_server
from limiquantix.compute.v1.vm_service_pb2_grpc import add_VMServiceServicer_to_server
from limiquantix.errors import ApiError
from limiquantix.rpc.pipeline import CallPipeline
from limiquantix.rpc.server import AddressInUse, RpcServer, TlsFiles
from telemetry.logs import LogFormat, configure_logging
from telemetry.metrics import RpcMetrics, build_registry

_log = structlog.get_logger(__name__)

RENEWALS_PER_LEASE = 5
"""How often a process shows that it lives while its operations are its own: some may be late or lost."""

SHUTDOWN_GRACE_S = 10.0
"""Running operations get this long to end when the process is asked to stop."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the process listens, with the ports it really got."""

    http: str
    grpc: str


class ControlPlane:
    """All parts of one control-plane process, wired together."""

    def __init__(self, config: ControlPlaneConfig, database: Store) -> None:
        self._config = config
        self._hub = EventHub(database)
        store = self._store = WakingStore(database, self._hub.wake)
        watches, event_lists = WatchService(Watches(database, self._hub)), EventListService(store)
        self._compactor = EventLogCompactor(
            store, utc_now, CompactionConfig(retention=timedelta(days=config.events.retention_days))
        )
        self._daemons = GrpcDaemonPool(CallTimeouts(), _tls_files(config.nodes.tls))
        news = OperationNews()
        runner = Runner(store, self._daemons, WORKFLOWS, utc_now, RetryPolicy(), news.changed)
        worker_config = WorkerConfig(
            lease_s=config.operations.lease_s,
            renewal_interval_s=config.operations.lease_s / RENEWALS_PER_LEASE,
            kept_days=config.operations.kept_days,
        )
        self._worker = OperationWorker(store, runner, news, utc_now, worker_config, socket.gethostname())
        desk = OperationDesk(store, WORKFLOWS, self._worker, news, utc_now)
        self._keeper = Keeper(store, desk, utc_now)
        policy = CapacityPolicy(
            cpu_overcommit_ratio=config.scheduler.cpu_overcommit_ratio,
            memory_overcommit_ratio=config.scheduler.memory_overcommit_ratio,
            reserved_cores=config.scheduler.reserved_cores,
            reserved_memory_bytes=config.scheduler.reserved_memory_mib * 2**20,
        )
        self._heartbeats = HeartbeatService(
            store, utc_now, HeartbeatConfig(interval_s=config.nodes.heartbeat_interval_s)
        )
        self._feeds = MetricsFeeds(self._daemons)
        metrics = MetricsService(store, self._feeds)
        # Documented methods that this version does not fill are inherited and answer UNIMPLEMENTED, hence the ignores;
        # tests/contract/test_filled_methods.py lists them.
        vm_servicer = VmServicer(  # type: ignore[abstract]
            VmServices.of(
                VmAccess(store, self._daemons, desk),
                SchedulerConfig(config.scheduler.strategy),
                utc_now,
                watches,
                event_lists,
                metrics,
            )
        )
        node_servicer = NodeServicer(  # type: ignore[abstract]
            NodeService(store, policy, utc_now),
            self._heartbeats,
            HostReportService(store, desk, utc_now),
            watches,
            event_lists,
            metrics,
        )
        folder_servicer = FolderServicer()  # type: ignore[abstract]
        operation_servicer = OperationServicer(desk)
        served = (
            (vm_service_pb2.DESCRIPTOR.services_by_name["VMService"], vm_servicer),
            (node_service_pb2.DESCRIPTOR.services_by_name["NodeService"], node_servicer),
            (folder_service_pb2.DESCRIPTOR.services_by_name["FolderService"], folder_servicer),
            (operation_service_pb2.DESCRIPTOR.services_by_name["OperationService"], operation_servicer),
        )
        names = [descriptor.full_name for descriptor, _ in served]
        registry = build_registry()
        pipeline = CallPipeline(CHECKS, RpcMetrics(registry))

        def add_services(server: Any) -> None:
            add_VMServiceServicer_to_server(vm_servicer, server)
            add_NodeServiceServicer_to_server(node_servicer, server)
            add_FolderServiceServicer_to_server(folder_servicer, server)
            add_OperationServiceServicer_to_server(operation_servicer, server)

        self._rpc = RpcServer(pipeline, names, add_services, _tls_files(config.grpc.tls))
        self._http = HttpServer(
            build_application(
                [ServiceApplication(descriptor, servicer, pipeline) for descriptor, servicer in served],
                routes({"database": store.ping}, registry, utc_now(), names),
                config.http.cors_origins,
                config.http.accepted_hosts,
            )
        )
        self._background: asyncio.Task[None] | None = None

    async def start(self) -> Addresses:
        """Listen and serve.

        Raises:
            AddressInUse: an address cannot be bound.
            SchemaMismatch: the database needs a migration.
        """
        await self._store.open()
        await self._worker.register()
        grpc_port = await self._rpc.start(self._config.grpc.listen_address)
        http_port = await self._http.start(self._config.http.listen_address)
        self._background = asyncio.get_running_loop().create_task(self._run_in_background())
        return Addresses(
            http=_with_port(self._config.http.listen_address, http_port),
            grpc=_with_port(self._config.grpc.listen_address, grpc_port),
        )

    async def run(self, until: asyncio.Event) -> None:
        """Serve until the event; ends with the error of a background task that failed, since that is a defect."""
        assert self._background is not None, "start first"  # noqa: S101
        waiting = asyncio.get_running_loop().create_task(until.wait())
        await asyncio.wait({waiting, self._background}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._background.done():
            await self._background

    async def _run_in_background(self) -> None:
        async with asyncio.TaskGroup() as group:
            for work in (self._heartbeats, self._worker, self._keeper, self._hub, self._compactor):
                group.create_task(work.run(), name=type(work).__name__)

    async def stop(self) -> None:
        """Refuse new calls, let running operations end, store what is pending, let go of everything."""
        self._hub.stop()
        await self._feeds.stop()
        await self._http.stop()
        await self._rpc.stop(SHUTDOWN_GRACE_S)
        await self._worker.stop(SHUTDOWN_GRACE_S)
        if self._background is not None:
            self._background.cancel()
            await asyncio.wait([self._background])
            try:
                await self._heartbeats.flush()
            except ApiError as error:
                _log.warning("last_heartbeats_not_stored", reason=error.reason)
        await self._daemons.close()
        await self._store.close()


def utc_now() -> datetime:
    """The wall clock, with its zone."""
    return datetime.now(UTC)


def _tls_files(settings: TlsSettings) -> TlsFiles | None:
    if not settings.enabled:
        return None
    assert settings.cert_path is not None  # noqa: S101 - checked with the configuration
    assert settings.key_path is not None  # noqa: S101
    return TlsFiles(settings.cert_path, settings.key_path, settings.ca_path)


def _with_port(address: str, port: int) -> str:
    return f"{address.rpartition(':')[0]}:{port}"


async def serve(config: ControlPlaneConfig, ready_file: Path | None) -> None:
    """Run until SIGTERM or SIGINT."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    asked_to_stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop.set)
    plane = ControlPlane(config, _store(config.database))
    try:
        addresses = await plane.start()
        _warn_of_open_listeners(config)
        _log.info("control_plane_started", version=version(), http=addresses.http, grpc=addresses.grpc)
        if ready_file is not None:
            await asyncio.to_thread(_write_ready_file, ready_file, addresses)
        await plane.run(until=asked_to_stop)
        _log.info("control_plane_stopping")
    finally:
        await plane.stop()


def _warn_of_open_listeners(config: ControlPlaneConfig) -> None:
    if not is_loopback(config.http.listen_address):
        _log.warning("listens_beyond_this_machine_without_tls", listener="http", address=config.http.listen_address)
    if not config.grpc.tls.enabled and not is_loopback(config.grpc.listen_address):
        _log.warning("listens_beyond_this_machine_without_tls", listener="grpc", address=config.grpc.listen_address)


def _write_ready_file(path: Path, addresses: Addresses) -> None:
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps({"http": addresses.http, "grpc": addresses.grpc}))
    scratch.replace(path)


@click.group(invoke_without_command=True)
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="YAML file with the configuration.")
@click.option("--http-listen", metavar="HOST:PORT", help="Where the HTTP API listens. Default 127.0.0.1:8080.")
@click.option("--grpc-listen", metavar="HOST:PORT", help="Where the gRPC API listens. Default 127.0.0.1:8081.")
@click.option("--database-url", metavar="URL", help="Where state lives, e.g. sqlite:///limiquantix.db.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Least important level.")
@click.option("--migrate", "migrate_first", is_flag=True, help="Bring the database up to date before serving.")
@click.option("--ready-file", type=click.Path(path_type=Path), help="File to write the addresses to once serving.")
@click.version_option(package_name="limiquantix")
@click.pass_context
def main(
    context: click.Context,
    config_path: Path | None,
    http_listen: str | None,
    grpc_listen: str | None,
    database_url: str | None,
    log_level: str | None,
    migrate_first: bool,
    ready_file: Path | None,
) -> None:
    """Run the LimiQuantix control plane until it is asked to stop.

    Example: limiquantix-controlplane --database-url sqlite:///limiquantix.db
    """
    overrides: dict[str, Any] = {}
    for value, section, key in (
        (http_listen, "http", "listen_address"),
        (grpc_listen, "grpc", "listen_address"),
        (database_url, "database", "url"),
        (log_level, "log", "level"),
    ):
        if value is not None:
            overrides.setdefault(section, {})[key] = value
    try:
        config = load_config(config_path, overrides)
    except (ConfigFileUnusable, pydantic.ValidationError) as error:
        raise click.ClickException(str(error)) from error
    context.obj = config
    if context.invoked_subcommand is None:
        configure_logging(config.log.level, LogFormat(config.log.style))
        if migrate_first:
            _exit_on_failure(lambda: _log.info("database_migrated", revision=_migrated(config.database.url)))
        _exit_on_failure(lambda: uvloop.run(serve(config, ready_file)))


@main.command(name="migrate")
@click.pass_obj
def migrate_command(config: ControlPlaneConfig) -> None:
    """Bring the database to the schema this version needs. Safe to repeat.

    Example: limiquantix-controlplane --database-url sqlite:///limiquantix.db migrate
    """
    _exit_on_failure(lambda: click.echo(f"database is at revision {_migrated(config.database.url)}"))


def _store(settings: DatabaseSettings) -> Store:
    try:
        return create_store(settings.url, StoreLimits.for_connections(settings.pool_size))
    except (ValueError, RuntimeError) as error:
        raise click.ClickException(f"database.url: {error}") from error


def _migrated(url: str) -> str:
    try:
        return migrate(url)
    except (ValueError, RuntimeError) as error:
        raise click.ClickException(f"database.url: {error}") from error
    except OSError as error:
        raise click.ClickException(f"the database cannot be made: {error.filename}: {error.strerror}") from error
    except DBAPIError as error:
        detail = unavailability(error)
        if detail is None:
            raise
        raise click.ClickException(f"the database cannot be migrated: {detail}") from error


def _exit_on_failure(action: Callable[[], None]) -> None:
    """Turn the failures an operator can mend into one line and exit status 1."""
    try:
        action()
    except (AddressInUse, SchemaMismatch) as error:
        raise click.ClickException(str(error)) from error
    except ApiError as error:
        raise click.ClickException(error.message) from error


if __name__ == "__main__":
    sys.exit(main())
