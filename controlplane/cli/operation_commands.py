"""`limiquantix operation`: what was asked for, how far it is, how it ended."""

from __future__ import annotations

import math
import sys
import time
from datetime import UTC, datetime
from itertools import islice

import click

from controlplane.cli.api_client import OPERATION_SERVICE, ApiClient, Document
from controlplane.cli.failures import Failure
from controlplane.cli.following import Feed, follow
from controlplane.cli.lookup import complete_operation, complete_vm, connect, operation_id_of, vm_id_of
from controlplane.cli.operation_views import (
    COLUMNS,
    ENDED,
    STEP_COLUMNS,
    WIDE_COLUMNS,
    line,
    operation_fields,
    operation_row,
    progress_look,
    progress_text,
    state_of,
    step_rows,
    title,
    took,
    vm_names,
)
from controlplane.cli.output import print_document, print_fields, print_piece, print_table
from controlplane.cli.progress import redraw, waiting
from controlplane.cli.session import ApiGroup, session_of
from controlplane.cli.terminal_text import one_line

STATES = ("queued", "running", "undoing", "succeeded", "failed", "cancelled")
KINDS = (
    "vm.create",
    "vm.update",
    "vm.clone",
    "vm.convert_to_template",
    "vm.delete",
    "vm.start",
    "vm.stop",
    "vm.reboot",
    "vm.guest_shutdown",
    "vm.pause",
    "vm.resume",
    "vm.take_over",
    "vm.delete_snapshot",
    "vm.revert_to_snapshot",
    "vm.create_snapshot",
    "vm.suspend",
    "vm.attach_disk",
    "vm.detach_disk",
    "vm.resize_disk",
    "vm.update_disk",
    "vm.attach_nic",
    "vm.detach_nic",
    "vm.update_nic",
    "vm.attach_cdrom",
    "vm.detach_cdrom",
    "vm.change_medium",
    "vm.settle_devices",
    "vm.migrate",
    "vm.settle_migration",
    "vm.clean_up",
    "vm.failover",
    "vm.finish_failover",
    "vm.relocate",
    "vm.start_elsewhere",
    "vm.release",
    "vm.protect",
    "node.drain",
)

_DEFAULT_LIMIT = 50
_ROUND_S = 20.0
"""One call of a wait; between calls it can change the server."""

operation_argument = click.argument("operation", metavar="ID", shell_complete=complete_operation)


@click.group(cls=ApiGroup)
def operation() -> None:
    """Show, wait for and cancel operations.

    An operation is one change that was asked for: what it is, how far it is, how it ended. It is named by its id, or by
    the beginning of it if no other one begins so.

    \b
    Example:
      limiquantix operation list
    """


@operation.command("list")
@click.option("--vm", metavar="VM", shell_complete=complete_vm, help="Only those of this VM, by name or id.")
@click.option("--project", metavar="ID", default="", help="Only those of this project; also where to look for --vm.")
@click.option(
    "--state",
    "states",
    type=click.Choice(STATES, case_sensitive=False),
    multiple=True,
    help="Only those in this state; several mean any of them.",
)
@click.option(
    "--kind",
    "kinds",
    type=click.Choice(KINDS),
    multiple=True,
    metavar="KIND",
    help="Only those of this kind, such as vm.create; several mean any of them.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    default=_DEFAULT_LIMIT,
    show_default=True,
    help="At most this many, the newest.",
)
@click.option("--wide", "-w", is_flag=True, help="Whole ids, and more columns: who asked, error, request id.")
@click.pass_context
def list_command(
    context: click.Context,
    vm: str | None,
    project: str,
    states: tuple[str, ...],
    kinds: tuple[str, ...],
    limit: int,
    wide: bool,
) -> None:
    """List operations, newest first.

    They are kept for some days after they ended.

    \b
    Example:
      limiquantix operation list --vm web-1 --state running --state queued
    """
    session = session_of(context)
    filters: Document = {
        "projectId": project,
        "kinds": list(kinds),
        "states": [state.upper() for state in states],
        "pageSize": min(limit, 500),
    }
    with connect(context) as client:
        if vm:
            filters["resourceId"] = vm_id_of(client, vm, project)
        with waiting("reading operations"):
            pages = client.pages(OPERATION_SERVICE, "ListOperations", filters)
            found = list(islice((each for page in pages for each in page.get("operations", ())), limit))
            names = vm_names(client, found) if session.prints_tables else {}
    if not session.prints_tables:
        print_document({"operations": found, "totalCount": len(found)}, session.output)
        return
    now = datetime.now(UTC)
    rows = [operation_row(each, names, now, wide=wide) for each in found]
    print_table(WIDE_COLUMNS if wide else COLUMNS, rows)


@operation.command()
@operation_argument
@click.pass_context
def show(context: click.Context, operation: str) -> None:
    """Show one operation: its steps, error, who asked.

    And what the steps found, what it waits for, when it began and ended.

    \b
    Example:
      limiquantix operation show 1b2c3d4e
    """
    session = session_of(context)
    with connect(context) as client:
        found = client.call(OPERATION_SERVICE, "GetOperation", {"id": operation_id_of(client, operation)})
        names = vm_names(client, [found]) if session.prints_tables else {}
    if not session.prints_tables:
        print_document(found, session.output)
        return
    print_fields(operation_fields(found, names, datetime.now(UTC)))
    click.echo()
    print_table(STEP_COLUMNS, step_rows(found))


@operation.command()
@operation_argument
@click.option(
    "--timeout",
    "timeout_s",
    type=click.IntRange(min=1),
    metavar="SECONDS",
    help="Give up waiting after this; the operation goes on.  [default: wait for as long as it takes]",
)
@click.pass_context
def wait(context: click.Context, operation: str, timeout_s: int | None) -> None:
    """Wait until an operation has ended.

    Ends with status 0 if it succeeded, and 1 if it failed, was cancelled or has not ended in time.

    \b
    Example:
      limiquantix operation wait 1b2c3d4e --timeout 60
    """
    session = session_of(context)
    with connect(context) as client:
        operation_id = operation_id_of(client, operation)
        look = progress_look(session, {}, lambda each: each.get("id") == operation_id)
        with waiting(f"waiting for operation {operation}", hint=_show_hint(operation_id), look=look):
            found = _wait(client, operation_id, timeout_s)
        names = vm_names(client, [found])
    if not session.prints_tables:
        print_document(found, session.output)
    if state_of(found) not in ENDED:
        raise Failure(
            f"{title(found, names)} is still {state_of(found)} after {timeout_s} s: {progress_text(found)}",
            hint=f"'limiquantix operation wait {operation_id}' waits on",
        )
    _require_success(found, names)
    if session.prints_tables:
        click.echo(f"{one_line(title(found, names))} {state_of(found)} after {took(found)}")


@operation.command()
@operation_argument
@click.pass_context
def cancel(context: click.Context, operation: str) -> None:
    """Ask for an operation to end without its effect.

    One that is queued ends at once. One that runs stops where it can, and what it did is taken back, which takes a
    while.

    \b
    Example:
      limiquantix operation cancel 1b2c3d4e
    """
    session = session_of(context)
    with connect(context) as client:
        operation_id = operation_id_of(client, operation)
        found = client.insist(OPERATION_SERVICE, "CancelOperation", {"id": operation_id})
        names = vm_names(client, [found]) if session.prints_tables else {}
    if not session.prints_tables:
        print_document(found, session.output)
    elif state_of(found) in ENDED:
        click.echo(f"{one_line(title(found, names))} is {state_of(found)}")
    else:
        until = f"'limiquantix operation wait {operation_id}' waits for its end"
        click.echo(f"{one_line(title(found, names))} was asked to stop and is {state_of(found)}; {until}")


@operation.command()
@operation_argument
@click.pass_context
def watch(context: click.Context, operation: str) -> None:
    """Follow an operation until it has ended.

    On one line of a terminal; elsewhere a line per change. With --output json a line of JSON per change. The status is
    that of 'operation wait'; Ctrl-C ends with status 0.

    \b
    Example:
      limiquantix operation watch 1b2c3d4e
    """
    session = session_of(context)
    redraws = session.prints_tables and sys.stdout.isatty()
    found: Document = {}
    names: dict[str, str] = {}
    with connect(context) as client:
        operation_id = operation_id_of(client, operation)
        feed = Feed(OPERATION_SERVICE, "WatchOperation", {"id": operation_id}, revision_of=lambda _: 0)
        try:
            for each in follow(client, feed):
                if each.get("version") == found.get("version") and found:
                    continue  # the connection was lost, and this is how it was
                names = vm_names(client, [each]) if not found else names
                found = each
                if not session.prints_tables:
                    print_piece(each, session.output)
                elif redraws:
                    redraw(line(each, names), sys.stdout)
                else:
                    click.echo(one_line(line(each, names)))
        except KeyboardInterrupt:
            return
        finally:
            if redraws and found:
                click.echo()
    _require_success(found, names)


def _wait(client: ApiClient, operation_id: str, timeout_s: int | None) -> Document:
    """Wait for the end of an operation; returns it as it is when the time is up."""
    ends_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
    while True:
        round_s = max(min(_ROUND_S, math.ceil(ends_s - time.monotonic()) if timeout_s else _ROUND_S), 1)
        request = {"id": operation_id, "timeoutSec": int(round_s)}
        # The server's own time is shorter than the call's, so that it answers with the operation as it is.
        found = client.insist(OPERATION_SERVICE, "WaitOperation", request, deadline_s=2 * _ROUND_S)
        if state_of(found) in ENDED or time.monotonic() >= ends_s:
            return found


def _require_success(found: Document, names: dict[str, str]) -> None:
    """Check how an operation ended.

    Raises:
        Failure: it did not succeed.
    """
    if state_of(found) in ENDED and state_of(found) != "SUCCEEDED":
        message = str(found.get("error", {}).get("message", ""))
        why = f": {message}" if message else ""
        raise Failure(f"{title(found, names)} {state_of(found)}{why}", hint=_show_hint(str(found.get("id", ""))))


def _show_hint(operation_id: str) -> str:
    return f"'limiquantix operation show {operation_id}' has its steps"
