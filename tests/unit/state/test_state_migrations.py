"""Migrations make exactly the tables the program uses, and the store refuses a database at another schema."""

from __future__ import annotations

import os
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.script import ScriptDirectory

import migrations
from controlplane.state.factory import change_schema, create_store, migrate, migration_engine
from controlplane.state.interface import SchemaMismatch
from controlplane.state.schema_base import REVISION
from limiquantix.compute.v1.vm_pb2 import PlacementPolicy, VmAffinityRule, VmSpec
from limiquantix.errors import Reason, Unavailable
from tests.support.databases import alembic_config, fresh_sqlite, sqlite_url


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a database may be made, in two directories that do not exist."""
    return tmp_path / "state" / "deep" / "limiquantix.db"


def set_revision(path: Path, revision: str) -> None:
    """Pretend that the database is at another revision."""
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    connection.close()


def test_newest_migration_is_the_revision_the_program_needs(path: Path) -> None:
    scripts = ScriptDirectory(migrations.__path__[0])
    assert scripts.get_heads() == [REVISION]
    assert migrate(sqlite_url(path)) == REVISION


def test_downgrade_to_nothing_and_up_again_gives_the_same_schema(path: Path) -> None:
    url = sqlite_url(path)
    migrate(url)

    def schema() -> list[tuple[str, str]]:
        with sqlite3.connect(path) as connection:
            rows = connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql NOT NULL ORDER BY name").fetchall()
        connection.close()
        return rows

    before = schema()
    with migration_engine(url).begin() as connection:
        command.downgrade(alembic_config(connection), "base")
    assert [name for name, _ in schema()] == ["alembic_version"]
    migrate(url)
    assert schema() == before


def test_migration_repeated_keeps_every_row(path: Path) -> None:
    url = sqlite_url(path)
    migrate(url)
    with sqlite3.connect(path) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(vms)") if row[1] != "node_id"]
        marks = ",".join("?" * len(columns))
        connection.execute(f"INSERT INTO vms ({','.join(columns)}) VALUES ({marks})", ["1"] * len(columns))  # noqa: S608
    connection.close()
    migrate(url)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM vms").fetchone() == (1,)
    connection.close()


def test_vms_of_an_older_program_whose_rules_reach_far_are_marked(path: Path) -> None:
    url, apart = sqlite_url(path), VmAffinityRule.APART
    migrate(url)
    with migration_engine(url).begin() as older:
        command.downgrade(alembic_config(older), "0009")
    rules = {
        "by rack": VmAffinityRule(kind=apart, labels={"a": "1"}, topology_key="rack"),
        "by host": VmAffinityRule(kind=apart, labels={"a": "1"}),
        "wished": VmAffinityRule(kind=apart, labels={"a": "1"}, topology_key="rack", weight=1),
        "together": VmAffinityRule(kind=VmAffinityRule.TOGETHER, labels={"a": "1"}, topology_key="rack"),
    }
    with sqlite3.connect(path) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(vms)") if row[1] != "node_id"]
        marks = ",".join("?" * len(columns))
        for name, rule in rules.items():
            spec = VmSpec(placement=PlacementPolicy(vm_rules=[rule])).SerializeToString()
            known = {"id": name, "name": name, "spec": spec}
            values = [known.get(column, "1") for column in columns]
            connection.execute(f"INSERT INTO vms ({','.join(columns)}) VALUES ({marks})", values)  # noqa: S608
    connection.close()
    migrate(url)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT id FROM vms WHERE reaches_far").fetchall() == [("by rack",)]
    connection.close()


def test_migrations_at_the_same_moment_wait_for_each_other(path: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(migrate, [sqlite_url(path)] * 4)) == [REVISION] * 4


def test_of_migrations_at_the_same_moment_one_says_that_it_changed_the_schema(path: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        changes = list(threads.map(change_schema, [sqlite_url(path)] * 4))
    assert sorted(change.before or "" for change in changes) == ["", *[REVISION] * 3]
    assert {change.revision for change in changes} == {REVISION}
    assert [change.is_any for change in changes].count(True) == 1


def test_new_database_is_readable_by_its_owner_only(path: Path) -> None:
    before = os.umask(0)
    try:
        migrate(sqlite_url(path))
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(each.stat().st_mode) for each in (path, path.parent, path.parent.parent)]
    assert modes == [0o600, 0o700, 0o700]


def test_path_with_characters_special_in_urls_is_used_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "50% of #1 & more" / "state db.sqlite"
    migrate(sqlite_url(path))
    assert [each.name for each in path.parent.iterdir()] == ["state db.sqlite"]


async def test_open_without_a_database_names_the_command_and_creates_nothing(path: Path) -> None:
    store = create_store(sqlite_url(path))
    with pytest.raises(SchemaMismatch, match="limiquantix-controlplane migrate"):
        await store.open()
    await store.close()
    assert not path.parent.exists()


async def test_open_of_an_empty_file_names_the_command(tmp_path: Path) -> None:
    path = tmp_path / "empty.db"
    path.touch()
    store = create_store(sqlite_url(path))
    with pytest.raises(SchemaMismatch, match="limiquantix-controlplane migrate"):
        await store.open()
    await store.close()


async def test_database_of_a_newer_program_is_refused_by_open_and_by_migrate(tmp_path: Path) -> None:
    url = fresh_sqlite(tmp_path)
    set_revision(tmp_path / "limiquantix.db", "9999")
    store = create_store(url)
    with pytest.raises(SchemaMismatch, match="9999 is newer than this program"):
        await store.open()
    await store.close()
    with pytest.raises(SchemaMismatch, match="9999 is newer than this program"):
        migrate(url)


async def test_file_that_is_no_database_is_unavailable_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "text.db"
    path.write_text("this is not a database, whatever its name says\n" * 100)
    store = create_store(sqlite_url(path))
    with pytest.raises(Unavailable, match="not a SQLite database") as refusal:
        await store.open()
    await store.close()
    assert refusal.value.reason == Reason.STATE_UNAVAILABLE
    assert refusal.value.__cause__ is not None
