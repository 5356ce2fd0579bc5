"""`limiquantix vm clone` and `vm template`."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from controlplane.cli.api_client import CHANGE_DEADLINE_S, Document
from controlplane.cli.lookup import connect, list_nodes, list_vms, vm_id_of
from controlplane.cli.output import print_document, print_table
from controlplane.cli.progress import waiting
from controlplane.cli.session import ApiCommand, ApiGroup, session_of
from controlplane.cli.views import VM_COLUMNS, is_template, vm_row
from controlplane.cli.vm_changes import (
    Asking,
    ask,
    asking_options,
    change_vm,
    print_changed,
    project_option,
    vm_argument,
)
from controlplane.cli.vm_first_boot import first_boot_options

CLONE_DEADLINE_S = 4 * 3600.0
"""How long a clone is waited for: the host gives up copying after this."""


@click.command(cls=ApiCommand)
@vm_argument
@click.argument("name")
@project_option
@click.option("--to-project", metavar="ID", default="", help="Project of the clone.  [default: the source's]")
@click.option("--linked", is_flag=True, help="Build upon the disks of a template instead of copying them.")
@click.option("--start", is_flag=True, help="Start the clone too.")
@first_boot_options
@asking_options
@click.pass_context
def clone(
    context: click.Context,
    vm: str,
    name: str,
    project: str,
    to_project: str,
    linked: bool,
    start: bool,
    provisioning: Document | None,
    asking: Asking,
) -> None:
    """Make a VM called NAME from VM, which is off or a template.

    It gets ids, MAC addresses and a host name of its own. Disks are copied; those of a linked clone are built upon the
    template's, which takes no time and no room, and the template stays as long as there are linked clones.

    \b
    Example:
      limiquantix vm clone web-1 web-2 --start
      limiquantix vm clone debian-12 web-3 --linked --hostname web-3 --ssh-key ~/.ssh/id_ed25519.pub
    """
    with connect(context) as client:
        request: Document = {
            "sourceVmId": vm_id_of(client, vm, project),
            "name": name,
            "projectId": to_project,
            "cloneType": "LINKED" if linked else "FULL",
            "startOnCreate": start,
        }
        if provisioning is not None:
            request["provisioning"] = provisioning
        doing = f"cloning {vm} as {name}"
        made = ask(context, client, "CloneVM", request, doing, name, asking, CLONE_DEADLINE_S)
        if made is not None:
            print_changed(context, client, made)


@click.group(cls=ApiGroup)
def template() -> None:
    """Make, list and release templates, which VMs are made of.

    A template is a VM that does not start.

    \b
    Example:
      limiquantix vm template create debian-12
      limiquantix vm create web-1 --template debian-12 --linked --start
    """


@template.command("create")
@vm_argument
@project_option
@asking_options
@click.pass_context
def create_template(context: click.Context, vm: str, project: str, asking: Asking) -> None:
    """Make a VM that is off a template.

    \b
    Example:
      limiquantix vm template create debian-12
    """
    with connect(context) as client:
        request: Document = {"vmId": vm_id_of(client, vm, project)}
        doing = f"making {vm} a template"
        made = ask(context, client, "ConvertToTemplate", request, doing, vm, asking, CHANGE_DEADLINE_S)
        if made is not None:
            print_changed(context, client, made)


@template.command()
@vm_argument
@project_option
@asking_options
@click.pass_context
def release(context: click.Context, vm: str, project: str, asking: Asking) -> None:
    """Make a template an ordinary VM again.

    Refused while there are linked clones.

    \b
    Example:
      limiquantix vm template release debian-12
    """
    request: Document = {"updateMask": "spec.template.isTemplate"}
    change_vm(context, "UpdateVM", vm, project, "releasing", asking, request)


@template.command("list")
@click.option("--project", metavar="ID", default="", help="Only templates of this project.")
@click.pass_context
def list_templates(context: click.Context, project: str) -> None:
    """List templates, oldest first.

    \b
    Example:
      limiquantix vm template list
    """
    session = session_of(context)
    with connect(context) as client, waiting("reading templates"):
        found = [each for each in list_vms(client, {"projectId": project}) if is_template(each)]
        hostnames: dict[str, str] = {}
        if session.prints_tables:
            hostnames = {str(node.get("id")): str(node.get("hostname", "")) for node in list_nodes(client, {})}
    if not session.prints_tables:
        print_document({"vms": found, "totalCount": len(found)}, session.output)
        return
    now = datetime.now(UTC)
    print_table(VM_COLUMNS, [vm_row(each, hostnames, now, wide=False) for each in found])
