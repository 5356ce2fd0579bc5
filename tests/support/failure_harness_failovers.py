"""One failover from a host that is proven dead, with one fault, until the host is back and everything has recovered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from controlplane.domain.event import Event, EventType
from controlplane.domain.fencing import Fence
from controlplane.domain.node import Phase
from controlplane.operations.catalogue import WORKFLOWS
from controlplane.operations.desk import Caller, Order
from controlplane.operations.steps import Workflows
from controlplane.operations.vm_failover import FailoverVm
from controlplane.operations.vm_relocate import RelocateVm
from controlplane.operations.vm_start_elsewhere import StartElsewhere
from controlplane.reconcile.keeper import Keeper
from controlplane.scheduler.plan import SchedulerConfig
from controlplane.services.ha_effects import HA
from controlplane.services.placement import NodeMemory
from controlplane.services.targets import failover_chooser
from controlplane.state.interface import Transaction
from limiquantix.compute.v1.ha_service_pb2 import FENCE_METHOD_LEASE_EXPIRED, FenceMethod
from limiquantix.compute.v1.vm_pb2 import VmSpec
from tests.support.builders import START_OF_TIME
from tests.support.control_plane_world import create_request
from tests.support.failover_scene import LEADER, protected_spec
from tests.support.failure_harness_migration_hosts import SOURCE
from tests.support.failure_harness_migrations import MigrationCase, MigrationScene
from tests.support.failure_harness_plane import Plane
from tests.support.failure_harness_scene import REQUEST_ID
from tests.support.fake_daemons import STOPPED
from tests.support.fences import ended, opened, proven, written

DIGEST = "the same each time"
_LOOKS_OF_KEEPER = 3
_BACK_OFF_S = 600.0
"""Longer than between any two restarts in a row."""


class FailoverScene(MigrationScene):
    """A VM whose host died: it is away until all else is over, and then back with what its disk has."""

    moved_by = EventType.VM_FAILED_OVER
    fence: Fence
    epoch: int

    def workflows(self, plane: Callable[[], Plane]) -> Workflows:
        """See `MigrationScene`, as all below."""
        choose = failover_chooser(SchedulerConfig(), NodeMemory())
        return WORKFLOWS.with_(FailoverVm(choose), RelocateVm(choose), StartElsewhere(choose))

    async def _build(self) -> None:
        await self.begin(protected_spec())
        await self.lose_source()

    async def demand(self, plane: Plane) -> None:
        """Order it as the leader does."""
        await self.order(plane, self.failover(), HA.with_request(REQUEST_ID, DIGEST))

    async def _recover(self) -> None:
        await self._quiet()
        await self.host_is_back()
        await super()._recover()
        for _ in range(_LOOKS_OF_KEEPER):
            self.clock.advance(_BACK_OFF_S)
            await Keeper(self.calm_store, self.plane.desk, self.clock).look()
            await super()._recover()

    async def host_is_back(self) -> None:
        """Have the source be heard again, when the operation is over."""
        await self.end_fence()

    # -- what worlds are made of

    async def begin(self, spec: VmSpec) -> None:
        """Let there be a leader, a VM that runs at the source, and then the target."""
        store = self.calm_store
        self.epoch = (await store.run(lambda tx: tx.take_leadership(LEADER, "leader.example", START_OF_TIME))).epoch
        await store.run(lambda tx: tx.insert_node(self.source_node))
        await self.plane.start()
        request = create_request("subject", start=True)
        request.spec.CopyFrom(spec)
        self.vm_id = (await self.plane.vms.create(request)).id
        await store.run(lambda tx: tx.insert_node(self.target_node))

    async def lose_source(self, method: FenceMethod.ValueType = FENCE_METHOD_LEASE_EXPIRED) -> None:
        """Have the source die, and that be proven."""
        self.source.set_state(self.vm_id, STOPPED)
        self.hosts.leave(SOURCE)
        fence = await opened(self.calm_store, self.source_node.id, epoch=self.epoch)
        await self._mark(Phase.NOT_READY)
        self.fence = await written(self.calm_store, proven(fence, method))

    async def end_fence(self) -> None:
        """Have the source be no longer fenced."""
        await written(self.calm_store, ended(self.fence))
        await self._mark(Phase.READY)

    def failover(self) -> Order:
        """Make the order that high availability gives."""
        parameters = {
            "fence_id": self.fence.id,
            "epoch": self.epoch,
            "from_node_id": self.source_node.id,
            "target_node_id": self.target_node.id,
        }
        return Order(FailoverVm.kind, self.vm_id, parameters=parameters, preempts=True)

    @staticmethod
    async def order(plane: Plane, order: Order, caller: Caller) -> None:
        """Give an order, and wait for its end.

        Raises:
            ApiError: it failed with that.
        """
        submitted = await plane.desk.submit(order, caller)
        operation = await plane.desk.ended(submitted.id, 60)
        if operation.fault is not None:
            raise operation.fault.error()

    async def _mark(self, phase: Phase.ValueType) -> None:
        async def write(tx: Transaction) -> None:
            node = await tx.get_node(self.source_node.id)
            assert node is not None
            await tx.update_node(replace(node, phase=phase), Event(EventType.NODE_UPDATED))

        await self.calm_store.run(write)


FAILOVER = MigrationCase("failover", scene=FailoverScene)
