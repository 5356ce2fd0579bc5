"""Which schema a database has. Apart from `migration`, so that a process that finds the right one never loads Alembic.

Alembic and what it brings along cost 0.2 s and some 10 MiB, which a control plane needs once in its life.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, inspect, text

from controlplane.state.interface import SchemaMismatch

_COMMAND = "limiquantix-controlplane migrate"
REVISION_TABLE = "alembic_version"
"""Has one row, with Alembic's name of the schema."""


@dataclass(frozen=True, slots=True)
class SchemaChange:
    """What a migration did.

    Attributes:
        before: the revision that it found; None for a database without tables.
        revision: what it is now.
    """

    before: str | None
    revision: str

    @property
    def is_any(self) -> bool:
        """Whether it did anything; of several at once one does."""
        return self.before != self.revision


def stored_revision(connection: Connection) -> str | None:
    """Read the revision of the database's schema; None if it has none yet."""
    if not inspect(connection).has_table(REVISION_TABLE):
        return None
    revision: str | None = connection.execute(text(f"SELECT version_num FROM {REVISION_TABLE}")).scalar()  # noqa: S608
    return revision


def mismatch(found: str | None, *, is_older: bool = True) -> SchemaMismatch:
    """Describe a schema that is not the one needed; `found` is None for a database without any."""
    if found is None:
        return SchemaMismatch(f"the database has no tables yet; run `{_COMMAND}`")
    if is_older:
        return SchemaMismatch(f"the database's schema {found} is older than this program; run `{_COMMAND}`")
    return SchemaMismatch(
        f"the database's schema {found} is newer than this program; install the version that made it or a later one "
        f"(`{_COMMAND}` of this version cannot help)"
    )
