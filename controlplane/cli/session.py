"""What every command that talks to the control plane shares: where it is, how to print, how failures end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from controlplane.cli.output import OutputFormat

if TYPE_CHECKING:
    import ssl

    import httpx

    from controlplane.cli.api_client import ApiClient

DEFAULT_SERVER = "https://127.0.0.1:8080"
SERVER_VARIABLE = "LIMIQUANTIX_SERVER"
OUTPUT_VARIABLE = "LIMIQUANTIX_OUTPUT"
AUTHORITY_VARIABLE = "LIMIQUANTIX_CA"


@dataclass(frozen=True, slots=True)
class Session:
    """The settings of one run of the command."""

    server: str = DEFAULT_SERVER
    output: OutputFormat = OutputFormat.TABLE
    authority: Path | None = None
    """PEM file of who signed the server's certificate; None for whom the last login named, or the system trusts."""
    transport: httpx.BaseTransport | None = None
    """Carries requests instead of the network."""
    pause: Callable[[float], None] = time.sleep
    """Waits some seconds before a call is repeated or a stream is begun again."""

    def connect(self) -> ApiClient:
        """Make a client; nothing is sent before its first call."""
        from controlplane.cli.api_client import ApiClient  # noqa: PLC0415 - httpx takes 150 ms to import
        from controlplane.cli.credentials import BearerAuth  # noqa: PLC0415
        from controlplane.cli.failures import warn  # noqa: PLC0415

        auth = BearerAuth(self.server)
        return ApiClient(
            self.server,
            warn=warn,
            transport=self.transport,
            auth=auth,
            pause=self.pause,
            trust=self._trust(),
        )

    def _trust(self) -> ssl.SSLContext | bool:
        """Say whose signature the server's certificate must have.

        Raises:
            Failure: the file that says so cannot be used.
        """
        import ssl  # noqa: PLC0415 - start-up time

        authority = self.authority_pem()
        if authority is None:
            return True
        try:
            return ssl.create_default_context(cadata=authority)
        except (ssl.SSLError, ValueError) as error:
            raise self._bad_authority(str(error)) from error

    def authority_pem(self) -> str | None:
        """Read who must have signed the server's certificate; None for those that the system trusts.

        Raises:
            Failure: the file that says so cannot be read.
        """
        from controlplane.cli.credentials import CredentialFile  # noqa: PLC0415 - start-up time

        if self.authority is None:
            return CredentialFile().authority(self.server)
        try:
            return self.authority.read_text("ascii")
        except (OSError, UnicodeError) as error:
            raise self._bad_authority(str(getattr(error, "strerror", None) or error)) from error

    def _bad_authority(self, fault: str) -> Exception:
        from controlplane.cli.failures import Failure  # noqa: PLC0415 - start-up time

        return Failure(
            f"{self.authority or 'what the last login named'} is no readable PEM file of an authority: {fault}",
            hint="'limiquantix-controlplane authority', on a control plane's machine, prints the cluster's",
        )

    @property
    def prints_tables(self) -> bool:
        """Whether people read the output."""
        return self.output is OutputFormat.TABLE


def session_of(context: click.Context) -> Session:
    """Return the session of a run."""
    found = context.obj
    return found if isinstance(found, Session) else Session()


class ServerUrl(click.ParamType[str]):
    """The address of a control plane."""

    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check that it is an HTTP URL with a host; a user and password in it would show up in messages."""
        from urllib.parse import urlsplit  # noqa: PLC0415 - start-up time

        try:
            parts = urlsplit(value)
            sane = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            sane = False
        if not sane or not value.isprintable() or " " in value:
            self.fail(f"{value!r} is not a URL such as {DEFAULT_SERVER}", param, ctx)
        if parts.username is not None or parts.query or parts.fragment:
            self.fail("the URL must not hold a user, a query or a fragment", param, ctx)
        return str(value).rstrip("/")


def server_option() -> click.Option:
    """`--server` of one command, which wins over that of the whole."""
    return click.Option(
        ["--server"],
        type=ServerUrl(),
        metavar="URL",
        expose_value=False,
        callback=_use_server,
        help=f"Control plane to talk to; also {SERVER_VARIABLE}.",
    )


def output_option(text: str = "How to print; json and yaml are the API's own documents.") -> click.Option:
    """`--output` of one command, which wins over that of the whole."""
    return click.Option(
        ["--output", "-o"],
        type=click.Choice(OutputFormat, case_sensitive=False),
        expose_value=False,
        callback=_use_output,
        help=text,
    )


def _use_server(context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.obj = replace(session_of(context), server=value)


def _use_output(context: click.Context, _: click.Parameter, value: OutputFormat | None) -> None:
    if value is not None:
        context.obj = replace(session_of(context), output=value)


class ApiCommand(click.Command):
    """A command that calls the control plane: takes `--server` and `--output`, ends refusals with their exit status."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += [output_option(), server_option()]

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what the API refuses becomes a message and an exit status."""
        from controlplane.cli.api_client import ServerUnreachable  # noqa: PLC0415 - start-up time
        from controlplane.cli.failures import Unreachable, refused  # noqa: PLC0415
        from limiquantix.errors import ApiError  # noqa: PLC0415

        try:
            return super().invoke(ctx)
        except ApiError as error:
            raise refused(error) from error
        except ServerUnreachable as error:
            raise Unreachable(str(error), hint=_way_in(session_of(ctx).server, str(error))) from error


def _way_in(server: str, complaint: str) -> str:
    """Say what may help one who does not get through to a server."""
    if "CERTIFICATE_VERIFY_FAILED" in complaint:
        return (
            f"name who signed its certificate with --ca FILE or {AUTHORITY_VARIABLE}; 'limiquantix-controlplane "
            "authority', on a control plane's machine, prints the cluster's"
        )
    if server.startswith("http:"):
        return "control planes speak TLS: name it by https://"
    return f"'limiquantix dev' starts one here; --server URL or {SERVER_VARIABLE} names another"


class ApiGroup(click.Group):
    """A group whose commands call the control plane."""

    command_class = ApiCommand
