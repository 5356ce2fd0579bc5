"""`limiquantix login`, `logout`, `whoami`, `token`."""

from __future__ import annotations

import os
import sys

import click

from controlplane.cli.api_client import AUTH_SERVICE, ApiClient, Document
from controlplane.cli.credentials import TOKEN_VARIABLE, Credential, CredentialFile
from controlplane.cli.device_login import id_token_of
from controlplane.cli.failures import Failure
from controlplane.cli.lookup import connect
from controlplane.cli.output import print_document, print_fields
from controlplane.cli.session import ApiCommand, Session, session_of
from limiquantix.errors import Unauthenticated


@click.command(cls=ApiCommand)
@click.argument("name", required=False)
@click.option("--issuer", metavar="NAME", help="Log in at this issuer, in a browser, instead of with a password.")
@click.pass_context
def login(context: click.Context, name: str | None, issuer: str | None) -> None:
    """Log in to the control plane. The password is asked for, or read from standard input.

    The tokens are kept in ~/.config/limiquantix/credentials.json, and renewed by themselves. Who calls nothing for
    7 days has to log in again. The authority that --ca names is kept too, so that later commands need not name it.

    \b
    Example:
      limiquantix login alice
      limiquantix --ca limiquantix-ca.pem --server https://cp1.example.org:8080 login alice
    """
    session = session_of(context)
    if (name is None) == (issuer is None):
        raise click.UsageError("give a user's name, or --issuer")
    with connect(context) as client:
        if issuer is not None:
            tokens = _at_issuer(session, client, issuer)
        else:
            tokens = client.call(AUTH_SERVICE, "Login", {"name": name, "password": asked_for("Password")})
    credential = Credential.of_answer(tokens)
    CredentialFile().keep(session.server, credential, session.authority_pem())
    click.echo(f"logged in to {session.server} as {credential.user}")


@click.command(cls=ApiCommand)
@click.pass_context
def logout(context: click.Context) -> None:
    """End the session with the control plane, and forget it here.

    \b
    Example:
      limiquantix logout
    """
    session, file = session_of(context), CredentialFile()
    if file.get(session.server) is None:
        click.echo(f"not logged in to {session.server}")
        return
    try:
        with connect(context) as client:
            client.call(AUTH_SERVICE, "Logout", {})
    except Unauthenticated:
        pass  # it had ended already
    finally:
        file.keep(session.server, None)
    click.echo(f"logged out of {session.server}")


@click.command(cls=ApiCommand)
@click.pass_context
def whoami(context: click.Context) -> None:
    """Show as whom commands are carried out.

    \b
    Example:
      limiquantix whoami
    """
    session = session_of(context)
    with connect(context) as client:
        found = client.call(AUTH_SERVICE, "WhoAmI", {})
    if not session.prints_tables:
        print_document(found, session.output)
        return
    listed = {field: ", ".join(found.get(field, ())) for field in ("groups", "projectIds", "permissions")}
    print_fields(
        [
            ("Name", str(found.get("name", ""))),
            ("Kind", str(found.get("kind", ""))),
            ("ID", str(found.get("id", ""))),
            ("Groups", listed["groups"]),
            ("Only projects", listed["projectIds"]),
            ("Only permissions", listed["permissions"]),
        ]
    )


@click.command(cls=ApiCommand)
@click.pass_context
def token(context: click.Context) -> None:
    """Print an access token for other programs.

    It is good for a quarter of an hour. Programs that go on for longer call with an API key, see 'limiquantix api-key
    create'.

    \b
    Example:
      curl --cacert ca.pem -H "Authorization: Bearer $(limiquantix token)" -H 'Content-Type: application/json' \\
        https://cp1.example.org:8080/limiquantix.compute.v1.VMService/ListVMs -d '{}'
    """
    session, file = session_of(context), CredentialFile()
    with connect(context) as client:
        client.call(AUTH_SERVICE, "WhoAmI", {})  # has the token renewed if it ends soon
    credential = file.get(session.server)
    click.echo(os.environ.get(TOKEN_VARIABLE, "").strip() or (credential.access_token if credential else ""))


def asked_for(what: str, *, twice: bool = False) -> str:
    """Ask for a password without showing it; without a terminal, read one line."""
    if sys.stdin.isatty():
        return str(click.prompt(what, hide_input=True, confirmation_prompt=twice, err=True))
    return sys.stdin.readline().rstrip("\r\n")


def _at_issuer(session: Session, client: ApiClient, name: str) -> Document:
    issuers = client.call(AUTH_SERVICE, "ListIssuers", {}).get("issuers", ())
    found = next((each for each in issuers if each.get("name") == name), None)
    if found is None:
        known = ", ".join(str(each.get("name")) for each in issuers) or "none"
        raise Failure(f"the control plane trusts no issuer {name!r}; it trusts {known}")
    id_token = id_token_of(found, lambda text: click.echo(text, err=True), session.pause)
    return client.call(AUTH_SERVICE, "ExchangeToken", {"issuer": name, "idToken": id_token})
