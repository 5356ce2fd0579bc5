"""Consoles of simulated VMs: a screen on which nothing is drawn, and a serial line that repeats what is typed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from hypervisor.console_turns import in_turn
from hypervisor.errors import ConsoleAbsent, ConsoleInUse
from hypervisor.mock.faults import Operation
from hypervisor.mock.host import MockHost
from hypervisor.types import ConsoleKind, PowerState, VmConfig, VmEvent

_HAS_CONSOLES = frozenset({PowerState.RUNNING, PowerState.PAUSED})
_PIECE_BYTES = 4096
_SCREEN_WIDTH, _SCREEN_HEIGHT = 64, 48
_PIXEL_FORMAT = struct.pack(">BBBBHHHBBBxxx", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)
"""32 bits a pixel, true colour. Source: RFC 6143, 7.4."""

_Talk = Callable[[VmConfig, socket.socket], Coroutine[Any, Any, None]]


class MockConsoles:
    """Sessions at the consoles of one simulated host."""

    def __init__(self, host: MockHost) -> None:
        self._host = host
        self._sessions: dict[asyncio.Task[None], tuple[str, ConsoleKind]] = {}

    async def kinds(self, vm_id: str) -> Sequence[ConsoleKind]:
        """See `Hypervisor.console_kinds`."""
        await self._host.strike(Operation.CONSOLE, vm_id)
        return self._kinds(vm_id)

    async def open(self, vm_id: str, kind: ConsoleKind) -> socket.socket:
        """See `Hypervisor.open_console`."""
        await self._host.strike(Operation.CONSOLE, vm_id)
        return await in_turn(partial(self._open, vm_id, kind))

    async def _open(self, vm_id: str, kind: ConsoleKind) -> socket.socket:
        if kind not in self._kinds(vm_id):
            raise ConsoleAbsent(f"VM {vm_id} has no {kind.value} console")
        if kind is ConsoleKind.SERIAL and (vm_id, kind) in self._sessions.values():
            raise ConsoleInUse(vm_id)
        near, far = socket.socketpair()
        near.setblocking(False)
        config = self._host.vm(vm_id).config
        talk = self._serial if kind is ConsoleKind.SERIAL else self._screen
        task = asyncio.create_task(self._serve(config, near, talk), name="mock-console")
        self._sessions[task] = (vm_id, kind)
        task.add_done_callback(self._sessions.pop)
        return far

    async def close(self) -> None:
        """End every session."""
        sessions = list(self._sessions)
        for session in sessions:
            session.cancel()
        await asyncio.gather(*sessions, return_exceptions=True)

    def _kinds(self, vm_id: str) -> Sequence[ConsoleKind]:
        vm = self._host.vm(vm_id)
        if vm.state not in _HAS_CONSOLES:
            raise ConsoleAbsent(f"VM {vm_id} is {vm.state.value}; its consoles are there while it runs")
        return (*((ConsoleKind.VNC,) if vm.config.vnc else ()), ConsoleKind.SERIAL)

    async def _serve(self, config: VmConfig, near: socket.socket, talk: _Talk) -> None:
        """Talk until the other side leaves or the VM is no longer in memory."""
        talking = asyncio.create_task(talk(config, near))

        def watch(event: VmEvent) -> None:
            if event.vm_id == config.vm_id and event.state not in _HAS_CONSOLES:
                talking.cancel()

        self._host.listeners.append(watch)
        try:
            with contextlib.suppress(asyncio.CancelledError, OSError, EOFError):
                await talking
        finally:
            talking.cancel()
            with contextlib.suppress(ValueError):
                self._host.listeners.remove(watch)
            near.close()

    async def _serial(self, config: VmConfig, near: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while piece := await loop.sock_recv(near, _PIECE_BYTES):
            await loop.sock_sendall(near, piece.replace(b"\r", b"\r\n"))

    async def _screen(self, config: VmConfig, near: socket.socket) -> None:
        """Speak RFB 3.8 without authentication up to the description of the screen. Source: RFC 6143, 7.1 to 7.3."""
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(near, b"RFB 003.008\n")
        await _receive(near, 12)
        await loop.sock_sendall(near, b"\x01\x01")  # one security type: none
        await _receive(near, 1)
        await loop.sock_sendall(near, bytes(4))
        await _receive(near, 1)
        name = config.name.encode()
        screen = struct.pack(">HH", _SCREEN_WIDTH, _SCREEN_HEIGHT) + _PIXEL_FORMAT
        await loop.sock_sendall(near, screen + struct.pack(">I", len(name)) + name)
        while await loop.sock_recv(near, _PIECE_BYTES):
            continue


async def _receive(near: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = await asyncio.get_running_loop().sock_recv(near, count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data
