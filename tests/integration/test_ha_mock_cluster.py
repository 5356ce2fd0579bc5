"""Two control planes and simulated hosts with real daemons: a host that dies is fenced by proof, whoever decides."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from controlplane.ha_settings import HighAvailabilitySettings
from limiquantix.compute.v1 import alert_service_pb2 as alert_api
from limiquantix.compute.v1 import ha_service_pb2 as ha_api
from limiquantix.compute.v1 import node_service_pb2 as node_api
from limiquantix.compute.v1.alert_service_pb2_grpc import AlertServiceStub
from limiquantix.compute.v1.ha_service_pb2_grpc import HaServiceStub
from limiquantix.compute.v1.node_pb2 import Node, NodeStatus
from limiquantix.compute.v1.node_service_pb2_grpc import NodeServiceStub
from tests.support.closed_plane import ClosedPlane, closed_plane
from tests.support.databases import FRESH_DATABASES
from tests.support.ha_plane import FakeCoordinator
from tests.support.node_daemon_process import NodeDaemonProcess, node_daemon

HA = HighAvailabilitySettings(heartbeat_interval_s=1, freshness_s=1.5, objection_s=1.0, pause_s=0.5)
"""Quick times, as safe as the usual ones."""
DEADLINE_S = 60.0
CALL_S = 30.0

FoundT = TypeVar("FoundT")


@dataclass
class Plane:
    """One control plane, whose election the test decides."""

    served: ClosedPlane
    coordinator: FakeCoordinator

    def __post_init__(self) -> None:
        self.ha = HaServiceStub(self.served.channel)
        self.nodes = NodeServiceStub(self.served.channel)
        self.alerts = AlertServiceStub(self.served.channel)

    async def status_of(self, node_id: str) -> ha_api.NodeHaStatus:
        status = await self.ha.GetHaStatus(ha_api.GetHaStatusRequest(), timeout=CALL_S)
        return next(node for node in status.nodes if node.node_id == node_id)

    async def node(self, hostname: str) -> Node | None:
        answer = await self.nodes.ListNodes(node_api.ListNodesRequest(page_size=100), timeout=CALL_S)
        return next((node for node in answer.nodes if node.hostname == hostname), None)

    async def fences(self) -> list[ha_api.Fence]:
        answer = await self.ha.ListFences(ha_api.ListFencesRequest(), timeout=CALL_S)
        return list(answer.fences)


async def until(find: Callable[[], Awaitable[FoundT | None]]) -> FoundT:
    async with asyncio.timeout(DEADLINE_S):
        for pause_s in itertools.repeat(0.1):
            if (found := await find()) is not None:
                return found
            await asyncio.sleep(pause_s)
    raise AssertionError("it is tried until the deadline")


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def planes(tmp_path: Path, stack: AsyncExitStack) -> list[Plane]:
    """Two on one database and one coordination service; the first is elected."""
    url = FRESH_DATABASES["postgresql"](tmp_path)
    marks: dict[str, int] = {}
    made = []
    for number in range(2):
        coordinator = FakeCoordinator(marks)
        coordinator.election.is_elected = number == 0
        plane = closed_plane(tmp_path, url, coordinator, name=f"plane-{number}", ha=HA)
        made.append(Plane(await stack.enter_async_context(plane), coordinator))
    return made


@pytest.fixture
def directories(tmp_path: Path) -> dict[str, Path]:
    """One for each host."""
    made = {hostname: tmp_path / hostname for hostname in ("host-a", "host-b", "host-c")}
    for directory in made.values():
        directory.mkdir()
    return made


async def start_host(directory: Path, hostname: str, planes: list[Plane], stack: AsyncExitStack) -> NodeDaemonProcess:
    """Start a simulated host that calls all control planes; it joins before its first start."""
    addresses = ",".join(plane.served.entry.hosts_address for plane in planes)
    await planes[0].served.entry.admit(directory / "data", hostname)
    node = {"hostname": hostname, "data_dir": str(directory / "data")}
    return await stack.enter_async_context(node_daemon(directory, addresses, hypervisor={"backend": "mock"}, node=node))


async def self_fencing(hostname: str, planes: list[Plane]) -> str:
    """Wait until the end of a host's lease would be a proof; returns the node's id."""

    async def find() -> str | None:
        node = await planes[0].node(hostname)
        if node is None or node.status.phase != NodeStatus.READY:
            return None
        return node.id if (await planes[0].status_of(node.id)).is_self_fencing else None

    return await until(find)


async def test_dead_host_is_fenced_by_its_lease_though_the_leader_changes_and_comes_back(
    directories: dict[str, Path], planes: list[Plane], stack: AsyncExitStack
) -> None:
    first, second = planes
    daemons = {}
    for hostname in ("host-a", "host-b", "host-c"):
        daemons[hostname] = await start_host(directories[hostname], hostname, planes, stack)
    _, _, node_id = [await self_fencing(hostname, planes) for hostname in daemons]
    loop = asyncio.get_running_loop()

    await daemons["host-c"].kill()

    async def opened() -> ha_api.Fence | None:
        return next((fence for fence in await first.fences() if fence.node_id == node_id), None)

    fence = await until(opened)
    assert fence.state == ha_api.Fence.OPEN
    heard_at = (await first.status_of(node_id)).last_heard_at
    assert fence.opened_at.ToNanoseconds() - heard_at.ToNanoseconds() > 1e9 * (HA.times.suspect_after_s - 0.5)
    first.coordinator.election.is_elected = False
    second.coordinator.election.is_elected = True
    handed_over_s = loop.time()

    async def proven() -> ha_api.Fence | None:
        fence = await opened()
        return fence if fence is not None and fence.HasField("proof") else None

    fence = await until(proven)
    assert loop.time() - handed_over_s >= HA.times.proof_wait_s  # the new leader's wait began anew
    assert fence.proof.method == ha_api.FENCE_METHOD_LEASE_EXPIRED
    assert fence.proof.epoch > fence.epoch
    assert fence.heard_by == ""

    async def lost() -> bool | None:
        health = (await second.status_of(node_id)).health
        node = await second.node("host-c")
        is_marked = node is not None and node.status.phase == NodeStatus.NOT_READY
        alerts = await second.alerts.ListAlerts(alert_api.ListAlertsRequest(resource_id=node_id), timeout=CALL_S)
        is_told = "ha.node_lost" in {alert.kind for alert in alerts.alerts}
        return True if health == ha_api.NODE_HEALTH_FENCED and is_marked and is_told else None

    await until(lost)

    await start_host(directories["host-c"], "host-c", planes, stack)

    async def back() -> bool | None:
        node = await second.node("host-c")
        is_ready = node is not None and node.status.phase == NodeStatus.READY
        fence = await opened()
        return True if is_ready and fence is not None and fence.state == ha_api.Fence.ENDED else None

    await until(back)
    assert second.coordinator.marks == {}
    assert len(await second.fences()) == 1  # nobody else was suspected meanwhile
