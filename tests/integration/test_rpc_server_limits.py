"""What a server lets in and for how long: the guard before health and reflection, sizes and deadlines by method."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from controlplane.api.http.application import build_application
from controlplane.api.http.connect import ServiceApplication
from controlplane.api.http.server import HttpServer
from limiquantix.compute.v1 import operation_pb2, operation_service_pb2
from limiquantix.compute.v1.operation_service_pb2_grpc import (
    OperationServiceServicer,
    OperationServiceStub,
    add_OperationServiceServicer_to_server,
)
from limiquantix.errors import Code, Reason, Unauthenticated
from limiquantix.rpc.channel import open_channel
from limiquantix.rpc.limits import CallLimit, TableOfLimits
from limiquantix.rpc.pipeline import CallOrigin, CallPipeline
from limiquantix.rpc.server import RpcServer
from limiquantix.rpc.status import from_rpc_error

DEADLINE_S = 60.0
SERVICE = operation_service_pb2.DESCRIPTOR.services_by_name["OperationService"]
GET, CANCEL = (f"/{SERVICE.full_name}/{name}" for name in ("GetOperation", "CancelOperation"))
ID = "0b0f5d3e-6d0b-4f0e-9c55-3f1b5f3a7c11"


class _Observer:
    def call_finished(self, method: str, code: int, duration_s: float) -> None:
        pass


class _Guard:
    """Admits whoever brings the word."""

    def __init__(self) -> None:
        self.admitted: list[str] = []

    async def admit(self, method: str, origin: CallOrigin) -> None:
        if ("authorization", "Bearer right") not in [tuple(pair) for pair in origin.invocation_metadata() or ()]:
            raise Unauthenticated(Reason.NOT_LOGGED_IN, "log in first")
        self.admitted.append(method)

    def around(self, method: str, request: Message, origin: CallOrigin) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def recheck(self, method: str, request: Message, origin: CallOrigin) -> None:
        """Whoever was admitted stays."""


class _Operations(OperationServiceServicer):
    async def GetOperation(self, request: Any, context: Any) -> Any:
        return operation_pb2.Operation(id=request.id)

    async def CancelOperation(self, request: Any, context: Any) -> Any:
        await asyncio.Event().wait()


@dataclass
class Served:
    """Both transports over one pipeline."""

    channel: grpc.aio.Channel
    http: httpx.AsyncClient
    guard: _Guard
    metadata: tuple[tuple[str, str], ...] = field(default=(("authorization", "Bearer right"),))


@pytest_asyncio.fixture
async def served() -> AsyncIterator[Served]:
    guard = _Guard()
    limits = TableOfLimits(CallLimit(60.0, 1_000), {CANCEL: CallLimit(0.1, 1_000)})
    pipeline = CallPipeline({}, _Observer(), guard, limits)
    servicer = _Operations()  # type: ignore[abstract] # two of its methods are enough
    rpc = RpcServer(
        pipeline,
        [SERVICE.full_name],
        lambda server: add_OperationServiceServicer_to_server(servicer, server),
    )
    http = HttpServer(build_application([ServiceApplication(SERVICE, servicer, pipeline)], [], ()))
    port, http_port = await rpc.start("127.0.0.1:0"), await http.start("127.0.0.1:0")
    async with (
        open_channel(f"127.0.0.1:{port}") as channel,
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{http_port}", timeout=DEADLINE_S, headers={"authorization": "Bearer right"}
        ) as client,
    ):
        yield Served(channel, client, guard)
    await http.stop()
    await rpc.stop(0)


async def _reflected(served: Served, metadata: tuple[tuple[str, str], ...]) -> list[str]:
    stub = reflection_pb2_grpc.ServerReflectionStub(served.channel)
    asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
    call = stub.ServerReflectionInfo(iter(asked), timeout=DEADLINE_S, metadata=metadata)
    return [service.name async for answer in call for service in answer.list_services_response.service]


async def _refused_reflection(channel: grpc.aio.Channel) -> grpc.aio.AioRpcError:
    """Ask for nothing yet: a refusal that crosses a request would be told as an error of sending it."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(timeout=DEADLINE_S).read()
    return refused.value


async def test_reflection_answers_whom_the_guard_admits_and_nobody_else(served: Served) -> None:
    assert SERVICE.full_name in await _reflected(served, served.metadata)

    error = from_rpc_error(await _refused_reflection(served.channel), peer="the server")
    assert (error.code, error.message) == (Code.UNAUTHENTICATED, "log in first")


async def test_reflection_may_be_left_out() -> None:
    server = RpcServer(CallPipeline({}, _Observer()), [], lambda _: None, reflects=False)
    port = await server.start("127.0.0.1:0")
    try:
        async with open_channel(f"127.0.0.1:{port}") as channel:
            refused = await _refused_reflection(channel)
    finally:
        await server.stop(0)
    assert refused.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_reflection_kept_open_by_many_keeps_nobody_else_out(served: Served) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(served.channel)
    open_ones = [stub.ServerReflectionInfo(timeout=DEADLINE_S, metadata=served.metadata) for _ in range(100)]
    for call in open_ones:
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        assert await call.read() is not grpc.aio.EOF

    async with asyncio.timeout(DEADLINE_S):
        await asyncio.to_thread(lambda: None)
        assert SERVICE.full_name in await _reflected(served, served.metadata)
    for call in open_ones:
        call.cancel()


async def test_health_answers_whom_the_guard_admits_and_nobody_else(served: Served) -> None:
    stub = health_pb2_grpc.HealthStub(served.channel)
    request = health_pb2.HealthCheckRequest(service=SERVICE.full_name)

    answer = await stub.Check(request, timeout=DEADLINE_S, metadata=served.metadata)
    watched = stub.Watch(request, timeout=DEADLINE_S, metadata=served.metadata)

    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert (await watched.read()).status == health_pb2.HealthCheckResponse.SERVING
    watched.cancel()
    for call in (stub.Check(request, timeout=DEADLINE_S), stub.Watch(request, timeout=DEADLINE_S).read()):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_request_that_is_too_large_for_its_method_is_refused_on_both_wires(served: Served) -> None:
    call = served.channel.unary_unary(GET, lambda data: data, operation_pb2.Operation.FromString)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(b"\n$" + ID.encode() + b"\xfa\xff\xff\xff\x0f\xe8\x07" + b"x" * 1_000, metadata=served.metadata)
    error = from_rpc_error(refused.value, peer="the server")

    answer = await served.http.post(GET, json={"id": ID, "padding": "x" * 1_000})

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 100

    piecewise = await served.http.post(GET, content=pieces(), headers={"content-type": "application/json"})

    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, Reason.REQUEST_TOO_LARGE)
    assert error.message == f"a request of {GET} has at most 1000 bytes"
    for each in (answer, piecewise):
        assert (each.status_code, each.json()["code"]) == (413, "resource_exhausted")
        assert each.json()["message"] == error.message


async def test_body_that_unpacks_to_more_than_its_method_takes_is_refused(served: Served) -> None:
    packed = gzip.compress(b" " * 400_000)
    assert len(packed) < 1_000

    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    answer = await served.http.post(GET, content=packed, headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (429, "resource_exhausted")


async def test_call_that_takes_longer_than_its_method_may_is_ended_on_both_wires(served: Served) -> None:
    stub = OperationServiceStub(served.channel)
    request = operation_service_pb2.CancelOperationRequest(id=ID)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.CancelOperation(request, timeout=DEADLINE_S, metadata=served.metadata)
    answer = await served.http.post(CANCEL, json={"id": ID})

    assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    assert answer.json()["message"] == f"{CANCEL} did not finish in time"


async def test_sound_calls_are_served_on_both_wires(served: Served) -> None:
    stub = OperationServiceStub(served.channel)
    request = operation_service_pb2.GetOperationRequest(id=ID)

    assert (await stub.GetOperation(request, timeout=DEADLINE_S, metadata=served.metadata)).id == ID
    assert (await served.http.post(GET, json={"id": ID})).json() == {"id": ID}
    assert served.guard.admitted == [GET, GET]
