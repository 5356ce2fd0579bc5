"""A node daemon killed in the middle of a command, as a real process: what was half done is completed or removed."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty

from limiquantix.compute.v1 import node_service_pb2 as ns
from limiquantix.errors import Code
from limiquantix.node.v1 import node_daemon_pb2 as pb
from nodedaemon.generations import FILE_NAME
from tests.support.fake_control_plane import FakeControlPlane, fake_control_plane
from tests.support.node_daemon_process import (
    DEADLINE_S,
    NodeDaemonProcess,
    client,
    command,
    environment,
    node_daemon,
    refusal,
)

if TYPE_CHECKING:  # the asynchronous stub's type exists for type checkers only
    from limiquantix.node.v1.node_daemon_pb2_grpc import NodeDaemonServiceAsyncStub

QEMU_IMG = shutil.which("qemu-img")
needs_qemu_img = pytest.mark.skipif(QEMU_IMG is None, reason="qemu-img is not installed")


@pytest.fixture
async def control_plane() -> AsyncIterator[FakeControlPlane]:
    async with fake_control_plane() as fake:
        yield fake


@asynccontextmanager
async def running(
    directory: Path, address: str = "", **settings: Any
) -> AsyncIterator[tuple[NodeDaemonProcess, NodeDaemonServiceAsyncStub]]:
    async with node_daemon(directory, address, **settings) as daemon, client(daemon) as node:
        yield daemon, node


def create_request(generation: int, *, disk_count: int = 1) -> pb.CreateVMOnNodeRequest:
    disks = [pb.DiskSpec(id=str(uuid.uuid4()), size_gib=1) for _ in range(disk_count)]
    spec = pb.VMSpec(cpu_cores=1, memory_mib=64, disks=disks)
    return pb.CreateVMOnNodeRequest(vm_id=str(uuid.uuid4()), name="web", spec=spec, generation=generation)


def newer(request: pb.CreateVMOnNodeRequest, by: int = 1) -> pb.CreateVMOnNodeRequest:
    copy = pb.CreateVMOnNodeRequest()
    copy.CopyFrom(request)
    copy.generation += by
    return copy


def on(vm_id: str, generation: int = 0) -> pb.VMIdRequest:
    return pb.VMIdRequest(vm_id=vm_id, generation=generation)


def images_of(directory: Path, request: pb.CreateVMOnNodeRequest) -> list[Path]:
    return [directory / "images" / request.vm_id / f"{disk.id}.qcow2" for disk in request.spec.disks]


def files_below(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


async def assert_whole(directory: Path, node: Any, request: pb.CreateVMOnNodeRequest) -> None:
    """Assert that the VM and its images are there, whole, and nothing else."""
    assert [vm.vm_id for vm in (await node.ListVMs(Empty())).vms] == [request.vm_id]
    wanted = sorted(str(path.relative_to(directory / "images")) for path in images_of(directory, request))
    assert files_below(directory / "images") == wanted
    for image in images_of(directory, request):
        process = await asyncio.create_subprocess_exec(str(QEMU_IMG), "check", "-q", "-f", "qcow2", str(image))
        assert await process.wait() == 0


async def assert_nothing_left(directory: Path, node: Any) -> None:
    assert list((await node.ListVMs(Empty())).vms) == []
    assert await asyncio.to_thread(os.listdir, directory / "images") == []


class HeldProgram:
    """A qemu-img that writes half of the n-th image and then hangs, as on storage that went away."""

    def __init__(self, directory: Path, image_number: int) -> None:
        self.program_dir = directory
        self._began = directory / "began"
        os.mkfifo(self._began)
        program = directory / "qemu-img"
        program.write_text(
            f"""#!/bin/sh
echo x >> {directory}/calls
if [ $(wc -l < {directory}/calls) -eq {image_number} ]; then
    for word; do case $word in *.part) head -c 1000 /dev/zero > "$word";; esac; done
    echo $$ > {self._began}
    exec sleep 600
fi
exec {QEMU_IMG} "$@"
"""
        )
        program.chmod(0o755)
        self.pid = 0

    async def until_held(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            self.pid = int(await asyncio.to_thread(self._began.read_text))

    def end(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)


@contextmanager
def held_program(directory: Path, image_number: int) -> Iterator[HeldProgram]:
    directory.mkdir()
    program = HeldProgram(directory, image_number)
    try:
        yield program
    finally:
        program.end()


@needs_qemu_img
@pytest.mark.parametrize("image_number", [1, 2])
@pytest.mark.parametrize("ending", ["repeat", "newer", "delete"])
async def test_kill_while_an_image_is_made_is_completed_or_removed_after_the_restart(
    tmp_path: Path, image_number: int, ending: str
) -> None:
    request = create_request(5, disk_count=2)
    with held_program(tmp_path / "bin", image_number) as program:
        async with running(tmp_path, program_dir=program.program_dir) as (daemon, node):
            creating = node.CreateVM(request)
            await program.until_held()
            await daemon.kill()
            with pytest.raises(grpc.aio.AioRpcError):
                await creating
        left = await asyncio.to_thread(files_below, tmp_path / "images")
        assert sum(name.endswith(".part") for name in left) == 1
        async with running(tmp_path) as (_, node):
            older = await refusal(node.DeleteVM(on(request.vm_id, 4)))
            assert (older.code, older.reason) == (Code.ABORTED, "STALE_GENERATION")
            if ending == "delete":
                await node.DeleteVM(on(request.vm_id, 6))
                await assert_nothing_left(tmp_path, node)
                return
            answer = await node.CreateVM(request if ending == "repeat" else newer(request))
            assert (answer.created, answer.status.state) == (True, pb.POWER_STATE_STOPPED)
            await assert_whole(tmp_path, node, request)


async def make_images(directory: Path, request: pb.CreateVMOnNodeRequest) -> None:
    """Leave the images of a VM as a kill between making them and defining the VM does."""
    for image in images_of(directory, request):
        image.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        process = await asyncio.create_subprocess_exec(
            str(QEMU_IMG), "create", "-q", "-f", "qcow2", str(image), str(2**30)
        )
        assert await process.wait() == 0


@needs_qemu_img
@pytest.mark.parametrize("ending", ["repeat", "delete"])
async def test_images_without_a_vm_are_taken_by_its_create_and_removed_by_its_delete(
    tmp_path: Path, ending: str
) -> None:
    request = create_request(5, disk_count=2)
    await make_images(tmp_path, request)
    async with running(tmp_path) as (_, node):
        if ending == "delete":
            await node.DeleteVM(on(request.vm_id, 6))
            await assert_nothing_left(tmp_path, node)
        else:
            assert (await node.CreateVM(request)).created
            await assert_whole(tmp_path, node, request)


@needs_qemu_img
@pytest.mark.parametrize("ending", ["repeat", "newer", "delete"])
async def test_vm_without_some_of_its_images_gets_them_by_its_create_or_is_deleted(tmp_path: Path, ending: str) -> None:
    request = create_request(5, disk_count=2)
    async with running(tmp_path) as (daemon, node):
        await node.CreateVM(request)
        await daemon.kill()
    images_of(tmp_path, request)[0].unlink()
    async with running(tmp_path) as (_, node):
        if ending == "delete":
            await node.DeleteVM(on(request.vm_id, 6))
            await assert_nothing_left(tmp_path, node)
        else:
            answer = await node.CreateVM(request if ending == "repeat" else newer(request))
            assert not answer.created
            await assert_whole(tmp_path, node, request)


@needs_qemu_img
async def test_kill_during_a_reconfigure_is_completed_by_its_repetition(tmp_path: Path) -> None:
    request = create_request(5)
    change = pb.ReconfigureVMRequest(vm_id=request.vm_id, name="web", spec=request.spec, generation=6)
    change.spec.disks.add(id=str(uuid.uuid4()), size_gib=1)
    change.spec.memory_mib = 128
    async with running(tmp_path) as (_, node):
        await node.CreateVM(request)
    with held_program(tmp_path / "bin", 2) as program:  # the first call looks at the disk that is there
        async with running(tmp_path, program_dir=program.program_dir) as (daemon, node):
            changing = node.ReconfigureVM(change)
            await program.until_held()
            await daemon.kill()
            with pytest.raises(grpc.aio.AioRpcError):
                await changing
    request.spec.CopyFrom(change.spec)
    async with running(tmp_path) as (_, node):
        await node.ReconfigureVM(change)
        await assert_whole(tmp_path, node, request)
        assert not (await node.CreateVM(newer(request))).created  # it is configured so


@needs_qemu_img
async def test_delete_interrupted_between_the_vm_and_its_images_is_completed_by_its_repetition(tmp_path: Path) -> None:
    request = create_request(5, disk_count=2)
    async with running(tmp_path) as (daemon, node):
        await node.CreateVM(request)
        await node.DeleteVM(on(request.vm_id, 6))
        await daemon.kill()
    await make_images(tmp_path, request)
    images_of(tmp_path, request)[0].unlink()  # as a kill in the middle of it leaves them
    async with running(tmp_path) as (_, node):
        assert (await refusal(node.CreateVM(request))).reason == "STALE_GENERATION"
        await node.DeleteVM(on(request.vm_id, 6))
        await assert_nothing_left(tmp_path, node)


async def test_generations_outlive_kills_and_deleted_vms_and_are_reported(
    control_plane: FakeControlPlane, tmp_path: Path
) -> None:
    kept, deleted = create_request(5, disk_count=0), create_request(8, disk_count=0)
    async with running(tmp_path, control_plane.address) as (daemon, node):
        await node.CreateVM(kept)
        await node.CreateVM(deleted)
        await node.DeleteVM(on(deleted.vm_id, 9))
        await node.StartVM(on(kept.vm_id, 7))
        await daemon.kill()
    syncs_before = len(control_plane.syncs)
    async with running(tmp_path, control_plane.address) as (daemon, node):
        for call in (node.CreateVM(deleted), node.StopVM(pb.StopVMRequest(vm_id=kept.vm_id, generation=6))):
            error = await refusal(call)
            assert (error.code, error.reason) == (Code.ABORTED, "STALE_GENERATION")
        await control_plane.until(lambda: len(control_plane.syncs) > syncs_before)
        reported = [(vm.id, vm.state, vm.generation, vm.is_managed) for vm in control_plane.syncs[-1].vms]
        assert reported == [(kept.vm_id, ns.VM_POWER_STATE_RUNNING, 7, True)]
        assert (await node.CreateVM(newer(deleted, by=2))).created


async def test_force_stop_ends_a_graceful_stop_over_the_wire(tmp_path: Path) -> None:
    slow = {"mock": {"shutdown_secs": 600}}
    request = create_request(5, disk_count=0)
    async with running(tmp_path, hypervisor=slow) as (_, node):
        await node.CreateVM(request)
        await node.StartVM(on(request.vm_id, 5))
        stopping = node.StopVM(pb.StopVMRequest(vm_id=request.vm_id, timeout_seconds=600, generation=6))
        await asyncio.wait([asyncio.ensure_future(stopping)], timeout=0.2)
        async with asyncio.timeout(DEADLINE_S):
            await node.ForceStopVM(on(request.vm_id, 7))
            error = await refusal(stopping)
        assert (error.reason, error.metadata["newest"]) == ("STALE_GENERATION", "7")
        assert (await node.GetVMStatus(on(request.vm_id))).state == pb.POWER_STATE_STOPPED


async def test_vm_that_vanished_while_the_daemon_was_down_is_missing_from_the_next_inventory(
    control_plane: FakeControlPlane, tmp_path: Path
) -> None:
    request = create_request(5, disk_count=0)
    async with running(tmp_path, control_plane.address) as (daemon, node):
        await node.CreateVM(request)
        await control_plane.until(lambda: bool(control_plane.states_of(request.vm_id)))
        await daemon.kill()
    known = max(vm.state_change_count for vm in control_plane.states_of(request.vm_id))
    (tmp_path / "data" / "mock-vms.json").unlink()
    syncs_before = len(control_plane.syncs)
    async with running(tmp_path, control_plane.address):
        await control_plane.until(lambda: len(control_plane.syncs) > syncs_before)
    inventory = control_plane.syncs[-1]
    assert list(inventory.vms) == []
    assert inventory.as_of_change_count > known


async def test_deleted_vm_is_told_to_a_control_plane_that_was_away(
    control_plane: FakeControlPlane, tmp_path: Path
) -> None:
    request = create_request(5, disk_count=0)
    async with running(tmp_path, control_plane.address) as (_, node):
        await node.CreateVM(request)
        await control_plane.until(lambda: bool(control_plane.states_of(request.vm_id)))
        control_plane.failing["NotifyVMChange"] = grpc.StatusCode.UNAVAILABLE
        await node.DeleteVM(on(request.vm_id, 6))
        tries = len(control_plane.changes)
        await control_plane.until(lambda: len(control_plane.changes) > tries)
        control_plane.failing.clear()
        tries = len(control_plane.changes)
        await control_plane.until(lambda: len(control_plane.changes) > tries)
    last = control_plane.changes[-1]
    assert (last.event_type, last.vm.id, last.vm.generation) == (ns.VM_CHANGE_DELETED, request.vm_id, 6)


async def test_daemon_goes_on_with_the_second_control_plane_when_the_first_ends(
    control_plane: FakeControlPlane, tmp_path: Path
) -> None:
    request = create_request(5, disk_count=0)
    async with fake_control_plane() as first:
        addresses = f"https://{first.address}, {control_plane.address}"
        async with running(tmp_path, addresses) as (_, node):
            await first.until(lambda: bool(first.heartbeats) and bool(first.syncs))
            assert control_plane.changes == control_plane.syncs == []  # only heartbeats go to both
            for method in ("UpdateHeartbeat", "NotifyVMChange", "SyncFullState", "RegisterNode"):
                first.failing[method] = grpc.StatusCode.UNAVAILABLE
            await node.CreateVM(request)
            await control_plane.until(lambda: bool(control_plane.states_of(request.vm_id)))
            await control_plane.until(lambda: bool(control_plane.heartbeats))
            assert control_plane.heartbeats[0].node_id == first.heartbeats[0].node_id
            assert control_plane.registrations == []


async def test_damaged_generations_keep_the_daemon_from_starting_and_say_why(tmp_path: Path) -> None:
    async with running(tmp_path) as (daemon, node):
        await node.CreateVM(create_request(5, disk_count=0))
        await daemon.kill()
    (tmp_path / "data" / FILE_NAME).write_text("damaged")
    process = await asyncio.create_subprocess_exec(
        *command("--config", str(tmp_path / "node.yaml")), stderr=asyncio.subprocess.PIPE, env=environment()
    )
    async with asyncio.timeout(DEADLINE_S):
        _, complaint = await process.communicate()
    assert process.returncode == 1
    assert FILE_NAME in complaint.decode()
    assert "Traceback" not in complaint.decode()
