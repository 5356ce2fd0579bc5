"""`limiquantix ha`, and the options of VMs for it, against a control plane in a dictionary."""

from __future__ import annotations

import json

import pytest

from limiquantix.compute.v1.vm_pb2 import HaPolicy
from limiquantix.errors import FailedPrecondition, Reason
from tests.support.fake_http_api import Document, FakeApi, Run, node, uuid_of, vm

MOMENT = "2024-01-01T00:00:00Z"
LATER = "2124-01-01T00:00:00Z"


def _fence(number: int = 1, **fields: object) -> Document:
    return {
        "id": uuid_of(number),
        "nodeId": uuid_of(100),
        "hostname": "host-1",
        "state": "PROVEN",
        "token": "7",
        "epoch": "3",
        "reason": "silent for 8 s\x1b[2J",
        "openedAt": MOMENT,
        "proof": {
            "method": "FENCE_METHOD_POWER_OFF",
            "evidence": "redfish https://10.0.0.7: PowerState Off",
            "provenAt": MOMENT,
            "witness": "cp-1",
            "epoch": "3",
        },
        "restartedVmIds": [uuid_of(7), uuid_of(8)],
        **fields,
    }


def _status() -> Document:
    forecast = [
        {"vmName": "web-1", "targetHostname": "host-2"},
        {"vmId": uuid_of(8), "obstacle": "512 MiB of memory short on every node"},
    ]
    first: Document = {
        "nodeId": uuid_of(100),
        "hostname": "host-1",
        "health": "NODE_HEALTH_SHUTTING_DOWN",
        "reason": "it said so",
        "lastHeardAt": MOMENT,
        "isSelfFencing": True,
        "powerAgent": "redfish",
        "protectedVmCount": 2,
        "forecast": forecast,
    }
    second: Document = {
        "nodeId": uuid_of(101),
        "hostname": "host-2",
        "health": "NODE_HEALTH_SUSPECT",
        "reason": "silent for 8 s",
        "selfFencingObstacle": "no /dev/watchdog",
    }
    first["settingsVersion"] = "1"
    return {
        "settings": {"isArmed": True, "version": "1"},
        "leaderId": uuid_of(60),
        "leaderHostname": "cp-1",
        "epoch": "3",
        "obstacle": "etcd does not answer",
        "nodes": [first, second],
        "times": {"suspectAfterMs": 7000, "leaseMs": 9000, "proofWaitMs": 13600},
        "admissionPolicy": "room for 1 failed node",
        "failuresSurvived": 1,
        "waitingVms": [
            {"vmName": "db", "nodeId": uuid_of(101), "reason": "no room", "attemptCount": 2, "nextAttemptAt": LATER},
            {"vmId": uuid_of(9), "nodeId": uuid_of(102), "reason": "waits for db"},
        ],
    }


@pytest.fixture
def cluster(api: FakeApi) -> FakeApi:
    """Two nodes, and one fence."""
    nodes = [node("host-1", id=uuid_of(100)), node("host-2", id=uuid_of(101))]
    api.answers["ListNodes"] = lambda _: {"nodes": nodes}
    api.answers["GetNode"] = lambda request: next(each for each in nodes if each["id"] == request["id"])
    api.answers["GetHaStatus"] = lambda _: _status()
    api.answers["ListFences"] = lambda _: {"fences": [_fence()], "totalCount": 1}
    api.answers["GetFence"] = lambda _: _fence()
    for method in ("FenceNode", "ConfirmNodeDead"):
        api.answers[method] = lambda _: _fence(state="OPEN", proof={})
    return api


def test_status_shows_the_cluster_every_node_and_what_waits(cluster: FakeApi, run: Run) -> None:
    lines = run("ha", "status").stdout.splitlines()
    fields = {line.partition(":")[0]: line.partition(":")[2].strip() for line in lines[:7]}
    assert fields == {
        "Armed": "yes",
        "Known to": "1 of 2 nodes, not yet: host-2",
        "Decides": f"cp-1 ({uuid_of(60)}), epoch 3",
        "Obstacle": "etcd does not answer",
        "Room kept": "room for 1 failed node",
        "Survives": "the failure of any 1 node",
        "Times": "suspect after 7 s, lease 9 s, proven by it after 13.6 s",
    }
    first, second = (next(line for line in lines if line.startswith(name)) for name in ("host-1", "host-2"))
    assert first.split()[1] == "shutting-down"
    assert first.split()[4:] == ["yes", "redfish", "2", "it", "said", "so"]
    assert second.split()[1:3] == ["suspect", "-"]
    assert second.endswith("silent for 8 s; does not fence itself: no /dev/watchdog")
    assert any(line.startswith("db ") and "host-2" in line and line.endswith("no room") for line in lines)
    assert any(line.startswith(uuid_of(9)) and line.endswith("waits for db") for line in lines)
    assert "IF THIS NODE DIED" not in "".join(lines)
    assert cluster.request("GetHaStatus") == {}


def test_forecast_tells_what_would_become_of_each_vm(cluster: FakeApi, run: Run) -> None:
    lines = run("ha", "status", "--forecast").stdout.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("IF THIS NODE DIED"))
    rows = [line.split()[:3] for line in lines[begin + 1 :]]
    assert rows == [["host-1", "web-1", "host-2"], ["host-1", uuid_of(8), "-"]]
    assert lines[-1].endswith("512 MiB of memory short on every node")
    assert cluster.request("GetHaStatus") == {"includeForecast": True}


def test_forecast_without_vms_says_how_to_have_some(cluster: FakeApi, run: Run) -> None:
    cluster.answers["GetHaStatus"] = lambda _: {"settings": {}, "failuresSurvived": -1}
    words = run("ha", "status", "--forecast").stdout
    assert "vm update VM --ha" in words
    assert "not even VMs that wait now have room" in words
    assert "Decides:   nobody" in words


def test_status_for_programs_is_the_document(cluster: FakeApi, run: Run) -> None:
    assert json.loads(run("ha", "status", "--output", "json").stdout) == _status()


def test_fences_are_listed_safely_and_filtered(cluster: FakeApi, run: Run) -> None:
    result = run("ha", "fences", "--node", "host-2", "--current", "--limit", "9")
    row = result.stdout.splitlines()[1]
    assert row.split()[:4] == [uuid_of(1)[:8], "host-1", "PROVEN", "7"]
    assert "power-off" in row
    assert "\x1b" not in result.stdout
    asked = cluster.request("ListFences")
    assert (asked["nodeId"], asked["onlyCurrent"], asked["pageSize"]) == (uuid_of(101), True, 9)
    assert uuid_of(1) in run("ha", "fences", "--wide").stdout
    assert json.loads(run("ha", "fences", "-o", "json").stdout) == {"fences": [_fence()], "totalCount": 1}


def test_fence_is_shown_by_the_beginning_of_its_id(cluster: FakeApi, run: Run) -> None:
    words = run("ha", "fence", "show", uuid_of(1)[:8]).stdout
    assert cluster.request("GetFence") == {"id": uuid_of(1)}
    for part in ("power-off", "redfish https://10.0.0.7: PowerState Off", "cp-1", f"{uuid_of(7)}, {uuid_of(8)}"):
        assert part in words
    missing = run("ha", "fence", "show", "dead")
    assert missing.exit_code == 1
    assert "limiquantix ha fences" in missing.stderr
    assert json.loads(run("ha", "fence", "show", uuid_of(1), "-o", "json").stdout) == _fence()


def test_node_is_fenced_once_the_person_agreed(cluster: FakeApi, run: Run) -> None:
    refused = run("ha", "fence-node", "host-1", "--reason", "memory fails", input="n\n")
    assert refused.exit_code == 1
    assert "cut off node host-1, and end every VM on it?" in refused.stderr
    assert cluster.requests_of("FenceNode") == []
    result = run("ha", "fence-node", "host-1", "--reason", "memory fails", "--yes")
    assert f"fence {uuid_of(1)} of node host-1 is OPEN; 'limiquantix ha fence show" in result.stdout
    assert cluster.request("FenceNode") == {"nodeId": uuid_of(100), "reason": "memory fails"}
    assert run("ha", "fence-node", "host-1").exit_code == 2


def test_host_is_confirmed_dead_only_with_its_name_repeated(cluster: FakeApi, run: Run) -> None:
    arguments = ("ha", "confirm-dead", "host-1", "--statement", "pulled both cords")
    wrong = run(*arguments, input="host-2\n")
    assert wrong.exit_code == 1
    assert "'host-2' is not the host name of this node, 'host-1'" in wrong.stderr
    assert "its VMs will run twice" in wrong.stderr
    assert cluster.requests_of("ConfirmNodeDead") == []
    wanted = {"nodeId": uuid_of(100), "statement": "pulled both cords", "hostname": "host-1"}
    assert run(*arguments, input="host-1\n").exit_code == 0
    assert run(*arguments, "--hostname", "host-1").exit_code == 0
    assert cluster.requests_of("ConfirmNodeDead") == [wanted, wanted]


def test_refusal_to_believe_is_passed_on(cluster: FakeApi, run: Run) -> None:
    def refuse(_: Document) -> Document:
        raise FailedPrecondition(Reason.NODE_IS_HEARD, "node host-1 was heard 0.4 s ago")

    cluster.answers["ConfirmNodeDead"] = refuse
    result = run("ha", "confirm-dead", "host-1", "--statement", "pulled both cords", "--hostname", "host-1")
    assert result.exit_code == 1
    assert "was heard 0.4 s ago" in result.stderr


def test_disarm_and_arm_say_what_is_so_now(cluster: FakeApi, run: Run) -> None:
    disarmed = {"reason": "new switch", "changedBy": "eve", "changedAt": MOMENT, "version": "2"}
    cluster.answers["DisarmHa"] = lambda _: disarmed
    cluster.answers["ArmHa"] = lambda _: {"isArmed": True, "version": "3"}
    assert run("ha", "disarm", "--reason", "new switch").stdout.startswith("armed: no: new switch (eve, ")
    assert cluster.request("DisarmHa") == {"reason": "new switch"}
    assert run("ha", "arm").stdout == "armed: yes\n"
    assert json.loads(run("ha", "arm", "-o", "json").stdout) == {"isArmed": True, "version": "3"}
    assert run("ha", "disarm").exit_code == 2


# -- options of VMs


def test_vm_is_created_with_what_shall_happen_when_it_fails(api: FakeApi, run: Run) -> None:
    api.have_vms(vm("db", 7))
    api.answers["CreateVM"] = lambda _: vm("web", 5)
    arguments = ("--ha", "--ha-priority", "5", "--ha-restarts", "3", "--ha-relocations", "2", "--ha-delay", "10")
    more = ("--ha-starts-after", "db", "--ha-guest-action", "reset", "--ha-guest-timeout", "60")
    assert run("vm", "create", "web", "--cpus", "1", "--memory", "1GiB", *arguments, *more).exit_code == 0
    policy = api.request("CreateVM")["spec"]["haPolicy"]
    assert policy == {
        "autoRestart": True,
        "priority": 5,
        "maxRestarts": 3,
        "maxRelocations": 2,
        "restartDelaySec": 10,
        "startsAfter": [uuid_of(7)],
        "guestAction": "GUEST_ACTION_RESET",
        "guestTimeoutSec": 60,
    }
    assert policy.keys() <= {field.json_name for field in HaPolicy.DESCRIPTOR.fields}
    assert HaPolicy.GuestAction.Value(policy["guestAction"]) == HaPolicy.GUEST_ACTION_RESET


def test_vm_is_updated_in_what_was_said_only(api: FakeApi, run: Run) -> None:
    api.have_vms(vm("web", 5))
    api.answers["UpdateVM"] = lambda _: vm("web", 5)
    assert run("vm", "update", "web", "--no-ha", "--ha-guest-action", "none").exit_code == 0
    request = api.request("UpdateVM")
    assert request["spec"] == {"haPolicy": {"autoRestart": False, "guestAction": "GUEST_ACTION_UNSPECIFIED"}}
    assert request["updateMask"] == "spec.haPolicy.autoRestart,spec.haPolicy.guestAction"
    nothing = run("vm", "update", "web")
    assert nothing.exit_code == 2
    assert "--ha" in nothing.stderr
