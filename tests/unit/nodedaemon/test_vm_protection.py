"""Protection of VMs by the host's lease: when it is noted, and what is refused without a lease; on the mock."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from hypervisor.mock.faults import Failure, Fault, MockFaults, Operation
from hypervisor.types import PowerState, VmNotes
from limiquantix.compute.v1 import node_service_pb2 as node_service
from limiquantix.errors import ApiError, FailedPrecondition, NotFound, Reason
from limiquantix.node.v1 import node_daemon_pb2 as pb
from nodedaemon.self_fencing.lease import boottime_ns
from tests.support.node_daemon_parts import NodeDaemonParts, node_daemon_parts

DISK_ID = str(uuid.uuid4())


def definition(vm_id: str, *, is_protected: bool = True, disk: bool = False) -> pb.CreateVMOnNodeRequest:
    disks = [pb.DiskSpec(id=DISK_ID, size_gib=1)] if disk else []
    spec = pb.VMSpec(cpu_cores=1, memory_mib=64, disks=disks, is_protected=is_protected)
    return pb.CreateVMOnNodeRequest(vm_id=vm_id, name="web", spec=spec)


async def lose_lease(daemon: NodeDaemonParts) -> None:
    """Have the host learn that it is armed, by a lease that is over."""
    answer = node_service.UpdateHeartbeatResponse(epoch=1, ha_version=1, ha_is_armed=True)
    answer.lease.duration_ms = 1
    await daemon.fencing.take_answer(boottime_ns() - 10**9, answer)


async def is_noted(daemon: NodeDaemonParts, vm_id: str) -> bool:
    """Whether it is kept with the VM, too, and would outlive the daemon's files."""
    return (await daemon.hypervisor.status(vm_id)).notes.is_protected


async def test_protection_is_noted_told_to_the_guard_and_taken_back(tmp_path: Path) -> None:
    async with node_daemon_parts(tmp_path) as daemon:
        vm_id = await daemon.create()
        assert not daemon.fencing.is_protected(vm_id)
        for is_protected in (True, True, False):
            await daemon.servicer.SetVMProtection(
                pb.SetVMProtectionRequest(vm_id=vm_id, is_protected=is_protected), None
            )
            assert daemon.fencing.is_protected(vm_id) is is_protected
            assert await is_noted(daemon, vm_id) is is_protected


async def test_protection_of_a_vm_that_is_not_here_is_refused(tmp_path: Path) -> None:
    async with node_daemon_parts(tmp_path) as daemon:
        request = pb.SetVMProtectionRequest(vm_id=str(uuid.uuid4()), is_protected=True)
        with pytest.raises(NotFound):
            await daemon.servicer.SetVMProtection(request, None)
        assert not daemon.fencing.is_protected(request.vm_id)


async def test_vm_is_protected_from_its_creation_until_it_is_deleted(tmp_path: Path) -> None:
    async with node_daemon_parts(tmp_path) as daemon:
        vm_id = str(uuid.uuid4())
        await daemon.servicer.CreateVM(definition(vm_id), None)
        assert daemon.fencing.is_protected(vm_id)
        assert await is_noted(daemon, vm_id)
        await daemon.servicer.DeleteVM(pb.VMIdRequest(vm_id=vm_id), None)
        assert not daemon.fencing.is_protected(vm_id)


async def test_creation_that_fails_leaves_no_protection(tmp_path: Path) -> None:
    async with node_daemon_parts(tmp_path) as daemon:
        daemon.hypervisor.set_faults(MockFaults((Fault(Operation.CREATE, Failure.REFUSED),)))
        vm_id = str(uuid.uuid4())
        with pytest.raises(ApiError):
            await daemon.servicer.CreateVM(definition(vm_id), None)
        assert not daemon.fencing.is_protected(vm_id)


@pytest.mark.parametrize("method", ["StartVM", "ResumeVM"])
async def test_without_a_lease_protected_vms_do_not_run_and_others_do(tmp_path: Path, method: str) -> None:
    async with node_daemon_parts(tmp_path) as daemon:
        vm_ids = [str(uuid.uuid4()) for _ in range(2)]
        for vm_id, is_protected in zip(vm_ids, (True, False), strict=True):
            await daemon.servicer.CreateVM(definition(vm_id, is_protected=is_protected), None)
            if method == "ResumeVM":
                await daemon.start(vm_id)
                await daemon.hypervisor.pause(vm_id)
        await lose_lease(daemon)
        with pytest.raises(FailedPrecondition) as refused:
            await getattr(daemon.servicer, method)(pb.VMIdRequest(vm_id=vm_ids[0]), None)
        assert refused.value.reason == Reason.LEASE_ENDED
        assert (await daemon.hypervisor.status(vm_ids[0])).state is not PowerState.RUNNING
        await getattr(daemon.servicer, method)(pb.VMIdRequest(vm_id=vm_ids[1]), None)
        assert (await daemon.hypervisor.status(vm_ids[1])).state is PowerState.RUNNING


async def test_protected_vm_is_not_let_in_without_a_lease(tmp_path: Path) -> None:
    async with node_daemon_parts(tmp_path) as daemon:
        await lose_lease(daemon)
        vm_id = str(uuid.uuid4())
        request = pb.PrepareMigrationRequest(vm_id=vm_id, definition=definition(vm_id))
        with pytest.raises(FailedPrecondition) as refused:
            await daemon.servicer.PrepareMigration(request, None)
        assert refused.value.reason == Reason.LEASE_ENDED
        assert not daemon.fencing.is_protected(vm_id)


async def test_vm_that_arrives_is_protected_before_it_is_here(tmp_path: Path) -> None:
    async with node_daemon_parts(tmp_path) as daemon:
        vm_id = str(uuid.uuid4())
        await daemon.servicer.PrepareMigration(
            pb.PrepareMigrationRequest(vm_id=vm_id, definition=definition(vm_id)), None
        )
        assert daemon.fencing.is_protected(vm_id)
        await daemon.servicer.EndMigration(
            pb.EndMigrationRequest(vm_id=vm_id, role=pb.MIGRATION_ROLE_TARGET, moved=False), None
        )
        assert not daemon.fencing.is_protected(vm_id)


async def test_adopted_vm_has_the_disk_that_was_there(tmp_path: Path) -> None:
    async with node_daemon_parts(tmp_path) as daemon:
        vm_id = str(uuid.uuid4())
        await daemon.servicer.CreateVM(definition(vm_id, disk=True), None)
        (image,) = daemon.paths.vm_dir(vm_id).iterdir()
        before = image.stat()
        await daemon.hypervisor.delete(vm_id)  # the definition was another host's, the storage is shared
        for is_new in (True, False):
            response = await daemon.servicer.AdoptVM(definition(vm_id, disk=True), None)
            assert response.created is is_new
            assert response.status.state == pb.POWER_STATE_STOPPED
        assert image.stat() == before
        assert daemon.fencing.is_protected(vm_id)


async def test_vm_whose_disk_is_not_here_is_not_adopted_and_nothing_is_made(tmp_path: Path) -> None:
    async with node_daemon_parts(tmp_path) as daemon:
        vm_id = str(uuid.uuid4())
        with pytest.raises(FailedPrecondition, match=DISK_ID) as refused:
            await daemon.servicer.AdoptVM(definition(vm_id, disk=True), None)
        assert refused.value.reason == Reason.DISK_IMAGE_FAILED
        assert not daemon.paths.vm_dir(vm_id).exists()
        with pytest.raises(NotFound):
            await daemon.status(vm_id)
        assert not daemon.fencing.is_protected(vm_id)


async def test_definition_that_is_left_of_an_earlier_time_makes_way_for_the_adopted_one(tmp_path: Path) -> None:
    async with node_daemon_parts(tmp_path) as daemon:
        vm_id = str(uuid.uuid4())
        await daemon.servicer.CreateVM(definition(vm_id, disk=True), None)
        newer = definition(vm_id, disk=True)
        newer.spec.memory_mib = 128
        await daemon.servicer.AdoptVM(newer, None)
        assert (await daemon.hypervisor.status(vm_id)).memory_mib == 128
        assert await is_noted(daemon, vm_id)


async def test_reverting_to_a_snapshot_brings_no_older_note_back(tmp_path: Path) -> None:
    async with node_daemon_parts(tmp_path) as daemon:
        vm_id, snapshot_id = str(uuid.uuid4()), str(uuid.uuid4())
        await daemon.servicer.CreateVM(definition(vm_id), None)
        await daemon.servicer.CreateSnapshot(
            pb.CreateSnapshotRequest(vm_id=vm_id, snapshot_id=snapshot_id, name="before"), None
        )
        await daemon.hypervisor.set_notes(vm_id, VmNotes())  # as the snapshot's definition has it
        await daemon.servicer.RevertSnapshot(pb.RevertSnapshotRequest(vm_id=vm_id, snapshot_id=snapshot_id), None)
        assert await is_noted(daemon, vm_id)


async def test_released_vm_is_undefined_and_its_disk_stays(tmp_path: Path) -> None:
    async with node_daemon_parts(tmp_path) as daemon:
        vm_id = str(uuid.uuid4())
        await daemon.servicer.CreateVM(definition(vm_id, disk=True), None)
        (image,) = daemon.paths.vm_dir(vm_id).iterdir()
        before = image.stat()
        for _ in range(2):
            await daemon.servicer.ReleaseVM(pb.VMIdRequest(vm_id=vm_id), None)
            with pytest.raises(NotFound):
                await daemon.status(vm_id)
        assert image.stat() == before
        assert not daemon.fencing.is_protected(vm_id)


async def test_vm_that_runs_is_not_released(tmp_path: Path) -> None:
    async with node_daemon_parts(tmp_path) as daemon:
        vm_id = str(uuid.uuid4())
        await daemon.servicer.CreateVM(definition(vm_id), None)
        await daemon.hypervisor.start(vm_id)
        with pytest.raises(FailedPrecondition):
            await daemon.servicer.ReleaseVM(pb.VMIdRequest(vm_id=vm_id), None)
        assert (await daemon.hypervisor.status(vm_id)).state is PowerState.RUNNING
        assert daemon.fencing.is_protected(vm_id)
