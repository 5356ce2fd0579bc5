"""What the mock offers beyond the contract: faults as data, a clock, a state file, outside changes."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import uuid
from pathlib import Path

import pytest

from hypervisor.errors import GuestDidNotStop, Refused, Unavailable, VmExists, VmNotFound, WrongState
from hypervisor.mock.backend import MockHypervisor
from hypervisor.mock.faults import Failure, Fault, MockFaults, Operation
from hypervisor.mock.host import MAX_PAST_LOG_BYTES, MockSettings
from hypervisor.types import (
    BootDevice,
    CdromConfig,
    CpuTopology,
    DirectBoot,
    DiskConfig,
    EventKind,
    NicConfig,
    PowerState,
    VmConfig,
    VmEvent,
    VncConsole,
)


class Clock:
    """Time that passes only when slept or told."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, delay_s: float) -> None:
        self.now_s += delay_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def mock(clock: Clock, settings: MockSettings | None = None) -> MockHypervisor:
    hypervisor = MockHypervisor(settings, now_s=clock, sleep=clock.sleep)
    await hypervisor.open()
    return hypervisor


def vm(memory_mib: int = 128, vcpus: int = 2) -> VmConfig:
    return VmConfig(str(uuid.uuid4()), "web", CpuTopology(cores=vcpus), memory_mib)


async def running(hypervisor: MockHypervisor, config: VmConfig | None = None) -> str:
    config = config or vm()
    await hypervisor.create(config)
    await hypervisor.start(config.vm_id)
    return config.vm_id


async def test_fault_refused_fails_only_that_operation_and_vm(clock: Clock) -> None:
    hypervisor = await mock(clock)
    config, other = vm(), vm()
    await hypervisor.create(config)
    await hypervisor.create(other)
    fault = Fault(Operation.START, Failure.REFUSED, vm_id=config.vm_id, message="no such bridge")
    hypervisor.set_faults(MockFaults((fault,)))
    with pytest.raises(Refused, match="no such bridge"):
        await hypervisor.start(config.vm_id)
    assert (await hypervisor.status(config.vm_id)).state is PowerState.STOPPED
    await hypervisor.start(other.vm_id)


async def test_fault_with_times_is_used_up(clock: Clock) -> None:
    hypervisor = await mock(
        clock, MockSettings(faults=MockFaults((Fault(Operation.LIST, Failure.UNAVAILABLE, times=2),)))
    )
    for _ in range(2):
        with pytest.raises(Unavailable):
            await hypervisor.list()
    assert list(await hypervisor.list()) == []


async def test_fault_answer_lost_does_the_operation_all_the_same(clock: Clock) -> None:
    hypervisor = await mock(clock)
    config = vm()
    hypervisor.set_faults(MockFaults((Fault(Operation.CREATE, Failure.ANSWER_LOST),)))
    with pytest.raises(Unavailable):
        await hypervisor.create(config)
    assert (await hypervisor.status(config.vm_id)).state is PowerState.STOPPED


async def test_fault_delay_takes_simulated_time(clock: Clock) -> None:
    hypervisor = await mock(clock, MockSettings(faults=MockFaults((Fault(Operation.CREATE, delay_s=7),))))
    before_s = clock.now_s
    await hypervisor.create(vm())
    assert clock.now_s == before_s + 7


async def test_deaf_guest_runs_on_after_the_timeout(clock: Clock) -> None:
    hypervisor = await mock(clock, MockSettings(faults=MockFaults(all_guests_deaf=True)))
    vm_id = await running(hypervisor)
    with pytest.raises(GuestDidNotStop):
        await hypervisor.stop(vm_id, 30)
    assert (await hypervisor.status(vm_id)).state is PowerState.RUNNING


async def test_crash_of_a_stopped_vm_is_a_wrong_state(clock: Clock) -> None:
    hypervisor = await mock(clock)
    config = vm()
    await hypervisor.create(config)
    with pytest.raises(WrongState):
        await hypervisor.crash(config.vm_id)


async def test_removed_behind_our_back_is_an_event_and_not_found(clock: Clock) -> None:
    hypervisor = await mock(clock)
    vm_id = await running(hypervisor)
    events: list[VmEvent] = []
    hypervisor.subscribe(events.append)
    await hypervisor.remove_behind_our_back(vm_id)
    assert [event.kind for event in events] == [EventKind.STOPPED, EventKind.REMOVED]
    with pytest.raises(VmNotFound):
        await hypervisor.status(vm_id)


async def test_lost_events_are_announced_by_resync(clock: Clock) -> None:
    hypervisor = await mock(clock)
    events: list[VmEvent] = []
    hypervisor.subscribe(events.append)
    hypervisor.lose_events()
    assert [event.kind for event in events] == [EventKind.RESYNC]


async def test_start_beyond_the_hosts_memory_is_refused_with_the_numbers(clock: Clock) -> None:
    hypervisor = await mock(clock, MockSettings(memory_mib=1000))
    await running(hypervisor, vm(memory_mib=600))
    with pytest.raises(Refused, match="needs 600 MiB, the host has 400 MiB free"):
        await running(hypervisor, vm(memory_mib=600))


async def test_fault_23_cpu_time_grows_with_time_load_and_vcpus_and_stands_while_paused(clock: Clock) -> None:
    hypervisor = await mock(clock)
    vm_id = await running(hypervisor, vm(vcpus=4))
    await hypervisor.set_load(vm_id, 0.5)
    clock.now_s += 600
    used_ns = (await hypervisor.status(vm_id)).cpu_time_ns
    assert used_ns == pytest.approx(600 * 4 * 0.5 * 1e9, rel=0.05)
    await hypervisor.pause(vm_id)
    clock.now_s += 600
    assert (await hypervisor.status(vm_id)).cpu_time_ns == used_ns
    await hypervisor.resume(vm_id)
    await hypervisor.set_load(vm_id, 0.0)
    clock.now_s += 600
    assert (await hypervisor.status(vm_id)).cpu_time_ns == pytest.approx(used_ns)


async def test_fault_23_memory_used_moves_and_stays_below_the_total(clock: Clock) -> None:
    hypervisor = await mock(clock)
    vm_id = await running(hypervisor)
    seen = set()
    for _ in range(20):
        clock.now_s += 7
        status = await hypervisor.status(vm_id)
        assert 0 < status.memory_used_bytes < status.memory_total_bytes
        seen.add(status.memory_used_bytes)
    assert len(seen) == 20


async def test_console_log_appears_line_by_line_and_ends_with_the_ready_line(clock: Clock) -> None:
    hypervisor = await mock(clock, MockSettings(boot_s=2.0))
    vm_id = await running(hypervisor)
    early = await hypervisor.read_console_log(vm_id, 0, 2**20)
    assert b"READY" not in early.data
    clock.now_s += 2
    later = await hypervisor.read_console_log(vm_id, early.next_offset, 2**20)
    last = b"LIMIQUANTIX-GUEST READY hostname=web memory_mib=128 vcpus=2 kernel=mock uptime_s=2.00\r\n"
    assert later.data.endswith(last)


async def test_console_log_of_many_boots_drops_the_oldest_bytes_and_keeps_offsets(clock: Clock) -> None:
    hypervisor = await mock(clock)
    config = vm()
    await hypervisor.create(config)
    for _ in range(60):
        await hypervisor.start(config.vm_id)
        clock.now_s += 10
        await hypervisor.force_stop(config.vm_id)
    end = (await hypervisor.read_console_log(config.vm_id, 10**9, 1)).size_bytes
    assert end > MAX_PAST_LOG_BYTES
    kept = await hypervisor.read_console_log(config.vm_id, end - MAX_PAST_LOG_BYTES, 2**20)
    assert len(kept.data) == MAX_PAST_LOG_BYTES
    assert await hypervisor.read_console_log(config.vm_id, 0, 2**20) == kept


async def test_state_file_brings_every_vm_back_as_it_was(clock: Clock, tmp_path: Path) -> None:
    settings = MockSettings(state_path=tmp_path / "sub" / "mock.json")
    config = dataclasses.replace(
        vm(),
        boot_order=(BootDevice.CDROM, BootDevice.DISK),
        direct_boot=DirectBoot(Path("/boot/k"), None, "quiet"),
        disks=(DiskConfig("d", Path("/images/d")),),
        cdroms=(CdromConfig("c", Path("/images/i")), CdromConfig("e")),
        nics=(NicConfig("n", "52:54:00:00:00:01"),),
        vnc=VncConsole("secret12"),
    )
    first = await mock(clock, settings)
    vm_id = await running(first, config)
    clock.now_s += 100
    before = await first.status(vm_id)
    second = await mock(clock, settings)
    assert await second.status(vm_id) == before
    await second.create(config)
    clock.now_s += 100
    assert (await second.status(vm_id)).cpu_time_ns > before.cpu_time_ns
    assert (
        [path.name for path in settings.state_path.parent.iterdir()] == ["mock.json"] if settings.state_path else False
    )


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format_version": 9, "vms": []}', '{"format_version": 1, "vms": [{"config": 1}]}']
)
async def test_state_file_that_is_damaged_is_unavailable_and_left_alone(
    clock: Clock, tmp_path: Path, content: str
) -> None:
    path = tmp_path / "mock.json"
    path.write_text(content)
    with pytest.raises(Unavailable, match="move it away"):
        await mock(clock, MockSettings(state_path=path))
    assert path.read_text() == content


async def test_state_file_that_cannot_be_written_fails_the_operation(clock: Clock, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    hypervisor = await mock(clock, MockSettings(state_path=tmp_path / "file2" / "mock.json"))
    (tmp_path / "file2").write_text("not a directory")
    with pytest.raises(Unavailable, match="cannot be written"):
        await hypervisor.create(vm())


@pytest.mark.parametrize("load", [-0.1, 1.1])
async def test_load_outside_0_to_1_is_refused(clock: Clock, load: float) -> None:
    hypervisor = await mock(clock)
    vm_id = await running(hypervisor)
    with pytest.raises(ValueError, match="from 0 to 1"):
        await hypervisor.set_load(vm_id, load)


async def test_cancelled_change_leaves_one_writer_and_a_whole_state_file(tmp_path: Path) -> None:
    settings = MockSettings(state_path=tmp_path / "vms.json", boot_s=0, shutdown_s=0)
    hypervisor = MockHypervisor(settings)
    await hypervisor.open()
    vm_id = await running(hypervisor)
    for turn_count in range(30):  # cancelled at every turn of the loop that a stop or start takes
        task = asyncio.create_task(hypervisor.stop(vm_id, 1) if turn_count % 2 else hypervisor.reboot(vm_id))
        for _ in range(turn_count // 3):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        if (await hypervisor.status(vm_id)).state is PowerState.STOPPED:
            await hypervisor.start(vm_id)
    await hypervisor.force_stop(vm_id)
    await hypervisor.close()
    again = MockHypervisor(settings)
    await again.open()
    assert [(vm.vm_id, vm.state) for vm in await again.list()] == [(vm_id, PowerState.STOPPED)]
    assert await asyncio.to_thread(os.listdir, tmp_path) == ["vms.json"]


async def test_foreign_vm_is_not_taken_for_one_that_was_created(clock: Clock) -> None:
    hypervisor = await mock(clock)
    config = vm()
    await hypervisor.define_behind_our_back(config)
    with pytest.raises(VmExists):
        await hypervisor.create(config)
