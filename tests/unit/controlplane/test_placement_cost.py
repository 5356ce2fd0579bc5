"""What a placement costs the database, counted in statements."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, event

from limiquantix.errors import ResourceExhausted
from tests.support.builders import make_node, make_vm
from tests.support.control_plane_world import World, create_request


@contextmanager
def counted_statements() -> Iterator[list[str]]:
    """Collect every statement that any engine of this process runs."""
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        statements.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", note)


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
    with counted_statements() as small:
        await world.vms.create(create_request("small", labels={"b": "2"}))

    await grow(world, 200, 2)
    with counted_statements() as large:
        await world.vms.create(create_request("large", labels={"b": "2"}))

    assert len(large) == len(small)
    assert len(small) < 30


async def test_fault_05_statements_of_a_refused_create_do_not_grow_either(world: World) -> None:
    await grow(world, 100, 1)

    with counted_statements() as statements, pytest.raises(ResourceExhausted, match="100 nodes"):
        await world.create("large", cores=999)

    assert 0 < len(statements) < 10
