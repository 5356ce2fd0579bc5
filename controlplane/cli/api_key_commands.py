"""`limiquantix api-key`: what programs call with."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import click

from controlplane.cli.api_client import API_KEY_SERVICE, ApiClient, Document
from controlplane.cli.lookup import connect, id_by_beginning
from controlplane.cli.output import Column, print_document, print_table
from controlplane.cli.session import ApiGroup, session_of

_COLUMNS = (
    Column("ID"),
    Column("NAME"),
    Column("OWNER"),
    Column("ENDS"),
    Column("LAST USED"),
    Column("ONLY PERMISSIONS"),
    Column("ONLY PROJECTS"),
)


@click.group(cls=ApiGroup, name="api-key")
def api_key() -> None:
    """Make and end keys that programs call with, in your name.

    \b
    Example:
      limiquantix api-key create ci --days 90 --permission vm.read
    """


@api_key.command("create")
@click.argument("name")
@click.option("--days", type=click.IntRange(1, 365), required=True, help="How long it is good.")
@click.option("--permission", "permissions", multiple=True, metavar="NAME", help="Only this, of yours. Repeatable.")
@click.option("--project", "projects", multiple=True, metavar="ID", help="Only in this project. Repeatable.")
@click.pass_context
def create(
    context: click.Context, name: str, days: int, permissions: tuple[str, ...], projects: tuple[str, ...]
) -> None:
    """Make a key. It is shown once; put it into LIMIQUANTIX_TOKEN where the program runs.

    \b
    Example:
      limiquantix api-key create ci --days 90 --permission vm.read
    """
    session = session_of(context)
    ends_at = (datetime.now(UTC) + timedelta(days=days)).isoformat().replace("+00:00", "Z")
    request = {"name": name, "expiresAt": ends_at, "permissions": list(permissions), "projectIds": list(projects)}
    with connect(context) as client:
        answer = client.call(API_KEY_SERVICE, "CreateApiKey", request)
    if session.prints_tables:
        click.echo(f"key {name} is good until {answer.get('apiKey', {}).get('expiresAt', '')}; it is shown only now:")
        click.echo(str(answer.get("secret", "")))
    else:
        print_document(answer, session.output)


@api_key.command("list")
@click.option("--all", "-a", "all_", is_flag=True, help="Those of all users.")
@click.pass_context
def list_command(context: click.Context, all_: bool) -> None:
    """List your keys, oldest first.

    \b
    Example:
      limiquantix api-key list
    """
    session = session_of(context)
    with connect(context) as client:
        found = list(_all(client, all_users=all_))
    if session.prints_tables:
        print_table(_COLUMNS, [_row(each) for each in found])
    else:
        print_document({"apiKeys": found, "totalCount": len(found)}, session.output)


@api_key.command("revoke")
@click.argument("key", metavar="ID")
@click.pass_context
def revoke(context: click.Context, key: str) -> None:
    """End a key, named by its id or the beginning of it.

    \b
    Example:
      limiquantix api-key revoke 1b2c3d4e
    """
    session = session_of(context)
    with connect(context) as client:
        key_id = id_by_beginning(key, "api-key", lambda: _all(client, all_users=False))
        ended = client.call(API_KEY_SERVICE, "RevokeApiKey", {"id": key_id})
    if session.prints_tables:
        click.echo(f"key {ended.get('name', '')} of {ended.get('ownerName', '')} has ended")
    else:
        print_document(ended, session.output)


def _all(client: ApiClient, *, all_users: bool) -> Iterator[Document]:
    for page in client.pages(API_KEY_SERVICE, "ListApiKeys", {"allUsers": all_users}):
        yield from page.get("apiKeys", ())


def _row(each: Document) -> list[str]:
    return [
        str(each.get("id", "")),
        str(each.get("name", "")),
        str(each.get("ownerName", "")),
        str(each.get("expiresAt", "")),
        str(each.get("lastUsedAt", "never")),
        ", ".join(each.get("permissions", ())),
        ", ".join(each.get("projectIds", ())),
    ]
