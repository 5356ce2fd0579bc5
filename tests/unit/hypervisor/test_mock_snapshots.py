"""What the mock's snapshots offer beyond the contract: guests that stay frozen when the process dies, and time."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import pytest

from hypervisor.errors import Refused, Unavailable
from hypervisor.mock.backend import MockHypervisor
from hypervisor.mock.faults import Failure, Fault, MockFaults, Operation
from hypervisor.mock.host import MockSettings
from hypervisor.snapshots import SnapshotRequest, Snapshots
from hypervisor.types import CpuTopology, PowerState, VmConfig
from tests.support.private_libvirt_host import eventually

MIB = 64


def request(*, include_memory: bool = False, quiesce: bool = False) -> SnapshotRequest:
    return SnapshotRequest(str(uuid.uuid4()), "s", include_memory=include_memory, quiesce=quiesce)


def snapshots_of(hypervisor: MockHypervisor) -> Snapshots:
    assert hypervisor.snapshots is not None
    return hypervisor.snapshots


async def running(hypervisor: MockHypervisor) -> str:
    config = VmConfig(str(uuid.uuid4()), "vm", CpuTopology(), MIB)
    await hypervisor.create(config)
    await hypervisor.start(config.vm_id)
    return config.vm_id


async def opened(path: Path | None = None, memory_mib: int = 1024) -> MockHypervisor:
    hypervisor = MockHypervisor(MockSettings(state_path=path, boot_s=0, memory_mib=memory_mib))
    await hypervisor.open()
    return hypervisor


async def frozen(hypervisor: MockHypervisor, vm_id: str) -> None:
    async with asyncio.timeout(60):
        while not hypervisor.is_frozen(vm_id):  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0)


async def test_guest_is_frozen_while_it_is_saved_and_thawed_when_that_fails() -> None:
    hypervisor = await opened()
    vm_id = await running(hypervisor)
    hypervisor.set_faults(MockFaults((Fault(Operation.SAVE_SNAPSHOT, Failure.REFUSED, delay_s=0.5),)))
    taking = asyncio.create_task(snapshots_of(hypervisor).create(vm_id, request(quiesce=True)))
    await frozen(hypervisor, vm_id)
    with pytest.raises(Refused, match="frozen"):
        await hypervisor.write_disks(vm_id, "x")
    with pytest.raises(Refused):
        await taking
    assert not hypervisor.is_frozen(vm_id)
    await hypervisor.write_disks(vm_id, "x")


async def test_guest_is_thawed_when_the_caller_goes_away() -> None:
    hypervisor = await opened()
    vm_id = await running(hypervisor)
    hypervisor.set_faults(MockFaults((Fault(Operation.SAVE_SNAPSHOT, delay_s=60),)))
    taking = asyncio.create_task(snapshots_of(hypervisor).create(vm_id, request(quiesce=True)))
    await frozen(hypervisor, vm_id)
    taking.cancel()
    await asyncio.wait({taking})
    assert not hypervisor.is_frozen(vm_id)
    assert list(await snapshots_of(hypervisor).list(vm_id)) == []


async def test_guest_that_a_dead_process_left_frozen_is_thawed_by_the_next(tmp_path: Path) -> None:
    dies = await opened(tmp_path / "mock.json")
    vm_id = await running(dies)
    dies.set_faults(MockFaults((Fault(Operation.SAVE_SNAPSHOT, delay_s=60),)))
    taking = asyncio.create_task(snapshots_of(dies).create(vm_id, request(quiesce=True)))

    async def note() -> bytes | None:
        written = (tmp_path / "mock.json").read_bytes()
        return written if b'"is_frozen": true' in written else None

    file_of_the_dead = await eventually(note, "the note that the guest is frozen")
    taking.cancel()
    await asyncio.wait({taking})
    await dies.close()
    (tmp_path / "mock.json").write_bytes(file_of_the_dead)  # as a kill in the middle leaves it

    later = await opened(tmp_path / "mock.json")
    assert not later.is_frozen(vm_id)
    assert '"is_frozen": true' not in (tmp_path / "mock.json").read_text()


async def test_answer_that_is_lost_leaves_the_snapshot() -> None:
    hypervisor = await opened()
    vm_id = await running(hypervisor)
    hypervisor.set_faults(MockFaults((Fault(Operation.CREATE_SNAPSHOT, Failure.ANSWER_LOST, times=1),)))
    wanted = request()
    with pytest.raises(Unavailable):
        await snapshots_of(hypervisor).create(vm_id, wanted)
    assert (await snapshots_of(hypervisor).create(vm_id, wanted)).snapshot_id == wanted.snapshot_id
    assert len(await snapshots_of(hypervisor).list(vm_id)) == 1


async def test_revert_to_memory_that_finds_no_room_is_refused_and_changes_nothing() -> None:
    hypervisor = await opened(memory_mib=100)
    vm_id = await running(hypervisor)
    wanted = request(include_memory=True)
    await snapshots_of(hypervisor).create(vm_id, wanted)
    await hypervisor.force_stop(vm_id)
    await running(hypervisor)
    with pytest.raises(Refused, match="MiB free"):
        await snapshots_of(hypervisor).revert(vm_id, wanted.snapshot_id)
    assert (await hypervisor.status(vm_id)).state is PowerState.STOPPED
