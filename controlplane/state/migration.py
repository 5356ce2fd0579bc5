"""Brings a database to the schema this program needs, and says what to do when it is at another.

Alembic does the work from the package `migrations`, in one transaction under the database's write lock: of two control
planes that migrate at once the second waits and finds nothing left to do.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

import migrations
from controlplane.state.engine import Database
from controlplane.state.interface import SchemaMismatch
from controlplane.state.revision import mismatch, stored_revision


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
                raise mismatch(found, is_older=False)
            config.attributes["connection"] = connection
            command.upgrade(config, newest)
            database.check_migrated(connection)
    finally:
        engine.dispose()
    return newest


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
