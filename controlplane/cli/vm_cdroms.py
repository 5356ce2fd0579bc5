"""`limiquantix vm cdrom`: CD-ROM drives of a VM and what is in them."""

from __future__ import annotations

import click

from controlplane.cli.api_client import Document
from controlplane.cli.devices import change_device, devices_of, new_id, vm_words
from controlplane.cli.lookup import connect, vm_id_of
from controlplane.cli.output import Column, print_document, print_table
from controlplane.cli.progress import waiting
from controlplane.cli.session import ApiGroup, session_of
from controlplane.cli.terminal_text import one_line
from controlplane.cli.vm_changes import Asking, asking_options, project_option, vm_argument
from controlplane.cli.vm_spec_options import enum_name

_COLUMNS = (Column("ID"), Column("BUS"), Column("MEDIUM"))

drive_argument = click.argument("drive", metavar="DRIVE")


@click.group(cls=ApiGroup)
def cdrom() -> None:
    """Add, remove, fill and empty CD-ROM drives of a VM.

    A drive is named by its id, or by how that begins.

    \b
    Example:
      limiquantix vm cdrom mount web-1 51d0c2be iso/debian-12.iso
    """


@cdrom.command("list")
@vm_argument
@project_option
@click.pass_context
def list_command(context: click.Context, vm: str, project: str) -> None:
    """List the CD-ROM drives of a VM.

    \b
    Example:
      limiquantix vm cdrom list web-1
    """
    session = session_of(context)
    with connect(context) as client, waiting("reading drives"):
        found = devices_of(client, vm_id_of(client, vm, project), "cdroms")
    if session.prints_tables:
        print_table(_COLUMNS, [_row(each) for each in found])
    else:
        print_document({"cdroms": found}, session.output)


@cdrom.command()
@vm_argument
@project_option
@click.option(
    "--iso", metavar="PATH", default="", help="What is in it: a file below the storage path of the VM's node."
)
@click.option(
    "--bus",
    type=click.Choice(("sata", "virtio-scsi")),
    default="sata",
    help="virtio-scsi for guests whose kernel has no driver for SATA.",
    show_default=True,
)
@asking_options
@click.pass_context
def attach(context: click.Context, vm: str, project: str, iso: str, bus: str, asking: Asking) -> None:
    """Add a CD-ROM drive to a VM that is off.

    \b
    Example:
      limiquantix vm cdrom attach web-1 --iso iso/debian-12.iso
    """
    request: Document = {"isoPath": iso, "bus": enum_name(bus)}
    changed = change_device(context, "AttachCDROM", vm, project, f"adding a CD-ROM drive to {vm}", asking, request)
    if changed is not None:
        click.echo(f"CD-ROM drive {new_id(changed[0], 'cdroms')} is added to {vm_words(changed[0])}")


@cdrom.command()
@vm_argument
@drive_argument
@project_option
@asking_options
@click.pass_context
def detach(context: click.Context, vm: str, drive: str, project: str, asking: Asking) -> None:
    """Remove a CD-ROM drive from a VM that is off.

    \b
    Example:
      limiquantix vm cdrom detach web-1 51d0c2be
    """
    device = ("cdroms", "CD-ROM drive", "cdromId", drive)
    doing = f"removing a CD-ROM drive from {vm}"
    changed = change_device(context, "DetachCDROM", vm, project, doing, asking, {}, device=device)
    if changed is not None:
        click.echo(f"CD-ROM drive {changed[1]} is removed from {vm_words(changed[0])}")


@cdrom.command()
@vm_argument
@drive_argument
@click.argument("iso", metavar="PATH")
@project_option
@asking_options
@click.pass_context
def mount(context: click.Context, vm: str, drive: str, iso: str, project: str, asking: Asking) -> None:
    """Put a medium into a drive.

    It takes the place of what is in it. PATH is that of a file below the storage path of the VM's node.

    \b
    Example:
      limiquantix vm cdrom mount web-1 51d0c2be iso/debian-12.iso
    """
    device = ("cdroms", "CD-ROM drive", "cdromId", drive)
    request: Document = {"isoPath": iso}
    changed = change_device(
        context, "MountISO", vm, project, f"changing a medium of {vm}", asking, request, device=device
    )
    if changed is not None:
        click.echo(f"{one_line(iso)} is in CD-ROM drive {changed[1]} of {vm_words(changed[0])}")


@cdrom.command()
@vm_argument
@drive_argument
@project_option
@asking_options
@click.pass_context
def eject(context: click.Context, vm: str, drive: str, project: str, asking: Asking) -> None:
    """Take the medium out of a drive.

    While a running guest has it mounted, it holds the drive shut: unmount it there first.

    \b
    Example:
      limiquantix vm cdrom eject web-1 51d0c2be
    """
    device = ("cdroms", "CD-ROM drive", "cdromId", drive)
    changed = change_device(context, "EjectISO", vm, project, f"ejecting a medium of {vm}", asking, {}, device=device)
    if changed is not None:
        click.echo(f"CD-ROM drive {changed[1]} of {vm_words(changed[0])} is empty")


def _row(found: Document) -> list[str]:
    bus = str(found.get("bus", "SATA")).lower().replace("_", "-")
    return [str(found.get("id", "")), bus, str(found.get("isoPath", ""))]
