from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import pytest
import yaml

from limiquantix.errors import (
    ApiError,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    NotFound,
    Reason,
    ResourceExhausted,
    Unavailable,
)
from tests.support.fake_http_api import NODE_ID, PROJECT_ID, Document, FakeApi, Run, uuid_of, vm


def _refusing(error: ApiError) -> Any:
    def answer(_: Document) -> Document:
        raise error

    return answer


def test_list_several_pages_prints_a_row_for_every_vm(api: FakeApi, run: Run) -> None:
    api.have_vms(*(vm(f"web-{n}", n) for n in range(5)))
    lines = run("vm", "list").stdout.splitlines()
    assert lines[0].split() == ["NAME", "STATE", "NODE", "VCPUS", "MEMORY", "ADDRESSES", "AGE"]
    assert [line.split()[:6] for line in lines[1:]] == [
        [f"web-{n}", "STOPPED", "host-1", "2", "2", "GiB"] for n in range(5)
    ]


def test_list_limit_reached_asks_for_no_further_page(api: FakeApi, run: Run) -> None:
    api.have_vms(*(vm(f"web-{n}", n) for n in range(5)))
    assert len(run("vm", "list", "--limit", "2").stdout.splitlines()) == 3
    assert [method for method, _ in api.requests].count("ListVMs") == 1


def test_list_filters_are_sent_in_the_apis_words(api: FakeApi, run: Run) -> None:
    api.have_vms()
    arguments = ["--project", PROJECT_ID, "--label", "a=b=c", "--state", "running", "--state", "paused"]
    assert run("vm", "list", *arguments, "--node", "host-1").exit_code == 0
    request = api.request("ListVMs")
    assert request["projectId"] == PROJECT_ID
    assert request["labels"] == {"a": "b=c"}
    assert request["states"] == ["RUNNING", "PAUSED"]
    assert request["nodeId"] == NODE_ID


@pytest.mark.parametrize("where", ["before", "after"])
def test_list_json_is_the_apis_own_document_of_all_pages(api: FakeApi, run: Run, where: str) -> None:
    vms = [vm(f"web-{n}", n, labels={"x": "\x9b2J"}) for n in range(3)]
    api.have_vms(*vms)
    option = ["--output", "json"]
    result = run(*option, "vm", "list") if where == "before" else run("vm", "list", *option)
    assert json.loads(result.stdout) == {"vms": vms, "totalCount": 3}
    assert "\x9b" not in result.stdout


def test_show_yaml_is_the_apis_own_document(api: FakeApi, run: Run) -> None:
    api.have_vms(vm("web", 7, description="a: [b]\n\x1b"))
    result = run("vm", "show", "web", "-o", "yaml")
    assert yaml.safe_load(result.stdout) == vm("web", 7, description="a: [b]\n\x1b")
    assert "\x1b" not in result.stdout


def test_show_text_of_others_can_neither_break_a_line_nor_the_terminal(api: FakeApi, run: Run) -> None:
    api.have_vms(vm("web", 7, description="x\nState:  RUNNING\x1b[2J", labels={"k": "[red]v[/red]"}))
    result = run("vm", "show", "web")
    assert "Description:  x\\nState:  RUNNING\\x1b[2J" in result.stdout.replace("   ", " ").replace("  ", "  ")
    assert "k=[red]v[/red]" in result.stdout
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize(
    ("command", "method"),
    [("start", "StartVM"), ("pause", "PauseVM"), ("resume", "ResumeVM"), ("reboot", "RebootVM"), ("stop", "StopVM")],
)
def test_power_command_of_a_name_on_a_later_page_acts_on_its_id(
    api: FakeApi, run: Run, command: str, method: str
) -> None:
    api.have_vms(*(vm(f"web-{n}", n) for n in range(5)))
    api.answers[method] = lambda request: vm("web-4", 4, state="RUNNING")
    result = run("vm", command, "web-4")
    assert result.stdout == f"VM web-4 ({uuid_of(4)}) is RUNNING on host-1\n"
    assert api.request(method)["id"] == uuid_of(4)


def test_power_command_of_an_id_looks_no_name_up(api: FakeApi, run: Run) -> None:
    api.answers["StartVM"] = lambda request: vm("web", 4)
    assert run("vm", "start", uuid_of(4).upper(), "-o", "json").exit_code == 0
    assert [method for method, _ in api.requests] == ["StartVM"]


def test_stop_options_are_sent(api: FakeApi, run: Run) -> None:
    api.answers["StopVM"] = lambda request: vm("web", 4)
    run("vm", "stop", uuid_of(4), "--force", "--timeout", "9", "-o", "json")
    assert api.request("StopVM") == {"id": uuid_of(4), "force": True, "timeoutSec": 9}


def test_name_in_two_projects_is_refused_with_both(api: FakeApi, run: Run) -> None:
    api.have_vms(vm("web", 1, projectId="p1"), vm("db", 2), vm("web", 3, projectId="p2"))
    result = run("vm", "start", "web")
    assert result.exit_code == 1
    assert f"VM {uuid_of(1)} of project p1" in result.stderr
    assert f"VM {uuid_of(3)} of project p2" in result.stderr
    assert "--project" in result.stderr


def test_name_that_nobody_has_is_refused_with_a_hint(api: FakeApi, run: Run) -> None:
    api.have_vms(vm("web"))
    result = run("vm", "start", "we\x1bb")
    assert result.exit_code == 1
    assert "there is no VM named" in result.stderr
    assert "vm list" in result.stderr
    assert "\x1b" not in result.stderr


def test_delete_by_a_script_does_not_ask(api: FakeApi, run: Run) -> None:
    api.have_vms(vm("web", 1))
    api.answers["DeleteVM"] = lambda request: {}
    result = run("vm", "delete", "web", "--force", "--delete-volumes")
    assert (result.exit_code, result.stdout) == (0, "VM web is deleted\n")
    assert api.request("DeleteVM") == {
        "id": uuid_of(1),
        "force": True,
        "deleteVolumes": True,
        "removeFromInventoryOnly": False,
    }


def test_faulty_fields_are_shown_one_a_line_with_their_options(api: FakeApi, run: Run) -> None:
    faults = [
        FieldViolation("spec.memory.size_mib", "must be at least 1"),
        FieldViolation("spec.disks[0].bus", "no \x1b[31m such bus"),
        FieldViolation("spec.tpm.version", "unknown"),
    ]
    api.answers["CreateVM"] = _refusing(InvalidArgument.from_violations(faults))
    result = run("vm", "create", "web")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "error: the request has 3 faults",
        "  spec.memory.size_mib (--memory): must be at least 1",
        "  spec.disks[0].bus (--disk): no \\x1b[31m such bus",
        "  spec.tpm.version: unknown",
    ]


def test_no_room_is_explained_node_by_node(api: FakeApi, run: Run) -> None:
    reasons = {"node.b": "memory: full", "node.a": "cpu: full", "vm_id": "x"}
    api.answers["CreateVM"] = _refusing(ResourceExhausted(Reason.NO_NODE_FITS, "no node fits", metadata=reasons))
    result = run("vm", "create", "web")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "error: no node fits",
        "  node a: cpu: full",
        "  node b: memory: full",
        "hint: 'limiquantix node list' shows what each node has free",
    ]


def test_server_that_says_when_to_retry_is_quoted(api: FakeApi, run: Run) -> None:
    api.answers["ListVMs"] = _refusing(Unavailable(Reason.STATE_UNAVAILABLE, "no database", retry_after_s=2))
    result = run("vm", "list")
    assert result.exit_code == 1
    assert result.stderr == "error: no database\nhint: repeat the command in 2 s\n"


def test_guest_that_does_not_stop_gets_the_advice_to_force(api: FakeApi, run: Run) -> None:
    api.answers["StopVM"] = _refusing(FailedPrecondition(Reason.GUEST_DID_NOT_STOP, "still runs"))
    result = run("vm", "stop", uuid_of(1))
    assert result.exit_code == 1
    assert "--force" in result.stderr


def _raising(error: Exception) -> Any:
    def answer(_: Document) -> Document:
        raise error

    return answer


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (httpx.ConnectError("[Errno 111] Connection refused"), "127.0.0.1:8080: Connection refused"),
        (httpx.ReadTimeout("slow"), "did not answer within"),
        (httpx.RemoteProtocolError("gone"), "may have happened"),
    ],
)
def test_no_answer_ends_with_status_3_and_advice(api: FakeApi, run: Run, error: Exception, words: str) -> None:
    api.answers["ListVMs"] = _raising(error)
    result = run("vm", "list")
    assert result.exit_code == 3
    assert words in result.stderr
    assert "--server" in result.stderr


def test_answer_of_another_program_ends_with_status_3(api: FakeApi, run: Run) -> None:
    result = run("vm", "list")
    assert result.exit_code == 3
    assert "is not a control plane of this version: HTTP 404" in result.stderr


def test_server_that_repeats_a_page_for_ever_is_left(api: FakeApi, run: Run) -> None:
    api.answers["ListVMs"] = lambda _: {"vms": [vm("web")], "nextPageToken": "same"}
    result = run("vm", "list", "-o", "json")
    assert result.exit_code == 3
    assert "repeats the same page" in result.stderr


def test_fields_the_server_ignored_are_named(api: FakeApi, run: Run) -> None:
    api.ignored_fields = "colour,spec.cpu.size"
    api.answers["CreateVM"] = lambda _: vm("web")
    result = run("vm", "create", "web", "-o", "json")
    assert result.exit_code == 0
    assert result.stderr == "warning: the server does not know and left aside: colour, spec.cpu.size\n"


def test_console_shows_address_and_password(api: FakeApi, run: Run) -> None:
    api.answers["GetConsole"] = lambda _: {
        "consoleType": "CONSOLE_TYPE_VNC",
        "host": "127.0.0.1",
        "port": 5901,
        "password": "s3cret",
    }
    output = run("vm", "console", uuid_of(1)).stdout
    assert "127.0.0.1:5901" in output
    assert "s3cret" in output


def _log_of(data: bytes, piece_bytes: int) -> Any:
    def answer(request: Document) -> Document:
        begin = int(request["offset"])
        piece = data[begin : begin + piece_bytes]
        return {
            "data": base64.b64encode(piece).decode(),
            "nextOffset": str(begin + len(piece)),
            "sizeBytes": str(len(data)),
        }

    return answer


def test_console_log_in_a_pipe_is_byte_for_byte_what_the_guest_wrote(api: FakeApi, run: Run) -> None:
    data = bytes(range(256)) * 3
    api.answers["GetConsoleLog"] = _log_of(data, 100)
    assert run("vm", "console-log", uuid_of(1)).stdout_bytes == data


def test_console_log_follow_goes_on_until_the_vm_is_gone(api: FakeApi, run: Run) -> None:
    logs = iter([b"one ", b"one two ", b"new"])
    current = next(logs)

    def answer(request: Document) -> Document:
        nonlocal current
        if int(request["offset"]) == len(current):
            try:
                current = next(logs)
            except StopIteration:
                raise NotFound(Reason.VM_NOT_FOUND, "VM is gone") from None
        document: Document = _log_of(current, 100)(request)
        return document

    api.answers["GetConsoleLog"] = answer
    result = run("vm", "console-log", uuid_of(1), "--follow")
    assert result.stdout == "one two new"
    assert result.exit_code == 1
    assert "VM is gone" in result.stderr
