"""`limiquantix version`: the versions of this command and of the control plane."""

from __future__ import annotations

import importlib.metadata

import click

from controlplane.cli.api_client import ServerUnreachable
from controlplane.cli.lookup import connect
from controlplane.cli.output import print_document, print_fields
from controlplane.cli.session import ApiCommand, session_of

_DEADLINE_S = 2.0
"""The command's own version should not wait long for the server's."""


@click.command(cls=ApiCommand)
@click.pass_context
def version(context: click.Context) -> None:
    """Show the versions of this command and the server.

    A server that does not answer is no failure here.

    \b
    Example:
      limiquantix version
    """
    session = session_of(context)
    own = importlib.metadata.version("limiquantix")
    try:
        with connect(context) as client:
            server = str(client.get("/api/v1/info", _DEADLINE_S).get("version", ""))
        fault = ""
    except ServerUnreachable as error:
        server, fault = "", str(error)
    if session.prints_tables:
        print_fields([("Command", own), (f"Server {session.server}", server or f"unknown: {fault}")])
    else:
        document = {"command": own, "server": server or None, "serverUrl": session.server}
        print_document(document, session.output)
