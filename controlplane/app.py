"""One control-plane process and its command: starts and stops what `controlplane.composition` builds."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import pydantic
import structlog
import uvloop
from sqlalchemy.exc import DBAPIError

from controlplane.api.http.endpoints import version
from controlplane.api.http.tls import CertificateUnusable
from controlplane.audit.machine import recorded
from controlplane.authority.certificates import AuthorityUnusable
from controlplane.composition.api import served_of, servers_of
from controlplane.composition.balancing import balancing_of
from controlplane.composition.coordination import coordinator_of
from controlplane.composition.core import core_of
from controlplane.composition.ha import high_availability_of
from controlplane.composition.listening import listening_of
from controlplane.composition.rules import utc_now
from controlplane.composition.schema import MigrationUnrecorded, bring_up_to_date
from controlplane.composition.security import Security, open_security
from controlplane.config import (
    ConfigFileUnusable,
    ControlPlaneConfig,
    DatabaseSettings,
    is_loopback,
    load_config,
)
from controlplane.coordination.interface import Coordinator
from controlplane.identity.admin_command import admin
from controlplane.power.check_command import check
from controlplane.power.devices import DevicesUnusable
from controlplane.reconcile.evictor import Evictor
from controlplane.reconcile.keeper import Keeper
from controlplane.secrets.box import SecretUnreadable
from controlplane.secrets.command import secrets
from controlplane.secrets.keyring import Keyring, seal_everything
from controlplane.secrets.wrapping import KeysUnusable
from controlplane.services.metrics_feeds import MetricsFeeds
from controlplane.state.engine import SWITCH_INTERVAL_S, StoreLimits
from controlplane.state.factory import create_store
from controlplane.state.faults import unavailability
from controlplane.state.interface import SchemaMismatch, Store
from controlplane.state.seals import NO_SEALS, Seals
from limiquantix.errors import ApiError
from limiquantix.rpc.server import AddressInUse
from telemetry.garbage import ShortCollections
from telemetry.logs import LogFormat, configure_logging

_log = structlog.get_logger(__name__)

SHUTDOWN_GRACE_S = 10.0
"""Running operations get this long to end when the process is asked to stop."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the process listens, with the ports it really got."""

    http: str
    grpc: str
    hosts: str = ""
    """"" for parts of a single process, where hosts use `grpc`."""


class ControlPlane:
    """All parts of one control-plane process, wired together.

    Args:
        coordinator: of all processes on this database; None switches high availability off, whatever `ha` says.
        security: who may call, and what; None for one among parts of a single process, which listens, if at all, to
            this machine only.
    """

    def __init__(
        self,
        config: ControlPlaneConfig,
        database: Store,
        coordinator: Coordinator | None = None,
        security: Security | None = None,
    ) -> None:
        self._config = config
        self._coordinator = coordinator
        self._security = security
        machine = security.own.credentials if security is not None else None
        self._core = core_of(config, database, restarts_vms=coordinator is not None, machine=machine)
        self._listening = listening_of(self._core, coordinator)
        self._feeds = MetricsFeeds(self._core.daemons)
        self._balancing = balancing_of(self._core, self._feeds, self._listening.hearing)
        self._keeper = Keeper(self._core.store, self._core.desk, utc_now)
        self._evictor = Evictor(self._core.store, self._core.moves, utc_now)
        self._ha = high_availability_of(self._core, self._balancing.alerts, self._listening, coordinator)
        services = served_of(self._core, self._balancing, self._listening, self._ha, self._feeds, security)
        self._servers = servers_of(self._core, services, coordinator, security)
        self._background: asyncio.Task[None] | None = None

    async def start(self) -> Addresses:
        """Listen and serve.

        Raises:
            AddressInUse: an address cannot be bound.
            SchemaMismatch: the database needs a migration.
        """
        listeners = (self._config.http.listen_address, self._config.grpc.listen_address)
        if self._security is None and not all(map(is_loopback, listeners)):
            raise RuntimeError("a control plane that lets everybody in must not listen beyond this machine")
        await self._core.store.open()
        await self._core.worker.register()
        await self._learn_nodes()
        grpc_port = await self._servers.rpc.start(self._config.grpc.listen_address)
        if self._security is not None:
            self._security.floods.port = grpc_port
        http_port = await self._servers.http.start(self._config.http.listen_address)
        hosts = ""
        if self._servers.hosts is not None:
            address = self._config.security.hosts_listen_address
            hosts = _with_port(address, await self._servers.hosts.start(address))
        self._background = asyncio.get_running_loop().create_task(self._run_in_background())
        return Addresses(
            http=_with_port(self._config.http.listen_address, http_port),
            grpc=_with_port(self._config.grpc.listen_address, grpc_port),
            hosts=hosts,
        )

    async def _learn_nodes(self) -> None:
        """Read all nodes before any is heard: thousands take a second, in which hosts would wait for their answers."""
        kept = self._core.memory.kept
        try:
            kept.at_once = await self._core.store.read(kept.at_once.look)
            await self._listening.heartbeats.refresh()
        except ApiError as error:
            _log.warning("nodes_not_read", reason=error.reason, message=error.message)

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
                *(self._security.background if self._security is not None else ()),
            ):
                group.create_task(work.run(), name=type(work).__name__)

    async def stop(self) -> None:
        """Refuse new calls, let running operations end, store what is pending, let go of everything."""
        self._core.hub.stop()
        await self._feeds.stop()
        await self._servers.http.stop()
        await self._servers.rpc.stop(SHUTDOWN_GRACE_S)
        if self._servers.hosts is not None:
            await self._servers.hosts.stop(SHUTDOWN_GRACE_S)
        await self._core.worker.stop(SHUTDOWN_GRACE_S)
        if self._background is not None:
            self._background.cancel()
            await asyncio.wait([self._background])
            try:
                await self._listening.heartbeats.flush()
            except ApiError as error:
                _log.warning("last_heartbeats_not_stored", reason=error.reason)
        await self._core.daemons.close()
        if self._security is not None:
            await self._security.stop()
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
    collections = ShortCollections()
    plane = await open_plane(config)
    collections.install()
    try:
        addresses = await plane.start()
        _log.info("control_plane_started", version=version(), **asdict(addresses))
        if ready_file is not None:
            await asyncio.to_thread(_write_ready_file, ready_file, addresses)
        await plane.run(until=asked_to_stop)
        _log.info("control_plane_stopping")
    finally:
        await plane.stop()
        collections.uninstall()


async def open_plane(config: ControlPlaneConfig, coordinator: Coordinator | None = None) -> ControlPlane:
    """Build what the configuration says, over an open store, since the keys are in there.

    Args:
        coordinator: instead of the one of the configuration.

    Raises:
        KeysUnusable, SecretUnreadable, AuthorityUnusable, CertificateUnusable, SchemaMismatch: see their messages.
        ApiError: the database does not answer.
    """
    keyring = Keyring(config.secrets, utc_now)
    store = _store(config.database, Seals(keyring.box))
    await store.open()
    try:
        await keyring.unlock(store)
        await seal_everything(store)
        security = await open_security(config, store, keyring)
    except BaseException:
        await store.close()
        raise
    return ControlPlane(config, store, coordinator or _coordinator(config), security)


def _write_ready_file(path: Path, addresses: Addresses) -> None:
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(asdict(addresses)))
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
            _exit_on_failure(lambda: _log.info("database_migrated", revision=_migrated(config)))
        _exit_on_failure(lambda: uvloop.run(serve(config, ready_file)))


@main.command(name="migrate")
@click.pass_obj
def migrate_command(config: ControlPlaneConfig) -> None:
    """Bring the database to the schema this version needs. Safe to repeat.

    Example: limiquantix-controlplane --database-url sqlite:///limiquantix.db migrate
    """
    _exit_on_failure(lambda: click.echo(f"database is at revision {_migrated(config)}"))


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
    store, wait_ms = _store(config.database), config.ha.times.declared_wait_ms
    keyring = Keyring(config.secrets, utc_now)
    await store.open()
    try:
        await keyring.unlock(store)
        arguments = {"wait_s": f"{wait_ms / 1000:g}"}
        async with recorded(store, keyring.chain_key, "shorten-wait", arguments, utc_now):
            declared_ms = await store.run(lambda tx: tx.declare_wait(wait_ms, may_shorten=True))
        return declared_ms / 1000
    except ApiError as error:
        raise click.ClickException(error.message) from error
    finally:
        await store.close()


@main.command(name="authority")
@click.pass_obj
def authority_command(config: ControlPlaneConfig) -> None:
    """Print the certificate of the cluster's authority, for programs that call it over TLS.

    Example: limiquantix-controlplane --config controlplane.yaml authority > limiquantix-ca.pem
    """
    _exit_on_failure(lambda: click.echo(uvloop.run(_authority(config)), nl=False))


async def _authority(config: ControlPlaneConfig) -> str:
    store = _store(config.database)
    await store.open()
    try:
        found = await store.read(lambda tx: tx.authority())
    finally:
        await store.close()
    if found is None:
        raise click.ClickException("the cluster has no authority yet; the first start of a control plane makes it")
    return found.certificate_pem


@main.command(name="power-check")
@click.option("--host", help="Ask only the controller of this host.")
@click.pass_obj
def power_check_command(config: ControlPlaneConfig, host: str | None) -> None:
    """Ask each power controller for the state of its host. Cuts nothing.

    Example: limiquantix-controlplane --config controlplane.yaml power-check --host node1
    """
    check(config.power.devices_path, host, config.power.limit_s)


def _store(settings: DatabaseSettings, seals: Seals = NO_SEALS) -> Store:
    try:
        return create_store(settings.url, StoreLimits.for_connections(settings.pool_size), seals)
    except (ValueError, RuntimeError) as error:
        raise click.ClickException(f"database.url: {error}") from error


def _coordinator(config: ControlPlaneConfig) -> Coordinator | None:
    try:
        return coordinator_of(config)
    except OSError as error:
        raise click.ClickException(f"coordination.tls: {error.filename}: {error.strerror}") from error


def _migrated(config: ControlPlaneConfig) -> str:
    try:
        return bring_up_to_date(config)
    except (ValueError, RuntimeError) as error:
        raise click.ClickException(f"database.url: {error}") from error
    except OSError as error:
        raise click.ClickException(f"the database cannot be made: {error.filename}: {error.strerror}") from error
    except DBAPIError as error:
        detail = unavailability(error)
        if detail is None:
            raise
        raise click.ClickException(f"the database cannot be migrated: {detail}") from error


_UNUSABLE = (KeysUnusable, SecretUnreadable, AuthorityUnusable, CertificateUnusable)
"""What a control plane cannot begin with, each with what to do about it."""

main.add_command(admin)
main.add_command(secrets)


def _exit_on_failure(action: Callable[[], None]) -> None:
    """Turn the failures an operator can mend into one line and exit status 1."""
    try:
        action()
    except (AddressInUse, SchemaMismatch, MigrationUnrecorded, DevicesUnusable, *_UNUSABLE) as error:
        raise click.ClickException(str(error)) from error
    except ApiError as error:
        raise click.ClickException(error.message) from error


if __name__ == "__main__":
    sys.exit(main())
