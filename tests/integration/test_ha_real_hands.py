"""High availability on real guests while people work on the cluster, and what happens at the worst moment.

As in `test_ha_real_hosts` a witness looks all the time. `LIMIQUANTIX_HA=all` (`make test-ha`) runs it.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import pytest

from hypervisor.processes import is_alive
from limiquantix.compute.v1 import ha_service_pb2 as ha_api
from limiquantix.compute.v1.join_service_pb2 import RevokeNodeCertificateRequest
from tests.support.ha_cluster import ha_cluster
from tests.support.ha_parts import CALL_S, until
from tests.support.ha_real_scene import MODE, OUTAGE_S, SETTINGS, TIMES, Scene

pytestmark = pytest.mark.timeout(900)

CUT_COUNT: Final = 8
SEED: Final = 6
LONGEST_CUT_S: Final = TIMES.suspect_after_s + TIMES.proof_wait_s + 5.0


async def high_availability_is_disarmed(scene: Scene) -> None:
    """Nothing is fenced, killed or restarted, however long a host is cut off; armed again, everything is as before."""
    cluster, victim, before, fences = scene.cluster, await scene.victim(), scene.runs(), await scene.cluster.fences()
    asked = ha_api.DisarmHaRequest(reason="new switches")
    settings = await cluster.plane.ha.DisarmHa(asked, timeout=CALL_S)
    assert (settings.is_armed, settings.reason) == (False, "new switches")
    await asyncio.sleep(3 * TIMES.heartbeat_interval_s)  # hosts learn it with a heartbeat
    victim.host.unplug()
    await asyncio.sleep(TIMES.suspect_after_s + TIMES.proof_wait_s + OUTAGE_S)
    status = await cluster.status()
    assert (status.settings.is_armed, status.settings.reason) == (False, "new switches")
    assert all(is_alive(run.process) for run in before.values())
    assert len(await cluster.fences()) == len(fences)
    victim.host.plug()

    async def is_healthy() -> bool | None:
        nodes = (await cluster.status()).nodes
        return True if all(node.health == ha_api.NODE_HEALTH_HEALTHY for node in nodes) else None

    await until(is_healthy, "all hosts being heard")
    assert (await cluster.plane.ha.ArmHa(ha_api.ArmHaRequest(), timeout=CALL_S)).is_armed
    await cluster.until_well()
    await scene.unharmed(before, len(fences))


async def leader_is_killed(scene: Scene) -> None:
    """Another one decides soon; nothing else changes."""
    before, fences, leader = scene.runs(), await scene.cluster.fences(), await scene.cluster.leader()
    epoch = (await scene.cluster.status()).epoch
    leader.kill()
    killed_s = time.monotonic()

    async def is_succeeded() -> bool | None:
        status = await scene.cluster.status()
        return True if status.epoch > epoch and not status.obstacle else None

    await until(is_succeeded, "another one deciding")
    print(f"leader killed: another one decides after {time.monotonic() - killed_s:.1f} s", flush=True)
    await asyncio.sleep(OUTAGE_S)
    await scene.unharmed(before, len(fences))
    await leader.start()


async def database_is_restarted_while_a_host_dies(scene: Scene) -> None:
    """Stopped when the host is about to be fenced, and started again when that would have been proven."""
    victim, database = await scene.victim(), scene.cluster.database

    async def strike() -> None:
        await victim.die()
        await asyncio.sleep(TIMES.suspect_after_s)
        database.stop(signal.SIGINT)
        await asyncio.sleep(TIMES.proof_wait_s)
        database.start()

    fence = await scene.fail("PostgreSQL restarted while a host died", victim, strike, most_attempts=2)
    await victim.boot()
    await scene.return_of(victim, fence)


async def host_is_switched_off(scene: Scene) -> None:
    """It says that it ended its VMs before it goes, so nobody waits for its lease."""
    victim = await scene.victim()

    async def switch_off() -> None:
        await victim.shut_down("poweroff")

    method = ha_api.FENCE_METHOD_HOST_REPORTED
    fence = await scene.fail("host switched off", victim, switch_off, method=method)
    await victim.boot()
    await scene.return_of(victim, fence)


async def host_is_rebooted(scene: Scene) -> None:
    """Its VMs wait for it, and start there again; it is not taken for dead."""
    cluster, victim = scene.cluster, await scene.victim()
    before, fences = scene.runs(), await cluster.fences()
    mine = {vm_id for vm_id, run in before.items() if run.host == victim.name}
    await victim.shut_down("reboot")
    await asyncio.sleep(TIMES.suspect_after_s + TIMES.proof_wait_s)
    assert not any(cluster.witness.alive_on(vm_id) for vm_id in mine)
    assert len(await cluster.fences()) == len(fences)
    await victim.boot()

    async def runs_again() -> bool | None:
        return True if all(cluster.witness.alive_on(vm_id) == [victim.name] for vm_id in mine) else None

    await until(runs_again, "VMs of a rebooted host running there again")
    for vm_id in mine:
        await cluster.witness.counts_on(vm_id, victim.name)
    await cluster.until_well()
    await scene.unharmed({vm_id: run for vm_id, run in before.items() if vm_id not in mine}, len(fences))


async def certificate_of_a_host_is_revoked(scene: Scene) -> None:
    """Nobody listens to it any more, so it is as if it were cut off; it is of use again once it has joined again."""
    cluster, victim = scene.cluster, await scene.victim()

    async def revoke() -> None:
        request = RevokeNodeCertificateRequest(node_id=cluster.node_ids[victim.name])
        await cluster.plane.joining.RevokeNodeCertificate(request, timeout=CALL_S)

    fence = await scene.fail("certificate revoked", victim, revoke)
    await victim.join_again(cluster.plane.entry)
    await scene.return_of(victim, fence)


async def cables_are_cut_and_mended_at_random(scene: Scene) -> None:
    """Whatever is decided about a host that is gone for a while: no VM runs twice, and all run in the end."""
    chance = random.Random(SEED)
    for _ in range(CUT_COUNT):
        victim = chance.choice(list(scene.cluster.hosts.values()))
        victim.host.unplug()
        await asyncio.sleep(chance.uniform(0.5, LONGEST_CUT_S))
        victim.host.plug()
        await asyncio.sleep(chance.uniform(0.0, TIMES.suspect_after_s))
        scene.cluster.witness.check()
    await scene.cluster.until_well()
    await scene.until_all_run()


Scenario = Callable[[Scene], Awaitable[None]]
SCENARIOS: Sequence[Scenario] = (
    high_availability_is_disarmed,
    leader_is_killed,
    database_is_restarted_while_a_host_dies,
    host_is_switched_off,
    host_is_rebooted,
    certificate_of_a_host_is_revoked,
    cables_are_cut_and_mended_at_random,
)


@pytest.mark.skipif(not MODE, reason="LIMIQUANTIX_HA=all runs it")
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_no_vm_runs_twice_whatever_people_do(tmp_path: Path, scenario: Scenario) -> None:
    async with ha_cluster(tmp_path, SETTINGS, member_count=3, plane_count=3) as cluster:
        vms = [await cluster.create(f"web-{name[-1]}", name) for name in cluster.hosts]
        scene = Scene(cluster, vms)
        await cluster.until_protected(vms)
        await scenario(scene)
        await scene.until_all_run()
