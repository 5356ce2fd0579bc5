"""`limiquantix node`: the commands on hosts."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice

import click

from controlplane.cli.api_client import NODE_SERVICE, Document
from controlplane.cli.lookup import complete_node, connect, list_nodes, node_id_of
from controlplane.cli.metrics import node_metrics
from controlplane.cli.node_devices import node_devices
from controlplane.cli.node_drain import drain
from controlplane.cli.node_life import decommission, disable, enable, label, taint, untaint, update
from controlplane.cli.node_tokens import revoke_certificate, token
from controlplane.cli.output import print_document, print_fields, print_table
from controlplane.cli.progress import waiting
from controlplane.cli.session import ApiGroup, session_of
from controlplane.cli.views import NODE_COLUMNS, WIDE_NODE_COLUMNS, node_fields, node_row
from controlplane.cli.vm_spec_options import Label, enum_name

PHASES = ("unknown", "pending", "ready", "not-ready", "maintenance", "draining", "offline")


@click.group(cls=ApiGroup)
def node() -> None:
    """List, look after and empty the hosts that run VMs.

    A node is named by its host name or its id.

    \b
    Example:
      limiquantix node list
    """


node.add_command(node_metrics)
node.add_command(node_devices)
node.add_command(token)
node.add_command(revoke_certificate)
for command in (enable, disable, drain, decommission, label, taint, untaint, update):
    node.add_command(command)


@node.command("list")
@click.option("--label", "labels", type=Label(), multiple=True, metavar="KEY=VALUE", help="Only nodes with this label.")
@click.option(
    "--phase",
    "phases",
    type=click.Choice(PHASES, case_sensitive=False),
    multiple=True,
    help="Only nodes in this phase; several mean any of them.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most this many, the oldest.")
@click.option("--wide", "-w", is_flag=True, help="More columns: address, labels, id.")
@click.pass_context
def list_command(
    context: click.Context, labels: tuple[tuple[str, str], ...], phases: tuple[str, ...], limit: int | None, wide: bool
) -> None:
    """List nodes, oldest first.

    All of them, however many pages that takes. VCPUS and MEMORY are what is promised to VMs and what may be promised.

    \b
    Example:
      limiquantix node list --phase ready
    """
    session = session_of(context)
    filters: Document = {"labels": dict(labels), "phases": [enum_name(phase) for phase in phases]}
    with connect(context) as client, waiting("reading nodes"):
        found = list(islice(list_nodes(client, filters), limit))
    if not session.prints_tables:
        print_document({"nodes": found, "totalCount": len(found)}, session.output)
        return
    now = datetime.now(UTC)
    print_table(WIDE_NODE_COLUMNS if wide else NODE_COLUMNS, [node_row(each, now, wide=wide) for each in found])


@node.command()
@click.argument("node", metavar="NODE", shell_complete=complete_node)
@click.pass_context
def show(context: click.Context, node: str) -> None:
    """Show one node: what it has, what is promised, how it is.

    \b
    Example:
      limiquantix node show host-1
    """
    session = session_of(context)
    with connect(context) as client:
        found = client.call(NODE_SERVICE, "GetNode", {"id": node_id_of(client, node)})
    if session.prints_tables:
        print_fields(node_fields(found, datetime.now(UTC)))
    else:
        print_document(found, session.output)
