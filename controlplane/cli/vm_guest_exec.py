"""`limiquantix vm guest exec`, `cat` and `put`: run commands in a guest, and carry files in and out.

What comes from a guest is in its hand, so on a terminal control sequences are taken out of it. Elsewhere it is kept.
"""

from __future__ import annotations

import base64
import binascii
import sys
from pathlib import Path
from typing import Any, TextIO

import click

from controlplane.cli.api_client import VM_SERVICE, ApiClient, Document, ServerUnreachable
from controlplane.cli.failures import Failure, warn
from controlplane.cli.lookup import connect, vm_id_of
from controlplane.cli.output import print_document
from controlplane.cli.progress import waiting
from controlplane.cli.session import ApiCommand, session_of
from controlplane.cli.sizes import format_bytes
from controlplane.cli.terminal_text import ConsoleFilter
from controlplane.cli.vm_changes import project_option, vm_argument
from controlplane.cli.vm_spec_options import Label

MAX_BYTES = 2**20
"""What the API carries of a file, and as a command's input."""
EXIT_TIMED_OUT = 124
EXIT_NOT_RUN = 126
"""As coreutils' timeout and env have it, to be told from exit codes that commands mostly use."""
TRANSFER_DEADLINE_S = 180.0
_DEFAULT_TIMEOUT_S = 30


class TimedOut(Failure):
    """The command in the guest did not end in time."""

    exit_code = EXIT_TIMED_OUT


class NotRun(Failure):
    """The command in the guest was not started."""

    exit_code = EXIT_NOT_RUN


class Mode(click.ParamType[int]):
    """Permission bits in octal."""

    name = "mode"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read for example "0644"."""
        if isinstance(value, int):
            return value
        try:
            mode = int(value, 8)
        except ValueError:
            mode = -1
        if not 0 < mode <= 0o7777:
            self.fail(f"{value!r} is not an octal number from 1 to 7777", param, ctx)
        return mode


@click.command("exec", cls=ApiCommand)
@vm_argument
@click.argument("command", nargs=-1, required=True)
@project_option
@click.option(
    "--timeout",
    "timeout_s",
    type=click.IntRange(1, 3600),
    default=_DEFAULT_TIMEOUT_S,
    show_default=True,
    metavar="SECONDS",
    help="How long the command may run before it is killed.",
)
@click.option("--env", "environment", type=Label(), multiple=True, metavar="NAME=VALUE", help="Variable; may repeat.")
@click.option("--workdir", default="", metavar="PATH", help="Directory to run it in.")
@click.option("--stdin", "-i", "passes_input", is_flag=True, help="Give it what is on standard input, 1 MiB at most.")
@click.option("--detach", "-d", is_flag=True, help="Return as soon as it runs; nothing is heard of it any more.")
@click.pass_context
def execute(
    context: click.Context,
    vm: str,
    command: tuple[str, ...],
    project: str,
    timeout_s: int,
    environment: tuple[tuple[str, str], ...],
    workdir: str,
    passes_input: bool,
    detach: bool,
) -> None:
    """Run a command inside a guest, by its agent.

    No shell looks at the command; name one to have one. Its outputs go to ours, 1 MiB of each, and its exit status is
    ours too; 124 says that it ran out of time, 126 that it could not be started. Options go before the command.

    \b
    Example:
      limiquantix vm guest exec web-1 -- sh -c 'uname -a; df -h'
    """
    session = session_of(context)
    data = _read_input() if passes_input else b""
    with connect(context) as client:
        request: Document = {
            "vmId": vm_id_of(client, vm, project),
            "command": command[0],
            "args": list(command[1:]),
            "timeoutSeconds": timeout_s,
            "waitForExit": not detach,
            "workingDirectory": workdir,
            "environment": dict(environment),
            "input": base64.b64encode(data).decode(),
        }
        with waiting(f"running {command[0]} in {vm}"):
            answer = client.call(VM_SERVICE, "ExecuteScript", request, timeout_s + TRANSFER_DEADLINE_S)
    if session.prints_tables:
        _write(sys.stdout, str(answer.get("stdout", "")))
        _write(sys.stderr, str(answer.get("stderr", "")))
        for name in ("stdout", "stderr"):
            if answer.get(f"{name}Cut"):
                warn(f"{name} was longer than {format_bytes(MAX_BYTES)}; the rest is dropped")
    else:
        print_document(answer, session.output)
    _end(context, answer)


def _end(context: click.Context, answer: Document) -> None:
    """End with the exit status of the command in the guest."""
    if answer.get("timedOut"):
        raise TimedOut(str(answer.get("error", "it ran out of time")))
    if answer.get("error"):
        raise NotRun(str(answer["error"]))
    if not answer.get("success"):
        context.exit(int(answer.get("exitCode", 1)) & 0xFF or 1)


@click.command(cls=ApiCommand)
@vm_argument
@click.argument("path")
@project_option
@click.pass_context
def cat(context: click.Context, vm: str, path: str, project: str) -> None:
    """Print a file of a guest, 1 MiB of it at most.

    On a terminal escape sequences and control characters are taken out; in a pipe or file the bytes are as they are.

    \b
    Example:
      limiquantix vm guest cat web-1 /etc/os-release
    """
    session = session_of(context)
    with connect(context) as client:
        request: Document = {"vmId": vm_id_of(client, vm, project), "path": path}
        with waiting(f"reading from {vm}"):
            answer = client.call(VM_SERVICE, "ReadGuestFile", request, TRANSFER_DEADLINE_S)
    if not answer.get("success"):
        raise Failure(str(answer.get("error", "the file was not read")))
    if not session.prints_tables:
        print_document(answer, session.output)
        return
    try:
        data, size_bytes = base64.b64decode(str(answer.get("data", ""))), int(answer.get("totalSize", 0))
    except (binascii.Error, ValueError) as error:
        raise ServerUnreachable(f"the server sent a file that makes no sense: {error}") from error
    if sys.stdout.isatty():
        data = ConsoleFilter().feed(data, final=True).encode()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
    if size_bytes > MAX_BYTES:
        warn(f"the file has {format_bytes(size_bytes)}; only its first {format_bytes(MAX_BYTES)} are shown")


@click.command(cls=ApiCommand)
@vm_argument
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path, allow_dash=True))
@click.argument("path")
@project_option
@click.option("--mode", type=Mode(), default=0, metavar="OCTAL", help="Permission bits.  [default: 0644]")
@click.option("--parents", "-p", is_flag=True, help="Make directories that are missing.")
@click.pass_context
def put(context: click.Context, vm: str, source: Path, path: str, project: str, mode: int, parents: bool) -> None:
    """Write a file into a guest, 1 MiB at most.

    One that is there is replaced. FILE is one of this machine, "-" is standard input.

    \b
    Example:
      limiquantix vm guest put web-1 motd.txt /etc/motd
    """
    session = session_of(context)
    data = _read_input() if str(source) == "-" else _read_file(source)
    with connect(context) as client:
        answer = _put(client, vm_id_of(client, vm, project), vm, path, data, mode, parents=parents)
    if not answer.get("success"):
        raise Failure(str(answer.get("error", "the file was not written")))
    if session.prints_tables:
        click.echo(f"wrote {format_bytes(len(data))}")
    else:
        print_document(answer, session.output)


def _put(client: ApiClient, vm_id: str, vm: str, path: str, data: bytes, mode: int, *, parents: bool) -> Document:
    request: Document = {
        "vmId": vm_id,
        "path": path,
        "data": base64.b64encode(data).decode(),
        "mode": mode,
        "createParents": parents,
    }
    with waiting(f"writing to {vm}"):
        return client.call(VM_SERVICE, "WriteGuestFile", request, TRANSFER_DEADLINE_S)


def _read_input() -> bytes:
    return _bounded(sys.stdin.buffer.read(MAX_BYTES + 1), "standard input")


def _read_file(source: Path) -> bytes:
    try:
        with source.open("rb") as file:
            return _bounded(file.read(MAX_BYTES + 1), str(source))
    except OSError as error:
        raise Failure(f"{source} cannot be read: {error.strerror}") from error


def _bounded(data: bytes, what: str) -> bytes:
    if len(data) > MAX_BYTES:
        raise Failure(f"{what} is larger than {format_bytes(MAX_BYTES)}, which is what an agent is given at once")
    return data


def _write(stream: TextIO, text: str) -> None:
    if stream.isatty():
        text = ConsoleFilter().feed(text.encode(errors="replace"), final=True)
    stream.flush()
    stream.buffer.write(text.encode(errors="replace"))
    stream.buffer.flush()
