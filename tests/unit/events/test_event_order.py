"""The order that entries get and the cut that compaction makes, when clocks are wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection, update

from controlplane.domain.event import VM, Change, Event, EventType, LoggedEvent, LogPosition
from controlplane.state import event_rows
from controlplane.state.factory import migration_engine
from controlplane.state.schema import events
from tests.support.builders import START_OF_TIME
from tests.support.databases import fresh_sqlite

NOW = START_OF_TIME
AGO = timedelta(days=10)


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Connection]:
    """An open transaction on a fresh database."""
    engine = migration_engine(fresh_sqlite(tmp_path))
    with engine.begin() as opened:
        yield opened
    engine.dispose()


def append(
    connection: Connection,
    resource_id: str,
    version: int,
    *,
    at: datetime = NOW,
    change: Change = Change.MODIFIED,
    position: int = 0,
) -> None:
    event = Event(EventType.VM_UPDATED)
    entry = LoggedEvent("", 0, at, VM, resource_id, version, "p", "n", change, event, b"document")
    event_rows.append(connection, entry, position)


def order(connection: Connection) -> list[tuple[str, int]]:
    event_rows.sequence(connection)
    log = event_rows.after(connection, 0, 100)
    assert [entry.revision for entry in log] == list(range(1, len(log) + 1))
    return [(entry.resource_id, entry.resource_version) for entry in log]


def seconds(number: int) -> datetime:
    return NOW + timedelta(seconds=number)


def test_entries_are_ordered_by_time_and_then_by_place_in_their_transaction(connection: Connection) -> None:
    append(connection, "c", 1, at=seconds(2))
    append(connection, "b", 1, at=seconds(1), position=1)
    append(connection, "a", 1, at=seconds(1), position=0)
    assert order(connection) == [("a", 1), ("b", 1), ("c", 1)]


def test_entries_of_one_resource_keep_the_order_of_versions_whatever_clocks_say(connection: Connection) -> None:
    append(connection, "vm", 2, at=seconds(9))
    append(connection, "vm", 3, at=seconds(1))
    append(connection, "vm", 1, at=seconds(5), change=Change.ADDED)
    append(connection, "other", 7, at=seconds(6))
    assert order(connection) == [("vm", 1), ("vm", 2), ("other", 7), ("vm", 3)]


def test_resource_that_was_removed_and_made_again_keeps_the_order_of_time(connection: Connection) -> None:
    append(connection, "vm", 8, at=seconds(1))
    append(connection, "vm", 9, at=seconds(2), change=Change.DELETED)
    append(connection, "vm", 9, at=seconds(3), change=Change.NONE)
    append(connection, "vm", 1, at=seconds(4), change=Change.ADDED)
    append(connection, "vm", 2, at=seconds(5))
    assert order(connection) == [("vm", 8), ("vm", 9), ("vm", 9), ("vm", 1), ("vm", 2)]


def test_numbering_of_very_many_entries_stops_and_goes_on_in_order(connection: Connection) -> None:
    for number in range(5_100):
        append(connection, str(number % 3), number + 1, at=NOW + timedelta(microseconds=number))
    assert event_rows.sequence(connection) == LogPosition(5_000, 0)
    assert len(event_rows.unnumbered_ids(connection)) == 100
    assert event_rows.sequence(connection) == LogPosition(5_100, 0)
    log = event_rows.after(connection, 0, 10_000)
    assert [entry.resource_version for entry in log] == list(range(1, 5_101))


def test_entry_of_a_type_that_a_newer_version_wrote_is_read_as_a_change(connection: Connection) -> None:
    append(connection, "vm", 1)
    connection.execute(update(events).values(type="vm.levitated"))
    event_rows.sequence(connection)
    assert [entry.event.type for entry in event_rows.after(connection, 0, 10)] == [EventType.VM_UPDATED]


def test_looking_for_entries_without_a_revision_uses_an_index(connection: Connection) -> None:
    statement = str(events.select().where(events.c.revision.is_(None)).compile(connection))
    plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}").all()
    assert "USING INDEX" in plan[0][3]


@pytest.mark.parametrize(
    ("ages_in_days", "cut_count"),
    [
        ([20] * 20 + [1] * 5, 20),
        ([1] * 25, 0),
        ([1] * 20 + [9_000] + [1] * 4, 0),  # one process thought that it was 2001
        ([20] * 15 + [-9_000] + [20] * 5 + [1] * 4, 21),  # and one that it was 2050
        ([-9_000] + [20] * 20 + [1] * 4, 21),
        ([20] * 10 + [1, 20, 1, 20] + [1] * 10, 12),
        ([20] * 25, 24),  # the newest stays
    ],
)
def test_compaction_cuts_where_the_log_is_young_whatever_one_clock_says(
    connection: Connection, ages_in_days: Sequence[int], cut_count: int
) -> None:
    for number, age in enumerate(ages_in_days):
        append(connection, str(number), 1, at=NOW - timedelta(days=age))
        event_rows.sequence(connection)
    assert event_rows.compact(connection, NOW - AGO, 1_000) == cut_count
    log = event_rows.after(connection, 0, 100)
    assert [entry.revision for entry in log] == list(range(cut_count + 1, len(ages_in_days) + 1))
    assert event_rows.position(connection) == LogPosition(len(ages_in_days), cut_count)
