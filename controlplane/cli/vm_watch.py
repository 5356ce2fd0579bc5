"""`limiquantix vm watch`: the VMs there are, then every change of them."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime

import click

from controlplane.cli.api_client import VM_SERVICE, ApiClient, Document
from controlplane.cli.following import Feed, follow
from controlplane.cli.lookup import complete_node, complete_vm, connect, node_id_of, vm_id_of
from controlplane.cli.output import STATE_STYLES, print_columns, print_piece
from controlplane.cli.session import ApiCommand, session_of
from controlplane.cli.sizes import format_moment
from controlplane.cli.views import node_name, vm_note, vm_state
from controlplane.cli.vm_changes import hostname_of
from controlplane.cli.vm_spec_options import Label

_ADDED, _MODIFIED, _DELETED, _BOOKMARK = "ADDED", "MODIFIED", "DELETED", "BOOKMARK"
_GONE = "TERMINATED"
_NAME_WIDTH, _CHANGE_WIDTH, _STATE_WIDTH = 20, 8, 12
_CHANGE_STYLES = {_ADDED: "green", _DELETED: "red"}


@click.command(cls=ApiCommand)
@click.argument("vm", metavar="[VM]", required=False, shell_complete=complete_vm)
@click.option("--project", metavar="ID", default="", help="Only VMs of this project; also where to look for VM.")
@click.option("--label", "labels", type=Label(), multiple=True, metavar="KEY=VALUE", help="Only VMs with this label.")
@click.option("--node", metavar="NODE", shell_complete=complete_node, help="Only VMs on this node, by name or id.")
@click.pass_context
def watch(
    context: click.Context, vm: str | None, project: str, labels: tuple[tuple[str, str], ...], node: str | None
) -> None:
    """Show VMs as they are, then every change.

    A line each, until Ctrl-C. The columns are time, name, change (ADDED, MODIFIED, DELETED), state, node and what is
    not in order. A VM that no longer matches the filters is DELETED from what is watched. A connection that breaks is
    made again, and the watch goes on where it was. With VM it ends when that VM is deleted.

    With --output json every line is a VMUpdate of the API, with VM a VirtualMachine; both have a revision.

    \b
    Example:
      limiquantix vm watch --label tier=web
    """
    if vm and (labels or node):
        raise click.UsageError("--label and --node choose among all VMs; leave them or the VM out")
    session = session_of(context)
    with connect(context) as client:
        tell: _UpdateLines
        if vm:
            request: Document = {"vmId": vm_id_of(client, vm, project)}
            feed = Feed(VM_SERVICE, "WatchVM", request, when_anew="the watch begins anew with the VM as it is now")
            tell = _VmLines(client)
        else:
            request = {"projectId": project, "labels": dict(labels), "sendBookmarks": True}
            if node:
                request["nodeId"] = node_id_of(client, node)
            anew = "the watch begins anew with the VMs there are now; what was deleted meanwhile is not told"
            feed = Feed(VM_SERVICE, "WatchVMs", request, when_anew=anew)
            tell = _UpdateLines(client)
        try:
            with closing(follow(client, feed)) as messages:
                for message in messages:
                    if message.get("type") == _BOOKMARK:
                        continue
                    if session.prints_tables:
                        tell.tell(message)
                    else:
                        print_piece(message, session.output)
        except KeyboardInterrupt:
            return


class _UpdateLines:
    """Writes updates of `WatchVMs` as lines."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client
        self._hostnames: dict[str, str] = {}

    def tell(self, update: Document) -> None:
        self.write(update.get("vm", {}), str(update.get("type", _ADDED)))

    def write(self, vm: Document, change: str) -> None:
        node_id = str(vm.get("status", {}).get("nodeId", ""))
        if node_id not in self._hostnames:
            self._hostnames |= hostname_of(self._client, vm)
        state = vm_state(vm)
        cells = [
            (format_moment(datetime.now(UTC)), 0, ""),
            (str(vm.get("name", "")), _NAME_WIDTH, ""),
            (change, _CHANGE_WIDTH, _CHANGE_STYLES.get(change, "")),
            (state, _STATE_WIDTH, STATE_STYLES.get(state, "")),
            (node_name(vm, self._hostnames), 0, ""),
        ]
        note = vm_note(vm)
        print_columns(cells if not note or change == _DELETED else [*cells, (note, 0, "red")])


class _VmLines(_UpdateLines):
    """Writes what `WatchVM` sends as lines; the change is told from what came before."""

    _is_first = True

    def tell(self, update: Document) -> None:
        change = _DELETED if vm_state(update) == _GONE else _ADDED if self._is_first else _MODIFIED
        self._is_first = False
        self.write(update, change)
