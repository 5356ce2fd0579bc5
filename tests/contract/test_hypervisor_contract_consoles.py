"""The contract of consoles: which there are, what they speak, and when they end."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from hypervisor.base import Hypervisor
from hypervisor.errors import ConsoleAbsent, ConsoleInUse, VmNotFound
from hypervisor.types import ConsoleKind, VncConsole
from tests.contract.conftest import BackendHost
from tests.support.rfb_client import RfbClient

ABSENT = str(uuid.uuid4())


async def running(backend: Hypervisor, host: BackendHost, *, with_display: bool = True) -> str:
    config = dataclasses.replace(host.config(deaf=True), vnc=VncConsole() if with_display else None)
    await backend.create(config)
    await backend.start(config.vm_id)
    return config.vm_id


@asynccontextmanager
async def viewer(opened: socket.socket) -> AsyncIterator[RfbClient]:
    client = RfbClient(*await asyncio.open_connection(sock=opened))
    yield client
    await client.close()


async def test_fault_11_consoles_are_there_while_the_vm_runs_and_only_then(
    backend: Hypervisor, host: BackendHost
) -> None:
    config = host.config(with_console=True)
    await backend.create(config)
    for _ in range(2):
        with pytest.raises(ConsoleAbsent):
            await backend.console_kinds(config.vm_id)
        with pytest.raises(ConsoleAbsent):
            await backend.open_console(config.vm_id, ConsoleKind.VNC)
        await backend.start(config.vm_id)
        assert list(await backend.console_kinds(config.vm_id)) == [ConsoleKind.VNC, ConsoleKind.SERIAL]
        await backend.pause(config.vm_id)
        assert await backend.console_kinds(config.vm_id)
        await backend.force_stop(config.vm_id)


async def test_display_of_a_vm_without_one_is_absent(backend: Hypervisor, host: BackendHost) -> None:
    vm_id = await running(backend, host, with_display=False)
    assert list(await backend.console_kinds(vm_id)) == [ConsoleKind.SERIAL]
    for kind in (ConsoleKind.VNC, ConsoleKind.SPICE):
        with pytest.raises(ConsoleAbsent):
            await backend.open_console(vm_id, kind)


async def test_open_console_of_an_unknown_id_raises_not_found(backend: Hypervisor) -> None:
    with pytest.raises(VmNotFound):
        await backend.open_console(ABSENT, ConsoleKind.SERIAL)


async def test_display_speaks_vnc_without_a_password_to_several_and_ends_with_the_vm(
    backend: Hypervisor, host: BackendHost
) -> None:
    vm_id = await running(backend, host)
    opened = [await backend.open_console(vm_id, ConsoleKind.VNC) for _ in range(2)]
    async with viewer(opened[0]) as first, viewer(opened[1]) as second:
        screens = [await each.log_in() for each in (first, second)]
        # Their sizes may differ: the firmware of a guest that just began sets another mode.
        assert all(screen.width > 0 and screen.height > 0 for screen in screens)
        assert len({screen.name for screen in screens}) == 1
        await backend.force_stop(vm_id)
        assert await first.ended()
        assert await second.ended()


async def test_serial_console_is_for_one_at_a_time_and_ends_with_the_vm(backend: Hypervisor, host: BackendHost) -> None:
    vm_id = await running(backend, host)
    opened = await backend.open_console(vm_id, ConsoleKind.SERIAL)
    with pytest.raises(ConsoleInUse, match=f"VM {vm_id} is in use"):
        await backend.open_console(vm_id, ConsoleKind.SERIAL)
    async with viewer(opened) as first:
        await backend.force_stop(vm_id)
        assert await first.ended()


async def test_serial_console_is_free_again_when_its_user_leaves(backend: Hypervisor, host: BackendHost) -> None:
    vm_id = await running(backend, host)
    for _ in range(10):
        (await backend.open_console(vm_id, ConsoleKind.SERIAL)).close()


async def test_serial_console_goes_to_whoever_waits_while_its_user_leaves(
    backend: Hypervisor, host: BackendHost
) -> None:
    vm_id = await running(backend, host)
    first = await backend.open_console(vm_id, ConsoleKind.SERIAL)
    next_ones = asyncio.gather(
        *(backend.open_console(vm_id, ConsoleKind.SERIAL) for _ in range(3)), return_exceptions=True
    )
    await asyncio.sleep(0.2)  # so that they find it in use
    first.close()
    opened = [each for each in await next_ones if isinstance(each, socket.socket)]
    assert len(opened) == 1
    opened[0].close()
