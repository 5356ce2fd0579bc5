"""`limiquantix balance` and `limiquantix recommendation`: how even the load is, and what to move."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice

import click

from controlplane.cli.api_client import BALANCING_SERVICE, CHANGE_DEADLINE_S, ApiClient, Document
from controlplane.cli.balance_views import (
    LOAD_COLUMNS,
    RECOMMENDATION_COLUMNS,
    WIDE_RECOMMENDATION_COLUMNS,
    balance_lines,
    hostnames,
    load_row,
    recommendation_fields,
    recommendation_row,
    status_of,
)
from controlplane.cli.failures import Failure
from controlplane.cli.lookup import complete_recommendation, complete_vm, connect, id_by_beginning, vm_id_of
from controlplane.cli.output import print_document, print_fields, print_table
from controlplane.cli.progress import waiting
from controlplane.cli.session import ApiGroup, Session, output_option, server_option, session_of

STATUSES = ("pending", "approved", "applied", "rejected", "expired", "failed")
_RUN_DEADLINE_S = 120.0
"""Of a run, which asks every host for measures and may plan for some seconds."""

recommendation_argument = click.argument("recommendation", metavar="ID", shell_complete=complete_recommendation)


@click.group(cls=ApiGroup, invoke_without_command=True, params=[output_option(), server_option()])
@click.pass_context
def balance(context: click.Context) -> None:
    """Show how evenly nodes are loaded, and look for moves.

    Without a command: the load of every node, measured and claimed, and what the last run said.

    \b
    Example:
      limiquantix balance
      limiquantix balance run
    """
    if context.invoked_subcommand is None:
        _show.invoke(context)


@balance.command("show")
@click.pass_context
def _show(context: click.Context) -> None:
    """Show the load of every node; so does 'balance' alone.

    \b
    Example:
      limiquantix balance show
    """
    session = session_of(context)
    with connect(context) as client, waiting("reading loads"):
        found = client.call(BALANCING_SERVICE, "GetBalance", {})
    if not session.prints_tables:
        print_document(found, session.output)
        return
    print_table(LOAD_COLUMNS, [load_row(node) for node in found.get("nodes", ())])
    click.echo()
    print_fields(balance_lines(found, datetime.now(UTC)))


@balance.command()
@click.pass_context
def run(context: click.Context) -> None:
    """Look at the load now, and recommend moves.

    What was approved before is carried out from then on. With full automation so is what this run recommends.

    \b
    Example:
      limiquantix balance run
    """
    session = session_of(context)
    with connect(context) as client, waiting("measuring and planning"):
        found = client.call(BALANCING_SERVICE, "RunBalancing", {}, _RUN_DEADLINE_S)
        made = found.get("recommendations", [])
        names = hostnames(client) if session.prints_tables and made else {}
    if not session.prints_tables:
        print_document(found, session.output)
        return
    if made:
        _print_recommendations(made, names, wide=False)
        click.echo()
    before, after = float(found.get("imbalanceBefore", 0)), float(found.get("imbalanceAfter", 0))
    print_fields([("Imbalance", f"{before:.1f}, then {after:.1f}"), ("Note", found.get("message", ""))])


@click.group(cls=ApiGroup)
def recommendation() -> None:
    """List, approve, reject and carry out recommended moves.

    A recommendation is named by its id, or by the beginning of it if no other one begins so.

    \b
    Example:
      limiquantix recommendation list
    """


@recommendation.command("list")
@click.option("--vm", metavar="VM", shell_complete=complete_vm, help="Only those about this VM, by name or id.")
@click.option(
    "--status",
    "statuses",
    type=click.Choice(STATUSES, case_sensitive=False),
    multiple=True,
    help="Only those in this status; several mean any of them.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", default=50, show_default=True, help="At most so many."
)
@click.option("--wide", "-w", is_flag=True, help="Whole ids, and more columns: reason, who decided, what came of it.")
@click.pass_context
def list_command(context: click.Context, vm: str | None, statuses: tuple[str, ...], limit: int, wide: bool) -> None:
    """List the recommendations of the last day, newest first.

    GAIN is by how much the imbalance shrinks. LOAD is that of source and target, before and after.

    \b
    Example:
      limiquantix recommendation list --status pending
    """
    session = session_of(context)
    filters: Document = {"statuses": [status.upper() for status in statuses], "pageSize": min(limit, 500)}
    with connect(context) as client, waiting("reading recommendations"):
        if vm:
            filters["vmId"] = vm_id_of(client, vm)
        found = list(islice(_all(client, filters), limit))
        names = hostnames(client) if session.prints_tables and found else {}
    if not session.prints_tables:
        print_document({"recommendations": found, "totalCount": len(found)}, session.output)
        return
    _print_recommendations(found, names, wide=wide)


@recommendation.command("show")
@recommendation_argument
@click.pass_context
def show_recommendation(context: click.Context, recommendation: str) -> None:
    """Show one recommendation, what it costs and gains.

    And why it was made, who decided about it, and what came of it.

    \b
    Example:
      limiquantix recommendation show 1b2c3d4e
    """
    session = session_of(context)
    with connect(context) as client:
        wanted = _id_of(client, recommendation)
        found = client.call(BALANCING_SERVICE, "GetRecommendation", {"id": wanted})
        names = hostnames(client) if session.prints_tables else {}
    _print_one(session, found, names)


@recommendation.command()
@recommendation_argument
@click.pass_context
def approve(context: click.Context, recommendation: str) -> None:
    """Allow a recommendation; the next run carries it out.

    Where two VMs change places, both of their recommendations are allowed.

    \b
    Example:
      limiquantix recommendation approve 1b2c3d4e
    """
    _decide(context, recommendation, "ApproveRecommendation", {}, "is approved; the next run has it carried out")


@recommendation.command()
@recommendation_argument
@click.option("--reason", metavar="TEXT", default="", help="Why; it is shown with the recommendation.")
@click.pass_context
def reject(context: click.Context, recommendation: str, reason: str) -> None:
    """Refuse a recommendation, so that its VM stays.

    For the hold time, an hour by default, the VM is not recommended again. Where two VMs change places, both stay.

    \b
    Example:
      limiquantix recommendation reject 1b2c3d4e --reason "busy until Friday"
    """
    _decide(context, recommendation, "RejectRecommendation", {"reason": reason}, "is rejected")


@recommendation.command()
@recommendation_argument
@click.pass_context
def apply(context: click.Context, recommendation: str) -> None:
    """Carry a recommendation out now, and wait for its end.

    It is checked again first: one that was overtaken by what happened since expires, and moves nothing. Of two VMs that
    change places both are moved.

    \b
    Example:
      limiquantix recommendation apply 1b2c3d4e
    """
    session = session_of(context)
    with connect(context) as client:
        wanted = _id_of(client, recommendation)
        with waiting(f"moving the VM of {recommendation}", hint="'limiquantix operation list' shows how far it is"):
            # Carrying it out twice moves its VM once, so a server that is gone for a moment is asked again.
            found = client.insist(BALANCING_SERVICE, "ApplyRecommendation", {"id": wanted}, CHANGE_DEADLINE_S)
        names = hostnames(client)
        other = _other_half(client, found)
    if session.prints_tables:
        for each in (found, other):
            if status_of(each) == "APPLIED":
                target = names.get(str(each.get("targetNodeId")), str(each.get("targetNodeId")))
                click.echo(f"VM {each.get('vmName', '')} is on {target} now")
    else:
        print_document(found, session.output)
    for each in (found, other):
        if status_of(each) in ("EXPIRED", "FAILED"):
            what = "is overtaken" if status_of(each) == "EXPIRED" else "could not be carried out"
            raise Failure(
                f"recommendation {each.get('id')} {what}: {each.get('statusMessage', '')}",
                hint="'limiquantix balance run' looks at the load again",
            )


def _decide(context: click.Context, named: str, method: str, request: Document, words: str) -> None:
    session = session_of(context)
    with connect(context) as client:
        wanted = _id_of(client, named)
        found = client.insist(BALANCING_SERVICE, method, {"id": wanted, **request})
    if session.prints_tables:
        click.echo(f"recommendation {found.get('id', '')} {words}{_with_other_half(found)}")
    else:
        print_document(found, session.output)


def _other_half(client: ApiClient, found: Document) -> Document:
    if not found.get("exchangeWith"):
        return {}
    return client.call(BALANCING_SERVICE, "GetRecommendation", {"id": found["exchangeWith"]})


def _with_other_half(found: Document) -> str:
    other = found.get("exchangeWith", "")
    return f"; so is {other}, since neither is of use without the other" if other else ""


def _all(client: ApiClient, filters: Document) -> Iterator[Document]:
    for page in client.pages(BALANCING_SERVICE, "ListRecommendations", filters):
        yield from page.get("recommendations", ())


def _id_of(client: ApiClient, named: str) -> str:
    return id_by_beginning(named, "recommendation", lambda: _all(client, {}))


def _print_recommendations(found: list[Document], names: dict[str, str], *, wide: bool) -> None:
    now = datetime.now(UTC)
    rows = [recommendation_row(each, names, now, wide=wide) for each in found]
    print_table(WIDE_RECOMMENDATION_COLUMNS if wide else RECOMMENDATION_COLUMNS, rows)


def _print_one(session: Session, found: Document, names: dict[str, str]) -> None:
    if session.prints_tables:
        print_fields(recommendation_fields(found, names, datetime.now(UTC)))
    else:
        print_document(found, session.output)
