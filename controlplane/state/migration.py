"""Brings a database to the schema this program needs, and says what to do when it is at another.

Alembic does the work from the package `migrations`, in one transaction: of two control planes that migrate at once the
second waits and finds nothing left to do. SQLite has its write lock for that. On PostgreSQL the row that holds the
revision is the lock; before there is one, both create its table, and the second fails when the first has committed.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

import migrations
from controlplane.state.engine import Database
from controlplane.state.interface import SchemaMismatch
from controlplane.state.revision import REVISION_TABLE, SchemaChange, mismatch, stored_revision


def upgrade(database: Database) -> SchemaChange:
    """Create or bring up to date the schema, and say what was done. Does nothing to a database that is up to date.

    Blocks; may take long on a large database. Nothing of a migration that fails remains.

    Raises:
        SchemaMismatch: the database is newer than this program.
    """
    newest = ScriptDirectory.from_config(_config()).get_current_head()
    if newest is None:
        raise SchemaMismatch("this installation has no migrations; install the package again")
    engine = database.migration_engine()
    try:
        found = _revision(engine)
        while found != newest:
            try:
                return SchemaChange(_upgrade_in_one_transaction(database, engine, newest), newest)
            except DBAPIError:
                # Another process that migrates makes ours fail; it did if it came further meanwhile.
                before, found = found, _revision(engine)
                if found == before:
                    raise
    finally:
        engine.dispose()
    return SchemaChange(newest, newest)


def _upgrade_in_one_transaction(database: Database, engine: Engine, newest: str) -> str | None:
    """Upgrade, and return the revision that there was when no other process could change it any more."""
    config = _config()
    with engine.begin() as connection:
        if stored_revision(connection) is not None:
            # Waits for another migration, and shows what it did.
            connection.execute(text(f"UPDATE {REVISION_TABLE} SET version_num = version_num"))  # noqa: S608
        found = stored_revision(connection)
        if found is not None and not _knows(ScriptDirectory.from_config(config), found):
            raise mismatch(found, is_older=False)
        config.attributes["connection"] = connection
        command.upgrade(config, newest)
        database.check_migrated(connection)
    return found


def _revision(engine: Engine) -> str | None:
    with engine.begin() as connection:
        return stored_revision(connection)


def is_older(revision: str) -> bool:
    """Whether this program has a migration that leads on from the revision; False for one it does not know."""
    return _knows(ScriptDirectory.from_config(_config()), revision)


def _knows(scripts: ScriptDirectory, revision: str) -> bool:
    return any(script.revision == revision for script in scripts.walk_revisions())


def _config() -> Config:
    config = Config()
    # Alembic reads options with interpolation: a lone % in a path would be taken for one.
    config.set_main_option("script_location", str(Path(migrations.__path__[0])).replace("%", "%%"))
    return config
