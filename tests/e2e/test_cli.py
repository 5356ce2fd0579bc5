"""The installed command against a real control plane and node daemon, in pipes and at a terminal."""

from __future__ import annotations

import json
import os
import pty
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.support.processes import ControlPlaneProcess, MockNodeProcess, start_control_plane, start_mock_node
from tests.support.switchboard import switchboard

COMMAND = Path(sys.executable).with_name("limiquantix")
DEADLINE_S = 60.0
PRESSED_AGAIN_S = 10.0
SHUTDOWN_S = 9


class Lines:
    """The output of a process, line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self._stdout = process.stdout
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def until(self, *words: str) -> str:
        """Return the next line with all these words, and pass over those before it."""
        deadline = time.monotonic() + DEADLINE_S
        passed: list[str] = []
        while True:
            try:
                line = self._lines.get(timeout=max(deadline - time.monotonic(), 0))
            except queue.Empty:
                pytest.fail(f"no line with {words} but {passed}")
            if all(word in line for word in words):
                return line
            passed.append(line)

    def _read(self) -> None:
        for line in self._stdout:
            self._lines.put(line)


def press_ctrl_c(process: subprocess.Popen[str]) -> None:
    """Press it, and again as a person would: Python drops one that comes while it frees something."""
    until_s = time.monotonic() + DEADLINE_S
    while process.poll() is None and time.monotonic() < until_s:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(PRESSED_AGAIN_S)


@dataclass(frozen=True, slots=True)
class Command:
    """The command, which calls a control plane as its administrator; `server` is the URL if it is not its own."""

    plane: ControlPlaneProcess
    server: str = ""

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

    @contextmanager
    def following(self, *arguments: str, ends_by_itself: bool = False) -> Iterator[Lines]:
        """Run what goes on until it is interrupted, and read its lines as they come; it must end with status 0."""
        process = subprocess.Popen(
            [COMMAND, *arguments], env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            yield Lines(process)
            if not ends_by_itself:
                press_ctrl_c(process)
            _, errors = process.communicate(timeout=DEADLINE_S)
            assert process.returncode == 0, errors
            assert "Traceback" not in errors
        finally:
            process.kill()
            process.wait()

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
        return self.plane.environment(self.server)


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
    yield Command(plane)
    for vm in plane.call("VMService", "ListVMs", {"pageSize": 1000}).get("vms", ()):
        plane.call("VMService", "DeleteVM", {"id": vm["id"], "force": True})


@pytest.fixture(scope="module")
def slow_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ControlPlaneProcess, MockNodeProcess]]:
    """A control plane with a host whose guests take their time to shut down."""
    directory = tmp_path_factory.mktemp("slow-cli")
    with (
        start_control_plane(directory / "control-plane") as plane,
        start_mock_node(directory / "node", plane, hostname="slow-1", shutdown_secs=SHUTDOWN_S) as node,
    ):
        yield plane, node


@pytest.fixture
def slow_host(slow_site: tuple[ControlPlaneProcess, MockNodeProcess]) -> MockNodeProcess:
    """The host of `slow_limiquantix`."""
    return slow_site[1]


@pytest.fixture
def slow_limiquantix(slow_site: tuple[ControlPlaneProcess, MockNodeProcess]) -> Iterator[Command]:
    """The command, on a server with one running VM, "web"."""
    command = Command(slow_site[0])
    command("vm", "create", "web", "--cpus", "1", "--memory", "128MiB", "--start")
    yield command
    command("vm", "delete", "web", "--force")


def _until(find: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not find():
        assert time.monotonic() < deadline
        time.sleep(0.05)


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
    assert "  node host-1: max vCPUs: runs VMs of at most" in refused.stderr
    assert "cpu: needs 1000 vCPUs" in refused.stderr
    limiquantix("vm", "create", "web", "--cpus", "1", "--memory", "128MiB")
    assert "already has a VM" in limiquantix("vm", "create", "web", "--cpus", "1", "--memory", "1GiB", status=1).stderr
    assert "while it is STOPPED" in limiquantix("vm", "pause", "web", status=1).stderr
    assert "there is no VM named 'nope'" in limiquantix("vm", "start", "nope", status=1).stderr


def test_name_of_two_projects_needs_the_project(limiquantix: Command) -> None:
    project = json.loads(limiquantix("--output", "json", "project", "create", "twins").stdout)["id"]
    limiquantix("vm", "create", "twin", "--cpus", "1", "--memory", "128MiB")
    limiquantix("vm", "create", "twin", "--cpus", "1", "--memory", "128MiB", "--project", project)
    assert f"of project {project}" in limiquantix("vm", "start", "twin", status=1).stderr
    assert "is RUNNING" in limiquantix("vm", "start", "twin", "--project", project).stdout


def test_server_that_is_not_there_ends_with_status_3(plane: ControlPlaneProcess) -> None:
    done = Command(plane, "https://127.0.0.1:1")("vm", "list", status=3)
    assert "cannot reach the control plane at https://127.0.0.1:1: Connection refused" in done.stderr
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


def test_serial_console_is_attached_to_a_terminal_until_the_escape_key(limiquantix: Command) -> None:
    limiquantix("vm", "create", "echo", "--cpus", "1", "--memory", "128MiB", "--start")
    status, output = limiquantix.at_terminal(
        "vm", "console", "--attach", "echo", type_after="Ctrl-] leaves", keys="hello\x1d"
    )
    assert status == 0
    assert "left the console" in output


def test_serial_console_that_somebody_is_at_says_so_and_is_free_as_soon_as_they_leave(
    plane: ControlPlaneProcess, limiquantix: Command
) -> None:
    limiquantix("vm", "create", "busy", "--cpus", "1", "--memory", "128MiB", "--start")
    (vm,) = plane.call("VMService", "ListVMs", {})["vms"]
    entry = plane.call("VMService", "GetConsole", {"vmId": vm["id"], "consoleType": "CONSOLE_TYPE_SERIAL"})
    with socket.create_connection((entry["host"], entry["port"]), DEADLINE_S) as line:
        line.sendall(f"{entry['password']}\n".encode())
        assert line.recv(100).startswith(b"OK\n")
        status, output = limiquantix.at_terminal("vm", "console", "--attach", "busy", type_after="", keys="")
        assert status == 1
        assert f"the serial console of VM {vm['id']} is in use" in output.replace("\r\n", " ")
    status, output = limiquantix.at_terminal(
        "vm", "console", "--attach", "busy", type_after="Ctrl-] leaves", keys="\x1d"
    )
    assert (status, "left the console" in output) == (0, True)


def test_what_vms_and_nodes_use_is_shown(limiquantix: Command) -> None:
    limiquantix("vm", "create", "meter", "--cpus", "1", "--memory", "128MiB", "--start")
    assert "of 128 MiB" in limiquantix("vm", "metrics", "meter").stdout
    assert "meter" in limiquantix("vm", "top").stdout
    assert "logical processors" in limiquantix("node", "metrics", "host-1").stdout


def _begin(limiquantix: Command, *arguments: str) -> str:
    """Ask for a change without waiting; returns the operation's id."""
    operation = json.loads(limiquantix("vm", *arguments, "--no-wait", "-o", "json").stdout)
    return str(operation["id"])


@contextmanager
def _standing_still(node: MockNodeProcess) -> Iterator[None]:
    """Have a host's daemon do nothing, so that what it was told is under way for as long as it takes to look at it."""
    node.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        node.process.send_signal(signal.SIGCONT)


def test_operations_of_a_vm_are_listed_waited_for_and_cancelled(
    slow_limiquantix: Command, slow_host: MockNodeProcess
) -> None:
    with _standing_still(slow_host):
        stop, start, pause = _three_in_a_row(slow_limiquantix)
    watched = slow_limiquantix("operation", "watch", stop).stdout.splitlines()
    assert watched[-1].startswith("vm.stop  web  SUCCEEDED  after ")
    assert "SUCCEEDED" in slow_limiquantix("operation", "wait", start).stdout
    assert "CANCELLED" in slow_limiquantix("operation", "wait", pause, status=1).stderr
    shown = slow_limiquantix("operation", "show", stop).stdout
    assert "VM:            web (" in shown
    assert "STEP  STATE  RESULT" in shown
    assert json.loads(slow_limiquantix("operation", "watch", pause, "-o", "json", status=1).stdout)["id"] == pause
    assert "has ended already" in slow_limiquantix("operation", "cancel", stop, status=1).stderr


def _three_in_a_row(slow_limiquantix: Command) -> tuple[str, str, str]:
    """Stop, start and pause the VM, where the first does not come to an end; the last is cancelled."""
    stop = _begin(slow_limiquantix, "stop", "web")
    start, pause = _begin(slow_limiquantix, "start", "web"), _begin(slow_limiquantix, "pause", "web")
    listed = slow_limiquantix("operation", "list", "--vm", "web", "--state", "queued", "--state", "running").stdout
    rows = [line.split() for line in listed.splitlines()[1:]]
    assert [row[:4] for row in rows] == [
        [pause[:8], "vm.pause", "web", "QUEUED"],
        [start[:8], "vm.start", "web", "QUEUED"],
        [stop[:8], "vm.stop", "web", "RUNNING"],
    ]
    assert f"vm.stop (operation {stop}) on the same VM" in listed
    assert slow_limiquantix("operation", "cancel", pause[:12]).stdout.endswith("(vm.pause of web) is CANCELLED\n")
    still = slow_limiquantix("operation", "wait", start, "--timeout", "1", status=1)
    assert "is still QUEUED after 1 s: waits for vm.stop" in still.stderr
    return stop, start, pause


def test_change_at_a_terminal_shows_what_it_waits_for(slow_limiquantix: Command) -> None:
    _begin(slow_limiquantix, "stop", "web")
    status, output = slow_limiquantix.at_terminal("vm", "start", "web", type_after="", keys="")
    assert status == 0
    assert "starting web: waits for vm.stop" in output
    assert "is RUNNING on slow-1" in output.splitlines()[-1]


def test_operation_watch_at_a_terminal_redraws_one_line(slow_limiquantix: Command) -> None:
    stop = _begin(slow_limiquantix, "stop", "web")
    status, output = slow_limiquantix.at_terminal("operation", "watch", stop, type_after="", keys="")
    assert status == 0
    assert output.count("\n") == 1
    assert output.splitlines()[-1].rpartition("\x1b[2K")[2].startswith("vm.stop  web  SUCCEEDED  after ")


def test_failed_change_names_its_operation_which_tells_why(slow_limiquantix: Command) -> None:
    _begin(slow_limiquantix, "stop", "web")
    failed = slow_limiquantix("vm", "pause", "web", status=1)  # it waits, and then the VM is off
    (hint,) = [line for line in failed.stderr.splitlines() if "operation show" in line]
    shown = slow_limiquantix("operation", "show", hint.split("'")[1].split()[-1]).stdout
    assert "FAILED" in shown
    assert "VM_STATE_FORBIDS" in shown


def test_command_repeated_with_its_request_id_does_nothing_twice(limiquantix: Command) -> None:
    arguments = ("vm", "create", "once", "--cpus", "1", "--memory", "128MiB", "--request-id", "my request")
    first, second = limiquantix(*arguments), limiquantix(*arguments)
    assert first.stdout == second.stdout
    assert len(limiquantix("vm", "list").stdout.splitlines()) == 2
    other = limiquantix("vm", "create", "other", *arguments[3:], status=1)
    assert "used for another request" in other.stderr


def test_vm_create_whose_control_plane_is_killed_makes_one_vm(tmp_path: Path) -> None:
    settings = {"operations": {"lease_s": 4}}
    with switchboard() as board, start_control_plane(tmp_path / "plane", settings=settings) as first:
        board.target = first.http_url.removeprefix("https://")
        limiquantix = Command(first, board.url)
        with start_mock_node(tmp_path / "node", first) as node:
            node.process.send_signal(signal.SIGSTOP)  # so that the create is under way for as long as it has to be
            create = subprocess.Popen(
                [COMMAND, "vm", "create", "once", "--cpus", "1", "--memory", "128MiB", "--disk", "1GiB"],
                env=limiquantix.environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            try:
                running = {"states": ["RUNNING"], "kinds": ["vm.create"]}
                _until(lambda: bool(first.call("OperationService", "ListOperations", running).get("operations")))
                board.lets_through.clear()
                first.kill()
                node.process.send_signal(signal.SIGCONT)
                again = start_control_plane(tmp_path / "plane", settings=settings, hosts_listen=first.hosts_address)
                with again as second:
                    board.target = second.http_url.removeprefix("https://")
                    board.lets_through.set()
                    output, errors = create.communicate(timeout=DEADLINE_S)
                    assert create.returncode == 0, errors
                    assert "is STOPPED on mock-1" in output
                    assert "asking again" in errors
                    assert [vm["name"] for vm in second.call("VMService", "ListVMs", {})["vms"]] == ["once"]
                    (operation,) = second.call("OperationService", "ListOperations", {})["operations"]
                    assert (operation["state"], operation["attemptCount"]) == ("SUCCEEDED", 2)
            finally:
                node.process.send_signal(signal.SIGCONT)
                create.kill()
                create.wait()


def test_vm_found_on_its_host_is_marked_and_left_alone_until_it_is_taken_over(tmp_path: Path) -> None:
    with start_control_plane(tmp_path / "old") as old, start_mock_node(tmp_path / "node", old, hostname="host-1"):
        Command(old)("vm", "create", "found", "--cpus", "1", "--memory", "128MiB")
    with start_control_plane(tmp_path / "new") as new, start_mock_node(tmp_path / "node", new, hostname="host-1"):
        limiquantix = Command(new)
        _until(lambda: "found" in limiquantix("vm", "list").stdout)
        header, row = limiquantix("vm", "list").stdout.splitlines()
        assert header.endswith("NOTE")
        assert row.endswith("unmanaged")
        assert "'limiquantix vm take-over' takes it over" in limiquantix("vm", "show", "found").stdout
        assert "hint: 'limiquantix vm take-over'" in limiquantix("vm", "start", "found", status=1).stderr
        limiquantix("vm", "take-over", "found")
        assert "NOTE" not in limiquantix("vm", "list").stdout
        assert "is RUNNING" in limiquantix("vm", "start", "found").stdout


def test_vm_watch_tells_every_change_and_goes_on_after_a_lost_connection(
    plane: ControlPlaneProcess, limiquantix: Command
) -> None:
    limiquantix("vm", "create", "old", "--cpus", "1", "--memory", "128MiB", "--label", "n=1")
    with (
        switchboard(plane.http_url.removeprefix("https://")) as board,
        Command(plane, board.url).following("vm", "watch", "--label", "n=1") as lines,
        Command(plane, board.url).following("vm", "watch", "--label", "n=1", "-o", "json") as documents,
    ):
        assert lines.until("old").split()[1:] == ["old", "ADDED", "STOPPED", "host-1"]
        assert json.loads(documents.until("old"))["vm"]["name"] == "old"
        limiquantix("vm", "start", "old")
        lines.until("old", "MODIFIED", "RUNNING", "host-1")
        board.target = ""
        board.hang_up()
        limiquantix("vm", "create", "new", "--cpus", "1", "--memory", "128MiB", "--label", "n=1")
        limiquantix("vm", "create", "other", "--cpus", "1", "--memory", "128MiB", "--label", "n=2")
        limiquantix("vm", "delete", "old", "--force")
        board.target = plane.http_url.removeprefix("https://")
        assert "other" not in lines.until("new", "ADDED")
        lines.until("old", "DELETED")
        assert int(json.loads(documents.until("old", "DELETED"))["revision"]) > 0


def test_vm_watch_of_one_vm_ends_with_it(limiquantix: Command) -> None:
    limiquantix("vm", "create", "brief", "--cpus", "1", "--memory", "128MiB")
    with limiquantix.following("vm", "watch", "brief", ends_by_itself=True) as lines:
        lines.until("brief", "ADDED", "STOPPED")
        limiquantix("vm", "delete", "brief")
        lines.until("brief", "DELETED")


def test_events_are_listed_and_followed(plane: ControlPlaneProcess, limiquantix: Command) -> None:
    with (
        switchboard(plane.http_url.removeprefix("https://")) as board,
        Command(plane, board.url).following("events", "--follow", "--limit", "1") as lines,
        Command(plane, board.url).following("events", "--follow", "--limit", "1", "-o", "json") as documents,
    ):
        lines.until()  # what was before: now they listen
        documents.until()
        limiquantix("vm", "create", "web", "--cpus", "1", "--memory", "128MiB")
        lines.until("info", "vm.created")
        board.target = ""
        board.hang_up()
        limiquantix("vm", "start", "web")
        board.target = plane.http_url.removeprefix("https://")
        lines.until("vm.started", "web")
        assert int(json.loads(documents.until("vm.started"))["revision"]) > 0
        with limiquantix.following("events", "--follow", "--vm", "web", "--limit", "10") as past:
            past.until("vm.created")
            past.until("vm.started")
    of_vm = limiquantix("events", "--vm", "web", "--since", "1h").stdout.splitlines()
    assert of_vm[0].split() == ["TIME", "SEVERITY", "TYPE", "BY", "MESSAGE"]
    types = [line.split()[2] for line in of_vm[1:]]
    assert types[0] == "vm.created"
    assert "vm.started" in types
    assert "vm.started" in limiquantix("events", "--type", "vm.started", "--limit", "1").stdout
    assert "node.registered" in limiquantix("events", "--node", "host-1").stdout
    newest = json.loads(limiquantix("events", "--limit", "3", "-o", "json").stdout)["events"]
    assert [int(event["revision"]) for event in newest] == sorted(
        (int(event["revision"]) for event in newest), reverse=True
    )
