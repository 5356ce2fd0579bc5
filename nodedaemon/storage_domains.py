"""Tell which storage this host keeps VMs on, so that hosts that mount the same one are known to share it.

The id lies in the storage itself, as a small file in its root: whoever looks there, from whichever host and under
whichever path, finds the same one. It is made by whichever host comes first; of several at once one wins, and all take
its id.
"""

from __future__ import annotations

import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

ID_FILE = ".limiquantix-storage-id"

_MAX_FILE_BYTES = 256


class StorageIdUnusable(Exception):
    """The storage's id cannot be read or made; the message says what to do."""


@dataclass(frozen=True, slots=True)
class StorageDomainFacts:
    """A place where this host keeps disks of VMs."""

    id: str
    path: Path
    total_bytes: int
    free_bytes: int


def read_storage_domain(root: Path) -> StorageDomainFacts:
    """Look at a storage root, and give it an id if it has none. Blocks.

    Raises:
        StorageIdUnusable: the file is damaged, or cannot be read or made.
    """
    try:
        storage_id = _read_id(root) or _make_id(root)
        usage = shutil.disk_usage(root)
    except OSError as error:
        raise StorageIdUnusable(f"{root / ID_FILE} cannot be read or made: {error.strerror}") from error
    return StorageDomainFacts(storage_id, root, usage.total, usage.free)


def _read_id(root: Path) -> str | None:
    try:
        with (root / ID_FILE).open("rb") as file:
            content = file.read(_MAX_FILE_BYTES)
    except FileNotFoundError:
        return None
    try:
        return str(uuid.UUID(content.decode("ascii").strip()))
    except ValueError as error:
        # Not made anew: hosts that know the old id would be thought to keep their VMs elsewhere.
        message = f"{root / ID_FILE} holds no UUID; put back the one that other hosts tell of this storage"
        raise StorageIdUnusable(message) from error


def _make_id(root: Path) -> str:
    """Write a new id beside its place and link it there, which fails if another host was first: nobody reads half."""
    scratch = root / f"{ID_FILE}.{uuid.uuid4()}"
    try:
        with scratch.open("x") as file:
            file.write(f"{uuid.uuid4()}\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(scratch, root / ID_FILE)
        except FileExistsError:
            pass
        except OSError:
            return _make_id_without_links(root)
    finally:
        scratch.unlink(missing_ok=True)
    return _read_id(root) or _gone(root)


def _make_id_without_links(root: Path) -> str:
    """Make the file on a file system that has no hard links: one small write, by whoever creates it."""
    storage_id = str(uuid.uuid4())
    try:
        descriptor = os.open(root / ID_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return _read_id(root) or _gone(root)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{storage_id}\n")
        file.flush()
        os.fsync(file.fileno())
    return storage_id


def _gone(root: Path) -> str:
    raise StorageIdUnusable(f"{root / ID_FILE} was removed while it was made; leave it where it is")
