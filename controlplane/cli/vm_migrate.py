"""`limiquantix vm migrate`: what it will take, how far it is, what it took."""

from __future__ import annotations

import json
from typing import Any

import click

from controlplane.cli.api_client import OPERATION_SERVICE, VM_SERVICE, ApiClient, Document, ServerUnreachable
from controlplane.cli.failures import refused
from controlplane.cli.lookup import complete_node, connect, node_id_of, vm_id_of
from controlplane.cli.migration_views import (
    forecast_fields,
    forecast_line,
    forecast_warnings,
    progress_line,
    stats_line,
)
from controlplane.cli.operation_views import ACTIVE, progress_text
from controlplane.cli.output import print_document, print_fields
from controlplane.cli.progress import Look, waiting
from controlplane.cli.session import ApiCommand, Session, session_of
from controlplane.cli.terminal_text import one_line
from controlplane.cli.vm_changes import (
    Asking,
    ask,
    asking_options,
    hostname_of,
    print_changed,
    project_option,
    vm_argument,
)
from limiquantix.errors import ApiError

MIGRATION_DEADLINE_S = 24 * 3600.0
"""How long a migration is waited for: disks of terabytes may have to be copied."""

_LOOK_DEADLINE_S = 2.0


@click.command("migrate", cls=ApiCommand)
@vm_argument
@click.option(
    "--to", "target", metavar="NODE", shell_complete=complete_node, help="Node to move to.  [default: the best one]"
)
@project_option
@click.option("--cold", is_flag=True, help="Let the guest stand still while its memory is sent.")
@click.option("--dry-run", is_flag=True, help="Only say where it would go and what that would take.")
@click.option(
    "--max-downtime-ms",
    type=click.IntRange(0, 3_600_000),
    metavar="MS",
    help="How long the guest may stand still.  [default: the VM's setting]",
)
@click.option(
    "--bandwidth",
    type=click.IntRange(0, 10_000_000),
    metavar="MBIT/S",
    help="Ceiling of the network used.  [default: the VM's setting]",
)
@click.option(
    "--post-copy/--no-post-copy", default=None, help="Switch over after one pass and fetch the rest then, or never."
)
@click.option(
    "--auto-converge/--no-auto-converge", default=None, help="Slow the guest down if it writes too fast, or never."
)
@click.option("--shared-storage-only", is_flag=True, default=None, help="Refuse rather than copy disks.")
@asking_options
@click.pass_context
def migrate(
    context: click.Context,
    /,
    vm: str,
    target: str | None,
    project: str,
    cold: bool,
    dry_run: bool,
    asking: Asking,
    **options: Any,
) -> None:
    """Move a VM to another node, running or not.

    First it says what that is expected to take. Ctrl-C leaves the move going on; 'limiquantix operation cancel' takes
    it back, as long as the guest runs at the source.

    \b
    Example:
      limiquantix vm migrate web-1
      limiquantix vm migrate web-1 --to host-b --dry-run
      limiquantix vm migrate web-1 --max-downtime-ms 100 --bandwidth 2000
    """
    session = session_of(context)
    with connect(context) as client:
        request = _request(client, vm_id_of(client, vm, project), target, options) | {"live": not cold}
        if dry_run or session.prints_tables:
            expected = _forecast(client, request, vm)
            if dry_run:
                _print_forecast(session, client, expected)
                return
            _tell(client, expected)
        doing = f"migrating {vm}"
        look = _look(session, str(request["vmId"]), asking.request_id)
        moved = ask(
            context, client, "MigrateVM", request, doing, vm, asking, MIGRATION_DEADLINE_S, look=look, hint=_hint(vm)
        )
        if moved is None:
            return
        if not session.prints_tables:
            print_document(moved, session.output)
            return
        print_changed(context, client, moved.get("vm", {}))
        click.echo(one_line(stats_line(moved.get("stats", {}), moved.get("forecast", {}))))


def _request(client: ApiClient, vm_id: str, target: str | None, options: dict[str, Any]) -> Document:
    request: Document = {"vmId": vm_id}
    if target:
        request["targetNodeId"] = node_id_of(client, target)
    names = {
        "max_downtime_ms": "maxDowntimeMs",
        "bandwidth": "bandwidthMbps",
        "post_copy": "postCopy",
        "auto_converge": "autoConverge",
        "shared_storage_only": "sharedStorageOnly",
    }
    given = {names[name]: value for name, value in options.items()}
    return request | {name: value for name, value in given.items() if value is not None}


def _hint(vm: str) -> str:
    return (
        f"'limiquantix operation list --vm {vm}' shows it, 'limiquantix operation wait ID' waits for it and "
        "'limiquantix operation cancel ID' takes it back"
    )


def _forecast(client: ApiClient, request: Document, vm: str) -> Document:
    try:
        with waiting(f"measuring {vm}"):
            return client.call(VM_SERVICE, "MigrateVM", {**request, "validateOnly": True})
    except ApiError as error:
        raise refused(error) from error


def _print_forecast(session: Session, client: ApiClient, expected: Document) -> None:
    if not session.prints_tables:
        print_document(expected, session.output)
        return
    forecast = expected.get("forecast", {})
    print_fields(forecast_fields(expected, _hostname(client, forecast)))
    for warning in forecast_warnings(forecast):
        click.echo(one_line(warning), err=True)


def _tell(client: ApiClient, expected: Document) -> None:
    forecast = expected.get("forecast", {})
    click.echo(one_line(forecast_line(forecast, _hostname(client, forecast))))
    for warning in forecast_warnings(forecast):
        click.echo(one_line(warning), err=True)


def _hostname(client: ApiClient, forecast: Document) -> str:
    node_id = str(forecast.get("targetNodeId", ""))
    return hostname_of(client, {"status": {"nodeId": node_id}}).get(node_id, node_id)


def _look(session: Session, vm_id: str, request_id: str) -> Look:
    """Make what tells how far the migration is: a bar while it is sent, else what it waits for."""
    request = {"resourceId": vm_id, "states": list(ACTIVE), "pageSize": 10}

    def look() -> str:
        try:
            with session.connect() as client:
                page = client.call(OPERATION_SERVICE, "ListOperations", request, _LOOK_DEADLINE_S)
        except (ApiError, ServerUnreachable):
            return ""
        for each in page.get("operations", ()):
            if each.get("requestId") == request_id:
                return progress_line(_sent(each), str(each.get("waitingFor", ""))) or progress_text(each)
        return ""

    return look


def _sent(operation: Document) -> Document:
    """Return what the step that sends noted last; nothing if it does not send now."""
    for step in operation.get("steps", ()):
        if step.get("name") == "transfer" and step.get("state") != "DONE" and step.get("resultJson"):
            try:
                noted = json.loads(step["resultJson"])
            except ValueError:
                return {}
            return noted if isinstance(noted, dict) else {}
    return {}
