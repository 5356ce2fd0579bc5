"""`limiquantix dev`: everything on this machine, with one command."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import sys
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from controlplane.cli.dev.api import ApiCallError
from controlplane.cli.dev.demo import BootedGuest, GuestSilent, boot_hello
from controlplane.cli.dev.processes import PortInUse
from controlplane.cli.dev.stack import Cluster, ClusterFailed, ClusterOptions, HypervisorChoice, ProcessFailed
from controlplane.cli.session import DEFAULT_SERVER

MAX_NODES = 50


@click.command()
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".limiquantix"),
    show_default=True,
    help="Where the cluster keeps everything; delete it to begin anew.",
)
@click.option(
    "--hypervisor",
    type=click.Choice([choice.value for choice in HypervisorChoice]),
    default="auto",
    show_default=True,
    help="What runs the first node's VMs; auto takes libvirt where it can be had, else the mock.",
)
@click.option(
    "--nodes", type=click.IntRange(1, MAX_NODES), default=1, show_default=True, help="Nodes; from the second on mocks."
)
@click.option("--once", is_flag=True, help="End after the demo: status 0 if the guest booted.")
@click.option("--demo/--no-demo", default=True, show_default=True, help="Create and boot the VM hello.")
@click.option("--http-port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option("--grpc-port", type=click.IntRange(0, 65535), default=8081, show_default=True, help="0 takes a free one.")
def dev(data_dir: Path, hypervisor: str, nodes: int, once: bool, demo: bool, http_port: int, grpc_port: int) -> None:
    """Run a whole cluster on this machine and boot a VM in it.

    Starts a control plane and node daemons on 127.0.0.1, and a private libvirt daemon where no other answers. Ctrl-C
    ends all of it; VMs and their disks are there again the next time.

    Example: limiquantix dev --nodes 3
    """
    options = ClusterOptions(
        data_dir=data_dir.absolute(),
        cache_dir=_cache_dir(),
        hypervisor=HypervisorChoice(hypervisor),
        node_count=nodes,
        http_port=http_port,
        grpc_port=grpc_port,
    )
    try:
        with _only_one(options.data_dir):
            asyncio.run(_until_signalled(_run(options, demo=demo, once=once)))
    except (ClusterFailed, ProcessFailed, PortInUse, GuestSilent, ApiCallError) as error:
        raise click.ClickException(str(error)) from error


def _cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "limiquantix" / "guest"


@contextmanager
def _only_one(data_dir: Path) -> Iterator[None]:
    """Hold the data directory, so that two clusters do not share a database and disks."""
    try:
        data_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        lock = (data_dir / "lock").open("w")
    except OSError as error:
        raise ClusterFailed(f"cannot use {data_dir}: {error.strerror}; choose another with --data-dir") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ClusterFailed(
                f"another `limiquantix dev` uses {data_dir}; end it or choose another --data-dir"
            ) from None
        yield


async def _until_signalled(work: Coroutine[Any, Any, None]) -> None:
    """Run the work; SIGINT or SIGTERM cancels it, and its cleaning up is then left to finish."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        _tell("stopped")


async def _run(options: ClusterOptions, *, demo: bool, once: bool) -> None:
    began_s = time.monotonic()
    async with Cluster(options, _tell) as cluster:
        if demo:
            guest = await boot_hello(cluster.api, cluster.first_node["id"], cluster.boot_files, _tell)
            await _show_guest(cluster, guest)
        await _show_cluster(cluster, time.monotonic() - began_s)
        if not once:
            _tell("running until Ctrl-C")
            await cluster.run_until_failure()
        _tell("stopping")


async def _show_guest(cluster: Cluster, guest: BootedGuest) -> None:
    click.echo(f"\nThe guest says: {guest.words}\n")
    _table(
        ("VM", "NODE", "STATE", "BOOT", "CONSOLE"),
        [
            (
                guest.vm["name"],
                cluster.first_node["hostname"],
                guest.vm["status"]["state"],
                f"{guest.boot_s:.1f} s",
                f"limiquantix vm console {guest.vm['name']}",
            )
        ],
    )


async def _show_cluster(cluster: Cluster, seconds: float) -> None:
    nodes = await cluster.api.nodes()
    click.echo()
    _table(
        ("NODE", "PHASE", "HYPERVISOR", "VCPUS", "MEMORY"),
        [
            (
                node["hostname"],
                node["status"]["phase"],
                node["status"]["system"].get("hypervisor", ""),
                str(node["status"]["resources"]["cpu"]["allocatableVcpus"]),
                f"{int(node['status']['resources']['memory']['allocatableBytes']) // 2**20} MiB",
            )
            for node in nodes
        ],
    )
    click.echo(f"\nAPI   {cluster.http_url}  (Connect/JSON over TLS; certificate of {cluster.authority_path})")
    click.echo(f"gRPC  {cluster.grpc_address}")
    if cluster.libvirt_uri is not None:
        click.echo(f"virsh -c '{cluster.libvirt_uri}' list --all")
    if cluster.http_url != DEFAULT_SERVER:
        click.echo(f"export LIMIQUANTIX_SERVER={cluster.http_url}")
    click.echo(f"up in {seconds:.1f} s")


def _table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in (headings, *rows)) for column in range(len(headings))]
    for row in (headings, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _tell(line: str) -> None:
    click.echo(f"· {line}", file=sys.stderr)
