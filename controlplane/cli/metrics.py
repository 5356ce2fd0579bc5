"""`limiquantix vm metrics`, `vm top` and `node metrics`: what is used now, as the hosts measure it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any, Final

import click

from controlplane.cli.api_client import NODE_SERVICE, VM_SERVICE, ApiClient, Document, ServerUnreachable
from controlplane.cli.following import Feed, follow
from controlplane.cli.lookup import complete_node, connect, list_nodes, node_id_of, vm_id_of
from controlplane.cli.output import Column, print_columns, print_document, print_fields, print_piece, print_table
from controlplane.cli.progress import waiting
from controlplane.cli.session import ApiCommand, Session, session_of
from controlplane.cli.sizes import format_bytes, format_moment
from controlplane.cli.vm_changes import project_option, vm_argument
from limiquantix.errors import Unavailable

Fields = list[tuple[str, str]]

_TOP_COLUMNS: Final = (
    Column("NAME"),
    Column("NODE"),
    Column("CPU", is_number=True),
    Column("MEMORY", is_number=True),
    Column("READ/S", is_number=True),
    Column("WRITTEN/S", is_number=True),
    Column("RECEIVED/S", is_number=True),
    Column("SENT/S", is_number=True),
)
_SORT_KEYS: Final[dict[str, Callable[[Document], float]]] = {
    "cpu": lambda usage: _number(usage, "cpuUsagePercent"),
    "memory": lambda usage: _number(usage, "memoryUsedBytes"),
    "disk": lambda usage: _number(usage, "diskReadBytesPerSec") + _number(usage, "diskWriteBytesPerSec"),
    "network": lambda usage: _number(usage, "networkRxBytesPerSec") + _number(usage, "networkTxBytesPerSec"),
}
_LINE_WIDTH: Final = 22

watch_option = click.option("--watch", "watches", is_flag=True, help="A line each time, until Ctrl-C.")
interval_option = click.option(
    "--interval", metavar="SECONDS", type=click.IntRange(1, 3600), default=5, show_default=True, help="Between lines."
)


@click.command("metrics", cls=ApiCommand)
@vm_argument
@project_option
@watch_option
@interval_option
@click.pass_context
def vm_metrics(context: click.Context, vm: str, project: str, watches: bool, interval: int) -> None:
    """Show what a VM uses now.

    That is its processor, memory, each disk and network card. CPU is of all its vCPUs. Counters run since the VM
    started. With --output json every line of --watch is a ResourceUsage of the API.

    \b
    Example:
      limiquantix vm metrics web-1 --watch
    """
    session = session_of(context)
    with connect(context) as client:
        request = {"vmId": vm_id_of(client, vm, project), "intervalSec": interval}
        feed = Feed(VM_SERVICE, "StreamMetrics", request, revision_of=lambda _: 0)
        if watches:
            _watch(client, feed, session, _usage_cells)
            return
        usage = _first(client, feed)
    if session.prints_tables:
        print_fields(_usage_fields(usage))
    else:
        print_document(usage, session.output)


@click.command("metrics", cls=ApiCommand)
@click.argument("node", metavar="NODE", shell_complete=complete_node)
@watch_option
@interval_option
@click.pass_context
def node_metrics(context: click.Context, node: str, watches: bool, interval: int) -> None:
    """Show what a node uses now, and what is promised.

    \b
    Example:
      limiquantix node metrics host-1
    """
    session = session_of(context)
    with connect(context) as client:
        node_id = node_id_of(client, node)
        if watches:
            request = {"nodeId": node_id, "intervalSec": interval}
            feed = Feed(NODE_SERVICE, "StreamNodeMetrics", request, revision_of=lambda _: 0)
            _watch(client, feed, session, _node_cells)
            return
        found = client.call(NODE_SERVICE, "GetNodeMetrics", {"id": node_id})
    if session.prints_tables:
        print_fields(_node_fields(found))
    else:
        print_document(found, session.output)


@click.command(cls=ApiCommand)
@click.option("--node", metavar="NODE", shell_complete=complete_node, help="Only VMs on this node, by name or id.")
@click.option(
    "--sort", type=click.Choice(list(_SORT_KEYS)), default="cpu", show_default=True, help="Most of this first."
)
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", default=20, show_default=True, help="At most this many."
)
@click.pass_context
def top(context: click.Context, node: str | None, sort: str, limit: int) -> None:
    """Show the VMs that use most.

    Each node is asked once; one that does not answer is named and left out.

    \b
    Example:
      limiquantix vm top --sort disk
    """
    session = session_of(context)
    with connect(context) as client, waiting("measuring"):
        only = node_id_of(client, node) if node else ""
        found = [
            (hostname, measured)
            for hostname, metrics in _measured_nodes(client, only)
            for measured in metrics.get("vms", ())
        ]
    found.sort(key=lambda each: -_SORT_KEYS[sort](each[1].get("usage", {})))
    del found[limit:]
    if session.prints_tables:
        print_table(_TOP_COLUMNS, [_top_row(hostname, measured) for hostname, measured in found])
    else:
        print_document({"vms": [{"node": hostname, **measured} for hostname, measured in found]}, session.output)


def _measured_nodes(client: ApiClient, only_id: str) -> Iterator[tuple[str, Document]]:
    for node in list_nodes(client, {}):
        if only_id and node.get("id") != only_id:
            continue
        try:
            metrics = client.call(NODE_SERVICE, "GetNodeMetrics", {"id": node.get("id", "")})
        except Unavailable as error:
            client.warn(f"node {node.get('hostname', '')} is left out: {error}")
            continue
        if fault := metrics.get("vmsError"):
            client.warn(f"node {node.get('hostname', '')}: {fault}")
        yield str(node.get("hostname", "")), metrics


def _first(client: ApiClient, feed: Feed) -> Document:
    with waiting("measuring"), closing(follow(client, feed)) as messages:
        for message in messages:
            return message
    raise ServerUnreachable("the server ended the stream without a measure")


def _watch(
    client: ApiClient, feed: Feed, session: Session, cells: Callable[[Document], list[tuple[str, int, str]]]
) -> None:
    try:
        with closing(follow(client, feed)) as messages:
            for message in messages:
                if session.prints_tables:
                    print_columns(cells(message))
                else:
                    print_piece(message, session.output)
    except KeyboardInterrupt:
        return


def _number(document: Document, name: str) -> float:
    return float(document.get(name, 0))


def _bytes(document: Document, name: str) -> str:
    return format_bytes(int(_number(document, name)))


def _rate(document: Document, name: str) -> str:
    return f"{format_bytes(int(_number(document, name)))}/s"


def _percent(document: Document) -> str:
    return f"{_number(document, 'cpuUsagePercent'):.1f} %"


def _usage_fields(usage: Document) -> Fields:
    disks, nics = usage.get("disks", ()), usage.get("nics", ())
    return [
        ("CPU", _percent(usage)),
        ("Memory", f"{_bytes(usage, 'memoryUsedBytes')} of {_bytes(usage, 'memoryAllocatedBytes')}"),
        ("Disks", f"{_rate(usage, 'diskReadBytesPerSec')} read, {_rate(usage, 'diskWriteBytesPerSec')} written"),
        *((f"  {disk.get('target', '')}", _disk(disk)) for disk in disks),
        ("Network", f"{_rate(usage, 'networkRxBytesPerSec')} received, {_rate(usage, 'networkTxBytesPerSec')} sent"),
        *((f"  {nic.get('macAddress', '')}", _nic(nic)) for nic in nics),
        ("Measured", str(usage.get("sampledAt", ""))),
    ]


def _disk(disk: Document) -> str:
    read = f"{_bytes(disk, 'readBytes')} read in {int(_number(disk, 'readCount'))} requests"
    return f"{read}, {_bytes(disk, 'writeBytes')} written in {int(_number(disk, 'writeCount'))} requests"


def _nic(nic: Document) -> str:
    faults = int(_number(nic, "rxErrors") + _number(nic, "txErrors"))
    traffic = f"{_bytes(nic, 'rxBytes')} received, {_bytes(nic, 'txBytes')} sent"
    return f"{traffic}, {faults} errors" if faults else traffic


def _usage_cells(usage: Document) -> list[tuple[str, int, str]]:
    return [
        (format_moment(datetime.now(UTC)), 0, ""),
        (f"cpu {_percent(usage)}", 12, ""),
        (f"memory {_bytes(usage, 'memoryUsedBytes')}", 18, ""),
        (f"read {_rate(usage, 'diskReadBytesPerSec')}", 20, ""),
        (f"written {_rate(usage, 'diskWriteBytesPerSec')}", _LINE_WIDTH, ""),
        (f"received {_rate(usage, 'networkRxBytesPerSec')}", _LINE_WIDTH, ""),
        (f"sent {_rate(usage, 'networkTxBytesPerSec')}", 0, ""),
    ]


def _node_fields(metrics: Document) -> Fields:
    vm_counts = f"{int(_number(metrics, 'vmCount'))}, {int(_number(metrics, 'vmRunningCount'))} of them running"
    return [
        ("CPU", f"{_percent(metrics)} of {int(_number(metrics, 'cpuCoresTotal'))} logical processors"),
        ("vCPUs promised", str(int(_number(metrics, "cpuCoresAllocated")))),
        ("Memory", f"{_bytes(metrics, 'memoryUsedBytes')} of {_bytes(metrics, 'memoryTotalBytes')}"),
        ("Memory promised", _bytes(metrics, "memoryAllocatedBytes")),
        ("Storage", f"{_bytes(metrics, 'storageUsedBytes')} of {_bytes(metrics, 'storageTotalBytes')}"),
        ("Received", _bytes(metrics, "networkRxBytes")),
        ("Sent", _bytes(metrics, "networkTxBytes")),
        ("Load", " ".join(f"{_number(metrics, name):.2f}" for name in ("load1m", "load5m", "load15m"))),
        ("VMs", vm_counts),
        ("Fault", str(metrics.get("vmsError", ""))),
        ("Measured", str(metrics.get("sampledAt", ""))),
    ]


def _node_cells(metrics: Document) -> list[tuple[str, int, str]]:
    return [
        (format_moment(datetime.now(UTC)), 0, ""),
        (f"cpu {_percent(metrics)}", 12, ""),
        (f"memory {_bytes(metrics, 'memoryUsedBytes')}", 18, ""),
        (f"load {_number(metrics, 'load1m'):.2f}", 12, ""),
        (f"{int(_number(metrics, 'vmRunningCount'))} VMs run", 0, ""),
    ]


def _top_row(hostname: str, measured: Document) -> list[str]:
    usage: dict[str, Any] = measured.get("usage", {})
    return [
        str(measured.get("name", "")),
        hostname,
        _percent(usage),
        _bytes(usage, "memoryUsedBytes"),
        _bytes(usage, "diskReadBytesPerSec"),
        _bytes(usage, "diskWriteBytesPerSec"),
        _bytes(usage, "networkRxBytesPerSec"),
        _bytes(usage, "networkTxBytesPerSec"),
    ]
