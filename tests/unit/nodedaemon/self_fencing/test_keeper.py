"""Self-fencing in the daemon, on a clock that passes when told and simulated VMs."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from hypervisor.mock.backend import MockHypervisor
from hypervisor.types import CpuTopology, PowerState, VmConfig
from limiquantix.compute.v1 import node_service_pb2 as pb
from limiquantix.errors import Aborted, FailedPrecondition, Reason, Unavailable
from limiquantix.rpc.validation import violations_of
from nodedaemon.fence_gate import EPOCH_KEY, TOKEN_KEY, FenceGate
from nodedaemon.self_fencing.guard_link import GuardLink
from nodedaemon.self_fencing.keeper import SelfFencing
from nodedaemon.self_fencing.memory import HaMemory, open_memory

SECOND = 1_000_000_000
BOOT_ID = "boot-1"


class Clock:
    """Passes only when told, or when somebody sleeps."""

    def __init__(self) -> None:
        self.ns = 1_000 * SECOND
        self.on_sleep: Callable[[float], Awaitable[None]] | None = None

    def __call__(self) -> int:
        return self.ns

    async def sleep(self, duration_s: float) -> None:
        self.ns += int(duration_s * 1e9)
        await asyncio.sleep(0)
        if self.on_sleep is not None:
            await self.on_sleep(duration_s)


@dataclass
class Host:
    """A simulated host that fences itself."""

    directory: Path
    hypervisor: MockHypervisor
    memory: HaMemory
    fencing: SelfFencing
    clock: Clock

    async def vm(self, *, is_protected: bool) -> str:
        vm_id = str(uuid.uuid4())
        await self.hypervisor.create(VmConfig(vm_id=vm_id, name="web", cpu=CpuTopology(), memory_mib=64))
        if is_protected:
            await self.fencing.protect(vm_id, is_protected=True)
        await self.hypervisor.start(vm_id)
        return vm_id

    async def state(self, vm_id: str) -> PowerState:
        return (await self.hypervisor.status(vm_id)).state

    async def lease(self, duration_ms: int = 9000, **fields: int | bool) -> None:
        told = {"epoch": 1, "ha_version": 1, "ha_is_armed": True} | fields
        await self.fencing.take_answer(
            self.clock.ns,
            pb.UpdateHeartbeatResponse(lease=pb.NodeLease(duration_ms=duration_ms), **told),  # type: ignore[arg-type]
        )

    async def run_until(self, at_ns: int) -> None:
        running = asyncio.create_task(self.fencing.run())
        async with asyncio.timeout(30):
            while self.clock.ns < at_ns:  # noqa: ASYNC110 - a clock of our own, which tells nobody
                await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    def again(self) -> SelfFencing:
        """What a new daemon of the same host begins with."""
        return fencing_of(self.directory, open_memory(self.directory), self.hypervisor, self.clock)


def fencing_of(
    directory: Path, memory: HaMemory, hypervisor: MockHypervisor, clock: Clock, boot_id: str = BOOT_ID
) -> SelfFencing:
    guard = GuardLink(directory / "guard", directory / "boot-id", starts=False, now_ns=clock)
    return SelfFencing(memory, hypervisor.processes, guard, boot_id=boot_id, now_ns=clock, sleep=clock.sleep)


async def inform(fencing: SelfFencing, clock: Clock, *, read_ms_ago: int = 0, fence_token: int = 0) -> None:
    answer = pb.UpdateHeartbeatResponse(fences_read_ms_ago=read_ms_ago, epoch=1, fence_token=fence_token)
    await fencing.take_answer(clock.ns, answer)


@asynccontextmanager
async def host(directory: Path) -> AsyncIterator[Host]:
    hypervisor, clock = MockHypervisor(), Clock()
    await hypervisor.open()
    memory = open_memory(directory)
    yield Host(directory, hypervisor, memory, fencing_of(directory, memory, hypervisor, clock), clock)
    await hypervisor.close()
    memory.close()


async def test_end_of_the_lease_kills_protected_vms_and_no_others(tmp_path: Path) -> None:
    async with host(tmp_path) as node:
        await node.lease()
        protected, other = await node.vm(is_protected=True), await node.vm(is_protected=False)
        end_ns = node.fencing.lease.end_ns
        await node.run_until(end_ns - SECOND // 10)
        assert await node.state(protected) is PowerState.RUNNING
        await node.run_until(end_ns + SECOND)
        assert await node.state(protected) is PowerState.CRASHED
        assert await node.state(other) is PowerState.RUNNING


async def test_vm_that_is_started_behind_the_daemons_back_after_the_end_is_killed_too(tmp_path: Path) -> None:
    async with host(tmp_path) as node:
        await node.lease()
        vm_id = await node.vm(is_protected=True)
        await node.run_until(node.fencing.lease.end_ns + SECOND)
        await node.hypervisor.start(vm_id)
        await node.run_until(node.clock.ns + SECOND)
        assert await node.state(vm_id) is PowerState.CRASHED


async def test_disarmed_host_kills_nothing(tmp_path: Path) -> None:
    async with host(tmp_path) as node:
        await node.lease()
        vm_id = await node.vm(is_protected=True)
        await node.fencing.take_answer(node.clock.ns, pb.UpdateHeartbeatResponse(epoch=1, ha_version=2))
        await node.run_until(node.fencing.lease.end_ns + 60 * SECOND)
        assert await node.state(vm_id) is PowerState.RUNNING


async def test_host_that_was_never_told_refuses_and_kills_nothing(tmp_path: Path) -> None:
    async with host(tmp_path) as node:
        vm_id = await node.vm(is_protected=True)
        node.fencing.require_lease(vm_id)
        await node.run_until(node.clock.ns + 60 * SECOND)
        assert await node.state(vm_id) is PowerState.RUNNING


async def test_without_a_lease_protected_vms_are_refused_with_advice(tmp_path: Path) -> None:
    async with host(tmp_path) as node:
        await node.lease()
        protected, other = await node.vm(is_protected=True), await node.vm(is_protected=False)
        node.fencing.require_lease(protected)
        node.clock.ns = node.fencing.lease.end_ns
        with pytest.raises(FailedPrecondition, match="disarm high availability") as refused:
            node.fencing.require_lease(protected)
        assert refused.value.reason == Reason.LEASE_ENDED
        node.fencing.require_lease(other)


async def test_new_daemon_goes_on_with_the_lease_of_the_old_one(tmp_path: Path) -> None:
    async with host(tmp_path) as node:
        await node.lease()
        vm_id = await node.vm(is_protected=True)
        again = node.again()
        assert again.lease == node.fencing.lease
        again.require_lease(vm_id)


async def test_new_daemon_of_another_boot_has_no_lease(tmp_path: Path) -> None:
    async with host(tmp_path) as node:
        await node.lease()
        vm_id = await node.vm(is_protected=True)
        again = fencing_of(tmp_path, open_memory(tmp_path), node.hypervisor, node.clock, boot_id="boot-2")
        with pytest.raises(FailedPrecondition):
            again.require_lease(vm_id)


async def test_heartbeat_says_what_is_known_and_how_long_the_lease_lasts(tmp_path: Path) -> None:
    async with host(tmp_path) as node:
        await node.lease(fence_token=7, epoch=3)
        node.clock.ns += 2 * SECOND
        request = pb.UpdateHeartbeatRequest(node_id=str(uuid.uuid4()))
        node.fencing.describe(request)
        assert violations_of(request) == []
        assert (request.boot_id, request.known_epoch, request.known_fence_token) == (BOOT_ID, 3, 7)
        assert (request.known_ha_version, request.lease_left_ms) == (1, 7000)
        assert (request.can_self_fence, request.self_fencing_obstacle) == (True, "")
        assert request.self_fences_within_ms == 1000


async def test_command_from_before_a_fence_is_refused_also_by_the_next_daemon(tmp_path: Path) -> None:
    async with host(tmp_path) as node:
        await inform(node.fencing, node.clock)
        await FenceGate(node.fencing).admit("/x/StartVM", ((TOKEN_KEY, "8"), (EPOCH_KEY, "3")))
        next_fencing = node.again()
        await inform(next_fencing, node.clock)
        for fencing in (node.fencing, next_fencing, node.again()):
            for metadata, reason in (
                (((TOKEN_KEY, "7"), (EPOCH_KEY, "3")), Reason.STALE_FENCE_TOKEN),
                (((TOKEN_KEY, "8"), (EPOCH_KEY, "2")), Reason.STALE_EPOCH),
            ):
                with pytest.raises(Aborted) as refused:
                    await FenceGate(fencing).admit("/x/StartVM", metadata)
                assert refused.value.reason == reason
            await FenceGate(fencing).admit("/x/StartVM", ())
        assert not fencing.is_informed  # what it knows to be stale needs no waiting


async def test_host_that_goes_down_lets_in_no_change_and_none_go_on(tmp_path: Path) -> None:
    async with host(tmp_path) as node:
        gate = FenceGate(node.fencing)
        await gate.admit("/x/StartVM", ())
        told = gate.told()
        gate.close()
        with pytest.raises(Unavailable) as refused:
            await gate.admit("/x/StartVM", ())
        assert refused.value.reason == Reason.STOPPING
        with pytest.raises(Unavailable):
            gate.require_newest(told)
        await gate.admit("/x/GetVMStatus", ())


async def test_daemon_that_just_began_takes_a_command_once_it_was_told_of_fences(tmp_path: Path) -> None:
    """It remembers token 0; the fence came after, and the command is of before that."""
    async with host(tmp_path) as node:
        fencing = node.again()
        answers = iter(
            [
                pb.UpdateHeartbeatResponse(epoch=1),  # of one that does not know of fences
                pb.UpdateHeartbeatResponse(epoch=1, fence_token=6, fences_read_ms_ago=0),
            ]
        )

        async def hear(duration_s: float) -> None:
            await fencing.take_answer(node.clock.ns, next(answers))

        node.clock.on_sleep = hear
        with pytest.raises(Aborted) as refused:
            await FenceGate(fencing).admit("/x/StartVM", ((TOKEN_KEY, "0"), (EPOCH_KEY, "1")))
        assert refused.value.reason == Reason.STALE_FENCE_TOKEN
        assert next(answers, None) is None
        await FenceGate(fencing).admit("/x/StartVM", ((TOKEN_KEY, "6"),))


@pytest.mark.parametrize("metadata", [((TOKEN_KEY, "0"),), ((EPOCH_KEY, "1"),)])
async def test_daemon_that_is_told_nothing_takes_no_command_of_a_control_plane(
    tmp_path: Path, metadata: tuple[tuple[str, str]]
) -> None:
    async with host(tmp_path) as node:
        began_ns = node.clock.ns
        with pytest.raises(Unavailable) as refused:
            await FenceGate(node.fencing).admit("/x/StartVM", metadata)
        assert refused.value.reason == Reason.NOT_INFORMED_YET
        assert 5 * SECOND <= node.clock.ns - began_ns < 6 * SECOND
        await FenceGate(node.fencing).admit("/x/StartVM", ())  # a person's
        await FenceGate(node.fencing).admit("/x/GetVMStatus", metadata)
        await FenceGate(node.fencing, is_told=lambda: False).admit("/x/StartVM", metadata)


@pytest.mark.parametrize(("read_ms_ago", "is_informed"), [(501, False), (500, True)])
async def test_what_was_read_before_the_daemon_began_tells_it_nothing(
    tmp_path: Path, read_ms_ago: int, is_informed: bool
) -> None:
    async with host(tmp_path) as node:
        fencing = node.again()
        node.clock.ns += SECOND // 2
        await inform(fencing, node.clock, read_ms_ago=read_ms_ago)
        assert fencing.is_informed is is_informed
        await inform(fencing, node.clock, read_ms_ago=10_000)
        assert fencing.is_informed is is_informed


async def test_host_that_said_that_it_ended_all_vms_stays_shut_for_the_next_daemon_of_that_boot(tmp_path: Path) -> None:
    async with host(tmp_path) as node:
        await FenceGate(node.fencing).shut()
        for fencing in (node.fencing, node.again()):
            await inform(fencing, node.clock)
            for metadata in ((), ((TOKEN_KEY, "5"),)):
                with pytest.raises(Unavailable) as refused:
                    await FenceGate(fencing).admit("/x/StartVM", metadata)
                assert refused.value.reason == Reason.STOPPING
        gate = FenceGate(fencing)
        node.clock.ns += SECOND
        await gate.reopen()
        assert not gate.is_shut
        await inform(fencing, node.clock, read_ms_ago=1)
        assert not fencing.is_informed  # the VMs may have been moved before it was taken back
        await inform(fencing, node.clock)
        await gate.admit("/x/StartVM", ((TOKEN_KEY, "5"),))
        assert not node.again().is_shut


async def test_host_is_open_again_in_its_next_boot(tmp_path: Path) -> None:
    async with host(tmp_path) as node:
        await FenceGate(node.fencing).shut()
        memory = open_memory(tmp_path)
        assert not fencing_of(tmp_path, memory, node.hypervisor, node.clock, "the-next-boot").is_shut
        memory.close()


async def test_host_that_takes_back_that_it_goes_opens_nothing_that_this_daemon_closed(tmp_path: Path) -> None:
    async with host(tmp_path) as node:
        gate = FenceGate(node.fencing)
        await gate.shut()
        await gate.reopen()
        with pytest.raises(Unavailable):
            await gate.admit("/x/StartVM", ())


async def test_command_that_waited_is_looked_at_again(tmp_path: Path) -> None:
    async with host(tmp_path) as node:
        await inform(node.fencing, node.clock)
        gate = FenceGate(node.fencing)
        await gate.admit("/x/StartVM", ((TOKEN_KEY, "5"),))
        told = gate.told()
        gate.require_newest(told)
        await node.lease(fence_token=6)
        with pytest.raises(Aborted) as refused:
            gate.require_newest(told)
        assert refused.value.reason == Reason.STALE_FENCE_TOKEN


async def test_reads_are_answered_whatever_they_carry(tmp_path: Path) -> None:
    async with host(tmp_path) as node:
        await inform(node.fencing, node.clock)
        gate = FenceGate(node.fencing)
        await gate.admit("/x/StartVM", ((TOKEN_KEY, "5"),))
        await gate.admit("/x/GetVMStatus", ((TOKEN_KEY, "4"),))
        assert node.fencing.lease.known.fence_token == 5
