"""How changes are asked for: again when the server is gone, without waiting, with the operation named."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from controlplane.cli.api_client import REPEAT_PAUSES_S, CallCancelled
from limiquantix.errors import (
    ApiError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    Reason,
    Unavailable,
)
from tests.support.fake_http_api import Answer, Document, FakeApi, ProxyError, Run, operation, uuid_of, vm

LOST = httpx.RemoteProtocolError("Server disconnected")
REFUSED = httpx.ConnectError("[Errno 111] Connection refused")
NO_DATABASE = Unavailable(Reason.STATE_UNAVAILABLE, "no database")


def _in_turn(*outcomes: Document | Exception) -> Answer:
    left: Iterator[Document | Exception] = iter(outcomes)

    def answer(_: Document) -> Document:
        outcome = next(left)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return answer


@pytest.mark.parametrize(
    "failures",
    [
        (LOST,),
        (NO_DATABASE,),
        (CallCancelled("", "Request was cancelled"),),
        (ProxyError(502),),
        (LOST, REFUSED, REFUSED, NO_DATABASE),
    ],
    ids=["connection lost", "no database", "server stops", "proxy without a server", "server starts anew"],
)
def test_change_whose_server_is_gone_for_a_moment_is_asked_for_again_with_the_same_id(
    api: FakeApi, run: Run, failures: tuple[Exception, ...]
) -> None:
    api.answers["CreateVM"] = _in_turn(*failures, vm("web-1"))
    result = run("vm", "create", "web-1", "-o", "json")
    assert result.exit_code == 0
    requests = api.requests_of("CreateVM")
    assert len(requests) == len(failures) + 1
    assert all(request == requests[0] for request in requests)
    ids = {headers["limiquantix-request-id"] for method, headers in api.headers if method == "CreateVM"}
    assert [str(uuid.UUID(each)) for each in ids] == list(ids)
    assert api.pauses_s == list(REPEAT_PAUSES_S[: len(failures)])
    assert result.stderr.count("asking again") == 1


def test_change_whose_server_stays_away_ends_and_tells_how_to_repeat_it(api: FakeApi, run: Run) -> None:
    api.answers["StartVM"] = _in_turn(*([LOST] * (len(REPEAT_PAUSES_S) + 1)))
    result = run("vm", "start", uuid_of(1), "--request-id", "mine")
    assert result.exit_code == 3
    assert "the same command with --request-id mine does nothing twice" in result.stderr
    assert api.pauses_s == list(REPEAT_PAUSES_S)


def test_change_at_a_server_that_was_never_there_is_not_repeated(api: FakeApi, run: Run) -> None:
    api.answers["StartVM"] = _in_turn(REFUSED)
    result = run("vm", "start", uuid_of(1))
    assert result.exit_code == 3
    assert "Connection refused" in result.stderr
    assert "limiquantix dev" in result.stderr
    assert api.pauses_s == []


@pytest.mark.parametrize(
    "error",
    [
        Unavailable(Reason.NODE_UNREACHABLE, "host does not answer"),
        FailedPrecondition(Reason.VM_STATE_FORBIDS, "it runs"),
        DeadlineExceeded(Reason.DEADLINE_EXCEEDED, "too slow"),
    ],
)
def test_change_that_was_refused_is_not_repeated(api: FakeApi, run: Run, error: ApiError) -> None:
    api.answers["StartVM"] = _in_turn(error)
    assert run("vm", "start", uuid_of(1)).exit_code == 1
    assert api.pauses_s == []


def test_change_that_takes_too_long_to_answer_is_not_repeated(api: FakeApi, run: Run) -> None:
    api.answers["StartVM"] = _in_turn(httpx.ReadTimeout("slow"))
    assert run("vm", "start", uuid_of(1)).exit_code == 3
    assert api.pauses_s == []


def test_failure_of_an_operation_names_it(api: FakeApi, run: Run) -> None:
    api.operation_id = uuid_of(70)
    api.answers["PauseVM"] = _in_turn(FailedPrecondition(Reason.VM_STATE_FORBIDS, "it is off"))
    result = run("vm", "pause", uuid_of(1))
    assert result.exit_code == 1
    assert f"  'limiquantix operation show {uuid_of(70)}' has the details" in result.stderr


def test_operation_that_outlasts_the_call_can_be_waited_for(api: FakeApi, run: Run) -> None:
    api.operation_id = uuid_of(70)
    api.answers["PauseVM"] = _in_turn(DeadlineExceeded(Reason.DEADLINE_EXCEEDED, "PauseVM did not finish in time"))
    assert f"hint: 'limiquantix operation wait {uuid_of(70)}' waits on" in run("vm", "pause", uuid_of(1)).stderr


CHANGES: list[tuple[tuple[str, ...], str]] = [
    (("create", "web"), "CreateVM"),
    (("update", uuid_of(1), "--cpus", "2"), "UpdateVM"),
    (("start", uuid_of(1)), "StartVM"),
    (("stop", uuid_of(1)), "StopVM"),
    (("reboot", uuid_of(1)), "RebootVM"),
    (("pause", uuid_of(1)), "PauseVM"),
    (("resume", uuid_of(1)), "ResumeVM"),
    (("take-over", uuid_of(1)), "TakeOverVM"),
    (("delete", uuid_of(1)), "DeleteVM"),
]


@pytest.mark.parametrize(("arguments", "method"), CHANGES)
def test_change_that_nobody_waits_for_prints_its_operation(
    api: FakeApi, run: Run, arguments: tuple[str, ...], method: str
) -> None:
    api.operation_id = uuid_of(70)
    api.answers[method] = _in_turn(vm("web"))
    result = run("vm", *arguments, "--no-wait", "--request-id", "mine")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"operation {uuid_of(70)} is ")
    assert result.stdout.endswith(f"'limiquantix operation wait {uuid_of(70)}' waits for it\n")
    assert api.header(method, "limiquantix-wait") == "false"
    assert api.header(method, "limiquantix-request-id") == "mine"


@pytest.mark.parametrize(("arguments", "method"), CHANGES)
def test_change_that_is_waited_for_prints_what_became_of_it(
    api: FakeApi, run: Run, arguments: tuple[str, ...], method: str
) -> None:
    api.operation_id = uuid_of(70)
    api.answers[method] = _in_turn(vm("web"))
    result = run("vm", *arguments)
    assert result.exit_code == 0
    assert result.stdout.startswith("VM ")
    assert api.header(method, "limiquantix-wait") is None


def test_change_that_nobody_waits_for_is_an_operation_to_programs(api: FakeApi, run: Run) -> None:
    api.operation_id = uuid_of(70)
    api.answers["StartVM"] = _in_turn(vm("web"))
    api.answers["GetOperation"] = lambda request: operation(id=request["id"])
    result = run("vm", "start", uuid_of(1), "--no-wait", "-o", "json")
    assert json.loads(result.stdout) == operation(70)


@pytest.mark.parametrize("request_id", ["", " a", "a\n", "ä", "x" * 129])
def test_request_id_that_cannot_be_sent_is_a_usage_error(api: FakeApi, run: Run, request_id: str) -> None:
    result = run("vm", "start", uuid_of(1), "--request-id", request_id)
    assert result.exit_code == 2
    assert "--request-id" in result.stderr
    assert api.requests == []


def test_request_id_of_another_request_is_refused_with_a_hint(api: FakeApi, run: Run) -> None:
    api.answers["StartVM"] = _in_turn(InvalidArgument(Reason.REQUEST_ID_REUSED, "'mine' was used"))
    result = run("vm", "start", uuid_of(1), "--request-id", "mine")
    assert result.exit_code == 1
    assert "of its own" in result.stderr


def test_operation_id_of_a_hostile_server_cannot_reach_the_terminal(api: FakeApi, run: Run) -> None:
    api.operation_id = "\x9b2J"
    api.answers["StartVM"] = _in_turn(vm("web"))
    result = run("vm", "start", uuid_of(1), "--no-wait")
    assert "\x9b" not in result.stdout
    assert "\\x9b2J" in result.stdout


def _noted(api: FakeApi, run: Run, **fields: Any) -> str:
    api.have_vms(vm("plain", 1), vm("noted", 2, **fields))
    return run("vm", "list").stdout


def test_vm_list_of_vms_in_order_has_no_column_for_notes(api: FakeApi, run: Run) -> None:
    status = {"state": "PAUSED", "wantedState": "RUNNING", "health": {"checks": [{"name": "x", "passed": True}]}}
    assert "NOTE" not in _noted(api, run, status=status, origin="VM_ORIGIN_HOST_DISCOVERED", isManaged=True)


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({"origin": "VM_ORIGIN_HOST_DISCOVERED"}, "unmanaged"),
        ({"status": {"state": "STOPPED", "wantedState": "RUNNING"}}, "wanted RUNNING"),
        ({"status": {"state": "RUNNING", "wantedState": "STOPPED"}}, "wanted STOPPED"),
        ({"status": {"state": "RUNNING", "health": {"checks": [{"name": "on_one_host"}]}}}, "on several hosts"),
        ({"status": {"state": "RUNNING", "health": {"checks": [{"name": "ping\x1b"}]}}}, "ping\\x1b"),
    ],
)
def test_vm_list_notes_what_is_not_in_order(api: FakeApi, run: Run, fields: Document, note: str) -> None:
    header, plain, noted = _noted(api, run, **fields).splitlines()
    assert header.endswith("NOTE")
    assert plain.endswith("-")
    assert noted.endswith(f"  {note}")


def test_vm_show_tells_what_is_not_in_order(api: FakeApi, run: Run) -> None:
    check = {"name": "on_one_host", "message": "also on node \x1b[2Jx"}
    status = {"state": "STOPPED", "wantedState": "RUNNING", "health": {"status": "DEGRADED", "checks": [check]}}
    api.have_vms(vm("web", 2, status=status, origin="VM_ORIGIN_HOST_DISCOVERED"))
    shown = dict(line.split(":", 1) for line in run("vm", "show", "web").stdout.splitlines())
    assert shown["Wanted state"].strip() == "RUNNING"
    assert shown["Alert"].strip() == "on_one_host: also on node \\x1b[2Jx"
    assert "take-over" in shown["Managed"]
