"""A node daemon killed while libvirt starts a protected VM, or whose files are wiped under one that runs.

The first runs always, the others with `LIMIQUANTIX_HA=all` (`make test-ha`).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import grpc
import pytest

from hypervisor.processes import find_vm_processes, is_alive
from limiquantix.node.v1 import node_daemon_pb2 as node_pb
from nodedaemon.self_fencing.orders import read_orders
from tests.integration.test_self_fencing import Scene, answer, protected_vm, scene  # noqa: F401 - a fixture
from tests.support.guarded_processes import guard_says
from tests.support.own_cluster import admit
from tests.support.private_libvirt_host import eventually, virsh

pytestmark = pytest.mark.timeout(300)
on_demand = pytest.mark.skipif(
    os.environ.get("LIMIQUANTIX_HA", "") not in ("all", "defaults"), reason="LIMIQUANTIX_HA=all runs it"
)

TOLD = (("limiquantix-fence-token", "7"), ("limiquantix-epoch", "1"))
TRIES = 15
"""It is caught at the first one unless the machine is too busy to stop libvirt in time."""


def _stop_once_qemu_is_there(pid_dir: Path, vm_id: str, libvirtd_pid: int) -> None:
    """Stop libvirt as soon as it has begun QEMU, which it then still has to set up. Blocks."""
    end_s = time.monotonic() + 60
    while not find_vm_processes(str(pid_dir), {vm_id}):
        assert time.monotonic() < end_s
        time.sleep(0.001)
    os.kill(libvirtd_pid, signal.SIGSTOP)


async def interrupted_start(scene: Scene) -> None:  # noqa: F811 - the fixture's value
    """Leave a VM that libvirt started paused, and whose daemon was killed before it could let it run."""
    disk = node_pb.DiskSpec(id=str(uuid.uuid4()), source_file="counter.raw", source_format=node_pb.SOURCE_FORMAT_RAW)
    spec = node_pb.VMSpec(cpu_cores=1, memory_mib=16, disks=[disk], is_protected=True)
    scene.vm_id = str(uuid.uuid4())
    for attempt in range(TRIES):
        async with scene.daemon() as (process, stub):
            await scene.fences_itself()
            await stub.CreateVM(node_pb.CreateVMOnNodeRequest(vm_id=scene.vm_id, name="web", spec=spec, generation=1))
            await stub.ForceStopVM(node_pb.VMIdRequest(vm_id=scene.vm_id))
            stopping = asyncio.create_task(
                asyncio.to_thread(_stop_once_qemu_is_there, scene.pid_dir, scene.vm_id, scene.libvirtd_pid)
            )
            request = node_pb.VMIdRequest(vm_id=scene.vm_id, generation=2 + attempt)
            starting = asyncio.ensure_future(stub.StartVM(request, metadata=TOLD))
            await stopping
            await process.kill()
            with pytest.raises(grpc.aio.AioRpcError):
                await starting
        os.kill(scene.libvirtd_pid, signal.SIGCONT)

        async def settled() -> str | None:
            state = (await virsh(scene.uri, "domstate", scene.vm_id)).strip()
            return state if state in ("paused", "running") else None

        if await eventually(settled, "libvirt going on") == "paused":
            return
    raise AssertionError("libvirt was always too fast")


async def power_state(stub: Any, vm_id: str) -> Any:
    return (await stub.GetVMStatus(node_pb.VMIdRequest(vm_id=vm_id))).state


@pytest.mark.parametrize("is_overtaken", [False, pytest.param(True, marks=on_demand)])
async def test_start_that_was_interrupted_is_finished_or_undone_by_the_next_daemon(
    scene: Scene,  # noqa: F811
    is_overtaken: bool,
) -> None:
    for plane in scene.planes:
        plane.heartbeat_answer = answer(1, fence_token=7, ha_is_armed=False)
    await interrupted_start(scene)
    assert "start=" in await virsh(scene.uri, "dumpxml", scene.vm_id)
    for plane in scene.planes:
        plane.failing["UpdateHeartbeat"] = grpc.StatusCode.UNAVAILABLE
        plane.heartbeat_answer = answer(1, fence_token=8 if is_overtaken else 7, ha_is_armed=False)
    async with scene.daemon() as (_, stub):
        # until it has heard whether the order stands, it is what it is
        await scene.planes[0].until(lambda: len(scene.planes[0].heartbeats) > 0)
        assert await power_state(stub, scene.vm_id) == node_pb.POWER_STATE_PAUSED
        for plane in scene.planes:
            plane.failing.clear()
        wanted = node_pb.POWER_STATE_STOPPED if is_overtaken else node_pb.POWER_STATE_RUNNING

        async def has_settled() -> bool | None:
            is_noted = "start=" in await virsh(scene.uri, "dumpxml", scene.vm_id)
            return True if not is_noted and await power_state(stub, scene.vm_id) == wanted else None

        await eventually(has_settled, "the start being settled")
        if is_overtaken:
            assert scene.qemu() is None
            return

        async def has_counted() -> bool | None:
            log = await stub.GetConsoleLog(node_pb.GetConsoleLogRequest(vm_id=scene.vm_id))
            return True if log.data.count(b"\n") > 2 else None

        await eventually(has_counted, "the guest counting")


@on_demand
@pytest.mark.parametrize("is_cut_off", [False, True])
async def test_wiped_daemon_protects_the_vms_that_run_and_its_guard_forgets_none(
    scene: Scene,  # noqa: F811
    is_cut_off: bool,
) -> None:
    for plane in scene.planes:
        plane.heartbeat_answer = answer(15_000)
    async with scene.daemon() as (process, stub):
        await scene.fences_itself()
        scene.vm_id = await protected_vm(stub)
        await guard_says(scene.run_dir, lambda report: report.vm_count == 1)
        await process.kill()
    qemu = scene.qemu()
    assert qemu is not None
    await asyncio.to_thread(shutil.rmtree, scene.directory / "data")
    admit(scene.directory / "data", node_id=process.node_id)  # all else that it knew is lost
    (scene.run_dir / "orders.json").unlink()  # not even these: only the guard has them in mind
    for plane in scene.planes:
        plane.heartbeat_answer = answer()
        plane.heartbeats.clear()
        if is_cut_off:
            plane.failing["UpdateHeartbeat"] = grpc.StatusCode.UNAVAILABLE
    async with scene.daemon() as (process, _):
        await scene.planes[0].until(lambda: len(scene.planes[0].heartbeats) > 0)
        beat = scene.planes[0].heartbeats[0]
        assert (beat.can_self_fence, "lost its files" in beat.self_fencing_obstacle) == (False, True)
        if not is_cut_off:

            async def is_ordered() -> bool | None:
                orders = read_orders(str(scene.run_dir))
                return True if orders is not None and orders.is_armed and orders.vm_ids == (scene.vm_id,) else None

            await eventually(is_ordered, "orders as before")
            await scene.fences_itself()
            assert is_alive(qemu)
            await process.kill()
        await guard_says(scene.run_dir, lambda report: report.killed.get(scene.vm_id, -1) >= 0)
        assert not is_alive(qemu)
