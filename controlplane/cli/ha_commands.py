"""`limiquantix ha`: what happens when hosts die, and what a person can say to it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice

import click

from controlplane.cli.api_client import HA_SERVICE, NODE_SERVICE, ApiClient, Document
from controlplane.cli.failures import Failure
from controlplane.cli.ha_views import (
    FENCE_COLUMNS,
    FORECAST_COLUMNS,
    NODE_COLUMNS,
    WAITING_COLUMNS,
    armed_words,
    fence_fields,
    fence_row,
    forecast_rows,
    method_of,
    node_row,
    status_fields,
    waiting_row,
)
from controlplane.cli.lookup import complete_fence, complete_node, connect, id_by_beginning, node_id_of
from controlplane.cli.output import print_document, print_fields, print_table
from controlplane.cli.progress import waiting
from controlplane.cli.session import ApiGroup, Session, session_of
from controlplane.cli.terminal_text import one_line

_FORECAST_DEADLINE_S = 120.0
"""Every VM is placed in thought, once for the death of its node."""

node_argument = click.argument("node", metavar="NODE", shell_complete=complete_node)


@click.group(cls=ApiGroup)
def ha() -> None:
    """Show and steer what happens when hosts die.

    A VM is started elsewhere only once it is proven that it does not run where it was. Such a proof belongs to a fence:
    the host's power was cut, its lease ended so that it has killed its VMs itself, it booted anew, or a person says so.

    \b
    Example:
      limiquantix ha status
    """


@ha.command()
@click.option("--forecast", is_flag=True, help="Also tell what would become of every VM if its node died now.")
@click.pass_context
def status(context: click.Context, forecast: bool) -> None:
    """Show the health of every node, who decides, what waits.

    SELF-FENCING tells whether the end of a node's lease proves its VMs dead. PROTECTED counts the VMs that would be
    restarted elsewhere.

    \b
    Example:
      limiquantix ha status --forecast
    """
    session = session_of(context)
    with connect(context) as client, waiting("reading the status"):
        request = {"includeForecast": True} if forecast else {}
        found = client.call(HA_SERVICE, "GetHaStatus", request, _FORECAST_DEADLINE_S)
    if session.prints_tables:
        _print_status(found, forecast=forecast)
    else:
        print_document(found, session.output)


def _print_status(found: Document, *, forecast: bool) -> None:
    now = datetime.now(UTC)
    nodes: list[Document] = list(found.get("nodes", ()))
    hostnames = {str(node.get("nodeId", "")): str(node.get("hostname", "")) for node in nodes}
    print_fields(status_fields(found, now))
    click.echo()
    print_table(NODE_COLUMNS, [node_row(node, now) for node in nodes])
    waits: list[Document] = list(found.get("waitingVms", ()))
    if waits:
        click.echo()
        print_table(WAITING_COLUMNS, [waiting_row(each, hostnames, now) for each in waits])
    if forecast:
        click.echo()
        rows = list(forecast_rows(nodes))
        if rows:
            print_table(FORECAST_COLUMNS, rows)
        else:
            click.echo("no VM would be restarted elsewhere: 'limiquantix vm update VM --ha' has one restarted")


@ha.command()
@click.option("--node", metavar="NODE", shell_complete=complete_node, help="Only those of this node.")
@click.option("--current", is_flag=True, help="Only those because of which a node gets no lease now.")
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", default=50, show_default=True, help="At most so many."
)
@click.option("--wide", "-w", is_flag=True, help="Whole ids.")
@click.pass_context
def fences(context: click.Context, node: str | None, current: bool, limit: int, wide: bool) -> None:
    """List fences, newest first.

    \b
    Example:
      limiquantix ha fences --current
    """
    session = session_of(context)
    filters: Document = {"onlyCurrent": current, "pageSize": min(limit, 500)}
    with connect(context) as client, waiting("reading fences"):
        if node:
            filters["nodeId"] = node_id_of(client, node)
        found = list(islice(_all(client, filters), limit))
    if not session.prints_tables:
        print_document({"fences": found, "totalCount": len(found)}, session.output)
        return
    now = datetime.now(UTC)
    print_table(FENCE_COLUMNS, [fence_row(each, now, wide=wide) for each in found])


@ha.group("fence", cls=ApiGroup)
def fence_group() -> None:
    """Look at one fence.

    A fence is named by its id, or by the beginning of it if no other one begins so.

    \b
    Example:
      limiquantix ha fence show 1b2c3d4e
    """


@fence_group.command("show")
@click.argument("fence", metavar="ID", shell_complete=complete_fence)
@click.pass_context
def show_fence(context: click.Context, fence: str) -> None:
    """Show one fence and its proof.

    And the VMs that were started elsewhere upon it.

    \b
    Example:
      limiquantix ha fence show 1b2c3d4e
    """
    with connect(context) as client:
        wanted = id_by_beginning(fence, "fence", lambda: _all(client, {}), shown_by="limiquantix ha fences")
        found = client.call(HA_SERVICE, "GetFence", {"id": wanted})
    session = session_of(context)
    if session.prints_tables:
        print_fields(fence_fields(found, datetime.now(UTC)))
    else:
        print_document(found, session.output)


@ha.command("fence-node")
@node_argument
@click.option("--reason", metavar="TEXT", required=True, help="Why; it stays with the fence.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.pass_context
def fence_node(context: click.Context, node: str, reason: str, yes: bool) -> None:
    """Have a node fenced, well or not.

    Its leases are revoked and its power is cut, which ends all VMs on it at once; they are started elsewhere. To move
    VMs while they run, drain the node instead: 'limiquantix node drain'.

    \b
    Example:
      limiquantix ha fence-node host-3 --reason "its memory is failing"
    """
    with connect(context) as client:
        wanted = node_id_of(client, node)
        if not yes:
            shown = one_line(_hostname(client, wanted))
            click.confirm(f"cut off node {shown}, and end every VM on it?", abort=True, err=True)
        with waiting(f"fencing {node}"):
            found = client.insist(HA_SERVICE, "FenceNode", {"nodeId": wanted, "reason": reason})
    _print_fence(session_of(context), found)


@ha.command("confirm-dead")
@node_argument
@click.option(
    "--statement", metavar="TEXT", required=True, help="What you saw, such as 'pulled both power cords'; it is kept."
)
@click.option("--hostname", metavar="NAME", help="Host name, instead of being asked for it.")
@click.pass_context
def confirm_dead(context: click.Context, node: str, statement: str, hostname: str | None) -> None:
    """State that a host is off: its VMs start elsewhere then.

    Where neither a power controller nor a lease can prove it, your word does. If you err, VMs run twice on the same
    disks, which destroys them: look at the machine, and pull its power cords.

    \b
    Example:
      limiquantix ha confirm-dead host-3 --statement "pulled both power cords of rack 3, unit 12"
    """
    with connect(context) as client:
        wanted = node_id_of(client, node)
        right = _hostname(client, wanted)
        said = hostname
        if said is None:
            click.echo(f"If host {one_line(right)} still runs, its VMs will run twice and lose their data.", err=True)
            said = click.prompt("Its host name, to say that it is off", err=True)
        if said != right:
            raise Failure(f"{said!r} is not the host name of this node, {right!r}", hint="nothing was done")
        with waiting(f"taking down that {node} is off"):
            request = {"nodeId": wanted, "statement": statement, "hostname": said}
            found = client.insist(HA_SERVICE, "ConfirmNodeDead", request)
    _print_fence(session_of(context), found)


@ha.command()
@click.option("--reason", metavar="TEXT", required=True, help="Why; it is shown until HA is armed again.")
@click.pass_context
def disarm(context: click.Context, reason: str) -> None:
    """Have nothing fenced, killed or restarted until 'ha arm'.

    For work on the network or on the control plane. Hosts learn it with their next heartbeat: 'ha status' shows which
    know it. One that does not still kills its protected VMs when it is cut off.

    \b
    Example:
      limiquantix ha disarm --reason "new switch in rack 3"
    """
    _set(context, "DisarmHa", {"reason": reason})


@ha.command()
@click.pass_context
def arm(context: click.Context) -> None:
    """Have dead nodes fenced and their VMs restarted again.

    \b
    Example:
      limiquantix ha arm
    """
    _set(context, "ArmHa", {})


def _set(context: click.Context, method: str, request: Document) -> None:
    session = session_of(context)
    with connect(context) as client:
        found = client.insist(HA_SERVICE, method, request)
    if session.prints_tables:
        click.echo(f"armed: {one_line(armed_words(found, datetime.now(UTC)))}")
    else:
        print_document(found, session.output)


def _print_fence(session: Session, found: Document) -> None:
    if not session.prints_tables:
        print_document(found, session.output)
        return
    name, identity = one_line(str(found.get("hostname", ""))), str(found.get("id", ""))
    by = f" by {method_of(found)}" if method_of(found) else ""
    click.echo(
        f"fence {identity} of node {name} is {found.get('state', '')}{by}; "
        f"'limiquantix ha fence show {identity}' shows what comes of it"
    )


def _hostname(client: ApiClient, node_id: str) -> str:
    return str(client.call(NODE_SERVICE, "GetNode", {"id": node_id}).get("hostname", ""))


def _all(client: ApiClient, filters: Document) -> Iterator[Document]:
    for page in client.pages(HA_SERVICE, "ListFences", filters):
        yield from page.get("fences", ())
