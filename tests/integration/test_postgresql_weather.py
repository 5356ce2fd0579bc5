"""The store in PostgreSQL's bad weather, on a real server of this test's own: stopped, killed, frozen, full, crowded.

Whatever happens, a call ends within the store's limits with a reason, nothing of it is half done, and once the server
is well again the same store works without being opened anew.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from controlplane.domain.node import Capacity
from controlplane.domain.query import VmFilter
from controlplane.domain.vm import Vm
from controlplane.state.engine import StoreLimits
from controlplane.state.factory import create_store, migrate
from controlplane.state.interface import Store, Transaction
from limiquantix.errors import Reason, Unavailable
from tests.support.builders import GIB, make_node, make_vm
from tests.support.postgresql import PostgresqlServer, leave_out, new_server, require_programs
from tests.support.stores import CLAIM_OF_ONE, Stop, add, cancel, node_in, place, vm_in

LIMITS = StoreLimits(total_s=2.0, connection_wait_s=1.0, lock_wait_s=0.5, ping_s=0.5, writer_count=4, reader_count=2)
"""A fifth of the usual ones, so that tests of their ends are short."""

PATIENT = replace(LIMITS, total_s=60.0, connection_wait_s=60.0, connect_s=30.0, lock_wait_s=60.0, ping_s=60.0)
"""For what is to succeed, or to fail at once, on a machine that may be busy."""

QUICKLY_S = 10.0
"""For an answer that takes no waiting at all, on such a machine."""

BOUND_S = LIMITS.total_s + LIMITS.interrupt_after_s + QUICKLY_S
IN_DOUBT = "whether the change was stored is unknown"


@pytest.fixture
def server() -> Iterator[PostgresqlServer]:
    """A server with a migrated database `limiquantix`."""
    with running_server() as started:
        yield started


@contextmanager
def running_server(server: PostgresqlServer | None = None) -> Iterator[PostgresqlServer]:
    """Run a server with a migrated database, and remove it whatever happens."""
    server = server or new_server()
    try:
        server.create()
        server.start()
        server.create_database()
        migrate(server.url())
        yield server
    finally:
        server.remove()


@asynccontextmanager
async def opened(url: str, limits: StoreLimits = LIMITS) -> AsyncIterator[Store]:
    """Open a store with limits that are short."""
    store = create_store(url, limits)
    try:
        await store.open()
        yield store
    finally:
        await store.close()


@pytest.fixture
async def store(server: PostgresqlServer) -> AsyncIterator[Store]:
    """An open store whose pools have a connection each, and which waits as long as it takes."""
    async with opened(server.url(), PATIENT) as store:
        await add(store, make_node(hostname="first", vcpus=1000, memory_bytes=1000 * GIB))
        yield store


@pytest.fixture
async def hasty(server: PostgresqlServer, store: Store) -> AsyncIterator[Store]:
    """An open store with limits that are short, beside the other."""
    async with opened(server.url()) as hasty:
        await first_node_id(hasty)
        yield hasty


async def first_node_id(store: Store) -> str:
    """Id of the node that is always there."""
    node = await store.read(lambda tx: tx.get_node_by_hostname("first"))
    assert node is not None
    return node.id


async def assert_unavailable(store: Store, words: str, within_s: float = QUICKLY_S) -> None:
    """Check that reading, writing and the probe are all refused with these words, and soon."""
    for use in (
        lambda: vm_in(store, "any"),
        lambda: store.run(lambda tx: tx.claim("any", CLAIM_OF_ONE)),
        store.ping,
    ):
        began_at = time.monotonic()
        with pytest.raises(Unavailable, match=words) as refusal:
            await use()
        assert time.monotonic() - began_at < within_s
        assert refusal.value.reason == Reason.STATE_UNAVAILABLE
        assert IN_DOUBT not in refusal.value.message


async def assert_whole(store: Store, node_id: str) -> None:
    """Check that what is claimed on the node is what its VMs take."""

    async def read(tx: Transaction) -> tuple[Capacity, list[Vm]]:
        node = await tx.get_node(node_id)
        assert node is not None
        return node.allocated, list(await tx.vms_on_node(node_id))

    allocated, vms = await store.read(read)
    assert allocated == Capacity(sum(vm.vcpu_count for vm in vms), sum(vm.memory_bytes for vm in vms))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["stopped", "killed"])
async def test_database_that_is_gone_is_unavailable_at_once_and_used_again_when_it_is_back(
    server: PostgresqlServer, store: Store, how: signal.Signals
) -> None:
    node_id = await first_node_id(store)
    vm = make_vm(node_id=node_id)
    assert await place(store, vm)

    server.stop(how)
    await assert_unavailable(store, "nothing listens")
    server.start()

    await store.ping()
    assert await vm_in(store, vm.id) == vm
    assert await place(store, make_vm(node_id=node_id))
    await assert_whole(store, node_id)


async def test_first_calls_after_a_restart_do_not_fail_on_connections_that_died_in_the_pool(
    server: PostgresqlServer, store: Store
) -> None:
    node_id = await first_node_id(store)
    await asyncio.gather(*(place(store, make_vm(node_id=node_id)) for _ in range(16)))
    await asyncio.gather(*(vm_in(store, "any") for _ in range(8)))
    assert len(server.backends()) >= 3  # several of each pool are to be dead

    server.stop(signal.SIGQUIT)
    server.start()

    placed = await asyncio.gather(*(place(store, make_vm(node_id=node_id)) for _ in range(16)))
    read = await asyncio.gather(*(vm_in(store, "any") for _ in range(8)))
    assert (placed, read) == ([True] * 16, [None] * 8)
    await assert_whole(store, node_id)


async def test_restart_within_a_transaction_repeats_the_whole_of_it(server: PostgresqlServer, store: Store) -> None:
    node_id = await first_node_id(store)
    vm = make_vm(node_id=node_id)
    stops = [Stop(), Stop()]
    begun_count = 0

    async def work(tx: Transaction) -> None:
        nonlocal begun_count
        begun_count += 1
        assert await tx.claim(node_id, CLAIM_OF_ONE)
        stops[begun_count - 1].here()
        await tx.insert_vm(vm)

    stops[1].go_on()
    running = asyncio.create_task(store.run(work))
    await stops[0].reached()
    server.stop()
    server.start()
    stops[0].go_on()
    await running

    assert begun_count == 2
    assert (await node_in(store, node_id)).allocated == CLAIM_OF_ONE
    await assert_whole(store, node_id)


async def test_database_that_goes_within_a_transaction_and_stays_away_leaves_nothing_of_it(
    server: PostgresqlServer, store: Store
) -> None:
    node_id = await first_node_id(store)
    vm = make_vm(node_id=node_id)
    stop = Stop()

    async def work(tx: Transaction) -> None:
        assert await tx.claim(node_id, CLAIM_OF_ONE)
        stop.here()
        await tx.insert_vm(vm)

    running = asyncio.create_task(store.run(work))
    await stop.reached()
    server.stop(signal.SIGKILL)
    stop.go_on()
    with pytest.raises(Unavailable, match="nothing listens") as refusal:
        await running
    assert IN_DOUBT not in refusal.value.message

    server.start()
    assert await vm_in(store, vm.id) is None
    assert (await node_in(store, node_id)).allocated == Capacity(0, 0)


async def test_connection_lost_at_the_commit_leaves_the_outcome_open_and_is_not_repeated(
    server: PostgresqlServer, store: Store
) -> None:
    # A deferred constraint's trigger is the one thing that runs at the commit: it ends its own connection there.
    with server.connect() as admin:
        admin.execute(
            "CREATE FUNCTION cut() RETURNS trigger LANGUAGE plpgsql AS "
            "$$BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END$$"
        )
        admin.execute(
            "CREATE CONSTRAINT TRIGGER cut AFTER INSERT ON vms DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION cut()"
        )
    node_id = await first_node_id(store)
    vm = make_vm(node_id=node_id)
    begun_count = 0

    async def work(tx: Transaction) -> None:
        nonlocal begun_count
        begun_count += 1
        assert await tx.claim(node_id, CLAIM_OF_ONE)
        await tx.insert_vm(vm)

    with pytest.raises(Unavailable, match=IN_DOUBT):
        await store.run(work)
    assert begun_count == 1
    assert await vm_in(store, vm.id) is None
    await assert_whole(store, node_id)


async def test_lock_held_by_a_stranger_bounds_each_writer_and_holds_up_no_reader(
    server: PostgresqlServer, store: Store, hasty: Store
) -> None:
    node_id = await first_node_id(store)
    with server.connect() as stranger, stranger.transaction():
        stranger.execute("SELECT 1 FROM nodes WHERE id = %s FOR UPDATE", [node_id])
        began_at = time.monotonic()
        with pytest.raises(Unavailable, match=r"another writer|no answer within"):
            await place(hasty, make_vm(node_id=node_id))
        assert LIMITS.lock_wait_s < time.monotonic() - began_at < BOUND_S
        await store.ping()
        assert (await node_in(store, node_id)).allocated == Capacity(0, 0)
    assert await place(store, make_vm(node_id=node_id))


async def test_500_callers_at_once_are_served_or_told_why_not_and_nothing_is_lost(
    server: PostgresqlServer, store: Store, hasty: Store
) -> None:
    node_id = await first_node_id(store)
    with server.connect() as stranger:
        with stranger.transaction():
            stranger.execute("SELECT 1 FROM nodes WHERE id = %s FOR UPDATE", [node_id])
            began_at = time.monotonic()
            outcomes = await asyncio.gather(
                *(place(hasty, make_vm(node_id=node_id)) for _ in range(500)), return_exceptions=True
            )
            assert time.monotonic() - began_at < BOUND_S + LIMITS.connection_wait_s
        assert all(isinstance(outcome, Unavailable) for outcome in outcomes)
        assert sum("every connection to it was in use" in str(outcome) for outcome in outcomes) > 400
    await assert_whole(store, node_id)

    async with opened(server.url(), PATIENT) as waiting:
        placed = await asyncio.gather(*(place(waiting, make_vm(node_id=node_id)) for _ in range(500)))
        assert placed == [True] * 500
        assert len(server.backends()) <= 3 * (LIMITS.writer_count + LIMITS.reader_count)
        assert (await node_in(waiting, node_id)).allocated.vcpus == 500
        await assert_whole(waiting, node_id)


async def test_statement_that_takes_too_long_is_given_up_on_both_sides(
    server: PostgresqlServer, store: Store, hasty: Store
) -> None:
    # Whoever reads VMs waits for the lock that a change of their table takes; a reader has no other way to be slow.
    with server.connect() as stranger:
        with stranger.transaction():
            stranger.execute("LOCK TABLE vms IN ACCESS EXCLUSIVE MODE")
            began_at = time.monotonic()
            with pytest.raises(Unavailable, match=r"another writer|no answer within"):
                await vm_in(hasty, "any")
            assert time.monotonic() - began_at < BOUND_S
        assert await vm_in(store, "any") is None


async def test_frozen_server_holds_nobody_longer_than_the_limit(
    server: PostgresqlServer, store: Store, hasty: Store
) -> None:
    node_id = await first_node_id(store)
    vm = make_vm(node_id=node_id)
    frozen = [server.pid, *server.backends()]
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        began_at = time.monotonic()
        outcomes = await asyncio.gather(vm_in(hasty, "any"), place(hasty, vm), hasty.ping(), return_exceptions=True)
        assert time.monotonic() - began_at < BOUND_S
        assert [type(outcome) for outcome in outcomes] == [Unavailable] * 3
        assert "no answer within" in str(outcomes[0])
        # New connections are not answered either.
        began_at = time.monotonic()
        with pytest.raises(Unavailable):
            await vm_in(hasty, "any")
        assert time.monotonic() - began_at < BOUND_S
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)

    await store.ping()
    assert await vm_in(store, vm.id) is None
    assert await place(store, make_vm(node_id=node_id))
    await assert_whole(store, node_id)


async def test_caller_that_gives_up_on_a_frozen_connection_gets_it_back(server: PostgresqlServer) -> None:
    async with opened(server.url(), replace(LIMITS, writer_count=1, total_s=30)) as store:
        await add(store, make_node(hostname="first"))
        node_id = await first_node_id(store)
        before = server.backends()
        for pid in before:
            os.kill(pid, signal.SIGSTOP)
        try:
            running = asyncio.create_task(place(store, make_vm(node_id=node_id)))
            await asyncio.sleep(0.05)  # it may be waiting for the answer or not have asked yet
            await cancel(running)
            began_at = time.monotonic()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert time.monotonic() - began_at < LIMITS.interrupt_after_s + QUICKLY_S
            # The pool's only place is free, and its connection a new one.
            assert await place(store, make_vm(node_id=node_id))
        finally:
            for pid in before:
                os.kill(pid, signal.SIGCONT)
        await assert_whole(store, node_id)


async def test_store_that_is_closed_while_the_server_is_frozen_waits_no_longer_than_its_limit(
    server: PostgresqlServer, store: Store
) -> None:
    node_id = await first_node_id(store)
    async with opened(server.url(), replace(LIMITS, total_s=30, release_s=0.5)) as closing:
        await vm_in(closing, "any")
        frozen = [server.pid, *server.backends()]
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        try:
            running = asyncio.create_task(vm_in(closing, "any"))
            await asyncio.sleep(0)
            began_at = time.monotonic()
            await closing.close()
            assert time.monotonic() - began_at < 0.5 + QUICKLY_S
            with pytest.raises(Unavailable):
                await running
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
    assert await place(store, make_vm(node_id=node_id))


async def test_connections_that_the_server_refuses_are_told_by_their_limit(server: PostgresqlServer) -> None:
    server.stop()
    server.start(max_connections="6", superuser_reserved_connections="0")
    others = [server.connect() for _ in range(5)]
    try:
        async with opened(server.url()) as store:  # has the last connection
            with pytest.raises(Unavailable, match="too many connections") as refusal:
                await store.run(lambda tx: tx.claim("any", CLAIM_OF_ONE))
            assert refusal.value.reason == Reason.STATE_UNAVAILABLE
            others.pop().close()
            # The server takes note in its own time.
            assert await eventually_claims(store) is False
    finally:
        for each in others:
            each.close()


async def eventually_claims(store: Store, deadline_s: float = 60.0) -> bool:
    """Claim on a node that does not exist, as soon as there is a connection for it."""
    deadline = time.monotonic() + deadline_s
    while True:
        try:
            return await store.run(lambda tx: tx.claim("any", CLAIM_OF_ONE))
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)


async def test_full_disk_is_told_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    with small_disk() as disk, running_server(new_server(data_directory=disk / "data")) as server:
        async with opened(server.url(), PATIENT) as store:
            await add(store, make_node(hostname="first", vcpus=10**6, memory_bytes=10**6 * GIB))
            node_id = await first_node_id(store)
            ballast = disk / "ballast"
            ballast.write_bytes(bytes(free_bytes(disk) - 2**20))
            placed_count = 0

            async def place_until_full() -> None:
                nonlocal placed_count
                for _ in range(1000):
                    assert await place(store, make_vm(node_id=node_id, description=random.randbytes(30_000).hex()))
                    placed_count += 1

            with pytest.raises(Unavailable, match="the disk it is on is full") as refusal:
                await place_until_full()
            assert IN_DOUBT not in refusal.value.message

            # What was stored is there, and can be read although the disk is full.
            assert (await node_in(store, node_id)).allocated.vcpus == placed_count
            await assert_whole(store, node_id)
            ballast.unlink()
            assert await place(store, make_vm(node_id=node_id, description="x" * 50_000))
            await assert_whole(store, node_id)


@contextmanager
def small_disk() -> Iterator[Path]:
    """Mount a file system of 96 MiB in memory; where that is not allowed, the test is left out."""
    require_programs()
    disk = Path("/tmp") / f"limiquantix-small-disk-{os.getpid()}"
    disk.mkdir()
    try:
        mounted = subprocess.run(
            ["/bin/mount", "-t", "tmpfs", "-o", "size=96m,mode=0755", "tmpfs", str(disk)],
            capture_output=True,
            check=False,
        )
        if mounted.returncode != 0:
            leave_out("mounting a small file system takes root")
        try:
            yield disk
        finally:
            subprocess.run(["/bin/umount", str(disk)], check=True)
    finally:
        disk.rmdir()


def free_bytes(directory: Path) -> int:
    """Room on a file system."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


async def test_wrong_password_role_or_database_is_told_without_the_password(server: PostgresqlServer) -> None:
    (server.directory / "data" / "pg_hba.conf").write_text(
        "local limiquantix limiquantix trust\nlocal postgres limiquantix trust\nlocal all guest scram-sha-256\n"
    )
    with server.connect() as admin:
        admin.execute("CREATE ROLE guest LOGIN PASSWORD 'right'")
        admin.execute("SELECT pg_reload_conf()")
    socket = f"host={server.directory}"
    for url, words in (
        (f"postgresql://guest:hunter2@/limiquantix?{socket}", "refuses the role or password"),
        (f"postgresql://guest@/limiquantix?{socket}", "refuses the role or password"),
        (f"postgresql://nobody:hunter2@/limiquantix?{socket}", "pg_hba.conf"),
        (f"postgresql://limiquantix:hunter2@/elsewhere?{socket}", "pg_hba.conf"),
        (f"postgresql://guest:right@/elsewhere?{socket}", "no database of the name"),
        (f"postgresql://guest:right@/limiquantix?{socket}", "may not do this"),
    ):
        store = create_store(url, LIMITS)
        with pytest.raises(Unavailable, match=words) as refusal:
            await store.open()
        await store.close()
        told = f"{refusal.value} {refusal.value.__cause__!r}"
        assert "hunter2" not in told


async def test_server_that_starts_or_cannot_be_written_is_told(server: PostgresqlServer, store: Store) -> None:
    with server.connect() as admin:
        admin.execute("ALTER DATABASE limiquantix SET default_transaction_read_only = on")
    # Our writers say READ WRITE themselves, as on a server that is no standby: the setting alone does not stop them.
    assert await store.run(lambda tx: tx.claim("any", CLAIM_OF_ONE)) is False
    async with opened(server.url(target_session_attrs="read-only")) as reader:
        await reader.ping()
    with pytest.raises(Unavailable, match="no server of database"):
        async with opened(server.url(target_session_attrs="read-write")):
            pass


async def test_standby_is_refused_for_writing_until_it_is_promoted(server: PostgresqlServer, store: Store) -> None:
    server.stop()
    assert server.data_directory is not None
    (server.data_directory / "standby.signal").touch()
    server.start()

    with pytest.raises(Unavailable, match="standby"):
        await store.run(lambda tx: tx.claim("any", CLAIM_OF_ONE))
    await store.ping()

    with server.connect() as admin:
        admin.execute("SELECT pg_promote()")
    assert await eventually_claims(store) is False


async def test_several_hosts_are_tried_for_one_that_can_be_written(server: PostgresqlServer) -> None:
    url = server.url(host=f"{server.directory}-absent,{server.directory}", target_session_attrs="read-write")
    async with opened(url) as store:
        await add(store, make_vm())
        page = await store.read(lambda tx: tx.list_vms(VmFilter(), None, 10))
        assert page.total_count == 1
