"""Read what a qcow2 file says about other files, without opening any of them.

A qcow2 image can name a backing file and an external data file, and QEMU opens both with its own rights. An image that
somebody else made must not decide which files of the host a guest reads, so both names are read here from the header,
before any program of QEMU's sees the file.

Source: QEMU, docs/interop/qcow2.txt.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

_MAGIC = b"QFI\xfb"
_FIXED = struct.Struct(">4sIQIIQ")
_INCOMPATIBLE_AT = 72
_EXTERNAL_DATA_BIT = 1 << 2
_MAX_NAME_BYTES = 1023
_MAX_NAME_AT = 2 * 2**20
"""It has to be in the first cluster, of 2 MiB at most."""
_FORMAT_EXTENSION = 0xE2792ACA
_MAX_EXTENSIONS = 64


class NotQcow2(Exception):
    """The file has no sound qcow2 header."""


@dataclass(frozen=True, slots=True)
class Qcow2Header:
    """`backing_name` is "" without a backing file, else as written: a path relative to the image, or worse.

    `backing_format` is "" if the image does not state it, so QEMU would guess.
    """

    virtual_size_bytes: int
    backing_name: str
    backing_format: str
    has_external_data: bool


def read_header(path: Path) -> Qcow2Header:
    """Read the header of a file of ours. Blocks.

    Raises:
        NotQcow2: it is none.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return read_header_of(file.fileno())


def read_header_of(descriptor: int) -> Qcow2Header:
    """Read the header of an open file, which stays open; as `read_header`."""
    with os.fdopen(os.dup(descriptor), "rb") as file:
        file.seek(0)
        head = file.read(104)
        if len(head) < 72 or head[:4] != _MAGIC:
            raise NotQcow2("is not a qcow2 image")
        _, version, name_at, name_bytes, _, virtual_size_bytes = _FIXED.unpack_from(head)
        if version not in (2, 3) or name_bytes > _MAX_NAME_BYTES or name_at > _MAX_NAME_AT:
            raise NotQcow2("has a damaged qcow2 header")
        incompatible, header_bytes = 0, 72
        if version == 3:
            if len(head) < 104:
                raise NotQcow2("has a damaged qcow2 header")
            incompatible = int.from_bytes(head[_INCOMPATIBLE_AT : _INCOMPATIBLE_AT + 8])
            header_bytes = int.from_bytes(head[100:104])
        name = b""
        if name_at:
            file.seek(name_at)
            name = file.read(name_bytes)
        file.seek(header_bytes)
        return Qcow2Header(
            virtual_size_bytes=virtual_size_bytes,
            backing_name=name.decode(errors="surrogateescape"),
            backing_format=_backing_format(file.read(64 * 1024)),
            has_external_data=bool(incompatible & _EXTERNAL_DATA_BIT),
        )


def _backing_format(extensions: bytes) -> str:
    at = 0
    for _ in range(_MAX_EXTENSIONS):
        if at + 8 > len(extensions):
            break
        kind, length = struct.unpack_from(">II", extensions, at)
        if kind == 0:
            break
        if kind == _FORMAT_EXTENSION:
            return extensions[at + 8 : at + 8 + length].decode(errors="replace")
        at += 8 + (length + 7) // 8 * 8
    return ""
