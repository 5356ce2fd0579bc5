"""`limiquantix project`: what belongs to whom, and how much of it there may be."""

from __future__ import annotations

import click

from controlplane.cli.api_client import PROJECT_SERVICE, Document
from controlplane.cli.lookup import connect
from controlplane.cli.output import Column, print_document, print_fields, print_table
from controlplane.cli.places import list_projects, project_id_of
from controlplane.cli.session import ApiGroup, session_of
from controlplane.cli.sizes import format_bytes
from controlplane.cli.vm_spec_options import MemorySize

_COLUMNS = (Column("NAME"), Column("VMS"), Column("VCPUS"), Column("MEMORY"), Column("DISKS"), Column("ID"))
_PARTS = (("vmCount", "VMs", 0), ("vcpus", "vCPUs", 0), ("memoryMib", "Memory", 2**20), ("diskGib", "Disks", 2**30))
"""Fields of quota and usage, how people call them, and the bytes that their unit has."""

project_argument = click.argument("project", metavar="PROJECT")
description_option = click.option("--description", help="What it is for.")


def quota_options(command: click.decorators.FC) -> click.decorators.FC:
    """Add the options that say what a project may take."""
    for option in (
        click.option("--disk", "disk_mib", type=MemorySize(), metavar="SIZE", help="Of all disks, such as 2TiB."),
        click.option("--memory", "memory_mib", type=MemorySize(), metavar="SIZE", help="Of all VMs, such as 64GiB."),
        click.option("--cpus", type=click.IntRange(min=0), metavar="N", help="vCPUs of all VMs together."),
        click.option("--vms", type=click.IntRange(min=0), metavar="N", help="At most so many VMs; 0 is any number."),
    ):
        command = option(command)
    return command


@click.group(cls=ApiGroup)
def project() -> None:
    """Make, change and remove projects. A project is named by name or by id.

    \b
    Example:
      limiquantix project create web --vms 20 --memory 64GiB
    """


@project.command("create")
@click.argument("name")
@description_option
@quota_options
@click.pass_context
def create(
    context: click.Context,
    name: str,
    description: str | None,
    vms: int | None,
    cpus: int | None,
    memory_mib: int | None,
    disk_mib: int | None,
) -> None:
    """Make a project. A part of the quota that is left out has no limit.

    \b
    Example:
      limiquantix project create web --vms 20 --memory 64GiB
    """
    quota = _quota({}, vms, cpus, memory_mib, disk_mib)
    _show(context, "CreateProject", {"name": name, "description": description or "", "quota": quota})


@project.command("list")
@click.pass_context
def list_command(context: click.Context) -> None:
    """List the projects that you see, with their quotas.

    \b
    Example:
      limiquantix project list
    """
    session = session_of(context)
    with connect(context) as client:
        found = list(list_projects(client))
    if not session.prints_tables:
        print_document({"projects": found, "totalCount": len(found)}, session.output)
        return
    print_table(_COLUMNS, [_row(each) for each in found])


@project.command("show")
@project_argument
@click.pass_context
def show(context: click.Context, project: str) -> None:
    """Show one project, and what its VMs use of its quota.

    \b
    Example:
      limiquantix project show web
    """
    session = session_of(context)
    with connect(context) as client:
        found = client.call(PROJECT_SERVICE, "GetProject", {"id": project_id_of(client, project)})
    if session.prints_tables:
        print_fields(_fields(found))
    else:
        print_document(found, session.output)


@project.command("update")
@project_argument
@click.option("--name", help="Another name.")
@description_option
@quota_options
@click.pass_context
def update(
    context: click.Context,
    project: str,
    name: str | None,
    description: str | None,
    vms: int | None,
    cpus: int | None,
    memory_mib: int | None,
    disk_mib: int | None,
) -> None:
    """Change a project; what is left out stays. A quota below what is used refuses what is new.

    \b
    Example:
      limiquantix project update web --memory 128GiB
    """
    request: Document = {}
    if name is not None:
        request["name"] = name
    if description is not None:
        request["description"] = description
    asks_quota = any(part is not None for part in (vms, cpus, memory_mib, disk_mib))
    if not request and not asks_quota:
        raise click.UsageError("say what to change")
    with connect(context) as client:
        request["id"] = project_id_of(client, project)
        if asks_quota:
            known = client.call(PROJECT_SERVICE, "GetProject", {"id": request["id"]}).get("quota", {})
            request["quota"] = _quota(known, vms, cpus, memory_mib, disk_mib)
    _show(context, "UpdateProject", request)


@project.command("delete")
@project_argument
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.pass_context
def delete(context: click.Context, project: str, yes: bool) -> None:
    """Delete a project that has no VMs.

    Its folders go with it, and all roles that are bound in it.

    \b
    Example:
      limiquantix project delete web
    """
    if not yes:
        click.confirm(f"Delete project {project}?", abort=True)
    with connect(context) as client:
        client.call(PROJECT_SERVICE, "DeleteProject", {"id": project_id_of(client, project)})
    click.echo(f"project {project} is deleted")


def _quota(
    known: Document, vms: int | None, cpus: int | None, memory_mib: int | None, disk_mib: int | None
) -> Document:
    """Make the whole quota of the one that there is and what was asked for."""
    asked = {
        "vmCount": vms,
        "vcpus": cpus,
        "memoryMib": memory_mib,
        "diskGib": None if disk_mib is None else disk_mib // 1024,
    }
    return {**known, **{name: value for name, value in asked.items() if value is not None}}


def _show(context: click.Context, method: str, request: Document) -> None:
    session = session_of(context)
    with connect(context) as client:
        found = client.call(PROJECT_SERVICE, method, request)
    if session.prints_tables:
        print_fields(_fields(found))
    else:
        print_document(found, session.output)


def _row(each: Document) -> list[str]:
    quota = each.get("quota", {})
    return [str(each.get("name", "")), *(_limit(quota, part) for part in _PARTS), str(each.get("id", ""))]


def _limit(quota: Document, part: tuple[str, str, int]) -> str:
    return _amount(quota, part) if int(quota.get(part[0], 0)) else "any"


def _amount(amounts: Document, part: tuple[str, str, int]) -> str:
    name, _, unit_bytes = part
    amount = int(amounts.get(name, 0))
    return format_bytes(amount * unit_bytes) if unit_bytes else str(amount)


def _fields(found: Document) -> list[tuple[str, str]]:
    quota, usage = found.get("quota", {}), found.get("usage", {})
    rows = [("Name", str(found.get("name", ""))), ("Id", str(found.get("id", "")))]
    if found.get("description"):
        rows.append(("Description", str(found["description"])))
    rows += [(part[1], f"{_amount(usage, part)} of {_limit(quota, part)}") for part in _PARTS]
    return rows
