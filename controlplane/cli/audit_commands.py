"""`limiquantix audit`: who changed what and why, what was refused, and whether the trail is whole."""

from __future__ import annotations

import base64
import sys
from contextlib import closing
from datetime import UTC, datetime
from itertools import islice

import click

from controlplane.cli.api_client import AUDIT_SERVICE, Document
from controlplane.cli.event_commands import Since
from controlplane.cli.failures import Failure
from controlplane.cli.lookup import connect
from controlplane.cli.output import Column, print_document, print_table
from controlplane.cli.progress import waiting
from controlplane.cli.session import ApiGroup, session_of
from controlplane.cli.terminal_text import one_line

OUTCOMES = ("done", "failed", "refused", "unknown")
_PREFIX = "AUDIT_OUTCOME_"
_VERIFY_DEADLINE_S = 600.0
_COLUMNS = (
    Column("WHEN"),
    Column("WHO"),
    Column("WHAT"),
    Column("ON"),
    Column("OUTCOME", styles={"done": "green", "failed": "red", "refused": "red", "unknown": "yellow"}),
    Column("FROM"),
    Column("WHY"),
)
_WIDE_COLUMNS = (*_COLUMNS, Column("CALLS", is_number=True), Column("MESSAGE"), Column("OPERATION"), Column("ID"))

_since = click.option("--since", type=Since(), metavar="TIME", help="From then on: 15m, 2d ago, 2025-06-01T12:00:00Z.")
_until = click.option("--until", type=Since(), metavar="TIME", help="Before then.")
_who = click.option("--who", metavar="NAME", help="Only what this user, API key or node did, by name or id.")
_on = click.option("--on", metavar="THING", help="Only what touched this: an id, or such as vm/ID.")
_what = click.option("--what", metavar="METHOD", help="Only calls of this method, such as DeleteVM.")
_outcome = click.option(
    "--outcome",
    "outcomes",
    type=click.Choice(OUTCOMES),
    multiple=True,
    help="Only what became this. Repeatable; unknown: no end is on record.",
)


@click.group(cls=ApiGroup)
def audit() -> None:
    """Show who changed what and why, and what was refused.

    \b
    Example:
      limiquantix audit list --since 1d --who alice
    """


@audit.command("list")
@_since
@_until
@_who
@_on
@_what
@_outcome
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", default=100, show_default=True, help="At most so many."
)
@click.option("--wide", "-w", is_flag=True, help="More columns: how many calls, messages, operations, ids.")
@click.pass_context
def list_command(
    context: click.Context,
    since: datetime | None,
    until: datetime | None,
    who: str | None,
    on: str | None,
    what: str | None,
    outcomes: tuple[str, ...],
    limit: int,
    wide: bool,
) -> None:
    """List records, newest first.

    \b
    Example:
      limiquantix audit list --outcome refused --since 2h
    """
    session = session_of(context)
    request: Document = {"filter": _filter(since, until, who, on, what, outcomes), "pageSize": min(limit, 500)}
    with connect(context) as client, waiting("reading the audit trail"):
        pages = client.pages(AUDIT_SERVICE, "ListAuditRecords", request)
        found = list(islice((each for page in pages for each in page.get("records", ())), limit))
    if not session.prints_tables:
        print_document({"records": found, "totalCount": len(found)}, session.output)
        return
    print_table(_WIDE_COLUMNS if wide else _COLUMNS, [_row(each, wide=wide) for each in found])


@audit.command()
@_since
@_until
@_who
@_on
@_what
@_outcome
@click.pass_context
def export(
    context: click.Context,
    since: datetime | None,
    until: datetime | None,
    who: str | None,
    on: str | None,
    what: str | None,
    outcomes: tuple[str, ...],
) -> None:
    """Write records, oldest first, one JSON object a line.

    \b
    Example:
      limiquantix audit export --since 1d > audit.jsonl
    """
    request: Document = {"filter": _filter(since, until, who, on, what, outcomes)}
    output = sys.stdout.buffer
    with (
        connect(context) as client,
        closing(client.stream(AUDIT_SERVICE, "ExportAuditRecords", request)) as messages,
    ):
        for message in messages:
            output.write(base64.b64decode(str(message.get("lines", ""))))
    output.flush()


@audit.command()
@click.pass_context
def verify(context: click.Context) -> None:
    """Check that no record was altered or removed.

    The exit status is 1 if one was.

    \b
    Example:
      limiquantix audit verify
    """
    session = session_of(context)
    with connect(context) as client, waiting("checking the audit trail"):
        found = client.call(AUDIT_SERVICE, "VerifyAuditRecords", {}, _VERIFY_DEADLINE_S)
    faults = found.get("faults", [])
    if not session.prints_tables:
        print_document(found, session.output)
    elif faults:
        rows = [[str(each.get(name, "")) for name in ("writerId", "number", "description")] for each in faults]
        print_table((Column("PROCESS"), Column("NUMBER", is_number=True), Column("WHAT IS WRONG")), rows)
    else:
        click.echo(f"{found.get('recordCount', 0)} records of {found.get('writerCount', 0)} processes are as written")
    if faults:
        raise Failure(f"the audit trail is not as it was written, in {len(faults)} places or more")


def _filter(
    since: datetime | None,
    until: datetime | None,
    who: str | None,
    on: str | None,
    what: str | None,
    outcomes: tuple[str, ...],
) -> Document:
    filters: Document = {
        "principal": who,
        "resource": on,
        "method": what,
        "outcomes": [_PREFIX + each.upper() for each in outcomes],
        "since": None if since is None else since.astimezone(UTC).isoformat(),
        "until": None if until is None else until.astimezone(UTC).isoformat(),
    }
    return {name: value for name, value in filters.items() if value}


def _row(each: Document, *, wide: bool) -> list[str]:
    kind, name = str(each.get("principalKind", "")), str(each.get("principalName", ""))
    row = [
        str(each.get("begunAt", ""))[:19].replace("T", " "),
        f"{kind}:{name}" if kind else "nobody known",
        str(each.get("method", "")).rpartition("/")[2],
        " ".join(map(str, each.get("resources", ()))),
        str(each.get("outcome", "")).removeprefix(_PREFIX).lower(),
        str(each.get("address", "")),
        one_line(str(each.get("reason", ""))),
    ]
    if wide:
        row += [
            str(each.get("callCount", "")),
            one_line(str(each.get("message", ""))),
            str(each.get("operationId", "")),
            str(each.get("id", "")),
        ]
    return row
