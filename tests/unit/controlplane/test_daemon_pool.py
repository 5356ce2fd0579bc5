"""The pool of gRPC clients: one channel a node, replaced when it moves, and faults in our words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty

from controlplane.daemons.grpc_calls import EPOCH_KEY, TOKEN_KEY, CallTimeouts
from controlplane.daemons.grpc_pool import GrpcDaemonPool
from controlplane.domain.node import Node
from limiquantix.errors import DeadlineExceeded, FailedPrecondition, Internal, Reason, Unavailable
from limiquantix.node.v1.node_daemon_pb2 import CreateVMOnNodeRequest, ReconfigureVMRequest, VMIdRequest, VMSpec
from limiquantix.node.v1.node_daemon_pb2_grpc import (
    NodeDaemonServiceServicer,
    add_NodeDaemonServiceServicer_to_server,
)
from limiquantix.rpc.server import RpcServer
from tests.support.builders import make_id, make_node
from tests.support.fake_daemons import FakeDaemon, serve

PATIENT = CallTimeouts(query_s=60, power_s=60, create_s=60)


async def listen(daemon: FakeDaemon) -> tuple[RpcServer, str]:
    server = serve(daemon)
    return server, f"127.0.0.1:{await server.start('127.0.0.1:0')}"


@pytest.fixture
async def pool() -> AsyncIterator[GrpcDaemonPool]:
    pool = GrpcDaemonPool(PATIENT)
    yield pool
    await pool.close()


@pytest.fixture
async def host() -> AsyncIterator[tuple[FakeDaemon, Node]]:
    """A host that listens, with one VM named by its node's labels."""
    daemon = FakeDaemon()
    server, endpoint = await listen(daemon)
    yield daemon, make_node(agent_endpoint=endpoint)
    await server.stop(0)


async def put_vm(daemon: FakeDaemon) -> str:
    vm_id = make_id()
    await daemon.create_vm(CreateVMOnNodeRequest(vm_id=vm_id, name="t", spec=VMSpec(cpu_cores=1, memory_mib=128)))
    return vm_id


async def test_calls_reach_the_host_over_one_channel(pool: GrpcDaemonPool, host: tuple[FakeDaemon, Node]) -> None:
    daemon, node = host
    vm_id = await put_vm(daemon)

    assert pool.daemon(node) is pool.daemon(node)
    await pool.daemon(node).start_vm(vm_id, 1)
    status = await pool.daemon(node).vm_status(vm_id)

    assert status.state_change_count == 2


async def test_node_that_moved_is_called_at_its_new_endpoint(
    pool: GrpcDaemonPool, host: tuple[FakeDaemon, Node]
) -> None:
    daemon, node = host
    await pool.daemon(node).delete_vm(make_id(), 1)
    elsewhere = FakeDaemon()
    server, endpoint = await listen(elsewhere)

    await pool.daemon(replace(node, agent_endpoint=endpoint)).delete_vm(make_id(), 1)

    assert (len(daemon.calls), len(elsewhere.calls)) == (1, 1)
    await server.stop(0)


async def test_call_under_way_when_the_node_moves_is_unavailable_not_cancelled(
    pool: GrpcDaemonPool, host: tuple[FakeDaemon, Node]
) -> None:
    daemon, node = host
    vm_id = await put_vm(daemon)
    gate = daemon.hold("start_vm")
    client = pool.daemon(node)
    starting = asyncio.ensure_future(client.start_vm(vm_id, 1))
    await gate.entered.wait()

    await pool.close()

    with pytest.raises(Unavailable) as caught:
        await starting
    assert caught.value.reason == Reason.NODE_UNREACHABLE
    with pytest.raises(Unavailable):
        await client.start_vm(vm_id, 1)
    gate.release()


async def test_cancelled_caller_stays_cancelled(pool: GrpcDaemonPool, host: tuple[FakeDaemon, Node]) -> None:
    daemon, node = host
    gate = daemon.hold("start_vm")
    starting = asyncio.ensure_future(pool.daemon(node).start_vm(await put_vm(daemon), 1))
    await gate.entered.wait()

    starting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await starting
    gate.release()


async def test_reconfigure_gets_the_time_that_disks_take(host: tuple[FakeDaemon, Node]) -> None:
    daemon, node = host
    vm_id = await put_vm(daemon)
    gate, slow_start = daemon.hold("reconfigure_vm"), daemon.hold("start_vm")
    pool = GrpcDaemonPool(CallTimeouts(query_s=0.1, power_s=0.1, create_s=30))
    request = ReconfigureVMRequest(vm_id=vm_id, name="t", spec=VMSpec(cpu_cores=2, memory_mib=128))
    reconfiguring = asyncio.ensure_future(pool.daemon(node).reconfigure_vm(request))
    await gate.entered.wait()

    with pytest.raises(DeadlineExceeded):  # by now the time of a power operation has passed
        await pool.daemon(node).start_vm(vm_id, 1)
    gate.release()

    await reconfiguring
    slow_start.release()
    await pool.close()


async def test_node_without_endpoint_is_unavailable(pool: GrpcDaemonPool) -> None:
    with pytest.raises(Unavailable, match="register again"):
        pool.daemon(make_node(agent_endpoint=""))


@pytest.mark.parametrize("endpoint", ["127.0.0.1:1", "no-such-host.invalid:9090"])
async def test_host_that_does_not_listen_is_unavailable_and_named(pool: GrpcDaemonPool, endpoint: str) -> None:
    node = make_node(agent_endpoint=endpoint, hostname="ghost")

    with pytest.raises(Unavailable, match="ghost") as caught:
        await pool.daemon(node).start_vm(make_id(), 1)

    assert caught.value.reason == Reason.NODE_UNREACHABLE


async def test_host_that_does_not_answer_is_deadline_exceeded(host: tuple[FakeDaemon, Node]) -> None:
    daemon, node = host
    gate = daemon.hold("vm_status")
    pool = GrpcDaemonPool(CallTimeouts(query_s=0.2, power_s=60, create_s=60))

    with pytest.raises(DeadlineExceeded, match=node.hostname):
        await pool.daemon(node).vm_status(await put_vm(daemon))

    gate.release()
    await pool.close()


async def test_refusal_arrives_whole_and_a_defect_without_its_inside(
    pool: GrpcDaemonPool, host: tuple[FakeDaemon, Node]
) -> None:
    daemon, node = host
    vm_id = await put_vm(daemon)
    sent = FailedPrecondition(Reason.GUEST_DID_NOT_STOP, "the guest did not react", metadata={"vm_id": vm_id})
    daemon.fail("stop_vm", sent)
    daemon.fail("pause_vm", ZeroDivisionError("inside"))

    with pytest.raises(FailedPrecondition) as caught:
        await pool.daemon(node).stop_vm(vm_id, 1, 1)
    with pytest.raises(Internal) as defect:
        await pool.daemon(node).pause_vm(vm_id, 1)

    assert (caught.value.reason, caught.value.message, caught.value.metadata) == (
        sent.reason,
        sent.message,
        sent.metadata,
    )
    assert "inside" not in defect.value.message


class _Told(NodeDaemonServiceServicer):
    """A host that keeps what calls carry beside their request."""

    def __init__(self) -> None:
        self.metadata: list[dict[str, str]] = []

    async def StartVM(self, request: VMIdRequest, context: Any) -> Empty:
        self.metadata.append({str(key): str(value) for key, value in context.invocation_metadata()})
        return Empty()


@pytest.fixture
async def told() -> AsyncIterator[tuple[_Told, Node]]:
    """A host of a node that was fenced six times."""
    servicer = _Told()  # type: ignore[abstract]
    server = grpc.aio.server()
    add_NodeDaemonServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield servicer, make_node(agent_endpoint=f"127.0.0.1:{port}", fence_token=6)
    await server.stop(None)


async def test_calls_carry_the_token_of_the_record_that_they_were_decided_by(
    pool: GrpcDaemonPool, told: tuple[_Told, Node]
) -> None:
    host, node = told
    before = pool.daemon(node)
    after = pool.daemon(replace(node, fence_token=7), epoch=3)

    await before.start_vm(make_id(), 1)  # asked for before the fence, sent after it
    await after.start_vm(make_id(), 1)

    carried = [(each.get(TOKEN_KEY), each.get(EPOCH_KEY)) for each in host.metadata]
    assert carried == [("6", None), ("7", "3")]
