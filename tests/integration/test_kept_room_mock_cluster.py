"""A control plane and simulated hosts: what would take the room for VMs of failed nodes is refused, and says why."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest

from limiquantix.compute.v1 import ha_service_pb2 as ha_api
from limiquantix.compute.v1 import node_service_pb2 as node_api
from limiquantix.compute.v1 import placement_service_pb2 as placement_api
from limiquantix.compute.v1 import vm_service_pb2 as vm_api
from limiquantix.compute.v1.ha_service_pb2_grpc import HaServiceStub
from limiquantix.compute.v1.node_pb2 import Node, NodeStatus
from limiquantix.compute.v1.node_service_pb2_grpc import NodeServiceStub
from limiquantix.compute.v1.placement_service_pb2_grpc import PlacementServiceStub
from limiquantix.compute.v1.vm_pb2 import CpuConfig, HaPolicy, MemoryConfig, VmSpec
from limiquantix.compute.v1.vm_service_pb2_grpc import VMServiceStub
from tests.support.closed_plane import closed_plane
from tests.support.databases import fresh_sqlite
from tests.support.ha_plane import FakeCoordinator
from tests.support.node_daemon_process import node_daemon

DEADLINE_S = 60.0
CALL_S = 30.0


async def until_ready(find: Callable[[], Awaitable[list[Node]]], count: int) -> list[Node]:
    async with asyncio.timeout(DEADLINE_S):
        for pause_s in itertools.repeat(0.2):
            nodes = [node for node in await find() if node.status.phase == NodeStatus.READY]
            if len(nodes) == count:
                return nodes
            await asyncio.sleep(pause_s)
    raise AssertionError("it is tried until the deadline")


async def test_room_for_a_failed_node_is_kept_by_creates_and_drains_until_a_node_is_added(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        plane = await stack.enter_async_context(closed_plane(tmp_path, fresh_sqlite(tmp_path), FakeCoordinator()))
        channel, entry = plane.channel, plane.entry
        nodes, vms, ha = NodeServiceStub(channel), VMServiceStub(channel), HaServiceStub(channel)

        async def start_host(hostname: str) -> None:
            directory = tmp_path / hostname
            directory.mkdir()
            node = {"hostname": hostname, "data_dir": str(directory / "data")}
            await entry.admit(directory / "data", hostname)
            daemon = node_daemon(directory, entry.hosts_address, hypervisor={"backend": "mock"}, node=node)
            await stack.enter_async_context(daemon)

        async def listed() -> list[Node]:
            return list((await nodes.ListNodes(node_api.ListNodesRequest(page_size=10), timeout=CALL_S)).nodes)

        await start_host("host-a")
        await start_host("host-b")
        found = await until_ready(listed, 2)
        # More than half of a node: two have room, but neither can take the other's when it fails.
        size_mib = min(node.status.resources.memory.allocatable_bytes for node in found) // 2**20 * 6 // 10
        spec = VmSpec(
            cpu=CpuConfig(cores=1), memory=MemoryConfig(size_mib=size_mib), ha_policy=HaPolicy(auto_restart=True)
        )
        first = await vms.CreateVM(vm_api.CreateVMRequest(name="first", spec=spec), timeout=CALL_S)

        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await vms.CreateVM(vm_api.CreateVMRequest(name="second", spec=spec), timeout=CALL_S)
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "the cluster keeps room for 1 failed node: with this VM, if host-" in (refused.value.details() or "")

        request = vm_api.CreateVMRequest(name="second", spec=spec, validate_only=True)
        with pytest.raises(grpc.aio.AioRpcError, match="keeps room for 1 failed node"):
            await vms.CreateVM(request, timeout=CALL_S)

        explained = await PlacementServiceStub(channel).ExplainPlacement(
            placement_api.ExplainPlacementRequest(candidate=placement_api.PlacementCandidate(name="second", spec=spec)),
            timeout=CALL_S,
        )
        assert explained.chosen_node_id == ""
        assert "keeps room for 1 failed node" in explained.summary

        await start_host("host-c")
        await until_ready(listed, 3)
        second = await vms.CreateVM(vm_api.CreateVMRequest(name="second", spec=spec), timeout=CALL_S)
        status = await ha.GetHaStatus(ha_api.GetHaStatusRequest(include_forecast=True), timeout=CALL_S)
        assert (status.admission_policy, status.failures_survived) == ("room for 1 failed node", 1)

        used = {first.status.node_id, second.status.node_id}
        (empty,) = [node for node in await listed() if node.id not in used]
        with pytest.raises(grpc.aio.AioRpcError, match=f"once node {empty.hostname}") as kept:
            await nodes.DrainNode(node_api.DrainNodeRequest(id=empty.id), timeout=CALL_S)
        assert kept.value.code() == grpc.StatusCode.FAILED_PRECONDITION

        drained = await nodes.DrainNode(node_api.DrainNodeRequest(id=empty.id, force=True), timeout=CALL_S)
        assert drained.node.status.phase == NodeStatus.MAINTENANCE
        async with asyncio.timeout(DEADLINE_S):
            asked = ha_api.GetHaStatusRequest()
            while (await ha.GetHaStatus(asked, timeout=CALL_S)).failures_survived != 0:  # noqa: ASYNC110 - it is polled
                await asyncio.sleep(0.1)
