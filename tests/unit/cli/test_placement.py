"""Rules as options, dry runs, and what the scheduler thinks."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.fake_http_api import FakeApi, Run, uuid_of, vm

NODES = [
    {
        "nodeId": "n1",
        "hostname": "host-1",
        "score": 85.25,
        "scores": [{"name": "spread", "points": 65.25}, {"name": "preferred node", "points": 20}],
    },
    {
        "nodeId": "n2",
        "hostname": "host-2",
        "rejections": [
            {"filter": "taints", "message": "has gpu=true:NO_SCHEDULE"},
            {"filter": "memory", "message": "needs 4096 MiB, 1024 of 8192 MiB free"},
        ],
    },
]


@pytest.fixture(autouse=True)
def answers(api: FakeApi) -> None:
    api.have_vms(vm("db", 1), vm("web", 2))
    api.answers["CreateVM"] = lambda _: vm("web", 5)
    api.answers["UpdateVM"] = lambda _: vm("web", 2)
    api.answers["ExplainPlacement"] = lambda _: {
        "nodes": NODES,
        "chosenNodeId": "n1",
        "currentNodeId": "n1",
        "summary": "goes to host-1",
        "wouldFitIf": ["with 128 MiB less memory"],
        "ruleFindings": ["vm_rules[0]: no other VM of the project has app=\u001b[2Jx"],
    }
    api.answers["GetCapacity"] = lambda _: {
        "fittingCount": "12",
        "limit": "2 nodes: memory",
        "nodes": [
            {"nodeId": "n1", "hostname": "host-1", "fittingCount": "12", "limit": "memory"},
            {"nodeId": "n2", "hostname": "host-2", "limit": "taints"},
        ],
        "failures": [
            {"failedNodeCount": 1, "fittingCount": "5", "worstNodeIds": ["n1"]},
            {"failedNodeCount": 2, "homelessVmCount": "1", "worstNodeIds": ["n1", "n2"]},
        ],
    }


def placement_of(api: FakeApi, run: Run, *options: str) -> Any:
    result = run("vm", "create", "new", "--cpus", "1", "--memory", "1GiB", *options)
    assert result.exit_code == 0, result.output
    return api.request("CreateVM")["spec"].get("placement")


def test_rules_become_the_policy(api: FakeApi, run: Run) -> None:
    options = "--apart-from app=db,tier=1,on=rack --apart-from web,weight=40 --together-with db,on=host"
    more = "--tolerate gpu=true:no-schedule --tolerate old --spread-over rack,max-skew=2 --spread-over host,weight=5"
    nodes = "--node-label disk=ssd --only-node host-1 --prefer-node host-1 --exclude-node host-2"
    assert placement_of(api, run, *f"{options} {more} {nodes}".split()) == {
        "vmRules": [
            {"kind": "APART", "labels": {"app": "db", "tier": "1"}, "topologyKey": "rack"},
            {"kind": "APART", "vmIds": [uuid_of(2)], "weight": 40},
            {"kind": "TOGETHER", "vmIds": [uuid_of(1)]},
        ],
        "tolerations": [{"key": "gpu", "value": "true", "effect": "NO_SCHEDULE"}, {"key": "old"}],
        "spreadRules": [{"topologyKey": "rack", "maxSkew": 2}, {"weight": 5}],
        "requiredLabels": {"disk": "ssd"},
        "requiredNodes": ["host-1"],
        "preferredNodes": ["host-1"],
        "excludedNodes": ["host-2"],
    }


def test_rules_win_over_the_file_and_keep_the_rest_of_it(api: FakeApi, run: Run) -> None:
    text = "name: a\nspec: {placement: {excluded_nodes: [x], required_nodes: [y]}}"
    result = run("vm", "create", "--exclude-node", "z", "--from-file", "-", input=text.encode())
    assert result.exit_code == 0, result.output
    assert api.request("CreateVM")["spec"]["placement"] == {"excludedNodes": ["z"], "required_nodes": ["y"]}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--apart-from", "app=a,web"], "must name either labels or one VM"),
        (["--apart-from", "on=rack"], "must name either labels or one VM"),
        (["--apart-from", "app=a,weight=101"], "weight must be 1 to 100"),
        (["--apart-from", ",a=b"], "empty part"),
        (["--tolerate", "=x"], "is not KEY"),
        (["--tolerate", "a:b"], "is no effect of a taint"),
        (["--spread-over", ",weight=1"], "must begin with a label"),
        (["--spread-over", "rack,skew=1"], "is neither max-skew=N nor weight=N"),
        (["--node-label", "ssd"], "is not key=value"),
    ],
)
def test_rule_that_cannot_be_read_is_a_usage_error(api: FakeApi, run: Run, options: list[str], words: str) -> None:
    result = run("vm", "create", "new", *options)
    assert result.exit_code == 2
    assert words in result.stderr
    assert api.requests == []


def test_rule_about_a_vm_that_does_not_exist_is_refused(api: FakeApi, run: Run) -> None:
    result = run("vm", "create", "new", "--apart-from", "nobody")
    assert result.exit_code == 1
    assert "there is no VM named 'nobody'" in result.stderr
    assert api.requests_of("CreateVM") == []


def test_update_replaces_rules_of_the_same_sort_and_no_rules_removes_all(api: FakeApi, run: Run) -> None:
    assert run("vm", "update", "web", "--tolerate", "old", "--cpus", "2").exit_code == 0
    request = api.request("UpdateVM")
    assert request["spec"]["placement"] == {"tolerations": [{"key": "old"}]}
    assert request["updateMask"] == "spec.cpu.cores,spec.placement.tolerations"
    api.requests.clear()
    assert run("vm", "update", "web", "--no-rules").exit_code == 0
    assert api.request("UpdateVM")["updateMask"] == "spec.placement"
    assert run("vm", "update", "web", "--no-rules", "--tolerate", "old").exit_code == 2


def test_dry_run_asks_for_validation_only_and_tells_the_node(api: FakeApi, run: Run) -> None:
    api.answers["CreateVM"] = lambda _: vm("web", 5, status={"nodeId": "n1"})
    result = run("vm", "create", "web", "--cpus", "1", "--dry-run")
    assert result.exit_code == 0, result.output
    assert api.request("CreateVM")["validateOnly"] is True
    assert result.output == "VM web could be made on host-1; nothing was done\n"


def test_explain_lists_every_node_with_points_or_reasons(api: FakeApi, run: Run) -> None:
    lines = run("vm", "explain", "web").output.splitlines()
    assert api.request("ExplainPlacement") == {"vmId": uuid_of(2)}
    assert lines[1].split() == ["host-1", "(is", "here)", "yes", "85.2", "spread", "65.2,", "preferred", "node", "20.0"]
    assert "taints: has gpu=true:NO_SCHEDULE; memory: needs 4096 MiB" in lines[2]
    assert lines[3:5] == ["goes to host-1", "would fit: with 128 MiB less memory"]
    assert lines[5].startswith("rule without effect: vm_rules[0]")
    assert "\x1b" not in lines[5]


def test_explain_of_a_vm_that_options_describe(api: FakeApi, run: Run) -> None:
    result = run("vm", "explain", "--cpus", "2", "--memory", "1GiB", "--label", "a=b", "--apart-from", "db")
    assert result.exit_code == 0, result.output
    assert api.request("ExplainPlacement") == {
        "candidate": {
            "name": "candidate",
            "spec": {
                "cpu": {"cores": 2},
                "memory": {"sizeMib": 1024},
                "placement": {"vmRules": [{"kind": "APART", "vmIds": [uuid_of(1)]}]},
            },
            "labels": {"a": "b"},
        }
    }


def test_explain_of_a_name_and_a_description_is_a_usage_error(api: FakeApi, run: Run) -> None:
    result = run("vm", "explain", "web", "--cpus", "2")
    assert result.exit_code == 2
    assert "not both" in result.stderr


def test_explain_from_a_file_of_vm_create(api: FakeApi, run: Run) -> None:
    text = "name: big\nlabels: {a: b}\nspec: {cpu: {cores: 8}}"
    assert run("vm", "explain", "--from-file", "-", input=text.encode()).exit_code == 0
    assert api.request("ExplainPlacement") == {
        "candidate": {"name": "big", "spec": {"cpu": {"cores": 8}}, "labels": {"a": "b"}}
    }


def test_explain_as_a_document(run: Run) -> None:
    assert '"chosenNodeId": "n1"' in run("-o", "json", "vm", "explain", "web").output


def test_capacity_tells_nodes_what_stops_and_failures(api: FakeApi, run: Run) -> None:
    result = run("capacity", "--cpus", "2", "--memory", "4GiB", "--failed", "2")
    assert api.request("GetCapacity") == {
        "vm": {"name": "candidate", "spec": {"cpu": {"cores": 2}, "memory": {"sizeMib": 4096}}},
        "failedNodeCount": 2,
    }
    assert result.output.splitlines() == [
        "NODE    FIT  WHY NO MORE",
        "host-1   12  memory",
        "host-2    0  taints",
        "12 more fit; what stops the next: 2 nodes: memory",
        "with 1 node failed, 5 more fit (worst: host-1)",
        "with 2 nodes failed, 0 more fit, and 1 VM has no place (worst: host-1, host-2)",
    ]
    assert run("-o", "yaml", "capacity", "--cpus", "2").output.startswith("fittingCount:")
