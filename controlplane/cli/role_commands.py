"""`limiquantix role`: who may do what, and where."""

from __future__ import annotations

import click

from controlplane.cli.api_client import ROLE_SERVICE, ApiClient, Document
from controlplane.cli.lookup import connect
from controlplane.cli.output import Column, print_document, print_table
from controlplane.cli.places import folder_id_of, folder_option, project_id_of, project_option
from controlplane.cli.session import ApiGroup, session_of

_COLUMNS = (Column("NAME"), Column("PERMISSIONS", is_number=True), Column("DESCRIPTION"))
_BINDING_COLUMNS = (Column("WHO"), Column("ROLE"), Column("BY"), Column("ID"))

permission_option = click.option(
    "--permission", "permissions", multiple=True, metavar="PERMISSION", help="Such as vm.power. Repeatable."
)
user_option = click.option("--user", metavar="NAME", help="Who: a user.")
group_option = click.option("--group", metavar="NAME", help="Who: all users of a group.")


@click.group(cls=ApiGroup)
def role() -> None:
    """Say who may do what, and where.

    The roles viewer, operator and admin are built in. A role is bound to a user or a group at the cluster, or at a
    project or folder, and holds for all that is below.

    \b
    Example:
      limiquantix role bind operator --user alice --project shop
    """


@role.command("list")
@click.pass_context
def list_command(context: click.Context) -> None:
    """List roles.

    \b
    Example:
      limiquantix role list
    """
    session = session_of(context)
    with connect(context) as client:
        found = client.call(ROLE_SERVICE, "ListRoles", {})
    if not session.prints_tables:
        print_document(found, session.output)
        return
    rows = [
        [str(each.get("name", "")), str(len(each.get("permissions", ()))), str(each.get("description", ""))]
        for each in found.get("roles", ())
    ]
    print_table(_COLUMNS, rows)


@role.command("show")
@click.argument("name")
@click.pass_context
def show(context: click.Context, name: str) -> None:
    """Show what a role permits.

    \b
    Example:
      limiquantix role show operator
    """
    session = session_of(context)
    with connect(context) as client:
        found = client.call(ROLE_SERVICE, "GetRole", {"id": name})
    if not session.prints_tables:
        print_document(found, session.output)
        return
    for permission in found.get("permissions", ()):
        click.echo(permission)


@role.command("create")
@click.argument("name")
@permission_option
@click.option("--description", default="", help="Whom it is for.")
@click.pass_context
def create(context: click.Context, name: str, permissions: tuple[str, ...], description: str) -> None:
    """Make a role of your own.

    \b
    Example:
      limiquantix role create consoles --permission vm.read --permission vm.console
    """
    if not permissions:
        raise click.UsageError("give at least one --permission; 'limiquantix role show admin' lists all there are")
    request = {"name": name, "permissions": list(permissions), "description": description}
    _changed(context, "CreateRole", request, f"role {name} is made")


@role.command("update")
@click.argument("name")
@permission_option
@click.option("--description", help="Whom it is for.")
@click.pass_context
def update(context: click.Context, name: str, permissions: tuple[str, ...], description: str | None) -> None:
    """Change a role for all who have it.

    These permissions take the place of those it had.

    \b
    Example:
      limiquantix role update consoles --permission vm.read
    """
    request: Document = {"id": name, "permissions": list(permissions)}
    if description is not None:
        request["description"] = description
    _changed(context, "UpdateRole", request, f"role {name} is changed")


@role.command("delete")
@click.argument("name")
@click.pass_context
def delete(context: click.Context, name: str) -> None:
    """Delete a role that nobody has.

    \b
    Example:
      limiquantix role delete consoles
    """
    _changed(context, "DeleteRole", {"id": name}, f"role {name} is deleted")


@role.command("bind")
@click.argument("name", metavar="ROLE")
@user_option
@group_option
@project_option
@folder_option
@click.pass_context
def bind(
    context: click.Context, name: str, user: str | None, group: str | None, project: str | None, folder: str | None
) -> None:
    """Give a role. Without a project or folder it holds everywhere.

    \b
    Example:
      limiquantix role bind viewer --group support
    """
    subject = _subject(user, group)
    with connect(context) as client:
        place = _place(client, project, folder)
    _changed(context, "BindRole", {"subject": subject, "roleId": name, **place}, f"{subject} is {name} now")


@role.command("unbind")
@click.argument("name", metavar="ROLE")
@user_option
@group_option
@project_option
@folder_option
@click.pass_context
def unbind(
    context: click.Context, name: str, user: str | None, group: str | None, project: str | None, folder: str | None
) -> None:
    """Take a role away, at the place where it was bound.

    \b
    Example:
      limiquantix role unbind viewer --group support
    """
    subject = _subject(user, group)
    with connect(context) as client:
        place = _place(client, project, folder)
        bound = client.call(ROLE_SERVICE, "ListRoleBindings", place).get("bindings", ())
    ids = [each["id"] for each in bound if each.get("subject") == subject and name in _names(each)]
    if not ids:
        raise click.ClickException(f"{subject} is not bound to {name} there; see 'limiquantix role bindings'")
    _changed(context, "UnbindRole", {"id": ids[0]}, f"{subject} is no {name} there any more")


@role.command("bindings")
@project_option
@folder_option
@click.pass_context
def bindings(context: click.Context, project: str | None, folder: str | None) -> None:
    """Show who has which role at one place.

    What is bound above it holds there too.

    \b
    Example:
      limiquantix role bindings --project shop
    """
    session = session_of(context)
    with connect(context) as client:
        found = client.call(ROLE_SERVICE, "ListRoleBindings", _place(client, project, folder))
    if not session.prints_tables:
        print_document(found, session.output)
        return
    keys = ("subject", "roleName", "createdBy", "id")
    print_table(_BINDING_COLUMNS, [[str(each.get(key, "")) for key in keys] for each in found.get("bindings", ())])


def _subject(user: str | None, group: str | None) -> str:
    if bool(user) == bool(group):
        raise click.UsageError("say who: either --user or --group")
    return f"user:{user}" if user else f"group:{group}"


def _place(client: ApiClient, project: str | None, folder: str | None) -> Document:
    project_id = project_id_of(client, project)
    return {"projectId": project_id, "folderId": folder_id_of(client, folder, project_id)}


def _names(binding: Document) -> tuple[str, str]:
    return str(binding.get("roleId", "")), str(binding.get("roleName", ""))


def _changed(context: click.Context, method: str, request: Document, said: str) -> None:
    session = session_of(context)
    with connect(context) as client:
        found = client.call(ROLE_SERVICE, method, request)
    if session.prints_tables:
        click.echo(said)
    else:
        print_document(found, session.output)
