"""Files in which libvirt logs what guests write to their serial consoles. All of it blocks: for worker threads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from hypervisor.types import ConsoleLog

MAX_READ_BYTES: Final = 2**20
"""The most one read returns; the interface's bound."""
ROTATE_ABOVE_BYTES: Final = 4 * 2**20
"""A log larger than this is put aside before the next start.

Where libvirt hands logs to virtlogd, that one bounds them while the VM runs (2 MiB by its default); with
`stdio_handler = "file"` nothing does, and this only keeps restarts from adding up.
"""


def log_path(directory: Path, vm_id: str) -> Path:
    """Return where a VM's console is logged; `vm_id` has to be a UUID, never a caller's free text."""
    return directory / f"{vm_id}.log"


def read(path: Path, offset: int, max_bytes: int) -> ConsoleLog:
    """Read a piece of a log; one that does not exist yet is empty. See `Hypervisor.read_console_log`.

    Raises:
        ValueError: a negative offset, or `max_bytes` outside 1 to `MAX_READ_BYTES`.
    """
    if offset < 0 or not 1 <= max_bytes <= MAX_READ_BYTES:
        raise ValueError(f"offset must be at least 0 and max_bytes from 1 to {MAX_READ_BYTES}")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ConsoleLog(data=b"", next_offset=0, size_bytes=0)
    try:
        size_bytes = os.fstat(descriptor).st_size
        if offset >= size_bytes:
            return ConsoleLog(data=b"", next_offset=size_bytes, size_bytes=size_bytes)
        data = os.pread(descriptor, min(max_bytes, size_bytes - offset), offset)
    finally:
        os.close(descriptor)
    return ConsoleLog(data=data, next_offset=offset + len(data), size_bytes=size_bytes)


def rotate(path: Path) -> None:
    """Put a log that has grown large aside, as `<name>.0`; only while its VM is off."""
    try:
        if path.stat().st_size > ROTATE_ABOVE_BYTES:
            path.replace(path.with_name(f"{path.name}.0"))
    except FileNotFoundError:
        return


def remove(path: Path) -> None:
    """Delete a log and the older ones beside it, ours and virtlogd's (`<name>.0`, `<name>.1`, ...)."""
    for file in (path, *path.parent.glob(f"{path.name}.[0-9]*")):
        file.unlink(missing_ok=True)
