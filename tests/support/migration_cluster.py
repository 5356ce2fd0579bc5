"""Two nodes and a VM on the first of them, for tests that move it."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

from controlplane.domain.migration import Migration, MigrationWish
from controlplane.domain.node import Capacity, Node
from controlplane.domain.operation import Operation, OperationState
from controlplane.domain.vm import PowerState, Vm
from controlplane.operations.desk import Caller
from limiquantix.compute.v1.node_pb2 import NodeSpec, StorageDomain
from limiquantix.node.v1 import node_daemon_pb2 as node_v1
from tests.support.builders import make_id, make_node
from tests.support.control_plane_world import World
from tests.support.fake_daemons import FakeDaemon

SHARED = make_id()
SIZE = Capacity(1, 128 * 2**20)
NOTHING = Capacity(0, 0)
HERE, THERE = node_v1.MIGRATION_ROLE_SOURCE, node_v1.MIGRATION_ROLE_TARGET


class Cluster:
    """Two nodes, a VM that runs on the first, and both hosts."""

    def __init__(self, world: World, source: Node, target: Node, vm: Vm) -> None:
        self.world, self.source, self.target, self.vm = world, source, target, vm
        self.wish = MigrationWish(target_node_id=target.id)

    @property
    def here(self) -> FakeDaemon:
        return self.world.daemons.of(self.source.id)

    @property
    def there(self) -> FakeDaemon:
        return self.world.daemons.of(self.target.id)

    async def begin(self, **wish: Any) -> Operation:
        wanted = dataclasses.replace(self.wish, **wish)
        return await self.world.migrations.start(self.vm.id, wanted, Caller(principal="ann"))

    async def ended(self, operation: Operation) -> Operation:
        async with asyncio.timeout(60):
            return await self.world.desk.ended(operation.id)

    async def migrate(self, **wish: Any) -> Operation:
        return await self.ended(await self.begin(**wish))

    async def stored(self) -> Vm:
        vm = await self.world.stored(self.vm.id)
        assert vm is not None
        return vm

    async def left(self) -> Migration | None:
        return await self.world.store.read(lambda tx: tx.get_migration(self.vm.id))

    async def claims(self) -> tuple[Capacity, Capacity]:
        return await self.world.allocated(self.source.id), await self.world.allocated(self.target.id)

    async def assert_at_source(self, operation: Operation, state: int = PowerState.RUNNING) -> None:
        vm = await self.stored()
        assert (vm.node_id, vm.power_state) == (self.source.id, state), operation.fault
        assert await self.claims() == (SIZE, NOTHING)
        assert self.vm.id in self.here.vms
        assert self.vm.id not in self.there.vms
        assert await self.left() is None

    async def assert_at_target(self, operation: Operation, state: int = PowerState.RUNNING) -> None:
        vm = await self.stored()
        assert operation.state == OperationState.SUCCEEDED, operation.fault
        assert (vm.node_id, vm.power_state, vm.sightings) == (self.target.id, state, {})
        assert await self.claims() == (NOTHING, SIZE)
        assert self.vm.id not in self.here.vms
        assert self.vm.id in self.there.vms
        assert await self.left() is None


def node_spec(*, storage: str = SHARED, migrates: bool = True, **fields: Any) -> NodeSpec:
    spec = make_node().spec
    spec.supports_live_migration = migrates
    spec.storage_domains.append(StorageDomain(id=storage, path="/var/lib/limiquantix/images"))
    spec.MergeFrom(NodeSpec(**fields))
    return spec


async def cluster_of(world: World, *, target: NodeSpec | None = None, start: bool = True, **vm: Any) -> Cluster:
    source = await world.add_node(spec=node_spec())
    created = await world.create(start=start, **vm)
    other = await world.add_node(spec=target or node_spec())
    return Cluster(world, source, other, created)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        for pause_s in itertools.repeat(0.01):
            if holds():
                return
            await asyncio.sleep(pause_s)


def assert_fault(operation: Operation, reason: str, *words: str) -> None:
    assert operation.fault is not None
    assert operation.fault.reason == reason, operation.fault
    for word in words:
        assert word in operation.fault.message
