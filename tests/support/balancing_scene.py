"""A cluster for tests of balancing: records in a store, and migrations that happen when the test says so."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from controlplane.domain.migration import MigrationWish
from controlplane.domain.node import Capacity, Heartbeat, Node, NodeUsage
from controlplane.domain.operation import Fault, Operation, OperationState
from controlplane.domain.vm import PowerState, Vm
from controlplane.drs.snapshot import BalanceConfig
from controlplane.operations.desk import Caller
from controlplane.services.alert_watch import AlertWatch, Thresholds
from controlplane.services.alerts import AlertService
from controlplane.services.balancer import Balancer
from controlplane.services.balancing import BalancingConfig, BalancingService
from controlplane.services.balancing_costs import MoveMeter
from controlplane.services.balancing_loads import LoadConfig, LoadReader
from controlplane.services.balancing_moves import BalancingMoves
from controlplane.state.interface import Store, Transaction
from limiquantix.errors import ApiError
from limiquantix.node.v1.node_daemon_pb2 import ResourceUsage
from tests.support.builders import GIB, make_node, make_vm
from tests.support.control_plane_world import FakeClock
from tests.support.stores import add, node_in, place

PLANNER = BalanceConfig(node_cool_down_s=0.0)


@dataclass
class FakeMigrations:
    """Orders of migrations, written as operations that end when they are told to."""

    store: Store
    clock: FakeClock
    refusal: ApiError | None = None
    orders: list[tuple[str, MigrationWish, Caller]] = field(default_factory=list)

    async def start(self, vm_id: str, wish: MigrationWish, caller: Caller) -> Operation:
        """Record one, unless the request did so before."""
        if self.refusal is not None:
            raise self.refusal
        known = await self.store.read(lambda tx: tx.operation_of_request(caller.principal, caller.request_id))
        if known is not None:
            return known
        self.orders.append((vm_id, wish, caller))
        operation = Operation(
            id=str(uuid.uuid4()),
            kind="vm.migrate",
            resource_type="vm",
            resource_id=vm_id,
            project_id="",
            principal=caller.principal,
            created_at=self.clock(),
            steps=(),
            request_id=caller.request_id,
            request_digest=caller.request_digest,
            state=OperationState.RUNNING,
            owner_id="me",
            attempt_count=1,
            parameters={"target": wish.target_node_id},
        )
        await self.store.run(lambda tx: tx.insert_operation(operation))
        return operation

    async def finish(self, vm_id: str, failure: ApiError | None = None) -> None:
        """End the VM's migration: it is on its target then, or where it was."""

        async def end(tx: Transaction) -> None:
            (operation,) = await tx.queue_of(vm_id)
            vm = await tx.get_vm(vm_id)
            assert vm is not None
            if failure is None:
                target = operation.parameters["target"]
                size = Capacity(vm.vcpu_count, vm.memory_bytes)
                await tx.release(vm.node_id, size)
                assert await tx.claim(target, size)
                await tx.update_vm(replace(vm, node_id=target))
            state = OperationState.SUCCEEDED if failure is None else OperationState.FAILED
            fault = None if failure is None else Fault.of(failure)
            await tx.advance_operation(replace(operation, state=state, fault=fault, ended_at=self.clock()))

        await self.store.run(end)

    async def ended(self, operation_id: str, limit_s: float | None = None) -> Operation:
        """End it at once, and return it."""
        operation = await self.store.read(lambda tx: tx.get_operation(operation_id))
        assert operation is not None
        if not operation.has_ended:
            await self.finish(operation.resource_id)
        found = await self.store.read(lambda tx: tx.get_operation(operation_id))
        assert found is not None
        return found


@dataclass
class FakeUsage:
    """Use of VMs as the test says; of others nothing is measured."""

    of: dict[str, ResourceUsage] = field(default_factory=dict)

    async def of_vms(self, nodes: Sequence[Node]) -> Mapping[str, ResourceUsage]:
        """Give all of it."""
        return self.of


class Scene:
    """Nodes, VMs and the parts that balance them."""

    def __init__(self, store: Store, **config: Any) -> None:
        self.store = store
        self.clock = FakeClock()
        self.migrations = FakeMigrations(store, self.clock)
        self.usage = FakeUsage()
        self.configure(**config)

    def configure(self, **config: Any) -> None:
        """Make the parts anew, as a process does that starts."""
        store, clock = self.store, self.clock
        meter: MoveMeter | None = config.pop("meter", None)
        settings = BalancingConfig(**{"planner": PLANNER, **config})
        planner = settings.planner
        loads = LoadReader(store, self.usage, LoadConfig(planner.hold_s, planner.node_cool_down_s), meter)
        self.service = BalancingService(store, loads, settings, clock)
        self.moves = BalancingMoves(store, self.service, self.migrations, self.migrations, clock)
        self.alerts = AlertService(store, clock)
        self.watch = AlertWatch(store, self.alerts, Thresholds())
        self.balancer = Balancer(store, self.service, self.moves, self.watch, self.alerts, clock)

    async def add_node(self, hostname: str, **fields: Any) -> Node:
        """Add a node that can migrate and has told that it is idle."""
        node = make_node(hostname=hostname, **fields)
        node.spec.supports_live_migration = True
        await add(self.store, node)
        await self.measure(node, 0.0, 0.0)
        return node

    async def add_vm(self, node: Node, name: str, *, cores: int = 2, memory_mib: int = 4096, **fields: Any) -> Vm:
        """Add a running VM without disks."""
        state = {"power_state": PowerState.RUNNING, **fields}
        vm = make_vm(cores=cores, memory_mib=memory_mib, node_id=node.id, name=name, **state)
        assert await place(self.store, vm)
        return vm

    async def measure(self, node: Node, cpu_percent: float, memory_percent: float) -> None:
        """Have a node send its load."""
        total = node.spec.memory.total_bytes
        usage = NodeUsage(cpu_percent, int(total * memory_percent / 100), total)
        await self.store.run(lambda tx: tx.record_heartbeats([Heartbeat(node.id, self.clock(), usage)]))

    async def where(self, vm: Vm) -> str:
        """Host name of the VM's node."""
        found = await self.store.read(lambda tx: tx.get_vm(vm.id))
        assert found is not None
        return (await node_in(self.store, found.node_id)).hostname

    async def busy_and_idle(self, vm_count: int = 6) -> tuple[Node, Node, list[Vm]]:
        """Make a busy and an idle node."""
        busy, idle = (
            await self.add_node("busy", memory_bytes=64 * GIB),
            await self.add_node("idle", memory_bytes=64 * GIB),
        )
        vms = [await self.add_vm(busy, f"vm-{number}", memory_mib=8192) for number in range(vm_count)]
        await self.measure(busy, 70.0, 60.0)
        await self.measure(idle, 2.0, 5.0)
        return busy, idle, vms

    def later(self, seconds: float) -> datetime:
        """Let time pass."""
        self.clock.advance(seconds)
        return self.clock()
