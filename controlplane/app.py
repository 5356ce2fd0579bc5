"""One control-plane process and its command: starts and stops what `controlplane.composition` builds."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pydantic
import structlog
import uvloop
from sqlalchemy.exc import DBAPIError

from controlplane.api.http.endpoints import version
from controlplane.composition.api import served_of, servers_of
from controlplane.composition.balancing import balancing_of
from controlplane.composition.coordination import coordinator_of
from controlplane.composition.core import core_of
from controlplane.composition.ha import high_availability_of
from controlplane.composition.listening import listening_of
from controlplane.composition.rules import utc_now
from controlplane.config import (
    ConfigFileUnusable,
    ControlPlaneConfig,
    DatabaseSettings,
    is_loopback,
    load_config,
)
from controlplane.coordination.interface import Coordinator
from controlplane.power.check_command import check
from controlplane.power.devices import DevicesUnusable
from controlplane.reconcile.evictor import Evictor
from controlplane.reconcile.keeper import Keeper
from controlplane.services.metrics_feeds import MetricsFeeds
from controlplane.state.engine import SWITCH_INTERVAL_S, StoreLimits
from controlplane.state.factory import create_store, migrate
from controlplane.state.faults import unavailability
from controlplane.state.interface import SchemaMismatch, Store
from limiquantix.errors import ApiError
from limiquantix.rpc.server import AddressInUse
from telemetry.logs import LogFormat, configure_logging

_log = structlog.get_logger(__name__)

SHUTDOWN_GRACE_S = 10.0
"""Running operations get this long to end when the process is asked to stop."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the process listens, with the ports it really got."""

    http: str
    grpc: str


class ControlPlane:
    """All parts of one control-plane process, wired together.

    Args:
        coordinator: of all processes on this database; None switches high availability off, whatever `ha` says.
    """

    def __init__(self, config: ControlPlaneConfig, database: Store, coordinator: Coordinator | None = None) -> None:
        self._config = config
        self._coordinator = coordinator
        self._core = core_of(config, database, restarts_vms=coordinator is not None)
        self._listening = listening_of(self._core, coordinator)
        self._feeds = MetricsFeeds(self._core.daemons)
        self._balancing = balancing_of(self._core, self._feeds, self._listening.hearing)
        self._keeper = Keeper(self._core.store, self._core.desk, utc_now)
        self._evictor = Evictor(self._core.store, self._core.moves, utc_now)
        self._ha = high_availability_of(self._core, self._balancing.alerts, self._listening, coordinator)
        services = served_of(self._core, self._balancing, self._listening, self._ha, self._feeds)
        self._servers = servers_of(self._core, services, coordinator)
        self._background: asyncio.Task[None] | None = None

    async def start(self) -> Addresses:
        """Listen and serve.

        Raises:
            AddressInUse: an address cannot be bound.
            SchemaMismatch: the database needs a migration.
        """
        await self._core.store.open()
        await self._core.worker.register()
        grpc_port = await self._servers.rpc.start(self._config.grpc.listen_address)
        http_port = await self._servers.http.start(self._config.http.listen_address)
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
                self._listening.heartbeats,
                self._core.worker,
                self._keeper,
                self._evictor,
                self._balancing.balancer,
                self._ha.guests,
                self._core.hub,
                self._core.compactor,
                *([self._listening.leases] if self._listening.leases is not None else ()),
                *([self._ha.manager] if self._ha.manager is not None else ()),
            ):
                group.create_task(work.run(), name=type(work).__name__)

    async def stop(self) -> None:
        """Refuse new calls, let running operations end, store what is pending, let go of everything."""
        self._core.hub.stop()
        await self._feeds.stop()
        await self._servers.http.stop()
        await self._servers.rpc.stop(SHUTDOWN_GRACE_S)
        await self._core.worker.stop(SHUTDOWN_GRACE_S)
        if self._background is not None:
            self._background.cancel()
            await asyncio.wait([self._background])
            try:
                await self._listening.heartbeats.flush()
            except ApiError as error:
                _log.warning("last_heartbeats_not_stored", reason=error.reason)
        await self._core.daemons.close()
        if self._coordinator is not None:
            await self._coordinator.close()
        await self._core.store.close()


def _with_port(address: str, port: int) -> str:
    return f"{address.rpartition(':')[0]}:{port}"


async def serve(config: ControlPlaneConfig, ready_file: Path | None) -> None:
    """Run until SIGTERM or SIGINT."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    asked_to_stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop.set)
    plane = ControlPlane(config, _store(config.database), _coordinator(config))
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


@main.command(name="shorten-wait")
@click.pass_obj
def shorten_wait_command(config: ControlPlaneConfig) -> None:
    """Have fenced hosts waited for no longer than this configuration needs (ha.proof_wait_s).

    How long a lease may last is recorded when a control plane with longer times starts, and stays so. Run this only
    when every control plane has run with the shorter times for longer than the wait that was recorded before: a host
    may keep VMs running by a lease that it got under the old ones.

    Example: limiquantix-controlplane --config controlplane.yaml shorten-wait
    """
    _exit_on_failure(lambda: click.echo(f"fenced hosts are waited for {uvloop.run(_shorten_wait(config)):g} s"))


async def _shorten_wait(config: ControlPlaneConfig) -> float:
    store, times = _store(config.database), config.ha.times
    await store.open()
    try:
        return await store.run(lambda tx: tx.declare_wait(times.declared_wait_ms, may_shorten=True)) / 1000
    except ApiError as error:
        raise click.ClickException(error.message) from error
    finally:
        await store.close()


@main.command(name="power-check")
@click.option("--host", help="Ask only the controller of this host.")
@click.pass_obj
def power_check_command(config: ControlPlaneConfig, host: str | None) -> None:
    """Ask each power controller for the state of its host. Cuts nothing.

    Example: limiquantix-controlplane --config controlplane.yaml power-check --host node1
    """
    check(config.power.devices_path, host, config.power.limit_s)


def _store(settings: DatabaseSettings) -> Store:
    try:
        return create_store(settings.url, StoreLimits.for_connections(settings.pool_size))
    except (ValueError, RuntimeError) as error:
        raise click.ClickException(f"database.url: {error}") from error


def _coordinator(config: ControlPlaneConfig) -> Coordinator | None:
    try:
        return coordinator_of(config)
    except OSError as error:
        raise click.ClickException(f"coordination.tls: {error.filename}: {error.strerror}") from error


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
    except (AddressInUse, SchemaMismatch, DevicesUnusable) as error:
        raise click.ClickException(str(error)) from error
    except ApiError as error:
        raise click.ClickException(error.message) from error


if __name__ == "__main__":
    sys.exit(main())
