"""Several instances of a control plane: one that does not answer is passed over."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing, contextmanager

import grpc
import pytest

from limiquantix.compute.v1 import node_pb2
from limiquantix.compute.v1 import node_service_pb2 as pb
from limiquantix.errors import NotFound, Unavailable
from nodedaemon.control_plane import GrpcControlPlane
from tests.support.fake_control_plane import FakeControlPlane, fake_control_plane
from tests.support.own_cluster import node_credentials

BEAT = pb.UpdateHeartbeatRequest(node_id=str(uuid.uuid4()))


@contextmanager
def dead_address() -> Iterator[str]:
    """An address of this host that refuses connections: it is taken, and nobody listens."""
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


class Plane:
    """The client with as many fakes as wanted."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def of(self, *addresses: str) -> GrpcControlPlane:
        client = GrpcControlPlane(addresses, node_credentials())
        self._stack.push_async_callback(client.close)
        return client

    async def fake(self) -> FakeControlPlane:
        return await self._stack.enter_async_context(fake_control_plane())


async def test_call_goes_on_to_the_next_instance_and_stays_there() -> None:
    async with AsyncExitStack() as stack:
        plane = Plane(stack)
        first, second = await plane.fake(), await plane.fake()
        client = await plane.of(first.address, second.address)
        await client.heartbeat(BEAT)
        first.failing["UpdateHeartbeat"] = grpc.StatusCode.UNAVAILABLE
        for _ in range(3):
            await client.heartbeat(BEAT)
        assert (len(first.heartbeats), len(second.heartbeats)) == (2, 3)
        first.failing.clear()
        second.failing["UpdateHeartbeat"] = grpc.StatusCode.DEADLINE_EXCEEDED
        await client.heartbeat(BEAT)
        assert (len(first.heartbeats), len(second.heartbeats)) == (3, 4)


async def test_instance_that_does_not_listen_is_passed_over_by_every_call() -> None:
    async with AsyncExitStack() as stack:
        plane, dead = Plane(stack), stack.enter_context(dead_address())
        alive = await plane.fake()
        client = await plane.of(dead, alive.address)
        cpu, memory = node_pb2.CpuInfo(total_threads=1), node_pb2.MemoryInfo(total_bytes=2**30)
        host = pb.RegisterNodeRequest(hostname="h1", management_ip="127.0.0.1", cpu_info=cpu, memory_info=memory)
        await client.register(host)
        other = await plane.of(dead, alive.address)
        await other.sync_full_state(pb.SyncFullStateRequest(node_id=BEAT.node_id))
        vm = pb.VMStatusReport(id=str(uuid.uuid4()))
        third = await plane.of(dead, alive.address)
        await third.notify_vm_change(pb.VMChangeNotification(node_id=BEAT.node_id, vm=vm))
        assert [len(alive.registrations), len(alive.syncs), len(alive.changes)] == [1, 1, 1]


async def test_refusal_is_an_answer_and_is_not_asked_for_twice() -> None:
    async with AsyncExitStack() as stack:
        plane = Plane(stack)
        first, second = await plane.fake(), await plane.fake()
        client = await plane.of(first.address, second.address)
        first.failing["UpdateHeartbeat"] = grpc.StatusCode.NOT_FOUND
        with pytest.raises(NotFound):
            await client.heartbeat(BEAT)
        assert second.heartbeats == []


async def test_call_that_no_instance_answers_fails_naming_the_last() -> None:
    async with AsyncExitStack() as stack:
        plane = Plane(stack)
        dead, deader = stack.enter_context(dead_address()), stack.enter_context(dead_address())
        client = await plane.of(dead, deader)
        with pytest.raises(Unavailable, match=f"control plane {deader}"):
            await client.heartbeat(BEAT)
