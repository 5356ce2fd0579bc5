"""Statements that are compiled once do what SQLAlchemy's own execution does, errors included."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError, OperationalError, StatementError

from controlplane.state.factory import migration_engine
from controlplane.state.prepared import Prepared, execute_text
from controlplane.state.schema import departed_vms, events
from tests.support.databases import FRESH_DATABASES, MakeDatabase

AT = datetime(2025, 3, 4, 5, 6, 7, 89, tzinfo=UTC)
INSERT = insert(departed_vms)
BY_ID = select(departed_vms).where(departed_vms.c.vm_id == bindparam("wanted_id"))


@pytest.fixture(params=list(FRESH_DATABASES.values()), ids=list(FRESH_DATABASES))
def connection(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Connection]:
    """One in a transaction, on each kind of database."""
    make: MakeDatabase = request.param
    engine = migration_engine(make(tmp_path))
    with engine.connect() as opened, opened.begin():
        yield opened
    engine.dispose()


def departed(vm_id: str, **other: Any) -> dict[str, Any]:
    values = {"node_id": "n", "is_kept": True, "power_state": 3, "reason": "", "departed_at": AT}
    return {"vm_id": vm_id, **values, **other}


def test_row_has_the_values_that_were_written(connection: Connection) -> None:
    assert Prepared(INSERT).change(connection, departed("a")) == 1
    row = Prepared(BY_ID).first(connection, {"wanted_id": "a"})
    assert row is not None
    assert row._asdict() == departed("a")
    assert dict(connection.execute(BY_ID, {"wanted_id": "a"}).one()._mapping) == departed("a")


def test_documents_and_nulls_come_back_as_they_were(connection: Connection) -> None:
    texts = dict.fromkeys(
        ("id", "resource_type", "resource_id", "project_id", "node_id", "type", "message", "actor"), "x"
    )
    numbers = dict.fromkeys(("position", "resource_version", "change", "severity"), 1)
    written = {
        **dict.fromkeys(texts, "x"),
        **dict.fromkeys(numbers, 1),
        "revision": None,
        "recorded_at": AT,
        "metadata": {"a": "b"},
        "labels_before": None,
        "document": b"\0\xff",
    }
    Prepared(insert(events)).change(connection, written)
    (row,) = Prepared(select(events)).all(connection, {})
    assert {**row._asdict(), "document": bytes(row.document)} == written


def test_nothing_found_is_none_and_nothing_changed_is_zero(connection: Connection) -> None:
    change = Prepared(update(departed_vms).where(departed_vms.c.vm_id == bindparam("wanted_id")))
    assert Prepared(BY_ID).first(connection, {"wanted_id": "none"}) is None
    assert Prepared(BY_ID).all(connection, {"wanted_id": "none"}) == []
    assert change.change(connection, {"wanted_id": "none", "reason": "any"}) == 0


def test_constants_of_the_statement_need_no_value(connection: Connection) -> None:
    insert_one = Prepared(INSERT)
    for vm_id, state in (("a", 1), ("b", 2)):
        insert_one.change(connection, departed(vm_id, power_state=state))
    second = Prepared(select(departed_vms.c.vm_id).where(departed_vms.c.power_state == 2))
    assert [row.vm_id for row in second.all(connection, {})] == ["b"]
    change = Prepared(update(departed_vms).where(departed_vms.c.power_state == 2).values(reason="constant"))
    assert change.change(connection, {}) == 1


def test_returned_columns_are_rows(connection: Connection) -> None:
    Prepared(INSERT).change(connection, departed("a", power_state=1))
    raised = update(departed_vms).values(power_state=departed_vms.c.power_state + bindparam("more"))
    row = Prepared(raised.returning(departed_vms.c.power_state)).first(connection, {"more": 4})
    assert row is not None
    assert row.power_state == 5


def test_row_that_a_constraint_refuses_is_the_error_that_sqlalchemy_has_for_it(connection: Connection) -> None:
    insert_one = Prepared(INSERT)
    insert_one.change(connection, departed("a"))
    with pytest.raises(IntegrityError) as refusal:
        insert_one.change(connection, departed("a"))
    assert refusal.value.hide_parameters
    assert not refusal.value.connection_invalidated


def test_value_that_cannot_be_stored_is_told_and_reaches_no_database(connection: Connection) -> None:
    with pytest.raises(StatementError, match="no time zone"):
        Prepared(INSERT).change(connection, departed("a", departed_at=AT.replace(tzinfo=None)))
    assert Prepared(BY_ID).first(connection, {"wanted_id": "a"}) is None


def test_statement_whose_text_depends_on_its_values_is_refused(connection: Connection) -> None:
    some = Prepared(select(departed_vms).where(departed_vms.c.vm_id.in_(bindparam("ids", expanding=True))))
    with pytest.raises(ValueError, match="cannot be prepared"):
        some.all(connection, {"ids": ["a"]})


def test_text_that_the_database_refuses_is_an_error_of_sqlalchemy(connection: Connection) -> None:
    with pytest.raises((OperationalError, StatementError)):
        execute_text(connection, "ROLLBACK TO nowhere")
