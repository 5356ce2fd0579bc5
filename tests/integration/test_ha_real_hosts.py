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
from pathlib import Path

import pytest

from nodedaemon.self_fencing.orders import read_report
from tests.support.ha_cluster import ha_cluster
from tests.support.ha_parts import until
from tests.support.ha_real_scene import MODE, OUTAGE_S, SETTINGS, STOPPED_S, TIMES, Scene

pytestmark = pytest.mark.timeout(900)


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
    etcd_is_lost,
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
