"""Composition root of the node daemon and its command `limiquantix-node`."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import click
import structlog
import uvloop

from hypervisor.errors import HypervisorError
from limiquantix.errors import ApiError
from limiquantix.rpc.server import AddressInUse
from nodedaemon.change_count import DataDirError
from nodedaemon.composition.background import catch_up, planned_shutdown, run_background
from nodedaemon.composition.core import open_core, open_servicer
from nodedaemon.composition.ending import END_LIMIT_S, SILENT_END_LIMIT_S, end_within
from nodedaemon.composition.listening import StartError, listen, warn_of_plaintext
from nodedaemon.composition.machine import open_machine
from nodedaemon.config import ConfigError, NodeConfig, load_config
from nodedaemon.host_report import AGENT_VERSION
from nodedaemon.identity.command import join
from nodedaemon.identity.files import IdentityUnusable
from nodedaemon.planned_shutdown import PlannedShutdown, read_host_end
from telemetry.logs import LogFormat, configure_logging

_ENV_PREFIX = "LIMIQUANTIX"

_log = structlog.get_logger(__name__)


@click.group(
    invoke_without_command=True,
    context_settings={"auto_envvar_prefix": _ENV_PREFIX, "help_option_names": ["-h", "--help"]},
)
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
@click.option("--control-plane", metavar="URL", help="Its port for hosts, in place of what joining told; by commas.")
@click.option("--register/--no-register", default=None, help="Whether to register and send heartbeats. Default: yes.")
@click.option("--libvirt-uri", metavar="URI", help="Default: qemu:///system.")
@click.option("--dev", is_flag=True, default=None, help="Simulate a hypervisor instead of using libvirt.")
@click.pass_context
def main(
    context: click.Context,
    /,
    config_path: Path | None,
    log_level: str | None,
    listen: str | None,
    control_plane: str | None,
    register: bool | None,
    libvirt_uri: str | None,
    dev: bool | None,
) -> None:
    """Run the node daemon: virtual machines of this host, on behalf of the control plane.

    Each option is also an environment variable (LIMIQUANTIX_LISTEN and so on); any setting of the configuration file is
    LIMIQUANTIX_SECTION__NAME.
    """
    if context.invoked_subcommand is not None:
        return
    flags: dict[str, dict[str, object]] = {
        "log": {"level": log_level},
        "server": {"listen_address": listen},
        "control_plane": {"address": control_plane, "registration_enabled": register},
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


main.add_command(join)


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
        except (HypervisorError, DataDirError, IdentityUnusable, ApiError, AddressInUse, OSError) as error:
            raise StartError(str(error)) from error
        until_stopped = asyncio.create_task(stop.wait(), name="stop")
        done, _ = await asyncio.wait([until_stopped, *background], return_when=asyncio.FIRST_COMPLETED)
        until_stopped.cancel()
        for task in done - {until_stopped}:
            task.result()  # raises: background work ends only by a defect
        _log.info("stopping")
        if (kind := await read_host_end(config.shutdown.marker_path)) is not None:
            await shutdown.carry_out(kind)
        end_within(END_LIMIT_S)


async def _start(config: NodeConfig, stack: AsyncExitStack) -> tuple[list[asyncio.Task[None]], PlannedShutdown]:
    """Start every part, the listening ones last; `stack` undoes it in reverse.

    Returns:
        What runs in the background, and what is to be done when the machine goes down.
    """
    machine = await asyncio.to_thread(open_machine, config)
    warn_of_plaintext(config)
    core = await open_core(config, stack, machine, partial(end_within, SILENT_END_LIMIT_S))
    servicer = await open_servicer(config, stack, core)
    await catch_up(core, servicer)
    port = await listen(config, stack, servicer, core.gate, machine)
    core.report.serve_at(config.server.listen_address, port, config.server.advertise_address)
    background = run_background(config, stack, core, servicer, machine)
    return background, planned_shutdown(config, core)
