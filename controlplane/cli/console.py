"""`limiquantix vm console`: get at a VM's screen or serial line."""

from __future__ import annotations

import os
import select
import socket
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import click

from controlplane.cli.api_client import VM_SERVICE
from controlplane.cli.lookup import connect, vm_id_of
from controlplane.cli.output import print_document, print_fields
from controlplane.cli.session import ApiCommand, session_of
from controlplane.cli.views import console_fields
from controlplane.cli.vm_changes import project_option, vm_argument

ESCAPE: Final = b"\x1d"
"""Ctrl-], as telnet and virsh have it."""
CONNECT_DEADLINE_S: Final = 10.0
_PIECE_BYTES: Final = 4096
_TYPES: Final = {
    "vnc": "CONSOLE_TYPE_VNC",
    "spice": "CONSOLE_TYPE_SPICE",
    "serial": "CONSOLE_TYPE_SERIAL",
}


@click.command(cls=ApiCommand)
@vm_argument
@project_option
@click.option("--type", "kind", type=click.Choice(list(_TYPES)), help="Which console; the VM's display if left out.")
@click.option("--attach", is_flag=True, help="Join this terminal to the serial console until Ctrl-].")
@click.pass_context
def console(context: click.Context, vm: str, project: str, kind: str | None, attach: bool) -> None:
    """Say how to connect to the console of a running VM.

    Makes an entry that lets one connection in, within a minute. The address is the loopback one of the VM's host: run
    the viewer there, or tunnel to it with ssh -L. VNC and SPICE viewers ask for the password; to the serial console it
    is sent as the first line. --attach does that itself, on the VM's host.

    \b
    Example:
      limiquantix vm console web-1
      limiquantix vm console web-1 --type serial --attach
    """
    if attach and kind not in (None, "serial"):
        raise click.UsageError(f"--attach joins a terminal to the serial console; {kind} needs a viewer of its own")
    if attach and not sys.stdin.isatty():
        raise click.UsageError("--attach needs a terminal; leave it out to learn how to connect by other means")
    wanted = "serial" if attach else kind
    request: dict[str, Any] = {"consoleType": _TYPES[wanted]} if wanted else {}
    session = session_of(context)
    with connect(context) as client:
        found = client.call(VM_SERVICE, "GetConsole", {"vmId": vm_id_of(client, vm, project), **request})
    if attach:
        _attach(str(found.get("host", "")), int(found.get("port", 0)), str(found.get("password", "")))
    elif session.prints_tables:
        print_fields(console_fields(found))
    else:
        print_document(found, session.output)


def _attach(host: str, port: int, secret: str) -> None:
    """Join the terminal to a serial console.

    Raises:
        ClickException: the entry cannot be reached, or refuses.
    """
    try:
        line = socket.create_connection((host, port), CONNECT_DEADLINE_S)
    except OSError as error:
        raise click.ClickException(
            f"the console listens at {host}:{port} on the VM's host, which cannot be reached from here "
            f"({error.strerror}); run this command there"
        ) from error
    with line:
        line.sendall(f"{secret}\n".encode())
        answer = _first_line(line)
        if answer != b"OK":
            said = answer.removeprefix(b"ERROR: ").decode(errors="replace")
            raise click.ClickException(said or "the VM's host hung up; it may have ended the entry, ask for another")
        with _raw_terminal():
            # Only now: keys typed before the terminal is raw would wait for the end of their line, or be dropped.
            click.echo("connected; Ctrl-] leaves\r", err=True)
            _relay(line)
    click.echo("\nleft the console", err=True)


def _first_line(line: socket.socket) -> bytes:
    received = b""
    while not received.endswith(b"\n"):
        piece = line.recv(1)
        if not piece:
            break
        received += piece
    return received.strip()


@contextmanager
def _raw_terminal() -> Iterator[None]:
    """Have every key passed on as it is."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _relay(line: socket.socket) -> None:
    """Pass bytes on both ways until the console ends or the escape key is pressed."""
    keys, screen = sys.stdin.fileno(), sys.stdout.fileno()
    line.settimeout(None)
    while True:
        ready, _, _ = select.select([keys, line], [], [])
        if line in ready:
            piece = line.recv(_PIECE_BYTES)
            if not piece:
                return
            while piece:
                piece = piece[os.write(screen, piece) :]
        if keys in ready:
            typed = os.read(keys, _PIECE_BYTES)
            before, escape, _ = typed.partition(ESCAPE)
            line.sendall(before)
            if escape or not typed:
                return
