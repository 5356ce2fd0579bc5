"""The HTTP server against callers that dawdle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from controlplane.api.http.server import HttpServer

DEADLINE_S = 60.0
WHOLE = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"


async def _echo(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse(await Request(scope, receive).body())(scope, receive, send)


@pytest_asyncio.fixture
async def port() -> AsyncIterator[int]:
    """A server that gives a request a tenth of a second to arrive."""
    server = HttpServer(_echo, request_deadline_s=0.1)
    yield await server.start("127.0.0.1:0")
    await server.stop()


async def _exchange(port: int, *pieces: bytes) -> bytes:
    """Send the pieces and read until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(DEADLINE_S):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize(
    "beginning",
    [b"", b"POST /", WHOLE[:-20], WHOLE[:-1]],
    ids=["nothing", "half a line", "half the headers", "half the body"],
)
async def test_connection_whose_request_does_not_arrive_is_closed(port: int, beginning: bytes) -> None:
    assert b"200 OK" not in await _exchange(port, beginning)


async def test_second_request_that_does_not_arrive_closes_the_connection() -> None:
    server = HttpServer(_echo, request_deadline_s=2.0)  # the first one is to arrive in time on any machine
    port = await server.start("127.0.0.1:0")
    try:
        answer = await _exchange(port, WHOLE, WHOLE[:-1])
    finally:
        await server.stop()

    assert answer.count(b"200 OK") == 1


async def test_request_that_arrives_is_answered_however_long_that_takes() -> None:
    may_answer = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await may_answer.wait()
        await _echo(scope, receive, send)

    server = HttpServer(slow, request_deadline_s=1.0)
    port = await server.start("127.0.0.1:0")
    try:
        dawdler = asyncio.create_task(_exchange(port, b"POST /"))
        waiting = asyncio.create_task(_exchange(port, WHOLE.replace(b"Host: x", b"Host: x\r\nConnection: close")))
        await dawdler  # cut off, so the deadline of the other has passed as well
        await _exchange(port, b"POST /")
        may_answer.set()
        assert b"200 OK" in await waiting
    finally:
        await server.stop()


async def _is_answered(port: int) -> bool:
    try:
        return b"200 OK" in await _exchange(port, WHOLE.replace(b"Host: x", b"Host: x\r\nConnection: close"))
    except ConnectionError:
        return False


async def test_address_that_opens_more_connections_than_one_may_have_leaves_room_for_others() -> None:
    server = HttpServer(_echo, max_of_one_address=5)
    port = await server.start("127.0.0.1:0")
    idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
    try:
        assert not await _is_answered(port), "one too many of this address"
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
        writer.write(WHOLE.replace(b"Host: x", b"Host: x\r\nConnection: close"))
        async with asyncio.timeout(DEADLINE_S):
            assert b"200 OK" in await reader.read()
            idle.pop()[1].close()
            while not await _is_answered(port):
                continue
    finally:
        for _, writer in idle:
            writer.close()
        await server.stop()
