"""What is used: shown once, watched, and the VMs that use most."""

from __future__ import annotations

import json
from typing import Any

import pytest

from limiquantix.errors import NotFound, Reason, Unavailable
from tests.support.fake_http_api import NODE_ID, Document, FakeApi, Run, node, uuid_of, vm

CTRL_C = KeyboardInterrupt()

USAGE: Document = {
    "cpuUsagePercent": 12.34,
    "memoryUsedBytes": str(3 * 2**29),
    "memoryAllocatedBytes": str(2**31),
    "diskWriteBytesPerSec": 2048.5,
    "networkRxBytesPerSec": 10,
    "disks": [{"diskId": "d", "target": "vda", "readBytes": "1024", "readCount": "2", "writeBytes": str(2**20)}],
    "nics": [{"nicId": "n", "macAddress": "52:54:00:00:00:01", "rxBytes": "100", "rxErrors": "3"}],
    "sampledAt": "2024-01-01T00:00:00Z",
}


def used(name: str, **usage: Any) -> Document:
    return {"vmId": uuid_of(1), "name": name, "usage": usage}


def test_metrics_of_a_vm_are_shown_disk_by_disk(api: FakeApi, run: Run) -> None:
    api.have_vms(vm("web"))
    api.scenes["StreamMetrics"] = [[USAGE, USAGE, None]]
    output = run("vm", "metrics", "web").stdout
    assert api.request("StreamMetrics") == {"vmId": uuid_of(10), "intervalSec": 5}
    for words in (
        "12.3 %",
        "1.5 GiB of 2 GiB",
        "2 KiB/s written",
        "1 KiB read in 2 requests, 1 MiB written in 0 requests",
        "52:54:00:00:00:01",
        "100 B received, 0 B sent, 3 errors",
    ):
        assert words in output


def test_metrics_of_a_vm_in_json_are_the_apis_own(api: FakeApi, run: Run) -> None:
    api.scenes["StreamMetrics"] = [[USAGE]]
    assert json.loads(run("vm", "metrics", uuid_of(1), "-o", "json").stdout) == USAGE


def test_metrics_watched_are_a_line_each_and_go_on_after_a_break(api: FakeApi, run: Run) -> None:
    away = Unavailable(Reason.STATE_UNAVAILABLE, "the database is away")
    api.scenes["StreamMetrics"] = [[USAGE, away], [USAGE, CTRL_C]]
    result = run("vm", "metrics", uuid_of(1), "--watch", "--interval", "2")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    assert all("cpu 12.3 %" in line and "written 2 KiB/s" in line for line in lines)
    assert [request["intervalSec"] for request in api.requests_of("StreamMetrics")] == [2, 2]
    assert "the database is away" in result.stderr


def test_metrics_of_a_vm_that_is_gone_are_an_error(api: FakeApi, run: Run) -> None:
    api.scenes["StreamMetrics"] = [[NotFound(Reason.VM_NOT_FOUND, "no such VM")]]
    result = run("vm", "metrics", uuid_of(1))
    assert result.exit_code != 0
    assert "no such VM" in result.stderr


def test_metrics_of_a_node_are_shown_and_watched(api: FakeApi, run: Run) -> None:
    api.have_vms()
    metrics = {
        "nodeId": NODE_ID,
        "cpuUsagePercent": 40,
        "cpuCoresTotal": 8,
        "memoryUsedBytes": str(2**30),
        "memoryTotalBytes": str(2**33),
        "load1m": 1.25,
        "vmCount": 3,
        "vmRunningCount": 2,
    }
    api.answers["GetNodeMetrics"] = lambda _: metrics
    output = run("node", "metrics", "host-1").stdout
    for words in ("40.0 % of 8 logical processors", "1 GiB of 8 GiB", "1.25 0.00 0.00", "3, 2 of them running"):
        assert words in output
    api.scenes["StreamNodeMetrics"] = [[metrics, metrics, CTRL_C]]
    watched = run("node", "metrics", "host-1", "--watch").stdout.splitlines()
    assert len(watched) == 2
    assert "cpu 40.0 %" in watched[0]


@pytest.mark.parametrize(
    ("sort", "first"), [("cpu", "busy"), ("memory", "large"), ("disk", "writer"), ("network", "talker")]
)
def test_top_shows_those_that_use_most_first(api: FakeApi, run: Run, sort: str, first: str) -> None:
    api.answers["ListNodes"] = lambda _: {"nodes": [node("host-1")]}
    api.answers["GetNodeMetrics"] = lambda _: {
        "vms": [
            used("idle"),
            used("busy", cpuUsagePercent=99.9),
            used("large", memoryUsedBytes=str(2**40)),
            used("writer", diskReadBytesPerSec=1, diskWriteBytesPerSec=2**20),
            used("talker\x1b[2J", networkTxBytesPerSec=2**20),
        ]
    }
    lines = run("vm", "top", "--sort", sort, "--limit", "2").stdout.splitlines()
    assert len(lines) == 3
    assert lines[1].startswith(first)
    assert "host-1" in lines[1]
    assert "\x1b" not in "".join(lines)


def test_top_leaves_out_a_node_that_does_not_answer_and_says_so(api: FakeApi, run: Run) -> None:
    nodes = [node("host-1"), node("host-2", id=uuid_of(2)), node("host-3", id=uuid_of(3))]
    api.answers["ListNodes"] = lambda _: {"nodes": nodes}

    def answer(request: Document) -> Document:
        if request["id"] == uuid_of(2):
            raise Unavailable(Reason.NODE_UNREACHABLE, "away")
        return {"vms": [used(request["id"])], "vmsError": "hung" if request["id"] == uuid_of(3) else ""}

    api.answers["GetNodeMetrics"] = answer
    result = run("vm", "top", "-o", "json")
    assert [each["node"] for each in json.loads(result.stdout)["vms"]] == ["host-1", "host-3"]
    assert "node host-2 is left out: away" in result.stderr
    assert "node host-3: hung" in result.stderr
