"""A node that is drained, with migrations that a test holds and refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from controlplane.domain.node import Node
from controlplane.domain.operation import Operation, OperationFilter
from controlplane.domain.vm import Vm
from controlplane.operations.desk import ANYBODY, Caller
from controlplane.operations.node_drain import DrainNode
from controlplane.scheduler.plan import SchedulerConfig
from controlplane.state.factory import create_store
from limiquantix.compute.v1 import node_service_pb2 as api
from limiquantix.errors import FailedPrecondition, Reason
from tests.support.control_plane_world import World
from tests.support.databases import fresh_sqlite
from tests.support.simple_moves import SimpleMigrateVm, Traffic
from tests.support.stores import PATIENT

AT_ONCE = Caller(waits=False)


class DrainWorld(World):
    """A world whose migrations a test holds and refuses."""

    traffic: Traffic
    source: Node


def immovable(name: str) -> FailedPrecondition:
    """Make the refusal to move a VM that no time changes."""
    return FailedPrecondition(Reason.HOST_LACKS, f"VM {name} has a passed-through device")


@asynccontextmanager
async def drain_world(directory: Path, scheduler: SchedulerConfig | None = None) -> AsyncIterator[DrainWorld]:
    """Make a world with one node, to which others may come."""
    store = create_store(fresh_sqlite(directory), PATIENT)
    await store.open()
    traffic = Traffic()
    workflows = (SimpleMigrateVm(traffic),)
    world = DrainWorld(store, other_workflows=workflows, scheduler=scheduler or SchedulerConfig())
    world.traffic = traffic
    await world.worker.register()
    world.source = await world.add_node(hostname="source")
    yield world
    await world.worker.abandon()
    await store.close()


async def other_node(world: World, **fields: object) -> Node:
    """Add a node."""
    return await world.add_node(**fields)  # type: ignore[arg-type]


async def with_vms(world: DrainWorld, *names: str, start: bool = True) -> dict[str, Vm]:
    """Create VMs while there is only the source, then add a second node."""
    vms = {name: await world.create(name, start=start) for name in names}
    await other_node(world, hostname="target")
    return vms


def drain(world: DrainWorld, caller: Caller = ANYBODY, **fields: object) -> Awaitable[api.DrainNodeResponse]:
    """Drain the source."""
    return world.life.drain(api.DrainNodeRequest(id=world.source.id, **fields), caller)  # type: ignore[arg-type]


async def operation_of(world: World, kind: str = DrainNode.kind) -> Operation:
    """Read the newest operation of a kind."""
    page = await world.desk.list(OperationFilter(kinds=frozenset({kind})), None, 10)
    return page.items[0]


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Look until a condition holds."""
    async with asyncio.timeout(60):
        while not await condition():  # noqa: ASYNC110 - other processes write what is waited for
            await asyncio.sleep(0.01)


async def until_shown(world: World, text: str) -> Operation:
    """Wait until the drain shows a text as what it waits for."""

    async def is_shown() -> bool:
        page = await world.desk.list(OperationFilter(kinds=frozenset({DrainNode.kind})), None, 10)
        return any(text in operation.waiting_for for operation in page.items)

    await until(is_shown)
    return await operation_of(world)
