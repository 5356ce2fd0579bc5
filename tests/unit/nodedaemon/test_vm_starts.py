"""Starts of protected VMs, with the daemon killed at each boundary: none stays paused, none runs without a right."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hypervisor.errors import Unavailable, WrongState
from hypervisor.mock.backend import MockHypervisor
from hypervisor.mock.faults import Failure, Fault, MockFaults, Operation
from hypervisor.mock.host import MockSettings
from hypervisor.types import CpuTopology, PowerState, VmConfig, VmNotes, VmStatus
from limiquantix.compute.v1 import node_service_pb2 as node_service
from limiquantix.errors import Aborted, ApiError, FailedPrecondition, Reason
from nodedaemon.commands import Commands
from nodedaemon.fence_gate import EPOCH_KEY, TOKEN_KEY, FenceGate, Told
from nodedaemon.generations import open_generations
from nodedaemon.self_fencing.keeper import SelfFencing
from nodedaemon.self_fencing.lease import boottime_ns
from nodedaemon.self_fencing.memory import open_memory
from nodedaemon.vm_actor import VmActors
from nodedaemon.vm_protection import VmProtection
from nodedaemon.vm_starts import StartOrder, VmStarts

VM_ID = "11111111-1111-4111-8111-111111111111"
ORDER = StartOrder(Told(epoch=3, fence_token=7), generation=5)


class Photographed(MockHypervisor):
    """The mock, which tells when something is about to change and when it has."""

    def __init__(self, state_path: Path, take: Callable[[str], None]) -> None:
        self.take = take
        faults = MockFaults((Fault(Operation.RELEASE_START, None, delay_s=1.0),))
        super().__init__(MockSettings(state_path=state_path, faults=faults), sleep=self._paused)

    async def _paused(self, _: float) -> None:
        self.take("paused")

    async def set_notes(self, vm_id: str, notes: VmNotes) -> None:
        self.take("before-note" if notes.start_order else "before-clear")
        await super().set_notes(vm_id, notes)
        self.take("noted" if notes.start_order else "cleared")

    async def start(self, vm_id: str, may_run: Callable[[], None] | None = None) -> None:
        await super().start(vm_id, may_run)
        self.take("started")


BOUNDARIES = ("before-note", "noted", "paused", "started", "before-clear", "cleared")


@dataclass
class World:
    """One daemon's parts, as far as starts need them, on files in a directory."""

    directory: Path
    hypervisor: MockHypervisor
    commands: Commands
    gate: FenceGate
    fencing: SelfFencing
    starts: VmStarts
    is_ready: list[bool] = field(default_factory=lambda: [True])

    async def status(self) -> VmStatus:
        return await self.hypervisor.status(VM_ID)

    async def order(self, order: StartOrder = ORDER) -> None:
        """Start the VM as the service does."""
        metadata = ((EPOCH_KEY, str(order.told.epoch)), (TOKEN_KEY, str(order.told.fence_token)))
        await self.gate.admit("/x/StartVM", metadata)
        check = self.commands.newest_check()
        request = _Request(VM_ID, order.generation)
        await self.commands.change(request, lambda: self.starts.start(VM_ID, order, check))

    async def lease(self, left_ms: int = 60_000, **fields: int) -> None:
        told = {"epoch": 3, "fence_token": 7, "ha_version": 1} | fields
        answer = node_service.UpdateHeartbeatResponse(ha_is_armed=True, **told)  # type: ignore[arg-type]
        answer.lease.duration_ms = max(1, left_ms)
        await self.fencing.take_answer(boottime_ns() - (10**9 if left_ms <= 0 else 0), answer)


@dataclass
class _Request:
    vm_id: str
    generation: int


@asynccontextmanager
async def world(directory: Path, hypervisor: MockHypervisor | None = None) -> AsyncIterator[World]:
    """A daemon that begins with what is in the directory."""
    hypervisor = hypervisor or MockHypervisor(MockSettings(state_path=directory / "vms.json"))
    await hypervisor.open()
    memory = open_memory(directory)
    fencing = SelfFencing(memory, hypervisor.processes, None, boot_id="boot")
    gate = FenceGate(fencing, is_told=lambda: False)
    generations = await open_generations(directory)
    actors = VmActors(max_concurrent=4, max_queued=4)
    commands = Commands(actors, generations, gate)
    ready = [True]
    starts = VmStarts(hypervisor, commands, VmProtection(hypervisor, fencing), is_ready=lambda: ready[0])
    try:
        yield World(directory, hypervisor, commands, gate, fencing, starts, ready)
    finally:
        await actors.close(0)
        await hypervisor.close()
        await generations.close()
        memory.close()


async def killed_at(boundary: str, directory: Path) -> Path:
    """Start a protected VM and return the files as they were when the daemon was killed at that boundary."""
    kept = directory / "kept"

    def take(where: str) -> None:
        if where == boundary:
            shutil.copytree(directory / "live", kept)

    (directory / "live").mkdir()
    hypervisor = Photographed(directory / "live" / "vms.json", take)
    async with world(directory / "live", hypervisor) as daemon:
        await hypervisor.create(VmConfig(VM_ID, "web", CpuTopology(), 64))
        await daemon.fencing.protect(VM_ID, is_protected=True)
        await daemon.lease()
        await daemon.order()
        assert (await daemon.status()).state is PowerState.RUNNING
        assert (await daemon.status()).notes.start_order == ""
    assert kept.exists()
    return kept


@pytest.mark.parametrize("boundary", BOUNDARIES)
async def test_start_that_was_interrupted_is_finished_while_its_order_stands(tmp_path: Path, boundary: str) -> None:
    async with world(await killed_at(boundary, tmp_path)) as daemon:
        await daemon.lease()
        await daemon.starts.settle()
        status = await daemon.status()
        has_begun = boundary not in ("before-note", "noted")
        assert status.state is (PowerState.RUNNING if has_begun else PowerState.STOPPED)
        assert status.notes.start_order == ""


@pytest.mark.parametrize("boundary", BOUNDARIES)
async def test_repeated_order_finds_it_running_or_has_it_run(tmp_path: Path, boundary: str) -> None:
    async with world(await killed_at(boundary, tmp_path)) as daemon:
        await daemon.lease()
        if (await daemon.status()).state is PowerState.RUNNING:
            with pytest.raises(FailedPrecondition) as refused:
                await daemon.order()
            assert refused.value.reason == Reason.VM_STATE_FORBIDS
        else:
            await daemon.order()
        assert (await daemon.status()).state is PowerState.RUNNING
        await daemon.starts.settle()
        status = await daemon.status()
        assert (status.state, status.notes.start_order) == (PowerState.RUNNING, "")


@pytest.mark.parametrize("why", ["lease", "token", "epoch", "generation", "note"])
async def test_vm_is_ended_and_not_resumed_once_its_order_does_not_stand(tmp_path: Path, why: str) -> None:
    async with world(await killed_at("paused", tmp_path)) as daemon:
        match why:
            case "lease":
                await daemon.lease(left_ms=0)
            case "token":
                await daemon.lease(fence_token=8)
            case "epoch":
                await daemon.lease(epoch=4)
            case "generation":
                await daemon.lease()
                await daemon.commands.change(_Request(VM_ID, 6), lambda: asyncio.sleep(0))
            case "note":
                await daemon.lease()
                await daemon.hypervisor.set_notes(VM_ID, VmNotes(is_protected=True, start_order="of another time"))
        await daemon.starts.settle()
        status = await daemon.status()
        assert status.state in (PowerState.STOPPED, PowerState.CRASHED)
        assert status.notes.start_order == ""


async def test_nothing_is_decided_before_the_host_can_know_what_holds(tmp_path: Path) -> None:
    async with world(await killed_at("paused", tmp_path)) as daemon:
        daemon.is_ready[0] = False
        await daemon.starts.settle()
        status = await daemon.status()
        assert (status.state, status.notes.start_order) == (PowerState.PAUSED, ORDER.to_text())
        daemon.is_ready[0] = True
        await daemon.lease()
        await daemon.starts.settle()
        assert (await daemon.status()).state is PowerState.RUNNING


async def test_older_order_does_not_finish_it(tmp_path: Path) -> None:
    async with world(await killed_at("paused", tmp_path)) as daemon:
        await daemon.lease(fence_token=8)
        with pytest.raises(Aborted) as refused:
            await daemon.order()
        assert refused.value.reason == Reason.STALE_FENCE_TOKEN
        assert (await daemon.status()).state is PowerState.PAUSED


async def test_vm_that_a_person_paused_stays_paused(tmp_path: Path) -> None:
    async with world(await killed_at("cleared", tmp_path)) as daemon:
        await daemon.lease()
        await daemon.hypervisor.pause(VM_ID)
        await daemon.starts.settle()
        assert (await daemon.status()).state is PowerState.PAUSED


async def test_note_that_could_not_be_taken_back_keeps_the_vm_from_being_paused(tmp_path: Path) -> None:
    async with world(await killed_at("before-clear", tmp_path)) as daemon:
        hypervisor = daemon.hypervisor
        hypervisor.set_faults(MockFaults((Fault(Operation.SET_NOTES, Failure.UNAVAILABLE),)))
        await daemon.lease()
        await daemon.starts.settle()
        assert (await daemon.status()).notes.start_order
        with pytest.raises(Unavailable):
            await daemon.starts.require_clear(VM_ID)
        hypervisor.set_faults(MockFaults())
        await daemon.starts.require_clear(VM_ID)
        assert (await daemon.status()).notes == VmNotes()


async def test_start_that_is_refused_leaves_no_note(tmp_path: Path) -> None:
    async with world(tmp_path) as daemon:
        await daemon.hypervisor.create(VmConfig(VM_ID, "web", CpuTopology(), 64))
        await daemon.fencing.protect(VM_ID, is_protected=True)
        await daemon.lease()
        daemon.hypervisor.set_faults(MockFaults((Fault(Operation.START, Failure.REFUSED, times=1),)))
        with pytest.raises(ApiError):
            await daemon.order()
        status = await daemon.status()
        assert (status.state, status.notes.start_order) == (PowerState.STOPPED, "")
        await daemon.order()
        assert (await daemon.status()).state is PowerState.RUNNING


async def test_start_whose_outcome_is_unknown_is_settled_later(tmp_path: Path) -> None:
    async with world(tmp_path) as daemon:
        await daemon.hypervisor.create(VmConfig(VM_ID, "web", CpuTopology(), 64))
        await daemon.fencing.protect(VM_ID, is_protected=True)
        await daemon.lease()
        daemon.hypervisor.set_faults(MockFaults((Fault(Operation.START, Failure.ANSWER_LOST, times=1),)))
        with pytest.raises(ApiError):
            await daemon.order()
        assert (await daemon.status()).notes.start_order == ORDER.to_text()
        await daemon.starts.settle()
        status = await daemon.status()
        assert (status.state, status.notes.start_order) == (PowerState.RUNNING, "")


async def test_vm_that_runs_is_not_started_again_and_keeps_no_note(tmp_path: Path) -> None:
    async with world(await killed_at("cleared", tmp_path)) as daemon:
        await daemon.lease()
        with pytest.raises(WrongState):
            await daemon.starts.start(VM_ID, ORDER, lambda: None)
        assert (await daemon.status()).notes.start_order == ""


@pytest.mark.parametrize("text", ["", "[]", "[1, 2]", "{}", '["x", 1, 1]', "null", "3ea081f6"])
def test_note_of_another_hand_is_no_order(text: str) -> None:
    assert StartOrder.from_text(text) is None
    assert StartOrder.from_text(ORDER.to_text()) == ORDER
