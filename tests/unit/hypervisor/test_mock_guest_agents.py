"""Simulated guests' agents: there once they have booted, and with a memory that outlives the process."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from hypervisor.errors import GuestAgentAbsent, GuestAgentRefused, GuestAgentSilent, Refused, Unavailable
from hypervisor.guests import FreezeStatus, GuestAgents, GuestCommand
from hypervisor.mock.backend import MockHypervisor
from hypervisor.mock.faults import Failure, Fault, MockFaults, Operation
from hypervisor.mock.guest_disk import MAX_BYTES
from hypervisor.mock.host import MockSettings
from hypervisor.types import CpuTopology, PowerState, VmConfig

NOW_S = 1000.0


class Clock:
    """Time that passes when it is waited for."""

    def __init__(self) -> None:
        self.at_s = NOW_S

    def __call__(self) -> float:
        return self.at_s

    async def sleep(self, seconds: float) -> None:
        self.at_s += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def opened(directory: Path, clock: Clock) -> MockHypervisor:
    settings = MockSettings(boot_s=5.0, shutdown_s=1.0, state_path=directory / "vms.json")
    hypervisor = MockHypervisor(settings, now_s=clock, sleep=clock.sleep)
    await hypervisor.open()
    return hypervisor


def agents(hypervisor: MockHypervisor) -> GuestAgents:
    assert hypervisor.guests is not None
    return hypervisor.guests


async def booted(hypervisor: MockHypervisor, clock: Clock) -> str:
    config = VmConfig(str(uuid.uuid4()), "web", CpuTopology(), 64)
    await hypervisor.create(config)
    await hypervisor.start(config.vm_id)
    await clock.sleep(5)
    return config.vm_id


async def test_agent_is_absent_until_the_guest_has_booted(tmp_path: Path, clock: Clock) -> None:
    hypervisor = await opened(tmp_path, clock)
    vm_id = await booted(hypervisor, clock)
    assert (await agents(hypervisor).ping(vm_id)).uptime_s == 5
    await hypervisor.reboot(vm_id)
    with pytest.raises(GuestAgentAbsent):
        await agents(hypervisor).ping(vm_id)


async def test_files_and_passwords_outlive_the_process_and_the_boot(tmp_path: Path, clock: Clock) -> None:
    first = await opened(tmp_path, clock)
    vm_id = await booted(first, clock)
    await agents(first).write_file(vm_id, "/srv/a", b"\xff\x00", 0o600, makes_parents=True)
    await agents(first).set_password(vm_id, "ann", "x")
    await first.force_stop(vm_id)
    second = await opened(tmp_path, clock)
    await second.start(vm_id)
    await clock.sleep(5)
    assert (await agents(second).read_file(vm_id, "/srv/a", 10)).data == b"\xff\x00"
    assert (await agents(second).read_file(vm_id, "/etc/shadow", 100)).data.startswith(b"ann:")
    assert "\nann:x\n" not in (tmp_path / "vms.json").read_text()


async def test_file_is_as_it_was_after_the_snapshot_is_reverted(tmp_path: Path, clock: Clock) -> None:
    hypervisor = await opened(tmp_path, clock)
    vm_id = await booted(hypervisor, clock)
    await agents(hypervisor).write_file(vm_id, "/a", b"before", 0, makes_parents=False)
    saved = hypervisor.read_disks(vm_id)
    await agents(hypervisor).write_file(vm_id, "/a", b"after", 0, makes_parents=False)
    await hypervisor.write_disks(vm_id, saved)
    assert (await agents(hypervisor).read_file(vm_id, "/a", 10)).data == b"before"


async def test_disk_that_was_written_as_a_whole_is_one_file(tmp_path: Path, clock: Clock) -> None:
    hypervisor = await opened(tmp_path, clock)
    vm_id = await booted(hypervisor, clock)
    await hypervisor.write_disks(vm_id, "raw")
    assert (await agents(hypervisor).read_file(vm_id, "/dev/vda", 10)).data == b"raw"


async def test_disk_that_is_full_refuses_more(tmp_path: Path, clock: Clock) -> None:
    hypervisor = await opened(tmp_path, clock)
    vm_id = await booted(hypervisor, clock)
    for number in range(MAX_BYTES // 2**20):
        await agents(hypervisor).write_file(vm_id, f"/{number}", bytes(2**20), 0, makes_parents=False)
    with pytest.raises(GuestAgentRefused, match="No space left"):
        await agents(hypervisor).write_file(vm_id, "/more", b"x", 0, makes_parents=False)


async def test_frozen_guest_refuses_everything_until_it_is_thawed_or_boots(tmp_path: Path, clock: Clock) -> None:
    hypervisor = await opened(tmp_path, clock)
    vm_id = await booted(hypervisor, clock)
    await agents(hypervisor).freeze(vm_id)
    with pytest.raises(GuestAgentRefused):
        await agents(hypervisor).ping(vm_id)
    with pytest.raises(Refused):
        await hypervisor.write_disks(vm_id, "x")
    await hypervisor.reboot(vm_id)
    await clock.sleep(5)
    assert await agents(hypervisor).freeze_status(vm_id) is FreezeStatus.THAWED


async def test_command_that_sleeps_takes_its_time_and_no_more_than_its_limit(tmp_path: Path, clock: Clock) -> None:
    hypervisor = await opened(tmp_path, clock)
    vm_id = await booted(hypervisor, clock)
    before_s = clock.at_s
    result = await agents(hypervisor).execute(vm_id, GuestCommand("sleep", ("7",), time_limit_s=10))
    assert (result.exit_code, clock.at_s - before_s) == (0, 7)
    result = await agents(hypervisor).execute(vm_id, GuestCommand("sleep", ("70",), time_limit_s=10))
    assert (result.has_timed_out, clock.at_s - before_s) == (True, 17)


async def test_shutdown_by_the_agent_ends_the_guest_though_it_is_deaf(tmp_path: Path, clock: Clock) -> None:
    hypervisor = await opened(tmp_path, clock)
    vm_id = await booted(hypervisor, clock)
    hypervisor.set_faults(MockFaults(deaf_vm_ids=frozenset({vm_id})))
    with pytest.raises(GuestAgentRefused):  # there is nobody to keep a delay
        await agents(hypervisor).shut_down(vm_id, delay_s=5)
    await agents(hypervisor).shut_down(vm_id)
    assert (await hypervisor.status(vm_id)).state is PowerState.STOPPED


@pytest.mark.parametrize(
    ("faults", "error"),
    [
        (lambda vm_id: MockFaults(silent_agent_vm_ids=frozenset({vm_id})), GuestAgentSilent),
        (lambda vm_id: MockFaults(absent_agent_vm_ids=frozenset({vm_id})), GuestAgentAbsent),
        (lambda vm_id: MockFaults(garbage_agent_vm_ids=frozenset({vm_id})), GuestAgentRefused),
        (lambda _: MockFaults((Fault(Operation.ASK_GUEST, Failure.UNAVAILABLE),)), Unavailable),
    ],
    ids=["silent", "absent", "garbage", "unavailable"],
)
async def test_agent_misbehaves_as_told(tmp_path: Path, clock: Clock, faults: object, error: type[Exception]) -> None:
    hypervisor = await opened(tmp_path, clock)
    vm_id = await booted(hypervisor, clock)
    assert callable(faults)
    hypervisor.set_faults(faults(vm_id))
    with pytest.raises(error):
        await agents(hypervisor).ping(vm_id)
