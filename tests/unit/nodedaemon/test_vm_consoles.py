"""Entries to consoles end with the VM that they are to, however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from limiquantix.node.v1 import node_daemon_pb2 as pb
from tests.support.node_daemon_parts import NodeDaemonParts, node_daemon_parts

DEADLINE_S = 10.0


async def listens(entry: pb.ConsoleInfoResponse) -> bool:
    try:
        _, writer = await asyncio.open_connection(entry.host, entry.port)
    except ConnectionRefusedError:
        return False
    writer.close()
    return True


async def stop(parts: NodeDaemonParts, vm_id: str) -> None:
    await parts.servicer.StopVM(pb.StopVMRequest(vm_id=vm_id), None)


async def force_stop(parts: NodeDaemonParts, vm_id: str) -> None:
    await parts.servicer.ForceStopVM(pb.VMIdRequest(vm_id=vm_id), None)


async def suspend(parts: NodeDaemonParts, vm_id: str) -> None:
    await parts.servicer.SuspendVM(pb.VMIdRequest(vm_id=vm_id), None)


async def delete(parts: NodeDaemonParts, vm_id: str) -> None:
    await force_stop(parts, vm_id)
    await parts.servicer.DeleteVM(pb.VMIdRequest(vm_id=vm_id), None)


@pytest.mark.parametrize("end", [stop, force_stop, suspend, delete], ids=lambda end: end.__name__)
async def test_entry_that_was_not_used_ends_with_its_vm(
    tmp_path: Path, end: Callable[[NodeDaemonParts, str], Awaitable[None]]
) -> None:
    async with node_daemon_parts(tmp_path) as parts:
        vm_id, other_id = await parts.create(), await parts.create()
        entries = []
        for each in (vm_id, other_id):
            await parts.start(each)
            request = pb.OpenConsoleRequest(vm_id=each, type=pb.CONSOLE_TYPE_SERIAL)
            entries.append(await parts.servicer.OpenConsole(request, None))
        assert await listens(entries[0])

        await end(parts, vm_id)

        assert not await listens(entries[0])
        assert await listens(entries[1]), "that of another VM"
