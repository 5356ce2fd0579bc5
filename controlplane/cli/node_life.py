"""`limiquantix node enable`, `disable`, `decommission`, `label`, `taint`, `untaint` and `update`: a node's life."""

from __future__ import annotations

from typing import Any

import click

from controlplane.cli.api_client import CHANGE_DEADLINE_S, NODE_SERVICE, Document
from controlplane.cli.lookup import complete_node, connect, node_id_of
from controlplane.cli.node_views import node_line
from controlplane.cli.output import print_document
from controlplane.cli.progress import waiting
from controlplane.cli.session import ApiCommand, session_of
from controlplane.cli.vm_spec_options import MemorySize

_EFFECTS = {"noschedule": "NO_SCHEDULE", "prefernoschedule": "PREFER_NO_SCHEDULE", "noexecute": "NO_EXECUTE"}
_ROLES = {"compute": "compute", "storage": "storage", "control-plane": "controlPlane"}
_MIB = 2**20

node_argument = click.argument("node", metavar="NODE", shell_complete=complete_node)


class TaintText(click.ParamType[Document]):
    """A taint, "key=value:effect" or "key:effect"."""

    name = "taint"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Document:
        """Split it at its last colon and first equals sign."""
        if isinstance(value, dict):
            return value
        what, colon, effect = str(value).rpartition(":")
        known = _EFFECTS.get(effect.lower().replace("-", "").replace("_", ""))
        if not colon or known is None:
            self.fail(f"{value!r} is not KEY[=VALUE]:EFFECT with one of {', '.join(_EFFECTS.values())}", param, ctx)
        key, _, text = what.partition("=")
        return {"key": key, "value": text, "effect": known}


class LabelChange(click.ParamType[tuple[str, str | None]]):
    """A label to set, "key=value", or one to remove, "key-"."""

    name = "label"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str | None]:
        """Tell the two apart; the value is None of one to remove."""
        if isinstance(value, tuple):
            return value
        key, equals, text = str(value).partition("=")
        if equals and key:
            return key, text
        if not equals and len(key) > 1 and key.endswith("-"):
            return key[:-1], None
        return self.fail(f"{value!r} is neither key=value nor key- (which removes it)", param, ctx)


@click.command("enable", cls=ApiCommand)
@node_argument
@click.pass_context
def enable(context: click.Context, node: str) -> None:
    """Let a node take VMs again.

    \b
    Example:
      limiquantix node enable host-1
    """
    _change(context, "EnableNode", node, "enabling", {}, key="id")


@click.command("disable", cls=ApiCommand)
@node_argument
@click.option("--reason", metavar="TEXT", default="", help="Why; shown with the node.")
@click.pass_context
def disable(context: click.Context, node: str, reason: str) -> None:
    """Put a node into maintenance: it takes no new VMs.

    Those that are there go on; 'limiquantix node drain' also moves them away.

    \b
    Example:
      limiquantix node disable host-1 --reason "new disks"
    """
    _change(context, "DisableNode", node, "disabling", {"reason": reason}, key="id")


@click.command("decommission", cls=ApiCommand)
@node_argument
@click.option("--force", is_flag=True, help="Even with VMs on it; they stay in the inventory as LOST.")
@click.pass_context
def decommission(context: click.Context, node: str, force: bool) -> None:
    """Forget a node.

    Refused while VMs are on it. Stop its daemon first: a host that still runs registers again, as a new node, and VMs
    that are found there are taken back.

    \b
    Example:
      limiquantix node decommission host-1
    """
    session = session_of(context)
    with connect(context) as client, waiting(f"decommissioning {node}"):
        request = {"id": node_id_of(client, node), "force": force}
        answer = client.call(NODE_SERVICE, "DecommissionNode", request, CHANGE_DEADLINE_S)
    if session.prints_tables:
        click.echo(f"node {node} is forgotten")
    else:
        print_document(answer, session.output)


@click.command("label", cls=ApiCommand)
@node_argument
@click.argument("changes", metavar="KEY=VALUE|KEY-...", type=LabelChange(), nargs=-1, required=True)
@click.pass_context
def label(context: click.Context, node: str, changes: tuple[tuple[str, str | None], ...]) -> None:
    """Set labels of a node, or remove them.

    A key with a "-" behind it is removed. VMs can be bound to labels, and spread over the values of zone and rack.

    \b
    Example:
      limiquantix node label host-1 zone=a rack=7 old-label-
    """
    request = {
        "addLabels": {key: text for key, text in changes if text is not None},
        "removeLabels": [key for key, text in changes if text is None],
    }
    _change(context, "UpdateLabels", node, "labelling", request)


@click.command("taint", cls=ApiCommand)
@node_argument
@click.argument("taint", metavar="KEY[=VALUE]:EFFECT", type=TaintText())
@click.pass_context
def taint(context: click.Context, node: str, taint: Document) -> None:
    """Keep VMs away from a node.

    But for those that tolerate the taint. NO_SCHEDULE keeps new VMs away, PREFER_NO_SCHEDULE if there is another place
    for them. NO_EXECUTE also moves those away that are there; one that cannot be moved is told of among the events and
    goes on.

    \b
    Example:
      limiquantix node taint host-1 gpu=broken:NO_EXECUTE
    """
    _change(context, "AddTaint", node, "tainting", {"taint": taint})


@click.command("untaint", cls=ApiCommand)
@node_argument
@click.argument("key", metavar="KEY")
@click.pass_context
def untaint(context: click.Context, node: str, key: str) -> None:
    """Remove the taint of a key from a node.

    \b
    Example:
      limiquantix node untaint host-1 gpu
    """
    _change(context, "RemoveTaint", node, "untainting", {"taintKey": key})


@click.command("update", cls=ApiCommand)
@node_argument
@click.option("--cpu-ratio", type=click.FloatRange(0, 64), metavar="R", help="vCPUs promised per thread; 0: default.")
@click.option(
    "--memory-ratio", type=click.FloatRange(0, 16), metavar="R", help="Memory promised per memory there is; 0: default."
)
@click.option("--reserve-cores", type=click.IntRange(0, 1024), metavar="N", help="Threads kept for the host itself.")
@click.option("--reserve-memory", type=MemorySize(), metavar="SIZE", help="Memory kept for the host itself.")
@click.option("--schedulable/--unschedulable", default=None, help="Whether it takes new VMs.")
@click.option(
    "--role",
    "roles",
    type=click.Choice(list(_ROLES), case_sensitive=False),
    multiple=True,
    help="All of its roles; several are possible.",
)
@click.pass_context
def update(
    context: click.Context,
    /,
    node: str,
    cpu_ratio: float | None,
    memory_ratio: float | None,
    reserve_cores: int | None,
    reserve_memory: int | None,
    schedulable: bool | None,
    roles: tuple[str, ...],
) -> None:
    """Change what a node may promise to VMs, and its roles.

    \b
    Example:
      limiquantix node update host-1 --cpu-ratio 4 --reserve-memory 4GiB
    """
    values: dict[str, object] = {
        "scheduling.overcommit.cpuRatio": cpu_ratio,
        "scheduling.overcommit.memoryRatio": memory_ratio,
        "scheduling.reserved.cpuCores": reserve_cores,
        "scheduling.reserved.memoryBytes": None if reserve_memory is None else str(reserve_memory * _MIB),
        "scheduling.schedulable": schedulable,
        "role": {key: word in roles for word, key in _ROLES.items()} if roles else None,
    }
    given = {path: value for path, value in values.items() if value is not None}
    if not given:
        raise click.UsageError("say what to change, such as --cpu-ratio")
    request: Document = {"updateMask": ",".join(given)}
    for path, value in given.items():
        *parents, name = path.split(".")
        message = request
        for parent in parents:
            message = message.setdefault(parent, {})
        message[name] = value
    _change(context, "UpdateNode", node, "updating", request, key="id")


def _change(
    context: click.Context, method: str, node: str, doing: str, request: Document, *, key: str = "nodeId"
) -> None:
    """Call a method that changes a node, and print what it has become."""
    session = session_of(context)
    with connect(context) as client, waiting(f"{doing} {node}"):
        full_request = {**request, key: node_id_of(client, node)}
        changed = client.insist(NODE_SERVICE, method, full_request, CHANGE_DEADLINE_S)
    if session.prints_tables:
        click.echo(node_line(changed))
    else:
        print_document(changed, session.output)
