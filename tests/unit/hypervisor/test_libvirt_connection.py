"""The connection's promises, on libvirt's own in-process test driver: deadlines, lanes, locks, events, closing."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from hypervisor.errors import Refused, Unavailable, VmNotFound
from hypervisor.libvirt.backend import LibvirtHypervisor
from hypervisor.libvirt.connection import LibvirtConnection
from hypervisor.libvirt.domain_state import RawEvent
from hypervisor.libvirt.worker_pool import Lane
from hypervisor.types import Accelerator

pytest.importorskip("libvirt")

URI = "test:///default"
VM = "5f7c1a52-0b3e-4d0c-9a56-2f1f0c9e4b11"


async def nothing() -> None:
    return None


def make_connection(uri: str = URI, on_event: Callable[[RawEvent], None] = lambda event: None) -> LibvirtConnection:
    return LibvirtConnection(uri, on_event=on_event, on_reconnect=nothing, call_deadline_s=20.0)


@pytest.fixture
async def connection() -> AsyncIterator[LibvirtConnection]:
    made = make_connection()
    await made.open()
    yield made
    await made.close()


class Hang:
    """Work that hangs in libvirt until it is let go."""

    def __init__(self) -> None:
        self.has_begun = threading.Event()
        self._may_end = threading.Event()

    def __call__(self, _connection: Any) -> str:
        self.has_begun.set()
        assert self._may_end.wait(60)
        return "ended"

    def let_go(self) -> None:
        self._may_end.set()


async def hung(connection: LibvirtConnection, vm_id: str) -> Hang:
    """Have a change hang that is given up; it has begun, however late its thread came to it."""
    hang = Hang()
    for deadline_s in (0.05, 1.0, 30.0):
        with pytest.raises(Unavailable):
            await connection.run(hang, lane=Lane.CHANGE, vm_id=vm_id, deadline_s=deadline_s)
        if hang.has_begun.is_set():
            return hang
    raise AssertionError("no thread took it up")


async def test_open_of_a_daemon_that_is_not_there_is_unavailable_and_says_where(tmp_path: Path) -> None:
    absent = make_connection(f"qemu+unix:///system?socket={tmp_path}/no-such-socket")
    with pytest.raises(Unavailable, match="no-such-socket"):
        await absent.open()
    await absent.close()


async def test_call_before_open_and_after_close_is_unavailable() -> None:
    made = make_connection()
    with pytest.raises(Unavailable, match="not open"):
        await made.run(lambda connection: connection.getLibVersion())
    await made.open()
    assert await made.run(lambda connection: connection.getLibVersion()) > 0
    await made.close()
    await made.close()
    with pytest.raises(Unavailable, match="closed"):
        await made.run(lambda connection: connection.getLibVersion())


async def test_connection_can_be_opened_again_after_close(connection: LibvirtConnection) -> None:
    await connection.close()
    await connection.open()
    assert await connection.run(lambda found: found.isAlive()) == 1


async def test_call_that_hangs_is_given_up_at_its_deadline(connection: LibvirtConnection) -> None:
    hang = Hang()
    with pytest.raises(Unavailable, match=f"VM {VM} within 0.05 s"):
        await connection.run(hang, vm_id=VM, deadline_s=0.05)
    hang.let_go()


async def test_fault_18_changes_of_one_vm_wait_for_a_hung_one_and_others_do_not(connection: LibvirtConnection) -> None:
    hang, order = await hung(connection, VM), []
    same = asyncio.create_task(connection.run(lambda _: order.append("same"), lane=Lane.CHANGE, vm_id=VM))
    await connection.run(lambda _: order.append("other"), lane=Lane.CHANGE, vm_id=str(uuid.uuid4()))
    hang.let_go()
    await same
    assert order == ["other", "same"]


async def test_fault_18_looking_works_while_every_change_hangs_and_further_changes_are_refused_at_once(
    connection: LibvirtConnection,
) -> None:
    hangs = await asyncio.gather(*(hung(connection, str(uuid.uuid4())) for _ in range(Lane.CHANGE.thread_count)))
    assert await connection.run(lambda _: "seen") == "seen"
    with pytest.raises(Unavailable, match="hangs in earlier calls"):
        await connection.run(lambda _: None, lane=Lane.CHANGE, vm_id=VM)
    for hang in hangs:
        hang.let_go()


async def test_close_ends_calls_that_wait_with_unavailable(connection: LibvirtConnection) -> None:
    hangs = [Hang() for _ in range(Lane.GUEST.thread_count)]
    busy = [asyncio.create_task(connection.run(hang, lane=Lane.GUEST)) for hang in hangs]
    waiting = asyncio.create_task(connection.run(lambda _: None, lane=Lane.GUEST))
    for hang in hangs:
        assert await asyncio.to_thread(hang.has_begun.wait, 20)
    await connection.close()
    with pytest.raises(Unavailable, match="closed"):
        await waiting
    for hang in hangs:
        hang.let_go()
    assert await asyncio.gather(*busy) == ["ended"]


async def test_cancelled_call_is_cancelled(connection: LibvirtConnection) -> None:
    hang = Hang()
    call = asyncio.create_task(connection.run(hang))
    assert await asyncio.to_thread(hang.has_begun.wait, 20)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    hang.let_go()


async def test_errors_of_libvirt_become_ours(connection: LibvirtConnection) -> None:
    with pytest.raises(VmNotFound):
        await connection.run(lambda found: found.lookupByUUIDString(VM), vm_id=VM)
    with pytest.raises(Refused, match="missing name"):
        await connection.run(lambda found: found.defineXML("<domain/>"), vm_id=VM)


async def test_events_arrive_in_the_loop_in_order() -> None:
    events: asyncio.Queue[tuple[RawEvent, int]] = asyncio.Queue()
    made = make_connection(on_event=lambda event: events.put_nowait((event, threading.get_ident())))
    await made.open()
    try:
        await made.run(lambda found: found.lookupByName("test").suspend())
        await made.run(lambda found: found.lookupByName("test").resume())
        async with asyncio.timeout(60):
            (first, thread), (second, _) = await events.get(), await events.get()
        assert (first.number, second.number) == (3, 4)
        assert thread == threading.get_ident()
    finally:
        await made.close()


async def test_health_of_a_backend_that_is_not_open_is_bad_and_does_not_raise(tmp_path: Path) -> None:
    health = await LibvirtHypervisor(URI, tmp_path, Accelerator.TCG).health()
    assert not health.healthy
    assert "not open" in health.message


async def test_backend_that_cannot_make_its_log_directory_does_not_open(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    backend = LibvirtHypervisor(URI, tmp_path / "file" / "console", Accelerator.TCG)
    with pytest.raises(Unavailable, match="console logs"):
        await backend.open()
    assert not (await backend.health()).healthy


def test_backend_refuses_to_simulate(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only the mock simulates"):
        LibvirtHypervisor(URI, tmp_path, Accelerator.SIMULATED)
