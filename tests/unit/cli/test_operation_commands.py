from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from click.shell_completion import ShellComplete

from controlplane.cli.main import cli
from controlplane.cli.operation_commands import KINDS, STATES
from controlplane.cli.operation_views import progress_look, progress_text
from controlplane.cli.session import Session
from controlplane.operations.catalogue import WORKFLOWS
from controlplane.operations.node_drain import DrainNode
from limiquantix.compute.v1.operation_pb2 import Operation
from limiquantix.errors import Aborted, FailedPrecondition, NotFound, Reason, Unavailable
from tests.support.fake_http_api import Document, FakeApi, Run, operation, uuid_of, vm

ERROR = {"code": 9, "reason": "VM_STATE_FORBIDS", "message": "it is \x1b[31moff", "metadata": {"state": "STOPPED"}}


def _have(api: FakeApi, *operations: Document) -> None:
    """Hold these operations, newest first, in pages of two; their VMs are named web-10 and so on."""

    def list_operations(request: Document) -> Document:
        begin = int(request.get("pageToken") or 0)
        token = str(begin + 2) if begin + 2 < len(operations) else ""
        return {"operations": list(operations[begin : begin + 2]), "nextPageToken": token}

    def get(request: Document) -> Document:
        return next(each for each in operations if each["id"] == request["id"])

    def get_vm(request: Document) -> Document:
        number = int(request["id"][-12:])
        if number > 20:
            raise NotFound(Reason.VM_NOT_FOUND, "gone")
        return vm(f"web-{number}", number)

    api.answers |= {"ListOperations": list_operations, "GetOperation": get, "GetVM": get_vm}


def test_kinds_and_states_are_those_there_are() -> None:
    assert len(KINDS) == len(set(KINDS))
    assert set(KINDS) == WORKFLOWS.kinds | {DrainNode.kind}
    assert {state.upper() for state in STATES} == set(Operation.State.keys()) - {"STATE_UNSPECIFIED"}


def test_list_prints_a_row_for_every_operation_with_the_vms_name(api: FakeApi, run: Run) -> None:
    waiting = operation(73, state="QUEUED", progressPercent=0, waitingFor="vm.start (operation x) on the same VM")
    gone = operation(72, state="FAILED", resourceId=uuid_of(30), endedAt="2024-01-01T00:00:03.5Z")
    named = operation(71, state="SUCCEEDED", resourceId=uuid_of(31), response={"name": "old-1"}, progressPercent=100)
    _have(api, waiting, gone, named)
    lines = run("operation", "list").stdout.splitlines()
    assert lines[0].split() == ["ID", "KIND", "VM", "STATE", "PROGRESS", "WAITS", "FOR", "AGE", "TOOK"]
    assert lines[1].startswith("00000000  vm.start  web-10 ")
    assert "0 %  vm.start (operation x) on the same VM" in lines[1]
    assert uuid_of(30) in lines[2]
    assert lines[2].endswith("  2.5s")
    assert "  old-1 " in lines[3]


def test_list_filters_are_sent_in_the_apis_words(api: FakeApi, run: Run) -> None:
    api.have_vms(vm("web", 4))
    _have(api)
    api.answers["ListVMs"] = lambda _: {"vms": [vm("web", 4)]}
    filters = ["--vm", "web", "--state", "running", "--state", "queued", "--kind", "vm.create", "--limit", "9"]
    assert run("operation", "list", *filters).exit_code == 0
    request = api.request("ListOperations")
    assert request["resourceId"] == uuid_of(4)
    assert request["states"] == ["RUNNING", "QUEUED"]
    assert request["kinds"] == ["vm.create"]
    assert request["pageSize"] == 9


def test_list_limit_reached_asks_for_no_further_page(api: FakeApi, run: Run) -> None:
    _have(api, *(operation(n) for n in range(70, 75)))
    assert len(run("operation", "list", "--limit", "2", "--wide").stdout.splitlines()) == 3
    assert len(api.requests_of("ListOperations")) == 1


def test_list_json_is_the_apis_own_document(api: FakeApi, run: Run) -> None:
    _have(api, *(operation(n) for n in range(70, 73)))
    document = json.loads(run("operation", "list", "-o", "json").stdout)
    assert document == {"operations": [operation(n) for n in range(70, 73)], "totalCount": 3}


def test_list_of_many_vms_reads_them_all_at_once(api: FakeApi, run: Run) -> None:
    _have(api, *(operation(n, resourceId=uuid_of(n)) for n in range(100, 160)))
    api.answers["ListVMs"] = lambda _: {"vms": [vm(f"many-{n}", n) for n in range(100, 160)]}
    assert "many-159" in run("operation", "list", "--limit", "60").stdout
    assert len(api.requests_of("ListVMs")) == 1
    assert api.requests_of("GetVM") == []


def test_list_without_names_shows_ids(api: FakeApi, run: Run) -> None:
    _have(api, operation(70))

    def no_database(_: Document) -> Document:
        raise Unavailable(Reason.STATE_UNAVAILABLE, "no database")

    api.answers["GetVM"] = no_database
    assert uuid_of(10) in run("operation", "list").stdout


def test_show_has_steps_error_and_times_and_nothing_that_moves_the_terminal(api: FakeApi, run: Run) -> None:
    steps = [{"name": "define", "state": "UNDONE", "resultJson": '{"x":"\x1b[2J"}'}, {"name": "start"}]
    _have(api, operation(70, state="FAILED", error=ERROR, steps=steps, endedAt="2024-01-01T00:01:05Z", attemptCount=2))
    output = run("operation", "show", uuid_of(70)).stdout
    assert "Error:         VM_STATE_FORBIDS: it is \\x1b[31moff" in output
    assert "Error: state:  STOPPED" in output
    assert "VM:            web-10 (00000000-" in output
    assert "Taken up:      2 times" in output
    assert "Took:          1m" in output
    assert 'define  UNDONE  {"x":"\\x1b[2J"}' in output
    assert "\x1b" not in output


def test_show_of_the_beginning_of_an_id_finds_the_operation(api: FakeApi, run: Run) -> None:
    others = [operation(n, id=f"{n}{n}{n}-0000-4000-8000-000000000001") for n in (200, 201)]
    wanted = operation(id="abcd1234-0000-4000-8000-000000000001")
    _have(api, *others, wanted)
    shown = run("operation", "show", "ABCD12", "-o", "json")
    assert json.loads(shown.stdout) == wanted


def test_beginning_of_several_ids_is_refused_with_all_of_them(api: FakeApi, run: Run) -> None:
    _have(api, operation(70), operation(71))
    result = run("operation", "show", "00000000-0")
    assert result.exit_code == 1
    assert f"operation {uuid_of(70)}: vm.start RUNNING" in result.stderr
    assert f"operation {uuid_of(71)}" in result.stderr


def test_beginning_of_no_id_is_refused(api: FakeApi, run: Run) -> None:
    _have(api, operation(70))
    result = run("operation", "show", "ffff")
    assert result.exit_code == 1
    assert "operation list" in result.stderr


@pytest.mark.parametrize("text", ["abc", "web-1", "0000000000", "\x1b[2J", ""])
def test_text_that_is_no_id_is_a_usage_error(api: FakeApi, run: Run, text: str) -> None:
    assert run("operation", "show", text).exit_code == 2
    assert api.requests == []


def _ending(*operations: Document) -> Any:
    left = iter(operations)
    return lambda _: next(left)


def test_wait_asks_until_the_operation_has_ended(api: FakeApi, run: Run) -> None:
    ended = operation(70, state="SUCCEEDED", endedAt="2024-01-01T00:00:03Z")
    _have(api, ended)
    api.answers["WaitOperation"] = _ending(operation(70), operation(70), ended)
    result = run("operation", "wait", uuid_of(70))
    assert result.exit_code == 0
    assert result.stdout == f"operation {uuid_of(70)} (vm.start of web-10) SUCCEEDED after 2.0s\n"
    assert len(api.requests_of("WaitOperation")) == 3


@pytest.mark.parametrize("command", ["wait", "watch"])
@pytest.mark.parametrize("state", ["FAILED", "CANCELLED"])
def test_operation_that_did_not_succeed_ends_waiting_with_status_1(
    api: FakeApi, run: Run, command: str, state: str
) -> None:
    ended = operation(70, state=state, error=ERROR)
    _have(api, ended)
    api.answers["WaitOperation"] = _ending(ended)
    api.scenes["WatchOperation"] = [[ended, None]]
    result = run("operation", command, uuid_of(70), "-o", "json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == ended
    assert f"{state}: it is \\x1b[31moff" in result.stderr
    assert f"operation show {uuid_of(70)}" in result.stderr


def test_wait_whose_time_is_up_says_how_far_it_is(api: FakeApi, run: Run) -> None:
    _have(api, operation(70))

    def still(request: Document) -> Document:
        return operation(70, waitingFor="host-1")

    api.answers["WaitOperation"] = still
    result = run("operation", "wait", uuid_of(70), "--timeout", "1")
    assert result.exit_code == 1
    assert "is still RUNNING after 1 s: 50 %, start, waits for host-1" in result.stderr
    assert all(request["timeoutSec"] == 1 for request in api.requests_of("WaitOperation"))


def test_cancel_says_whether_the_operation_has_ended(api: FakeApi, run: Run) -> None:
    _have(api, operation(70))
    api.answers["CancelOperation"] = _ending(operation(70, state="CANCELLED"), operation(70, cancelRequested=True))
    assert run("operation", "cancel", uuid_of(70)).stdout.endswith("(vm.start of web-10) is CANCELLED\n")
    result = run("operation", "cancel", uuid_of(70))
    assert "was asked to stop and is RUNNING; 'limiquantix operation wait" in result.stdout


def test_cancel_of_what_has_ended_is_refused(api: FakeApi, run: Run) -> None:
    def ended(_: Document) -> Document:
        raise FailedPrecondition(Reason.OPERATION_ENDED, "it has ended already: SUCCEEDED")

    api.answers["CancelOperation"] = ended
    result = run("operation", "cancel", uuid_of(70))
    assert result.exit_code == 1
    assert "SUCCEEDED" in result.stderr


def test_watch_prints_a_line_for_every_change_and_goes_on_after_a_lost_connection(api: FakeApi, run: Run) -> None:
    first = operation(70, progressPercent=0, steps=[{"name": "define", "state": "RUNNING"}])
    second = operation(70, version="4")
    last = operation(70, state="SUCCEEDED", version="5", endedAt="2024-01-01T00:00:03Z")
    _have(api, last)
    api.scenes["WatchOperation"] = [[first, second], [second, last, None]]
    result = run("operation", "watch", uuid_of(70))
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "vm.start  web-10  RUNNING  0 %, define",
        "vm.start  web-10  RUNNING  50 %, start",
        "vm.start  web-10  SUCCEEDED  after 2.0s",
    ]
    assert "trying to go on" in result.stderr
    assert len(api.pauses_s) == 1


def test_watch_json_is_a_line_for_every_change(api: FakeApi, run: Run) -> None:
    last = operation(70, state="SUCCEEDED", version="5")
    _have(api, last)
    api.scenes["WatchOperation"] = [[operation(70), last, None]]
    lines = run("operation", "watch", uuid_of(70), "-o", "json").stdout.splitlines()
    assert [json.loads(each) for each in lines] == [operation(70), last]


def test_watch_cut_short_with_ctrl_c_ends_with_status_0(api: FakeApi, run: Run) -> None:
    _have(api, operation(70))
    api.scenes["WatchOperation"] = [[operation(70), KeyboardInterrupt()]]
    assert run("operation", "watch", uuid_of(70)).exit_code == 0


def test_progress_is_that_of_the_operation_that_is_meant(api: FakeApi) -> None:
    session = Session(transport=httpx.MockTransport(api.handle))
    _have(api, operation(70, requestId="other", progressPercent=1), operation(71, requestId="mine"))
    look = progress_look(session, {"resourceId": uuid_of(10)}, lambda each: each.get("requestId") == "mine")
    assert look() == "50 %, start"
    assert api.request("ListOperations")["states"] == ["QUEUED", "RUNNING", "UNDOING"]


def test_progress_that_cannot_be_read_is_nothing(api: FakeApi) -> None:
    def conflict(_: Document) -> Document:
        raise Aborted(Reason.CONCURRENT_CHANGE, "busy")

    session = Session(transport=httpx.MockTransport(api.handle))
    assert progress_look(session, {}, lambda _: True)() == ""
    api.answers["ListOperations"] = conflict
    assert progress_look(session, {}, lambda _: True)() == ""


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"state": "QUEUED", "waitingFor": "vm.stop (operation x) on the same VM"}, "waits for vm.stop (operation x)"),
        ({"state": "QUEUED"}, "waits for its turn"),
        ({"state": "UNDOING", "steps": []}, "50 %, taking back what was done"),
        ({"waitingFor": "host-1"}, "50 %, start, waits for host-1"),
    ],
)
def test_progress_text_says_what_is_waited_for(fields: Document, text: str) -> None:
    assert progress_text(operation(70, **fields)).startswith(text)


def test_completion_of_an_operation_offers_the_newest_ids(api: FakeApi) -> None:
    _have(api, operation(70), operation(71))
    completer = ShellComplete(cli, {"obj": Session(transport=httpx.MockTransport(api.handle))}, "limiquantix", "_X")
    assert [item.value for item in completer.get_completions(["operation", "show"], "0000")] == [
        uuid_of(70),
        uuid_of(71),
    ]
    assert [item.value for item in completer.get_completions(["operation", "list", "--kind"], "vm.sto")] == ["vm.stop"]
    assert "operation" in [item.value for item in completer.get_completions([], "o")]
