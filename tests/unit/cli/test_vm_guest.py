"""`limiquantix vm guest`, against a control plane in a dictionary."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from limiquantix.errors import FailedPrecondition, Reason
from tests.support.fake_http_api import Document, FakeApi, Run, uuid_of, vm

MEBIBYTE = 2**20


@pytest.fixture(autouse=True)
def web(api: FakeApi) -> None:
    api.have_vms(vm("web", state="RUNNING"))


def answering(api: FakeApi, method: str, **answer: Any) -> None:
    api.answers[method] = lambda _: answer


# -- commands


def test_exec_passes_command_outputs_and_exit_status_through(api: FakeApi, run: Run) -> None:
    answering(api, "ExecuteScript", exitCode=7, stdout="out\n", stderr="err\n")
    options = ["--timeout", "9", "--env", "A=b=c", "--workdir", "/srv"]
    result = run("vm", "guest", "exec", *options, "web", "--", "sh", "-c", "exit 7", "--timeout")
    assert (result.exit_code, result.stdout, result.stderr) == (7, "out\n", "err\n")
    assert api.request("ExecuteScript") == {
        "vmId": uuid_of(10),
        "command": "sh",
        "args": ["-c", "exit 7", "--timeout"],
        "timeoutSeconds": 9,
        "waitForExit": True,
        "workingDirectory": "/srv",
        "environment": {"A": "b=c"},
        "input": "",
    }


def test_exec_gives_standard_input_only_if_asked_to(api: FakeApi, run: Run) -> None:
    answering(api, "ExecuteScript", success=True)
    assert run("vm", "guest", "exec", "-i", "web", "cat", input=b"\x00data").exit_code == 0
    assert base64.b64decode(api.request("ExecuteScript")["input"]) == b"\x00data"


def test_exec_with_too_much_input_is_refused_before_it_is_sent(api: FakeApi, run: Run) -> None:
    result = run("vm", "guest", "exec", "-i", "web", "cat", input=bytes(MEBIBYTE + 1))
    assert result.exit_code == 1
    assert "1 MiB" in result.stderr
    assert api.requests_of("ExecuteScript") == []


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ({"timedOut": True, "exitCode": -1, "error": "it did not end in time and was killed"}, 124),
        ({"exitCode": -1, "error": "the guest agent refused: no"}, 126),
        ({"exitCode": 256}, 1),
        ({"exitCode": 137}, 137),
        ({"success": True}, 0),
    ],
)
def test_exec_status_tells_why_there_is_no_exit_code(api: FakeApi, run: Run, answer: Document, status: int) -> None:
    answering(api, "ExecuteScript", **answer)
    result = run("vm", "guest", "exec", "web", "true")
    assert result.exit_code == status
    assert str(answer.get("error", "")) in result.stderr


def test_exec_output_that_was_cut_is_noted(api: FakeApi, run: Run) -> None:
    answering(api, "ExecuteScript", success=True, stdout="x", stdoutCut=True)
    assert "stdout was longer" in run("vm", "guest", "exec", "web", "yes").stderr


def test_exec_for_programs_prints_the_document_and_keeps_the_status(api: FakeApi, run: Run) -> None:
    answering(api, "ExecuteScript", exitCode=3, stdout="out")
    result = run("vm", "guest", "exec", "-o", "json", "web", "x")
    assert (result.exit_code, json.loads(result.stdout)["stdout"]) == (3, "out")


def test_exec_without_an_agent_says_so(api: FakeApi, run: Run) -> None:
    def refuse(_: Document) -> Document:
        raise FailedPrecondition(Reason.GUEST_AGENT_ABSENT, "no guest agent is connected")

    api.answers["ExecuteScript"] = refuse
    result = run("vm", "guest", "exec", "web", "true")
    assert result.exit_code == 1
    assert "no guest agent" in result.stderr


# -- files


def test_cat_prints_the_bytes_as_they_are(api: FakeApi, run: Run) -> None:
    data = bytes(range(256))
    answering(api, "ReadGuestFile", success=True, data=base64.b64encode(data).decode(), totalSize=str(2 * MEBIBYTE))
    result = run("vm", "guest", "cat", "web", "/etc/x")
    assert result.stdout_bytes == data
    assert "2 MiB" in result.stderr
    assert api.request("ReadGuestFile") == {"vmId": uuid_of(10), "path": "/etc/x"}


def test_cat_of_a_file_that_cannot_be_read_fails_with_the_guests_words(api: FakeApi, run: Run) -> None:
    answering(api, "ReadGuestFile", error="No such file\x1b[2J")
    result = run("vm", "guest", "cat", "web", "/etc/x")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "No such file" in result.stderr
    assert "\x1b" not in result.stderr


@pytest.mark.parametrize("source", ["file", "-"])
def test_put_sends_a_file_or_standard_input(api: FakeApi, run: Run, tmp_path: Path, source: str) -> None:
    answering(api, "WriteGuestFile", success=True, bytesWritten="3")
    (tmp_path / "a").write_bytes(b"\x00ab")
    name = str(tmp_path / "a") if source == "file" else "-"
    result = run("vm", "guest", "put", "web", name, "/srv/a", "--mode", "0600", "--parents", input=b"\x00ab")
    assert result.exit_code == 0
    assert api.request("WriteGuestFile") == {
        "vmId": uuid_of(10),
        "path": "/srv/a",
        "data": base64.b64encode(b"\x00ab").decode(),
        "mode": 0o600,
        "createParents": True,
    }


@pytest.mark.parametrize("mode", ["8", "0", "10000", "rw"])
def test_put_with_a_mode_that_is_none_is_a_faulty_command_line(run: Run, tmp_path: Path, mode: str) -> None:
    (tmp_path / "a").touch()
    assert run("vm", "guest", "put", "web", str(tmp_path / "a"), "/a", "--mode", mode).exit_code == 2


def test_put_of_a_file_that_is_not_there_or_too_large_fails(api: FakeApi, run: Run, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(MEBIBYTE + 1))
    assert "larger than 1 MiB" in run("vm", "guest", "put", "web", str(tmp_path / "large"), "/a").stderr
    assert "cannot be read" in run("vm", "guest", "put", "web", str(tmp_path / "none"), "/a").stderr
    assert api.requests_of("WriteGuestFile") == []


# -- looking


def test_ping_tells_the_version_or_fails_with_the_reason(api: FakeApi, run: Run) -> None:
    answering(api, "PingAgent", connected=True, version="7.2", uptimeSeconds="90")
    assert "agent 7.2 answers" in run("vm", "guest", "ping", "web").stdout
    answering(api, "PingAgent", error="no guest agent is connected")
    result = run("vm", "guest", "ping", "web")
    assert (result.exit_code, "no guest agent" in result.stderr) == (1, True)


INFO: Document = {
    "info": {"osName": "Debian", "hostname": "web\x1b[2J", "agentVersion": "7.2", "uptimeSeconds": "60"},
    "interfaces": [{"name": "eth0", "macAddress": "52:54:00:00:00:01", "ipAddresses": ["10.0.0.1"]}],
    "fileSystems": [{"mountPoint": "/", "type": "ext4", "totalBytes": "1073741824", "usedBytes": "536870912"}],
    "users": [{"name": "ann", "loggedInAt": "2024-01-01T00:00:00Z"}, {"name": "bob"}],
}


def test_info_users_and_filesystems_are_for_people_and_programs(api: FakeApi, run: Run) -> None:
    answering(api, "GetGuestInfo", **INFO)
    shown = run("vm", "guest", "info", "web").stdout
    assert "10.0.0.1 (52:54:00:00:00:01)" in shown
    assert "\x1b" not in shown
    assert [line.split()[0] for line in run("vm", "guest", "users", "web").stdout.splitlines()] == [
        "USER",
        "ann",
        "bob",
    ]
    assert run("vm", "guest", "filesystems", "web").stdout.splitlines()[1].split()[-2:] == ["50", "%"]
    assert json.loads(run("vm", "guest", "users", "web", "-o", "json").stdout) == {"users": INFO["users"]}
    assert json.loads(run("vm", "guest", "info", "web", "-o", "json").stdout) == INFO


# -- acting


def test_shutdown_says_what_the_guest_does(api: FakeApi, run: Run) -> None:
    answering(api, "GuestShutdown", accepted=True)
    result = run("vm", "guest", "shutdown", "web", "--delay", "5", "--message", "bye")
    assert "shuts down in 5 s" in result.stdout
    assert api.request("GuestShutdown") == {
        "vmId": uuid_of(10),
        "reboot": False,
        "delaySeconds": 5,
        "message": "bye",
    }
    answering(api, "GuestShutdown", error="the guest agent refused: disabled")
    result = run("vm", "guest", "shutdown", "web", "--reboot")
    assert (result.exit_code, "disabled" in result.stderr) == (1, True)


@pytest.mark.parametrize("how", ["stdin", "prompt"])
def test_password_is_read_and_never_shown(api: FakeApi, run: Run, how: str) -> None:
    answering(api, "SetGuestPassword")
    arguments, typed = (["--stdin"], "s3cret\n") if how == "stdin" else ([], "s3cret\ns3cret\n")
    result = run("vm", "guest", "set-password", "web", "--user", "ann", *arguments, input=typed)
    assert result.exit_code == 0
    assert "s3cret" not in result.output
    assert api.request("SetGuestPassword") == {"vmId": uuid_of(10), "user": "ann", "password": "s3cret"}


def test_password_that_is_empty_is_not_sent(api: FakeApi, run: Run) -> None:
    assert run("vm", "guest", "set-password", "web", "--stdin", input="\n").exit_code == 1
    assert api.requests_of("SetGuestPassword") == []


def test_time_freeze_and_thaw_say_what_was_done(api: FakeApi, run: Run) -> None:
    answering(api, "SyncGuestTime", aheadSeconds=-2.5)
    answering(api, "FreezeGuest", fileSystemCount=2)
    answering(api, "ThawGuest")
    assert "2.5 s behind" in run("vm", "guest", "sync-time", "web").stdout
    assert "2 file systems" in run("vm", "guest", "freeze", "web", "--for", "20").stdout
    assert api.request("FreezeGuest")["thawAfterSeconds"] == 20
    assert "nothing was frozen" in run("vm", "guest", "thaw", "web").stdout
