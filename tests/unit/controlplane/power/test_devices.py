"""The file of power controllers: what it refuses, that it is read again, and that passwords are kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import structlog
from click.testing import CliRunner

from controlplane.app import main
from controlplane.power.agent import AgentFailed
from controlplane.power.devices import CommandDevice, DevicesUnusable, load_devices
from controlplane.power.factory import FileControllers, NoControllers

REDFISH = "{host: h1, agent: redfish, address: 'https://10.0.0.7', username: u, password_file: /p}"
IPMI = "{host: h2, agent: ipmi, address: 10.0.0.8}"


def write(directory: Path, *controllers: str) -> Path:
    path = directory / "fencing.yaml"
    path.write_text("controllers: [" + ", ".join(controllers) + "]\n")
    return path


def test_example_that_is_delivered_can_be_read() -> None:
    example = Path(__file__).parents[4] / "deploy" / "fencing.yaml"
    assert load_devices(example) == {}


def test_example_in_its_comments_can_be_read(tmp_path: Path) -> None:
    lines = (Path(__file__).parents[4] / "deploy" / "fencing.yaml").read_text().splitlines()
    path = tmp_path / "fencing.yaml"
    path.write_text("\n".join(line[2:] for line in lines if line.startswith(("# controllers:", "#   "))))
    assert {device.agent for device in load_devices(path).values()} == {"redfish", "ipmi", "command"}


@pytest.mark.parametrize(
    ("controller", "message"),
    [
        (REDFISH.replace("https", "http"), "plain http"),
        (REDFISH.replace("https://", "https://u:hunter2@"), "no user and password"),
        (REDFISH.replace("https://10.0.0.7", "10.0.0.7"), "must be like"),
        (REDFISH.replace("/p}", "p}"), "absolute path"),
        (REDFISH.replace("/p}", "/p, system_id: ../x}"), "system_id"),
        (IPMI.replace("}", ", password: hunter2}"), "password"),
        (IPMI.replace("10.0.0.8", "-Fopen"), "name or an IP address"),
        (IPMI.replace("agent: ipmi", "agent: telnet"), "agent"),
        ("{host: h3, agent: command, address: x, executable: fence_x}", "absolute path"),
        ("{host: h3, agent: command, address: x, executable: /x, parameters: {action: on}}", "action"),
        (r'{host: h3, agent: command, address: x, executable: /x, parameters: {a: "b\naction=on"}}', "parameters"),
        (f"{IPMI}, {IPMI}", "more than one controller of h2"),
    ],
)
def test_file_that_says_something_wrong_is_refused(tmp_path: Path, controller: str, message: str) -> None:
    with pytest.raises(DevicesUnusable, match=message) as caught:
        load_devices(write(tmp_path, controller))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8000", "http://localhost", "http://[::1]:8000"])
def test_plain_http_to_this_machine_is_accepted(tmp_path: Path, address: str) -> None:
    assert load_devices(write(tmp_path, REDFISH.replace("https://10.0.0.7", address)))["h1"].address == address


def test_plain_http_elsewhere_is_accepted_when_said_so(tmp_path: Path) -> None:
    controller = REDFISH.replace("https", "http").replace("}", ", allow_plain_http: true}")
    assert "h1" in load_devices(write(tmp_path, controller))


def test_changed_file_is_read_again_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    controllers = FileControllers(write(tmp_path, REDFISH))
    assert controllers.of("h2") is None
    path = write(tmp_path, REDFISH, IPMI)
    second = controllers.of("h2")
    assert second is not None
    assert second.kind == "ipmi"
    with structlog.testing.capture_logs() as logs:
        path.write_text("controllers: [hunter2")
        assert controllers.of("h2") is not None
        assert controllers.of("h1") is not None
        path.unlink()
        assert controllers.of("h2") is not None
    assert [line["event"] for line in logs] == ["power_controllers_unusable"] * 2
    assert "hunter2" not in str(logs)
    write(tmp_path, REDFISH)
    assert controllers.of("h2") is None


def test_file_that_is_missing_at_the_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DevicesUnusable, match="cannot be read"):
        FileControllers(tmp_path / "no.yaml")
    assert NoControllers().of("h1") is None


def test_password_is_the_first_line_of_a_file_only_its_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("secret \nrest\n")
    device = CommandDevice(host="h", agent="command", address="x", executable=Path("/x"), password_file=path)
    path.chmod(0o640)
    with pytest.raises(AgentFailed, match="chmod 600") as caught:
        device.password()
    assert caught.value.is_final
    path.chmod(0o600)
    assert device.password() == "secret "
    path.write_text("")
    with pytest.raises(AgentFailed, match="is empty"):
        device.password()
    path.unlink()
    with pytest.raises(AgentFailed, match="cannot be read"):
        device.password()
    os.mkfifo(path, 0o600)
    with pytest.raises(AgentFailed, match="no regular file"):
        device.password()


def test_power_check_prints_each_controller_and_fails_if_one_does_not_answer(tmp_path: Path) -> None:
    for name, code in (("good", 2), ("bad", 1)):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\ncat > {tmp_path}/{name}.asked\nexit {code}\n")
        program.chmod(0o755)
    path = write(
        tmp_path,
        *(f"{{host: h-{n}, agent: command, address: a, executable: {tmp_path}/{n}}}" for n in ("good", "bad")),
    )
    config = tmp_path / "controlplane.yaml"
    config.write_text(f"power: {{devices_path: {path}}}\n")
    words = ["--config", str(config), "power-check"]
    all_hosts = CliRunner().invoke(main, words)
    assert all_hosts.exit_code == 1
    assert "no usable answer from the controllers of h-bad" in all_hosts.output
    one = CliRunner().invoke(main, [*words, "--host", "h-good"])
    assert one.exit_code == 0, one.output
    assert "status off" in one.output
    assert "action=status" in (tmp_path / "good.asked").read_text()
    assert CliRunner().invoke(main, [*words, "--host", "other"]).exit_code == 1
