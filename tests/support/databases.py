"""Fresh, migrated databases, one for each test, of every kind the store runs on."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from controlplane.state.factory import migrate

MakeDatabase = Callable[[Path], str]
"""Makes an empty, migrated database, with its files if any in the directory, and returns its URL."""


def sqlite_url(path: Path) -> str:
    """URL of a database file."""
    return f"sqlite:///{path.absolute()}"


def fresh_sqlite(directory: Path) -> str:
    """Make a database file; a copy of one that was migrated once, which is much faster than migrating each."""
    path = directory / "limiquantix.db"
    path.write_bytes(_migrated_sqlite())
    return sqlite_url(path)


@functools.cache
def _migrated_sqlite() -> bytes:
    directory = Path(tempfile.mkdtemp(prefix="limiquantix-template-"))
    try:
        path = directory / "template.db"
        migrate(sqlite_url(path))
        return path.read_bytes()
    finally:
        shutil.rmtree(directory)


FRESH_DATABASES: dict[str, MakeDatabase] = {"sqlite": fresh_sqlite}
"""What the contract of the store is tested on."""
