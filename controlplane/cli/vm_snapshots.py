"""`limiquantix vm snapshot` and `limiquantix vm suspend`: keeping what a VM is, and going back to it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click

from controlplane.cli.api_client import VM_SERVICE, ApiClient, Document
from controlplane.cli.failures import Failure
from controlplane.cli.lookup import connect, is_id, vm_id_of
from controlplane.cli.output import Column, print_document, print_table
from controlplane.cli.progress import waiting
from controlplane.cli.session import ApiCommand, ApiGroup, session_of
from controlplane.cli.sizes import format_age, format_bytes
from controlplane.cli.terminal_text import one_line
from controlplane.cli.vm_changes import (
    Asking,
    ask,
    asking_options,
    change_vm,
    print_changed,
    project_option,
    vm_argument,
)
from limiquantix.errors import NotFound, Reason

SAVE_DEADLINE_S = 330.0
"""Saving or reading back a large memory; the server allows its host 300 s."""

_COLUMNS = (
    Column("NAME"),
    Column("CURRENT"),
    Column("MEMORY"),
    Column("QUIESCED"),
    Column("SIZE", is_number=True),
    Column("AGE", is_number=True),
    Column("DESCRIPTION"),
    Column("ID"),
)

snapshot_argument = click.argument("snapshot", metavar="SNAPSHOT")


@click.command(cls=ApiCommand)
@vm_argument
@project_option
@asking_options
@click.pass_context
def suspend(context: click.Context, vm: str, project: str, asking: Asking) -> None:
    """Save the memory of a running VM to disk.

    'limiquantix vm start' continues where the guest was. 'limiquantix vm stop --force' drops what was saved.

    \b
    Example:
      limiquantix vm suspend web-1
    """
    change_vm(context, "SuspendVM", vm, project, "suspending", asking, deadline_s=SAVE_DEADLINE_S)


@click.group(cls=ApiGroup)
def snapshot() -> None:
    """Take, list, delete and go back to snapshots of a VM.

    A snapshot is named by its name or its id.

    \b
    Example:
      limiquantix vm snapshot create web-1 before-upgrade
    """


@snapshot.command()
@vm_argument
@click.argument("name")
@project_option
@click.option("--description", default="", help="Text about it.")
@click.option("--memory", is_flag=True, help="Save the running guest too, so that a revert continues it.")
@click.option("--quiesce", is_flag=True, help="Have the guest's agent freeze its file systems meanwhile.")
@asking_options
@click.pass_context
def create(
    context: click.Context,
    vm: str,
    name: str,
    project: str,
    description: str,
    memory: bool,
    quiesce: bool,
    asking: Asking,
) -> None:
    """Take a snapshot of a VM.

    Of its disks, and of its memory if asked for; the VM is what it was afterwards.

    \b
    Example:
      limiquantix vm snapshot create db-1 nightly --quiesce
    """
    session = session_of(context)
    with connect(context) as client:
        request: Document = {
            "vmId": vm_id_of(client, vm, project),
            "name": name,
            "description": description,
            "includeMemory": memory,
            "quiesce": quiesce,
        }
        doing = f"taking a snapshot of {vm}"
        made = ask(context, client, "CreateSnapshot", request, doing, vm, asking, SAVE_DEADLINE_S)
    if made is None:
        return
    if not session.prints_tables:
        print_document(made, session.output)
        return
    frozen = f", {made.get('frozenFilesystemCount', 0)} file systems frozen" if quiesce else ""
    click.echo(f"snapshot {one_line(name)} ({made.get('id', '')}) of VM {one_line(vm)} is taken{frozen}")


@snapshot.command("list")
@vm_argument
@project_option
@click.pass_context
def list_command(context: click.Context, vm: str, project: str) -> None:
    """List the snapshots of a VM, parents before children.

    \b
    Example:
      limiquantix vm snapshot list web-1
    """
    session = session_of(context)
    with connect(context) as client, waiting("reading snapshots"):
        found = _snapshots(client, vm_id_of(client, vm, project))
    if session.prints_tables:
        print_table(_COLUMNS, [_row(each, datetime.now(UTC)) for each in found])
    else:
        print_document({"snapshots": found}, session.output)


@snapshot.command()
@vm_argument
@project_option
@click.pass_context
def tree(context: click.Context, vm: str, project: str) -> None:
    """Show which snapshot of a VM builds upon which.

    \b
    Example:
      limiquantix vm snapshot tree web-1
    """
    session = session_of(context)
    with connect(context) as client, waiting("reading snapshots"):
        found = _snapshots(client, vm_id_of(client, vm, project))
    if not session.prints_tables:
        print_document({"snapshots": found}, session.output)
        return
    for line in _tree_lines(found):
        click.echo(line)


@snapshot.command()
@vm_argument
@snapshot_argument
@project_option
@click.option("--start", is_flag=True, help="Have the VM run afterwards.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@asking_options
@click.pass_context
def revert(
    context: click.Context, vm: str, snapshot: str, project: str, start: bool, yes: bool, asking: Asking
) -> None:
    """Put a VM back to a snapshot; what it is now is lost.

    Configuration and disks go back, and the running guest if its memory was saved. Otherwise the VM is off then,
    unless --start is given. At a terminal it asks first; a script is not asked.

    \b
    Example:
      limiquantix vm snapshot revert web-1 before-upgrade --start
    """
    with connect(context) as client:
        vm_id = vm_id_of(client, vm, project)
        found = _find(client, vm_id, snapshot)
        _confirm(yes, f"put VM {one_line(vm)} back to snapshot {one_line(_name(found))}, and lose what it is now?")
        request: Document = {"vmId": vm_id, "snapshotId": found["id"], "startAfterRevert": start}
        doing = f"reverting {vm}"
        changed = ask(context, client, "RevertToSnapshot", request, doing, vm, asking, SAVE_DEADLINE_S)
        if changed is not None:
            print_changed(context, client, changed)


@snapshot.command()
@vm_argument
@snapshot_argument
@project_option
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@asking_options
@click.pass_context
def delete(context: click.Context, vm: str, snapshot: str, project: str, yes: bool, asking: Asking) -> None:
    """Delete a snapshot of a VM.

    The VM stays as it is, and so do snapshots that build upon this one. At a terminal it asks first; a script is not
    asked.

    \b
    Example:
      limiquantix vm snapshot delete web-1 before-upgrade
    """
    session = session_of(context)
    with connect(context) as client:
        vm_id = vm_id_of(client, vm, project)
        found = _find(client, vm_id, snapshot)
        _confirm(yes, f"delete snapshot {one_line(_name(found))} of VM {one_line(vm)}?")
        request: Document = {"vmId": vm_id, "snapshotId": found["id"]}
        doing = f"deleting a snapshot of {vm}"
        answer = ask(context, client, "DeleteSnapshot", request, doing, vm, asking, SAVE_DEADLINE_S)
    if answer is None:
        return
    if session.prints_tables:
        click.echo(f"snapshot {one_line(_name(found))} of VM {one_line(vm)} is deleted")
    else:
        print_document(answer, session.output)


def _snapshots(client: ApiClient, vm_id: str) -> list[Document]:
    return list(client.call(VM_SERVICE, "ListSnapshots", {"vmId": vm_id}).get("snapshots", ()))


def _find(client: ApiClient, vm_id: str, name_or_id: str) -> Document:
    """Find a snapshot by its name, or else by its id.

    Raises:
        NotFound: the VM has none of that name or id.
        Failure: several have the name, as other tools may make them.
    """
    found = _snapshots(client, vm_id)
    named = [each for each in found if _name(each) == name_or_id]
    if len(named) > 1:
        raise Failure(
            f"{len(named)} snapshots are named {name_or_id!r}",
            explanations=tuple(f"snapshot {each.get('id')}" for each in named),
            hint="name it by its id",
        )
    if not named and is_id(name_or_id):
        named = [each for each in found if each.get("id") == name_or_id.lower()]
    if not named:
        raise NotFound(Reason.SNAPSHOT_NOT_FOUND, f"the VM has no snapshot {name_or_id!r}")
    return named[0]


def _confirm(yes: bool, question: str) -> None:
    if not yes and sys.stdin.isatty() and sys.stderr.isatty():
        click.confirm(question, abort=True, err=True)


def _name(found: Document) -> str:
    return str(found.get("name", ""))


def _row(found: Document, now: datetime) -> list[str]:
    created_at = found.get("createdAt")
    return [
        _name(found),
        "yes" if found.get("isCurrent") else "",
        "yes" if found.get("memoryIncluded") else "",
        "yes" if found.get("quiesced") else "",
        format_bytes(int(found.get("sizeBytes", 0))),
        format_age((now - datetime.fromisoformat(created_at)).total_seconds()) if created_at else "",
        str(found.get("description", "")),
        str(found.get("id", "")),
    ]


def _tree_lines(found: Sequence[Document]) -> list[str]:
    """Draw the tree; the VM hangs below the snapshot that its present state builds upon."""
    ids = {str(each.get("id", "")) for each in found}
    children: dict[str, list[Document]] = {}
    for each in found:
        parent_id = str(each.get("parentId", ""))
        children.setdefault(parent_id if parent_id in ids else "", []).append(each)
    lines: list[str] = []

    def draw(snapshot: Document, before: str, *, is_last: bool) -> None:
        memory = " (with memory)" if snapshot.get("memoryIncluded") else ""
        lines.append(f"{before}{'└─' if is_last else '├─'} {one_line(_name(snapshot))}{memory}")
        below = before + ("   " if is_last else "│  ")
        beneath: list[Any] = [*children.get(str(snapshot.get("id", "")), ())]
        for index, child in enumerate(beneath):
            draw(child, below, is_last=index == len(beneath) - 1 and not snapshot.get("isCurrent"))
        if snapshot.get("isCurrent"):
            lines.append(f"{below}└─ (the VM is here)")

    roots = children.get("", [])
    for index, root in enumerate(roots):
        draw(root, "", is_last=index == len(roots) - 1)
    return lines
