"""A file with the keys that seal the data keys: made at first start, for its owner alone.

One key a line, "v1 " and base64 of 32 bytes, newest first; lines that begin with # are comments. A new key is put
before the others, and data keys are wrapped with it at the next start; then the others may go.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from controlplane.secrets.box import KEY_BYTES, SecretBox, SecretUnreadable
from controlplane.secrets.wrapping import KeysUnusable

_VERSION: Final = "v1"
_MAX_BYTES: Final = 64 * 2**10
_PURPOSE: Final = "data key"
_HEAD: Final = "# Opens every secret of this cluster's database. Keep a copy of it apart from the database's backups.\n"


class FileKeys:
    """Wraps with the first key of a file, unwraps with any."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._box = SecretBox(keys)

    async def wrap(self, data_key: bytes, key_id: str) -> bytes:
        """Seal a data key."""
        return self._box.seal(data_key, _PURPOSE, key_id)

    async def unwrap(self, wrapped: bytes, key_id: str) -> bytes:
        """Open a data key; see the interface."""
        try:
            return self._box.open(wrapped, _PURPOSE, key_id)
        except SecretUnreadable as error:
            raise KeysUnusable(
                f"the database's secrets were sealed with a key that is not in the key file ({error}); give this "
                "control plane the key file of the others, or the copy of it that was kept"
            ) from error

    def is_current(self, wrapped: bytes) -> bool:
        """Whether it was sealed with the first key."""
        return self._box.is_current(wrapped)


def read_or_make(path: Path, *, may_make: bool) -> FileKeys:
    """Read a key file, which is made if there is none. Blocks, not for long; two processes at once make one file.

    Args:
        may_make: false where the database has data keys already, which a new key could not open.

    Raises:
        KeysUnusable: others may read it, it belongs to somebody else, or it holds no keys.
    """
    if may_make and not path.exists():
        _make(path, [os.urandom(KEY_BYTES)])
    return FileKeys(_read(path))


def add_key(path: Path) -> None:
    """Put a new key before those of a file, in one step: who reads it meanwhile sees the old or the new file.

    Raises:
        KeysUnusable: as `read_or_make`, or it cannot be written.
    """
    keys = [os.urandom(KEY_BYTES), *_read(path)]
    new = path.with_name(f"{path.name}.new")
    try:
        new.unlink(missing_ok=True)
        _make(new, keys)
        os.replace(new, path)
    except OSError as error:
        raise KeysUnusable(f"key file {path} cannot be written: {error.strerror}") from error


def _make(path: Path, keys: Sequence[bytes]) -> None:
    lines = "".join(f"{_VERSION} {base64.b64encode(key).decode()}\n" for key in keys)
    # Written whole under another name first: who finds the file, finds a key in it.
    draft = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(_HEAD + lines)
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, path)  # as O_EXCL has it: fails if somebody made it meanwhile
        finally:
            draft.unlink(missing_ok=True)
    except FileExistsError:
        return
    except OSError as error:
        raise KeysUnusable(f"key file {path} cannot be made: {error.strerror}") from error


def _read(path: Path) -> list[bytes]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise KeysUnusable(
            f"key file {path} is missing, and the database holds secrets that only its keys open; put it back"
        ) from error
    except OSError as error:
        raise KeysUnusable(f"key file {path} cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        _require_own(path, os.fstat(descriptor))
        return _parsed(path, file.read(_MAX_BYTES + 1))


def _require_own(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise KeysUnusable(f"key file {path} is no regular file")
    if found.st_mode & 0o077:
        raise KeysUnusable(f"key file {path} may be read or written by others: chmod 600 it")
    if found.st_uid not in {os.geteuid(), 0}:
        raise KeysUnusable(f"key file {path} belongs to user {found.st_uid}: chown it to the control plane's user")


def _parsed(path: Path, text: bytes) -> list[bytes]:
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.decode("ascii", "replace").split()
        if not words or words[0].startswith("#"):
            continue
        try:
            key = base64.b64decode(words[1], validate=True) if len(words) == 2 and words[0] == _VERSION else b""
        except (binascii.Error, ValueError):
            key = b""
        if len(key) != KEY_BYTES:
            raise KeysUnusable(
                f'key file {path}, line {number}: a key is "{_VERSION} " and base64 of {KEY_BYTES} bytes'
            )
        keys.append(key)
    if not keys or len(text) > _MAX_BYTES:
        raise KeysUnusable(f"key file {path} holds no keys, or more than {_MAX_BYTES} bytes")
    return keys
