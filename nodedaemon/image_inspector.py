"""Look into an image file that somebody else made, before any program of QEMU's sees it.

An image can name other files (a backing file, a data file, extents), and QEMU opens them with its own rights. It can
also be much larger than its file: a few kilobytes of tables can send a whole disk to one compressed cluster. So the
header and the tables are read here, by hand and within bounds, and whatever is not plainly one disk in one file is
refused. The format is what the caller states, never what the file looks like.

Sources: QEMU, docs/interop/qcow2.txt; VMware, "Virtual Disk Format 5.0"; QEMU, block/vmdk.c.
"""

from __future__ import annotations

import enum
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from nodedaemon.image_tables import Expansion, ImageRefused
from nodedaemon.qcow2_tables import survey_qcow2
from nodedaemon.vmdk_tables import survey_vmdk

TIB: Final = 2**40
MAX_DISK_BYTES: Final = 64 * TIB
"""What the contract lets any disk have."""
MAX_UNSTATED_BYTES: Final = TIB
"""A larger disk has to be asked for by its size: a small file may claim to be one."""
_SECTOR_BYTES: Final = 512


class SourceFormat(enum.Enum):
    """Formats that are read; the value is QEMU's name."""

    QCOW2 = "qcow2"
    RAW = "raw"
    VMDK = "vmdk"


@dataclass(frozen=True, slots=True)
class SourceImage:
    """A file that passed. `max_output_bytes` is more than its contents can fill."""

    path: Path
    format: SourceFormat
    virtual_size_bytes: int
    max_output_bytes: int


_SUFFIXES: Final[Mapping[SourceFormat, tuple[str, ...]]] = {
    SourceFormat.QCOW2: (".qcow2", ".img"),
    SourceFormat.RAW: (".raw", ".img"),
    SourceFormat.VMDK: (".vmdk",),
}
_MAGICS: Final = (
    (0, b"QFI\xfb", "qcow2"),
    (0, b"KDMV", "VMDK"),
    (0, b"COWD", "VMDK"),
    (0, b"# Disk DescriptorFile", "VMDK"),
    (0, b"vhdxfile", "VHDX"),
    (0, b"conectix", "VHD"),
    (0x40, b"\x7f\x10\xda\xbe", "VDI"),
    (0, b"QED\0", "QED"),
    (0, b"LUKS\xba\xbe", "LUKS"),
)
"""What other formats than raw begin with; a raw disk that did would not boot, and hardly be meant."""
_HEAD_BYTES: Final = 4096
_DESCRIPTION: Final = b"createtype="
"""In a VMDK description that is a file of its own, which may begin with any comment."""


def inspect(path: Path, stated: SourceFormat) -> SourceImage:
    """Check a file whose place was checked before. Blocks; reads all of its tables.

    Raises:
        ImageRefused: it is not plainly one disk of the stated format in one file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ImageRefused("cannot be read") from error
    try:
        return inspect_open(path, descriptor, stated)
    finally:
        os.close(descriptor)


def inspect_open(path: Path, descriptor: int, stated: SourceFormat) -> SourceImage:
    """Check an open file, which stays open; `path` is its name. As `inspect`."""
    if path.suffix.lower() not in _SUFFIXES[stated]:
        endings = " or ".join(_SUFFIXES[stated])
        raise ImageRefused(f"must end in {endings} to be read as {stated.value}")
    try:
        with os.fdopen(os.dup(descriptor), "rb") as file:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise ImageRefused("is not a regular file")
            file.seek(0)
            return _survey(path, file, facts.st_size, stated)
    except OSError as error:
        raise ImageRefused("cannot be read") from error


def _survey(path: Path, file: BinaryIO, file_bytes: int, stated: SourceFormat) -> SourceImage:
    head = file.read(_HEAD_BYTES)
    found = next((name for at, magic, name in _MAGICS if head[at:].startswith(magic)), "raw")
    if found == "raw" and _DESCRIPTION in head.lower() and head.isascii() and b"\0" not in head:
        found = "VMDK"
    if found.lower() != stated.value:
        raise ImageRefused(f"is stated to be {stated.value}, and begins like {found}")
    expansion = Expansion(file_bytes)
    match stated:
        case SourceFormat.QCOW2:
            size_bytes = survey_qcow2(file, file_bytes, expansion)
        case SourceFormat.VMDK:
            size_bytes = survey_vmdk(file, file_bytes, expansion)
        case SourceFormat.RAW:
            size_bytes = -(-file_bytes // _SECTOR_BYTES) * _SECTOR_BYTES
    if not 0 < size_bytes <= MAX_DISK_BYTES:
        raise ImageRefused(f"holds a disk of {size_bytes} bytes; from 1 to {MAX_DISK_BYTES} are possible")
    return SourceImage(
        path, stated, size_bytes, expansion.max_bytes if stated is not SourceFormat.RAW else 2 * size_bytes
    )
