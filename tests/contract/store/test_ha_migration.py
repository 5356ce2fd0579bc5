"""Store contract: tables of high availability come to a database in use, and go again without a trace."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import Connection, Table, insert, inspect, select

from controlplane.domain.fencing import HaSettings, Leadership
from controlplane.state.factory import migrate, migration_engine
from controlplane.state.records import new_node_values, new_vm_values
from controlplane.state.schema import nodes, vms
from controlplane.state.seals import NO_SEALS
from tests.support.builders import make_node, make_vm
from tests.support.databases import EMPTY_DATABASES, MakeDatabase, alembic_config
from tests.support.fences import opened
from tests.support.stores import node_in, open_store, vm_in

BEFORE = "0010"
NEW_TABLES = {"leadership", "ha_settings", "fences", "node_guards"}
NEW_COLUMNS = {nodes: "fence_token", vms: "is_protected"}
LATER_COLUMNS = {"disk_gib"}


@pytest.fixture(params=list(EMPTY_DATABASES.values()), ids=list(EMPTY_DATABASES))
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without tables, of one kind."""
    make: MakeDatabase = request.param
    return make(tmp_path)


def insert_as_before(connection: Connection, table: Table, values: dict[str, object]) -> None:
    """Insert a row that has none of the new columns."""
    unknown = {NEW_COLUMNS[table], *LATER_COLUMNS}
    known = {name: value for name, value in values.items() if name not in unknown}
    connection.execute(insert(table).inline(), known)


async def test_database_in_use_becomes_armed_without_a_leader_and_goes_back(empty_url: str) -> None:
    node = make_node()
    vm = make_vm(node_id=node.id)
    engine = migration_engine(empty_url)
    with engine.begin() as connection:
        command.upgrade(alembic_config(connection), BEFORE)
        insert_as_before(connection, nodes, new_node_values(node))
        insert_as_before(connection, vms, new_vm_values(vm, NO_SEALS))

    migrate(empty_url)
    async with open_store(empty_url) as store:
        assert await node_in(store, node.id) == node
        assert await vm_in(store, vm.id) == vm
        assert await store.read(lambda tx: tx.leadership()) == Leadership(0, "")
        assert await store.read(lambda tx: tx.ha_settings()) == HaSettings()
        await opened(store, node.id)

    with engine.begin() as connection:
        command.downgrade(alembic_config(connection), BEFORE)
        assert not NEW_TABLES & set(inspect(connection).get_table_names())
        for table, column in NEW_COLUMNS.items():
            assert column not in {each["name"] for each in inspect(connection).get_columns(table.name)}
        assert connection.execute(select(vms.c.id, vms.c.node_id)).all() == [(vm.id, node.id)]
    migrate(empty_url)
    async with open_store(empty_url) as store:
        assert (await node_in(store, node.id)).fence_token == 0
        assert (await store.read(lambda tx: tx.marks())).tokens == {}
    engine.dispose()
