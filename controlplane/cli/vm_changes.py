"""What the commands on one VM share: how it is named, how it is changed and what is printed of the change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from controlplane.cli.api_client import CHANGE_DEADLINE_S, NODE_SERVICE, VM_SERVICE, ApiClient, Document
from controlplane.cli.lookup import complete_vm, connect, vm_id_of
from controlplane.cli.output import print_document
from controlplane.cli.progress import waiting
from controlplane.cli.session import session_of
from controlplane.cli.terminal_text import one_line
from controlplane.cli.views import node_name, vm_state
from limiquantix.errors import ApiError

vm_argument = click.argument("vm", metavar="VM", shell_complete=complete_vm)
project_option = click.option("--project", metavar="ID", default="", help="Project in which to look for the name.")


def change_vm(
    context: click.Context,
    method: str,
    name_or_id: str,
    project: str,
    doing: str,
    request: Document | None = None,
    deadline_s: float = CHANGE_DEADLINE_S,
) -> None:
    """Call a method that changes one VM, wait, and print what it has become."""
    with connect(context) as client:
        vm_id = vm_id_of(client, name_or_id, project)
        with waiting(f"{doing} {name_or_id}", hint=look_hint(name_or_id)):
            changed = client.call(VM_SERVICE, method, {**(request or {}), "id": vm_id}, deadline_s)
        print_changed(context, client, changed)


def print_changed(context: click.Context, client: ApiClient, changed: Document) -> None:
    """Print in a line what a VM is after a change, or its document."""
    session = session_of(context)
    if not session.prints_tables:
        print_document(changed, session.output)
        return
    where = node_name(changed, hostname_of(client, changed))
    place = f" on {one_line(where)}" if where else ""
    click.echo(f"VM {one_line(str(changed.get('name', '')))} ({changed.get('id', '')}) is {vm_state(changed)}{place}")


def look_hint(name_or_id: str) -> str:
    """Say how to find out what became of a change that nobody waited for."""
    return f"'limiquantix vm show {name_or_id}' tells what became of it"


def hostname_of(client: ApiClient, found: Mapping[str, Any]) -> dict[str, str]:
    """Look up the node's name, which is a nicety: without an answer the id serves."""
    node_id = str(found.get("status", {}).get("nodeId", ""))
    if not node_id:
        return {}
    try:
        return {node_id: str(client.call(NODE_SERVICE, "GetNode", {"id": node_id}).get("hostname", node_id))}
    except ApiError:
        return {}
