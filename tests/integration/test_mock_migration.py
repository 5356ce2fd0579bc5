"""VMs move between simulated hosts whose daemons are processes of their own, and are killed meanwhile."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from limiquantix.node.v1 import node_daemon_pb2 as pb
from tests.support.libvirt_nodes import Wire
from tests.support.node_daemon_process import NodeDaemonProcess, client, node_daemon
from tests.support.node_pairs import Move, move_between, state_at
from tests.support.private_libvirt_host import eventually

pytestmark = pytest.mark.timeout(300)


@dataclass
class MockNode:
    """A simulated host with its daemon."""

    daemon: NodeDaemonProcess
    servicer: Any


@asynccontextmanager
async def mock_node(directory: Path, storage: Path, mib_per_sec: int = 1024) -> AsyncIterator[MockNode]:
    await asyncio.to_thread(directory.mkdir, exist_ok=True)
    hypervisor = {"storage_path": str(storage), "mock": {"migration_mib_per_sec": mib_per_sec}}
    async with node_daemon(directory, "", "--dev", hypervisor=hypervisor) as daemon, client(daemon) as stub:
        yield MockNode(daemon, Wire(stub))


async def running_vm(source: MockNode, target: MockNode) -> Move:
    vm_id, spec = str(uuid.uuid4()), pb.VMSpec(cpu_cores=1, memory_mib=128)
    definition = pb.CreateVMOnNodeRequest(vm_id=vm_id, name="web", spec=spec, generation=1)
    await source.servicer.CreateVM(definition, None)
    await source.servicer.StartVM(pb.VMIdRequest(vm_id=vm_id, generation=2), None)
    return move_between(source, target, vm_id, spec)


async def under_way(move: Move) -> pb.MigrationToken:
    token = await move.prepare()
    await move.receive(token)
    async with aclosing(move.stream(token)) as stream:
        async for message in stream:
            if message.phase == pb.MIGRATION_PHASE_TRANSFERRING:
                return token
    raise AssertionError("no memory was sent")


async def test_vm_moves_between_two_processes_and_shows_that_it_comes(tmp_path: Path) -> None:
    images = tmp_path / "images"
    async with mock_node(tmp_path / "n1", images, 24) as source, mock_node(tmp_path / "n2", images) as target:
        move = await running_vm(source, target)
        token = await under_way(move)

        async def look() -> bool | None:
            return True if await state_at(target, move.vm_id) == pb.POWER_STATE_PAUSED else None

        await eventually(look, "the arrival")
        assert (await move.send(token))[-1].phase == pb.MIGRATION_PHASE_COMPLETE
        await move.end(moved=True)
        assert await state_at(source, move.vm_id) is None
        assert await state_at(target, move.vm_id) == pb.POWER_STATE_RUNNING


async def test_source_killed_meanwhile_carries_on_when_it_is_back(tmp_path: Path) -> None:
    images = tmp_path / "images"
    async with AsyncExitStack() as stack:
        target = await stack.enter_async_context(mock_node(tmp_path / "n2", images))
        source = await stack.enter_async_context(mock_node(tmp_path / "n1", images, 32))
        move = await running_vm(source, target)
        token = await under_way(move)

        await source.daemon.kill()
        move.source = await stack.enter_async_context(mock_node(tmp_path / "n1", images, 32))

        assert (await move.send(token))[-1].phase == pb.MIGRATION_PHASE_COMPLETE
        assert await state_at(move.source, move.vm_id) is None
        assert await state_at(target, move.vm_id) == pb.POWER_STATE_RUNNING


async def test_target_killed_meanwhile_leaves_the_vm(tmp_path: Path) -> None:
    images = tmp_path / "images"
    async with AsyncExitStack() as stack:
        target = await stack.enter_async_context(mock_node(tmp_path / "n2", images))
        source = await stack.enter_async_context(mock_node(tmp_path / "n1", images, 16))
        move = await running_vm(source, target)
        token = await under_way(move)

        await target.daemon.kill()
        messages = await move.send(token)
        move.target = await stack.enter_async_context(mock_node(tmp_path / "n2", images))

        assert messages[-1].phase == pb.MIGRATION_PHASE_FAILED
        await move.end(moved=False)
        assert await state_at(source, move.vm_id) == pb.POWER_STATE_RUNNING
        assert await state_at(move.target, move.vm_id) is None


async def test_many_vms_cross_in_both_directions(tmp_path: Path) -> None:
    images = tmp_path / "images"
    async with mock_node(tmp_path / "n1", images) as first, mock_node(tmp_path / "n2", images) as second:
        moves = [
            await running_vm(first, second) if number % 2 else await running_vm(second, first) for number in range(8)
        ]

        async def cross(move: Move) -> None:
            token = await move.prepare()
            await move.receive(token)
            assert (await move.send(token))[-1].phase == pb.MIGRATION_PHASE_COMPLETE
            await move.end(moved=True)

        await asyncio.gather(*(cross(move) for move in moves))
        for move in moves:
            assert await state_at(move.source, move.vm_id) is None
            assert await state_at(move.target, move.vm_id) == pb.POWER_STATE_RUNNING
