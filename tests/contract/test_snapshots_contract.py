"""The rules of `hypervisor.snapshots`, checked on every backend."""

from __future__ import annotations

import asyncio
import dataclasses
import subprocess
import time
import uuid
from pathlib import Path

import pytest

from hypervisor.base import Hypervisor
from hypervisor.errors import (
    CannotQuiesce,
    SnapshotNameTaken,
    SnapshotNotFound,
    SnapshotUnsupported,
    VmNotFound,
    WrongState,
)
from hypervisor.mock.backend import MockHypervisor
from hypervisor.snapshots import SnapshotRequest, Snapshots
from hypervisor.types import DiskConfig, DiskFormat, PowerState, VmConfig
from tests.contract.conftest import BackendHost, LibvirtHost
from tests.support.private_libvirt_host import eventually

DEADLINE_S = 30
ABSENT = str(uuid.uuid4())


def snapshots_of(backend: Hypervisor) -> Snapshots:
    assert backend.snapshots is not None
    return backend.snapshots


def request(name: str, *, include_memory: bool = False, quiesce: bool = False) -> SnapshotRequest:
    return SnapshotRequest(str(uuid.uuid4()), name, f"about {name}", include_memory=include_memory, quiesce=quiesce)


def qemu(*words: str | Path) -> str:
    return subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True, timeout=30).stdout


class Vm:
    """A VM that boots, with a disk of its own that can hold snapshots, and hands to write to it while it is off."""

    def __init__(self, backend: Hypervisor, host: BackendHost) -> None:
        self.backend = backend
        self.snapshots = snapshots_of(backend)
        self.config = host.config()
        self.vm_id = self.config.vm_id
        self._host = host
        if isinstance(host, LibvirtHost):
            raw = self.config.disks[0].path
            self._image = raw.with_suffix(".qcow2")
            qemu("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, self._image)
            self.config = with_disk(self.config, self._image, DiskFormat.QCOW2)

    async def state(self) -> PowerState:
        return (await self.backend.status(self.vm_id)).state

    async def start(self) -> None:
        """Start it, and wait until its guest is up."""
        before = await self._hellos()
        await self.backend.start(self.vm_id)

        async def has_said_hello() -> bool | None:
            return await self._hellos() > before or None

        await eventually(has_said_hello, "the guest's hello")

    async def _hellos(self) -> int:
        log = await self.backend.read_console_log(self.vm_id, 0, 2**20)
        return log.data.count(self._host.hello)

    async def write(self, text: str) -> None:
        """Change what its disk holds; it is off before and afterwards."""
        if isinstance(self.backend, MockHypervisor):
            await self.backend.start(self.vm_id)
            await self.backend.write_disks(self.vm_id, text)
            await self.backend.force_stop(self.vm_id)
        else:
            assert len(text) == 1
            await asyncio.to_thread(qemu, "qemu-io", "-f", "qcow2", "-c", f"write -P {ord(text)} 64k 64k", self._image)

    async def holds(self, text: str) -> bool:
        """Tell whether its disk holds this now; it is off."""
        if isinstance(self.backend, MockHypervisor):
            return self.backend.read_disks(self.vm_id) == text
        command = f"read -P {ord(text)} 64k 64k"
        told = await asyncio.to_thread(qemu, "qemu-io", "-f", "qcow2", "-c", command, self._image)
        return "verification failed" not in told


def with_disk(config: VmConfig, path: Path, image_format: DiskFormat) -> VmConfig:
    disk = DiskConfig(str(uuid.uuid4()), path, image_format, boot_index=1)
    return dataclasses.replace(config, disks=(disk, *config.disks[1:]))


@pytest.fixture
async def vm(backend: Hypervisor, host: BackendHost) -> Vm:
    made = Vm(backend, host)
    await backend.create(made.config)
    return made


async def test_snapshot_of_a_vm_that_is_off_brings_its_disk_back(vm: Vm) -> None:
    await vm.write("a")
    asked, begun_s = request("before"), int(time.time())
    taken = await vm.snapshots.create(vm.vm_id, asked)
    assert (taken.snapshot_id, taken.name, taken.description) == (asked.snapshot_id, "before", "about before")
    assert (taken.state, taken.has_memory, taken.is_quiesced, taken.parent_id) == (PowerState.STOPPED, False, False, "")
    assert begun_s <= taken.created_at_s <= time.time()
    assert taken.is_current
    await vm.write("b")
    await vm.snapshots.revert(vm.vm_id, asked.snapshot_id)
    assert await vm.holds("a")
    assert await vm.state() is PowerState.STOPPED
    assert [each.snapshot_id for each in await vm.snapshots.list(vm.vm_id)] == [asked.snapshot_id]


async def test_snapshot_without_memory_of_a_running_vm_leaves_it_running_and_reverts_to_off(vm: Vm) -> None:
    await vm.write("a")
    await vm.start()
    asked = request("running")
    taken = await vm.snapshots.create(vm.vm_id, asked)
    assert (taken.state, taken.has_memory) == (PowerState.RUNNING, False)
    assert await vm.state() is PowerState.RUNNING
    await vm.backend.force_stop(vm.vm_id)
    await vm.write("b")
    await vm.start()
    await vm.snapshots.revert(vm.vm_id, asked.snapshot_id)
    assert await vm.state() is PowerState.STOPPED
    assert await vm.holds("a")
    await vm.snapshots.revert(vm.vm_id, asked.snapshot_id, start=True)
    assert await vm.state() is PowerState.RUNNING


async def test_snapshot_with_memory_goes_on_where_it_was_and_does_not_boot_again(vm: Vm, host: BackendHost) -> None:
    await vm.start()
    asked = request("memory", include_memory=True)
    taken = await vm.snapshots.create(vm.vm_id, asked)
    assert (taken.state, taken.has_memory) == (PowerState.RUNNING, True)
    assert taken.size_bytes > 0
    assert await vm.state() is PowerState.RUNNING
    await vm.backend.force_stop(vm.vm_id)
    booted = (await vm.backend.read_console_log(vm.vm_id, 0, 2**20)).data.count(host.hello)
    await vm.snapshots.revert(vm.vm_id, asked.snapshot_id)
    assert await vm.state() is PowerState.RUNNING
    await vm.backend.stop(vm.vm_id, DEADLINE_S)  # its guest reacts
    after = (await vm.backend.read_console_log(vm.vm_id, 0, 2**20)).data.count(host.hello)
    assert after <= booted + 1  # what a simulated guest printed before the snapshot is shown again, by a real one not


async def test_snapshot_of_a_paused_vm_with_memory_comes_back_paused_or_running_as_asked(vm: Vm) -> None:
    await vm.start()
    await vm.backend.pause(vm.vm_id)
    asked = request("paused", include_memory=True)
    taken = await vm.snapshots.create(vm.vm_id, asked)
    assert taken.state is PowerState.PAUSED
    assert await vm.state() is PowerState.PAUSED
    await vm.backend.resume(vm.vm_id)
    await vm.snapshots.revert(vm.vm_id, asked.snapshot_id)
    assert await vm.state() is PowerState.PAUSED
    await vm.snapshots.revert(vm.vm_id, asked.snapshot_id, start=True)
    assert await vm.state() is PowerState.RUNNING


async def test_snapshot_of_a_paused_vm_without_memory_works(vm: Vm) -> None:
    await vm.start()
    await vm.backend.pause(vm.vm_id)
    asked = request("paused")
    assert (await vm.snapshots.create(vm.vm_id, asked)).state is PowerState.PAUSED
    assert await vm.state() is PowerState.PAUSED
    await vm.snapshots.revert(vm.vm_id, asked.snapshot_id)
    assert await vm.state() is PowerState.STOPPED


async def test_create_twice_with_one_id_returns_the_first(vm: Vm) -> None:
    asked = request("once")
    first = await vm.snapshots.create(vm.vm_id, asked)
    await vm.write("z")
    again = await vm.snapshots.create(vm.vm_id, asked)
    assert (again.snapshot_id, again.created_at_s) == (first.snapshot_id, first.created_at_s)
    assert len(await vm.snapshots.list(vm.vm_id)) == 1


async def test_create_with_a_taken_name_is_refused_and_saves_nothing(vm: Vm) -> None:
    await vm.snapshots.create(vm.vm_id, request("same"))
    with pytest.raises(SnapshotNameTaken):
        await vm.snapshots.create(vm.vm_id, request("same"))
    assert len(await vm.snapshots.list(vm.vm_id)) == 1


@pytest.mark.parametrize("running", [False, True])
async def test_delete_of_the_middle_of_three_keeps_its_child(vm: Vm, running: bool) -> None:
    asked = [request(name) for name in ("one", "two", "three")]
    for text, each in zip("abc", asked, strict=True):
        await vm.write(text)
        await vm.snapshots.create(vm.vm_id, each)
    one, two, three = (each.snapshot_id for each in asked)
    assert [(s.snapshot_id, s.parent_id) for s in await vm.snapshots.list(vm.vm_id)] == [
        (one, ""),
        (two, one),
        (three, two),
    ]
    if running:
        await vm.start()
    await vm.snapshots.delete(vm.vm_id, two)
    await vm.snapshots.delete(vm.vm_id, two)
    left = await vm.snapshots.list(vm.vm_id)
    assert [(s.snapshot_id, s.parent_id, s.is_current) for s in left] == [(one, "", False), (three, one, True)]
    await vm.backend.force_stop(vm.vm_id)
    await vm.write("d")
    await vm.snapshots.revert(vm.vm_id, three)
    assert await vm.holds("c")
    await vm.snapshots.revert(vm.vm_id, one)
    assert await vm.holds("a")
    branch = await vm.snapshots.create(vm.vm_id, request("branch"))
    assert branch.parent_id == one
    with pytest.raises(SnapshotNotFound):
        await vm.snapshots.revert(vm.vm_id, two)


async def test_revert_brings_the_configuration_back_that_reconfigure_replaced(vm: Vm) -> None:
    asked = request("small")
    await vm.snapshots.create(vm.vm_id, asked)
    larger = dataclasses.replace(vm.config, memory_mib=vm.config.memory_mib * 2)
    await vm.backend.reconfigure(larger)
    assert len(await vm.snapshots.list(vm.vm_id)) == 1
    await vm.snapshots.revert(vm.vm_id, asked.snapshot_id)
    assert (await vm.backend.status(vm.vm_id)).memory_mib == vm.config.memory_mib
    await vm.backend.create(vm.config)  # it is what it was, so this does nothing


async def test_vm_with_snapshots_is_deleted_with_them(vm: Vm) -> None:
    await vm.snapshots.create(vm.vm_id, request("one"))
    await vm.backend.delete(vm.vm_id)
    with pytest.raises(VmNotFound):
        await vm.snapshots.list(vm.vm_id)
    await vm.backend.create(vm.config)
    assert list(await vm.snapshots.list(vm.vm_id)) == []


async def test_snapshots_outlive_the_process(vm: Vm, host: BackendHost) -> None:
    asked = dataclasses.replace(request("x"), name="../<'\"&> ünï", description="two\nlines & a tab\t")
    before = await vm.snapshots.create(vm.vm_id, asked)
    await vm.backend.close()
    later = host.connect()
    await later.open()
    try:
        (after,) = await snapshots_of(later).list(vm.vm_id)
        assert dataclasses.replace(after, size_bytes=0) == dataclasses.replace(before, size_bytes=0)
        assert (after.name, after.description) == (asked.name, asked.description)
    finally:
        await later.close()


async def test_wrong_states_are_refused(vm: Vm) -> None:
    with pytest.raises(WrongState):
        await vm.snapshots.create(vm.vm_id, request("memory of off", include_memory=True))
    with pytest.raises(WrongState):
        await vm.snapshots.create(vm.vm_id, request("quiet while off", quiesce=True))
    await vm.start()
    await vm.backend.suspend(vm.vm_id)
    with pytest.raises(WrongState) as caught:
        await vm.snapshots.create(vm.vm_id, request("of suspended"))
    assert caught.value.state == "suspended"
    assert list(await vm.snapshots.list(vm.vm_id)) == []


async def test_revert_of_a_suspended_vm_drops_what_was_saved(vm: Vm) -> None:
    await vm.write("a")
    asked = request("off")
    await vm.snapshots.create(vm.vm_id, asked)
    await vm.start()
    await vm.backend.suspend(vm.vm_id)
    await vm.snapshots.revert(vm.vm_id, asked.snapshot_id)
    assert await vm.state() is PowerState.STOPPED
    assert await vm.holds("a")


async def test_quiesce_without_an_agent_is_refused_and_saves_nothing(vm: Vm) -> None:
    if isinstance(vm.backend, MockHypervisor):
        from hypervisor.mock.faults import MockFaults  # noqa: PLC0415

        vm.backend.set_faults(MockFaults(silent_agent_vm_ids=frozenset({vm.vm_id})))
    await vm.start()
    with pytest.raises(CannotQuiesce):
        await vm.snapshots.create(vm.vm_id, request("quiet", quiesce=True))
    assert list(await vm.snapshots.list(vm.vm_id)) == []
    assert await vm.state() is PowerState.RUNNING


async def test_unknown_ids_are_not_found(vm: Vm) -> None:
    with pytest.raises(VmNotFound):
        await vm.snapshots.create(ABSENT, request("x"))
    with pytest.raises(VmNotFound):
        await vm.snapshots.list(ABSENT)
    with pytest.raises(SnapshotNotFound):
        await vm.snapshots.revert(vm.vm_id, ABSENT)
    await vm.snapshots.delete(vm.vm_id, ABSENT)
    assert await vm.state() is PowerState.STOPPED


async def test_raw_disk_is_refused_by_a_real_backend_with_the_reason(backend: Hypervisor, host: BackendHost) -> None:
    if not isinstance(host, LibvirtHost):
        pytest.skip("simulated disks have no format")
    config = host.config()
    await backend.create(config)
    with pytest.raises(SnapshotUnsupported, match=r"vda \(raw\)"):
        await snapshots_of(backend).create(config.vm_id, request("x"))
    await backend.start(config.vm_id)
    with pytest.raises(SnapshotUnsupported, match=r"vda \(raw\)"):
        await snapshots_of(backend).create(config.vm_id, request("x", include_memory=True))


async def test_suspended_vm_continues_where_it_was_and_force_stop_drops_it(vm: Vm, host: BackendHost) -> None:
    await vm.start()
    await vm.backend.suspend(vm.vm_id)
    assert await vm.state() is PowerState.SUSPENDED
    for method in ("suspend", "pause", "resume", "reboot"):
        with pytest.raises(WrongState):
            await getattr(vm.backend, method)(vm.vm_id)
    await vm.backend.start(vm.vm_id)
    log = (await vm.backend.read_console_log(vm.vm_id, 0, 2**20)).data
    assert log.count(host.hello) <= 1  # it did not boot again
    await vm.backend.suspend(vm.vm_id)
    await vm.backend.force_stop(vm.vm_id)
    assert await vm.state() is PowerState.STOPPED
    await vm.start()
