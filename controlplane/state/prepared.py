"""Statements of the busiest paths: compiled once by SQLAlchemy, and from then on given to the driver as they are.

Of reading one row by its key, SQLite needs a tenth of what SQLAlchemy's execution around it takes. Here are left: the
conversion of values, which the tables' types say, and the translation of errors, which stays SQLAlchemy's own.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from sqlalchemy import Connection, Delete, Insert, Select, Update
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeEngine

StoredRow = Any
"""One row, a value an attribute: SQLAlchemy's, or the like of it made here."""

_Convert = Callable[[Any], Any] | None


class Prepared:
    """A statement that is executed often, always with values of the same names.

    Args:
        statement: what varies in it is `bindparam`s without `expanding`, and the columns that it inserts or sets.
    """

    def __init__(self, statement: Select[Any] | Insert | Update | Delete) -> None:
        self._statement = statement
        self._compiled: dict[str, _Compiled] = {}

    def all(self, connection: Connection, values: Mapping[str, Any]) -> list[StoredRow]:
        """Execute it and return every row."""
        compiled, found = self._fetched(connection, values)
        return compiled.rows(found)

    def tuples(self, connection: Connection, values: Mapping[str, Any]) -> Sequence[tuple[Any, ...]]:
        """Execute it and return every row as the driver made it: of ten thousand, naming the columns is half the cost.

        Raises:
            TypeError: a column is of a type that has to be converted.
        """
        compiled, found = self._fetched(connection, values)
        if compiled.conversions:
            raise TypeError(f"rows of this statement have to be converted: {compiled.text}")
        return found

    def _fetched(self, connection: Connection, values: Mapping[str, Any]) -> tuple[_Compiled, Sequence[Any]]:
        compiled = self._for(connection.dialect, values)
        cursor = _execute(connection, compiled, values)
        try:
            found = cursor.fetchall()
        except Exception as error:  # noqa: BLE001 - translated
            _translate(error, connection, compiled.text, cursor)
        if compiled.conversions is None:
            compiled.learn(cursor.description, connection.dialect)
        cursor.close()
        return compiled, found

    def first(self, connection: Connection, values: Mapping[str, Any]) -> StoredRow | None:
        """Execute it and return the first row; None if there is none."""
        rows = self.all(connection, values)
        return rows[0] if rows else None

    def change(self, connection: Connection, values: Mapping[str, Any]) -> int:
        """Execute it and return how many rows it changed.

        Raises:
            IntegrityError: a constraint refuses it.
        """
        cursor = _execute(connection, self._for(connection.dialect, values), values)
        count: int = cursor.rowcount
        cursor.close()
        return count

    def _for(self, dialect: Dialect, values: Mapping[str, Any]) -> _Compiled:
        # Two threads may compile the same at once, which does no harm.
        compiled = self._compiled.get(dialect.name)
        if compiled is None:
            compiled = self._compiled[dialect.name] = _compile(self._statement, dialect, values)
        return compiled


@dataclass(slots=True)
class _Compiled:
    """A statement for one kind of database."""

    text: str
    is_positional: bool
    binds: tuple[tuple[str, _Convert], ...]
    """Name and conversion of each value, in the order of the text."""
    constants: Mapping[str, Any]
    columns: tuple[TypeEngine[Any], ...]
    make_row: Callable[[Any], Any]
    conversions: tuple[tuple[int, Callable[[Any], Any]], ...] | None = None
    """Of the columns that have one, by their place; known once there was a result, since drivers differ in types."""

    def parameters(self, values: Mapping[str, Any]) -> Any:
        """What the driver gets."""
        if self.constants:
            values = {**self.constants, **values}
        if self.is_positional:
            return [values[name] if convert is None else convert(values[name]) for name, convert in self.binds]
        return {name: values[name] if convert is None else convert(values[name]) for name, convert in self.binds}

    def learn(self, description: Sequence[Any], dialect: Dialect) -> None:
        """Choose the conversions, from how the driver describes the columns of the first result."""
        makers = (
            (place, kind.dialect_impl(dialect).result_processor(dialect, description[place][1]))
            for place, kind in enumerate(self.columns)
        )
        self.conversions = tuple((place, convert) for place, convert in makers if convert is not None)

    def rows(self, found: Sequence[Any]) -> list[StoredRow]:
        """Make rows of what the driver gave."""
        if not self.conversions:
            return [self.make_row(each) for each in found]
        rows = []
        for each in found:
            values = list(each)
            for place, convert in self.conversions:
                values[place] = convert(values[place])
            rows.append(self.make_row(values))
        return rows


def _compile(
    statement: Select[Any] | Insert | Update | Delete, dialect: Dialect, values: Mapping[str, Any]
) -> _Compiled:
    writes = isinstance(statement, Insert | Update)
    compiled: Any = statement.compile(dialect=dialect, column_keys=list(values) if writes else None)
    if compiled.post_compile_params or compiled.literal_execute_params:
        raise ValueError("a statement whose text depends on its values cannot be prepared")
    kinds = {name: bind.type for bind, name in compiled.bind_names.items()}
    names = compiled.positiontup if compiled.positional else list(kinds)
    columns = list(statement.exported_columns)
    row: Any = namedtuple("Row", [column.name for column in columns])  # type: ignore[misc]
    return _Compiled(
        text=str(compiled),
        is_positional=compiled.positional,
        binds=tuple((name, kinds[name].dialect_impl(dialect).bind_processor(dialect)) for name in names),
        constants={name: compiled.params[name] for name in names if name not in values},
        columns=tuple(column.type for column in columns),
        make_row=row._make,
    )


def _execute(connection: Connection, compiled: _Compiled, values: Mapping[str, Any]) -> Any:
    cursor = connection.connection.cursor()
    try:
        cursor.execute(compiled.text, compiled.parameters(values))
    except Exception as error:  # noqa: BLE001 - translated
        cursor.close()
        _translate(error, connection, compiled.text, cursor)
    return cursor


def execute_text(connection: Connection, text: str) -> None:
    """Execute a statement without values or rows; errors are translated like all others."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(text)
    except Exception as error:  # noqa: BLE001 - translated
        _translate(error, connection, text, cursor)
    finally:
        cursor.close()


def _translate(error: Exception, connection: Connection, text: str, cursor: Any) -> NoReturn:
    """Raise what SQLAlchemy would have raised, and have it drop a connection that has come to its end.

    Its own method, though it is not meant for others: it knows which errors end a connection, and what that means for
    the others in its pool. The contract suite kills servers under both kinds of statements.
    """
    connection._handle_dbapi_exception(error, text, None, cursor, None)
