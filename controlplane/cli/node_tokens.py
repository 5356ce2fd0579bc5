"""`limiquantix node token` and `limiquantix node revoke-certificate`: how hosts get their identity, and lose it."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from controlplane.cli.api_client import JOIN_SERVICE, Document
from controlplane.cli.lookup import complete_node, connect, id_by_beginning, node_id_of
from controlplane.cli.output import Column, print_document, print_table
from controlplane.cli.session import ApiCommand, ApiGroup, session_of
from controlplane.cli.sizes import format_age
from controlplane.cli.vm_spec_options import Label

_MINUTE_S = 60
_MAX_MINUTES = 7 * 24 * 60
_COLUMNS = (
    Column("ID"),
    Column("STATE", styles={"unused": "green", "revoked": "red"}),
    Column("FOR"),
    Column("EXPIRES IN", is_number=True),
    Column("MADE BY"),
    Column("JOINED AS"),
)


@click.group("token", cls=ApiGroup)
def token() -> None:
    """Make, list and revoke tokens by which hosts join.

    \b
    Example:
      limiquantix node token create --host host-7
    """


@token.command("create")
@click.option("--host", "hostname", metavar="HOST", default="", help="The only host that may use it. Default: any.")
@click.option(
    "--node",
    metavar="NODE",
    shell_complete=complete_node,
    help="For a node whose host joins again and stays that node: its certificate was revoked, or has ended.",
)
@click.option(
    "--minutes",
    type=click.IntRange(1, _MAX_MINUTES),
    metavar="N",
    default=60,
    show_default=True,
    help="For how long it is good; a week at most.",
)
@click.option(
    "--label",
    "labels",
    type=Label(),
    multiple=True,
    metavar="KEY=VALUE",
    help="A label that the new node gets, whatever its host says; several times for several.",
)
@click.pass_context
def create(
    context: click.Context, hostname: str, node: str | None, minutes: int, labels: tuple[tuple[str, str], ...]
) -> None:
    """Make a token by which one host may join, once.

    It is printed now and never again: whoever has it can make a host a part of the cluster. On the host,
    'limiquantix-node join TOKEN' uses it.

    \b
    Example:
      limiquantix node token create --host host-7 --minutes 15
    """
    if hostname and node:
        raise click.UsageError("--node says which host; leave --host away")
    session = session_of(context)
    request: Document = {"hostname": hostname, "lifetimeSec": minutes * _MINUTE_S, "labels": dict(labels)}
    with connect(context) as client:
        if node:
            request["nodeId"] = node_id_of(client, node)
        made = client.call(JOIN_SERVICE, "CreateJoinToken", request)
    if not session.prints_tables:
        print_document(made, session.output)
        return
    click.echo(made.get("token", ""))
    details = made.get("details", {})
    whose = details.get("hostname") or "one host"
    click.echo(f"good once, for {whose}, until {details.get('expiresAt', '')}", err=True)
    click.echo(f"fingerprint of the authority: {made.get('authorityFingerprint', '')}", err=True)


@token.command("list")
@click.pass_context
def list_command(context: click.Context) -> None:
    """List tokens, newest first.

    Those that expired are shown for a month more.

    \b
    Example:
      limiquantix node token list
    """
    session = session_of(context)
    with connect(context) as client:
        found = client.call(JOIN_SERVICE, "ListJoinTokens", {})
    if session.prints_tables:
        now = datetime.now(UTC)
        print_table(_COLUMNS, [_row(each, now) for each in found.get("tokens", ())])
    else:
        print_document(found, session.output)


@token.command("revoke")
@click.argument("token", metavar="ID")
@click.pass_context
def revoke(context: click.Context, token: str) -> None:
    """Have a token that was not used be of no use.

    \b
    Example:
      limiquantix node token revoke 1b2c3d4e
    """
    session = session_of(context)
    with connect(context) as client:
        token_id = id_by_beginning(
            token,
            "token",
            lambda: client.call(JOIN_SERVICE, "ListJoinTokens", {}).get("tokens", ()),
            "limiquantix node token list",
        )
        answer = client.call(JOIN_SERVICE, "RevokeJoinToken", {"id": token_id})
    if session.prints_tables:
        click.echo(f"token {token_id} is revoked")
    else:
        print_document(answer, session.output)


@click.command("revoke-certificate", cls=ApiCommand)
@click.argument("node", metavar="NODE", shell_complete=complete_node)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.pass_context
def revoke_certificate(context: click.Context, node: str, yes: bool) -> None:
    """Refuse all certificates that a node was given until now.

    Its host is not heard any more within seconds; with high availability, its protected VMs are then started elsewhere.
    It joins again, as the same node, with 'limiquantix node token create --node NODE'.

    \b
    Example:
      limiquantix node revoke-certificate host-7
    """
    session = session_of(context)
    with connect(context) as client:
        node_id = node_id_of(client, node)
        if not yes:
            click.confirm(f"refuse the certificates of node {node}? Its host has to join again", abort=True, err=True)
        answer = client.insist(JOIN_SERVICE, "RevokeNodeCertificate", {"nodeId": node_id})
    if session.prints_tables:
        click.echo(
            f"certificates of node {node} are refused; 'limiquantix node token create --node {node}' lets it join"
        )
    else:
        print_document(answer, session.output)


def _row(each: Document, now: datetime) -> list[str]:
    ends = datetime.fromisoformat(str(each.get("expiresAt", "")))
    return [
        str(each.get("id", "")),
        _state(each, now, ends),
        str(each.get("hostname", "")) or "any host",
        format_age((ends - now).total_seconds()) if ends > now else "-",
        str(each.get("createdBy", "")),
        str(each.get("usedByNodeId", "")),
    ]


def _state(each: Document, now: datetime, ends: datetime) -> str:
    if each.get("usedAt"):
        return "used"
    if each.get("revokedAt"):
        return "revoked"
    return "unused" if now < ends else "expired"
