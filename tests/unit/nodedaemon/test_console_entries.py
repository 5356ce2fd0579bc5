"""One-time entries: who is let in, how often, for how long, and what listens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psutil
import pytest

from hypervisor.errors import ConsoleAbsent
from hypervisor.types import ConsoleKind
from limiquantix.errors import ResourceExhausted
from nodedaemon import console_entries
from nodedaemon.console_entries import LIFE_S, ConsoleEntries, ConsoleEntry
from tests.support.rfb_client import NotLetIn, RfbClient

VM = "11111111-1111-4111-8111-111111111111"
OTHER_VM = "22222222-2222-4222-8222-222222222222"
DEADLINE_S = 60.0


class Consoles:
    """Consoles whose other ends a test holds."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, ConsoleKind]] = []
        self.sides: list[socket.socket] = []
        self.is_connected = asyncio.Event()
        self.fails = False

    async def open(self, vm_id: str, kind: ConsoleKind) -> socket.socket:
        self.opened.append((vm_id, kind))
        if self.fails:
            raise ConsoleAbsent("gone")
        near, far = socket.socketpair()
        near.setblocking(False)
        self.sides.append(near)
        self.is_connected.set()
        return far

    async def connected(self) -> socket.socket:
        async with asyncio.timeout(DEADLINE_S):
            await self.is_connected.wait()
        return self.sides[-1]

    async def show_screen(self) -> None:
        """Be a display, as QEMU is to one who need not authenticate."""
        loop, side = asyncio.get_running_loop(), await self.connected()
        await loop.sock_sendall(side, b"RFB 003.008\n")
        assert await loop.sock_recv(side, 12) == b"RFB 003.008\n"
        await loop.sock_sendall(side, b"\x01\x01")
        assert await loop.sock_recv(side, 1) == b"\x01"
        await loop.sock_sendall(side, bytes(4))
        assert await loop.sock_recv(side, 1) == b"\x01"
        await loop.sock_sendall(side, struct.pack(">HH16xI", 640, 480, 5) + b"guest")


@asynccontextmanager
async def entries_to(consoles: Consoles) -> AsyncIterator[ConsoleEntries]:
    entries = ConsoleEntries(consoles.open)
    yield entries
    await entries.close()
    for side in consoles.sides:
        side.close()


async def let_entries_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Move the loop's clock on, so that an entry's life ends when the test says so, however slow the machine is."""
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    now_s = loop.time
    monkeypatch.setattr(loop, "time", lambda: now_s() + LIFE_S)
    loop.call_later(0, told.set)  # timers that are due before it have run by then
    await told.wait()


def listening() -> set[tuple[str, int]]:
    sockets = psutil.Process(os.getpid()).net_connections("inet")
    return {(s.laddr.ip, s.laddr.port) for s in sockets if s.status == psutil.CONN_LISTEN}


async def serial_client(entry: ConsoleEntry, first: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(entry.host, entry.port)
    writer.write(first)
    return reader, writer


@pytest.mark.parametrize("version", [b"RFB 003.003\n", b"RFB 003.007\n", b"RFB 003.008\n"])
async def test_viewer_of_any_version_with_the_password_sees_the_screen(version: bytes) -> None:
    consoles = Consoles()
    async with entries_to(consoles) as entries:
        entry = await entries.make(VM, ConsoleKind.VNC)
        client = await RfbClient.dial(entry.host, entry.port)
        screen, _ = await asyncio.gather(client.log_in(entry.secret, version=version), consoles.show_screen())
        assert (screen.width, screen.height, screen.name) == (640, 480, "guest")
        assert consoles.opened == [(VM, ConsoleKind.VNC)]
        await asyncio.get_running_loop().sock_sendall(consoles.sides[0], b"update")
        assert await client.reader.readexactly(6) == b"update"
        client.writer.write(b"key")
        assert await asyncio.get_running_loop().sock_recv(consoles.sides[0], 100) == b"key"
        consoles.sides[0].close()
        assert await client.ended()


async def test_fault_11_entry_listens_on_loopback_until_it_is_used_and_only_it_does() -> None:
    consoles, before = Consoles(), listening()
    async with entries_to(consoles) as entries:
        entry = await entries.make(VM, ConsoleKind.VNC)
        assert listening() - before == {("127.0.0.1", entry.port)}
        client = await RfbClient.dial(entry.host, entry.port)
        await asyncio.gather(client.log_in(entry.secret), consoles.show_screen())
        assert not listening() - before
        with pytest.raises(ConnectionRefusedError):
            await RfbClient.dial(entry.host, entry.port)
        await client.close()


async def test_wrong_password_is_refused_and_uses_nothing_up() -> None:
    consoles = Consoles()
    async with entries_to(consoles) as entries:
        entry = await entries.make(VM, ConsoleKind.VNC)
        for wrong in ("", "wrong", entry.secret.swapcase(), entry.secret[:-1]):
            with pytest.raises(NotLetIn, match="the password is wrong"):
                await (await RfbClient.dial(entry.host, entry.port)).log_in(wrong)
        assert consoles.opened == []
        client = await RfbClient.dial(entry.host, entry.port)
        await asyncio.gather(client.log_in(entry.secret), consoles.show_screen())


async def test_second_connection_that_knows_the_secret_too_is_not_let_in() -> None:
    consoles = Consoles()
    async with entries_to(consoles) as entries:
        entry = await entries.make(VM, ConsoleKind.SERIAL)
        (late, _), (first, writer) = await serial_client(entry, b""), await serial_client(entry, b"")
        writer.write(f"{entry.secret}\r\n".encode())
        assert await first.readline() == b"OK\n"
        assert await late.read() == b""
        assert len(consoles.opened) == 1


async def test_entry_that_nobody_uses_expires_with_whoever_still_thinks(monkeypatch: pytest.MonkeyPatch) -> None:
    consoles = Consoles()
    async with entries_to(consoles) as entries:
        before_s = time.time()
        entry = await entries.make(VM, ConsoleKind.SERIAL)
        assert before_s + LIFE_S <= entry.expires_at_s <= time.time() + LIFE_S
        slow, writer = await serial_client(entry, b"")
        await let_entries_end(monkeypatch)
        async with asyncio.timeout(DEADLINE_S):
            assert await slow.read() == b""
        with pytest.raises(ConnectionRefusedError):
            await serial_client(entry, b"")
        writer.write(f"{entry.secret}\n".encode())
        assert consoles.opened == []


async def test_session_outlives_its_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    consoles = Consoles()
    async with entries_to(consoles) as entries:
        entry = await entries.make(VM, ConsoleKind.SERIAL)
        reader, writer = await serial_client(entry, f"{entry.secret}\nls\n".encode())
        assert await reader.readline() == b"OK\n"
        side = await consoles.connected()
        assert await asyncio.get_running_loop().sock_recv(side, 100) == b"ls\n"
        await let_entries_end(monkeypatch)  # that nothing happens is what is tested
        writer.write(b"more")
        assert await asyncio.get_running_loop().sock_recv(side, 100) == b"more"


@pytest.mark.parametrize("line", [b"wrong\n", b"\n", b"x" * 5000, b"GET / HTTP/1.1\r\n\r\n"])
async def test_serial_client_without_the_secret_is_told_and_cut_off(line: bytes) -> None:
    consoles = Consoles()
    async with entries_to(consoles) as entries:
        entry = await entries.make(VM, ConsoleKind.SERIAL)
        reader, _ = await serial_client(entry, line)
        async with asyncio.timeout(DEADLINE_S):
            assert (await reader.readline()).startswith(b"ERROR: ")
            assert await reader.read() == b""
        assert consoles.opened == []


@pytest.mark.parametrize("words", [b"\0" * 12, b"GET / HTTP/1.1\r\n", b"RFB 003.008\n\x10", b"RFB 003.008\n\x01"])
async def test_program_that_is_no_vnc_viewer_is_cut_off(words: bytes) -> None:
    consoles = Consoles()
    async with entries_to(consoles) as entries:
        entry = await entries.make(VM, ConsoleKind.VNC)
        client = await RfbClient.dial(entry.host, entry.port)
        client.writer.write(words)
        assert await client.ended()
        assert consoles.opened == []


async def test_console_that_is_gone_by_now_is_said_so_in_the_protocol() -> None:
    consoles = Consoles()
    consoles.fails = True
    async with entries_to(consoles) as entries:
        entry = await entries.make(VM, ConsoleKind.VNC)
        with pytest.raises(NotLetIn, match="cannot be opened: gone"):
            await (await RfbClient.dial(entry.host, entry.port)).log_in(entry.secret)


async def test_many_that_knock_are_closed_beyond_a_few_and_keep_nobody_out_for_long() -> None:
    consoles = Consoles()
    async with entries_to(consoles) as entries:
        entry = await entries.make(VM, ConsoleKind.VNC)
        crowd = [await RfbClient.dial(entry.host, entry.port) for _ in range(20)]
        answers = await asyncio.gather(*(client.reader.read(12) for client in crowd))
        assert answers.count(b"") == 12
        for client in crowd:
            await client.close()
        screen = asyncio.create_task(consoles.show_screen())
        async with asyncio.timeout(DEADLINE_S):
            while not consoles.opened:
                client = await RfbClient.dial(entry.host, entry.port)
                with contextlib.suppress(NotLetIn):
                    assert (await client.log_in(entry.secret)).name == "guest"
        await screen


async def test_secret_is_of_its_entry_alone_and_shown_nowhere() -> None:
    async with entries_to(Consoles()) as entries:
        one, other = await entries.make(VM, ConsoleKind.VNC), await entries.make(VM, ConsoleKind.VNC)
        assert one.secret not in repr(one)
        assert one.port != other.port
        with pytest.raises(NotLetIn):
            await (await RfbClient.dial(one.host, one.port)).log_in(other.secret)


@pytest.mark.parametrize("kind", [ConsoleKind.VNC, ConsoleKind.SERIAL])
async def test_secret_of_a_vm_that_is_gone_opens_nothing_on_the_port_that_another_vm_got(
    kind: ConsoleKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    consoles, given, start_server = Consoles(), [0], asyncio.start_server

    async def on_the_same_port(knock: Any, host: str, port: int, **options: Any) -> asyncio.Server:
        server = await start_server(knock, host, given[0], reuse_address=True, **options)
        given[0] = server.sockets[0].getsockname()[1]
        return server

    monkeypatch.setattr(asyncio, "start_server", on_the_same_port)
    async with entries_to(consoles) as entries:
        old = await entries.make(VM, kind)
        reader, writer = await asyncio.open_connection(old.host, old.port)
        entries.revoke(VM)
        async with asyncio.timeout(DEADLINE_S):
            with contextlib.suppress(ConnectionResetError):
                await reader.read()  # hung up on, though it was there in time
        writer.close()
        new = await entries.make(OTHER_VM, kind)
        assert (new.port, new.secret == old.secret) == (old.port, False)
        if kind is ConsoleKind.VNC:
            with pytest.raises(NotLetIn, match="the password is wrong"):
                await (await RfbClient.dial(new.host, new.port)).log_in(old.secret)
        else:
            reader, _ = await serial_client(new, f"{old.secret}\n".encode())
            assert (await reader.readline()).startswith(b"ERROR: ")
        assert consoles.opened == []


async def test_entries_of_other_vms_and_sessions_stay_when_those_of_one_are_revoked() -> None:
    consoles = Consoles()
    async with entries_to(consoles) as entries:
        one, other = await entries.make(VM, ConsoleKind.SERIAL), await entries.make(OTHER_VM, ConsoleKind.SERIAL)
        reader, writer = await serial_client(one, f"{one.secret}\n".encode())
        assert await reader.readline() == b"OK\n"
        entries.revoke(VM)
        writer.write(b"on")
        assert await asyncio.get_running_loop().sock_recv(await consoles.connected(), 100) == b"on"
        reader, _ = await serial_client(other, f"{other.secret}\n".encode())
        assert await reader.readline() == b"OK\n"


async def test_more_entries_than_a_host_takes_are_refused() -> None:
    async with entries_to(Consoles()) as entries:
        for _ in range(console_entries.MAX_ENTRIES):
            await entries.make(VM, ConsoleKind.SERIAL)
        with pytest.raises(ResourceExhausted) as caught:
            await entries.make(VM, ConsoleKind.SERIAL)
        assert caught.value.reason == "TOO_MANY_CONSOLES"
