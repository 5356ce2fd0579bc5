"""The installed command against a real control plane and node daemon, in pipes and at a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.support.processes import ControlPlaneProcess, start_control_plane, start_mock_node

COMMAND = Path(sys.executable).with_name("limiquantix")
DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class Command:
    """The command with its server in the environment."""

    server: str

    def __call__(self, *arguments: str, status: int = 0, input: str = "") -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [COMMAND, *arguments],
            env=self.environment(),
            input=input,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    def at_terminal(self, *arguments: str, type_after: str, keys: str) -> tuple[int, str]:
        """Run at a terminal, press keys once the output holds `type_after`; returns exit status and all output."""
        pid, terminal = pty.fork()
        if pid == 0:
            os.execve(COMMAND, [str(COMMAND), *arguments], self.environment() | {"TERM": "xterm", "COLUMNS": "120"})  # noqa: S606
        output = ""
        deadline = time.monotonic() + DEADLINE_S
        try:
            while select.select([terminal], [], [], max(deadline - time.monotonic(), 0))[0]:
                try:
                    piece = os.read(terminal, 65536).decode()
                except OSError:  # EIO: the other side is closed
                    break
                output += piece
                if keys and type_after in output:
                    os.write(terminal, keys.encode())
                    keys = ""
            else:
                os.kill(pid, signal.SIGKILL)
        finally:
            os.close(terminal)
            _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status), output

    def environment(self) -> dict[str, str]:
        ours = {name: value for name, value in os.environ.items() if not name.startswith("LIMIQUANTIX_")}
        return ours | {"LIMIQUANTIX_SERVER": self.server}


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlaneProcess]:
    directory = tmp_path_factory.mktemp("cli")
    with (
        start_control_plane(directory / "control-plane") as plane,
        start_mock_node(directory / "node", plane, hostname="host-1"),
    ):
        yield plane


@pytest.fixture
def limiquantix(plane: ControlPlaneProcess) -> Iterator[Command]:
    """The command, on a server without VMs."""
    yield Command(plane.http_url)
    for vm in plane.call("VMService", "ListVMs", {"pageSize": 1000}).get("vms", ()):
        plane.call("VMService", "DeleteVM", {"id": vm["id"], "force": True})


def _wait_for_console(limiquantix: Command, name: str, words: str) -> str:
    deadline = time.monotonic() + DEADLINE_S
    while words not in (text := limiquantix("vm", "console-log", name).stdout):
        assert time.monotonic() < deadline, text
    return text


def test_vm_life_from_create_to_delete_works_by_name(limiquantix: Command) -> None:
    size = ("--cpus", "2", "--memory", "1.5GiB", "--disk", "2GiB,bus=virtio-scsi", "--nic", "bridge=virbr0")
    created = limiquantix("vm", "create", "web-1", *size, "--label", "tier=web", "--node", "host-1")
    assert created.stdout.startswith("VM web-1 (")
    assert created.stdout.endswith(") is STOPPED on host-1\n")
    for command, state in (
        ("start", "RUNNING"),
        ("pause", "PAUSED"),
        ("resume", "RUNNING"),
        ("reboot", "RUNNING"),
    ):
        assert f"is {state} on host-1" in limiquantix("vm", command, "web-1").stdout
    assert "LIMIQUANTIX-GUEST READY" in _wait_for_console(limiquantix, "web-1", "READY")
    assert "Protocol:" in limiquantix("vm", "console", "web-1").stdout
    assert "is STOPPED" in limiquantix("vm", "stop", "web-1", "--force").stdout
    limiquantix("vm", "update", "web-1", "--memory", "1GiB", "--label", "a=b", "--remove-label", "tier")
    shown = json.loads(limiquantix("vm", "show", "web-1", "-o", "json").stdout)
    assert shown["spec"]["memory"]["sizeMib"] == "1024"
    assert shown["labels"] == {"a": "b"}
    assert shown["spec"]["disks"][0]["bus"] == "VIRTIO_SCSI"
    assert limiquantix("vm", "delete", shown["id"]).stdout == f"VM {shown['id']} is deleted\n"
    assert len(limiquantix("vm", "list").stdout.splitlines()) == 1


def test_vm_list_in_a_pipe_is_plain_and_filtered(limiquantix: Command) -> None:
    limiquantix("vm", "create", "one", "--cpus", "1", "--memory", "128MiB", "--label", "n=1", "--start")
    limiquantix("vm", "create", "two words", "--cpus", "1", "--memory", "128MiB", "--label", "n=2")
    names = [line.split("  ")[0] for line in limiquantix("vm", "list").stdout.splitlines()]
    assert names == ["NAME", "one", "two words"]
    assert "two" not in limiquantix("vm", "list", "--state", "running", "--node", "host-1").stdout
    assert "one" not in limiquantix("vm", "list", "--label", "n=2", "--wide").stdout
    assert "\x1b" not in limiquantix("vm", "list").stdout
    listed = yaml.safe_load(limiquantix("vm", "list", "-o", "yaml").stdout)
    assert [vm["name"] for vm in listed["vms"]] == ["one", "two words"]


def test_vm_create_from_what_a_file_says_warns_of_what_nobody_knows(limiquantix: Command) -> None:
    document = "name: from-file\nspec:\n  cpu: {cores: 1}\n  memory: {size_mib: 128}\n  colour: red\n"
    done = limiquantix("vm", "create", "--from-file", "-", "--start", input=document)
    assert "VM from-file" in done.stdout
    assert done.stderr == "warning: the server does not know and left aside: spec.colour\n"


def test_refusals_end_with_status_1_and_say_why(limiquantix: Command) -> None:
    refused = limiquantix("vm", "create", "a<b", "--memory", "64MiB", "--disk", "1GiB,bus=floppy", status=1)
    assert "spec.disks[0].bus (--disk): 'FLOPPY' is not one of VIRTIO_BLK" in refused.stderr
    assert "name (NAME): must not contain" in refused.stderr
    refused = limiquantix("vm", "create", "big", "--cpus", "1000", "--memory", "1GiB", status=1)
    assert "  node host-1: cpu: needs 1000 vCPUs" in refused.stderr
    limiquantix("vm", "create", "web", "--cpus", "1", "--memory", "128MiB")
    assert "already has a VM" in limiquantix("vm", "create", "web", "--cpus", "1", "--memory", "1GiB", status=1).stderr
    assert "while it is STOPPED" in limiquantix("vm", "pause", "web", status=1).stderr
    assert "there is no VM named 'nope'" in limiquantix("vm", "start", "nope", status=1).stderr


def test_name_of_two_projects_needs_the_project(limiquantix: Command) -> None:
    project = "00000000-0000-4000-8000-000000000002"
    limiquantix("vm", "create", "twin", "--cpus", "1", "--memory", "128MiB")
    limiquantix("vm", "create", "twin", "--cpus", "1", "--memory", "128MiB", "--project", project)
    assert f"of project {project}" in limiquantix("vm", "start", "twin", status=1).stderr
    assert "is RUNNING" in limiquantix("vm", "start", "twin", "--project", project).stdout


def test_server_that_is_not_there_ends_with_status_3() -> None:
    done = Command("http://127.0.0.1:1")("vm", "list", status=3)
    assert "cannot reach the control plane at http://127.0.0.1:1: Connection refused" in done.stderr
    assert "limiquantix dev" in done.stderr


def test_wrong_command_line_ends_with_status_2(limiquantix: Command) -> None:
    assert "write GiB" in limiquantix("vm", "create", "web", "--memory", "1GB", status=2).stderr


def test_node_list_and_show_tell_what_is_promised(limiquantix: Command) -> None:
    limiquantix("vm", "create", "web", "--cpus", "3", "--memory", "1GiB")
    (line,) = [line for line in limiquantix("node", "list").stdout.splitlines() if line.startswith("host-1")]
    assert "READY" in line
    assert "3 of 30" in line
    assert "1 GiB of" in line
    assert "mock" in limiquantix("node", "show", "host-1").stdout
    assert json.loads(limiquantix("node", "show", "host-1", "-o", "json").stdout)["hostname"] == "host-1"


def test_version_and_completion_answer(limiquantix: Command) -> None:
    lines = limiquantix("version").stdout.splitlines()
    assert len({line.split()[-1] for line in lines}) == 1
    script = limiquantix("completion", "bash").stdout
    subprocess.run(["/bin/bash", "-n"], input=script, text=True, check=True)


def test_vm_delete_at_a_terminal_asks_first(limiquantix: Command) -> None:
    limiquantix("vm", "create", "precious", "--cpus", "1", "--memory", "128MiB", "--disk", "1GiB")
    status, output = limiquantix.at_terminal("vm", "delete", "precious", type_after="[y/N]", keys="n\n")
    assert status == 1
    assert "VM precious is STOPPED; delete it with its 1 disk(s)?" in output
    assert "precious" in limiquantix("vm", "list").stdout
    status, output = limiquantix.at_terminal("vm", "delete", "precious", type_after="[y/N]", keys="y\n")
    assert (status, output.splitlines()[-1]) == (0, "VM precious is deleted")
    assert "precious" not in limiquantix("vm", "list").stdout


def test_vm_list_at_a_terminal_has_colours_and_no_markup(limiquantix: Command) -> None:
    limiquantix("vm", "create", "[red]web[~red]", "--cpus", "1", "--memory", "128MiB", "--start")
    status, output = limiquantix.at_terminal("vm", "list", type_after="", keys="")
    assert status == 0
    assert "[red]web[~red]" in output
    assert "\x1b[32mRUNNING" in output


def test_console_log_follow_at_a_terminal_ends_with_ctrl_c(limiquantix: Command) -> None:
    limiquantix("vm", "create", "talker", "--cpus", "1", "--memory", "128MiB", "--start")
    status, output = limiquantix.at_terminal(
        "vm", "console-log", "--follow", "talker", type_after="LIMIQUANTIX-GUEST READY", keys="\x03"
    )
    assert status == 0
    assert "Linux version mock" in output
