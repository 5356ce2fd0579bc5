"""`limiquantix alert`: what is wrong now, and what was."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice

import click

from controlplane.cli.api_client import ALERT_SERVICE, ApiClient, Document
from controlplane.cli.lookup import (
    complete_alert,
    complete_node,
    complete_vm,
    connect,
    id_by_beginning,
    node_id_of,
    vm_id_of,
)
from controlplane.cli.output import Column, print_document, print_fields, print_table
from controlplane.cli.progress import waiting
from controlplane.cli.session import ApiGroup, session_of
from controlplane.cli.sizes import format_age

KINDS = (
    "node.overloaded",
    "node.silent",
    "balancing.critical",
    "vm.conflict",
    "cluster.no_headroom",
    "ha.node_lost",
    "ha.fence_unproven",
    "ha.vm_fits_nowhere",
    "ha.vm_not_restarted",
    "ha.brake",
    "ha.disarmed",
    "ha.nothing_decided",
    "ha.storage_lost",
    "ha.guest_silent",
)
_SHORT_ID_CHARS = 8
_COLUMNS = (
    Column("ID"),
    Column("SEVERITY", styles={"CRITICAL": "red", "WARNING": "yellow"}),
    Column("KIND"),
    Column("SINCE", is_number=True),
    Column("STATE", styles={"open": "red", "known": "yellow", "over": "green"}),
    Column("MESSAGE"),
)
_WIDE_COLUMNS = (*_COLUMNS, Column("ABOUT"), Column("KNOWN BY"))

alert_argument = click.argument("alert", metavar="ID", shell_complete=complete_alert)


@click.group(cls=ApiGroup)
def alert() -> None:
    """Show what is wrong in the cluster, and note that you know.

    Alerts are raised and ended by the system itself. One is named by its id, or by the beginning of it.

    \b
    Example:
      limiquantix alert list
    """


@alert.command("list")
@click.option("--all", "-a", "all_", is_flag=True, help="Those that are over too.")
@click.option("--node", metavar="NODE", shell_complete=complete_node, help="Only those about this node.")
@click.option("--vm", metavar="VM", shell_complete=complete_vm, help="Only those about this VM.")
@click.option(
    "--kind", "kinds", type=click.Choice(KINDS), multiple=True, metavar="KIND", help="Only of this kind. Repeatable."
)
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", default=100, show_default=True, help="At most so many."
)
@click.option("--wide", "-w", is_flag=True, help="Whole ids, and more columns: what it is about, who knows.")
@click.pass_context
def list_command(
    context: click.Context,
    all_: bool,
    node: str | None,
    vm: str | None,
    kinds: tuple[str, ...],
    limit: int,
    wide: bool,
) -> None:
    """List alerts, newest first.

    \b
    Example:
      limiquantix alert list --all --kind node.silent
    """
    if node and vm:
        raise click.UsageError("--node and --vm are about two different things; give one of them")
    session = session_of(context)
    filters: Document = {"includeResolved": all_, "kinds": list(kinds), "pageSize": min(limit, 500)}
    with connect(context) as client, waiting("reading alerts"):
        if node or vm:
            filters["resourceId"] = node_id_of(client, node) if node else vm_id_of(client, vm or "")
        found = list(islice(_all(client, filters), limit))
    if not session.prints_tables:
        print_document({"alerts": found, "totalCount": len(found)}, session.output)
        return
    now = datetime.now(UTC)
    print_table(_WIDE_COLUMNS if wide else _COLUMNS, [_row(each, now, wide=wide) for each in found])


@alert.command("show")
@alert_argument
@click.pass_context
def show(context: click.Context, alert: str) -> None:
    """Show one alert.

    \b
    Example:
      limiquantix alert show 1b2c3d4e
    """
    session = session_of(context)
    with connect(context) as client:
        found = client.call(ALERT_SERVICE, "GetAlert", {"id": _id_of(client, alert)})
    if session.prints_tables:
        print_fields(_fields(found, datetime.now(UTC)))
    else:
        print_document(found, session.output)


@alert.command()
@alert_argument
@click.pass_context
def acknowledge(context: click.Context, alert: str) -> None:
    """Note that you know of an alert. It ends when what is wrong ends.

    \b
    Example:
      limiquantix alert acknowledge 1b2c3d4e
    """
    session = session_of(context)
    with connect(context) as client:
        found = client.insist(ALERT_SERVICE, "AcknowledgeAlert", {"id": _id_of(client, alert)})
    if session.prints_tables:
        click.echo(f"alert {found.get('id', '')} is known to {found.get('acknowledgedBy', '')}")
    else:
        print_document(found, session.output)


def _all(client: ApiClient, filters: Document) -> Iterator[Document]:
    for page in client.pages(ALERT_SERVICE, "ListAlerts", filters):
        yield from page.get("alerts", ())


def _id_of(client: ApiClient, named: str) -> str:
    return id_by_beginning(named, "alert", lambda: _all(client, {"includeResolved": True}))


def _row(each: Document, now: datetime, *, wide: bool) -> list[str]:
    identity = str(each.get("id", ""))
    row = [
        identity if wide else identity[:_SHORT_ID_CHARS],
        str(each.get("severity", "")),
        str(each.get("kind", "")),
        _age(each, "raisedAt", now),
        _state(each),
        str(each.get("message", "")),
    ]
    if wide:
        row += [_about(each), str(each.get("acknowledgedBy", ""))]
    return row


def _fields(each: Document, now: datetime) -> list[tuple[str, str]]:
    known = f"{each.get('acknowledgedBy', '')}, {_age(each, 'acknowledgedAt', now)} ago"
    return [
        ("ID", str(each.get("id", ""))),
        ("Kind", str(each.get("kind", ""))),
        ("Severity", str(each.get("severity", ""))),
        ("State", _state(each)),
        ("Message", str(each.get("message", ""))),
        ("About", _about(each)),
        ("Raised", _moment(each, "raisedAt", now)),
        ("Last seen", _moment(each, "lastSeenAt", now)),
        ("Over", _moment(each, "resolvedAt", now)),
        ("Known by", known if each.get("acknowledgedAt") else ""),
    ]


def _state(each: Document) -> str:
    if each.get("resolvedAt"):
        return "over"
    return "known" if each.get("acknowledgedAt") else "open"


def _about(each: Document) -> str:
    return f"{each.get('resourceType', '')} {each.get('resourceId', '')}".strip()


def _moment(each: Document, field: str, now: datetime) -> str:
    return f"{each[field]} ({_age(each, field, now)} ago)" if each.get(field) else ""


def _age(each: Document, field: str, now: datetime) -> str:
    moment = each.get(field)
    return format_age((now - datetime.fromisoformat(str(moment))).total_seconds()) if moment else ""
