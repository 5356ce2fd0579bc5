"""The small file system of a simulated guest, kept in what stands for its disks, so that snapshots take it along."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

MAX_FILES = 1024
MAX_BYTES = 4 * 2**20
"""Of all files together; the mock's state file holds them, so they stay small."""

_HEADER = "files:"
RAW_DISK = "/dev/vda"
"""Shows what was written to the disks as a whole, in place of files."""


class GuestFault(Exception):
    """What a program in the guest complains of; the message is what it prints."""


@dataclass(frozen=True, slots=True)
class DiskFile:
    """A file and its permission bits."""

    data: bytes
    mode: int = 0o644


def read_files(disk_text: str) -> dict[str, DiskFile]:
    """Return the files by path."""
    if not disk_text.startswith(_HEADER):
        return {RAW_DISK: DiskFile(disk_text.encode())} if disk_text else {}
    stored = json.loads(disk_text.removeprefix(_HEADER))
    return {path: DiskFile(base64.b64decode(data), mode) for path, (data, mode) in stored.items()}


def write_file(disk_text: str, path: str, file: DiskFile, *, makes_parents: bool) -> str:
    """Return the disks' contents with a file more, or another one in its place.

    Raises:
        GuestFault: there is no such directory, or no room.
    """
    files = read_files(disk_text)
    parent = str(PurePosixPath(path).parent)
    if not makes_parents and parent not in directories(files):
        raise GuestFault(f"can't create {path}: No such file or directory")
    if path in directories(files):
        raise GuestFault(f"{path} is not a regular file")
    files[path] = file
    if len(files) > MAX_FILES or sum(len(each.data) for each in files.values()) > MAX_BYTES:
        raise GuestFault(f"can't create {path}: No space left on device")
    return _HEADER + json.dumps(
        {path: (base64.b64encode(each.data).decode(), each.mode) for path, each in files.items()}
    )


def directories(files: Mapping[str, DiskFile]) -> set[str]:
    """Every directory there is."""
    found = {"/", "/etc", "/tmp", "/root", "/dev", "/proc"}  # noqa: S108 - the guest's
    for path in files:
        found |= {str(parent) for parent in PurePosixPath(path).parents}
    return found
