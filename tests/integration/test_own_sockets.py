"""Connections that something else in this process accepted: found, counted, reset, and kept from coming again."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.access.floods import FloodBook, FloodRules, FloodWatch
from controlplane.access.own_sockets import Accepted, OwnSockets

LIMIT_S = 20.0


class Listening:
    """A port with nothing behind it that reads, as a library has it that is busy."""

    def __init__(self, family: socket.AddressFamily, host: str) -> None:
        dual = family == socket.AF_INET6
        self.socket = socket.create_server((host, 0), family=family, dualstack_ipv6=dual)
        self.port: int = self.socket.getsockname()[1]
        self.sockets = OwnSockets(self.port)
        self._held: list[socket.socket] = []

    def connect(self, source: str = "127.0.0.1", timeout_s: float = LIMIT_S) -> tuple[socket.socket, socket.socket]:
        """Connect from an address; returns both ends."""
        client = socket.create_connection((source, self.port), timeout_s, source_address=(source, 0))
        server, _ = self.socket.accept()
        server.settimeout(LIMIT_S)
        self._held += [client, server]
        return client, server

    def lets_in(self, source: str) -> bool:
        """Tell whether an address gets a connection."""
        try:
            self.connect(source, timeout_s=1.0)
        except TimeoutError:
            return False
        return True

    def only(self) -> Accepted:
        """Look, and expect one connection."""
        (found,) = self.sockets.accepted()
        return found

    def close(self) -> None:
        """Let go of everything."""
        for each in (*self._held, self.socket):
            each.close()


@pytest.fixture(params=["ipv4", "dual"])
def listening(request: pytest.FixtureRequest) -> Iterator[Listening]:
    family, host = (socket.AF_INET6, "::") if request.param == "dual" else (socket.AF_INET, "")
    made = Listening(family, host)
    yield made
    made.close()


def came(listening: Listening, count: int) -> Accepted:
    """Look until so many bytes have come."""
    ends_s = time.monotonic() + LIMIT_S
    while (found := listening.only()).received_bytes < count and time.monotonic() < ends_s:
        time.sleep(0.01)
    return found


def test_bytes_are_counted_though_nobody_reads_them(listening: Listening) -> None:
    assert listening.sockets.accepted() == []
    client, server = listening.connect()
    first = listening.only()
    assert (first.address, first.port, first.received_bytes) == ("127.0.0.1", client.getsockname()[1], 0)
    client.sendall(b"x" * 5_000)
    assert came(listening, 5_000).received_bytes == 5_000
    server.sendall(b"y" * 3_000)
    assert client.recv(3_000, socket.MSG_WAITALL) == b"y" * 3_000
    ends_s = time.monotonic() + LIMIT_S
    while listening.only().sent_bytes < 3_000 and time.monotonic() < ends_s:
        time.sleep(0.01)
    assert listening.only().sent_bytes in (3_000, 3_001)  # some kernels count the handshake
    assert listening.only().id == first.id


def test_other_sockets_and_files_are_not_taken_for_connections(listening: Listening) -> None:
    other = Listening(socket.AF_INET, "127.0.0.1")
    unix, datagram = socket.socketpair(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagram.bind(("127.0.0.1", listening.port))
    try:
        other.connect()
        assert listening.sockets.accepted() == []
        client, _ = listening.connect()
        assert listening.only().port == client.getsockname()[1]
    finally:
        for each in (*unix, datagram, other):
            each.close()


def readable(end: socket.socket) -> bytes:
    """Read what a library would; b"" at the end, however it is told of."""
    try:
        return end.recv(65_536)
    except OSError as error:
        if error.errno not in (errno.ENOTCONN, errno.ECONNRESET):
            raise
        return b""


def can_send(end: socket.socket) -> bool:
    """Send a little; False once the connection is known to be gone."""
    try:
        end.sendall(b"x")
    except ConnectionError:
        return False
    time.sleep(0.01)
    return True


def test_end_resets_a_connection_with_what_was_not_read_yet(listening: Listening) -> None:
    client, server = listening.connect()
    kept, kept_server = listening.connect()
    client.sendall(b"x" * 100_000)
    target = next(each for each in listening.sockets.accepted() if each.port == client.getsockname()[1])
    listening.sockets.end(target)
    assert readable(server) == b""
    ends_s = time.monotonic() + LIMIT_S
    while can_send(client):
        assert time.monotonic() < ends_s
    kept.sendall(b"still there")
    assert kept_server.recv(11, socket.MSG_WAITALL) == b"still there"
    listening.sockets.end(target)  # gone already


def test_descriptor_that_is_used_again_is_another_connection(listening: Listening) -> None:
    _, server = listening.connect()
    old, number = listening.only(), server.fileno()
    server.close()
    if (nothing := os.open(os.devnull, os.O_RDONLY)) != number:  # so that nothing else is given that number
        os.dup2(nothing, number)
        os.close(nothing)
    client, newer = listening.connect()
    given = newer.detach()
    os.dup2(given, number)
    os.close(given)
    newer = socket.socket(fileno=number)
    listening._held.append(newer)
    found = listening.only()
    assert (found.id != old.id, found.port) == (True, client.getsockname()[1])
    listening.sockets.end(old)
    client.sendall(b"unharmed")
    assert newer.recv(8, socket.MSG_WAITALL) == b"unharmed"


def test_barred_addresses_get_no_new_connection_and_nobody_else_is_touched(listening: Listening) -> None:
    listening.sockets.accepted()
    before, before_server = listening.connect("127.0.0.9")
    listening.sockets.bar({"127.0.0.9", "127.0.0.11", "2001:db8::7"})
    assert [listening.lets_in(f"127.0.0.{last}") for last in (9, 10, 11, 12)] == [False, True, False, True]
    before.sendall(b"goes on")
    assert before_server.recv(7, socket.MSG_WAITALL) == b"goes on"
    listening.sockets.bar(())
    assert listening.lets_in("127.0.0.9")


def test_barred_ipv6_address_gets_no_new_connection() -> None:
    listening = Listening(socket.AF_INET6, "::")
    try:
        listening.sockets.accepted()
        assert listening.lets_in("::1")
        listening.sockets.bar({"2001:db8::1", "::1"})
        assert not listening.lets_in("::1")
        assert listening.lets_in("127.0.0.1")
        listening.sockets.bar({"2001:db8::1"})
        assert listening.lets_in("::1")
    finally:
        listening.close()


def test_most_addresses_at_once_fit_the_kernels_filter(listening: Listening) -> None:
    listening.sockets.accepted()
    many = {f"127.0.1.{last}" for last in range(1, 31)} | {f"2001:db8:0:{number:x}::1" for number in range(30)}
    listening.sockets.bar(many)
    assert not listening.lets_in("127.0.1.1")
    assert not listening.lets_in("127.0.1.30")
    assert listening.lets_in("127.0.1.31")


def test_whoever_floods_again_and_again_is_kept_out_for_a_while() -> None:
    listening = Listening(socket.AF_INET, "")
    watch = FloodWatch(OwnSockets, FloodBook(FloodRules(burst_bytes=10_000, excess_bytes=20_000, barred_s=3.0)))
    try:
        for _ in range(3):
            assert listening.lets_in("127.0.0.9")
            client = listening._held[-2]
            with contextlib.suppress(OSError):
                for _ in range(200):
                    client.sendall(b"x" * 10_000)
                    watch.look(listening.sockets)
                pytest.fail("nothing ended the flood")
        assert not listening.lets_in("127.0.0.9")
        assert listening.lets_in("127.0.0.1")
        ends_s = time.monotonic() + LIMIT_S
        while not listening.lets_in("127.0.0.9"):
            assert time.monotonic() < ends_s
            watch.look(listening.sockets)
    finally:
        listening.close()


def test_looking_leaves_no_descriptor_open(listening: Listening) -> None:
    listening.connect()
    listening.sockets.accepted()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        listening.sockets.accepted()
        listening.sockets.bar({"192.0.2.1"})
    assert len(os.listdir("/proc/self/fd")) == before


def test_locks_of_this_process_on_files_outlive_a_look(tmp_path: Path) -> None:
    """As SQLite has them: who closed a copy of the file's descriptor would drop them."""
    path = tmp_path / "locked"
    others = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    with path.open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        sockets = OwnSockets(1)
        for _ in range(2):
            sockets.accepted()
        tried = subprocess.run([sys.executable, "-c", others, str(path)], capture_output=True, text=True, check=False)
    assert "BlockingIOError" in tried.stderr
