"""What all tables are made with: their registry, and the types of columns."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    MetaData,
    Text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

REVISION = "0017"
"""Alembic revision these tables belong to: the newest one in `migrations.versions`."""

PLACEMENT_TURN_COUNT = 16
"""Rows of `placement_turns`: placements that go on at once, so long as none needs the turn alone."""

MAX_STORED_INTEGER = 2**63 - 1
"""Both databases have signed 64-bit integers only."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    }
)
"""Every constraint has a name: migrations can drop it, and an error can be told from another without reading text."""


class UtcMicroseconds(TypeDecorator[datetime]):
    """An aware datetime as whole microseconds since 1970 in UTC: exact, ordered and the same in every database.

    Raises:
        ValueError: on writing a naive datetime, whose meaning would depend on the machine.
    """

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        """Turn a datetime into the stored number."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone; records hold aware datetimes only")
        return (value - _EPOCH) // _MICROSECOND

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        """Turn the stored number into a datetime in UTC."""
        return None if value is None else _EPOCH + timedelta(microseconds=value)


class JsonText(TypeDecorator[dict[str, Any]]):
    """A JSON object as text, so that it can be compared: PostgreSQL's json has no equality."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: dict[str, Any] | None, dialect: Dialect) -> str | None:
        """Write it; equal objects give equal texts."""
        return None if value is None else json.dumps(value, sort_keys=True)

    def process_result_value(self, value: str | None, dialect: Dialect) -> dict[str, Any] | None:
        """Read it."""
        return None if value is None else json.loads(value)


class SaturatedInteger(TypeDecorator[int]):
    """A number that hosts report as uint64; beyond the database's range the largest storable one is kept.

    Heartbeats are written many at a time: one host's absurd number must not lose those of all others.
    """

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> int | None:
        """Cap the number at what the database can hold."""
        return None if value is None else min(value, MAX_STORED_INTEGER)
