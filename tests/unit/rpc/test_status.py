"""Errors reach a client whole, or cut to what it can receive, never not at all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, TypeAlias

import grpc
import pytest

from limiquantix.compute.v1.vm_pb2 import VirtualMachine
from limiquantix.compute.v1.vm_service_pb2 import GetVMRequest
from limiquantix.compute.v1.vm_service_pb2_grpc import (
    VMServiceServicer,
    VMServiceStub,
    add_VMServiceServicer_to_server,
)
from limiquantix.errors import ApiError, Code, FieldViolation, InvalidArgument, ResourceExhausted
from limiquantix.rpc.channel import open_channel
from limiquantix.rpc.pipeline import CallPipeline
from limiquantix.rpc.server import RpcServer
from limiquantix.rpc.status import OMITTED, from_rpc_error

if TYPE_CHECKING:
    from limiquantix.compute.v1.vm_service_pb2_grpc import VMServiceAsyncStub

    Refusing: TypeAlias = tuple["_Refusing", VMServiceAsyncStub]

VM_ID = "3f2a9c1d-0000-4000-8000-000000000001"


class _Silent:
    def call_finished(self, method: str, code: int, duration_s: float) -> None:
        """Metrics are not what is tested here."""


class _Refusing(VMServiceServicer):
    error: ApiError

    async def GetVM(self, request: GetVMRequest, context: object) -> VirtualMachine:
        raise self.error


@pytest.fixture
async def refusing() -> AsyncIterator[Refusing]:
    servicer = _Refusing()  # type: ignore[abstract]
    server = RpcServer(
        CallPipeline({}, _Silent()),
        ["limiquantix.compute.v1.VMService"],
        lambda s: add_VMServiceServicer_to_server(servicer, s),
    )
    port = await server.start("127.0.0.1:0")
    async with open_channel(f"127.0.0.1:{port}") as channel:
        yield servicer, VMServiceStub(channel)
    await server.stop(0)


async def _received(refusing: Refusing, error: ApiError) -> ApiError:
    servicer, stub = refusing
    servicer.error = error
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetVM(GetVMRequest(id=VM_ID), timeout=60)
    return from_rpc_error(caught.value, peer="test")


async def test_error_with_few_details_arrives_whole(refusing: Refusing) -> None:
    sent = InvalidArgument.from_violations([FieldViolation("spec.cpu.cores", "must be 1 or more")])
    received = await _received(refusing, sent)
    assert isinstance(received, InvalidArgument)
    assert (received.reason, received.message, received.violations) == (sent.reason, sent.message, sent.violations)


async def test_error_about_a_thousand_nodes_arrives_cut_and_counted(
    refusing: Refusing,
) -> None:
    reasons = {f"node.host-{number:04}": "memory: needs 8192 MiB, 4096 of 6144 MiB free" for number in range(1000)}
    received = await _received(refusing, ResourceExhausted("NO_NODE_FITS", "no node fits: é" * 500, metadata=reasons))
    assert received.code == Code.RESOURCE_EXHAUSTED
    assert received.message.startswith("no node fits")
    kept = [key for key in received.metadata if key.startswith("node.")]
    assert set(kept) == set(list(reasons)[: len(kept)])
    assert len(kept) > 10
    assert int(received.metadata[OMITTED]) == 1000 - len(kept)


async def test_error_with_a_thousand_faults_arrives_cut_and_counted(
    refusing: Refusing,
) -> None:
    faults = [
        FieldViolation(f"spec.disks[{number}].size_gib", "\N{SNOWMAN} must be 1 or more") for number in range(1000)
    ]
    received = await _received(refusing, InvalidArgument.from_violations(faults))
    assert received.code == Code.INVALID_ARGUMENT
    kept = received.violations[:-1]
    assert list(kept) == faults[: len(kept)]
    assert len(kept) > 10
    assert received.violations[-1].description == f"and {1000 - len(kept)} more faults"
