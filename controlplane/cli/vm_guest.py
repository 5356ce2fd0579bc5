"""`limiquantix vm guest`: what the agent inside a guest tells and does."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any

import click

from controlplane.cli.api_client import VM_SERVICE, Document
from controlplane.cli.failures import Failure
from controlplane.cli.lookup import connect, vm_id_of
from controlplane.cli.output import Column, print_document, print_fields, print_table
from controlplane.cli.progress import waiting
from controlplane.cli.session import ApiGroup, session_of
from controlplane.cli.sizes import format_age, format_bytes
from controlplane.cli.terminal_text import one_line
from controlplane.cli.vm_changes import Asking, ask, asking_options, project_option, vm_argument
from controlplane.cli.vm_guest_exec import cat, execute, put

GUEST_DEADLINE_S = 90.0
"""The server gives its host 60 s."""
_MAX_SECRET_CHARS = 1024

_FILE_SYSTEM_COLUMNS = (
    Column("MOUNTED ON"),
    Column("TYPE"),
    Column("DEVICE"),
    Column("SIZE", is_number=True),
    Column("USED", is_number=True),
    Column("USE", is_number=True),
)


@click.group(cls=ApiGroup)
def guest() -> None:
    """Look and act inside a running VM, by QEMU's guest agent.

    The agent is a program of the guest (package qemu-guest-agent). What it tells is what the guest says.

    \b
    Example:
      limiquantix vm guest info web-1
    """


for command in (execute, cat, put):
    guest.add_command(command)


def _call(
    context: click.Context, method: str, vm: str, project: str, doing: str, request: Document | None = None
) -> Document:
    with connect(context) as client:
        whole = {**(request or {}), "vmId": vm_id_of(client, vm, project)}
        with waiting(doing):
            return client.call(VM_SERVICE, method, whole, GUEST_DEADLINE_S)


def _tell(context: click.Context, answer: Document, text: str) -> None:
    """Print what was done as a line, or the answer for programs."""
    session = session_of(context)
    if session.prints_tables:
        click.echo(text)
    else:
        print_document(answer, session.output)


@guest.command()
@vm_argument
@project_option
@click.pass_context
def ping(context: click.Context, vm: str, project: str) -> None:
    """Ask whether the agent answers; fails if it does not.

    \b
    Example:
      limiquantix vm guest ping web-1
    """
    answer = _call(context, "PingAgent", vm, project, f"asking the agent of {vm}")
    if not session_of(context).prints_tables:
        print_document(answer, session_of(context).output)
    if not answer.get("connected"):
        raise Failure(str(answer.get("error", "the agent does not answer")))
    if session_of(context).prints_tables:
        up_s = int(answer.get("uptimeSeconds", 0))
        since = f", the guest is up for {format_age(up_s)}" if up_s else ""
        click.echo(f"agent {one_line(str(answer.get('version', '')))} answers{since}")


@guest.command()
@vm_argument
@project_option
@click.pass_context
def info(context: click.Context, vm: str, project: str) -> None:
    """Show the system inside, and its addresses.

    \b
    Example:
      limiquantix vm guest info web-1
    """
    answer = _call(context, "GetGuestInfo", vm, project, f"asking the agent of {vm}")
    if not session_of(context).prints_tables:
        print_document(answer, session_of(context).output)
        return
    found = answer.get("info", {})
    up_s = int(found.get("uptimeSeconds", 0))
    fields = [
        ("System", " ".join(filter(None, (str(found.get("osName", "")), str(found.get("osVersion", "")))))),
        ("Kernel", str(found.get("kernelVersion", ""))),
        ("Host name", str(found.get("hostname", ""))),
        ("Agent", str(found.get("agentVersion", ""))),
        ("Up for", format_age(up_s) if up_s else ""),
        ("Frozen", "yes: it holds all writes" if answer.get("frozen") else ""),
    ]
    for nic in answer.get("interfaces", ()):
        addresses = ", ".join(map(str, nic.get("ipAddresses", ()))) or "no address"
        fields.append((f"Interface {nic.get('name', '')}", f"{addresses} ({nic.get('macAddress') or 'no MAC'})"))
    print_fields([(one_line(title), value) for title, value in fields])


@guest.command()
@vm_argument
@project_option
@click.pass_context
def users(context: click.Context, vm: str, project: str) -> None:
    """List who is logged in.

    \b
    Example:
      limiquantix vm guest users web-1
    """
    answer = _call(context, "GetGuestInfo", vm, project, f"asking the agent of {vm}")
    found = answer.get("users", [])
    if not session_of(context).prints_tables:
        print_document({"users": found}, session_of(context).output)
        return
    now = datetime.now(UTC)
    rows = [[str(user.get("name", "")), _age(user.get("loggedInAt"), now)] for user in found]
    print_table((Column("USER"), Column("SINCE", is_number=True)), rows)


@guest.command()
@vm_argument
@project_option
@click.pass_context
def filesystems(context: click.Context, vm: str, project: str) -> None:
    """List what is mounted, and how full it is.

    \b
    Example:
      limiquantix vm guest filesystems web-1
    """
    answer = _call(context, "GetGuestInfo", vm, project, f"asking the agent of {vm}")
    found = answer.get("fileSystems", [])
    if not session_of(context).prints_tables:
        print_document({"fileSystems": found}, session_of(context).output)
        return
    print_table(_FILE_SYSTEM_COLUMNS, [_file_system_row(each) for each in found])


def _file_system_row(each: Document) -> list[str]:
    total, used = int(each.get("totalBytes", 0)), int(each.get("usedBytes", 0))
    names = [str(each.get(name, "")) for name in ("mountPoint", "type", "device")]
    if not total:
        return [*names, "", "", ""]
    return [*names, format_bytes(total), format_bytes(used), f"{100 * used // total} %"]


@guest.command()
@vm_argument
@project_option
@click.option("--reboot", is_flag=True, help="Start it again afterwards.")
@click.option("--delay", type=click.IntRange(0, 86400), default=0, metavar="SECONDS", help="Not before this time.")
@click.option("--message", default="", metavar="TEXT", help="Shown to the guest's users.")
@asking_options
@click.pass_context
def shutdown(
    context: click.Context, vm: str, project: str, reboot: bool, delay: int, message: str, asking: Asking
) -> None:
    """Have the guest shut down or reboot by itself.

    Returns once it has taken that in. A delay and a message take a guest with a POSIX shell.

    \b
    Example:
      limiquantix vm guest shutdown web-1 --delay 60 --message 'maintenance'
    """
    with connect(context) as client:
        request: Document = {
            "vmId": vm_id_of(client, vm, project),
            "reboot": reboot,
            "delaySeconds": delay,
            "message": message,
        }
        doing = f"{'rebooting' if reboot else 'shutting down'} {vm}"
        answer = ask(context, client, "GuestShutdown", request, doing, vm, asking)
    if answer is None:
        return
    if not answer.get("accepted"):
        raise Failure(str(answer.get("error", "the guest did not take it in")))
    what = "reboots" if reboot else "shuts down"
    _tell(context, answer, f"the guest of {one_line(vm)} {what}" + (f" in {delay} s" if delay else ""))


@guest.command("set-password")
@vm_argument
@project_option
@click.option("--user", default="root", show_default=True, metavar="NAME", help="Whose password.")
@click.option("--stdin", "reads_stdin", is_flag=True, help="Read it from standard input, one line, and do not ask.")
@click.pass_context
def set_password(context: click.Context, vm: str, project: str, user: str, reads_stdin: bool) -> None:
    """Set the password of a user of the guest.

    It is asked for, or read from standard input; never an argument, which others could see.

    \b
    Example:
      limiquantix vm guest set-password web-1 --user ann
    """
    if reads_stdin:
        password = sys.stdin.readline(_MAX_SECRET_CHARS + 2).rstrip("\r\n")
    else:
        password = click.prompt("New password", hide_input=True, confirmation_prompt=True, err=True)
    if not 1 <= len(password) <= _MAX_SECRET_CHARS:
        raise Failure(f"a password has 1 to {_MAX_SECRET_CHARS} characters")
    request: Document = {"user": user, "password": password}
    answer = _call(context, "SetGuestPassword", vm, project, f"setting a password in {vm}", request)
    _tell(context, answer, f"the password of {one_line(user)} is set")


@guest.command("sync-time")
@vm_argument
@project_option
@click.pass_context
def sync_time(context: click.Context, vm: str, project: str) -> None:
    """Set the guest's clock to its host's.

    \b
    Example:
      limiquantix vm guest sync-time web-1
    """
    answer = _call(context, "SyncGuestTime", vm, project, f"setting the clock of {vm}")
    ahead_s = float(answer.get("aheadSeconds", 0))
    _tell(context, answer, f"the clock was {abs(ahead_s):.1f} s {'ahead' if ahead_s > 0 else 'behind'}, and is set")


@guest.command()
@vm_argument
@project_option
@click.option(
    "--for",
    "seconds",
    type=click.IntRange(1, 60),
    default=10,
    show_default=True,
    metavar="SECONDS",
    help="It is thawed then whatever happens.",
)
@click.pass_context
def freeze(context: click.Context, vm: str, project: str, seconds: int) -> None:
    """Have the guest hold all writes, for a minute at most.

    Before that it writes everything out, so that its disks are as after an orderly shutdown.

    \b
    Example:
      limiquantix vm guest freeze web-1 --for 30
    """
    request: Document = {"thawAfterSeconds": seconds}
    answer = _call(context, "FreezeGuest", vm, project, f"freezing {vm}", request)
    _tell(context, answer, f"{int(answer.get('fileSystemCount', 0))} file systems are frozen, for {seconds} s")


@guest.command()
@vm_argument
@project_option
@click.pass_context
def thaw(context: click.Context, vm: str, project: str) -> None:
    """Let the guest's writes go on.

    \b
    Example:
      limiquantix vm guest thaw web-1
    """
    answer = _call(context, "ThawGuest", vm, project, f"thawing {vm}")
    count = int(answer.get("fileSystemCount", 0))
    _tell(context, answer, f"{count} file systems are thawed" if count else "nothing was frozen")


def _age(moment: Any, now: datetime) -> str:
    try:
        return format_age((now - datetime.fromisoformat(str(moment))).total_seconds()) if moment else ""
    except ValueError:
        return ""
