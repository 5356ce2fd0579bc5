"""A closed control plane ends the connections of strangers who flood it, and goes on answering those it knows.

The plane is a process of its own. Each attack goes on until the server has ended the connection; meanwhile somebody
known makes calls over another one.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from controlplane.access.floods import FloodRules
from limiquantix.compute.v1 import vm_service_pb2
from limiquantix.compute.v1.vm_service_pb2_grpc import VMServiceStub
from limiquantix.rpc.server import MAX_HEADER_FIELDS
from tests.integration.test_http2_abuse import ATTACKS
from tests.support.raw_http2 import ACK, SETTINGS, WINDOW_UPDATE, RawConnection

LIMIT_S = 60.0
_INITIAL_WINDOW_SIZE = b"\0\4"

pytestmark = pytest.mark.timeout(300)

_PLANE = """
import asyncio, json, sys
from pathlib import Path
import controlplane.__main__
from tests.support.closed_plane import closed_plane
from tests.support.databases import fresh_sqlite

async def main():
    directory = Path(sys.argv[1])
    async with closed_plane(directory, fresh_sqlite(directory)) as plane:
        entry = plane.entry
        told = {"address": entry.grpc_address, "authority": entry.authority, "token": entry.token}
        print(json.dumps(told), flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


@dataclass(frozen=True)
class Plane:
    address: str
    authority: str
    token: str

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What lets a call in."""
        return (("authorization", f"Bearer {self.token}"),)

    def channel(self) -> grpc.Channel:
        """A connection of its own, to what the authority vouches for."""
        options = (("grpc.use_local_subchannel_pool", 1),)
        return grpc.secure_channel(self.address, grpc.ssl_channel_credentials(self.authority.encode()), options)

    def calls(self, until: Callable[[], bool]) -> list[float]:
        """Call over one connection, again and again; gives how long each took, in seconds."""
        took: list[float] = []
        with self.channel() as channel:
            stub = VMServiceStub(channel)
            while not until() or not took:
                began = time.monotonic()
                stub.ListVMs(vm_service_pb2.ListVMsRequest(), timeout=LIMIT_S, metadata=self.metadata)
                took.append(time.monotonic() - began)
        return took


class Stranger(RawConnection):
    """A connection without a credential."""

    def __init__(self, plane: Plane) -> None:
        host, _, port = plane.address.rpartition(":")
        trust = ssl.create_default_context(cadata=plane.authority)
        trust.check_hostname = False
        trust.set_alpn_protocols(["h2"])
        self._socket = trust.wrap_socket(socket.create_connection((host, int(port)), LIMIT_S))


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", _PLANE, str(tmp_path_factory.mktemp("plane"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root}:{root / 'proto'}"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    line = next((line for line in process.stdout if line.startswith("{")), "")
    assert line, "the control plane did not start"
    threading.Thread(target=process.stdout.read, daemon=True).start()
    yield Plane(**json.loads(line))
    process.stdin.close()
    process.wait(LIMIT_S)


@pytest.mark.parametrize("name", ATTACKS)
def test_flood_of_a_stranger_is_ended_and_keeps_nobody_out(name: str, plane: Plane) -> None:
    is_over = threading.Event()
    sent_bytes, is_ended = 0, False

    def attack() -> None:
        nonlocal sent_bytes, is_ended
        ends_s = time.monotonic() + LIMIT_S
        try:
            with Stranger(plane) as connection:
                connection.open()
                for data in ATTACKS[name](connection):
                    if not connection.send(data):
                        is_ended = True
                        break
                    sent_bytes += len(data)
                    if time.monotonic() > ends_s:
                        break
        finally:
            is_over.set()

    thread = threading.Thread(target=attack)
    thread.start()
    during = plane.calls(is_over.is_set)
    thread.join(LIMIT_S)

    assert is_ended, f"{sent_bytes} bytes were sent and the connection stands"
    assert max(during) < LIMIT_S / 2
    assert len(plane.calls(lambda: True)) == 1


def test_call_of_very_many_header_fields_is_refused_and_says_how_many_there_may_be(plane: Plane) -> None:
    fields = [(f"x-{number}", "x") for number in range(MAX_HEADER_FIELDS)]
    with plane.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        VMServiceStub(channel).ListVMs(
            vm_service_pb2.ListVMsRequest(), timeout=LIMIT_S, metadata=(*plane.metadata, *fields)
        )
    error = caught.value
    assert isinstance(error, grpc.Call)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"at most {MAX_HEADER_FIELDS} header fields" in str(error.details())
    with plane.channel() as channel:
        VMServiceStub(channel).ListVMs(
            vm_service_pb2.ListVMsRequest(),
            timeout=LIMIT_S,
            metadata=(*plane.metadata, *fields[: MAX_HEADER_FIELDS // 2]),
        )


def test_large_requests_of_somebody_known_are_no_flood(plane: Plane) -> None:
    for _ in range(20):
        with plane.channel() as channel:
            for _ in range(2):
                code = refusal(plane, channel, "WriteGuestFile", b"\xff" * (4 * 2**20))
                assert code is grpc.StatusCode.INVALID_ARGUMENT


def test_nobody_is_asked_to_send_what_would_be_a_flood_before_the_call_is_looked_at(plane: Plane) -> None:
    window_bytes, connection_bytes = 65_535, 65_535  # RFC 9113, section 6.9.2
    with Stranger(plane) as connection:
        connection.open()
        for kind, flags, _, payload in connection.frames():
            if kind == SETTINGS and flags & ACK:
                break
            if kind == SETTINGS:
                settings = [payload[at : at + 6] for at in range(0, len(payload), 6)]
                found = [int.from_bytes(each[2:]) for each in settings if each[:2] == _INITIAL_WINDOW_SIZE]
                window_bytes = found[0] if found else window_bytes
            elif kind == WINDOW_UPDATE:
                connection_bytes += int.from_bytes(payload)
    assert max(window_bytes, connection_bytes) < FloodRules().burst_bytes


@pytest.mark.parametrize("method", ["GetVM", "CreateVM", "DeleteVM", "WatchVM", "ListVMs", "CloneVM", "WriteGuestFile"])
def test_bytes_that_are_no_request_are_refused_before_anything_is_asked_about_them(plane: Plane, method: str) -> None:
    with plane.channel() as channel:
        assert refusal(plane, channel, method, b"\xff\xff\xff") is grpc.StatusCode.INVALID_ARGUMENT


def refusal(plane: Plane, channel: grpc.Channel, method: str, request: bytes) -> grpc.StatusCode:
    """Send bytes as a request; returns how the call is refused."""
    path = f"/limiquantix.compute.v1.VMService/{method}"
    streaming: Any = channel.unary_stream(path)
    unary: Any = channel.unary_unary(path)
    call = (lambda *args, **named: next(streaming(*args, **named))) if method.startswith("Watch") else unary
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=LIMIT_S, metadata=plane.metadata)
    error = caught.value
    assert isinstance(error, grpc.Call)
    return error.code()
