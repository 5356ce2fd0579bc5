"""Write the archives the Linux kernel unpacks as its first file system: cpio, "new ASCII" format.

Our own writer, because the program cpio is not on every machine, and because this way device nodes and files of root
need no root: the archive is only bytes.

Source: https://docs.kernel.org/driver-api/early-userspace/buffer-format.html
"""

import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

_MAGIC: Final = b"070701"
_TRAILER: Final = "TRAILER!!!"
_ALIGNMENT: Final = 4
_BLOCK_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an archive; everything belongs to root. `mode` is the full st_mode, with the type of file."""

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class Archive:
    """Files by absolute path; the directories above them are added by themselves. A path given again is replaced."""

    _entries: dict[PurePosixPath, Entry] = field(default_factory=dict)

    @property
    def entries(self) -> Mapping[PurePosixPath, Entry]:
        """What was added so far."""
        return self._entries

    def add_directory(self, path: str, permissions: int = 0o755) -> None:
        """Add an empty directory."""
        self._entries[_absolute(path)] = Entry(stat.S_IFDIR | permissions)

    def add_file(self, path: str, data: bytes, permissions: int = 0o644) -> None:
        """Add a regular file."""
        self._entries[_absolute(path)] = Entry(stat.S_IFREG | permissions, data)

    def add_symlink(self, path: str, target: str) -> None:
        """Add a symbolic link to `target`."""
        self._entries[_absolute(path)] = Entry(stat.S_IFLNK | 0o777, target.encode())

    def add_character_device(self, path: str, major: int, minor: int, permissions: int = 0o600) -> None:
        """Add a device node; needed for /dev/console, which the kernel opens before anything is mounted."""
        self._entries[_absolute(path)] = Entry(stat.S_IFCHR | permissions, device=(major, minor))

    def to_bytes(self) -> bytes:
        """Return the archive: parents before children, in a fixed order, so that equal contents give equal bytes."""
        complete = dict(self._entries)
        for path in self._entries:
            for parent in path.parents:
                complete.setdefault(parent, Entry(stat.S_IFDIR | 0o755))
        complete.pop(PurePosixPath("/"), None)
        parts = [
            _encode(str(path.relative_to("/")), complete[path], number)
            for number, path in enumerate(sorted(complete), start=1)
        ]
        archive = b"".join([*parts, _encode(_TRAILER, Entry(0), 0)])
        return archive + bytes(-len(archive) % _BLOCK_BYTES)


def _absolute(path: str) -> PurePosixPath:
    result = PurePosixPath(path)
    if not result.is_absolute() or ".." in result.parts or len(result.parts) < 2:
        raise ValueError(f"{path!r} is no absolute path of a file")
    return result


def _encode(name: str, entry: Entry, inode: int) -> bytes:
    encoded = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # inode, mode, uid, gid, links, mtime, size, device of the archive (2), device node (2), length of name, checksum
    numbers = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(encoded), 0)
    header = _MAGIC + b"".join(b"%08X" % number for number in numbers)
    return _pad(header + encoded) + _pad(entry.data)


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)
