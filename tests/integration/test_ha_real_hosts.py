"""High availability on real guests: three hosts whose cables are cut and whose processes are killed or stopped.

Each scenario ends where it began: all hosts well, every VM running. All the time, a witness looks at all hosts at once,
and guests count on their disks and say each number: two copies of one would be seen alive, or say a number twice.

The first batch runs always; `LIMIQUANTIX_HA=all` (`make test-ha`) runs all, and `LIMIQUANTIX_HA=defaults` does so with
the times that the product has when nobody chose any.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from controlplane.ha_settings import HighAvailabilitySettings
from hypervisor.processes import is_alive
from limiquantix.compute.v1 import ha_service_pb2 as ha_api
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.operation_pb2 import Operation
from limiquantix.compute.v1.vm_pb2 import VirtualMachine
from nodedaemon.self_fencing.orders import read_report
from tests.support.ha_cluster import QUICK, HaCluster, ha_cluster
from tests.support.ha_parts import CALL_S, HaHost, until
from tests.support.ha_witness import Run

MODE = os.environ.get("LIMIQUANTIX_HA", "")
SETTINGS = HighAvailabilitySettings() if MODE == "defaults" else QUICK
TIMES = SETTINGS.times
STOPPED_S = 60.0 if MODE == "defaults" else 20.0
"""For how long a daemon is stopped: longer than it takes to start its VMs elsewhere."""
OUTAGE_S = TIMES.lease_s + 2
"""Longer than any lease that was granted before."""

pytestmark = pytest.mark.timeout(900)


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
    ) -> ha_api.Fence:
        """Do harm to a host; its VMs must end there, then be proven dead, then run elsewhere, and all others go on.

        Args:
            before: what ran before the harm, where that was done already.
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
        assert (fence.hostname, fence.proof.method) == (victim.name, ha_api.FENCE_METHOD_LEASE_EXPIRED)
        assert fence.state == ha_api.Fence.PROVEN
        assert fence.proof.evidence
        assert fence.proof.witness
        assert set(fence.restarted_vm_ids) == {vm.id for vm in moved}
        proven_s = fence.proof.proven_at.ToNanoseconds() / 1e9 - wall_s
        for vm, (there, running_s) in zip(moved, ends, strict=True):
            dead_s = witness.last_seen_s(vm.id, victim.name)
            assert dead_s < proven_s < running_s
            _report(scenario, vm, victim, there, [at_s - fault_s for at_s in (dead_s, proven_s, running_s)])
            await self._check_record(vm, fence, victim, there)
        for vm in self.vms:
            if vm not in moved:
                assert is_alive(before[vm.id].process), f"{vm.name} was ended"
        witness.check()
        return fence

    async def _check_record(self, vm: VirtualMachine, fence: ha_api.Fence, victim: HaHost, there: HaHost) -> None:
        """Check that one operation did it at the first attempt, and that the event says why it was allowed."""
        operation = (await self.cluster.failovers(vm))[0]
        assert (operation.state, operation.attempt_count) == (Operation.SUCCEEDED, 1), operation
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


async def host_is_killed(scene: Scene) -> None:
    victim = await scene.victim()
    fence = await scene.fail("host killed", victim, victim.die)
    await victim.boot()
    await scene.return_of(victim, fence)


async def host_is_cut_off(scene: Scene) -> None:
    victim = await scene.victim()

    async def cut() -> None:
        victim.host.unplug()

    fence = await scene.fail("cable cut", victim, cut)
    victim.host.plug()
    await scene.return_of(victim, fence)


async def daemon_is_stopped_and_continued(scene: Scene) -> None:
    victim, began_s = await scene.victim(), time.monotonic()

    async def stop() -> None:
        victim.signal_daemon(signal.SIGSTOP)

    try:
        fence = await scene.fail("daemon stopped", victim, stop)
        await asyncio.sleep(began_s + STOPPED_S - time.monotonic())
    finally:
        victim.signal_daemon(signal.SIGCONT)
    await scene.return_of(victim, fence)


async def leader_is_killed_while_a_host_dies(scene: Scene) -> None:
    victim, leader = await scene.victim(), await scene.cluster.leader()

    async def kill() -> None:
        leader.kill()
        await victim.die()

    fence = await scene.fail("leader and host killed", victim, kill)
    await leader.start()
    await victim.boot()
    await scene.return_of(victim, fence)


async def one_member_of_etcd_is_killed(scene: Scene) -> None:
    etcd, before, fences = scene.cluster.etcd, scene.runs(), await scene.cluster.fences()
    member = etcd.members[0]
    member.kill()
    await asyncio.sleep(OUTAGE_S)
    await scene.cluster.leader()
    await scene.unharmed(before, len(fences))
    etcd.start(member)
    await scene.cluster.until_well()


async def etcd_is_lost(scene: Scene) -> None:
    etcd, before, fences = scene.cluster.etcd, scene.runs(), await scene.cluster.fences()
    lost = etcd.members[: len(etcd.members) // 2 + 1]
    for member in lost:
        member.kill()

    async def says_so() -> bool | None:
        return True if (await scene.cluster.status()).obstacle else None

    await until(says_so, "the obstacle being told")
    await asyncio.sleep(OUTAGE_S)
    await scene.unharmed(before, len(fences))
    etcd.start(*lost)
    await scene.cluster.leader()
    await scene.cluster.until_well()
    await scene.unharmed(before, len(fences))


async def host_dies_while_etcd_is_lost(scene: Scene) -> None:
    etcd, victim, fences = scene.cluster.etcd, await scene.victim(), await scene.cluster.fences()
    for member in etcd.members:
        member.kill()
    before = scene.runs()
    await victim.die()
    await asyncio.sleep(TIMES.suspect_after_s + TIMES.proof_wait_s)
    others = {vm_id: run for vm_id, run in before.items() if run.host != victim.name}
    await scene.unharmed(others, len(fences))

    async def mend() -> None:
        etcd.start()

    fence = await scene.fail("etcd back after a host died", victim, mend, before)
    await victim.boot()
    await scene.return_of(victim, fence)


async def database_is_restarted(scene: Scene) -> None:
    before, fences = scene.runs(), await scene.cluster.fences()
    scene.cluster.database.stop(signal.SIGQUIT)
    await asyncio.sleep(OUTAGE_S)
    scene.cluster.database.start()
    await scene.cluster.leader()
    await scene.cluster.until_well()
    await scene.unharmed(before, len(fences))


async def libvirt_hangs_on_a_host_that_is_cut_off(scene: Scene) -> None:
    victim = await scene.victim()
    libvirtd = victim.host.libvirtd_pid

    async def cut() -> None:
        os.kill(libvirtd, signal.SIGSTOP)
        victim.host.unplug()

    try:
        fence = await scene.fail("libvirt stopped and cable cut", victim, cut)
    finally:
        os.kill(libvirtd, signal.SIGCONT)
    victim.host.plug()
    await scene.return_of(victim, fence)


async def nothing_comes_out(scene: Scene) -> None:
    await _one_way(scene, "outgoing packets lost", outgoing=True)


async def nothing_goes_in(scene: Scene) -> None:
    await _one_way(scene, "incoming packets lost", outgoing=False)


async def _one_way(scene: Scene, scenario: str, *, outgoing: bool) -> None:
    victim = await scene.victim()

    async def lose() -> None:
        victim.lose_packets(outgoing=outgoing, lost=True)

    fence = await scene.fail(scenario, victim, lose)
    victim.lose_packets(outgoing=outgoing, lost=False)
    await scene.return_of(victim, fence)


Scenario = Callable[[Scene], Awaitable[None]]
USUAL: Sequence[Scenario] = (host_is_killed, host_is_cut_off, etcd_is_lost, database_is_restarted)
RARE: Sequence[Scenario] = (
    daemon_is_stopped_and_continued,
    leader_is_killed_while_a_host_dies,
    host_dies_while_etcd_is_lost,
    one_member_of_etcd_is_killed,
    libvirt_hangs_on_a_host_that_is_cut_off,
    nothing_comes_out,
    nothing_goes_in,
)


@pytest.mark.parametrize(
    ("scenarios", "member_count"),
    [
        pytest.param(USUAL, 1, id="usual"),
        pytest.param(RARE, 3, id="rare", marks=pytest.mark.skipif(not MODE, reason="LIMIQUANTIX_HA=all runs it")),
    ],
)
async def test_no_vm_runs_twice_and_all_run_in_the_end(
    tmp_path: Path, scenarios: Sequence[Scenario], member_count: int
) -> None:
    async with ha_cluster(tmp_path, SETTINGS, member_count=member_count) as cluster:
        vms = [await cluster.create(f"web-{name[-1]}", name) for name in cluster.hosts]
        scene = Scene(cluster, vms)
        await cluster.until_protected(vms)
        for scenario in scenarios:
            await scenario(scene)
        for vm in vms:
            assert len(cluster.witness.alive_on(vm.id)) == 1
        cluster.witness.check()


@pytest.mark.skipif(not MODE, reason="LIMIQUANTIX_HA=all runs it")
async def test_witness_sees_two_copies_where_nothing_ends_the_first(tmp_path: Path) -> None:
    async with ha_cluster(tmp_path, SETTINGS) as cluster:
        vm = await cluster.create("web-a", "host-a")
        await cluster.until_protected([vm])
        victim = cluster.hosts["host-a"]
        report = read_report(str(victim.guard_dir))
        assert report is not None
        os.kill(report.pid, signal.SIGSTOP)
        victim.signal_daemon(signal.SIGSTOP)
        try:

            async def is_seen() -> bool | None:
                return True if cluster.witness.faults else None

            await until(is_seen, "a second copy being started and seen")
        finally:
            os.kill(report.pid, signal.SIGCONT)
            victim.signal_daemon(signal.SIGCONT)
        assert cluster.witness.most_running == 2
        with pytest.raises(AssertionError, match="ran on"):
            cluster.witness.check()
