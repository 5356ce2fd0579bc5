"""Balancing and alerts over both wires: recommendations of a running control plane, decisions, refusals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from controlplane.domain.vm import PowerState
from limiquantix.compute.v1 import alert_service_pb2 as alert_api
from limiquantix.compute.v1 import balancing_service_pb2 as api
from limiquantix.compute.v1 import node_service_pb2 as node_api
from limiquantix.errors import Code, Reason
from tests.support.builders import GIB, make_id, make_vm
from tests.support.control_plane_world import register_request
from tests.support.running_control_plane import (
    ALERT_SERVICE,
    BALANCING_SERVICE,
    DEADLINE_S,
    RunningControlPlane,
    running_control_plane,
)
from tests.support.stores import place

pytestmark = pytest.mark.asyncio(loop_scope="module")

RUN_S = 60.0
"""Of a run, in which hosts that do not answer are waited for."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningControlPlane]:
    """A busy and an idle node, with VMs on the busy one."""
    async with running_control_plane(tmp_path_factory.mktemp("balancing"), with_node=False) as running:
        for name, cpu, memory in (("busy", 96.0, 0.6), ("idle", 2.0, 0.05)):
            request = register_request(name, agent_endpoint="127.0.0.1:9")
            request.supports_live_migration = True
            node = await running.nodes.RegisterNode(request, timeout=DEADLINE_S)
            if name == "busy":
                running.node_id = node.id
            total_mib = node.spec.memory.total_bytes // 2**20
            await running.nodes.UpdateHeartbeat(
                node_api.UpdateHeartbeatRequest(
                    node_id=node.id,
                    cpu_usage_percent=cpu,
                    memory_used_mib=int(total_mib * memory),
                    memory_total_mib=total_mib,
                ),
                timeout=DEADLINE_S,
            )
        for number in range(4):
            vm = make_vm(
                cores=2,
                memory_mib=2 * 1024,
                node_id=running.node_id,
                name=f"vm-{number}",
                power_state=PowerState.RUNNING,
            )
            assert await place(running.store, vm)
        await _until_heard(running)
        yield running


async def _until_heard(running: RunningControlPlane) -> None:
    """Heartbeats are written down a little later."""
    async with asyncio.timeout(30):
        while True:
            nodes = await running.store.read(lambda tx: tx.all_nodes())
            if all(node.usage.memory_total_bytes for node in nodes):
                return
            await asyncio.sleep(0.05)


async def test_run_recommends_and_lists_and_decisions_are_kept(plane: RunningControlPlane) -> None:
    made = await plane.balancing.RunBalancing(api.RunBalancingRequest(), timeout=RUN_S)
    assert made.imbalance_after < made.imbalance_before
    first, second = made.recommendations[:2]
    assert first.source_node_id == plane.node_id
    assert (first.priority, first.status) == (api.Recommendation.CRITICAL, api.Recommendation.PENDING)
    assert first.cost_memory_bytes == 2 * GIB
    assert "busy uses 96 % CPU" in first.reason

    listed = await plane.post("ListRecommendations", {"statuses": ["PENDING"], "pageSize": 1}, BALANCING_SERVICE)
    assert listed.document["totalCount"] == len(made.recommendations)
    assert listed.document["nextPageToken"]
    approved = await plane.balancing.ApproveRecommendation(
        api.ApproveRecommendationRequest(id=first.id), timeout=DEADLINE_S
    )
    assert approved.status == api.Recommendation.APPROVED
    rejected = (
        await plane.post("RejectRecommendation", {"id": second.id, "reason": "not now"}, BALANCING_SERVICE)
    ).document
    assert (rejected["status"], rejected["statusMessage"], rejected["decidedBy"]) == (
        "REJECTED",
        "not now",
        "anonymous",
    )
    got = await plane.balancing.GetRecommendation(api.GetRecommendationRequest(id=second.id), timeout=DEADLINE_S)
    assert got.HasField("decided_at")


async def test_balance_has_all_loads_and_when_the_next_run_is(plane: RunningControlPlane) -> None:
    balance = await plane.balancing.GetBalance(api.GetBalanceRequest(), timeout=DEADLINE_S)

    assert [node.hostname for node in balance.nodes] == ["busy", "idle"]
    assert balance.nodes[0].cpu_percent == pytest.approx(96.0)
    assert balance.nodes[0].vm_count == 4
    assert (balance.automation, balance.is_enabled) == (api.BALANCING_AUTOMATION_PARTIAL, True)
    assert balance.HasField("next_run_at")


async def test_overloaded_node_and_critical_recommendation_raise_alerts(plane: RunningControlPlane) -> None:
    async with asyncio.timeout(60):
        while True:
            page = await plane.alerts.ListAlerts(alert_api.ListAlertsRequest(), timeout=DEADLINE_S)
            kinds = {alert.kind for alert in page.alerts}
            if "node.overloaded" in kinds:
                break
            await asyncio.sleep(0.2)
    found = next(alert for alert in page.alerts if alert.kind == "node.overloaded")
    assert found.resource_id == plane.node_id
    known = (await plane.post("AcknowledgeAlert", {"id": found.id}, ALERT_SERVICE)).document
    assert known["acknowledgedBy"] == "anonymous"
    again = await plane.alerts.GetAlert(alert_api.GetAlertRequest(id=found.id), timeout=DEADLINE_S)
    assert again.HasField("acknowledged_at")
    assert not again.HasField("resolved_at")


@pytest.mark.parametrize(
    ("service", "method", "body", "code", "reason"),
    [
        (BALANCING_SERVICE, "GetRecommendation", {"id": "x"}, Code.INVALID_ARGUMENT, Reason.FIELD_VIOLATIONS),
        (BALANCING_SERVICE, "GetRecommendation", {"id": make_id()}, Code.NOT_FOUND, Reason.RECOMMENDATION_NOT_FOUND),
        (BALANCING_SERVICE, "ApplyRecommendation", {"id": make_id()}, Code.NOT_FOUND, Reason.RECOMMENDATION_NOT_FOUND),
        (
            BALANCING_SERVICE,
            "ListRecommendations",
            {"pageToken": "nonsense"},
            Code.INVALID_ARGUMENT,
            Reason.PAGE_TOKEN_INVALID,
        ),
        (
            BALANCING_SERVICE,
            "RejectRecommendation",
            {"id": make_id(), "reason": "x" * 1025},
            Code.INVALID_ARGUMENT,
            Reason.FIELD_VIOLATIONS,
        ),
        (ALERT_SERVICE, "GetAlert", {"id": make_id()}, Code.NOT_FOUND, Reason.ALERT_NOT_FOUND),
        (ALERT_SERVICE, "AcknowledgeAlert", {"id": make_id()}, Code.NOT_FOUND, Reason.ALERT_NOT_FOUND),
        (ALERT_SERVICE, "ListAlerts", {"pageSize": -1}, Code.INVALID_ARGUMENT, Reason.FIELD_VIOLATIONS),
    ],
)
async def test_bad_input_is_refused_alike_on_both_wires(
    plane: RunningControlPlane, service: str, method: str, body: dict[str, object], code: Code, reason: Reason
) -> None:
    error, _ = await plane.refused(method, body, service)

    assert (error.code, error.reason) == (code, reason)
