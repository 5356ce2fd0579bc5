"""Fresh, migrated databases, one for each test, of every kind the store runs on."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from alembic.config import Config
from sqlalchemy import Connection

import migrations
from controlplane.state.factory import migrate
from tests.support.postgresql import empty_postgresql, fresh_postgresql

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


def empty_sqlite(directory: Path) -> str:
    """Name a database file that does not exist yet."""
    return sqlite_url(directory / "empty.db")


def alembic_config(connection: Connection) -> Config:
    """Make what Alembic's own commands need to work on a connection."""
    config = Config()
    config.set_main_option("script_location", migrations.__path__[0])
    config.attributes["connection"] = connection
    return config


FRESH_DATABASES: dict[str, MakeDatabase] = {"sqlite": fresh_sqlite, "postgresql": fresh_postgresql}
"""What the contract of the store is tested on."""

EMPTY_DATABASES: dict[str, MakeDatabase] = {"sqlite": empty_sqlite, "postgresql": empty_postgresql}
"""The same before any migration."""
