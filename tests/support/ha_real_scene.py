"""A real cluster with a VM on each host, and what has to be so after each harm that is done to it.

`LIMIQUANTIX_HA=defaults` chooses the times that the product has when nobody chose any; else they are quick ones.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from controlplane.ha_settings import HighAvailabilitySettings
from hypervisor.processes import is_alive
from limiquantix.compute.v1 import ha_service_pb2 as ha_api
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.operation_pb2 import Operation
from limiquantix.compute.v1.vm_pb2 import VirtualMachine, VmStatus
from tests.support.ha_cluster import QUICK, HaCluster
from tests.support.ha_parts import CALL_S, HaHost, until
from tests.support.ha_witness import Run

MODE = os.environ.get("LIMIQUANTIX_HA", "")
SETTINGS = HighAvailabilitySettings() if MODE == "defaults" else QUICK
TIMES = SETTINGS.times
STOPPED_S = 60.0 if MODE == "defaults" else 20.0
"""For how long a daemon is stopped: longer than it takes to start its VMs elsewhere."""
OUTAGE_S = TIMES.lease_s + 2
"""Longer than any lease that was granted before."""


@dataclass
class Scene:
    """A cluster with a VM on each host."""

    cluster: HaCluster
    vms: list[VirtualMachine]

    async def victim(self) -> HaHost:
        """The host that the first VM is on now."""
        return await self.cluster.host_of(self.vms[0])

    def runs(self) -> dict[str, Run]:
        """The process of each VM that lives now."""
        return {run.vm_id: run for run in list(self.cluster.witness.runs) if not run.is_over}

    async def fail(
        self,
        scenario: str,
        victim: HaHost,
        fault: Callable[[], Awaitable[None]],
        before: dict[str, Run] | None = None,
        method: ha_api.FenceMethod.ValueType = ha_api.FENCE_METHOD_LEASE_EXPIRED,
        most_attempts: int = 1,
    ) -> ha_api.Fence:
        """Do harm to a host; its VMs must end there, then be proven dead, then run elsewhere, and all others go on.

        Args:
            before: what ran before the harm, where that was done already.
            method: of the proof.
            most_attempts: how often processes may have taken up the operation that starts a VM elsewhere.
        """
        cluster, witness = self.cluster, self.cluster.witness
        before = before or self.runs()
        token = max((fence.token for fence in await cluster.fences()), default=0)
        fault_s = time.monotonic()
        await fault()
        moved = [vm for vm in self.vms if before[vm.id].host == victim.name]
        assert moved
        ends = await asyncio.gather(*(cluster.until_running_off(vm, victim.name) for vm in moved))
        wall_s = time.time() - time.monotonic()

        (fence,) = [fence for fence in await cluster.fences() if fence.token > token]
        fence = await cluster.plane.ha.GetFence(ha_api.GetFenceRequest(id=fence.id), timeout=CALL_S)
        assert (fence.hostname, fence.proof.method) == (victim.name, method)
        assert fence.state == ha_api.Fence.PROVEN
        assert fence.proof.evidence
        assert fence.proof.witness
        assert set(fence.restarted_vm_ids) == {vm.id for vm in moved}
        proven_s = fence.proof.proven_at.ToNanoseconds() / 1e9 - wall_s
        for vm, (there, running_s) in zip(moved, ends, strict=True):
            dead_s = witness.last_seen_s(vm.id, victim.name)
            assert dead_s < proven_s < running_s
            _report(scenario, vm, victim, there, [at_s - fault_s for at_s in (dead_s, proven_s, running_s)])
            await self._check_record(vm, fence, most_attempts)
        for vm in self.vms:
            if vm not in moved:
                assert is_alive(before[vm.id].process), f"{vm.name} was ended"
        witness.check()
        return fence

    async def _check_record(self, vm: VirtualMachine, fence: ha_api.Fence, most_attempts: int) -> None:
        """Check that one operation did it, and that the event says why it was allowed."""
        operation = (await self.cluster.failovers(vm))[0]
        assert operation.state == Operation.SUCCEEDED, operation
        assert operation.attempt_count <= most_attempts, operation
        request = api.ListVMEventsRequest(vm_id=vm.id, type="vm.failed_over")
        event = (await self.cluster.plane.vms.ListVMEvents(request, timeout=CALL_S)).events[0]
        assert event.metadata["fence_id"] == fence.id, event

    async def return_of(self, victim: HaHost, fence: ha_api.Fence) -> None:
        """Wait until a host is of use again, with nothing of what ran there, and disks are as they were."""
        await self.cluster.until_well(victim.name)
        ended = await self.cluster.plane.ha.GetFence(ha_api.GetFenceRequest(id=fence.id), timeout=CALL_S)
        assert ended.state == ha_api.Fence.ENDED

        async def is_tidy() -> bool | None:
            return True if not set(fence.restarted_vm_ids) & await victim.defined_vm_ids() else None

        await until(is_tidy, "leftovers being removed")
        for vm_id in fence.restarted_vm_ids:
            (there,) = self.cluster.witness.alive_on(vm_id)
            assert there != victim.name
            assert (self.cluster.storage / vm_id).is_dir()
            await self.cluster.witness.counts_on(vm_id, there)
        self.cluster.witness.check()

    async def until_all_run(self) -> None:
        """Wait until each VM runs, on one host, and counts there."""
        for vm in self.vms:

            async def look(vm: VirtualMachine = vm) -> str | None:
                state = (await self.cluster.get(vm)).status.state
                places = self.cluster.witness.alive_on(vm.id)
                return places[0] if state == VmStatus.RUNNING and len(places) == 1 else None

            await self.cluster.witness.counts_on(vm.id, await until(look, f"{vm.name} running"))
        self.cluster.witness.check()

    async def unharmed(self, before: dict[str, Run], fence_count: int) -> None:
        """Check that every VM is the process that it was, counts on, and that nothing was fenced."""
        for vm_id, run in before.items():
            assert is_alive(run.process), f"{vm_id} was ended on {run.host}"
            await self.cluster.witness.counts_on(vm_id, run.host)
        assert len(await self.cluster.fences()) == fence_count
        self.cluster.witness.check()


def _report(scenario: str, vm: VirtualMachine, victim: HaHost, there: HaHost, after_s: Sequence[float]) -> None:
    dead_s, proven_s, running_s = after_s
    print(
        f"{scenario}: {vm.name} dead on {victim.name} {dead_s:.1f} s after the fault, proven after {proven_s:.1f} s, "
        f"running on {there.name} after {running_s:.1f} s",
        flush=True,
    )
