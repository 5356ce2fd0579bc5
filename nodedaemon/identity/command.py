"""`limiquantix-node join`: make this host a node of a cluster."""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path

import click

from limiquantix import join_token
from limiquantix.join_token import JoinTokenUnreadable
from nodedaemon.config import PEOPLE_PORT, ConfigError, control_plane_addresses, load_config
from nodedaemon.identity.files import IdentityFile, NodeIdentity
from nodedaemon.identity.joining import JoinFailed
from nodedaemon.identity.joining import join as join_cluster


@click.command("join")
@click.argument("token", metavar="TOKEN")
@click.option(
    "--control-plane",
    "urls",
    metavar="URL",
    multiple=True,
    help="Its port for people (8081), instead of the addresses in the token; several times for several.",
)
@click.pass_context
def join(context: click.Context, token: str, urls: tuple[str, ...]) -> None:
    """Make this host a node of a cluster, with a token that is good once.

    'limiquantix node token create' makes one; '-' reads it from the standard input, where other users of this host
    cannot see it. Nothing is sent before the control plane has proved that it is the token's. Run this as the user that
    the daemon runs as; start the daemon afterwards, or restart it.

    \b
    Example:
      limiquantix-node join lqj1.eyJpIjoi...
    """
    config_path: Path | None = context.find_root().params.get("config_path")
    try:
        config = load_config(config_path, {})
        addresses = control_plane_addresses(",".join(urls), PEOPLE_PORT)
        text = join_token.decode(sys.stdin.read() if token == "-" else token)  # noqa: S105 - a name, no secret
        hostname = config.node.hostname or socket.gethostname()
        file = IdentityFile.under(config.node.data_dir)
        identity = asyncio.run(_joined_and_kept(file, text, hostname, addresses))
    except (ConfigError, JoinTokenUnreadable, JoinFailed, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{hostname} is node {identity.machine.id} of cluster {identity.machine.cluster_id}")
    click.echo(f"certificate: {file.path}, until {identity.ends_at:%Y-%m-%d %H:%M} UTC; the daemon renews it")


async def _joined_and_kept(
    file: IdentityFile, token: join_token.JoinTokenText, hostname: str, addresses: tuple[str, ...]
) -> NodeIdentity:
    # Before the token is used up, since it cannot be used again.
    file.require_writable()
    identity = await join_cluster(token, hostname, addresses)
    file.save(identity)
    return identity
