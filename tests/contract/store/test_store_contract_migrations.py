"""Store contract: migrations make the tables the program uses, from nothing and from every revision with rows in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import CheckConstraint, Column, Connection, Engine, MetaData, Table, insert, inspect, select
from sqlalchemy.types import Boolean, Double, Float, LargeBinary, Text

import migrations
from controlplane.state.factory import create_store, migrate, migration_engine
from controlplane.state.interface import SchemaMismatch
from controlplane.state.revision import REVISION_TABLE
from controlplane.state.schema import metadata
from controlplane.state.schema_base import REVISION
from tests.support.databases import EMPTY_DATABASES, MakeDatabase, alembic_config
from tests.support.stores import open_store, vm_in

REVISIONS = [script.revision for script in ScriptDirectory(migrations.__path__[0]).walk_revisions()][::-1]

Rows = dict[str, list[Mapping[str, Any]]]
"""Everything in a database: rows of each table."""


@pytest.fixture(params=list(EMPTY_DATABASES.values()), ids=list(EMPTY_DATABASES))
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without tables, of one kind."""
    make: MakeDatabase = request.param
    return make(tmp_path)


def has_another_default(
    _context: object, _stored: object, _wanted: object, stored: str | None, _clause: object, wanted: str | None
) -> bool:
    """Compare a column's stored default with the wanted one; Alembic's way fails for JSON on PostgreSQL."""
    return plain(stored) != plain(wanted)


def plain(default: str | None) -> str:
    """Take quotes off a default, PostgreSQL's type, and the brackets that Alembic has around SQLite's."""
    return (default or "").partition("::")[0].strip("()'")


def test_migrated_database_and_the_tables_of_the_program_agree(empty_url: str) -> None:
    assert migrate(empty_url) == REVISION
    with migration_engine(empty_url).connect() as connection:
        options = {"compare_type": True, "compare_server_default": has_another_default}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []


def test_migrated_database_has_the_checks_of_the_program(empty_url: str) -> None:
    migrate(empty_url)
    with migration_engine(empty_url).connect() as connection:
        for table in metadata.tables.values():
            stored = {
                check["name"]: check["sqltext"] for check in inspect(connection).get_check_constraints(table.name)
            }
            wanted = {
                str(check.name): str(check.sqltext) for check in table.constraints if isinstance(check, CheckConstraint)
            }
            assert stored == wanted, table.name


def some_value(column: Column[Any]) -> object:
    """Make a value that any column of the kind takes; the same everywhere, so that what points to a row finds it."""
    match column.type:
        case Boolean():
            return True
        case LargeBinary():
            return b""
        case Double() | Float():
            return 1.0
        case Text():
            return "1"
    return {} if column.type.python_type is dict else 1


def fill(connection: Connection) -> None:
    """Put a row into every table that has none."""
    tables = MetaData()
    tables.reflect(connection)
    for table in tables.sorted_tables:
        if connection.execute(select(table)).first() is None:
            connection.execute(insert(table), {column.name: some_value(column) for column in table.columns})


def rows_in(connection: Connection) -> Rows:
    """Read everything but the revision."""
    tables = MetaData()
    tables.reflect(connection)
    names: list[Table] = [table for table in tables.sorted_tables if table.name != REVISION_TABLE]
    return {table.name: [dict(row) for row in connection.execute(select(table)).mappings()] for table in names}


def assert_kept(before: Rows, after: Rows) -> None:
    """Check that every row is there with the values it had; columns may have come, not gone."""
    for name, rows in before.items():
        assert [{column: row[column] for column in rows[0]} for row in after[name]] == rows, name


def upgrade_with_rows(engine: Engine) -> None:
    """Go through all revisions, with a row in every table at each."""
    for revision in REVISIONS:
        with engine.begin() as connection:
            before = rows_in(connection)
            command.upgrade(alembic_config(connection), revision)
            assert_kept(before, rows_in(connection))
            fill(connection)


async def test_rows_of_every_revision_come_through_to_the_newest(empty_url: str) -> None:
    engine = migration_engine(empty_url)
    upgrade_with_rows(engine)
    engine.dispose()
    assert migrate(empty_url) == REVISION
    async with open_store(empty_url) as store:
        vm = await vm_in(store, "1")
        assert vm is not None
        assert (vm.name, vm.node_id, vm.labels) == ("1", "1", {"1": "1"})


async def test_database_of_an_older_or_newer_program_is_refused_with_the_command(empty_url: str) -> None:
    migrate(empty_url)
    for revision, complaint in (
        (REVISIONS[0], "is older than this program; run `limiquantix-controlplane migrate`"),
        ("9999", "9999 is newer than this program"),
        (None, "no tables yet; run `limiquantix-controlplane migrate`"),
    ):
        with migration_engine(empty_url).begin() as connection:
            if revision is None:
                command.downgrade(alembic_config(connection), "base")
            else:
                connection.exec_driver_sql(f"UPDATE {REVISION_TABLE} SET version_num = '{revision}'")  # noqa: S608
        store = create_store(empty_url)
        with pytest.raises(SchemaMismatch, match=complaint):
            await store.open()
        await store.close()
        if revision == "9999":
            with pytest.raises(SchemaMismatch, match=complaint):
                migrate(empty_url)
            with migration_engine(empty_url).begin() as connection:
                connection.exec_driver_sql(f"UPDATE {REVISION_TABLE} SET version_num = '{REVISION}'")  # noqa: S608


def test_migration_that_fails_leaves_nothing_of_itself(empty_url: str) -> None:
    with migration_engine(empty_url).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE node_labels (something TEXT)")  # the last table of the first revision
    with pytest.raises(Exception, match="node_labels"):
        migrate(empty_url)
    with migration_engine(empty_url).connect() as connection:
        assert inspect(connection).get_table_names() == ["node_labels"]
    with migration_engine(empty_url).begin() as connection:
        connection.exec_driver_sql("DROP TABLE node_labels")
    assert migrate(empty_url) == REVISION
