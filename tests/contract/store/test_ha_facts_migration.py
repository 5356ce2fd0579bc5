"""Store contract: who asked for fences, and in which boot their hosts were, of a database in use."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import insert, inspect, select, text

from controlplane.domain.fencing import FenceFilter, NodeGuard
from controlplane.state.factory import migrate, migration_engine
from controlplane.state.records import new_node_values
from controlplane.state.schema import node_guards, nodes
from tests.support.builders import START_OF_TIME, make_node
from tests.support.databases import EMPTY_DATABASES, MakeDatabase, alembic_config
from tests.support.stores import open_store

BEFORE = "0011"
_FENCE = text(
    "INSERT INTO fences (id, node_id, token, epoch, state, reason, opened_at, heard_by, method, evidence, witness,"
    " proof_epoch, version, current_node_id) VALUES (:id, :node_id, :token, 1, :state, :reason, 0, '', 0, '', '', 0, 1,"
    " :current)"
)


@pytest.fixture(params=list(EMPTY_DATABASES.values()), ids=list(EMPTY_DATABASES))
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without tables, of one kind."""
    make: MakeDatabase = request.param
    return make(tmp_path)


async def test_fences_of_a_database_in_use_get_what_can_be_told_and_go_back(empty_url: str) -> None:
    asked, silent = make_node(), make_node()
    guard = NodeGuard(asked.id, 1, can_self_fence=True, obstacle="", boot_id="boot-1", noted_at=START_OF_TIME)
    engine = migration_engine(empty_url)
    with engine.begin() as connection:
        command.upgrade(alembic_config(connection), BEFORE)
        for node in (asked, silent):
            connection.execute(insert(nodes), [new_node_values(node)])
        connection.execute(
            insert(node_guards),
            [{name: getattr(guard, name) for name in NodeGuard.__slots__}],
        )
        for token, node, state, reason in (
            (1, asked, 4, "silent for 7 s"),
            (2, asked, 1, "operator:eve: its disk clicks"),
            (3, silent, 1, "silent for 7 s"),
        ):
            current = node.id if state == 1 else None
            values = {"id": str(token), "node_id": node.id, "token": token, "state": state, "reason": reason}
            connection.execute(_FENCE, values | {"current": current})

    migrate(empty_url)
    async with open_store(empty_url) as store:
        page = await store.read(lambda tx: tx.list_fences(FenceFilter(), None, 10))
    in_order = sorted(page.items, key=lambda fence: fence.token)
    assert [(each.asked_by, each.boot_id) for each in in_order] == [
        ("", ""),
        ("an operator", "boot-1"),
        ("", ""),
    ]

    with engine.begin() as connection:
        command.downgrade(alembic_config(connection), BEFORE)
        assert not {"asked_by", "boot_id"} & {each["name"] for each in inspect(connection).get_columns("fences")}
        assert len(connection.execute(select(nodes.c.id)).all()) == 2
        assert connection.execute(text("SELECT count(*) FROM fences")).scalar_one() == 3
    migrate(empty_url)
    engine.dispose()
