"""Consoles of real guests through one-time entries: a viewer sees the screen once, what is typed reaches the guest."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from hypervisor.libvirt.backend import LibvirtHypervisor
from hypervisor.libvirt.console_log_keeper import ConsoleLogKeeper
from hypervisor.libvirt.qemu_process import find_processes
from hypervisor.types import (
    Accelerator,
    ConsoleKind,
    ConsoleLog,
    CpuTopology,
    DiskConfig,
    DiskFormat,
    SpiceConsole,
    VmConfig,
    VncConsole,
)
from limiquantix.errors import FailedPrecondition
from limiquantix.node.v1 import node_daemon_pb2 as pb
from nodedaemon.vm_consoles import VmConsoles
from tests.support import serial_guests
from tests.support.private_libvirt_host import eventually, private_libvirt, skip_unless_private_libvirt, virsh
from tests.support.rfb_client import NotLetIn, RfbClient
from tests.support.spice_client import DISPLAY_CHANNEL, SpiceChannel
from tests.support.spice_client import NotLetIn as SpiceNotLetIn

DEADLINE_S = 60.0

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Guests:
    """Guests on a private libvirt daemon, and the daemon's part that opens their consoles."""

    uri: str
    directory: Path
    backend: LibvirtHypervisor
    consoles: VmConsoles

    async def start(self, code: bytes, *, vnc: VncConsole | None = None, spice: SpiceConsole | None = None) -> str:
        vm_id = str(uuid.uuid4())
        disk = serial_guests.write_disk(self.directory / f"{vm_id}.raw", code)
        config = VmConfig(
            vm_id, "console", CpuTopology(), 16, disks=(DiskConfig("d", disk, DiskFormat.RAW),), vnc=vnc, spice=spice
        )
        await self.backend.create(config)
        await self.backend.start(vm_id)
        return vm_id

    async def entry(self, vm_id: str, kind: pb.ConsoleType.ValueType) -> pb.ConsoleInfoResponse:
        return await self.consoles.open(pb.OpenConsoleRequest(vm_id=vm_id, type=kind))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guests(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guests]:
    directory = tmp_path_factory.mktemp("libvirt")
    await skip_unless_private_libvirt(directory)
    async with private_libvirt(directory) as libvirt:
        backend = LibvirtHypervisor(libvirt.uri, directory / "console", Accelerator.TCG)
        await backend.open()
        consoles = VmConsoles(backend)
        yield Guests(libvirt.uri, directory, backend, consoles)
        await consoles.close()
        for vm in await backend.list():
            await backend.force_stop(vm.vm_id)
            await backend.delete(vm.vm_id)
        await backend.close()


def listening(*pids: int) -> set[tuple[str, int]]:
    found = set()
    for pid in pids:
        for found_socket in psutil.Process(pid).net_connections("inet"):
            if found_socket.status == psutil.CONN_LISTEN:
                found.add((found_socket.laddr.ip, found_socket.laddr.port))
    return found


async def test_fault_11_viewer_sees_a_guest_once_and_nothing_listens_but_the_entry(guests: Guests) -> None:
    vm_id = await guests.start(serial_guests.IDLE, vnc=VncConsole())
    qemu_pid, own_pid = find_processes([vm_id])[vm_id].pid, psutil.Process().pid
    before = listening(own_pid)
    assert listening(qemu_pid) == set()

    entry = await guests.entry(vm_id, pb.CONSOLE_TYPE_UNSPECIFIED)
    assert (entry.type, len(entry.password)) == ("vnc", 8)
    assert listening(qemu_pid, own_pid) - before == {("127.0.0.1", entry.port)}
    with pytest.raises(NotLetIn):
        await (await RfbClient.dial(entry.host, entry.port)).log_in("wrong")
    viewer = await RfbClient.dial(entry.host, entry.port)
    screen = await viewer.log_in(entry.password)
    assert screen.width >= 640
    assert "console" in screen.name
    with pytest.raises(ConnectionRefusedError):
        await RfbClient.dial(entry.host, entry.port)
    assert listening(qemu_pid, own_pid) == before

    viewer.writer.write(b"\x03\x00" + bytes(4) + (16).to_bytes(2) + (16).to_bytes(2))  # FramebufferUpdateRequest
    async with asyncio.timeout(DEADLINE_S):
        assert (await viewer.reader.readexactly(4))[0] == 0  # FramebufferUpdate
    await guests.backend.force_stop(vm_id)
    assert await viewer.ended()


async def test_password_of_the_definition_opens_no_entry(guests: Guests) -> None:
    vm_id = await guests.start(serial_guests.IDLE, vnc=VncConsole("secret12"))
    entry = await guests.entry(vm_id, pb.CONSOLE_TYPE_VNC)
    assert entry.password != "secret12"
    with pytest.raises(NotLetIn):
        await (await RfbClient.dial(entry.host, entry.port)).log_in("secret12")
    assert (await (await RfbClient.dial(entry.host, entry.port)).log_in(entry.password)).width


async def test_serial_line_reaches_the_guest_and_back(guests: Guests) -> None:
    vm_id = await guests.start(serial_guests.ECHO)
    entry = await guests.entry(vm_id, pb.CONSOLE_TYPE_SERIAL)
    reader, writer = await asyncio.open_connection(entry.host, entry.port)
    writer.write(f"{entry.password}\n".encode())
    words = bytes(range(32, 127)) * 20
    async with asyncio.timeout(DEADLINE_S):
        assert await reader.readline() == b"OK\n"
        writer.write(words)
        heard = b""
        while words not in heard:
            piece = await reader.read(4096)
            assert piece, heard
            heard += piece
    second = await guests.entry(vm_id, pb.CONSOLE_TYPE_SERIAL)
    late, late_writer = await asyncio.open_connection(second.host, second.port)
    late_writer.write(f"{second.password}\n".encode())
    async with asyncio.timeout(DEADLINE_S):
        assert (await late.readline()).startswith(b"ERROR: ")
    await guests.backend.force_stop(vm_id)
    async with asyncio.timeout(DEADLINE_S):
        while await reader.read(4096):
            continue


async def test_guest_that_never_stops_talking_is_heard_in_order(guests: Guests) -> None:
    vm_id = await guests.start(serial_guests.CHATTERBOX)
    side = await guests.backend.open_console(vm_id, ConsoleKind.SERIAL)
    reader, writer = await asyncio.open_connection(sock=side, limit=2**16)
    async with asyncio.timeout(DEADLINE_S):
        assert bytes(range(65, 91)) in await reader.readexactly(4096)
    writer.close()
    await guests.backend.force_stop(vm_id)


async def test_log_of_a_guest_that_never_stops_talking_is_bounded_while_it_runs(guests: Guests) -> None:
    vm_id = await guests.start(serial_guests.CHATTERBOX)
    directory = guests.directory / "console"
    path = directory / f"{vm_id}.log"
    bound_bytes, kept_bytes = 192 * 2**10, 128 * 2**10
    keeper = ConsoleLogKeeper(directory, interval_s=0.05, bound_bytes=bound_bytes, kept_bytes=kept_bytes)
    keeper.start()

    async def dropped() -> ConsoleLog | None:
        log = await guests.backend.read_console_log(vm_id, 0, 2**20)
        return log if log.size_bytes > 3 * bound_bytes else None

    async def bounded() -> bool | None:
        return path.stat().st_blocks * 512 < 2 * bound_bytes or None

    log = await eventually(dropped, "a long log", DEADLINE_S)
    await eventually(bounded, "the log being short though more was written", DEADLINE_S)
    await keeper.stop()
    assert log.next_offset - len(log.data) > bound_bytes
    begin = log.next_offset - len(log.data)
    assert log.data[:1000] == bytes((begin + number) % 128 for number in range(1000))

    async def more() -> bytes | None:
        return (await guests.backend.read_console_log(vm_id, log.next_offset, 100)).data or None

    assert (await eventually(more, "more of the log", DEADLINE_S))[:1] == bytes([log.next_offset % 128])
    await guests.backend.force_stop(vm_id)


async def test_spice_viewer_with_all_its_channels_is_one_session(guests: Guests) -> None:
    vm_id = await guests.start(serial_guests.IDLE, spice=SpiceConsole("secret12"))
    qemu_pid = find_processes([vm_id])[vm_id].pid
    entry = await guests.entry(vm_id, pb.CONSOLE_TYPE_UNSPECIFIED)
    assert entry.type == "spice"
    assert listening(qemu_pid) == set()
    for wrong in ("", "secret12", "wrong"):
        with pytest.raises(SpiceNotLetIn):
            await SpiceChannel.link(entry.host, entry.port, wrong)
    with pytest.raises(SpiceNotLetIn):  # a channel without a session
        await SpiceChannel.link(entry.host, entry.port, entry.password, session_id=7, kind=DISPLAY_CHANNEL)

    main = await SpiceChannel.link(entry.host, entry.port, entry.password)
    session_id = await main.session_id()
    display = await SpiceChannel.link(
        entry.host, entry.port, entry.password, session_id=session_id, kind=DISPLAY_CHANNEL
    )
    with pytest.raises(SpiceNotLetIn):  # a second viewer
        await SpiceChannel.link(entry.host, entry.port, entry.password)
    await main.close()
    assert await display.ended()
    with pytest.raises(ConnectionRefusedError):
        await SpiceChannel.link(entry.host, entry.port, entry.password)
    await guests.backend.force_stop(vm_id)


async def test_newer_entry_to_a_spice_display_ends_the_older(guests: Guests) -> None:
    vm_id = await guests.start(serial_guests.IDLE, spice=SpiceConsole())
    older, newer = await guests.entry(vm_id, pb.CONSOLE_TYPE_SPICE), await guests.entry(vm_id, pb.CONSOLE_TYPE_SPICE)
    with pytest.raises(ConnectionRefusedError):
        await SpiceChannel.link(older.host, older.port, older.password)
    with pytest.raises(SpiceNotLetIn):
        await SpiceChannel.link(newer.host, newer.port, older.password)
    main = await SpiceChannel.link(newer.host, newer.port, newer.password)
    await guests.backend.force_stop(vm_id)
    assert await main.ended()


async def test_vm_without_display_offers_its_serial_line_only(guests: Guests) -> None:
    vm_id = await guests.start(serial_guests.IDLE)
    for kind in (pb.CONSOLE_TYPE_UNSPECIFIED, pb.CONSOLE_TYPE_VNC, pb.CONSOLE_TYPE_SPICE):
        with pytest.raises(FailedPrecondition, match="it has: serial"):
            await guests.entry(vm_id, kind)


async def test_domain_defined_with_a_tcp_display_is_seen_through_an_entry_too(guests: Guests) -> None:
    vm_id = str(uuid.uuid4())
    document = guests.directory / f"{vm_id}.xml"
    document.write_text(
        f"<domain type='qemu'><name>tcp-{vm_id[:8]}</name><uuid>{vm_id}</uuid><memory unit='MiB'>16</memory>"
        "<os><type arch='x86_64' machine='q35'>hvm</type></os><devices>"
        "<graphics type='vnc' autoport='yes' listen='127.0.0.1' passwd='secret12'/>"
        "<video><model type='vga'/></video></devices></domain>"
    )
    await virsh(guests.uri, "define", str(document))
    await guests.backend.start(vm_id)
    entry = await guests.entry(vm_id, pb.CONSOLE_TYPE_VNC)
    assert (await (await RfbClient.dial(entry.host, entry.port)).log_in(entry.password)).width


async def test_many_displays_on_one_host_need_no_port_each(guests: Guests) -> None:
    vm_ids = [await guests.start(serial_guests.IDLE, vnc=VncConsole()) for _ in range(3)]
    pids = [process.pid for process in find_processes(vm_ids).values()]
    assert len(pids) == 3
    assert listening(*pids) == set()
