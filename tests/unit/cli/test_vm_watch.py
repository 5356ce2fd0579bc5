from __future__ import annotations

import json
from collections.abc import Sequence

import httpx
import pytest

from controlplane.cli.following import PATIENCE_S
from limiquantix.errors import FailedPrecondition, NotFound, OutOfRange, Reason, ResourceExhausted, Unavailable
from tests.support.fake_http_api import NODE_ID, Document, FakeApi, Run, uuid_of, vm

CTRL_C = KeyboardInterrupt()
BOOKMARK: Document = {"type": "BOOKMARK", "revision": "9"}


def _update(name: str, revision: int, kind: str = "", **fields: object) -> Document:
    return ({"type": kind} if kind else {}) | {
        "vm": vm(name, revision, **fields),  # type: ignore[arg-type]
        "revision": str(revision),
    }


def _columns(output: str) -> list[Sequence[str]]:
    return [line.split()[1:] for line in output.splitlines()]


def test_watch_prints_a_line_for_every_change(api: FakeApi, run: Run) -> None:
    api.have_vms()
    changes = [
        _update("web-1", 1),
        BOOKMARK,
        _update("web-1", 10, "MODIFIED", state="RUNNING"),
        _update("web\x1b[2J", 11, "ADDED", origin="VM_ORIGIN_HOST_DISCOVERED"),
        _update("web-1", 12, "DELETED"),
    ]
    api.scenes["WatchVMs"] = [[*changes, CTRL_C]]
    result = run("vm", "watch")
    assert result.exit_code == 0
    assert _columns(result.stdout) == [
        ["web-1", "ADDED", "STOPPED", "host-1"],
        ["web-1", "MODIFIED", "RUNNING", "host-1"],
        ["web\\x1b[2J", "ADDED", "STOPPED", "host-1", "unmanaged"],
        ["web-1", "DELETED", "STOPPED", "host-1"],
    ]
    assert len(api.requests_of("GetNode")) == 1
    assert "\x1b" not in result.stdout


def test_watch_filters_are_sent(api: FakeApi, run: Run) -> None:
    api.have_vms()
    api.scenes["WatchVMs"] = [[CTRL_C]]
    assert run("vm", "watch", "--label", "tier=web", "--node", "host-1").exit_code == 0
    request = {"projectId": "", "labels": {"tier": "web"}, "nodeId": NODE_ID, "sendBookmarks": True}
    assert api.request("WatchVMs") == request


def test_watch_json_is_the_apis_own_updates_a_line_each(api: FakeApi, run: Run) -> None:
    changes = [_update("web\u202e", 1), _update("web-2", 2, "MODIFIED")]
    api.scenes["WatchVMs"] = [[*changes, BOOKMARK, CTRL_C]]
    result = run("vm", "watch", "-o", "json")
    assert [json.loads(line) for line in result.stdout.splitlines()] == changes
    assert "\u202e" not in result.stdout


def test_watch_yaml_is_a_document_for_every_change(api: FakeApi, run: Run) -> None:
    api.scenes["WatchVMs"] = [[_update("web-1", 1), _update("web-2", 2), CTRL_C]]
    assert run("vm", "watch", "-o", "yaml").stdout.count("---\n") == 2


@pytest.mark.parametrize(
    "end",
    [
        httpx.ReadError("reset"),
        Unavailable(Reason.STATE_UNAVAILABLE, "this control plane is stopping"),
        ResourceExhausted(Reason.WATCH_TOO_SLOW, "too slow"),
    ],
)
def test_watch_that_breaks_goes_on_after_the_last_revision_it_saw(api: FakeApi, run: Run, end: Exception) -> None:
    api.have_vms()
    api.scenes["WatchVMs"] = [
        [_update("web-1", 5), BOOKMARK, end],
        [httpx.ConnectError("[Errno 111] Connection refused")],
        [_update("web-2", 10, "MODIFIED"), CTRL_C],
    ]
    result = run("vm", "watch")
    assert result.exit_code == 0
    assert [line[0] for line in _columns(result.stdout)] == ["web-1", "web-2"]
    assert [request.get("fromRevision") for request in api.requests_of("WatchVMs")] == [None, "9", "9"]
    assert result.stderr.count("trying to go on") == 1


def test_watch_that_is_silent_for_long_is_begun_again_without_a_word(api: FakeApi, run: Run) -> None:
    api.have_vms()
    api.scenes["WatchVMs"] = [[_update("web-1", 5), httpx.ReadTimeout("silent")], [CTRL_C]]
    result = run("vm", "watch")
    assert result.stderr == ""
    assert api.requests_of("WatchVMs")[1]["fromRevision"] == "5"
    assert api.pauses_s == []


def test_watch_whose_revision_is_gone_begins_anew_and_says_so(api: FakeApi, run: Run) -> None:
    api.have_vms()
    api.scenes["WatchVMs"] = [
        [_update("web-1", 5)],
        [OutOfRange(Reason.REVISION_UNAVAILABLE, "the log does not hold 5")],
        [_update("web-1", 50), CTRL_C],
    ]
    result = run("vm", "watch")
    assert result.exit_code == 0
    assert "the log does not hold 5; the watch begins anew" in result.stderr
    assert "fromRevision" not in api.requests_of("WatchVMs")[2]


def test_watch_of_a_server_that_was_never_there_ends_with_status_3(api: FakeApi, run: Run) -> None:
    api.scenes["WatchVMs"] = [[httpx.ConnectError("[Errno 111] Connection refused")]]
    result = run("vm", "watch")
    assert result.exit_code == 3
    assert "limiquantix dev" in result.stderr
    assert api.pauses_s == []


def test_watch_gives_up_on_a_server_that_stays_away(api: FakeApi, run: Run) -> None:
    api.have_vms()
    api.scenes["WatchVMs"] = [[_update("web-1", 5)], [httpx.ConnectError("[Errno 111] Connection refused")]]
    assert run("vm", "watch").exit_code == 3
    assert PATIENCE_S <= sum(api.pauses_s) < PATIENCE_S + 10


def test_watch_that_is_refused_ends_with_status_1(api: FakeApi, run: Run) -> None:
    api.scenes["WatchVMs"] = [[FailedPrecondition(Reason.VM_STATE_FORBIDS, "no \x1bwatch")]]
    result = run("vm", "watch")
    assert result.exit_code == 1
    assert "no \\x1bwatch" in result.stderr


def test_watch_at_something_that_is_no_control_plane_ends_with_status_3(api: FakeApi, run: Run) -> None:
    result = run("vm", "watch")
    assert result.exit_code == 3
    assert "HTTP 404" in result.stderr


def test_watch_of_one_vm_ends_when_it_is_deleted(api: FakeApi, run: Run) -> None:
    api.have_vms(vm("web", 4))
    running, gone = vm("web", 4, state="RUNNING", revision="6"), vm("web", 4, state="TERMINATED", revision="7")
    api.scenes["WatchVM"] = [[vm("web", 4, revision="5"), running], [gone, None]]
    result = run("vm", "watch", "web")
    assert result.exit_code == 0
    assert _columns(result.stdout) == [
        ["web", "ADDED", "STOPPED", "host-1"],
        ["web", "MODIFIED", "RUNNING", "host-1"],
        ["web", "DELETED", "TERMINATED", "host-1"],
    ]
    assert api.requests_of("WatchVM") == [{"vmId": uuid_of(4)}, {"vmId": uuid_of(4), "fromRevision": "6"}]


def test_watch_of_a_vm_that_is_not_there_ends_with_status_1(api: FakeApi, run: Run) -> None:
    api.scenes["WatchVM"] = [[NotFound(Reason.VM_NOT_FOUND, "there is none")]]
    result = run("vm", "watch", uuid_of(1))
    assert result.exit_code == 1
    assert "vm list" in result.stderr


def test_watch_of_one_vm_takes_no_filters(api: FakeApi, run: Run) -> None:
    assert run("vm", "watch", "web", "--node", "host-1").exit_code == 2
    assert api.requests == []
