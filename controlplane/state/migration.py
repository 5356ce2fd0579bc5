"""Brings a database to the schema this program needs, and says what to do when it is at another.

Alembic does the work from the package `migrations`, in one transaction under the database's write lock: of two control
planes that migrate at once the second waits and finds nothing left to do.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

import migrations
from controlplane.state.engine import Database
from controlplane.state.interface import SchemaMismatch

_COMMAND = "limiquantix-controlplane migrate"
_REVISION_TABLE = "alembic_version"


def upgrade(database: Database) -> str:
    """Create or bring up to date the schema, and return its revision. Does nothing to a database that is up to date.

    Blocks; may take long on a large database. Nothing of a migration that fails remains.

    Raises:
        SchemaMismatch: the database is newer than this program.
    """
    config = _config()
    scripts = ScriptDirectory.from_config(config)
    newest = scripts.get_current_head()
    if newest is None:
        raise SchemaMismatch("this installation has no migrations; install the package again")
    engine = database.migration_engine()
    try:
        with engine.begin() as connection:
            found = stored_revision(connection)
            if found is not None and not _knows(scripts, found):
                raise mismatch(found)
            config.attributes["connection"] = connection
            command.upgrade(config, newest)
            database.check_migrated(connection)
    finally:
        engine.dispose()
    return newest


def stored_revision(connection: Connection) -> str | None:
    """Read the revision of the database's schema; None if it has none yet."""
    if not inspect(connection).has_table(_REVISION_TABLE):
        return None
    revision: str | None = connection.execute(text(f"SELECT version_num FROM {_REVISION_TABLE}")).scalar()  # noqa: S608
    return revision


def mismatch(found: str | None) -> SchemaMismatch:
    """Describe a schema that is not the one needed; `found` is None for a database without any."""
    if found is None:
        return SchemaMismatch(f"the database has no tables yet; run `{_COMMAND}`")
    if _knows(ScriptDirectory.from_config(_config()), found):
        return SchemaMismatch(f"the database's schema {found} is older than this program; run `{_COMMAND}`")
    return SchemaMismatch(
        f"the database's schema {found} is newer than this program; install the version that made it or a later one "
        f"(`{_COMMAND}` of this version cannot help)"
    )


def _knows(scripts: ScriptDirectory, revision: str) -> bool:
    return any(script.revision == revision for script in scripts.walk_revisions())


def _config() -> Config:
    config = Config()
    # Alembic reads options with interpolation: a lone % in a path would be taken for one.
    config.set_main_option("script_location", str(Path(migrations.__path__[0])).replace("%", "%%"))
    return config
