"""A VM on a node that is proven dead later, another node that may take it, and the order to start it there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from controlplane.domain.event import Event, EventFilter, EventType
from controlplane.domain.fencing import Fence
from controlplane.domain.node import Node, Phase
from controlplane.domain.operation import Operation
from controlplane.domain.vm import PowerState, Vm
from controlplane.operations.desk import Order
from controlplane.operations.vm_failover import FailoverVm
from controlplane.scheduler.plan import SchedulerConfig
from controlplane.services.ha_effects import HA
from controlplane.services.placement import NodeMemory
from controlplane.services.targets import failover_chooser
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1.ha_service_pb2 import FENCE_METHOD_LEASE_EXPIRED, FenceMethod
from limiquantix.compute.v1.node_pb2 import NodeSpec
from limiquantix.compute.v1.vm_pb2 import CpuConfig, HaPolicy, MemoryConfig, VmSpec
from tests.support.builders import START_OF_TIME
from tests.support.control_plane_world import World
from tests.support.fake_daemons import STOPPED, FakeDaemon, unreachable
from tests.support.fences import ended, opened, proven, written
from tests.support.migration_cluster import node_spec

LEADER = "leader-1"


def protected_spec(**policy: Any) -> VmSpec:
    """Make the spec of a VM that is restarted elsewhere."""
    ha_policy = HaPolicy(**{"auto_restart": True, **policy})
    return VmSpec(cpu=CpuConfig(cores=1), memory=MemoryConfig(size_mib=128), ha_policy=ha_policy)


def world_with_failover(store: Store) -> World:
    """Make a world whose scheduler is asked again before a VM is started elsewhere, as the program does."""
    return World(store, other_workflows=(FailoverVm(failover_chooser(SchedulerConfig(), NodeMemory())),))


@dataclass
class FailoverScene:
    """What is there before the failure, and what the leader does."""

    world: World
    home: Node
    other: Node
    vm: Vm
    epoch: int
    asked_count: int = 0

    @property
    def dead(self) -> FakeDaemon:
        """The host that dies."""
        return self.world.daemons.of(self.home.id)

    @property
    def there(self) -> FakeDaemon:
        """The host that lives."""
        return self.world.daemons.of(self.other.id)

    async def stored(self) -> Vm:
        """Read the VM."""
        vm = await self.world.stored(self.vm.id)
        assert vm is not None
        return vm

    async def change(self, **fields: Any) -> Vm:
        """Change the VM's record."""

        async def write(tx: Transaction) -> Vm:
            vm = await tx.get_vm(self.vm.id)
            assert vm is not None
            return await tx.update_vm(replace(vm, **fields), Event(EventType.VM_UPDATED))

        return await self.world.store.run(write)

    async def die(self, method: FenceMethod.ValueType = FENCE_METHOD_LEASE_EXPIRED, *, is_proven: bool = True) -> Fence:
        """Let the host fall silent, and have it fenced."""
        self.dead.fail("*", unreachable())
        fence = await opened(self.world.store, self.home.id, epoch=self.epoch)
        await self._mark(self.home.id, Phase.NOT_READY)
        return await written(self.world.store, proven(fence, method)) if is_proven else fence

    async def come_back(self, fence: Fence, *, has_vm: bool = True) -> None:
        """Let the host live again with what its disk has, everything off, and its fence end."""
        self.dead.heal()
        if has_vm:
            self.dead.set_state(self.vm.id, STOPPED)
        await written(self.world.store, ended(fence))
        await self._mark(self.home.id, Phase.READY)

    async def _mark(self, node_id: str, phase: Phase.ValueType) -> None:
        async def write(tx: Transaction) -> None:
            node = await tx.get_node(node_id)
            assert node is not None
            await tx.update_node(replace(node, phase=phase), Event(EventType.NODE_UPDATED))

        await self.world.store.run(write)

    async def ask(self, fence_id: str, **parameters: Any) -> Operation:
        """Order the failover, as the leader does; returns it as it is then."""
        self.asked_count += 1
        asked = {
            "fence_id": fence_id,
            "epoch": self.epoch,
            "from_node_id": self.home.id,
            "target_node_id": self.other.id,
            **parameters,
        }
        order = Order(FailoverVm.kind, self.vm.id, parameters=asked, preempts=True)
        request_id = f"failover-{self.vm.id}-{self.asked_count}"
        return await self.world.desk.submit(order, HA.with_request(request_id, request_id))

    async def fail_over(self, fence_id: str, **parameters: Any) -> Operation:
        """Order it, and wait until it has ended."""
        operation = await self.ask(fence_id, **parameters)
        return await self.world.desk.ended(operation.id, 60)

    async def events(self, kind: EventType) -> list[Event]:
        """Read the events of a kind, newest first."""
        entries = await self.world.store.read(lambda tx: tx.newest_events(EventFilter(), 100))
        return [entry.event for entry in entries if entry.event.type == kind]

    async def assert_untouched(self, *, claimed: int = 0) -> None:
        """Check that the VM and both claims are as before; `claimed` vCPUs of the target are others'."""
        vm = await self.stored()
        assert (vm.node_id, vm.power_state, vm.is_protected) == (self.home.id, PowerState.RUNNING, self.vm.is_protected)
        assert (await self.world.allocated(self.home.id)).vcpus == 1
        assert (await self.world.allocated(self.other.id)).vcpus == claimed
        assert self.vm.id not in self.there.vms


async def failover_scene(world: World, spec: VmSpec | None = None, other: NodeSpec | None = None) -> FailoverScene:
    """Set it up: two nodes that share storage, a VM that runs on the first, and a leader."""
    leader = await world.store.run(lambda tx: tx.take_leadership(LEADER, "leader.example", START_OF_TIME))
    home = await world.add_node(spec=node_spec())
    vm = await world.create(start=True, spec=spec or protected_spec())
    target = await world.add_node(spec=other or node_spec())
    return FailoverScene(world, home, target, vm, leader.epoch)
