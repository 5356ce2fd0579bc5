"""Hosts whose power can be cut: real guests, controllers that speak real protocols, and what happens to either.

`LIMIQUANTIX_HA=defaults` measures it with the times that the product has when nobody chose any.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from limiquantix.compute.v1 import ha_service_pb2 as ha_api
from nodedaemon.self_fencing.orders import read_report
from tests.support.ha_cluster import ha_cluster
from tests.support.ha_parts import HaHost
from tests.support.ha_real_scene import MODE, SETTINGS, Scene
from tests.support.namespaces import processes_in
from tests.support.power_fronts import IpmiFront, PowerFront, RedfishFront

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(not MODE, reason="LIMIQUANTIX_HA=all runs it"),
]

ROUND_COUNT = 10 if MODE == "defaults" else 3
LONGEST_S = 15.0


@asynccontextmanager
async def scene_with(directory: Path, power: type[PowerFront]) -> AsyncIterator[Scene]:
    """Run a VM on each of three hosts that have a power controller."""
    async with ha_cluster(directory, SETTINGS, power=power) as cluster:
        vms = [await cluster.create(f"web-{name[-1]}", name) for name in cluster.hosts]
        await cluster.until_protected(vms)
        yield Scene(cluster, vms)


async def _come_back(scene: Scene, victim: HaHost, fence: ha_api.Fence) -> None:
    """Have a host that lost its power boot again, and its VMs where they were not yet run on."""
    await victim.let_go()
    victim.host.plug()
    await victim.boot()
    await scene.return_of(victim, fence)


@pytest.mark.parametrize(
    ("power", "words"), [(RedfishFront, "PowerState Off"), (IpmiFront, "Chassis Power is off")], ids=["redfish", "ipmi"]
)
async def test_power_of_a_host_that_falls_silent_is_cut_and_that_is_the_proof(
    tmp_path: Path, power: type[PowerFront], words: str
) -> None:
    took_s = []
    async with scene_with(tmp_path, power) as scene:
        for _ in range(ROUND_COUNT):
            victim = await scene.victim()

            async def cut(victim: HaHost = victim) -> None:
                victim.host.unplug()  # its guests run on, and write to the shared disks

            began_s = time.monotonic()
            fence = await scene.fail("cut off, power cut", victim, cut, method=ha_api.FENCE_METHOD_POWER_OFF)
            took_s.append(time.monotonic() - began_s)
            assert processes_in(victim.host.namespace) == []
            assert words in fence.proof.evidence
            await _come_back(scene, victim, fence)
    ordered = sorted(took_s)
    print(
        f"{len(took_s)} fail-overs by cutting the power with {power.__name__}: "
        f"median {statistics.median(ordered):.1f} s, longest {ordered[-1]:.1f} s",
        flush=True,
    )
    if MODE == "defaults":
        assert ordered[-1] <= LONGEST_S


async def test_host_that_does_not_end_its_vms_has_its_power_cut_before_they_run_elsewhere(tmp_path: Path) -> None:
    """With daemon and guard stopped, as by a firmware that pauses everything but the guests, no lease ends anything."""
    async with scene_with(tmp_path, RedfishFront) as scene:
        victim = await scene.victim()
        report = read_report(str(victim.guard_dir))
        assert report is not None

        async def stop() -> None:
            os.kill(report.pid, signal.SIGSTOP)
            victim.signal_daemon(signal.SIGSTOP)

        method = ha_api.FENCE_METHOD_POWER_OFF
        fence = await scene.fail("daemon and guard stopped, power cut", victim, stop, method=method)
        await _come_back(scene, victim, fence)


@pytest.mark.parametrize("harm", [PowerFront.kill, PowerFront.hang, PowerFront.disobey], ids=lambda harm: harm.__name__)
async def test_controller_that_does_not_cut_the_power_leaves_the_proof_to_the_lease(
    tmp_path: Path, harm: Callable[[PowerFront], None]
) -> None:
    async with scene_with(tmp_path, RedfishFront) as scene:
        victim = await scene.victim()

        async def strike() -> None:
            harm(scene.cluster.controllers[victim.name])
            if harm is PowerFront.kill:
                await victim.die()
            else:
                victim.host.unplug()

        fence = await scene.fail(f"controller: {harm.__name__}", victim, strike)
        await victim.die()
        await _come_back(scene, victim, fence)
