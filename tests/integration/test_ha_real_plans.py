"""What people do to hosts on purpose, on real guests: shut down with its VMs moved away first, maintenance.

A guest that moved counts on where it was; one that was started anew says so on its console. `LIMIQUANTIX_HA=all`
(`make test-ha`) runs it.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from controlplane.ha.model import ShutdownPolicy
from limiquantix.compute.v1 import ha_service_pb2 as ha_api
from limiquantix.compute.v1 import node_service_pb2 as node_api
from limiquantix.compute.v1.node_pb2 import NodeStatus
from limiquantix.compute.v1.vm_pb2 import VirtualMachine, VmStatus
from tests.support.ha_cluster import ha_cluster
from tests.support.ha_parts import CALL_S, DEADLINE_S, HaHost, until
from tests.support.ha_real_scene import MODE, OUTAGE_S, SETTINGS, TIMES, Scene

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(not MODE, reason="LIMIQUANTIX_HA=all runs it"),
]


async def moved_away(scene: Scene, vm: VirtualMachine, victim: HaHost, since_s: float) -> None:
    """Check that a guest goes on elsewhere, as the one that it was."""

    async def look() -> str | None:
        found = await scene.cluster.get(vm)
        name = scene.cluster.hostname(found.status.node_id)
        return name if name != victim.name and found.status.state == VmStatus.RUNNING else None

    there = await until(look, f"{vm.name} having left {victim.name}")
    await scene.cluster.witness.counts_on(vm.id, there)
    assert not scene.cluster.witness.was_started_anew(vm.id, since_s), f"{vm.name} was started anew"


def of(scene: Scene, victim: HaHost) -> list[VirtualMachine]:
    """Return the VMs that live on a host."""
    return [vm for vm in scene.vms if victim.name in scene.cluster.witness.alive_on(vm.id)]


@asynccontextmanager
async def scene_with(directory: Path, **changes: Any) -> AsyncIterator[Scene]:
    """Run a VM on each of three hosts, with other settings."""
    async with ha_cluster(directory, SETTINGS.model_copy(update=changes)) as cluster:
        vms = [await cluster.create(f"web-{name[-1]}", name) for name in cluster.hosts]
        await cluster.until_protected(vms)
        yield Scene(cluster, vms)


async def test_vms_of_a_host_that_is_shut_down_are_moved_away_before_it_goes(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"shutdown_policy": ShutdownPolicy.MIGRATE})
    async with ha_cluster(tmp_path, settings) as cluster:
        vms = [await cluster.create(f"web-{number}", "host-a") for number in range(2)]
        vms.append(await cluster.create("web-c", "host-c"))
        await cluster.until_protected(vms)
        scene, victim, began_s = Scene(cluster, vms), cluster.hosts["host-a"], time.monotonic()
        leaving = of(scene, victim)
        assert len(leaving) == 2

        with cluster.witness.moving(*(vm.id for vm in leaving)):
            await victim.shut_down("poweroff")
        for vm in leaving:
            await moved_away(scene, vm, victim, began_s)
        await asyncio.sleep(TIMES.suspect_after_s + OUTAGE_S)
        await scene.until_all_run()
        assert not any(cluster.witness.was_started_anew(vm.id, began_s) for vm in vms)

        await victim.boot()
        await cluster.until_well()
        await scene.until_all_run()


async def test_host_in_maintenance_may_come_to_any_harm_and_nothing_is_restarted(tmp_path: Path) -> None:
    async with ha_cluster(tmp_path, SETTINGS) as cluster:
        vms = [await cluster.create(f"web-{name[-1]}", name) for name in cluster.hosts]
        await cluster.until_protected(vms)
        scene, victim, began_s = Scene(cluster, vms), cluster.hosts["host-a"], time.monotonic()
        (leaving,) = of(scene, victim)
        drain = node_api.DrainNodeRequest(id=cluster.node_ids[victim.name])

        with cluster.witness.moving(leaving.id):
            answer = await cluster.plane.nodes.DrainNode(drain, timeout=DEADLINE_S)
            assert list(answer.migrated_vm_ids) == [leaving.id]
            await moved_away(scene, leaving, victim, began_s)
        before = scene.runs()
        assert (await cluster.node(victim.name)).status.phase == NodeStatus.MAINTENANCE

        victim.host.unplug()
        await asyncio.sleep(TIMES.suspect_after_s + TIMES.proof_wait_s)
        await victim.die()
        await asyncio.sleep(TIMES.suspect_after_s + OUTAGE_S)
        (said,) = [node for node in (await cluster.status()).nodes if node.hostname == victim.name]
        assert (said.health, said.HasField("fence")) == (ha_api.NODE_HEALTH_MAINTENANCE, False)
        await scene.unharmed(before, 0)

        victim.host.plug()
        await victim.boot()
        enable = node_api.EnableNodeRequest(id=cluster.node_ids[victim.name])
        await cluster.plane.nodes.EnableNode(enable, timeout=CALL_S)
        await cluster.until_well()
        await scene.unharmed(before, 0)


async def test_vms_of_a_host_that_is_shut_down_wait_for_it_if_so_chosen_until_a_person_says_otherwise(
    tmp_path: Path,
) -> None:
    async with scene_with(tmp_path, shutdown_policy=ShutdownPolicy.FREEZE) as scene:
        cluster, victim = scene.cluster, await scene.victim()
        before, mine = scene.runs(), of(scene, victim)
        await victim.shut_down("poweroff")
        await asyncio.sleep(TIMES.suspect_after_s + TIMES.proof_wait_s + OUTAGE_S)
        assert not any(cluster.witness.alive_on(vm.id) for vm in mine)
        kept = {vm_id: run for vm_id, run in before.items() if run.host != victim.name}
        await scene.unharmed(kept, 0)

        async def confirm() -> None:
            said = ha_api.ConfirmNodeDeadRequest(
                node_id=cluster.node_ids[victim.name], hostname=victim.name, statement="it went to the scrapyard"
            )
            await cluster.plane.ha.ConfirmNodeDead(said, timeout=DEADLINE_S)

        method = ha_api.FENCE_METHOD_HOST_REPORTED  # what it said itself is the better proof
        fence = await scene.fail("shut down, frozen, confirmed dead", victim, confirm, before, method)
        await victim.boot()
        await scene.return_of(victim, fence)


async def test_vms_of_a_host_that_reboots_run_elsewhere_if_so_chosen(tmp_path: Path) -> None:
    async with scene_with(tmp_path, shutdown_policy=ShutdownPolicy.FAILOVER) as scene:
        victim = await scene.victim()

        async def reboot() -> None:
            await victim.shut_down("reboot")

        fence = await scene.fail("rebooted", victim, reboot, method=ha_api.FENCE_METHOD_HOST_REPORTED)
        await victim.boot()
        await scene.return_of(victim, fence)


async def test_vms_of_a_host_that_does_not_come_back_from_its_reboot_run_elsewhere_then(tmp_path: Path) -> None:
    frozen_s = TIMES.suspect_after_s + OUTAGE_S
    async with scene_with(tmp_path, frozen_s=frozen_s) as scene:
        victim, began_s = await scene.victim(), time.monotonic()

        async def reboot() -> None:
            await victim.shut_down("reboot")

        method = ha_api.FENCE_METHOD_HOST_REPORTED
        fence = await scene.fail("did not come back from its reboot", victim, reboot, method=method)
        assert time.monotonic() - began_s > frozen_s
        await victim.boot()
        await scene.return_of(victim, fence)


async def test_vms_that_stay_on_a_host_in_maintenance_are_started_nowhere_else(tmp_path: Path) -> None:
    """Its daemon is away for longer than a lease, so they end; they run again, there, once it is back."""
    async with scene_with(tmp_path) as scene:
        cluster, victim = scene.cluster, await scene.victim()
        before, mine = scene.runs(), of(scene, victim)
        disable = node_api.DisableNodeRequest(id=cluster.node_ids[victim.name], reason="new disks")
        await cluster.plane.nodes.DisableNode(disable, timeout=CALL_S)
        victim.signal_daemon(signal.SIGSTOP)
        try:
            await asyncio.sleep(TIMES.suspect_after_s + TIMES.proof_wait_s + OUTAGE_S)
            kept = {vm_id: run for vm_id, run in before.items() if run.host != victim.name}
            await scene.unharmed(kept, 0)
            assert not any(cluster.witness.alive_on(vm.id) for vm in mine)
        finally:
            victim.signal_daemon(signal.SIGCONT)
        await scene.until_all_run()
        assert of(scene, victim) == mine
        await scene.unharmed(kept, 0)
