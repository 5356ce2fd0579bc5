"""`limiquantix vm console-log`: what a guest wrote to its serial console.

A guest decides what is in there, so on a terminal its control sequences are taken out. Elsewhere the bytes are kept.
"""

from __future__ import annotations

import base64
import binascii
import sys
import time
from collections.abc import Callable, Iterator

import click

from controlplane.cli.api_client import VM_SERVICE, ApiClient, ServerUnreachable
from controlplane.cli.lookup import connect, vm_id_of
from controlplane.cli.session import ApiCommand
from controlplane.cli.terminal_text import ConsoleFilter
from controlplane.cli.vm_changes import project_option, vm_argument

PIECE_BYTES = 256 * 1024
"""Read at once; an answer holds a third more, as base64."""
POLL_INTERVAL_S = 0.5
"""How often `--follow` looks for more: a person hardly notices, and the host opens one file twice a second."""


@click.command("console-log", cls=ApiCommand)
@vm_argument
@project_option
@click.option("--follow", "-f", is_flag=True, help="Go on with what the guest writes from now on, until Ctrl-C.")
@click.option("--raw", is_flag=True, help="Write control sequences to the terminal too. Only for guests you trust.")
@click.pass_context
def console_log(context: click.Context, vm: str, project: str, follow: bool, raw: bool) -> None:
    """Print what a guest wrote to its serial console.

    The VM need not run. On a terminal escape sequences and control characters are taken out; in a pipe or file the
    bytes are as the guest wrote them. --output has no effect.

    \b
    Example:
      limiquantix vm console-log web-1 --follow
    """
    write = _writer(is_terminal=sys.stdout.isatty(), raw=raw)
    with connect(context) as client:
        vm_id = vm_id_of(client, vm, project)
        try:
            for piece in pieces(client, vm_id, (lambda: time.sleep(POLL_INTERVAL_S)) if follow else None):
                write(piece)
        except KeyboardInterrupt:
            if not follow:
                raise
        finally:
            write(None)


def pieces(client: ApiClient, vm_id: str, pause: Callable[[], None] | None) -> Iterator[bytes]:
    """Yield the log from its beginning.

    Args:
        pause: called at the end of the log before looking for more; None ends there.

    Raises:
        ApiError: the VM does not exist (any more), or its host does not answer.
    """
    offset = 0
    while True:
        answer = client.call(
            VM_SERVICE, "GetConsoleLog", {"vmId": vm_id, "offset": str(offset), "maxBytes": PIECE_BYTES}
        )
        try:
            data = base64.b64decode(str(answer.get("data", "")))
            size, next_offset = int(answer.get("sizeBytes", 0)), int(answer.get("nextOffset", 0))
        except (binascii.Error, ValueError, TypeError) as error:
            raise ServerUnreachable(f"the server sent a console log that makes no sense: {error}") from error
        if size < offset:
            offset = 0  # the VM was started anew, and its log with it
            continue
        if data:
            yield data
            offset = max(next_offset, offset + 1)
        elif pause is None:
            return
        else:
            pause()


def _writer(*, is_terminal: bool, raw: bool) -> Callable[[bytes | None], None]:
    """Make what writes pieces of the log to standard output; None is its end."""
    stream = sys.stdout.buffer
    if raw or not is_terminal:

        def write_bytes(piece: bytes | None) -> None:
            stream.write(piece or b"")
            stream.flush()

        return write_bytes

    console = ConsoleFilter()
    last = "\n"

    def write_text(piece: bytes | None) -> None:
        nonlocal last
        text = console.feed(piece or b"", final=piece is None)
        if piece is None and (text or last)[-1] != "\n":
            text += "\n"  # the shell's prompt belongs on a line of its own
        last = text or last
        stream.write(text.encode("utf-8", "replace"))
        stream.flush()

    return write_text
