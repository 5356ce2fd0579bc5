"""`limiquantix balance`, `recommendation` and `alert` against a control plane in a dictionary."""

from __future__ import annotations

import json

import pytest

from controlplane.cli.alert_commands import KINDS
from controlplane.cli.balance_commands import STATUSES
from controlplane.cli.balance_views import bar
from controlplane.domain.alert import AlertKind
from controlplane.domain.recommendation import Status
from limiquantix.errors import FailedPrecondition, Reason
from tests.support.fake_http_api import Document, FakeApi, Run, node, uuid_of

MOMENT = "2024-01-01T00:00:00Z"


def _recommendation(number: int = 1, **fields: object) -> Document:
    return {
        "id": uuid_of(number),
        "priority": "HIGH",
        "status": "PENDING",
        "reason": "host-1 uses 92 % CPU",
        "vmId": uuid_of(7),
        "vmName": "web-1",
        "sourceNodeId": uuid_of(100),
        "targetNodeId": uuid_of(101),
        "gainPercent": 12.34,
        "costMemoryBytes": str(2 * 2**30),
        "costDurationMs": "18500",
        "sourceLoadBefore": 92.0,
        "sourceLoadAfter": 80.0,
        "targetLoadAfter": 12.0,
        "step": 1,
        "runId": uuid_of(50),
        "createdAt": MOMENT,
        "expiresAt": MOMENT,
        **fields,
    }


def _alert(number: int = 1, **fields: object) -> Document:
    return {
        "id": uuid_of(number),
        "kind": "node.silent",
        "severity": "CRITICAL",
        "resourceType": "node",
        "resourceId": uuid_of(100),
        "message": "node host-1 sends no heartbeats\x1b[2J",
        "raisedAt": MOMENT,
        "lastSeenAt": MOMENT,
        **fields,
    }


@pytest.fixture
def cluster(api: FakeApi) -> FakeApi:
    """Two nodes, and two recommendations whose ids differ in their last digits only."""
    api.answers["ListNodes"] = lambda _: {"nodes": [node("host-1", id=uuid_of(100)), node("host-2", id=uuid_of(101))]}
    api.answers["ListRecommendations"] = lambda _: {"recommendations": [_recommendation()], "totalCount": 1}
    api.answers["ListAlerts"] = lambda _: {"alerts": [_alert()], "totalCount": 1}
    return api


def test_choices_are_those_there_are() -> None:
    assert set(KINDS) == {str(kind) for kind in AlertKind}
    assert {status.upper() for status in STATUSES} == set(Status.keys()) - {"STATUS_UNSPECIFIED"}


@pytest.mark.parametrize(
    ("percent", "drawn"),
    [
        (0, "             0 %"),
        (44, "████        44 %"),
        (46, "████▌       46 %"),
        (130, "██████████ 130 %"),
        (-5, "            -5 %"),
    ],
)
def test_bar_shows_tenths_and_never_leaves_its_place(percent: float, drawn: str) -> None:
    assert bar(percent) == drawn


def test_balance_shows_loads_and_what_the_last_run_said(api: FakeApi, run: Run) -> None:
    api.answers["GetBalance"] = lambda _: {
        "automation": "BALANCING_AUTOMATION_PARTIAL",
        "isEnabled": True,
        "imbalance": 21.46,
        "nodes": [{"hostname": "host-1", "cpuPercent": 92.0, "memoryClaimedPercent": 50.0, "vmCount": 12}],
        "message": "balanced",
    }

    result = run("balance")

    assert result.exit_code == 0
    assert "host-1  █████████   92 %" in result.output
    assert "Imbalance:   21.5 points (0 is even)" in result.output
    assert "Automation:  partial" in result.output
    assert "Next run:    by hand" in result.output
    assert json.loads(run("balance", "-o", "json").output)["imbalance"] == 21.46
    assert json.loads(run("-o", "json", "balance").output)["imbalance"] == 21.46


def test_balance_without_a_server_says_so(run: Run) -> None:
    assert run("balance").exit_code == 3


def test_run_prints_recommendations_and_the_imbalance(cluster: FakeApi, run: Run) -> None:
    cluster.answers["RunBalancing"] = lambda _: {
        "recommendations": [_recommendation()],
        "imbalanceBefore": 21.4,
        "imbalanceAfter": 3.0,
        "message": "with these the cluster is balanced",
    }

    result = run("balance", "run")

    (row,) = [line for line in result.output.splitlines() if "web-1" in line]
    assert row.split()[:4] == [uuid_of(1)[:8], "1", "HIGH", "PENDING"]
    assert row.split()[4:12] == ["web-1", "host-1", "host-2", "12.3", "%", "2", "GiB", "18s"]
    assert "92 % to 80 %" in row
    assert "Imbalance:  21.4, then 3.0" in result.output


def test_recommendation_list_filters(cluster: FakeApi, run: Run) -> None:
    result = run("recommendation", "list", "--status", "pending", "--status", "applied", "-w")

    assert result.exit_code == 0
    assert cluster.request("ListRecommendations")["statuses"] == ["PENDING", "APPLIED"]
    assert uuid_of(1) in result.output
    assert "host-1 uses 92 % CPU" in result.output


def test_recommendation_is_named_by_the_beginning_of_its_id(cluster: FakeApi, run: Run) -> None:
    cluster.answers["GetRecommendation"] = lambda request: _recommendation(id=request["id"])

    result = run("recommendation", "show", uuid_of(1)[:6])

    assert cluster.request("GetRecommendation") == {"id": uuid_of(1)}
    assert "From:          host-1, load 92 % to 80 %" in result.output
    assert run("recommendation", "show", "nonsense").exit_code == 2
    missing = run("recommendation", "show", "abcdef12")
    assert missing.exit_code == 1
    assert "no recommendation's id begins with 'abcdef12'" in missing.output


def test_beginning_that_several_have_is_refused_with_their_ids(cluster: FakeApi, run: Run) -> None:
    both = [_recommendation(1), _recommendation(2)]
    cluster.answers["ListRecommendations"] = lambda _: {"recommendations": both}

    result = run("recommendation", "approve", uuid_of(1)[:6])

    assert result.exit_code == 1
    assert uuid_of(1) in result.output
    assert uuid_of(2) in result.output
    assert cluster.requests_of("ApproveRecommendation") == []


def test_approve_and_reject_say_what_follows(cluster: FakeApi, run: Run) -> None:
    cluster.answers["ApproveRecommendation"] = lambda _: _recommendation(status="APPROVED")
    cluster.answers["RejectRecommendation"] = lambda _: _recommendation(status="REJECTED")

    approved = run("recommendation", "approve", uuid_of(1))
    rejected = run("recommendation", "reject", uuid_of(1), "--reason", "not now")

    assert approved.output == f"recommendation {uuid_of(1)} is approved; the next run has it carried out\n"
    assert rejected.output == f"recommendation {uuid_of(1)} is rejected\n"
    assert cluster.request("RejectRecommendation") == {"id": uuid_of(1), "reason": "not now"}


def test_apply_tells_where_the_vm_is(cluster: FakeApi, run: Run) -> None:
    cluster.answers["ApplyRecommendation"] = lambda _: _recommendation(status="APPLIED")

    assert run("recommendation", "apply", uuid_of(1)).output == "VM web-1 is on host-2 now\n"


def test_decisions_about_an_exchange_name_the_other_half(cluster: FakeApi, run: Run) -> None:
    cluster.answers["ApproveRecommendation"] = lambda _: _recommendation(status="APPROVED", exchangeWith=uuid_of(2))
    cluster.answers["ApplyRecommendation"] = lambda _: _recommendation(status="APPLIED", exchangeWith=uuid_of(2))
    other = _recommendation(2, vmName="web-2", targetNodeId=uuid_of(102), status="APPLIED")
    cluster.answers["GetRecommendation"] = lambda _: other

    approved = run("recommendation", "approve", uuid_of(1)).output
    assert approved.endswith(f"; so is {uuid_of(2)}, since neither is of use without the other\n")
    applied = run("recommendation", "apply", uuid_of(1))
    assert applied.output == f"VM web-1 is on host-2 now\nVM web-2 is on {uuid_of(102)} now\n"
    assert applied.exit_code == 0
    other = {**other, "status": "FAILED", "statusMessage": "the connection broke"}
    half_done = run("recommendation", "apply", uuid_of(1))
    assert half_done.exit_code == 1
    assert half_done.output.startswith("VM web-1 is on host-2 now\n")
    assert f"recommendation {uuid_of(2)} could not be carried out: the connection broke" in half_done.output


@pytest.mark.parametrize(
    ("status", "words"),
    [("EXPIRED", "is overtaken: the VM is gone"), ("FAILED", "could not be carried out: the VM is gone")],
)
def test_apply_that_moved_nothing_fails_with_the_reason(cluster: FakeApi, run: Run, status: str, words: str) -> None:
    cluster.answers["ApplyRecommendation"] = lambda _: _recommendation(status=status, statusMessage="the VM is gone")

    result = run("recommendation", "apply", uuid_of(1))

    assert result.exit_code == 1
    assert words in result.output


def test_refusal_is_told(cluster: FakeApi, run: Run) -> None:
    def refuse(_: Document) -> Document:
        raise FailedPrecondition(Reason.RECOMMENDATION_CLOSED, "cannot approve recommendation 1: it is REJECTED")

    cluster.answers["ApproveRecommendation"] = refuse

    result = run("recommendation", "approve", uuid_of(1))

    assert result.exit_code == 1
    assert "it is REJECTED" in result.output


def test_alerts_are_listed_safely_and_filtered(cluster: FakeApi, run: Run) -> None:
    result = run("alert", "list", "--all", "--node", "host-1", "--kind", "node.silent")

    assert result.exit_code == 0
    assert "\x1b" not in result.output
    assert "node.silent" in result.output
    request = cluster.request("ListAlerts")
    assert request["includeResolved"] is True
    assert request["resourceId"] == uuid_of(100)
    assert request["kinds"] == ["node.silent"]
    assert run("alert", "list", "--node", "host-1", "--vm", "web-1").exit_code == 2


def test_alert_is_shown_and_acknowledged(cluster: FakeApi, run: Run) -> None:
    cluster.answers["GetAlert"] = lambda _: _alert(resolvedAt=MOMENT)
    cluster.answers["AcknowledgeAlert"] = lambda _: _alert(acknowledgedAt=MOMENT, acknowledgedBy="anonymous")

    shown = run("alert", "show", uuid_of(1)[:6])
    known = run("alert", "acknowledge", uuid_of(1))

    assert "State:      over" in shown.output
    assert known.output == f"alert {uuid_of(1)} is known to anonymous\n"
    assert json.loads(run("alert", "show", uuid_of(1), "-o", "json").output)["kind"] == "node.silent"
