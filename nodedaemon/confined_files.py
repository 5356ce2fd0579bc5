"""Open files below a directory and nowhere else, whatever happens to the names on the way meanwhile.

A path that was judged may lead elsewhere by the time it is opened: whoever can write to the storage, such as another
client of the same share, can put a symbolic link in the place of a directory. So files whose names come from outside
are opened here, where the kernel itself follows no link and leaves the directory by no step.

Source: openat2(2), since Linux 5.6; on older kernels, and where a sandbox forbids the call, each step is opened by
itself.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

_OPENAT2: Final = 437
"""On every architecture that got the call after the numbers were unified, all of ours among them."""
_NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x02, 0x04, 0x08
_HOW: Final = struct.Struct("=QQQ")
_MISSING: Final = frozenset({errno.ENOSYS, errno.EPERM, errno.E2BIG, errno.EINVAL})
_MAX_TRIES: Final = 16
"""The kernel asks to try again when something on the way is renamed meanwhile."""

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


class Escapes(OSError):
    """The path leads out of the directory, or over a symbolic link."""


Open = Callable[[int, str, int], int]


def open_beneath(root: Path, path: Path, flags: int = os.O_RDONLY) -> int:
    """Open an existing file or directory below `root`; programs that are started do not get the descriptor.

    `root` itself is trusted, and links in it are followed. A device or a pipe is opened without waiting for it; see
    `os.fstat` for what it is.

    Raises:
        Escapes: see there; also when it is `root` by another name.
        OSError: it is not there, or cannot be opened.
    """
    try:
        relative = path.relative_to(root)
    except ValueError as error:
        raise Escapes(errno.EXDEV, "leads out of the directory", str(path)) from error
    if ".." in relative.parts:
        raise Escapes(errno.EXDEV, "leads out of the directory", str(path))
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        waits = 0 if flags & os.O_PATH else os.O_NONBLOCK
        return _open(directory, str(relative), flags | waits | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EXDEV):
            raise Escapes(error.errno, "leads out of the directory, or over a link", str(path)) from error
        raise
    finally:
        os.close(directory)


def open_in_one_step(directory: int, name: str, flags: int) -> int:
    """Open by openat2. Raises `OSError`."""
    how = _HOW.pack(flags, 0, _NO_MAGICLINKS | _NO_SYMLINKS | _BENEATH)
    for _ in range(_MAX_TRIES):
        descriptor = _syscall(_OPENAT2, directory, os.fsencode(name), how, len(how))
        if descriptor >= 0:
            return int(descriptor)
        number = ctypes.get_errno()
        if number != errno.EAGAIN:
            raise OSError(number, os.strerror(number), name)
    raise OSError(errno.EAGAIN, "its directories change too often", name)


def open_step_by_step(directory: int, name: str, flags: int) -> int:
    """Open one name after the other, none of which may be a link. Raises `OSError`."""
    *parents, last = Path(name).parts or (".",)
    current = os.dup(directory)
    try:
        for parent in parents:
            # A link fails as what it is, no directory.
            below = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
            os.close(current)
            current = below
        return os.open(last, flags, dir_fd=current)
    except NotADirectoryError as error:
        raise OSError(errno.ELOOP, "a link or no directory", name) from error
    finally:
        os.close(current)


def _has_openat2() -> bool:
    if platform.system() != "Linux":
        return False
    directory = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.close(open_in_one_step(directory, ".", os.O_PATH | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in _MISSING:
            return False
        raise
    finally:
        os.close(directory)
    return True


_open: Open = open_in_one_step if _has_openat2() else open_step_by_step
