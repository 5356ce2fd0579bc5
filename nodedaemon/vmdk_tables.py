"""Survey a VMDK image: only one file that has its description and all of its contents inside.

A description, inside a file or in one of its own, lists extents by path and may name a parent; QEMU opens them all. In
the two kinds that are accepted, the one extent is the file itself, and QEMU does not look at its name.

Sources: VMware, "Virtual Disk Format 5.0"; QEMU, block/vmdk.c.
"""

from __future__ import annotations

import re
import struct
from typing import BinaryIO, Final

from nodedaemon.image_tables import Expansion, ImageRefused, read_table, require_inside

_HEADER: Final = struct.Struct("<4sIIQQQQIQQQB4sH")
_SECTOR_BYTES: Final = 512
_AT_END: Final = 2**64 - 1
_FOOTER_FROM_END_BYTES: Final = 1024
_MAX_DESCRIPTION_BYTES: Final = 64 * 1024
_SINGLE_FILE_KINDS: Final = frozenset({"monolithicsparse", "streamoptimized"})
_DESCRIPTION_SECTOR: Final = 1
_NO_PARENT: Final = "ffffffff"
_EXTENT: Final = re.compile(r"^\s*(RW|RDONLY|NOACCESS)\s+(\d+)\s+(\w+)(.*)$", re.IGNORECASE)
_SETTING: Final = re.compile(r'^\s*([\w.]+)\s*=\s*"?([^"]*)"?\s*$')
_MAX_TABLE_COUNT: Final = 2**22


def survey_vmdk(file: BinaryIO, file_bytes: int, expansion: Expansion) -> int:
    """Check an image; returns the size of its disk.

    Raises:
        ImageRefused: it is damaged, or is not all in this file.
    """
    header = _read_header(file, 0)
    _, _, _, capacity, _, description_at, description_count, *_ = header
    if not capacity or not description_at or not description_count:
        raise ImageRefused("is only a part of a VMDK image; export it as one file")
    _check_description(file, description_at, description_count)
    if header[9] == _AT_END:  # a stream: where the tables are was known at its end only
        if file_bytes < _FOOTER_FROM_END_BYTES:
            raise ImageRefused("is cut off")
        footer = _read_header(file, file_bytes - _FOOTER_FROM_END_BYTES)
        if footer[3:5] != header[3:5]:
            raise ImageRefused("is damaged: its footer is another disk's")
        header = footer
    _survey_grains(file, file_bytes, expansion, header)
    return int(capacity) * _SECTOR_BYTES


def _read_header(file: BinaryIO, at: int) -> tuple[int, ...]:
    file.seek(at)
    head = file.read(_HEADER.size)
    if len(head) < _HEADER.size or not head.startswith(b"KDMV"):
        raise ImageRefused("is cut off, or not a VMDK image in one file")
    fields = _HEADER.unpack(head)
    version, grain_sectors, table_count = fields[1], fields[4], fields[7]
    if version not in (1, 2, 3) or not 0 < table_count <= 4096:
        raise ImageRefused("has a damaged or unknown VMDK header")
    if not 8 <= grain_sectors <= 2048 or grain_sectors & (grain_sectors - 1):
        raise ImageRefused("has a damaged VMDK header")
    return fields


def _check_description(file: BinaryIO, at: int, count: int) -> None:
    if at != _DESCRIPTION_SECTOR:
        raise ImageRefused("has a damaged VMDK header: its description is not where it belongs")
    length = count * _SECTOR_BYTES
    if length > _MAX_DESCRIPTION_BYTES:
        raise ImageRefused("has a damaged VMDK header: its description is too long")
    file.seek(at * _SECTOR_BYTES)
    data = file.read(length).split(b"\0", 1)[0]
    if not data.isascii():
        raise ImageRefused("has a VMDK description with other characters than ASCII's")
    settings, extents = _parse(data.decode())
    kind = settings.get("createtype", "")
    if kind.lower() not in _SINGLE_FILE_KINDS:
        raise ImageRefused(
            f"is a VMDK image of the kind {kind[:40] or 'unknown'!r}; only monolithicSparse and streamOptimized have "
            "everything in one file"
        )
    if settings.get("parentcid", "").lower() != _NO_PARENT or "parentfilenamehint" in settings:
        raise ImageRefused("is built upon another VMDK image; consolidate it first")
    if len(extents) != 1 or extents[0][3].upper() != "SPARSE":
        raise ImageRefused("has its contents in other files")
    name = extents[0][4].strip().strip('"')
    if "/" in name or "\\" in name:
        raise ImageRefused("has its contents in a file elsewhere")


def _parse(description: str) -> tuple[dict[str, str], list[re.Match[str]]]:
    """Part a description in settings and extents.

    Raises:
        ImageRefused: a line is neither, so that it is unknown what another program would make of it.
    """
    settings: dict[str, str] = {}
    extents: list[re.Match[str]] = []
    for line in description.splitlines():
        if setting := _SETTING.match(line):
            settings[setting[1].lower()] = setting[2]
        elif extent := _EXTENT.match(line):
            extents.append(extent)
        elif line.strip() and not line.lstrip().startswith("#"):
            raise ImageRefused("has a VMDK description with lines that are not known here")
    return settings, extents


def _survey_grains(file: BinaryIO, file_bytes: int, expansion: Expansion, header: tuple[int, ...]) -> None:
    capacity, grain_sectors, table_count, directory_at = header[3], header[4], header[7], header[9]
    count = -(-capacity // (grain_sectors * table_count))
    if count > _MAX_TABLE_COUNT:
        raise ImageRefused("has a damaged VMDK header: its disk is too large")
    known: dict[int, int] = {}
    for table_at in read_table(file, file_bytes, directory_at * _SECTOR_BYTES, count, "le32"):
        if not table_at:
            continue
        if table_at not in known:
            data_count = 0
            for grain_at in read_table(file, file_bytes, table_at * _SECTOR_BYTES, table_count, "le32"):
                if grain_at > 1:  # 0 is a hole, 1 is zeros
                    require_inside(grain_at * _SECTOR_BYTES, file_bytes)
                    data_count += 1
            known[table_at] = data_count
        expansion.add(known[table_at] * grain_sectors * _SECTOR_BYTES)
