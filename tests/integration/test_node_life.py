"""The life of nodes on a running control plane, over both wires, with hosts in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from limiquantix.compute.v1 import node_pb2, operation_service_pb2, vm_service_pb2
from limiquantix.compute.v1 import node_service_pb2 as api
from limiquantix.compute.v1.node_service_pb2 import SystemEvent
from limiquantix.compute.v1.operation_service_pb2_grpc import OperationServiceStub
from limiquantix.errors import Code, Reason
from limiquantix.rpc.status import from_rpc_error
from tests.support.builders import make_id
from tests.support.control_plane_world import create_request, register_request
from tests.support.fake_daemons import FakeDaemon, serve
from tests.support.running_control_plane import (
    DEADLINE_S,
    NODE_SERVICE,
    RunningControlPlane,
    error_of,
    running_control_plane,
)

NODES_WAIT = (("limiquantix-wait", "false"),)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[RunningControlPlane]:
    async with running_control_plane(tmp_path) as plane:
        yield plane


@asynccontextmanager
async def second_host(running: RunningControlPlane, **fields: Any) -> AsyncIterator[str]:
    """Serve another host, and register it."""
    running.daemon.uri = "fake://a"
    daemon = FakeDaemon(uri="fake://b", network=running.daemon.network)
    daemon.network.by_uri |= {each.uri: each for each in (running.daemon, daemon)}
    server = serve(daemon)
    port = await server.start("127.0.0.1:0")
    try:
        request = register_request("host-b", agent_endpoint=f"127.0.0.1:{port}", **fields)
        yield (await running.nodes.RegisterNode(request, timeout=DEADLINE_S)).id
    finally:
        await server.stop(0)


async def create(running: RunningControlPlane, name: str, **fields: Any) -> str:
    return str((await running.vms.CreateVM(create_request(name, **fields), timeout=DEADLINE_S)).id)


async def node(running: RunningControlPlane, node_id: str = "") -> node_pb2.Node:
    request = api.GetNodeRequest(id=node_id or running.node_id)
    found: node_pb2.Node = await running.nodes.GetNode(request, timeout=DEADLINE_S)
    return found


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not await condition():  # noqa: ASYNC110 - the server's background work is waited for
            await asyncio.sleep(0.05)


async def test_life_of_a_node_is_the_same_on_both_wires(running: RunningControlPlane) -> None:
    node_id = running.node_id
    for method, body, check in (
        ("DisableNode", {"id": node_id, "reason": "new disks"}, lambda n: n["status"]["phase"] == "MAINTENANCE"),
        ("EnableNode", {"id": node_id}, lambda n: n["status"]["phase"] == "READY"),
        ("UpdateLabels", {"nodeId": node_id, "addLabels": {"zone": "a"}}, lambda n: n["labels"] == {"zone": "a"}),
        (
            "AddTaint",
            {"nodeId": node_id, "taint": {"key": "gpu"}},
            lambda n: n["spec"]["scheduling"]["taints"][0]["key"] == "gpu",
        ),
        ("RemoveTaint", {"nodeId": node_id, "taintKey": "gpu"}, lambda n: "taints" not in n["spec"]["scheduling"]),
        (
            "UpdateNode",
            {"id": node_id, "scheduling": {"overcommit": {"cpuRatio": 4}}, "updateMask": "scheduling.overcommit"},
            lambda n: n["status"]["resources"]["cpu"]["allocatableVcpus"] == 28,
        ),
    ):
        for _ in range(2):  # each is idempotent
            answer = await running.post(method, body, NODE_SERVICE)
            assert answer.status == 200, answer.document
            assert check(answer.document), (method, answer.document)
    told = await node(running)
    assert [each.type for each in told.status.conditions] == ["Ready", "Cordoned", "Overloaded"]
    events = await running.nodes.ListNodeEvents(api.ListNodeEventsRequest(node_id=node_id), timeout=DEADLINE_S)
    assert [event.reason for event in reversed(events.events)] == [
        "node.registered",
        "node.cordoned",
        "node.enabled",
        "node.updated",
        "node.tainted",
        "node.untainted",
        "node.updated",
    ]


@pytest.mark.parametrize(
    ("method", "body", "fields"),
    [
        ("UpdateLabels", {"addLabels": {"k": "x" * 300}}, ["add_labels"]),
        ("UpdateLabels", {"addLabels": {"k" * 300: "x"}}, ["add_labels"]),
        ("AddTaint", {"taint": {"key": "?", "effect": "NO_EXECUTE"}}, ["taint.key"]),
        ("AddTaint", {}, ["taint"]),
        ("DrainNode", {"gracePeriodSec": -1}, ["grace_period_sec"]),
        ("DrainNode", {"targetNodeId": "nobody"}, ["target_node_id"]),
        ("UpdateNode", {"updateMask": "hostname"}, ["update_mask"]),
        ("UpdateNode", {}, ["update_mask"]),
        ("UpdateNode", {"scheduling": {"overcommit": {"cpuRatio": 1e9}}}, ["scheduling.overcommit.cpu_ratio"]),
    ],
)
async def test_bad_input_is_refused_by_its_field_and_changes_nothing(
    running: RunningControlPlane, method: str, body: dict[str, Any], fields: list[str]
) -> None:
    before = await node(running)
    key = "nodeId" if method in ("UpdateLabels", "AddTaint") else "id"

    error, answer = await running.refused(method, {key: running.node_id, **body}, NODE_SERVICE)

    assert error.code is Code.INVALID_ARGUMENT
    assert [field.partition("[")[0] for field in answer.faulty_fields] == fields
    assert await node(running) == before


async def test_drain_of_the_only_node_is_followed_and_lists_its_vms(running: RunningControlPlane) -> None:
    vm_id = await create(running, "web-1", start=True)
    call = running.nodes.DrainNode(api.DrainNodeRequest(id=running.node_id), timeout=DEADLINE_S, metadata=NODES_WAIT)
    begun = await call
    assert begun.node.id == running.node_id
    operation_id = str(dict(await call.trailing_metadata())["limiquantix-operation-id"])

    operations = OperationServiceStub(running.channel)
    request = operation_service_pb2.WatchOperationRequest(id=operation_id)
    shown = [each async for each in operations.WatchOperation(request, timeout=DEADLINE_S)]

    ended = shown[-1]
    assert (ended.kind, ended.resource_type, ended.resource_id) == ("node.drain", "node", running.node_id)
    told = api.DrainNodeResponse()
    assert ended.response.Unpack(told)
    assert [failure.vm_id for failure in told.failures] == [vm_id]
    assert told.failures[0].error
    assert (await node(running)).status.phase == node_pb2.NodeStatus.MAINTENANCE
    vm = await running.vms.GetVM(vm_service_pb2.GetVMRequest(id=vm_id), timeout=DEADLINE_S)
    assert vm.status.state == vm.status.RUNNING


async def test_drain_with_force_stops_what_cannot_move(running: RunningControlPlane) -> None:
    vm_id = await create(running, "web-1", start=True)

    told = await running.nodes.DrainNode(api.DrainNodeRequest(id=running.node_id, force=True), timeout=DEADLINE_S)

    assert list(told.stopped_vm_ids) == [vm_id]
    assert list(told.failures) == []


async def test_decommissioned_node_is_gone_and_its_host_must_register_again(running: RunningControlPlane) -> None:
    await create(running, "web-1")
    error = await error_of(running.nodes.DecommissionNode(api.DecommissionNodeRequest(id=running.node_id)))
    assert error.reason == Reason.NODE_HAS_VMS

    request = api.DecommissionNodeRequest(id=running.node_id, force=True)
    await running.nodes.DecommissionNode(request, timeout=DEADLINE_S)

    async def is_unknown() -> bool:
        """Whether a beat is refused; what was read of nodes just before it was gone counts for another moment."""
        beat = api.UpdateHeartbeatRequest(node_id=running.node_id)
        try:
            await running.nodes.UpdateHeartbeat(beat, timeout=DEADLINE_S)
        except grpc.aio.AioRpcError as refused:
            if from_rpc_error(refused, peer="the control plane").reason != Reason.NODE_NOT_FOUND:
                raise
            return True
        return False

    await until(is_unknown)
    assert (await error_of(running.nodes.EnableNode(api.EnableNodeRequest(id=make_id())))).code is Code.NOT_FOUND


async def test_overload_and_recovery_are_system_events(running: RunningControlPlane) -> None:
    types = [SystemEvent.SYSTEM_OVERLOAD, SystemEvent.SYSTEM_RECOVERED]
    stream = running.nodes.StreamEvents(api.StreamEventsRequest(types=types), timeout=DEADLINE_S)
    first = asyncio.ensure_future(stream.read())

    async def overload_and_recover() -> None:
        for percent in (99.0, 99.0, 99.0, 10.0, 10.0, 10.0):
            beat = api.UpdateHeartbeatRequest(node_id=running.node_id, cpu_usage_percent=percent)
            await running.nodes.UpdateHeartbeat(beat, timeout=DEADLINE_S)

    async with asyncio.timeout(DEADLINE_S):
        while not first.done():  # it tells what happens from when it has begun, which may be in the middle
            await overload_and_recover()
            await asyncio.wait({first}, timeout=0.2)

    told = [cast(SystemEvent, await first)]
    if told[0].type == SystemEvent.SYSTEM_RECOVERED:
        await overload_and_recover()
        told = [cast(SystemEvent, await stream.read())]
    told.append(cast(SystemEvent, await stream.read()))
    assert [event.type for event in told] == types
    assert "CPU at 99 %" in told[0].message
    stream.cancel()


async def test_no_execute_taint_is_looked_after_in_the_background_and_stops_nothing(
    running: RunningControlPlane,
) -> None:
    vm_id = await create(running, "web-1", start=True)
    taint = node_pb2.Taint(key="gpu", effect=node_pb2.Taint.NO_EXECUTE)

    await running.nodes.AddTaint(api.AddTaintRequest(node_id=running.node_id, taint=taint), timeout=DEADLINE_S)

    async def is_told() -> bool:
        request = vm_service_pb2.ListVMEventsRequest(vm_id=vm_id)
        events = await running.vms.ListVMEvents(request, timeout=DEADLINE_S)
        return any(event.type == "vm.not_evicted" for event in events.events)

    await until(is_told)
    vm = await running.vms.GetVM(vm_service_pb2.GetVMRequest(id=vm_id), timeout=DEADLINE_S)
    assert vm.status.state == vm.status.RUNNING


async def test_vms_leave_for_another_host_that_comes(running: RunningControlPlane) -> None:
    await running.nodes.RegisterNode(
        register_request(
            "host-a", agent_endpoint=(await node(running)).spec.agent.endpoint, supports_live_migration=True
        ),
        timeout=DEADLINE_S,
    )
    vm_ids = sorted([await create(running, f"web-{number}", start=True) for number in range(3)])
    async with second_host(running, supports_live_migration=True) as other_id:
        told = await running.nodes.DrainNode(api.DrainNodeRequest(id=running.node_id), timeout=60)

        assert list(told.failures) == []
        assert list(told.migrated_vm_ids) == vm_ids
        assert sorted((await node(running, other_id)).status.vm_ids) == vm_ids
