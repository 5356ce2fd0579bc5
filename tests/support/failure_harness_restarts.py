"""What else starts a VM on another host than it was on, or ends such a start, each with one fault.

It is as with failovers: whatever fails, in the end the VM is on one host and runs there, if it shall.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from controlplane.domain.operation import OperationState
from controlplane.domain.vm import PowerState, require_managed
from controlplane.operations.desk import Caller, Order
from controlplane.operations.vm_failover import FinishFailover, require_restartable
from controlplane.operations.vm_release import ReleaseVm
from controlplane.operations.vm_relocate import RelocateVm
from controlplane.reconcile.repairs import RECONCILER
from limiquantix.compute.v1.ha_service_pb2 import FENCE_METHOD_OPERATOR
from limiquantix.compute.v1.vm_pb2 import CpuConfig, HaPolicy, MemoryConfig, VmSpec
from limiquantix.compute.v1.vm_service_pb2 import StopVMRequest
from limiquantix.errors import ApiError
from tests.support.failover_scene import protected_spec
from tests.support.failure_harness_failovers import DIGEST, FAILOVER, FailoverScene
from tests.support.failure_harness_migration_checks import MigrationEnd
from tests.support.failure_harness_migrations import MigrationCase, MigrationScene
from tests.support.failure_harness_plane import Plane
from tests.support.failure_harness_scene import REQUEST_ID
from tests.support.fake_daemons import STOPPED, unreachable

_AGAIN = Caller(principal="somebody who tries again")
_RELOCATION = 4
"""Number of the restart in a row that is on another node, by the policy that says nothing of it."""


class LetGoScene(FailoverScene):
    """One in which the first host, which lives, has to forget the VM before the operation succeeds."""

    async def host_is_back(self) -> None:
        """It is there all the time; before anything is mended, see that it did forget, unless the VM was deleted."""
        operation, vm = await self.operation(), await self.calm_store.read(lambda tx: tx.get_vm(self.vm_id))
        has_succeeded = operation is not None and operation.state == OperationState.SUCCEEDED
        if has_succeeded and vm is not None and self.vm_id in self.source.vms:
            self.hosts.findings.append(f"{self.case.name} succeeded, and the first host still has the VM")


class FinishScene(FailoverScene):
    """A VM that was moved from its dead host and not defined at the new one, which did not answer then."""

    async def _build(self) -> None:
        await super()._build()
        self.target.fail("adopt_vm", unreachable())
        with suppress(ApiError):
            await self.order(self.plane, self.failover(), Caller())
        self.target.heal()

    async def demand(self, plane: Plane) -> None:
        """Order it as the keeper does; see `MigrationScene`, as all below."""
        order = Order(FinishFailover.kind, self.vm_id, parameters={"restart_count": 1}, check=require_restartable)
        await self.order(plane, order, RECONCILER.with_request(REQUEST_ID, DIGEST))


class ReleaseScene(LetGoScene):
    """A VM that was started elsewhere, and its first host, which is back with its definition."""

    async def _build(self) -> None:
        await super()._build()
        await self.order(self.plane, self.failover(), Caller())
        await self.end_fence()
        self.hosts.come_back(with_all=True)

    async def demand(self, plane: Plane) -> None:
        """Order it as is done when the host reports the VM."""
        parameters = {"node_id": self.source_node.id}
        order = Order(ReleaseVm.kind, self.vm_id, parameters=parameters, check=require_managed)
        await self.order(plane, order, RECONCILER.with_request(REQUEST_ID, DIGEST))

    async def _report_changes(self) -> None:
        """Only once something went wrong: what the host reports is what has the VM released."""
        if self.weather.has_struck:
            await super()._report_changes()


class RelocateScene(LetGoScene):
    """A VM that shall run, and did not start as often as its policy has it where it is."""

    async def _build(self) -> None:
        await self.begin(protected_spec(condition=HaPolicy.ALWAYS))
        self.source.set_state(self.vm_id, STOPPED)
        await self._report(self.source_node.id)

    async def demand(self, plane: Plane) -> None:
        """Order it as the keeper does."""
        parameters = {"restart_count": _RELOCATION}
        order = Order(RelocateVm.kind, self.vm_id, parameters=parameters, check=require_restartable)
        await self.order(plane, order, RECONCILER.with_request(REQUEST_ID, DIGEST))

    async def _end(self) -> MigrationEnd:
        return replace(await super()._end(), may_move_back=True)


class StartElsewhereScene(FailoverScene):
    """A VM that was off when its host died, and that somebody starts, again if that fails."""

    async def _build(self) -> None:
        await self.begin(VmSpec(cpu=CpuConfig(cores=1), memory=MemoryConfig(size_mib=128)))
        await self.plane.vms.stop(StopVMRequest(id=self.vm_id, force=True))
        await self.lose_source(FENCE_METHOD_OPERATOR)

    async def demand(self, plane: Plane) -> None:
        """Start it."""
        await plane.vms.start(self.vm_id, Caller().with_request(REQUEST_ID, DIGEST))

    async def _recover(self) -> None:
        await super()._recover()
        operation, vm = await self.operation(), await self.calm_store.read(lambda tx: tx.get_vm(self.vm_id))
        has_failed = operation is None or operation.state != OperationState.SUCCEEDED
        if has_failed and vm is not None and vm.power_state != PowerState.RUNNING:
            await self.plane.vms.start(self.vm_id, _AGAIN)
            await MigrationScene._recover(self)


CASES = (
    FAILOVER,
    MigrationCase("finish failover", scene=FinishScene),
    MigrationCase("release", scene=ReleaseScene),
    MigrationCase("relocate", scene=RelocateScene),
    MigrationCase("start elsewhere", scene=StartElsewhereScene),
)
