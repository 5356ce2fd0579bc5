from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.fake_http_api import Document, FakeApi, Run, uuid_of, vm

ONE, TWO, THREE = (uuid_of(number) for number in (101, 102, 103))


def snapshot(snapshot_id: str, name: str, parent_id: str = "", **fields: Any) -> Document:
    return {"id": snapshot_id, "name": name, "parentId": parent_id, "createdAt": "2026-01-02T03:04:05Z", **fields}


FOUND = [
    snapshot(ONE, "one", sizeBytes="1048576"),
    snapshot(TWO, "two\x1b[31m", ONE, memoryIncluded=True, isCurrent=True),
    snapshot(THREE, "three", ONE),
]


@pytest.fixture
def web(api: FakeApi) -> FakeApi:
    api.have_vms(vm("web", 1))
    api.answers["ListSnapshots"] = lambda _: {"snapshots": FOUND}
    return api


def test_create_sends_what_was_asked_for_and_tells_the_id(web: FakeApi, run: Run) -> None:
    web.answers["CreateSnapshot"] = lambda request: {"id": ONE, "frozenFilesystemCount": 2, **request}
    result = run("vm", "snapshot", "create", "web", "nightly", "--quiesce", "--description", "before")
    assert web.request("CreateSnapshot") == {
        "vmId": uuid_of(1),
        "name": "nightly",
        "description": "before",
        "includeMemory": False,
        "quiesce": True,
    }
    assert ONE in result.stdout
    assert "2 file systems frozen" in result.stdout


def test_list_prints_a_row_for_each_and_json_the_documents(web: FakeApi, run: Run) -> None:
    lines = run("vm", "snapshot", "list", "web").stdout.splitlines()
    assert lines[0].split()[:5] == ["NAME", "CURRENT", "MEMORY", "QUIESCED", "SIZE"]
    assert "1 MiB" in lines[1]
    assert "\x1b" not in "".join(lines)
    assert json.loads(run("vm", "snapshot", "list", "web", "-o", "json").stdout)["snapshots"][0]["id"] == ONE


def test_tree_shows_what_builds_upon_what_and_where_the_vm_is(web: FakeApi, run: Run) -> None:
    lines = run("vm", "snapshot", "tree", "web").stdout.splitlines()
    assert lines[0] == "└─ one"
    assert lines[1].startswith("   ├─ two")
    assert lines[1].endswith("(with memory)")
    assert lines[2:] == ["   │  └─ (the VM is here)", "   └─ three"]


@pytest.mark.parametrize("given", ["three", THREE])
def test_revert_finds_a_snapshot_by_name_or_id(web: FakeApi, run: Run, given: str) -> None:
    web.answers["RevertToSnapshot"] = lambda _: vm("web", 1)
    assert run("vm", "snapshot", "revert", "web", given, "--start").exit_code == 0
    request = web.request("RevertToSnapshot")
    assert (request["snapshotId"], request["startAfterRevert"]) == (THREE, True)


def test_delete_of_an_unknown_snapshot_asks_for_nothing(web: FakeApi, run: Run) -> None:
    result = run("vm", "snapshot", "delete", "web", "nine")
    assert result.exit_code != 0
    assert "nine" in result.stderr
    assert "DeleteSnapshot" not in [method for method, _ in web.requests]


def test_delete_sends_the_id(web: FakeApi, run: Run) -> None:
    web.answers["DeleteSnapshot"] = lambda _: {}
    assert "deleted" in run("vm", "snapshot", "delete", "web", "one", "--yes").stdout
    assert web.request("DeleteSnapshot")["snapshotId"] == ONE


def test_suspend_prints_what_the_vm_is(web: FakeApi, run: Run) -> None:
    web.answers["SuspendVM"] = lambda _: vm("web", 1, state="SUSPENDED")
    assert "SUSPENDED" in run("vm", "suspend", "web").stdout
