"""`limiquantix vm`: the commands on virtual machines."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import click

from controlplane.cli.api_client import CHANGE_DEADLINE_S, VM_SERVICE, ApiClient, Document
from controlplane.cli.console import console
from controlplane.cli.console_log import console_log
from controlplane.cli.lookup import complete_node, connect, list_nodes, list_vms, node_id_of, vm_id_of
from controlplane.cli.metrics import top, vm_metrics
from controlplane.cli.output import print_document, print_fields, print_table
from controlplane.cli.placement import explain
from controlplane.cli.progress import waiting
from controlplane.cli.session import ApiGroup, session_of
from controlplane.cli.terminal_text import one_line
from controlplane.cli.views import (
    VM_COLUMNS,
    WIDE_VM_COLUMNS,
    noted,
    vm_fields,
    vm_note,
    vm_row,
    vm_state,
)
from controlplane.cli.vm_cdroms import cdrom
from controlplane.cli.vm_changes import (
    Asking,
    ask,
    asking_options,
    change_vm,
    hostname_of,
    project_option,
    vm_argument,
)
from controlplane.cli.vm_clones import clone, template
from controlplane.cli.vm_create import create, update
from controlplane.cli.vm_disks import disk
from controlplane.cli.vm_guest import guest
from controlplane.cli.vm_migrate import migrate
from controlplane.cli.vm_nics import nic
from controlplane.cli.vm_snapshots import snapshot, suspend
from controlplane.cli.vm_spec_options import Label, enum_name
from controlplane.cli.vm_watch import watch

STATES = (
    "unknown",
    "running",
    "stopped",
    "paused",
    "suspended",
    "crashed",
    "migrating",
    "provisioning",
    "lost",
    "terminated",
)

_STOP_GRACE_S = 60.0
"""For a host to carry out the stop, beyond what the guest gets."""
_DEFAULT_STOP_TIMEOUT_S = 30
"""What the server gives a guest when it is not told."""


@click.group(cls=ApiGroup)
def vm() -> None:
    """Create, list, change, power and delete virtual machines.

    A VM is named by its name or its id. --project tells VMs of the same name apart.

    \b
    Example:
      limiquantix vm list
    """


_COMMANDS: tuple[click.Command, ...] = (
    *(create, update, explain, console, console_log, top, vm_metrics, watch),
    *(clone, template, snapshot, suspend, migrate),
)
for command in _COMMANDS:
    vm.add_command(command)
for group in (guest, disk, nic, cdrom):
    vm.add_command(group)


@vm.command("list")
@click.option("--project", metavar="ID", default="", help="Only VMs of this project.")
@click.option("--label", "labels", type=Label(), multiple=True, metavar="KEY=VALUE", help="Only VMs with this label.")
@click.option(
    "--state",
    "states",
    type=click.Choice(STATES, case_sensitive=False),
    multiple=True,
    help="Only VMs in this state; several mean any of them.",
)
@click.option("--node", metavar="NODE", shell_complete=complete_node, help="Only VMs on this node, by name or id.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most this many, the oldest.")
@click.option("--wide", "-w", is_flag=True, help="More columns: disks, labels, project, id.")
@click.pass_context
def list_command(
    context: click.Context,
    project: str,
    labels: tuple[tuple[str, str], ...],
    states: tuple[str, ...],
    node: str | None,
    limit: int | None,
    wide: bool,
) -> None:
    """List VMs, oldest first.

    All of them, however many pages that takes. A column NOTE is added if there is something to note: a VM that is only
    shown ("unmanaged"), that several hosts have, or that is not in the state it is wanted in.

    \b
    Example:
      limiquantix vm list --state running --label tier=web
    """
    session = session_of(context)
    filters: Document = {
        "projectId": project,
        "labels": dict(labels),
        "states": [enum_name(state) for state in states],
    }
    with connect(context) as client:
        if node:
            filters["nodeId"] = node_id_of(client, node)
        with waiting("reading VMs"):
            found = list(islice(list_vms(client, filters), limit))
            hostnames = _hostnames(client) if session.prints_tables else {}
    if not session.prints_tables:
        print_document({"vms": found, "totalCount": len(found)}, session.output)
        return
    now = datetime.now(UTC)
    columns = WIDE_VM_COLUMNS if wide else VM_COLUMNS
    rows = [vm_row(each, hostnames, now, wide=wide) for each in found]
    print_table(*noted(columns, rows, [vm_note(each) for each in found]))


@vm.command()
@vm_argument
@project_option
@click.pass_context
def show(context: click.Context, vm: str, project: str) -> None:
    """Show one VM: its configuration, state and last error.

    \b
    Example:
      limiquantix vm show web-1
    """
    session = session_of(context)
    with connect(context) as client:
        found = client.call(VM_SERVICE, "GetVM", {"id": vm_id_of(client, vm, project)})
        hostnames = hostname_of(client, found) if session.prints_tables else {}
    if session.prints_tables:
        print_fields(vm_fields(found, hostnames, datetime.now(UTC)))
    else:
        print_document(found, session.output)


@vm.command()
@vm_argument
@project_option
@asking_options
@click.pass_context
def start(context: click.Context, vm: str, project: str, asking: Asking) -> None:
    """Power a VM on and wait until it runs.

    \b
    Example:
      limiquantix vm start web-1
    """
    change_vm(context, "StartVM", vm, project, "starting", asking)


@vm.command()
@vm_argument
@project_option
@click.option("--force", is_flag=True, help="Cut the power; with --timeout, only when the time is up.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.IntRange(0, 3600),
    default=0,
    metavar="SECONDS",
    help="How long the guest gets to shut down.  [default: 30, with --force 0]",
)
@asking_options
@click.pass_context
def stop(context: click.Context, vm: str, project: str, force: bool, timeout_s: int, asking: Asking) -> None:
    """Ask the guest to shut down and wait until the VM is off.

    A guest that does not obey in time runs on, and the command fails, unless --force is given.

    \b
    Example:
      limiquantix vm stop web-1 --timeout 60 --force
    """
    deadline_s = max(CHANGE_DEADLINE_S, (timeout_s or _DEFAULT_STOP_TIMEOUT_S) + _STOP_GRACE_S)
    change_vm(context, "StopVM", vm, project, "stopping", asking, {"force": force, "timeoutSec": timeout_s}, deadline_s)


@vm.command()
@vm_argument
@project_option
@click.option("--force", is_flag=True, help="Cut the power and start again, instead of asking the guest.")
@asking_options
@click.pass_context
def reboot(context: click.Context, vm: str, project: str, force: bool, asking: Asking) -> None:
    """Restart the guest of a running VM.

    \b
    Example:
      limiquantix vm reboot web-1
    """
    change_vm(context, "RebootVM", vm, project, "rebooting", asking, {"force": force})


@vm.command()
@vm_argument
@project_option
@asking_options
@click.pass_context
def pause(context: click.Context, vm: str, project: str, asking: Asking) -> None:
    """Stop the vCPUs of a running VM; its memory stays.

    \b
    Example:
      limiquantix vm pause web-1
    """
    change_vm(context, "PauseVM", vm, project, "pausing", asking)


@vm.command()
@vm_argument
@project_option
@asking_options
@click.pass_context
def resume(context: click.Context, vm: str, project: str, asking: Asking) -> None:
    """Let a paused VM go on.

    \b
    Example:
      limiquantix vm resume web-1
    """
    change_vm(context, "ResumeVM", vm, project, "resuming", asking)


@vm.command("take-over")
@vm_argument
@project_option
@asking_options
@click.pass_context
def take_over(context: click.Context, vm: str, project: str, asking: Asking) -> None:
    """Manage a VM that something else made on its host.

    Such a VM is listed as unmanaged and left alone until then. Taking it over changes nothing of it.

    \b
    Example:
      limiquantix vm take-over web-1
    """
    change_vm(context, "TakeOverVM", vm, project, "taking over", asking)


@vm.command()
@vm_argument
@project_option
@click.option("--force", is_flag=True, help="Also if it runs: cut its power first.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--delete-volumes", is_flag=True, help="Also delete volumes of storage pools that are attached.")
@click.option("--keep-on-host", is_flag=True, help="Only forget the VM; leave what is on its host alone.")
@asking_options
@click.pass_context
def delete(
    context: click.Context,
    vm: str,
    project: str,
    force: bool,
    yes: bool,
    delete_volumes: bool,
    keep_on_host: bool,
    asking: Asking,
) -> None:
    """Delete a VM and the disks made for it.

    At a terminal it asks first; a script is not asked.

    \b
    Example:
      limiquantix vm delete web-1 --yes
    """
    session = session_of(context)
    request: Document = {
        "force": force,
        "deleteVolumes": delete_volumes,
        "removeFromInventoryOnly": keep_on_host,
    }
    with connect(context) as client:
        request["id"] = vm_id_of(client, vm, project)
        if not yes and sys.stdin.isatty() and sys.stderr.isatty():
            _confirm_deletion(client.call(VM_SERVICE, "GetVM", {"id": request["id"]}), keep_on_host)
        answer = ask(context, client, "DeleteVM", request, f"deleting {vm}", vm, asking)
    if answer is None:
        return
    if session.prints_tables:
        click.echo(f"VM {one_line(vm)} is deleted")
    else:
        print_document(answer, session.output)


def _confirm_deletion(found: Mapping[str, Any], keep_on_host: bool) -> None:
    disk_count = len(found.get("spec", {}).get("disks", ()))
    what = "forget it and leave its host alone" if keep_on_host else f"delete it with its {disk_count} disk(s)"
    name = one_line(str(found.get("name", "")))
    click.confirm(f"VM {name} is {vm_state(found)}; {what}?", abort=True, err=True)


def _hostnames(client: ApiClient) -> dict[str, str]:
    return {str(node.get("id")): str(node.get("hostname", "")) for node in list_nodes(client, {})}
