"""A control plane that stood still gives a command of long ago to a host that was proven to run nothing since.

The VM runs elsewhere by then. The host ends none by itself, so that its power is what proves it dead.
`LIMIQUANTIX_HA=all` (`make test-ha`) runs it, on real guests.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from limiquantix.compute.v1 import ha_service_pb2 as ha_api
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.vm_pb2 import VirtualMachine, VmStatus
from limiquantix.errors import Reason
from nodedaemon.self_fencing.memory import FILE_NAME
from tests.support import plane_that_stops
from tests.support.ha_cluster import HaCluster, ha_cluster
from tests.support.ha_parts import CALL_S, HaHost, Plane, until
from tests.support.ha_real_scene import MODE, SETTINGS, Scene
from tests.support.power_fronts import RedfishFront

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(not MODE, reason="LIMIQUANTIX_HA=all runs it"),
]

OPERATION_LEASE_S: Final = 15.0
"""Until then the other control plane leaves the start alone: what it has started is newer than what comes late."""


@dataclass
class Late:
    """A cluster in which one control plane stands still, with the start of a VM in its hands."""

    cluster: HaCluster
    vm: VirtualMachine
    victim: HaHost
    sleeper: Plane
    awake: Plane
    answers: Path

    async def until_moved(self, method: ha_api.FenceMethod.ValueType) -> tuple[HaHost, ha_api.Fence]:
        """Wait until the VM runs elsewhere, upon a proof of that kind; returns where, and the fence."""

        async def look() -> HaHost | None:
            found = await self.awake.vms.GetVM(api.GetVMRequest(id=self.vm.id), timeout=CALL_S)
            there = self.cluster.hosts[self.cluster.hostname(found.status.node_id)]
            return there if there is not self.victim and found.status.state == VmStatus.RUNNING else None

        there = await until(look, "the VM running elsewhere")
        await self.cluster.witness.counts_on(self.vm.id, there.name)
        (fence, *_) = (await self.awake.ha.ListFences(ha_api.ListFencesRequest(), timeout=CALL_S)).fences
        assert (fence.hostname, fence.proof.method) == (self.victim.name, method)
        return there, fence

    async def answers_while_untold(self) -> list[str]:
        """Have the one that stood still go on; returns all that the host answers, which is told nothing at first."""
        self.sleeper.send_signal(signal.SIGCONT)

        async def refused() -> list[str] | None:
            said = self._said()
            return said if set(said) - {Reason.NODE_UNREACHABLE} else None

        await until(refused, "an answer to the late command")
        assert plane_that_stops.STARTED not in self._said()
        assert Reason.STALE_FENCE_TOKEN not in self._said()
        self.victim.hear(may=True)

        async def settled() -> list[str] | None:
            said = self._said()
            return said if said[-1] not in plane_that_stops.NOT_NOW else None

        return await until(settled, "the end of the late command")

    def _said(self) -> list[str]:
        return self.answers.read_text().split() if self.answers.exists() else []

    async def nothing_runs_twice(self, there: HaHost, fence: ha_api.Fence) -> None:
        """Wait until the host is of use again; the VM stays where it is."""
        await Scene(self.cluster, [self.vm]).return_of(self.victim, fence)
        assert self.cluster.witness.alive_on(self.vm.id) == [there.name]


@pytest.fixture
async def late(tmp_path: Path) -> AsyncIterator[Late]:
    """Have a guest crash, a control plane stop right before it has it started again."""
    stops_before, answers = tmp_path / "stops-before", tmp_path / "answers"
    told = {plane_that_stops.STOPS_BEFORE: str(stops_before), plane_that_stops.ANSWERS: str(answers)}
    async with ha_cluster(
        tmp_path,
        SETTINGS,
        power=RedfishFront,
        operation_lease_s=OPERATION_LEASE_S,
        program=plane_that_stops.__name__,
        environment=told,
        left_alone=["host-a"],
    ) as cluster:
        victim = cluster.hosts["host-a"]
        vm = await cluster.create("late", victim.name)
        stops_before.write_text(vm.id)
        (run,) = [run for run in cluster.witness.runs if run.vm_id == vm.id]
        os.kill(run.process.pid, signal.SIGKILL)

        async def stopped() -> Plane | None:
            return next((plane for plane in cluster.planes if plane.is_stopped), None)

        sleeper = await until(stopped, "a control plane that stands still")
        (awake,) = [plane for plane in cluster.planes if plane is not sleeper]
        yield Late(cluster, vm, victim, sleeper, awake, answers)


async def test_start_of_before_a_fence_does_nothing_on_the_host_that_is_just_on_again(late: Late) -> None:
    """It knows neither of leases nor of fences: its file was damaged, and moved away as it says then."""
    victim = late.victim
    victim.host.unplug()  # before the other control plane carries on
    there, fence = await late.until_moved(ha_api.FENCE_METHOD_POWER_OFF)
    await victim.let_go()
    (victim.data_dir / FILE_NAME).unlink()
    victim.hear(may=False)
    victim.host.plug()
    await victim.boot()

    said = await late.answers_while_untold()
    assert (Reason.NOT_INFORMED_YET in said, said[-1]) == (True, Reason.STALE_FENCE_TOKEN)
    await late.nothing_runs_twice(there, fence)


async def test_start_of_before_does_nothing_on_a_host_that_ended_all_vms_and_did_not_go(late: Late) -> None:
    victim = late.victim
    await victim.end_daemon("poweroff")
    there, fence = await late.until_moved(ha_api.FENCE_METHOD_HOST_REPORTED)
    victim.hear(may=False)
    await victim.start_daemon()

    said = await late.answers_while_untold()
    assert (Reason.STOPPING in said, said[-1]) == (True, Reason.STALE_FENCE_TOKEN)
    await late.nothing_runs_twice(there, fence)
