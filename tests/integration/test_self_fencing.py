"""Self-fencing with a real node daemon, real guard, libvirt and QEMU: dead in time, whatever of them hangs."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from hypervisor.processes import VmProcess, find_vm_processes, is_alive
from limiquantix.compute.v1 import node_service_pb2 as pb
from limiquantix.errors import Code, Reason
from limiquantix.node.v1 import node_daemon_pb2 as node_pb
from nodedaemon.self_fencing.orders import Report, read_report
from tests.support import serial_guests
from tests.support.fake_control_plane import FakeControlPlane, fake_control_plane
from tests.support.guarded_processes import end_guard, guard_says
from tests.support.node_daemon_process import NodeDaemonProcess, client, node_daemon, refusal
from tests.support.private_libvirt_host import (
    descendants,
    eventually,
    private_libvirt,
    process_name,
    skip_unless_private_libvirt,
)

LEASE_MS = 8000
BEATS_PER_LEASE = 5
"""A heartbeat waits a second for a libvirt that hangs, and the next one comes a second after its answer."""
KILL_NS = 1_000_000_000
pytestmark = pytest.mark.timeout(300)


def answer(lease_ms: int = LEASE_MS, **fields: Any) -> pb.UpdateHeartbeatResponse:
    told = {"acknowledged": True, "epoch": 1, "ha_version": 1, "ha_is_armed": True, "heartbeat_interval_secs": 1}
    lease = pb.NodeLease(duration_ms=lease_ms)
    return pb.UpdateHeartbeatResponse(lease=lease, fences_read_ms_ago=0, **(told | fields))


def _says_so(plane: FakeControlPlane, before: int) -> bool:
    return any(beat.can_self_fence for beat in plane.heartbeats[before:])


def _watches_over(count: int, report: Report) -> bool:
    return report.vm_count == count


@dataclass
class Scene:
    """One host with a daemon that two control planes give leases, and a running protected VM."""

    directory: Path
    uri: str
    pid_dir: Path
    libvirtd_pid: int
    planes: tuple[FakeControlPlane, FakeControlPlane]
    vm_id: str = ""

    @property
    def run_dir(self) -> Path:
        return self.directory / "guard"

    @asynccontextmanager
    async def daemon(self) -> AsyncIterator[tuple[NodeDaemonProcess, Any]]:
        hypervisor = {
            "backend": "libvirt",
            "libvirt_uri": self.uri,
            "storage_path": str(self.directory / "images"),
            "accelerator": "tcg",
        }
        addresses = ",".join(plane.address for plane in self.planes)
        self_fencing = {"run_dir": str(self.run_dir)}
        migration = {"address": "127.0.0.1", "tls": False}
        async with (
            node_daemon(
                self.directory, addresses, hypervisor=hypervisor, self_fencing=self_fencing, migration=migration
            ) as process,
            client(process) as stub,
        ):
            yield process, stub

    def qemu(self) -> VmProcess | None:
        return find_vm_processes(str(self.pid_dir), {self.vm_id}).get(self.vm_id)

    async def fences_itself(self) -> None:
        """Wait until both control planes were told, after what was heard so far, that the host fences itself."""
        for plane in self.planes:
            await plane.until(partial(_says_so, plane, len(plane.heartbeats)))


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    await skip_unless_private_libvirt(tmp_path)
    async with (
        private_libvirt(tmp_path / "libvirt") as libvirt,
        fake_control_plane() as first,
        fake_control_plane() as second,
    ):
        for plane in (first, second):
            plane.heartbeat_answer = answer()
        assert libvirt.reaper_pid is not None
        daemons = [pid for pid in descendants(libvirt.reaper_pid) if process_name(pid) in ("libvirtd", "virtqemud")]
        (tmp_path / "images").mkdir()
        serial_guests.write_disk(tmp_path / "images" / "counter.raw", serial_guests.COUNTER)
        world = Scene(tmp_path, libvirt.uri, libvirt.socket.parent / "qemu", daemons[0], (first, second))
        try:
            yield world
        finally:
            os.kill(world.libvirtd_pid, signal.SIGCONT)
            end_guard(world.run_dir)


async def protected_vm(stub: Any) -> str:
    """Make a protected VM that runs."""
    disk = node_pb.DiskSpec(id=str(uuid.uuid4()), source_file="counter.raw", source_format=node_pb.SOURCE_FORMAT_RAW)
    spec = node_pb.VMSpec(cpu_cores=1, memory_mib=16, disks=[disk], is_protected=True)
    vm_id = str(uuid.uuid4())
    await stub.CreateVM(node_pb.CreateVMOnNodeRequest(vm_id=vm_id, name="web", spec=spec, generation=1))
    await stub.StartVM(node_pb.VMIdRequest(vm_id=vm_id, generation=2))
    return vm_id


async def test_protected_vm_lives_as_long_as_the_lease_whatever_hangs_beside_it(scene: Scene) -> None:
    first, second = scene.planes
    async with scene.daemon() as (process, stub):
        await scene.fences_itself()
        scene.vm_id = await protected_vm(stub)
        qemu = scene.qemu()
        assert qemu is not None
        await guard_says(scene.run_dir, lambda report: report.vm_count == 1)

        # libvirt hangs, and one control plane is lost: heartbeats go on, and so does the VM
        os.kill(scene.libvirtd_pid, signal.SIGSTOP)
        first.failing["UpdateHeartbeat"] = grpc.StatusCode.UNAVAILABLE
        count = len(second.heartbeats)
        await second.until(lambda: len(second.heartbeats) >= count + BEATS_PER_LEASE)
        assert is_alive(qemu)

        # the daemon hangs too: the VM ends with the lease
        process.process.send_signal(signal.SIGSTOP)
        report = await guard_says(scene.run_dir, lambda report: report.killed.get(scene.vm_id, -1) >= 0)
        assert not is_alive(qemu)
        assert report.killed[scene.vm_id] <= KILL_NS
        os.kill(scene.libvirtd_pid, signal.SIGCONT)
        second.failing["UpdateHeartbeat"] = grpc.StatusCode.UNAVAILABLE
        process.process.send_signal(signal.SIGCONT)
        # an answer that was on its way is still taken, and counts from when it was asked for
        await first.until(lambda: first.heartbeats[-1].lease_left_ms == 0)

        # no lease: it is not started, and libvirt knows it as crashed
        async def is_crashed() -> bool | None:
            try:
                status = await stub.GetVMStatus(node_pb.VMIdRequest(vm_id=scene.vm_id))
            except grpc.aio.AioRpcError:  # libvirt has not yet got over what hung in it
                return None
            return True if status.state == node_pb.POWER_STATE_CRASHED else None

        await eventually(is_crashed, "the crash being noticed")
        refused = await refusal(stub.StartVM(node_pb.VMIdRequest(vm_id=scene.vm_id, generation=3)))
        assert (refused.code, refused.reason) == (Code.FAILED_PRECONDITION, Reason.LEASE_ENDED)

        # a lease again
        first.failing.clear()
        second.failing.clear()

        async def starts() -> bool | None:
            try:
                await stub.StartVM(node_pb.VMIdRequest(vm_id=scene.vm_id, generation=4))
            except grpc.aio.AioRpcError:
                return None
            return True

        await eventually(starts, "the start with a new lease")
        assert scene.qemu() is not None


async def test_restarted_daemon_keeps_the_vm_its_guard_and_what_it_was_told(scene: Scene) -> None:
    for plane in scene.planes:
        plane.heartbeat_answer = answer(100_000, epoch=3, fence_token=7)
    async with scene.daemon() as (process, stub):
        await scene.fences_itself()
        scene.vm_id = await protected_vm(stub)
        report = await guard_says(scene.run_dir, lambda report: report.vm_count == 1)
        for is_protected in (False, True):
            await stub.SetVMProtection(
                node_pb.SetVMProtectionRequest(vm_id=scene.vm_id, is_protected=is_protected, generation=3)
            )
            report = await guard_says(scene.run_dir, partial(_watches_over, int(is_protected)))
        await process.kill()
    qemu = scene.qemu()
    for plane in scene.planes:
        plane.failing["UpdateHeartbeat"] = grpc.StatusCode.UNAVAILABLE
        plane.heartbeats.clear()
    async with scene.daemon() as (_, stub):
        await scene.planes[0].until(lambda: len(scene.planes[0].heartbeats) > 0)
        beat = scene.planes[0].heartbeats[-1]
        assert (beat.known_epoch, beat.known_fence_token, beat.known_ha_version) == (3, 7, 1)
        assert beat.lease_left_ms > 0
        assert beat.can_self_fence
        stale = (("limiquantix-fence-token", "6"), ("limiquantix-epoch", "3"))
        request = node_pb.VMIdRequest(vm_id=scene.vm_id, generation=9)
        refused = await refusal(stub.ForceStopVM(request, metadata=stale))
        assert (refused.code, refused.reason) == (Code.ABORTED, Reason.STALE_FENCE_TOKEN)
        again = read_report(str(scene.run_dir))
        assert again is not None
        assert again.pid == report.pid
    assert qemu is not None
    assert is_alive(qemu)
    assert time.clock_gettime_ns(time.CLOCK_BOOTTIME) - report.beat_ns < 100_000_000_000


async def test_vm_of_another_host_is_adopted_with_its_disk_and_runs(scene: Scene) -> None:
    async with scene.daemon() as (_, stub):
        disk = node_pb.DiskSpec(
            id=str(uuid.uuid4()), source_file="counter.raw", source_format=node_pb.SOURCE_FORMAT_RAW
        )
        spec = node_pb.VMSpec(cpu_cores=1, memory_mib=16, disks=[disk], is_protected=True)
        request = node_pb.CreateVMOnNodeRequest(vm_id=str(uuid.uuid4()), name="web", spec=spec, generation=1)
        await stub.CreateVM(request)
        images = sorted(path.name for path in (scene.directory / "images" / request.vm_id).iterdir())
        await stub.ReleaseVM(node_pb.VMIdRequest(vm_id=request.vm_id, generation=2))  # it is another host's now
        with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
            await stub.GetVMStatus(node_pb.VMIdRequest(vm_id=request.vm_id))
        request.generation = 3
        for is_new in (True, False):
            assert (await stub.AdoptVM(request)).created is is_new
        assert sorted(path.name for path in (scene.directory / "images" / request.vm_id).iterdir()) == images
        await scene.fences_itself()
        await stub.StartVM(node_pb.VMIdRequest(vm_id=request.vm_id, generation=4))

        async def has_counted() -> bool | None:
            log = await stub.GetConsoleLog(node_pb.GetConsoleLogRequest(vm_id=request.vm_id))
            return True if log.data.count(b"\n") > 2 else None

        await eventually(has_counted, "the guest counting")
