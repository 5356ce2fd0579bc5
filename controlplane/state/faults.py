"""What a database's error means for us, told by codes of its driver and not by its text.

SQLite's driver gives an extended result code, PostgreSQL's a SQLSTATE and the constraint's name. Both are read from
attributes, so this module imports no driver. One exception: of a connection that PostgreSQL refused, libpq gives the
text only, so there words are chosen by it, and nothing but words.
"""

from __future__ import annotations

import enum
import re
import sqlite3
from collections.abc import Mapping

from sqlalchemy.exc import DatabaseError, DBAPIError, IntegrityError, InterfaceError, OperationalError

from controlplane.domain import errors
from limiquantix.errors import Unavailable

_CONFLICT_SQLSTATES = frozenset({"40001", "40P01", "55P03"})
"""serialization_failure, deadlock_detected, lock_not_available (PostgreSQL manual, appendix A): begin anew."""

_READ_ONLY_SQLSTATE = "25006"
"""What a server that has become a standby answers to writing: the primary is reached with a new connection."""

OUTCOME_UNKNOWN = "whether the change was stored is unknown"
"""For the one case in which a caller must look before it repeats."""

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

_POSTGRESQL_DETAILS: Mapping[str, str] = {
    "08": "the connection to it was lost",
    "25006": "it cannot be written; it is a standby or set to be read only",
    "25P03": "a transaction stood still for too long, and it ended the connection",
    "28": "it refuses the role or password of database.url",
    "3D000": "it has no database of the name in database.url",
    "3F000": "it has no schema for the tables; check the role's search_path",
    "40001": "it could not order this change among others; repeat the call",
    "40003": "it does not know how a change ended",
    "40P01": "it could not order this change among others; repeat the call",
    "42501": "the role of database.url may not do this; it must own the database",
    "53": "it ran out of resources",
    "53100": "the disk it is on is full",
    "53200": "it is out of memory",
    "53300": "it has too many connections; raise its max_connections or lower database.pool_size",
    "54": "a limit of it was reached",
    "55P03": "another writer holds what is needed for too long",
    "57014": "a statement took too long and was cancelled",
    "57P01": "it is shutting down",
    "57P02": "it is restarting after a crash",
    "57P03": "it is starting or recovering",
    "57P04": "the database was dropped",
    "58": "its disk reports an error",
    "F0": "its configuration is wrong",
    "XX": "it has an internal error; look into its log",
    "XX001": "its data is damaged; restore it from a backup",
    "XX002": "an index of it is damaged; look into its log",
}
"""By SQLSTATE, or by its class where the exact code does not matter (PostgreSQL manual, appendix A)."""

_REFUSED_CONNECTION_DETAILS: Mapping[str, str] = {
    r"role \".*\" does not exist": _POSTGRESQL_DETAILS["28"],
    r"database \".*\" does not exist": _POSTGRESQL_DETAILS["3D000"],
    "password authentication failed": _POSTGRESQL_DETAILS["28"],
    "authentication failed": _POSTGRESQL_DETAILS["28"],
    "no password supplied": _POSTGRESQL_DETAILS["28"],
    r"pg_hba\.conf": "it takes no connection of this role from here; see its pg_hba.conf",
    "is not permitted to log in": _POSTGRESQL_DETAILS["28"],
    "permission denied for database": _POSTGRESQL_DETAILS["42501"],
    "too many clients": _POSTGRESQL_DETAILS["53300"],
    "too many connections": _POSTGRESQL_DETAILS["53300"],
    "remaining connection slots": _POSTGRESQL_DETAILS["53300"],
    "is starting up": _POSTGRESQL_DETAILS["57P03"],
    "not yet accepting": _POSTGRESQL_DETAILS["57P03"],
    "recovery mode": _POSTGRESQL_DETAILS["57P03"],
    "is shutting down": _POSTGRESQL_DETAILS["57P01"],
    "not read-write|session is read-only|hot standby": "no server of database.url can be written",
    "could not translate host name": "the name of its host in database.url is not known",
    "timeout expired": "it does not take the connection in time",
    "certificate": "TLS with it failed; check the certificates of database.url",
    "does not support SSL": "it does not speak TLS, which database.url asks for",
    "Connection refused": "nothing listens at the address in database.url",
    "No such file or directory": "nothing listens at the socket in database.url",
    "closed the connection unexpectedly": _POSTGRESQL_DETAILS["08"],
}
"""By a pattern of the text, which is English unless the server's lc_messages says otherwise; then words are vague."""


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

_POSTGRESQL_CONSTRAINTS: Mapping[str, Constraint] = {
    "23503": Constraint.FOREIGN_KEY,
    "23505": Constraint.UNIQUE,
    "23514": Constraint.CHECK,
}


def broken_constraint(error: IntegrityError) -> Constraint | None:
    """Tell which kind of constraint refused a row; None if it was another rule (NOT NULL)."""
    code = _sqlite_code(error)
    if code is not None:
        return _SQLITE_CONSTRAINTS.get(code)
    kind = _POSTGRESQL_CONSTRAINTS.get(_sqlstate(error) or "")
    if kind is not Constraint.UNIQUE:
        return kind
    # One SQLSTATE for both; our names tell them apart.
    name = getattr(getattr(error.orig, "diag", None), "constraint_name", None) or ""
    return Constraint.PRIMARY_KEY if name.startswith(Constraint.PRIMARY_KEY.value) else Constraint.UNIQUE


def is_conflict(error: DBAPIError) -> bool:
    """Tell whether the same transaction, begun anew, may succeed: nothing of this one was kept."""
    code = _sqlite_code(error)
    if code is not None:
        return code & _PRIMARY_CODE_MASK in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
    return _sqlstate(error) in _CONFLICT_SQLSTATES


def is_lost(error: DBAPIError) -> bool:
    """Tell whether the connection came to its end, so that another one may serve."""
    return error.connection_invalidated or _sqlstate(error) == _READ_ONLY_SQLSTATE


def is_outcome_unknown(error: DBAPIError) -> bool:
    """Tell of an error that came when the commit was sent whether the database may have committed nevertheless."""
    return error.connection_invalidated or _sqlstate(error) in {"08007", "40003"}


def unavailability(error: DBAPIError) -> str | None:
    """Say why the database cannot serve now, in words without paths and SQL; None if the fault is our statement's."""
    code = _sqlite_code(error)
    if code is not None:
        known = _SQLITE_DETAILS.get(code & _PRIMARY_CODE_MASK)
        if known is not None or isinstance(error, OperationalError):
            return known or f"SQLite error {code}"
        return None
    sqlstate = _sqlstate(error) or ""
    known = _POSTGRESQL_DETAILS.get(sqlstate) or _POSTGRESQL_DETAILS.get(sqlstate[:2])
    if known is not None:
        return known
    # Exactly DatabaseError: its subclasses ProgrammingError, DataError and so on are defects of ours.
    if (
        error.connection_invalidated
        or isinstance(error, OperationalError | InterfaceError)
        or type(error) is DatabaseError
    ):
        return f"SQLSTATE {sqlstate}" if sqlstate else _refused_connection(error)
    return None


def unavailable(error: DBAPIError, *, commit_sent: bool) -> Unavailable | None:
    """Make the refusal that a database's error means for a caller; None if the fault is our statement's."""
    detail = unavailability(error)
    if detail is None:
        return None
    if commit_sent and is_outcome_unknown(error):
        return errors.state_unavailable(f"{detail}; {OUTCOME_UNKNOWN}")
    return errors.state_unavailable(detail)


def _refused_connection(error: DBAPIError) -> str:
    text = str(error.orig)
    known = (words for pattern, words in _REFUSED_CONNECTION_DETAILS.items() if re.search(pattern, text))
    return next(known, _POSTGRESQL_DETAILS["08"] if error.connection_invalidated else "it cannot be connected to")


def _sqlite_code(error: DBAPIError) -> int | None:
    code = getattr(error.orig, "sqlite_errorcode", None)
    return code if isinstance(code, int) else None


def _sqlstate(error: DBAPIError) -> str | None:
    sqlstate = getattr(error.orig, "sqlstate", None)
    return sqlstate if isinstance(sqlstate, str) else None
