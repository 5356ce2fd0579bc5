"""What becomes of VMs when the machine goes down; on the mock, with a control plane that answers by a script."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hypervisor.mock.backend import MockHypervisor
from hypervisor.mock.faults import MockFaults
from hypervisor.mock.host import MockSettings
from hypervisor.types import CpuTopology, PowerState, VmConfig
from limiquantix.compute.v1.node_service_pb2 import AnnounceShutdownRequest, AnnounceShutdownResponse
from limiquantix.errors import Reason, Unavailable
from limiquantix.rpc.validation import violations_of
from nodedaemon.planned_shutdown import Kind, PlannedShutdown, Policy, read_host_end

NODE_ID = str(uuid.uuid4())
FREEZE = AnnounceShutdownResponse(policy=Policy.FREEZE)


@dataclass
class Scripted:
    """`log` has what happened, in order: what was told, and for how long was waited."""

    answers: Iterator[AnnounceShutdownResponse | None]
    log: list[str] = field(default_factory=list)

    async def announce_shutdown(self, request: AnnounceShutdownRequest) -> AnnounceShutdownResponse:
        assert violations_of(request) == []
        assert request.said_at_ms > 0
        self.log.append(f"{Kind.Name(request.kind)}{' ended' if request.all_vms_ended else ''}")
        answer = next(self.answers, FREEZE)
        if answer is None:
            raise Unavailable(Reason.NODE_UNREACHABLE, "down")
        return answer

    async def sleep(self, duration_s: float) -> None:
        self.log.append(f"{duration_s:g}s")


async def running_vm(hypervisor: MockHypervisor) -> str:
    vm_id = str(uuid.uuid4())
    await hypervisor.create(VmConfig(vm_id=vm_id, name="web", cpu=CpuTopology(), memory_mib=64))
    await hypervisor.start(vm_id)
    return vm_id


class Door:
    """What says what is done to it, and cannot write the first few times."""

    def __init__(self, log: list[str], *, is_shut: bool = False, refusals: int = 0) -> None:
        self._log = log
        self.is_shut = is_shut
        self._refusals = refusals

    def close(self) -> None:
        self._log.append("closed")

    async def shut(self) -> None:
        self._write()
        self._log.append("shut")

    async def reopen(self) -> None:
        self._write()
        self.is_shut = False
        self._log.append("reopened")

    def _write(self) -> None:
        if self._refusals:
            self._refusals -= 1
            raise Unavailable(Reason.STATE_UNAVAILABLE, "the disk is full")


async def called_off(*answers: AnnounceShutdownResponse | None, is_shut: bool = False, refusals: int = 0) -> list[str]:
    plane = Scripted(iter(answers))
    door = Door(plane.log, is_shut=is_shut, refusals=refusals)
    shutdown = PlannedShutdown(
        MockHypervisor(), plane, lambda: NODE_ID, "boot-1", stop_s=0.01, migrate_s=10, door=door, sleep=plane.sleep
    )
    await shutdown.call_off()
    return plane.log


async def carried_out(
    *answers: AnnounceShutdownResponse | None,
    deaf: bool = False,
    kind: AnnounceShutdownRequest.Kind.ValueType,
    refusals: int = 0,
) -> tuple[list[str], PowerState]:
    hypervisor = MockHypervisor(MockSettings(shutdown_s=0, faults=MockFaults(all_guests_deaf=deaf)))
    await hypervisor.open()
    vm_id = await running_vm(hypervisor)
    plane = Scripted(iter(answers))

    async def beat() -> None:
        running = [vm for vm in await hypervisor.list() if vm.state is PowerState.RUNNING]
        plane.log.append(f"beat: {len(running)} running")

    shutdown = PlannedShutdown(
        hypervisor,
        plane,
        lambda: NODE_ID,
        "boot-1",
        stop_s=0.01,
        migrate_s=10,
        door=Door(plane.log, refusals=refusals),
        beat=beat,
        sleep=plane.sleep,
    )
    await shutdown.carry_out(kind)
    state = (await hypervisor.status(vm_id)).state
    await hypervisor.close()
    return plane.log, state


async def test_daemon_that_runs_takes_back_what_was_said_in_its_boot() -> None:
    log = await called_off(None, None)
    assert log == ["CANCELLED", "1s", "CANCELLED"]


async def test_host_that_had_ended_all_vms_is_opened_again_once_that_is_taken_back() -> None:
    log = await called_off(None, None, AnnounceShutdownResponse(), is_shut=True)
    assert log == ["CANCELLED", "1s", "CANCELLED", "1s", "CANCELLED", "reopened"]


async def test_host_is_not_opened_again_before_that_is_written_down() -> None:
    log = await called_off(AnnounceShutdownResponse(), is_shut=True, refusals=2)
    assert log == ["CANCELLED", "1s", "1s", "reopened"]


async def test_end_of_vms_that_cannot_be_noted_is_not_told() -> None:
    log, state = await carried_out(FREEZE, kind=Kind.REBOOT, refusals=1)
    assert (log, state) == (["REBOOT", "closed"], PowerState.STOPPED)


async def test_vms_are_ended_and_that_is_told_last() -> None:
    log, state = await carried_out(FREEZE, kind=Kind.REBOOT)
    assert (log, state) == (["REBOOT", "closed", "shut", "beat: 0 running", "REBOOT ended"], PowerState.STOPPED)


async def test_plug_of_a_guest_that_does_not_shut_down_is_pulled() -> None:
    log, state = await carried_out(AnnounceShutdownResponse(policy=Policy.FAILOVER), deaf=True, kind=Kind.POWER_OFF)
    assert (log, state) == (["POWER_OFF", "closed", "shut", "beat: 0 running", "POWER_OFF ended"], PowerState.STOPPED)


async def test_vms_are_moved_for_as_long_as_the_control_plane_says() -> None:
    left = AnnounceShutdownResponse(policy=Policy.MIGRATE, vm_ids_left=[NODE_ID], ask_again_ms=2000)
    log, _ = await carried_out(left, left, AnnounceShutdownResponse(policy=Policy.MIGRATE), kind=Kind.REBOOT)
    assert log == ["REBOOT", "2s", "REBOOT", "2s", "REBOOT", "closed", "shut", "beat: 0 running", "REBOOT ended"]


async def test_move_that_takes_too_long_is_not_waited_for() -> None:
    left = AnnounceShutdownResponse(policy=Policy.MIGRATE, vm_ids_left=[NODE_ID], ask_again_ms=4000)
    log, state = await carried_out(*[left] * 9, kind=Kind.REBOOT)
    assert [entry for entry in log if entry.endswith("s")] == ["4s", "4s", "2s"]
    assert state is PowerState.STOPPED


async def test_control_plane_that_is_away_keeps_no_host_from_going_down() -> None:
    log, state = await carried_out(*[None] * 9, kind=Kind.POWER_OFF)
    assert log[:3] == ["POWER_OFF", "1s", "POWER_OFF"]
    assert log[3:] == ["closed", "shut", "beat: 0 running", "POWER_OFF ended", "1s", "POWER_OFF ended"]
    assert state is PowerState.STOPPED


@pytest.mark.parametrize("ends", [True, False])
async def test_start_that_is_under_way_is_waited_for_and_ended_before_it_is_told_that_all_ended(ends: bool) -> None:
    hypervisor = MockHypervisor(MockSettings(shutdown_s=0))
    await hypervisor.open()
    plane, changes, started = Scripted(iter(())), {object()}, list[str]()

    async def sleep(duration_s: float) -> None:
        if not started:
            started.append(await running_vm(hypervisor))
        if ends:
            changes.clear()

    shutdown = PlannedShutdown(
        hypervisor,
        plane,
        lambda: NODE_ID,
        "boot-1",
        stop_s=1.0,
        migrate_s=10,
        door=Door(plane.log),
        under_way=lambda: changes,
        sleep=sleep,
    )
    await shutdown.carry_out(Kind.POWER_OFF)

    assert plane.log == ["POWER_OFF", "closed", *(["shut", "POWER_OFF ended"] if ends else [])]
    assert (await hypervisor.status(started[0])).state is PowerState.STOPPED
    await hypervisor.close()


@pytest.mark.parametrize(
    ("words", "kind"), [(None, None), ("poweroff", Kind.POWER_OFF), ("reboot\n", Kind.REBOOT)], ids=str
)
async def test_marker_says_what_the_machine_is_about_to_do(
    tmp_path: Path, words: str | None, kind: AnnounceShutdownRequest.Kind.ValueType | None
) -> None:
    marker = tmp_path / "going-down"
    if words is not None:
        marker.write_text(words)
    assert await read_host_end(marker) == kind
