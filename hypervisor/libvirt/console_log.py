"""Files in which libvirt logs what guests write to their serial consoles. All of it blocks: for worker threads.

A log that grows large loses its beginning while its guest goes on writing: the file keeps its length, so that offsets
stay what they are, and the blocks of the dropped part are given back, which leaves a hole. QEMU only appends
(`append='on'`).
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from pathlib import Path
from typing import Final

from hypervisor.types import ConsoleLog

MAX_READ_BYTES: Final = 2**20
"""The most one read returns; the interface's bound."""
ROTATE_ABOVE_BYTES: Final = 4 * 2**20
"""A log that ever grew larger than this is put aside before the next start."""
BOUND_BYTES: Final = 4 * 2**20
"""A log that takes up more than this loses its beginning.

Where libvirt hands logs to virtlogd, that one bounds them first, at 2 MiB by its default; with `stdio_handler = "file"`
nothing else does.
"""
KEPT_BYTES: Final = 2 * 2**20
"""What is left of it: more than two bounds can be read at once, and far more than a boot's messages."""

_HOLE_ALIGNMENT: Final = 64 * 2**10
"""No file system's blocks are larger, and only whole ones are given back."""
_PUNCH_HOLE_KEEP_SIZE: Final = 0x02 | 0x01
"""Source: linux/falloc.h, FALLOC_FL_PUNCH_HOLE and FALLOC_FL_KEEP_SIZE, which has to go with it."""
_BLOCK_BYTES: Final = 512
"""Unit of st_blocks, whatever the file system's. Source: stat(2)."""


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
        while (piece := _read_once(descriptor, offset, max_bytes)) is None:
            continue
        return piece
    finally:
        os.close(descriptor)


def _read_once(descriptor: int, offset: int, max_bytes: int) -> ConsoleLog | None:
    """Read a piece; None if its beginning was dropped meanwhile: what is dropped while it is read comes as zeros."""
    size_bytes = os.fstat(descriptor).st_size
    begin = _first_kept(descriptor, offset, size_bytes)
    data = os.pread(descriptor, min(max_bytes, size_bytes - begin), begin) if begin < size_bytes else b""
    if data and _first_kept(descriptor, begin, size_bytes) != begin:
        return None
    return ConsoleLog(data=data, next_offset=begin + len(data), size_bytes=size_bytes)


def _first_kept(descriptor: int, offset: int, size_bytes: int) -> int:
    """Return where the log goes on from an offset: there, or behind what was dropped; its end, if there is no more."""
    if offset >= size_bytes:
        return size_bytes
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:  # nothing but a hole
            raise
        return size_bytes


def bound(path: Path, *, bound_bytes: int = BOUND_BYTES, kept_bytes: int = KEPT_BYTES) -> bool:
    """Drop the beginning of a log that takes up more than it may; returns whether it did. The guest may be writing.

    On a file system without holes (some of those on networks), the newest part becomes `<name>.0` and the log begins
    anew, its offsets too.

    Raises:
        OSError: it is not ours to write.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        status = os.fstat(descriptor)
        end = (status.st_size - kept_bytes) // _HOLE_ALIGNMENT * _HOLE_ALIGNMENT
        if status.st_blocks * _BLOCK_BYTES <= bound_bytes or end <= 0:
            return False
        try:
            _punch_hole(descriptor, end)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            _begin_anew(descriptor, path, end)
        return True
    finally:
        os.close(descriptor)


def bound_all(directory: Path, *, bound_bytes: int = BOUND_BYTES, kept_bytes: int = KEPT_BYTES) -> list[str]:
    """Bound every log; returns what went wrong with which, so that one bad file does not keep others from it."""
    complaints = []
    for file in os.scandir(directory):
        try:
            # One look at each is all that an idle host pays.
            if file.name.endswith(".log") and file.stat(follow_symlinks=False).st_blocks * _BLOCK_BYTES > bound_bytes:
                bound(Path(file.path), bound_bytes=bound_bytes, kept_bytes=kept_bytes)
        except OSError as error:
            complaints.append(f"{file.name}: {error.strerror}")
    return complaints


def _punch_hole(descriptor: int, end: int) -> None:
    """Give back the blocks of a file from its beginning to `end`."""
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.fallocate(
        ctypes.c_int(descriptor), ctypes.c_int(_PUNCH_HOLE_KEEP_SIZE), ctypes.c_int64(0), ctypes.c_int64(end)
    )
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _begin_anew(descriptor: int, path: Path, begin: int) -> None:
    """Put the part from `begin` on aside and empty the log; what is written between the two is lost."""
    with open(descriptor, "rb", closefd=False) as log, path.with_name(f"{path.name}.0").open("wb") as aside:
        log.seek(begin)
        shutil.copyfileobj(log, aside)
    os.ftruncate(descriptor, 0)


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
