"""What a database's error means for us, told by codes of its driver and never by its text.

SQLite's driver gives an extended result code, PostgreSQL's a SQLSTATE and the constraint's name. Both are read from
attributes, so this module imports no driver.
"""

from __future__ import annotations

import enum
import sqlite3
from collections.abc import Mapping

from sqlalchemy.exc import DatabaseError, DBAPIError, IntegrityError, InterfaceError, OperationalError

_CONFLICT_SQLSTATES = frozenset({"40001", "40P01"})
"""serialization_failure and deadlock_detected: repeat the transaction (PostgreSQL manual, appendix A)."""

_PRIMARY_CODE_MASK = 0xFF
"""SQLite's extended codes keep the primary one in the low byte (https://www.sqlite.org/rescode.html)."""

_SQLITE_DETAILS: Mapping[int, str] = {
    sqlite3.SQLITE_BUSY: "another writer holds it for too long",
    sqlite3.SQLITE_LOCKED: "another writer holds it for too long",
    sqlite3.SQLITE_FULL: "the disk it is on is full",
    sqlite3.SQLITE_IOERR: "its disk reports an error",
    sqlite3.SQLITE_CANTOPEN: "its file cannot be opened",
    sqlite3.SQLITE_READONLY: "its file cannot be written",
    sqlite3.SQLITE_CORRUPT: "its file is damaged; restore it from a backup",
    sqlite3.SQLITE_NOTADB: "its file is not a SQLite database",
}


class Constraint(enum.Enum):
    """Kind of constraint that refused a row."""

    UNIQUE = "uq"
    PRIMARY_KEY = "pk"
    FOREIGN_KEY = "fk"
    CHECK = "ck"


_SQLITE_CONSTRAINTS: Mapping[int, Constraint] = {
    sqlite3.SQLITE_CONSTRAINT_UNIQUE: Constraint.UNIQUE,
    sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY: Constraint.PRIMARY_KEY,
    sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY: Constraint.FOREIGN_KEY,
    sqlite3.SQLITE_CONSTRAINT_CHECK: Constraint.CHECK,
}


def broken_constraint(error: IntegrityError) -> Constraint | None:
    """Tell which kind of constraint refused a row; None if it was another rule (NOT NULL).

    A kind is enough: each table has one unique constraint beside its key.
    """
    code = _sqlite_code(error)
    if code is not None:
        return _SQLITE_CONSTRAINTS.get(code)
    name = getattr(getattr(error.orig, "diag", None), "constraint_name", None) or ""
    prefix = name.partition("_")[0]
    return next((kind for kind in Constraint if kind.value == prefix), None)


def is_conflict(error: DBAPIError) -> bool:
    """Tell whether the same transaction, begun anew, may succeed: nothing of this one was kept."""
    code = _sqlite_code(error)
    if code is not None:
        return code & _PRIMARY_CODE_MASK in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
    return getattr(error.orig, "sqlstate", None) in _CONFLICT_SQLSTATES


def unavailability(error: DBAPIError) -> str | None:
    """Say why the database cannot serve now, in words without paths and SQL; None if the fault is our statement's."""
    code = _sqlite_code(error)
    if code is not None:
        known = _SQLITE_DETAILS.get(code & _PRIMARY_CODE_MASK)
        if known is not None or isinstance(error, OperationalError):
            return known or f"SQLite error {code}"
        return None
    if is_conflict(error):
        return "it could not order this change among others; repeat the call"
    # Exactly DatabaseError: its subclasses ProgrammingError, DataError and so on are defects of ours.
    if (
        error.connection_invalidated
        or isinstance(error, OperationalError | InterfaceError)
        or type(error) is DatabaseError
    ):
        sqlstate = getattr(error.orig, "sqlstate", None)
        return f"SQLSTATE {sqlstate}" if sqlstate else "the connection to it was lost"
    return None


def _sqlite_code(error: DBAPIError) -> int | None:
    code = getattr(error.orig, "sqlite_errorcode", None)
    return code if isinstance(code, int) else None
