"""`limiquantix user`: who may log in."""

from __future__ import annotations

from collections.abc import Iterator

import click

from controlplane.cli.api_client import AUTH_SERVICE, USER_SERVICE, ApiClient, Document
from controlplane.cli.auth_commands import asked_for
from controlplane.cli.lookup import connect
from controlplane.cli.output import Column, print_document, print_fields, print_table
from controlplane.cli.session import ApiGroup, session_of

_COLUMNS = (
    Column("NAME"),
    Column("STATE", styles={"disabled": "red", "active": "green"}),
    Column("ISSUER"),
    Column("GROUPS"),
    Column("ID"),
)

user_argument = click.argument("name")
group_option = click.option("--group", "groups", multiple=True, metavar="GROUP", help="A group. Repeatable.")


@click.group(cls=ApiGroup)
def user() -> None:
    """Make, change and remove users. What they may do is a matter of roles: 'limiquantix role --help'.

    A user is named by name or by id.

    \b
    Example:
      limiquantix user create alice --group operators
    """


@user.command("create")
@user_argument
@click.option("--display-name", default="", help="What people call them.")
@group_option
@click.pass_context
def create(context: click.Context, name: str, display_name: str, groups: tuple[str, ...]) -> None:
    """Make a user. The password is asked for, or read from standard input.

    \b
    Example:
      limiquantix user create alice --display-name "Alice Archer"
    """
    request = {
        "name": name,
        "displayName": display_name,
        "groups": list(groups),
        "password": asked_for(f"Password of {name}", twice=True),
    }
    _changed(context, "CreateUser", request)


@user.command("list")
@click.option("--group", default="", metavar="GROUP", help="Only those of this group.")
@click.pass_context
def list_command(context: click.Context, group: str) -> None:
    """List users, oldest first.

    \b
    Example:
      limiquantix user list --group operators
    """
    session = session_of(context)
    with connect(context) as client:
        found = list(_all(client, group))
    if session.prints_tables:
        print_table(_COLUMNS, [_row(each) for each in found])
    else:
        print_document({"users": found, "totalCount": len(found)}, session.output)


@user.command("show")
@user_argument
@click.pass_context
def show(context: click.Context, name: str) -> None:
    """Show one user.

    \b
    Example:
      limiquantix user show alice
    """
    _changed(context, "GetUser", {"id": name})


@user.command("update")
@user_argument
@click.option("--display-name", help="What people call them.")
@group_option
@click.option("--no-groups", is_flag=True, help="Take them out of all groups.")
@click.pass_context
def update(
    context: click.Context, name: str, display_name: str | None, groups: tuple[str, ...], no_groups: bool
) -> None:
    """Change what is said of a user.

    --group names all the groups they are in from now on.

    \b
    Example:
      limiquantix user update alice --group operators --group auditors
    """
    if groups and no_groups:
        raise click.UsageError("--group and --no-groups say different things; give one of them")
    request: Document = {"id": name, "groups": list(groups), "replaceGroups": bool(groups) or no_groups}
    if display_name is not None:
        request["displayName"] = display_name
    _changed(context, "UpdateUser", request)


@user.command("disable")
@user_argument
@click.pass_context
def disable(context: click.Context, name: str) -> None:
    """Let a user do nothing any more.

    Sessions end, and API keys are refused, until the user is enabled.

    \b
    Example:
      limiquantix user disable alice
    """
    _changed(context, "DisableUser", {"id": name})


@user.command("enable")
@user_argument
@click.pass_context
def enable(context: click.Context, name: str) -> None:
    """Let a user log in again.

    \b
    Example:
      limiquantix user enable alice
    """
    _changed(context, "EnableUser", {"id": name})


@user.command("delete")
@user_argument
@click.confirmation_option("--yes", prompt="The name is never given again. Delete the user?", help="Do not ask.")
@click.pass_context
def delete(context: click.Context, name: str) -> None:
    """Remove a user for ever, with sessions, API keys and roles.

    \b
    Example:
      limiquantix user delete alice --yes
    """
    _done(context, USER_SERVICE, "DeleteUser", {"id": name}, f"user {name} is deleted")


@user.command("reset-password")
@user_argument
@click.option("--ask", is_flag=True, help="Ask for the password instead of having one made.")
@click.pass_context
def reset_password(context: click.Context, name: str, ask: bool) -> None:
    """Give a user a new password, and end their sessions.

    \b
    Example:
      limiquantix user reset-password alice
    """
    session = session_of(context)
    request: Document = {"id": name}
    if ask:
        request["newPassword"] = asked_for(f"New password of {name}", twice=True)
    with connect(context) as client:
        answer = client.call(USER_SERVICE, "ResetPassword", request)
    if not session.prints_tables:
        print_document(answer, session.output)
        return
    click.echo(f"user {name} has a new password")
    if made := answer.get("newPassword"):
        click.echo(f"password (shown only now): {made}")


@user.command("end-sessions")
@user_argument
@click.pass_context
def end_sessions(context: click.Context, name: str) -> None:
    """Log a user out everywhere.

    \b
    Example:
      limiquantix user end-sessions alice
    """
    _done(context, USER_SERVICE, "RevokeSessions", {"id": name}, f"all sessions of user {name} have ended")


@user.command("change-password")
@click.pass_context
def change_password(context: click.Context) -> None:
    """Change your own password. Your other sessions end.

    Without a terminal, two lines are read: the current password and the new one.

    \b
    Example:
      limiquantix user change-password
    """
    request = {"currentPassword": asked_for("Current password"), "newPassword": asked_for("New password", twice=True)}
    _done(context, AUTH_SERVICE, "ChangePassword", request, "your password is changed")


def _changed(context: click.Context, method: str, request: Document) -> None:
    """Call a method that answers with a user, and show it."""
    session = session_of(context)
    with connect(context) as client:
        found = client.call(USER_SERVICE, method, request)
    if session.prints_tables:
        print_fields(_fields(found))
    else:
        print_document(found, session.output)


def _done(context: click.Context, service: str, method: str, request: Document, text: str) -> None:
    """Call a method that answers with nothing, and say that it is done."""
    session = session_of(context)
    with connect(context) as client:
        answer = client.call(service, method, request)
    if session.prints_tables:
        click.echo(text)
    else:
        print_document(answer, session.output)


def _all(client: ApiClient, group: str) -> Iterator[Document]:
    for page in client.pages(USER_SERVICE, "ListUsers", {"group": group}):
        yield from page.get("users", ())


def _state(each: Document) -> str:
    return "disabled" if each.get("isDisabled") else "active"


def _row(each: Document) -> list[str]:
    groups = ", ".join(each.get("groups", ()))
    return [str(each.get("name", "")), _state(each), str(each.get("issuer", "")), groups, str(each.get("id", ""))]


def _fields(each: Document) -> list[tuple[str, str]]:
    return [
        ("Name", str(each.get("name", ""))),
        ("Display name", str(each.get("displayName", ""))),
        ("State", _state(each)),
        ("Groups", ", ".join(each.get("groups", ()))),
        ("Issuer", str(each.get("issuer", ""))),
        ("ID", str(each.get("id", ""))),
        ("Created", str(each.get("createdAt", ""))),
        ("Password since", str(each.get("passwordChangedAt", ""))),
    ]
