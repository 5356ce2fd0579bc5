"""Driver errors are told apart by their codes, for both kinds of database."""

from __future__ import annotations

import sqlite3
from types import SimpleNamespace

import pytest
from sqlalchemy import Dialect
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.dialects.sqlite.base import SQLiteDialect
from sqlalchemy.exc import (
    DatabaseError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.schema import CreateIndex, CreateTable

from controlplane.state.faults import (
    OUTCOME_UNKNOWN,
    Constraint,
    broken_constraint,
    is_conflict,
    is_lost,
    is_outcome_unknown,
    unavailability,
    unavailable,
)
from controlplane.state.schema import metadata


class SqliteFault(Exception):
    """What Python's driver raises: the code is an attribute."""

    def __init__(self, code: int) -> None:
        super().__init__("text that must not matter")
        self.sqlite_errorcode = code


class PostgresFault(Exception):
    """What psycopg raises: SQLSTATE and diagnostics are attributes."""

    def __init__(self, sqlstate: str | None, constraint_name: str | None = None) -> None:
        super().__init__("text that must not matter")
        self.sqlstate = sqlstate
        self.diag = SimpleNamespace(constraint_name=constraint_name)


def wrapped(kind: type[DBAPIError], fault: Exception) -> DBAPIError:
    """Wrap a driver's error as SQLAlchemy does."""
    return kind("SELECT secret FROM nowhere", {}, fault)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (SqliteFault(sqlite3.SQLITE_BUSY), True),
        (SqliteFault(sqlite3.SQLITE_BUSY_SNAPSHOT), True),
        (SqliteFault(sqlite3.SQLITE_LOCKED), True),
        (SqliteFault(sqlite3.SQLITE_FULL), False),
        (PostgresFault("40001"), True),
        (PostgresFault("40P01"), True),
        (PostgresFault("55P03"), True),
        (PostgresFault("57P01"), False),
        (PostgresFault(None), False),
    ],
)
def test_conflict_is_what_a_new_transaction_may_solve(fault: Exception, expected: bool) -> None:
    assert is_conflict(wrapped(OperationalError, fault)) is expected


@pytest.mark.parametrize(
    ("kind", "fault", "words"),
    [
        (OperationalError, SqliteFault(sqlite3.SQLITE_FULL), "disk it is on is full"),
        (OperationalError, SqliteFault(sqlite3.SQLITE_IOERR_FSYNC), "disk reports an error"),
        (OperationalError, SqliteFault(sqlite3.SQLITE_BUSY), "another writer"),
        (DatabaseError, SqliteFault(sqlite3.SQLITE_CORRUPT), "restore it from a backup"),
        (DatabaseError, SqliteFault(sqlite3.SQLITE_NOTADB), "not a SQLite database"),
        (OperationalError, SqliteFault(sqlite3.SQLITE_ERROR), "SQLite error 1"),
        (OperationalError, PostgresFault("40001"), "could not order"),
        (OperationalError, PostgresFault("53100"), "disk it is on is full"),
        (OperationalError, PostgresFault("53200"), "out of memory"),
        (OperationalError, PostgresFault("53300"), "too many connections"),
        (OperationalError, PostgresFault("53400"), "out of resources"),
        (OperationalError, PostgresFault("55P03"), "another writer"),
        (OperationalError, PostgresFault("57014"), "took too long"),
        (OperationalError, PostgresFault("57P01"), "shutting down"),
        (OperationalError, PostgresFault("57P03"), "starting"),
        (OperationalError, PostgresFault("08006"), "connection to it was lost"),
        (OperationalError, PostgresFault("28P01"), "refuses the role or password"),
        (InternalError, PostgresFault("25006"), "standby"),
        (ProgrammingError, PostgresFault("42501"), "may not do this"),
        (InternalError, PostgresFault("XX001"), "restore it from a backup"),
        (OperationalError, PostgresFault("99999"), "SQLSTATE 99999"),
        (InterfaceError, PostgresFault(None), "cannot be connected to"),
    ],
)
def test_unavailable_database_is_described_without_sql(kind: type[DBAPIError], fault: Exception, words: str) -> None:
    description = unavailability(wrapped(kind, fault))
    assert description is not None
    assert words in description
    assert "secret" not in description


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('FATAL:  password authentication failed for user "secret"', "refuses the role or password"),
        ('FATAL:  Peer authentication failed for user "secret"', "refuses the role or password"),
        ('FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "secret", no encryption', "pg_hba.conf"),
        ("FATAL:  sorry, too many clients already", "too many connections"),
        ("FATAL:  the database system is starting up", "starting"),
        ("FATAL:  the database system is shutting down", "shutting down"),
        ('connection to server at "secret", port 5432 failed: Connection refused', "nothing listens"),
        ("connection timeout expired", "in time"),
        ("FATAL:  irgendwas auf Deutsch: secret", "cannot be connected to"),
    ],
)
def test_refused_connection_is_described_without_what_it_names(text: str, words: str) -> None:
    fault = PostgresFault(None)
    fault.args = (text,)
    description = unavailability(wrapped(OperationalError, fault))
    assert description is not None
    assert words in description
    assert "secret" not in description


@pytest.mark.parametrize(
    ("fault", "is_invalidated", "lost", "unknown"),
    [
        (PostgresFault("57P01"), True, True, True),
        (PostgresFault(None), True, True, True),
        (PostgresFault("25006"), False, True, False),
        (PostgresFault("40003"), False, False, True),
        (PostgresFault("40001"), False, False, False),
        (PostgresFault("53100"), False, False, False),
    ],
)
def test_lost_connection_leaves_a_commit_in_doubt_and_a_refusal_does_not(
    fault: Exception, is_invalidated: bool, lost: bool, unknown: bool
) -> None:
    error = OperationalError("SQL", {}, fault, connection_invalidated=is_invalidated)
    assert (is_lost(error), is_outcome_unknown(error)) == (lost, unknown)
    refusal = unavailable(error, commit_sent=True)
    assert refusal is not None
    assert (OUTCOME_UNKNOWN in refusal.message) is unknown


@pytest.mark.parametrize("fault", [SqliteFault(sqlite3.SQLITE_MISUSE), PostgresFault("42601")])
def test_defect_of_ours_is_not_blamed_on_the_database(fault: Exception) -> None:
    assert unavailability(wrapped(ProgrammingError, fault)) is None


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (SqliteFault(sqlite3.SQLITE_CONSTRAINT_UNIQUE), Constraint.UNIQUE),
        (SqliteFault(sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY), Constraint.PRIMARY_KEY),
        (SqliteFault(sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY), Constraint.FOREIGN_KEY),
        (SqliteFault(sqlite3.SQLITE_CONSTRAINT_CHECK), Constraint.CHECK),
        (SqliteFault(sqlite3.SQLITE_CONSTRAINT_NOTNULL), None),
        (PostgresFault("23505", "uq_vms_project_id_name"), Constraint.UNIQUE),
        (PostgresFault("23505", "ix_operations_one_active"), Constraint.UNIQUE),
        (PostgresFault("23505", "pk_vms"), Constraint.PRIMARY_KEY),
        (PostgresFault("23503", "fk_vms_node_id"), Constraint.FOREIGN_KEY),
        (PostgresFault("23514", "ck_nodes_version_positive"), Constraint.CHECK),
        (PostgresFault("23502"), None),
    ],
)
def test_broken_constraint_is_told_by_code_or_name(fault: Exception, expected: Constraint | None) -> None:
    assert broken_constraint(IntegrityError("", {}, fault)) is expected


def test_every_constraint_has_a_name_that_tells_its_kind() -> None:
    for table in metadata.tables.values():
        for constraint in table.constraints:
            assert str(constraint.name).partition("_")[0] in {kind.value for kind in Constraint}


@pytest.mark.parametrize("make_dialect", [SQLiteDialect, PGDialect])
def test_schema_is_understood_by_both_databases(make_dialect: type[Dialect]) -> None:
    dialect = make_dialect()
    for table in metadata.sorted_tables:
        assert str(CreateTable(table).compile(dialect=dialect))
        for index in table.indexes:
            assert str(CreateIndex(index).compile(dialect=dialect))
            assert len(str(index.name)) < 63, "PostgreSQL cuts longer names"
