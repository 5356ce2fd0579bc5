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

from controlplane.api.alert_servicer import AlertServicer
from controlplane.api.balancing_servicer import BalancingServicer
from controlplane.api.checks import CHECKS
from controlplane.api.http.application import build_application
from controlplane.api.http.connect import ServiceApplication
from controlplane.api.http.endpoints import routes, version
from controlplane.api.http.server import HttpServer
from controlplane.api.node_servicer import NodeServicer
from controlplane.api.operation_servicer import OperationServicer
from controlplane.api.placement_servicer import PlacementServicer
from controlplane.api.unfilled import FolderServicer
from controlplane.api.vm_servicer import VmServicer, VmServices
from controlplane.config import (
    ConfigFileUnusable,
    ControlPlaneConfig,
    DatabaseSettings,
    DrsSettings,
    TlsSettings,
    is_loopback,
    load_config,
)
from controlplane.daemons.grpc_pool import CallTimeouts, GrpcDaemonPool
from controlplane.domain.migration import MigrationRules
from controlplane.domain.node import CapacityPolicy
from controlplane.drs.snapshot import BalanceConfig
from controlplane.events.compaction import CompactionConfig, EventLogCompactor
from controlplane.events.hub import EventHub
from controlplane.events.waking_store import WakingStore
from controlplane.events.watch import Watches
from controlplane.operations.catalogue import with_scheduler
from controlplane.operations.desk import OperationDesk
from controlplane.operations.moves import Moves
from controlplane.operations.news import OperationNews
from controlplane.operations.node_drain import DrainNode
from controlplane.operations.runner import RetryPolicy, Runner
from controlplane.operations.worker import OperationWorker, WorkerConfig
from controlplane.reconcile.evictor import Evictor
from controlplane.reconcile.keeper import Keeper
from controlplane.reconcile.reports import HostReportService
from controlplane.scheduler.plan import SchedulerConfig
from controlplane.services.alert_watch import AlertWatch, Thresholds
from controlplane.services.alerts import AlertService
from controlplane.services.balancer import Balancer
from controlplane.services.balancing import BalancingConfig, BalancingService
from controlplane.services.balancing_costs import HostMeter
from controlplane.services.balancing_loads import FeedUsage, LoadConfig, LoadReader
from controlplane.services.balancing_moves import BalancingMoves
from controlplane.services.event_lists import EventListService
from controlplane.services.heartbeats import HeartbeatConfig, HeartbeatService
from controlplane.services.metrics import MetricsService
from controlplane.services.metrics_feeds import MetricsFeeds
from controlplane.services.migrations import MigrationService
from controlplane.services.moves import VmMoves
from controlplane.services.node_life import NodeLifeService
from controlplane.services.nodes import NodeService
from controlplane.services.opinions import PlacementOpinions
from controlplane.services.placement import NodeMemory
from controlplane.services.targets import target_chooser
from controlplane.services.vm_calls import VmAccess
from controlplane.services.watches import WatchService
from controlplane.state.engine import SWITCH_INTERVAL_S, StoreLimits
from controlplane.state.factory import create_store, migrate
from controlplane.state.faults import unavailability
from controlplane.state.interface import SchemaMismatch, Store
from limiquantix.compute.v1 import (
    alert_service_pb2,
    balancing_service_pb2,
    folder_service_pb2,
    node_service_pb2,
    operation_service_pb2,
    placement_service_pb2,
    vm_service_pb2,
)
from limiquantix.compute.v1.alert_service_pb2_grpc import add_AlertServiceServicer_to_server
from limiquantix.compute.v1.balancing_service_pb2_grpc import add_BalancingServiceServicer_to_server
from limiquantix.compute.v1.folder_service_pb2_grpc import add_FolderServiceServicer_to_server
from limiquantix.compute.v1.node_service_pb2_grpc import add_NodeServiceServicer_to_server
from limiquantix.compute.v1.operation_service_pb2_grpc import add_OperationServiceServicer_to_server
from limiquantix.compute.v1.placement_service_pb2_grpc import add_PlacementServiceServicer_to_server
from limiquantix.compute.v1.vm_service_pb2_grpc import add_VMServiceServicer_to_server
from limiquantix.errors import ApiError
from limiquantix.rpc.pipeline import CallPipeline
from limiquantix.rpc.server import AddressInUse, RpcServer, TlsFiles
from telemetry.logs import LogFormat, configure_logging
from telemetry.metrics import RpcMetrics, build_registry
from telemetry.overload import OverloadRules

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
        scheduler = SchedulerConfig(config.scheduler.strategy)
        rules = MigrationRules(
            node_units=config.migrations.node_units,
            cluster_units=config.migrations.cluster_units,
            patience_s=config.migrations.patience_s,
            confirmation_s=config.migrations.confirmation_s,
            bandwidth_mbps=config.migrations.bandwidth_mbps,
        )
        memory = NodeMemory()
        choose = target_chooser(scheduler, memory)
        # What moves VMs needs the desk, and the desk all workflows: so a drain asks for it when it begins.
        workflows = with_scheduler(choose, rules).with_(DrainNode(lambda: self._moves))
        runner = Runner(store, self._daemons, workflows, utc_now, RetryPolicy(), news.changed)
        worker_config = WorkerConfig(
            lease_s=config.operations.lease_s,
            renewal_interval_s=config.operations.lease_s / RENEWALS_PER_LEASE,
            kept_days=config.operations.kept_days,
        )
        self._worker = OperationWorker(store, runner, news, utc_now, worker_config, socket.gethostname())
        desk = OperationDesk(store, workflows, self._worker, news, utc_now)
        access = VmAccess(store, self._daemons, desk)
        migrations = MigrationService(access, choose, rules)
        self._moves: Moves = VmMoves(migrations, desk)
        self._keeper = Keeper(store, desk, utc_now)
        self._evictor = Evictor(store, self._moves, utc_now)
        policy = CapacityPolicy(
            cpu_overcommit_ratio=config.scheduler.cpu_overcommit_ratio,
            memory_overcommit_ratio=config.scheduler.memory_overcommit_ratio,
            reserved_cores=config.scheduler.reserved_cores,
            reserved_memory_bytes=config.scheduler.reserved_memory_mib * 2**20,
        )
        heartbeat_config = HeartbeatConfig(
            interval_s=config.nodes.heartbeat_interval_s,
            overload=OverloadRules(
                cpu_percent=config.nodes.overload_cpu_percent,
                memory_percent=config.nodes.overload_memory_percent,
                measure_count=config.nodes.overload_heartbeat_count,
            ),
        )
        self._heartbeats = HeartbeatService(store, utc_now, heartbeat_config)
        self._feeds = MetricsFeeds(self._daemons)
        metrics = MetricsService(store, self._feeds)
        # Documented methods that this version does not fill are inherited and answer UNIMPLEMENTED, hence the ignores;
        # tests/contract/test_filled_methods.py lists them.
        vm_servicer = VmServicer(
            VmServices.of(
                access,
                scheduler,
                utc_now,
                watches,
                event_lists,
                metrics,
                migrations,
                memory,
            )
        )
        placement_servicer = PlacementServicer(PlacementOpinions(store, scheduler, utc_now, memory))
        node_servicer = NodeServicer(  # type: ignore[abstract]
            NodeService(store, policy, utc_now),
            self._heartbeats,
            HostReportService(store, desk, utc_now),
            watches,
            event_lists,
            metrics,
            NodeLifeService(store, desk, policy, utc_now, heartbeat_config.patience),
        )
        folder_servicer = FolderServicer()  # type: ignore[abstract]
        operation_servicer = OperationServicer(desk)
        balancing_servicer, alert_servicer = self._balancing(config, migrations, desk)
        served = (
            (vm_service_pb2.DESCRIPTOR.services_by_name["VMService"], vm_servicer),
            (node_service_pb2.DESCRIPTOR.services_by_name["NodeService"], node_servicer),
            (folder_service_pb2.DESCRIPTOR.services_by_name["FolderService"], folder_servicer),
            (operation_service_pb2.DESCRIPTOR.services_by_name["OperationService"], operation_servicer),
            (balancing_service_pb2.DESCRIPTOR.services_by_name["BalancingService"], balancing_servicer),
            (alert_service_pb2.DESCRIPTOR.services_by_name["AlertService"], alert_servicer),
            (placement_service_pb2.DESCRIPTOR.services_by_name["PlacementService"], placement_servicer),
        )
        names = [descriptor.full_name for descriptor, _ in served]
        registry = build_registry()
        pipeline = CallPipeline(CHECKS, RpcMetrics(registry))

        def add_services(server: Any) -> None:
            add_VMServiceServicer_to_server(vm_servicer, server)
            add_NodeServiceServicer_to_server(node_servicer, server)
            add_FolderServiceServicer_to_server(folder_servicer, server)
            add_OperationServiceServicer_to_server(operation_servicer, server)
            add_BalancingServiceServicer_to_server(balancing_servicer, server)
            add_AlertServiceServicer_to_server(alert_servicer, server)
            add_PlacementServiceServicer_to_server(placement_servicer, server)

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

    def _balancing(
        self, config: ControlPlaneConfig, migrations: MigrationService, desk: OperationDesk
    ) -> tuple[BalancingServicer, AlertServicer]:
        store, settings = self._store, config.drs
        alerts = AlertService(store, utc_now)
        loads = LoadReader(store, FeedUsage(self._feeds), _load_config(config), HostMeter(self._daemons))
        service = BalancingService(store, loads, _balancing_config(settings), utc_now)
        moves = BalancingMoves(store, service, migrations, desk, utc_now, copies_disks=settings.copies_disks)
        watch = AlertWatch(store, alerts, Thresholds(settings.cpu_threshold_percent, settings.memory_threshold_percent))
        self._balancer = Balancer(store, service, moves, watch, alerts, utc_now)
        return BalancingServicer(service, moves), AlertServicer(alerts)

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
            for work in (
                self._heartbeats,
                self._worker,
                self._keeper,
                self._evictor,
                self._balancer,
                self._hub,
                self._compactor,
            ):
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


def _load_config(config: ControlPlaneConfig) -> LoadConfig:
    return LoadConfig(
        hold_s=config.drs.hold_s,
        node_cool_down_s=config.drs.node_cool_down_s,
        copies_disks=config.drs.copies_disks,
        bandwidth_mbps=config.migrations.bandwidth_mbps,
    )


def _balancing_config(settings: DrsSettings) -> BalancingConfig:
    return BalancingConfig(
        is_enabled=settings.enabled,
        interval_s=settings.interval_s,
        automation=settings.automation,
        max_concurrent_moves=settings.max_concurrent_moves,
        planner=BalanceConfig(
            cpu_threshold_percent=settings.cpu_threshold_percent,
            memory_threshold_percent=settings.memory_threshold_percent,
            min_gain_points=settings.min_gain_points,
            min_difference_points=settings.min_difference_points,
            hysteresis_points=settings.hysteresis_points,
            max_moves=settings.max_moves,
            hold_s=settings.hold_s,
            node_cool_down_s=settings.node_cool_down_s,
            cluster_cool_down_s=settings.cluster_cool_down_s,
            headroom_failures=settings.headroom_failures,
        ),
    )


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
