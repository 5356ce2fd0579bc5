"""`limiquantix folder`: the tree in which a project's VMs are arranged."""

from __future__ import annotations

from collections.abc import Iterator

import click

from controlplane.cli.api_client import FOLDER_SERVICE, Document
from controlplane.cli.lookup import complete_vm, connect, vm_id_of
from controlplane.cli.output import Column, print_document, print_table
from controlplane.cli.places import folder_id_of, list_folders, project_id_of, project_option
from controlplane.cli.session import ApiGroup, session_of

_COLUMNS = (Column("PATH"), Column("TYPE"), Column("FOLDERS", is_number=True), Column("ID"))

folder_argument = click.argument("folder", metavar="FOLDER")


@click.group(cls=ApiGroup)
def folder() -> None:
    """Arrange the VMs of a project in folders. A folder is named by its path or its id.

    Roles can be bound at folders, and hold for all that is below.

    \b
    Example:
      limiquantix folder create web --project shop
    """


@folder.command("create")
@click.argument("name")
@click.option("--in", "parent", metavar="FOLDER", help="The folder above; left out, it is at the root of the project.")
@project_option
@click.option("--description", default="", help="What it is for.")
@click.pass_context
def create(context: click.Context, name: str, parent: str | None, project: str | None, description: str) -> None:
    """Make a folder.

    \b
    Example:
      limiquantix folder create front --in web --project shop
    """
    session = session_of(context)
    with connect(context) as client:
        project_id = project_id_of(client, project)
        request = {
            "name": name,
            "description": description,
            "projectId": project_id,
            "parentId": folder_id_of(client, parent, project_id),
        }
        made = client.call(FOLDER_SERVICE, "CreateFolder", request)
    if session.prints_tables:
        click.echo(f"folder {made.get('path', '')} is made: {made.get('id', '')}")
    else:
        print_document(made, session.output)


@folder.command("list")
@project_option
@click.pass_context
def list_command(context: click.Context, project: str | None) -> None:
    """List the folders that you see.

    \b
    Example:
      limiquantix folder list --project shop
    """
    session = session_of(context)
    with connect(context) as client:
        found = list(list_folders(client, {"projectId": project_id_of(client, project)}))
    if not session.prints_tables:
        print_document({"folders": found, "totalCount": len(found)}, session.output)
        return
    print_table(_COLUMNS, sorted(_row(each) for each in found))


@folder.command("tree")
@project_option
@click.pass_context
def tree(context: click.Context, project: str | None) -> None:
    """Show the folders of a project as a tree.

    \b
    Example:
      limiquantix folder tree --project shop
    """
    session = session_of(context)
    with connect(context) as client:
        found = client.call(FOLDER_SERVICE, "GetFolderTree", {"projectId": project_id_of(client, project)})
    if not session.prints_tables:
        print_document(found, session.output)
        return
    for line in _lines(found, 0):
        click.echo(line)


@folder.command("update")
@folder_argument
@project_option
@click.option("--name", default="", help="Another name.")
@click.option("--in", "parent", metavar="FOLDER", help="The folder to move it to.")
@click.option("--description", default="", help="What it is for.")
@click.pass_context
def update(
    context: click.Context, folder: str, project: str | None, name: str, parent: str | None, description: str
) -> None:
    """Rename, move or describe a folder.

    \b
    Example:
      limiquantix folder update web/front --name frontend
    """
    session = session_of(context)
    with connect(context) as client:
        project_id = project_id_of(client, project)
        request = {
            "id": folder_id_of(client, folder, project_id),
            "name": name,
            "parentId": folder_id_of(client, parent, project_id),
            "description": description,
        }
        changed = client.call(FOLDER_SERVICE, "UpdateFolder", request)
    if session.prints_tables:
        click.echo(f"folder {changed.get('path', '')} is changed")
    else:
        print_document(changed, session.output)


@folder.command("delete")
@folder_argument
@project_option
@click.option("--force", is_flag=True, help="Also with folders and VMs in it; the VMs are shown elsewhere.")
@click.option("--move-vms-to", metavar="FOLDER", help="Where its VMs are shown; left out, at the root of the project.")
@click.pass_context
def delete(context: click.Context, folder: str, project: str | None, force: bool, move_vms_to: str | None) -> None:
    """Delete a folder. No VM is deleted with it.

    \b
    Example:
      limiquantix folder delete web --force --move-vms-to old
    """
    with connect(context) as client:
        project_id = project_id_of(client, project)
        request = {
            "id": folder_id_of(client, folder, project_id),
            "force": force,
            "moveVmsTo": folder_id_of(client, move_vms_to, project_id),
        }
        client.call(FOLDER_SERVICE, "DeleteFolder", request)
    click.echo(f"folder {folder} is deleted")


@folder.command("move-vm")
@click.argument("vm", metavar="VM", shell_complete=complete_vm)
@click.option("--to", metavar="FOLDER", help="The folder; left out, the root of the project.")
@project_option
@click.pass_context
def move_vm(context: click.Context, vm: str, to: str | None, project: str | None) -> None:
    """Show a VM in another folder of its project. Roles bound there hold for it from then on.

    \b
    Example:
      limiquantix folder move-vm web-1 --to web/front
    """
    session = session_of(context)
    with connect(context) as client:
        project_id = project_id_of(client, project)
        request = {"vmId": vm_id_of(client, vm, project_id), "folderId": folder_id_of(client, to, project_id)}
        moved = client.call(FOLDER_SERVICE, "MoveVM", request)
    if session.prints_tables:
        click.echo(f"VM {moved.get('name', vm)} is in {to or 'the root of its project'}")
    else:
        print_document(moved, session.output)


def _row(each: Document) -> list[str]:
    return [
        str(each.get("path", "")),
        str(each.get("type", "")),
        str(each.get("childCount", 0)),
        str(each.get("id", "")),
    ]


def _lines(branch: Document, depth: int) -> Iterator[str]:
    name = branch.get("folder", {}).get("name", "")
    yield f"{'  ' * depth}{name or '/'}"
    for child in branch.get("children", ()):
        yield from _lines(child, depth + 1)
