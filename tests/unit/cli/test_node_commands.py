"""`limiquantix node`: what its commands ask of the API, and what they print of the answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from controlplane.cli.node_views import ranges
from limiquantix.errors import FailedPrecondition, Reason
from tests.support.fake_http_api import NODE_ID, Document, FakeApi, Run, node, operation, uuid_of, vm


@pytest.fixture(autouse=True)
def one_node(api: FakeApi) -> None:
    api.answers["ListNodes"] = lambda _: {"nodes": [node("host-a"), node("host-b", id=uuid_of(901))]}


def asked(api: FakeApi, method: str) -> Document:
    return next(request for called, request in api.requests if called == method)


CORDONED = {"type": "Cordoned", "status": "TRUE", "reason": "Maintenance", "message": "new disks"}


def test_disable_sends_the_reason_and_prints_it(api: FakeApi, run: Run) -> None:
    status = {"phase": "MAINTENANCE", "conditions": [CORDONED]}
    api.answers["DisableNode"] = lambda _: node("host-a", status=status)

    result = run("node", "disable", "host-a", "--reason", "new disks")

    assert asked(api, "DisableNode") == {"id": NODE_ID, "reason": "new disks"}
    assert result.stdout == f"node host-a ({NODE_ID}) is MAINTENANCE, takes no new VMs: new disks\n"


def test_enable_prints_the_document_for_programs(api: FakeApi, run: Run) -> None:
    api.answers["EnableNode"] = lambda _: node("host-a")

    result = run("node", "enable", "host-a", "-o", "json")

    assert json.loads(result.stdout) == node("host-a")


def test_label_sets_and_removes(api: FakeApi, run: Run) -> None:
    api.answers["UpdateLabels"] = lambda _: node("host-a")

    run("node", "label", "host-a", "zone=a", "note=x=y", "empty=", "old-")

    assert asked(api, "UpdateLabels") == {
        "nodeId": NODE_ID,
        "addLabels": {"zone": "a", "note": "x=y", "empty": ""},
        "removeLabels": ["old"],
    }


@pytest.mark.parametrize("text", ["zone", "=a", "-"])
def test_label_that_is_none_is_a_usage_error(run: Run, text: str) -> None:
    result = run("node", "label", "host-a", "--", text)

    assert result.exit_code == 2
    assert "neither key=value nor key-" in result.stderr


@pytest.mark.parametrize(
    ("text", "taint"),
    [
        ("gpu=broken:NO_EXECUTE", {"key": "gpu", "value": "broken", "effect": "NO_EXECUTE"}),
        ("gpu:NoSchedule", {"key": "gpu", "value": "", "effect": "NO_SCHEDULE"}),
        ("gpu=a:b:prefer-no-schedule", {"key": "gpu", "value": "a:b", "effect": "PREFER_NO_SCHEDULE"}),
    ],
)
def test_taint_is_sent(api: FakeApi, run: Run, text: str, taint: Document) -> None:
    spec = {"scheduling": {"taints": [taint]}}
    api.answers["AddTaint"] = lambda _: node("host-a", spec=spec)

    result = run("node", "taint", "host-a", text)

    assert asked(api, "AddTaint") == {"nodeId": NODE_ID, "taint": taint}
    assert f"taints {taint['key']}" in result.stdout


@pytest.mark.parametrize("text", ["gpu", "gpu:", "gpu:NO_MERCY"])
def test_taint_without_an_effect_is_a_usage_error(run: Run, text: str) -> None:
    result = run("node", "taint", "host-a", text)

    assert result.exit_code == 2
    assert "NO_SCHEDULE, PREFER_NO_SCHEDULE, NO_EXECUTE" in result.stderr


def test_untaint_names_the_key(api: FakeApi, run: Run) -> None:
    api.answers["RemoveTaint"] = lambda _: node("host-a")

    run("node", "untaint", "host-a", "gpu")

    assert asked(api, "RemoveTaint") == {"nodeId": NODE_ID, "taintKey": "gpu"}


def test_update_sends_what_is_given_with_its_mask(api: FakeApi, run: Run) -> None:
    api.answers["UpdateNode"] = lambda _: node("host-a")

    run(
        "node",
        "update",
        "host-a",
        "--cpu-ratio",
        "4",
        "--reserve-memory",
        "4GiB",
        "--unschedulable",
        "--role",
        "compute",
    )

    assert asked(api, "UpdateNode") == {
        "id": NODE_ID,
        "updateMask": "scheduling.overcommit.cpuRatio,scheduling.reserved.memoryBytes,scheduling.schedulable,role",
        "scheduling": {
            "overcommit": {"cpuRatio": 4},
            "reserved": {"memoryBytes": str(4 * 2**30)},
            "schedulable": False,
        },
        "role": {"compute": True, "storage": False, "controlPlane": False},
    }


def test_update_of_nothing_is_a_usage_error(run: Run) -> None:
    assert run("node", "update", "host-a").exit_code == 2


def test_decommission_that_is_refused_says_what_to_do(api: FakeApi, run: Run) -> None:
    def refuse(_: Document) -> Document:
        raise FailedPrecondition(Reason.NODE_HAS_VMS, "node host-a has 2 VMs (a, b); drain it first, or set force")

    api.answers["DecommissionNode"] = refuse

    result = run("node", "decommission", "host-a")

    assert result.exit_code == 1
    assert "drain it first" in result.stderr


def test_show_tells_conditions_taints_ratios_and_numa(api: FakeApi, run: Run) -> None:
    overloaded = {"type": "Overloaded", "status": "TRUE", "message": "CPU at 97 % (limit 90 %)"}
    spec = {
        "scheduling": {
            "taints": [{"key": "gpu", "value": "broken", "effect": "NO_EXECUTE"}, {"key": "slow"}],
            "overcommit": {"cpuRatio": 4},
            "reserved": {"cpuCores": 2, "memoryBytes": str(2**30)},
        },
        "cpu": {"numaNodes": [{"cpus": [0, 1, 2, 8], "memoryBytes": str(2**33)}, {"nodeId": 1, "cpus": [3]}]},
    }
    status = {"phase": "MAINTENANCE", "conditions": [CORDONED, overloaded]}
    api.answers["GetNode"] = lambda _: node("host-a", spec=spec, status=status)

    shown = run("node", "show", "host-a").stdout

    lines = {" ".join(line.split()) for line in shown.splitlines()}
    assert lines >= {
        "Cordoned: new disks",
        "Overloaded: CPU at 97 % (limit 90 %)",
        "Taints: gpu=broken:NO_EXECUTE,slow:NO_SCHEDULE",
        "Promises: 4 vCPUs a thread",
        "Kept for the host: 2 threads, 1024 MiB",
        "NUMA node 0: CPUs 0-2,8, 8192 MiB",
        "NUMA node 1: CPUs 3",
    }


def test_ranges_are_those_of_the_kernel() -> None:
    assert ranges([]) == ""
    assert ranges([5, 3, 4, 0, 9, 8]) == "0,3-5,8-9"


# -- drain


def roster(**fates: str) -> str:
    vms = [
        {"vm_id": uuid_of(10 + number), "name": name, "fate": fate, "why": "it is bound" if fate == "stuck" else ""}
        for number, (name, fate) in enumerate(fates.items())
    ]
    return json.dumps({"vms": vms})


def draining(state: str = "RUNNING", version: int = 1, fates: dict[str, str] | None = None, **fields: Any) -> Document:
    steps = [{"name": "cordon", "state": "DONE"}, {"name": "evacuate", "state": "PENDING"}]
    if fates:
        steps[1]["resultJson"] = roster(**fates)
    return operation(
        70,
        state=state,
        kind="node.drain",
        resourceType="node",
        resourceId=NODE_ID,
        steps=steps,
        version=version,
        **fields,
    )


def have_drain(api: FakeApi, *operations: Document) -> None:
    api.operation_id = uuid_of(70)
    api.answers["DrainNode"] = lambda _: {"node": node("host-a")}
    api.answers["ListVMs"] = lambda _: {
        "vms": [vm("a", 10, status={"nodeId": uuid_of(901)}), vm("b", 11, status={"nodeId": NODE_ID})]
    }
    api.scenes["WatchOperation"] = [[*operations, None]]


DONE = {"@type": "type.googleapis.com/x", "migratedVmIds": [uuid_of(10)]}


def test_drain_tells_each_vm_and_ends_with_a_table(api: FakeApi, run: Run) -> None:
    have_drain(
        api,
        draining(version=1, fates={"a": "waiting", "b": "waiting"}),
        draining(version=2, fates={"a": "moving", "b": "moving"}),
        draining("SUCCEEDED", version=3, fates={"a": "moved", "b": "stopped"}, response=DONE),
    )

    result = run("node", "drain", "host-a", "--force", "--grace", "60", "--to", "host-b")

    assert result.exit_code == 0
    assert asked(api, "DrainNode") == {
        "id": NODE_ID,
        "gracePeriodSec": 60,
        "force": True,
        "targetNodeId": uuid_of(901),
    }
    assert [line.split() for line in result.stderr.splitlines()] == [
        ["a", "moving"],
        ["b", "moving"],
        ["a", "moved"],
        ["b", "stopped"],
    ]
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["VM", "OUTCOME", "NODE", "WHY"],
        ["a", "moved", "host-b", "-"],
        ["b", "stopped", "host-a", "-"],
    ]


def test_drain_that_leaves_vms_ends_with_status_1_and_the_reason(api: FakeApi, run: Run) -> None:
    answer = {**DONE, "failures": [{"vmId": uuid_of(11), "error": "it is bound"}]}
    have_drain(api, draining("SUCCEEDED", fates={"a": "moved", "b": "stuck"}, response=answer))

    result = run("node", "drain", "host-a")

    assert result.exit_code == 1
    assert "b   stuck    host-a  it is bound" in result.stdout
    assert "host-a is in maintenance, but 1 VM is left there" in result.stderr


def test_drain_prints_the_apis_answer_for_programs(api: FakeApi, run: Run) -> None:
    have_drain(api, draining(fates={"a": "moving"}), draining("SUCCEEDED", version=2, response=DONE))

    result = run("node", "drain", "host-a", "-o", "json")

    assert json.loads(result.stdout) == {"migratedVmIds": [uuid_of(10)]}
    assert result.stderr == ""


def test_drain_that_is_not_waited_for_names_its_operation(api: FakeApi, run: Run) -> None:
    have_drain(api)

    result = run("node", "drain", "host-a", "--no-wait")

    assert f"'limiquantix operation wait {uuid_of(70)}'" in result.stdout


def test_interrupted_drain_goes_on_and_says_how_to_follow_it(api: FakeApi, run: Run) -> None:
    have_drain(api)
    api.scenes["WatchOperation"] = [[draining(), KeyboardInterrupt()]]

    result = run("node", "drain", "host-a")

    assert result.exit_code == 130
    assert f"limiquantix operation watch {uuid_of(70)}" in result.stderr


def test_cancelled_drain_is_a_failure(api: FakeApi, run: Run) -> None:
    error = {"code": 10, "message": "operation was cancelled"}
    have_drain(api, draining("CANCELLED", fates={"a": "stuck"}, error=error))

    result = run("node", "drain", "host-a")

    assert result.exit_code == 1
    assert "the drain of host-a CANCELLED: operation was cancelled" in result.stderr


def test_operation_of_a_node_is_listed_with_its_host_name_and_how_far_it_is(api: FakeApi, run: Run) -> None:
    found = draining(waitingFor="1 of 3 moved, 2 moving")
    api.answers["ListOperations"] = lambda _: {"operations": [found]}

    line = run("operation", "list").stdout.splitlines()[1]

    assert "node host-a" in line
    assert "1 of 3 moved, 2 moving" in line
