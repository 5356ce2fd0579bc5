"""Calls whose headers arrive and whose requests do not: each takes up one of the calls that a server takes at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from controlplane.api.http.application import build_application
from controlplane.api.http.connect import ServiceApplication
from controlplane.api.http.server import HttpServer
from limiquantix.compute.v1 import operation_pb2, operation_service_pb2
from limiquantix.compute.v1.operation_service_pb2 import GetOperationRequest
from limiquantix.compute.v1.operation_service_pb2_grpc import (
    OperationServiceServicer,
    OperationServiceStub,
    add_OperationServiceServicer_to_server,
)
from limiquantix.errors import Reason, Unauthenticated
from limiquantix.rpc.channel import open_channel
from limiquantix.rpc.pipeline import CallOrigin, CallPipeline
from limiquantix.rpc.server import RpcServer
from telemetry.metrics import RpcMetrics, build_registry
from tests.support.raw_http2 import (
    END_HEADERS,
    END_STREAM,
    HEADERS,
    RST_STREAM,
    RawConnection,
    call_headers,
    frame,
    literal,
)

SERVICE = "limiquantix.compute.v1.OperationService"
METHODS = (f"/{SERVICE}/GetOperation", f"/{SERVICE}/WatchOperation", "/grpc.health.v1.Health/Check")
ID = "0b0f5d3e-6d0b-4f0e-9c55-3f1b5f3a7c11"
WORD = literal("authorization", "Bearer right")
DEADLINE_S = 60.0
STREAM_COUNT = 100


class _Guard:
    """Admits whoever brings the word."""

    async def admit(self, method: str, origin: CallOrigin) -> None:
        if ("authorization", "Bearer right") not in [tuple(pair) for pair in origin.invocation_metadata() or ()]:
            raise Unauthenticated(Reason.NOT_LOGGED_IN, "log in first")

    def around(self, method: str, request: Message, origin: CallOrigin) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def recheck(self, method: str, request: Message, origin: CallOrigin) -> None:
        """Whoever was admitted stays."""


class _Operations(OperationServiceServicer):
    def __init__(self) -> None:
        self.is_waiting = asyncio.Event()
        self.is_cancelled = asyncio.Event()

    async def GetOperation(self, request: Any, context: Any) -> Any:
        return operation_pb2.Operation(id="there")

    async def WatchOperation(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield operation_pb2.Operation(id="there")

    async def CancelOperation(self, request: Any, context: Any) -> Any:
        self.is_waiting.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.is_cancelled.set()


@asynccontextmanager
async def serving(request_s: float) -> AsyncIterator[tuple[int, _Operations]]:
    servicer = _Operations()  # type: ignore[abstract] # three of its methods are enough
    server = RpcServer(
        CallPipeline({}, RpcMetrics(build_registry()), _Guard()),
        [SERVICE],
        lambda rpc: add_OperationServiceServicer_to_server(servicer, rpc),
        request_s=request_s,
    )
    port = await server.start("127.0.0.1:0")
    try:
        yield port, servicer
    finally:
        await server.stop(0)


def time_of_calls_without_requests(port: int, method: str, *more: bytes) -> float:
    """Begin many calls and send no request for any; gives how many seconds the last of them lasted. Blocks."""
    began_s, left = time.monotonic(), {2 * number + 1 for number in range(STREAM_COUNT)}
    with RawConnection(port, timeout_s=DEADLINE_S) as connection:
        connection.open()
        headers = call_headers(method, *more)
        for stream in sorted(left):
            connection.send(frame(HEADERS, END_HEADERS, stream, headers))
        for kind, flags, stream, _ in connection.frames():
            if kind == RST_STREAM or (kind == HEADERS and flags & END_STREAM):
                left.discard(stream)
            if not left:
                break
    assert not left
    return time.monotonic() - began_s


@pytest.mark.parametrize("method", METHODS)
async def test_stranger_is_turned_away_before_the_request_is_waited_for(method: str) -> None:
    async with serving(request_s=10 * DEADLINE_S) as (port, _):
        took_s = await asyncio.to_thread(time_of_calls_without_requests, port, method)
    assert took_s < DEADLINE_S


@pytest.mark.parametrize("method", METHODS)
async def test_request_that_does_not_come_is_not_waited_for_without_end(method: str) -> None:
    async with serving(request_s=0.5) as (port, _):
        took_s = await asyncio.to_thread(time_of_calls_without_requests, port, method, WORD)
        async with open_channel(f"127.0.0.1:{port}") as channel:
            request = operation_service_pb2.GetOperationRequest(id=ID)
            metadata = (("authorization", "Bearer right"),)
            answer = await OperationServiceStub(channel).GetOperation(request, timeout=DEADLINE_S, metadata=metadata)
    assert took_s >= 0.5
    assert answer.id == "there"


@pytest.mark.parametrize("method", METHODS)
async def test_call_that_ends_without_a_request_is_the_callers_fault(method: str) -> None:
    async with serving(request_s=10 * DEADLINE_S) as (port, _), open_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_unary(method, lambda data: data, lambda data: data)
        metadata = (("authorization", "Bearer right"),)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(iter(()), timeout=DEADLINE_S, metadata=metadata)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_bytes_that_are_no_health_check_tell_nothing_of_the_inside() -> None:
    async with serving(request_s=DEADLINE_S) as (port, _), open_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/grpc.health.v1.Health/Check", lambda data: data, lambda data: data)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(b"\xff\xff", timeout=DEADLINE_S, metadata=(("authorization", "Bearer right"),))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "DecodeError" not in (refused.value.details() or "")


async def test_caller_who_leaves_ends_what_is_done_for_it() -> None:
    async with serving(request_s=DEADLINE_S) as (port, servicer), open_channel(f"127.0.0.1:{port}") as channel:
        request = operation_service_pb2.CancelOperationRequest(id=ID)
        call = OperationServiceStub(channel).CancelOperation(request, metadata=(("authorization", "Bearer right"),))
        async with asyncio.timeout(DEADLINE_S):
            await servicer.is_waiting.wait()
            call.cancel()
            await servicer.is_cancelled.wait()


@asynccontextmanager
async def serving_http() -> AsyncIterator[int]:
    servicer = _Operations()  # type: ignore[abstract] # three of its methods are enough
    pipeline = CallPipeline({}, RpcMetrics(build_registry()), _Guard())
    service = ServiceApplication(
        operation_service_pb2.DESCRIPTOR.services_by_name["OperationService"], servicer, pipeline
    )
    server = HttpServer(build_application([service], [], ()))
    try:
        yield await server.start("127.0.0.1:0")
    finally:
        await server.stop()


BODIES = {
    "application/json": ("GetOperation", b'{"id": "%s"}' % ID.encode(), b"HTTP/1.1 401 "),
    "application/proto": ("GetOperation", GetOperationRequest(id=ID).SerializeToString(), b"HTTP/1.1 401 "),
    "application/grpc-web+proto": ("GetOperation", b"", b"grpc-status: 16"),
    "application/connect+json": ("WatchOperation", b"", b'"code": "unauthenticated"'),
}


@pytest.mark.parametrize("kind", BODIES)
async def test_stranger_is_turned_away_before_the_body_is_waited_for(kind: str) -> None:
    method, body, refusal = BODIES[kind]
    async with serving_http() as port:
        headers = f"Host: here\r\nContent-Type: {kind}\r\nContent-Length: {len(body) or 1000}\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"POST /{SERVICE}/{method} HTTP/1.1\r\n{headers}\r\n".encode())
        said = b""
        async with asyncio.timeout(DEADLINE_S):
            while refusal not in said:
                piece = await reader.read(4096)
                assert piece, said
                said += piece
        writer.close()
        if body:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"POST /{SERVICE}/{method} HTTP/1.1\r\n{headers}Authorization: Bearer right\r\n\r\n".encode())
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):  # that nothing comes is what is tested
                    await reader.read(1)
            writer.write(body)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            writer.close()
