"""`limiquantix node devices`."""

from __future__ import annotations

import click

from controlplane.cli.api_client import NODE_SERVICE
from controlplane.cli.lookup import complete_node, connect, node_id_of
from controlplane.cli.machine_views import DEVICE_COLUMNS, device_row
from controlplane.cli.output import print_document, print_table
from controlplane.cli.session import ApiCommand, session_of


@click.command("devices", cls=ApiCommand)
@click.argument("node", metavar="NODE", shell_complete=complete_node)
@click.pass_context
def node_devices(context: click.Context, node: str) -> None:
    """List the PCI, USB and mediated devices of a node.

    As its daemon told when it registered last. FOR VMS says whether a VM can have the device, or why not.

    \b
    Example:
      limiquantix node devices host-1
    """
    session = session_of(context)
    with connect(context) as client:
        found = client.call(NODE_SERVICE, "GetNode", {"id": node_id_of(client, node)})
    devices = found.get("spec", {}).get("devices", [])
    if session.prints_tables:
        print_table(DEVICE_COLUMNS, [device_row(device) for device in devices])
    else:
        print_document({"devices": devices}, session.output)
