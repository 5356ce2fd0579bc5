"""Commands that were overtaken do nothing, at whatever point the newer one comes; on the mock."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hypervisor.mock.faults import Fault, MockFaults, Operation
from hypervisor.types import CpuTopology, DiskConfig, PowerState, VmConfig
from limiquantix.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound
from limiquantix.node.v1 import node_daemon_pb2 as pb
from nodedaemon.servicer import NodeDaemonServicer
from tests.support.node_daemon_parts import NodeDaemonParts, node_daemon_parts

DEADLINE_S = 30
SNAPSHOT_ID = str(uuid.uuid4())
READS = {"GetVMStatus", "GetConsole", "ListSnapshots", "GetMigration"}
"""Methods that take a generation, since they share a request with commands, and do not look at it."""

DEVICE_ID = str(uuid.uuid4())
DEVICE_REQUESTS = {
    "AttachCDROM": pb.AttachCDROMRequest,
    "AttachDisk": pb.AttachDiskRequest,
    "AttachNIC": pb.AttachNICRequest,
    "ChangeMedia": pb.ChangeMediaRequest,
    "DetachCDROM": pb.DetachCDROMRequest,
    "DetachDisk": pb.DetachDiskRequest,
    "DetachNIC": pb.DetachNICRequest,
    "ResizeDisk": pb.ResizeDiskRequest,
    "SettleDevices": pb.SettleDevicesRequest,
    "UpdateDisk": pb.UpdateDiskRequest,
    "UpdateNIC": pb.UpdateNICRequest,
}
DEVICE_FIELDS = {
    "disk": {"id": DEVICE_ID, "size_gib": 1},
    "nic": {"id": DEVICE_ID},
    "cdrom": {"id": DEVICE_ID},
    "disk_id": DEVICE_ID,
    "nic_id": DEVICE_ID,
    "cdrom_id": DEVICE_ID,
    "device": DEVICE_ID,
    "size_gib": 2,
}

COMMANDS = sorted(
    method.name
    for method in pb.DESCRIPTOR.services_by_name["NodeDaemonService"].methods
    if method.name in vars(NodeDaemonServicer)
    and "generation" in method.input_type.fields_by_name
    and method.name not in READS
)


@pytest.fixture
def guest_was_asked() -> asyncio.Event:
    """Set once a guest was asked to shut down and is waited for."""
    return asyncio.Event()


@pytest.fixture
async def daemon(tmp_path: Path, guest_was_asked: asyncio.Event) -> AsyncIterator[NodeDaemonParts]:
    async def wait(delay_s: float) -> None:
        guest_was_asked.set()
        await asyncio.sleep(delay_s)

    async with node_daemon_parts(tmp_path, sleep=wait) as parts:
        yield parts


def request_for(name: str, vm_id: str, generation: int) -> Any:  # noqa: PLR0911 - one for each request
    spec = pb.VMSpec(cpu_cores=1, memory_mib=64)
    match name:
        case "SetVMProtection":
            return pb.SetVMProtectionRequest(vm_id=vm_id, is_protected=True, generation=generation)
        case "CreateVM" | "AdoptVM":
            return pb.CreateVMOnNodeRequest(vm_id=vm_id, name="web", spec=spec, generation=generation)
        case "ReconfigureVM" | "ResizeVM":
            return pb.ReconfigureVMRequest(vm_id=vm_id, name="web", spec=spec, generation=generation)
        case "CreateSnapshot":
            return pb.CreateSnapshotRequest(vm_id=vm_id, snapshot_id=SNAPSHOT_ID, name="s", generation=generation)
        case "RevertSnapshot":
            return pb.RevertSnapshotRequest(vm_id=vm_id, snapshot_id=SNAPSHOT_ID, generation=generation)
        case "DeleteSnapshot":
            return pb.DeleteSnapshotRequest(vm_id=vm_id, snapshot_id=SNAPSHOT_ID, generation=generation)
        case "ShutdownGuest":
            return pb.ShutdownGuestRequest(vm_id=vm_id, generation=generation)
        case "StopVM":
            return pb.StopVMRequest(vm_id=vm_id, timeout_seconds=600, generation=generation)
        case _:
            return migration_request_for(name, vm_id, generation) or device_request_for(name, vm_id, generation)


def migration_request_for(name: str, vm_id: str, generation: int) -> Any:
    match name:
        case "PrepareMigration":
            return pb.PrepareMigrationRequest(vm_id=vm_id, source_node_uri="mock://there", generation=generation)
        case "ReceiveMigration":
            return pb.MigrationToken(vm_id=vm_id, token="guessed", generation=generation)
        case "MigrateVM":
            return pb.MigrateVMRequest(vm_id=vm_id, target_node_uri="mock://there", generation=generation)
        case "EndMigration":
            role = pb.MIGRATION_ROLE_SOURCE
            return pb.EndMigrationRequest(vm_id=vm_id, role=role, generation=generation)
        case "CancelMigration":
            return pb.MigrationRequest(vm_id=vm_id, generation=generation)
        case _:
            return None


def device_request_for(name: str, vm_id: str, generation: int) -> Any:
    request = DEVICE_REQUESTS.get(name, pb.VMIdRequest)(vm_id=vm_id, generation=generation)
    for field, value in DEVICE_FIELDS.items():
        if field in request.DESCRIPTOR.fields_by_name:
            request.MergeFrom(type(request)(**{field: value}))
    return request


async def send(daemon: NodeDaemonParts, name: str, vm_id: str, generation: int) -> Any:
    call = getattr(daemon.servicer, name)(request_for(name, vm_id, generation), None)
    return [message async for message in call] if name == "MigrateVM" else await call


async def overtaken(call: Coroutine[Any, Any, Any] | asyncio.Task[Any]) -> None:
    with pytest.raises(Aborted) as caught:
        async with asyncio.timeout(DEADLINE_S):
            await call
    assert caught.value.reason == "STALE_GENERATION"


async def created(daemon: NodeDaemonParts, generation: int, *, running: bool = False, deaf: bool = False) -> str:
    vm_id = str(uuid.uuid4())
    await send(daemon, "CreateVM", vm_id, generation)
    if running:
        await send(daemon, "StartVM", vm_id, generation)
    if deaf:
        daemon.hypervisor.set_faults(MockFaults(deaf_vm_ids=frozenset({vm_id})))
    return vm_id


def test_commands_are_all_that_change_a_vm() -> None:
    assert sorted(set(COMMANDS) - DEVICE_REQUESTS.keys()) == [
        "AdoptVM",
        "CancelMigration",
        "CreateSnapshot",
        "CreateVM",
        "DeleteSnapshot",
        "DeleteVM",
        "EndMigration",
        "ForceStopVM",
        "MigrateVM",
        "PauseVM",
        "PrepareMigration",
        "RebootVM",
        "ReceiveMigration",
        "ReconfigureVM",
        "ReleaseVM",
        "ResizeVM",
        "ResumeVM",
        "RevertSnapshot",
        "SetVMProtection",
        "ShutdownGuest",
        "StartVM",
        "StopVM",
        "SuspendVM",
    ]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("running", [False, True])
async def test_older_command_of_every_kind_is_refused_and_changes_nothing(
    daemon: NodeDaemonParts, name: str, running: bool
) -> None:
    vm_id = await created(daemon, 5, running=running)
    before = await daemon.hypervisor.status(vm_id)
    await overtaken(send(daemon, name, vm_id, 4))
    await overtaken(send(daemon, name, vm_id.upper(), 4))
    after = await daemon.hypervisor.status(vm_id)
    assert (after.state, after.started_at_s) == (before.state, before.started_at_s)
    assert daemon.generations.newest[vm_id] == 5


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"ReceiveMigration"}))  # there, the token decides first
async def test_generation_of_every_kind_of_command_is_taken_before_it_acts(daemon: NodeDaemonParts, name: str) -> None:
    vm_id = await created(daemon, 5, running=True)
    with suppress(FailedPrecondition, NotFound, InvalidArgument):  # it was taken all the same
        await send(daemon, name, vm_id, 6)
    assert daemon.generations.newest[vm_id] == 6


async def test_late_create_does_not_bring_back_a_deleted_vm(daemon: NodeDaemonParts) -> None:
    vm_id = await created(daemon, 5)
    await send(daemon, "DeleteVM", vm_id, 6)
    await overtaken(send(daemon, "CreateVM", vm_id, 5))
    with pytest.raises(NotFound):
        await daemon.status(vm_id)
    await send(daemon, "CreateVM", vm_id, 7)
    assert (await daemon.status(vm_id)).vm_id == vm_id


async def test_delete_of_a_vm_that_never_was_here_refuses_a_late_create(daemon: NodeDaemonParts) -> None:
    vm_id = str(uuid.uuid4())
    await send(daemon, "DeleteVM", vm_id, 2)
    await overtaken(send(daemon, "CreateVM", vm_id, 1))
    assert list(await daemon.hypervisor.list()) == []


async def test_late_create_whose_template_is_gone_is_refused_as_overtaken(daemon: NodeDaemonParts) -> None:
    vm_id = await created(daemon, 5)
    request = request_for("CreateVM", vm_id, 4)
    request.spec.disks.add(id=str(uuid.uuid4()), backing_file="templates/gone.raw")
    await overtaken(daemon.servicer.CreateVM(request, None))


async def test_steps_of_one_operation_share_a_generation(daemon: NodeDaemonParts) -> None:
    vm_id = await created(daemon, 5, running=True)
    for name in ("RebootVM", "PauseVM", "ResumeVM", "StopVM", "ForceStopVM", "DeleteVM", "DeleteVM", "CreateVM"):
        await send(daemon, name, vm_id, 5)
    assert (await daemon.hypervisor.status(vm_id)).state is PowerState.STOPPED


async def test_queued_command_is_refused_when_a_newer_one_was_taken_before_its_turn(tmp_path: Path) -> None:
    has_begun, may_end = asyncio.Event(), asyncio.Event()

    async def hang(delay_s: float) -> None:
        has_begun.set()
        await may_end.wait()

    async with node_daemon_parts(tmp_path, sleep=hang) as daemon:
        vm_id = await created(daemon, 5)
        daemon.hypervisor.set_faults(MockFaults((Fault(Operation.RECONFIGURE, delay_s=1),)))
        running = asyncio.create_task(send(daemon, "ReconfigureVM", vm_id, 5))
        await has_begun.wait()
        waiting = asyncio.create_task(send(daemon, "StartVM", vm_id, 5))
        await asyncio.sleep(0)
        await daemon.generations.accept(vm_id, 6)  # a newer one that is not in the queue yet
        may_end.set()
        await running
        await overtaken(waiting)
        assert (await daemon.hypervisor.status(vm_id)).state is PowerState.STOPPED


@pytest.mark.parametrize("steps", [("ForceStopVM",), ("ForceStopVM", "DeleteVM")])
async def test_force_stop_and_delete_do_not_wait_behind_a_stop_that_waits_for_the_guest(
    daemon: NodeDaemonParts, guest_was_asked: asyncio.Event, steps: tuple[str, ...]
) -> None:
    vm_id = await created(daemon, 5, running=True, deaf=True)
    stopping = asyncio.create_task(send(daemon, "StopVM", vm_id, 5))
    await guest_was_asked.wait()
    async with asyncio.timeout(DEADLINE_S):  # the stop would wait for ten minutes
        for name in steps:
            await send(daemon, name, vm_id, 6)
    await overtaken(stopping)
    left = {vm.vm_id: vm.state for vm in await daemon.hypervisor.list()}
    assert left == ({} if "DeleteVM" in steps else {vm_id: PowerState.STOPPED})


async def test_delete_of_a_running_vm_ends_the_stop_and_is_refused_by_its_state(
    daemon: NodeDaemonParts, guest_was_asked: asyncio.Event
) -> None:
    vm_id = await created(daemon, 5, running=True, deaf=True)
    stopping = asyncio.create_task(send(daemon, "StopVM", vm_id, 5))
    await guest_was_asked.wait()
    with pytest.raises(FailedPrecondition) as caught:
        await send(daemon, "DeleteVM", vm_id, 6)
    assert caught.value.reason == "VM_STATE_FORBIDS"
    await overtaken(stopping)
    assert (await daemon.hypervisor.status(vm_id)).state is PowerState.RUNNING


async def test_newer_stop_ends_an_older_one_and_has_its_own_time(
    daemon: NodeDaemonParts, guest_was_asked: asyncio.Event
) -> None:
    vm_id = await created(daemon, 5, running=True, deaf=True)
    older = asyncio.create_task(send(daemon, "StopVM", vm_id, 5))
    await guest_was_asked.wait()
    daemon.hypervisor.set_faults(MockFaults())  # from now on the guest listens
    await send(daemon, "StopVM", vm_id, 6)
    await overtaken(older)
    assert (await daemon.hypervisor.status(vm_id)).state is PowerState.STOPPED


@pytest.mark.parametrize("generation", [0, 5])
async def test_create_answers_with_the_vm_as_it_is(daemon: NodeDaemonParts, generation: int) -> None:
    vm_id = str(uuid.uuid4())
    first = await send(daemon, "CreateVM", vm_id.upper(), generation)
    assert (first.vm_id, first.created) == (vm_id, True)
    assert (first.status.vm_id, first.status.state) == (vm_id, pb.POWER_STATE_STOPPED)
    assert first.status.state_change_count == (await daemon.status(vm_id)).state_change_count > 0
    await send(daemon, "StartVM", vm_id, generation)
    again = await send(daemon, "CreateVM", vm_id, generation)
    assert (again.created, again.status.state) == (False, pb.POWER_STATE_RUNNING)
    assert again.status.state_change_count > first.status.state_change_count


async def foreign(daemon: NodeDaemonParts, disk: Path) -> str:
    config = VmConfig(str(uuid.uuid4()), "legacy", CpuTopology(), 64, disks=(DiskConfig("d", disk),))
    await daemon.hypervisor.define_behind_our_back(config)
    return config.vm_id


async def test_vm_of_another_tool_takes_power_commands_and_is_deleted_without_its_disks(tmp_path: Path) -> None:
    disk = tmp_path / "elsewhere.qcow2"
    disk.write_text("precious")
    async with node_daemon_parts(tmp_path / "images") as daemon:
        vm_id = await foreign(daemon, disk)
        for name in ("StartVM", "RebootVM", "PauseVM", "ResumeVM", "StopVM", "StartVM", "ForceStopVM"):
            await send(daemon, name, vm_id, 1)
        await send(daemon, "DeleteVM", vm_id, 2)
        assert list(await daemon.hypervisor.list()) == []
    assert disk.read_text() == "precious"


async def test_vm_of_another_tool_is_not_redefined(daemon: NodeDaemonParts, tmp_path: Path) -> None:
    vm_id = await foreign(daemon, tmp_path / "d")
    with pytest.raises(FailedPrecondition) as caught:
        await send(daemon, "ReconfigureVM", vm_id, 1)
    assert caught.value.reason == "VM_NOT_MANAGED"


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
async def test_delete_removes_images_that_no_vm_has(daemon: NodeDaemonParts) -> None:
    vm_id = await daemon.create(disk_count=2)
    await daemon.hypervisor.remove_behind_our_back(vm_id)
    assert len(list(daemon.paths.vm_dir(vm_id).iterdir())) == 2
    await send(daemon, "DeleteVM", vm_id, 2)
    assert not daemon.paths.vm_dir(vm_id).exists()
