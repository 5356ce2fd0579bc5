"""`limiquantix node drain`: what becomes of each VM, as it happens and at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import click

from controlplane.cli.api_client import (
    CHANGE_DEADLINE_S,
    NODE_SERVICE,
    OPERATION_SERVICE,
    ApiClient,
    ConnectionLost,
    Document,
)
from controlplane.cli.failures import Failure, Interrupted, Unreachable, refused
from controlplane.cli.following import Feed, follow
from controlplane.cli.lookup import complete_node, connect, list_nodes, list_vms, node_id_of
from controlplane.cli.node_life import node_argument
from controlplane.cli.node_views import DRAIN_COLUMNS, drain_row
from controlplane.cli.operation_views import ENDED, state_of
from controlplane.cli.output import print_columns, print_document, print_table
from controlplane.cli.progress import waiting
from controlplane.cli.session import ApiCommand, session_of
from controlplane.cli.terminal_text import one_line
from controlplane.cli.vm_changes import Asking, asking_options, print_begun
from limiquantix.errors import ApiError

_NAME_WIDTH, _FATE_WIDTH = 20, 8
_EVACUATE = "evacuate"
_LEFT = ("stuck", "stopped")


@click.command("drain", cls=ApiCommand)
@node_argument
@click.option(
    "--to",
    "target",
    metavar="NODE",
    shell_complete=complete_node,
    help="Node to take all VMs.  [default: the best]",
)
@click.option(
    "--grace",
    "grace_s",
    type=click.IntRange(0, 86_400),
    metavar="SECONDS",
    default=0,
    help="How long all moves may take; with --force also how long a guest gets to shut down.  [default: no limit, 30]",
)
@click.option("--force", is_flag=True, help="Stop the VMs that cannot be moved.")
@asking_options
@click.pass_context
def drain(context: click.Context, /, node: str, target: str | None, grace_s: int, force: bool, asking: Asking) -> None:
    """Move all VMs of a node away; it ends in maintenance.

    Shows what becomes of each VM. One that cannot be moved stays and is listed with the reason; with --force it is
    stopped. Ends with status 1 if VMs are left running there or off. Ctrl-C leaves the drain going on; 'limiquantix
    operation cancel' ends it: moves that have begun are finished, and the node stays in maintenance.

    \b
    Example:
      limiquantix node drain host-1
      limiquantix node drain host-1 --force --grace 120
    """
    session = session_of(context)
    with connect(context) as client:
        request: Document = {"id": node_id_of(client, node), "gracePeriodSec": grace_s, "force": force}
        if target:
            request["targetNodeId"] = node_id_of(client, target)
        operation_id = _begin(client, node, request, asking)
        if not asking.waits:
            print_begun(context, client, operation_id, f"draining {node}")
            return
        try:
            ended = _follow(client, operation_id, tells=session.prints_tables)
        except KeyboardInterrupt:
            hint = f"'limiquantix operation watch {operation_id}' follows it"
            raise Interrupted(f"interrupted while draining {node}; the server goes on with it", hint=hint) from None
        answer = {key: value for key, value in ended.get("response", {}).items() if key != "@type"}
        roster = _roster(ended)
        if session.prints_tables:
            places = _places(client, roster)
            print_table(DRAIN_COLUMNS, [drain_row(vm, places) for vm in roster if vm.get("fate") != "gone"])
        else:
            print_document(answer or ended, session.output)
    _require_success(node, ended, answer)


def _begin(client: ApiClient, node: str, request: Document, asking: Asking) -> str:
    """Ask for the drain and return the id of its operation."""
    operation_ids: list[str] = []
    try:
        with waiting(f"beginning to drain {node}"):
            client.change(
                NODE_SERVICE,
                "DrainNode",
                request,
                CHANGE_DEADLINE_S,
                request_id=asking.request_id,
                waits=False,
                on_operation=operation_ids.append,
            )
    except ApiError as error:
        raise refused(error, operation_ids[-1] if operation_ids else "") from error
    except ConnectionLost as error:
        hint = f"the same command with --request-id {asking.request_id} does nothing twice, and tells how it went"
        raise Unreachable(str(error), hint=hint) from error
    return operation_ids[-1]


def _follow(client: ApiClient, operation_id: str, *, tells: bool) -> Document:
    """Follow a drain to its end, and return it; each VM gets a line on standard error when something becomes of it."""
    feed = Feed(OPERATION_SERVICE, "WatchOperation", {"id": operation_id}, revision_of=lambda _: 0)
    told: dict[str, str] = {}
    found: Document = {}
    with closing(follow(client, feed)) as operations:
        for found in operations:
            for vm in _roster(found):
                fate = str(vm.get("fate", ""))
                if tells and told.get(vm["vm_id"], "waiting") != fate:
                    _tell(vm, fate)
                told[vm["vm_id"]] = fate
    return found


def _tell(vm: Mapping[str, Any], fate: str) -> None:
    cells = [(str(vm.get("name", "")), _NAME_WIDTH, ""), (fate, _FATE_WIDTH, "red" if fate in _LEFT else "")]
    print_columns([*cells, (str(vm["why"]), 0, "")] if vm.get("why") else cells, sys.stderr)


def _roster(operation: Document) -> list[dict[str, Any]]:
    """Return what is known of each VM of a drain: its id, name, fate and why."""
    for step in operation.get("steps", ()):
        if step.get("name") == _EVACUATE and step.get("resultJson"):
            vms = json.loads(step["resultJson"]).get("vms", [])
            return [vm for vm in vms if isinstance(vm, dict) and vm.get("vm_id")]
    return []


def _places(client: ApiClient, roster: list[dict[str, Any]]) -> dict[str, str]:
    """Look up the host names of where VMs are now."""
    wanted = {vm["vm_id"] for vm in roster}
    if not wanted:
        return {}
    hostnames = {str(node.get("id")): str(node.get("hostname", "")) for node in list_nodes(client, {})}
    places = {}
    for vm in list_vms(client, {}):
        if vm.get("id") in wanted:
            node_id = str(vm.get("status", {}).get("nodeId", ""))
            places[str(vm["id"])] = hostnames.get(node_id, node_id)
    return places


def _require_success(node: str, ended: Document, answer: Document) -> None:
    """Check how a drain ended.

    Raises:
        Failure: it failed or was cancelled, or VMs are left that were not stopped as asked.
    """
    hint = f"'limiquantix operation show {ended.get('id', '')}' has its steps"
    if state_of(ended) in ENDED and state_of(ended) != "SUCCEEDED":
        message = one_line(str(ended.get("error", {}).get("message", "")))
        raise Failure(f"the drain of {node} {state_of(ended)}: {message}", hint=hint)
    failures = answer.get("failures", [])
    if failures:
        count = f"{len(failures)} VMs are" if len(failures) > 1 else "1 VM is"
        raise Failure(
            f"{node} is in maintenance, but {count} left there",
            hint="--force stops those that run; 'limiquantix vm explain' tells where each would fit",
        )
