"""What a placement costs the database, counted in statements."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event

from limiquantix.errors import ResourceExhausted
from tests.support.builders import make_node, make_vm
from tests.support.control_plane_world import World, create_request


@contextmanager
def counted_statements() -> Iterator[list[str]]:
    """Collect every statement of the transactions that are begun meanwhile, but for what begins and ends them."""
    statements: list[str] = []
    counting = True

    def note(statement: str) -> None:
        if counting and statement.split(maxsplit=1)[0] not in {"BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE"}:
            statements.append(statement)

    def trace(connection: Connection) -> None:
        driver_connection: Any = connection.connection.driver_connection
        driver_connection.set_trace_callback(note)

    event.listen(Engine, "begin", trace)
    try:
        yield statements
    finally:
        event.remove(Engine, "begin", trace)
        # The callbacks stay until their connections end: to remove one, sqlite3 would wait with the interpreter's
        # lock held for a statement under way in another thread, whose callback waits for that lock.
        counting = False


async def grow(world: World, node_count: int, vms_per_node: int) -> None:
    nodes = [make_node(vcpus=64, labels={"zone": "a"}) for _ in range(node_count)]

    async def insert(tx: Any) -> None:
        for node in nodes:
            await tx.insert_node(node)
            for _ in range(vms_per_node):
                await tx.insert_vm(make_vm(node_id=node.id, labels={"a": "1"}))

    await world.store.run(insert)


async def test_fault_05_statements_of_a_create_do_not_grow_with_nodes_and_vms(world: World) -> None:
    await grow(world, 1, 1)
    await world.create("warm-up")
    await world.settle()
    with counted_statements() as small:
        await world.vms.create(create_request("small", labels={"b": "2"}))
        await world.settle()

    await grow(world, 200, 2)
    await world.create("reads what is new")
    await world.settle()
    with counted_statements() as large:
        await world.vms.create(create_request("large", labels={"b": "2"}))
        await world.settle()

    assert len(large) == len(small)
    assert len(small) < 25


async def test_fault_05_statements_of_a_refused_create_do_not_grow_either(world: World) -> None:
    await grow(world, 100, 1)

    with counted_statements() as statements, pytest.raises(ResourceExhausted, match="100 nodes"):
        await world.create("large", cores=999)

    assert 0 < len(statements) < 10
