"""Composition root of the node daemon and its command `limiquantix-node`."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import click
import structlog
import uvloop

from hypervisor.base import Hypervisor
from hypervisor.errors import HypervisorError
from hypervisor.mock.host import MockSettings
from hypervisor.registry import Backend, HypervisorSettings, create_hypervisor
from hypervisor.types import Accelerator
from limiquantix.errors import ApiError
from limiquantix.node.v1.node_daemon_pb2_grpc import add_NodeDaemonServiceServicer_to_server
from limiquantix.rpc.pipeline import CallPipeline
from limiquantix.rpc.server import AddressInUse, RpcServer, TlsFiles
from nodedaemon.change_count import DataDirError, StateChanges, next_boot_number
from nodedaemon.commands import Commands
from nodedaemon.config import ConfigError, NodeConfig, is_loopback, join_address, load_config, split_address
from nodedaemon.control_plane import GrpcControlPlane
from nodedaemon.disk_images import DiskImages
from nodedaemon.fence_gate import FenceGate
from nodedaemon.generations import Generations, open_generations
from nodedaemon.guest_facts import GuestFacts
from nodedaemon.guest_watch import GuestWatch
from nodedaemon.host_report import AGENT_VERSION, HostReport
from nodedaemon.observer import VmObserver
from nodedaemon.planned_shutdown import PlannedShutdown, read_host_end
from nodedaemon.registration import Registration
from nodedaemon.reporter import Reporter
from nodedaemon.self_fencing.guard_link import GuardLink, default_run_dir
from nodedaemon.self_fencing.keeper import SelfFencing
from nodedaemon.self_fencing.memory import open_memory
from nodedaemon.servicer import SERVICE, NodeDaemonServicer
from nodedaemon.storage_health import StorageHealth
from nodedaemon.storage_paths import StoragePaths
from nodedaemon.vm_actor import VmActors
from nodedaemon.vm_migrations import MigrationSettings
from telemetry.host import UsageSampler, read_host_facts
from telemetry.logs import LogFormat, configure_logging
from telemetry.metrics import RpcMetrics, build_registry, start_metrics_server

FORGET_INTERVAL_S = 3600.0
"""How often generations of VMs long gone are dropped; also how much of its running time a killed daemon forgets."""

STOP_GRACE_S = 10.0
"""For calls under way when the daemon is told to end; systemd waits 90 s before it kills."""

_CLOSE_DEADLINE_S = 5.0
_ENV_PREFIX = "LIMIQUANTIX"

_log = structlog.get_logger(__name__)


class StartError(Exception):
    """The daemon cannot start; the message says why and what to do."""


@click.command(context_settings={"auto_envvar_prefix": _ENV_PREFIX, "help_option_names": ["-h", "--help"]})
@click.version_option(AGENT_VERSION, prog_name="limiquantix-node")
@click.option(
    "--config",
    "config_path",
    envvar=f"{_ENV_PREFIX}_CONFIG",
    type=click.Path(path_type=Path),
    help="Configuration file; must exist. Default: /etc/limiquantix/node.yaml if it is there.",
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Default: info.")
@click.option("--listen", metavar="HOST:PORT", help="Address of the gRPC service. Default: 127.0.0.1:9090.")
@click.option("--control-plane", metavar="URL", help="gRPC address of the control plane; several, by commas.")
@click.option("--node-id", metavar="ID", help="Id of this node until the control plane assigns one.")
@click.option("--register", is_flag=True, default=None, help="Register at the control plane and send heartbeats.")
@click.option("--libvirt-uri", metavar="URI", help="Default: qemu:///system.")
@click.option("--dev", is_flag=True, default=None, help="Simulate a hypervisor instead of using libvirt.")
def main(
    config_path: Path | None,
    log_level: str | None,
    listen: str | None,
    control_plane: str | None,
    node_id: str | None,
    register: bool | None,
    libvirt_uri: str | None,
    dev: bool | None,
) -> None:
    """Run the node daemon: virtual machines of this host, on behalf of the control plane.

    Each option is also an environment variable (LIMIQUANTIX_LISTEN and so on); any setting of the configuration file is
    LIMIQUANTIX_SECTION__NAME.
    """
    flags: dict[str, dict[str, object]] = {
        "log": {"level": log_level},
        "server": {"listen_address": listen},
        "control_plane": {"address": control_plane, "registration_enabled": register or None},
        "node": {"id": node_id},
        "hypervisor": {"libvirt_uri": libvirt_uri, "backend": "mock" if dev else None},
    }
    given = {
        section: {name: value for name, value in values.items() if value is not None}
        for section, values in flags.items()
    }
    try:
        config = load_config(config_path, given)
        configure_logging(config.log.level.value, LogFormat(config.log.format))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(config))
    except (ConfigError, StartError) as error:
        click.echo(f"limiquantix-node: {error}", err=True)
        sys.exit(1)


async def run(config: NodeConfig) -> None:
    """Run the daemon until SIGTERM or SIGINT; VMs go on running afterwards.

    Raises:
        StartError: something it needs is not there.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        try:
            background, shutdown = await _start(config, stack)
        except (HypervisorError, DataDirError, AddressInUse, OSError) as error:
            raise StartError(str(error)) from error
        until_stopped = asyncio.create_task(stop.wait(), name="stop")
        done, _ = await asyncio.wait([until_stopped, *background], return_when=asyncio.FIRST_COMPLETED)
        until_stopped.cancel()
        for task in done - {until_stopped}:
            task.result()  # raises: background work ends only by a defect
        _log.info("stopping")
        if (kind := await read_host_end(config.shutdown.marker_path)) is not None:
            await shutdown.carry_out(kind)


async def _start(config: NodeConfig, stack: AsyncExitStack) -> tuple[list[asyncio.Task[None]], PlannedShutdown]:
    """Start every part, the listening ones last; `stack` undoes it in reverse.

    Returns:
        What runs in the background, and what is to be done when the machine goes down.
    """
    _warn_of_open_listener(config)
    boot_number = await asyncio.to_thread(next_boot_number, config.node.data_dir, time.time())
    generations = await open_generations(config.node.data_dir)
    stack.push_async_callback(generations.close)
    management_ip = (await asyncio.to_thread(read_host_facts)).management_ip
    hypervisor = create_hypervisor(_hypervisor_settings(config, management_ip))
    await hypervisor.open()
    stack.push_async_callback(hypervisor.close)

    fencing = await _fencing(config, stack, hypervisor)
    planes = _ControlPlanes(config, stack)
    lasting: list[asyncio.Task[None]] = []
    stack.push_async_callback(_cancel, lasting)  # late: while calls get their time to end, the lease must not
    guests: dict[str, GuestFacts] = {}
    observer = VmObserver(hypervisor, StateChanges(boot_number), generations.newest, guests=guests)
    with suppress(ApiError, TimeoutError):  # what exists now began before us; if nothing answers, so be it
        await observer.read_all()
    paths = StoragePaths(config.hypervisor.storage_path)
    await asyncio.to_thread(paths.root.mkdir, parents=True, exist_ok=True)
    report = HostReport(
        hypervisor,
        observer,
        UsageSampler(paths.root),
        hostname=config.node.hostname or socket.gethostname(),
        labels=config.node.labels,
        node_id=config.node.id,
        storage_root=paths.root,
    )
    actors = VmActors(config.limits.concurrent_operations, config.limits.queued_operations_per_vm)
    stack.push_async_callback(actors.close, STOP_GRACE_S)
    gate = FenceGate(fencing)
    commands = Commands(actors, generations, gate)
    fencing.watch_changes(commands.under_way)
    # The generated stub calls every method abstract; those not overridden answer UNIMPLEMENTED.
    servicer = NodeDaemonServicer(  # type: ignore[abstract]
        hypervisor,
        observer,
        commands,
        DiskImages(paths),
        paths,
        report,
        MigrationSettings(config.node.data_dir / "migrations", config.node.data_dir / "console"),
        fencing,
    )
    stack.push_async_callback(servicer.close)
    await servicer.migrations.start()
    registry = build_registry()
    host, _ = split_address(config.server.listen_address)
    metrics_port = _serve_metrics(join_address(host, config.server.metrics_port), registry, stack)
    server = RpcServer(
        CallPipeline({}, RpcMetrics(registry)),
        [SERVICE],
        lambda s: add_NodeDaemonServiceServicer_to_server(servicer, s),
        _tls_files(config),
        gate.admit,
    )
    port = await server.start(config.server.listen_address)
    stack.push_async_callback(server.stop, STOP_GRACE_S)
    report.serve_at(config.server.listen_address, port, config.server.advertise_address)
    _log.info(
        "listening",
        grpc_address=join_address(host, port),
        metrics_address=join_address(host, metrics_port),
        backend=config.hypervisor.backend,
        storage_path=str(paths.root),
    )
    forgetting = asyncio.create_task(_forget_regularly(generations, observer), name="generations")
    reporting, tell = _reporting(config, stack, planes, hypervisor.subscribe, observer, report, fencing)
    watch = GuestWatch(hypervisor, guests, tell)
    stack.callback(hypervisor.subscribe(watch.on_event))
    stack.callback(hypervisor.subscribe(servicer.bandwidths.on_event))
    shaping = asyncio.create_task(servicer.bandwidths.run(), name="bandwidths")
    lasting += [asyncio.create_task(fencing.run(), name="self-fencing"), *reporting]
    tasks = [
        forgetting,
        shaping,
        asyncio.create_task(watch.run(), name="guest-watch"),
        _watch_storage(paths, report),
    ]
    stack.push_async_callback(_cancel, tasks)
    shutdown = PlannedShutdown(
        hypervisor,
        planes.any,
        lambda: report.node_id,
        fencing.boot_id,
        stop_s=config.shutdown.vm_stop_secs,
        migrate_s=config.shutdown.migrate_secs,
    )
    return [*tasks, *lasting], shutdown


def _serve_metrics(address: str, registry: Any, stack: AsyncExitStack) -> int:
    """Serve metrics until the end; returns the port.

    Raises:
        StartError: the address cannot be had.
    """
    try:
        metrics = start_metrics_server(address, registry)
    except OSError as error:
        raise StartError(f"cannot serve metrics on {address}: {error.strerror}") from error
    stack.push_async_callback(asyncio.to_thread, metrics.stop)
    return metrics.port


def _watch_storage(paths: StoragePaths, report: HostReport) -> asyncio.Task[None]:
    storage = StorageHealth(paths.root)
    report.tell_lost_storage(lambda: storage.lost_ids)
    return asyncio.create_task(storage.run(), name="storage-health")


async def _fencing(config: NodeConfig, stack: AsyncExitStack, hypervisor: Hypervisor) -> SelfFencing:
    """Begin with what this host was told before; VMs whose lease ended meanwhile are killed as soon as it runs."""
    settings, processes = config.self_fencing, hypervisor.processes
    memory = await asyncio.to_thread(open_memory, config.node.data_dir)
    stack.callback(memory.close)
    has_processes = processes is not None and processes.pid_dir is not None
    obstacle = "" if settings.enabled else "self_fencing.enabled is false in the node daemon's configuration"
    if has_processes and settings.guard == "off" and not obstacle:
        obstacle = "self_fencing.guard is off in the node daemon's configuration"
    beside = config.node.data_dir / "guard"  # a simulated host leaves nothing elsewhere
    run_dir = settings.run_dir or (default_run_dir(config.node.data_dir) if has_processes else beside)
    guard = GuardLink(
        run_dir,
        config.node.boot_id_path,
        starts=has_processes and settings.guard == "spawn" and settings.enabled,
        watchdog_device=settings.watchdog_device,
    )
    boot_id = (await asyncio.to_thread(config.node.boot_id_path.read_text)).strip()
    return SelfFencing(
        memory, processes, guard, boot_id=boot_id, kill_ms=int(settings.kill_s * 1000), obstacle=obstacle
    )


class _ControlPlanes:
    """Connections: `any` goes to whichever instance answers and is None if there is none to tell, `each` has all."""

    def __init__(self, config: NodeConfig, stack: AsyncExitStack) -> None:
        addresses = config.control_plane.addresses if config.control_plane.registration_enabled else ()
        self.any = GrpcControlPlane(addresses, _tls_files(config)) if addresses else None
        self.each = [GrpcControlPlane([address], _tls_files(config)) for address in addresses]
        for connection in (*self.each, *((self.any,) if self.any is not None else ())):
            stack.push_async_callback(connection.close)


async def _forget_regularly(generations: Generations, observer: VmObserver) -> None:
    """Keep the generations of VMs that are long gone from adding up."""
    while True:
        try:
            dropped = await generations.forget_unused({vm.status.vm_id for vm in await observer.read_all()})
            if dropped:
                _log.info("generations_forgotten", vm_count=dropped)
        except (ApiError, TimeoutError) as error:
            _log.warning("generations_not_forgotten", error=str(error) or "time-out")
        await asyncio.sleep(FORGET_INTERVAL_S)


def _reporting(
    config: NodeConfig,
    stack: AsyncExitStack,
    planes: _ControlPlanes,
    subscribe: Any,
    observer: VmObserver,
    report: HostReport,
    fencing: SelfFencing,
) -> tuple[list[asyncio.Task[None]], Callable[[str], None]]:
    """Start registration and reporting if there is a control plane to tell.

    Returns:
        The tasks, for the caller to end, and a function that has a VM reported.
    """
    if planes.any is None:
        return [], lambda vm_id: None
    reporter = Reporter(observer, planes.any, report.full_state)
    stack.callback(subscribe(reporter.on_event))
    registration = Registration(
        planes.any,
        report,
        reporter,
        float(config.control_plane.heartbeat_interval_secs),
        instances=planes.each,
        fencing=fencing,
    )
    tasks = [
        asyncio.create_task(reporter.run(), name="reporter"),
        asyncio.create_task(registration.run(), name="registration"),
    ]
    return tasks, reporter.vm_has_news


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_CLOSE_DEADLINE_S)


def _hypervisor_settings(config: NodeConfig, management_ip: str) -> HypervisorSettings:
    mock, accelerator = config.hypervisor.mock, config.hypervisor.accelerator
    return HypervisorSettings(
        backend=Backend(config.hypervisor.backend),
        libvirt_uri=config.hypervisor.libvirt_uri,
        console_log_dir=config.node.data_dir / "console",
        accelerator=None if accelerator == "auto" else Accelerator(accelerator),
        peer_uri=config.migration.peer_uri(management_ip),
        pki_path=config.migration.pki_path,
        mock=MockSettings(
            vcpu_count=mock.vcpu_count,
            memory_mib=mock.memory_mib,
            boot_s=mock.boot_secs,
            shutdown_s=mock.shutdown_secs,
            bridges=mock.bridges,
            host_networks=mock.host_networks,
            migration_bytes_s=mock.migration_mib_per_sec * 2**20,
            state_path=config.node.data_dir / "mock-vms.json",
        ),
    )


def _tls_files(config: NodeConfig) -> TlsFiles | None:
    tls = config.tls
    if not tls.enabled or tls.cert_path is None or tls.key_path is None:
        return None
    return TlsFiles(tls.cert_path, tls.key_path, tls.ca_path)


def _warn_of_open_listener(config: NodeConfig) -> None:
    address = config.server.listen_address
    if not config.tls.enabled and not is_loopback(address):
        _log.warning(
            "plaintext_listener",
            grpc_address=address,
            advice="whoever reaches this port commands every VM of this host; set tls.enabled or listen on 127.0.0.1",
        )
    if not config.migration.tls:
        _log.warning(
            "plaintext_migration", advice="what guests have in memory can be read on the way; set migration.tls"
        )


if __name__ == "__main__":
    main()
