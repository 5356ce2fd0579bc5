"""From a database address to a store: the URL decides which database it is."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError

from controlplane.state.engine import Database, StoreLimits
from controlplane.state.interface import Store
from controlplane.state.postgresql import DRIVER, database_at
from controlplane.state.revision import SchemaChange, stored_revision
from controlplane.state.schema_base import REVISION
from controlplane.state.seals import NO_SEALS, Seals
from controlplane.state.sql import SqlStore
from controlplane.state.sqlite import SqliteDatabase, require_usable_sqlite

_SUPPORTED = (
    "supported is sqlite:///relative/path.db, sqlite:////absolute/path.db or postgresql://role@host/database "
    "(postgresql://role@/database?host=/run/postgresql for a socket)"
)


def create_store(url: str, limits: StoreLimits | None = None, seals: Seals = NO_SEALS) -> Store:
    """Make a store, not yet open; connects to nothing.

    Args:
        url: `sqlite:///relative/path.db` (relative to the working directory), `sqlite:////absolute/path.db`, or
            `postgresql://role:password@host:port/database` with libpq's parameters: `?host=/run/postgresql` for a unix
            socket, `?host=a,b&target_session_attrs=read-write` for the one of several servers that can be written.
        limits: other than the usual ones.
        seals: what rows hold of secrets is sealed with these; without, it is stored as it is.

    Raises:
        ValueError: the URL names no supported database; the message never repeats the URL, which may hold a password.
        RuntimeError: the database's library on this machine is too old or missing.
    """
    return SqlStore(_database(url, seals), limits or StoreLimits())


def migrate(url: str) -> str:
    """Create the database or bring its schema up to date, and return the schema's revision.

    Blocks: call it in a thread where an event loop runs. Safe to repeat and to run from several processes at once.

    Raises:
        ValueError: as `create_store`.
        SchemaMismatch: the database is newer than this program.
        OSError, sqlalchemy.exc.DBAPIError: the database cannot be created or changed.
    """
    return change_schema(url).revision


def change_schema(url: str) -> SchemaChange:
    """Do what `migrate` does, and say what that was. Blocks, may be repeated and raises as `migrate`."""
    database = _database(url)
    if database.exists() and _revision_of(database) == REVISION:
        return SchemaChange(REVISION, REVISION)
    from controlplane.state.migration import upgrade  # noqa: PLC0415 - Alembic is large, and seldom needed

    return upgrade(database)


def _revision_of(database: Database) -> str | None:
    engine = database.migration_engine()
    try:
        with engine.begin() as connection:
            return stored_revision(connection)
    finally:
        engine.dispose()


def migration_engine(url: str) -> Engine:
    """Make the blocking engine that migrations use, for those who write one."""
    return _database(url).migration_engine()


def _database(url: str, seals: Seals = NO_SEALS) -> Database:
    """Tell which database a URL names."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # SQLAlchemy's message has the URL in it, so it must not reach a log as the cause either.
        raise ValueError(f"the database address is not a URL; {_SUPPORTED}") from None
    if parsed.drivername in {"postgresql", DRIVER}:
        try:
            return database_at(parsed, seals)
        except ValueError as error:
            raise ValueError(f"{error}; {_SUPPORTED}") from None
    if parsed.drivername != "sqlite":
        raise ValueError(f"databases of kind {parsed.drivername!r} are not supported; {_SUPPORTED}")
    require_usable_sqlite()
    return SqliteDatabase(_sqlite_path(parsed), seals)


def _sqlite_path(url: URL) -> Path:
    if url.host or url.username or url.port:
        raise ValueError(f"a SQLite address has no host; {_SUPPORTED}")
    if url.query:
        raise ValueError(f"a SQLite address has no parameters; {_SUPPORTED}")
    if not url.database or url.database.startswith((":", "file:")):
        raise ValueError(f"a SQLite address needs the path of a file, memory is not kept; {_SUPPORTED}")
    return Path(url.database).absolute()
