"""`limiquantix vm disk`: disks of a VM that is there already."""

from __future__ import annotations

from typing import Any

import click

from controlplane.cli.api_client import Document
from controlplane.cli.devices import IMPORT_DEADLINE_S, change_device, devices_of, new_id, vm_words
from controlplane.cli.lookup import connect, vm_id_of
from controlplane.cli.output import Column, print_document, print_table
from controlplane.cli.progress import waiting
from controlplane.cli.session import ApiGroup, session_of
from controlplane.cli.sizes import format_bytes, parse_bytes, parse_gib
from controlplane.cli.vm_changes import Asking, asking_options, project_option, vm_argument
from controlplane.cli.vm_spec_options import Disk

_COLUMNS = (
    Column("ID"),
    Column("SIZE", is_number=True),
    Column("BUS"),
    Column("FORMAT"),
    Column("CACHE"),
    Column("LIMITS"),
    Column("NOTES"),
)
_GIB = 2**30

disk_argument = click.argument("disk", metavar="DISK")


class Rate(click.ParamType[int]):
    """Bytes per second, written with a unit."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it."""
        if isinstance(value, int):
            return value
        try:
            return parse_bytes(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class GibSize(click.ParamType[int]):
    """Whole GiB, written with a unit."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it."""
        if isinstance(value, int):
            return value
        try:
            return parse_gib(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.group(cls=ApiGroup)
def disk() -> None:
    """Attach, detach, grow and limit disks of a VM.

    A disk is named by its id, or by how that begins.

    \b
    Example:
      limiquantix vm disk attach web-1 20GiB
    """


@disk.command("list")
@vm_argument
@project_option
@click.pass_context
def list_command(context: click.Context, vm: str, project: str) -> None:
    """List the disks of a VM.

    \b
    Example:
      limiquantix vm disk list web-1
    """
    session = session_of(context)
    with connect(context) as client, waiting("reading disks"):
        found = devices_of(client, vm_id_of(client, vm, project), "disks")
    if session.prints_tables:
        print_table(_COLUMNS, [_row(each) for each in found])
    else:
        print_document({"disks": found}, session.output)


@disk.command()
@vm_argument
@click.argument("spec", metavar="SIZE[,..]", type=Disk())
@project_option
@asking_options
@click.pass_context
def attach(context: click.Context, vm: str, spec: Document, project: str, asking: Asking) -> None:
    """Attach a disk.

    A running VM takes disks on virtio-blk, which is the default, and virtio-scsi; others need it to be off. With the
    id of a disk that was detached, its image is attached again. Properties are those of 'vm create --disk'.

    \b
    Example:
      limiquantix vm disk attach web-1 20GiB,bus=virtio-scsi
      limiquantix vm disk attach web-1 source=import/old.vmdk,source-format=vmdk
    """
    doing = f"attaching a disk to {vm}"
    changed = change_device(context, "AttachDisk", vm, project, doing, asking, {"disk": spec}, IMPORT_DEADLINE_S)
    if changed is not None:
        click.echo(f"disk {new_id(changed[0], 'disks')} is attached to {vm_words(changed[0])}")


@disk.command()
@vm_argument
@disk_argument
@project_option
@click.option(
    "--force", is_flag=True, help="When the guest does not let go, take it from the definition: it goes at power off."
)
@asking_options
@click.pass_context
def detach(context: click.Context, vm: str, disk: str, project: str, force: bool, asking: Asking) -> None:
    """Detach a disk; its image stays.

    It stays until the VM is deleted. A guest that runs has to let go of the disk: unmount it there first.

    \b
    Example:
      limiquantix vm disk detach web-1 3f2a9c04
    """
    device = ("disks", "disk", "diskId", disk)
    doing = f"detaching a disk from {vm}"
    changed = change_device(
        context, "DetachDisk", vm, project, doing, asking, {"force": force}, IMPORT_DEADLINE_S, device=device
    )
    if changed is not None:
        name = vm_words(changed[0])
        click.echo(f"disk {changed[1]} is detached from {name}; its image stays until the VM is deleted")
        click.echo(f"'limiquantix vm disk attach {vm} SIZE,id={changed[1]}' attaches it again")


@disk.command()
@vm_argument
@disk_argument
@click.argument("size", type=GibSize())
@project_option
@asking_options
@click.pass_context
def resize(context: click.Context, vm: str, disk: str, size: int, project: str, asking: Asking) -> None:
    """Grow a disk to SIZE.

    A running guest sees it at once. Disks are never made smaller.

    \b
    Example:
      limiquantix vm disk resize web-1 3f2a9c04 40GiB
    """
    device = ("disks", "disk", "diskId", disk)
    doing = f"growing a disk of {vm}"
    changed = change_device(
        context, "ResizeDisk", vm, project, doing, asking, {"newSizeGib": size}, IMPORT_DEADLINE_S, device=device
    )
    if changed is not None:
        click.echo(f"disk {changed[1]} of {vm_words(changed[0])} has {size} GiB")


@disk.command()
@vm_argument
@disk_argument
@project_option
@click.option("--read-iops", type=click.IntRange(min=0), metavar="N", default=0, help="Reads per second.")
@click.option("--write-iops", type=click.IntRange(min=0), metavar="N", default=0, help="Writes per second.")
@click.option("--read-rate", type=Rate(), metavar="SIZE", default=0, help="Bytes read per second, such as 50MiB.")
@click.option("--write-rate", type=Rate(), metavar="SIZE", default=0, help="Bytes written per second.")
@click.option("--burst-iops", type=click.IntRange(min=0), metavar="N", default=0, help="Operations in a burst.")
@click.option("--burst-rate", type=Rate(), metavar="SIZE", default=0, help="Bytes per second in a burst.")
@click.option("--burst-seconds", type=click.IntRange(min=0), metavar="N", default=0, help="How long a burst may last.")
@asking_options
@click.pass_context
def limit(context: click.Context, /, vm: str, disk: str, project: str, asking: Asking, **limits: int) -> None:
    """Set the limits of a disk.

    They take the place of earlier ones; without options, there are none.

    \b
    Example:
      limiquantix vm disk limit web-1 3f2a9c04 --write-iops 500 --write-rate 50MiB
    """
    request: Document = {
        "ioLimits": {
            "readIops": limits["read_iops"],
            "writeIops": limits["write_iops"],
            "readBytesSec": limits["read_rate"],
            "writeBytesSec": limits["write_rate"],
            "burstIops": limits["burst_iops"],
            "burstBytes": limits["burst_rate"],
            "burstDurationSec": limits["burst_seconds"],
        }
    }
    device = ("disks", "disk", "diskId", disk)
    changed = change_device(
        context, "UpdateDisk", vm, project, f"limiting a disk of {vm}", asking, request, device=device
    )
    if changed is not None:
        state = "is limited" if any(limits.values()) else "has no limits"
        click.echo(f"disk {changed[1]} of {vm_words(changed[0])} {state}")


def _row(found: Document) -> list[str]:
    size_gib = int(found.get("sizeGib", 0))
    notes = [
        word
        for word, is_set in (
            ("read-only", found.get("readonly")),
            ("discard", found.get("discardEnabled")),
            (f"from {found.get('backingFile')}", found.get("backingFile")),
            (f"imported from {found.get('sourceFile')}", found.get("sourceFile")),
        )
        if is_set
    ]
    return [
        str(found.get("id", "")),
        format_bytes(size_gib * _GIB) if size_gib else "",
        _plain(found.get("bus", "VIRTIO_BLK")),
        _plain(found.get("format", "QCOW2")),
        _plain(found.get("cache", "WRITEBACK")),
        _limits(found.get("ioLimits", {})),
        ", ".join(notes),
    ]


def _limits(limits: Document) -> str:
    """Say a disk's ceilings in short."""
    words = []
    for name, text in (("readIops", "r"), ("writeIops", "w")):
        if value := int(limits.get(name, 0)):
            words.append(f"{text} {value}/s")
    for name, text in (("readBytesSec", "r"), ("writeBytesSec", "w")):
        if value := int(limits.get(name, 0)):
            words.append(f"{text} {format_bytes(value)}/s")
    return ", ".join(words)


def _plain(value: Any) -> str:
    return str(value).lower().replace("_", "-")
