"""Agents that run programs: what these are given, how their answers are taken, and that none is left running."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.power.agent import AgentController, AgentFailed
from controlplane.power.command import CommandAgent
from controlplane.power.devices import CommandDevice, IpmiDevice
from controlplane.power.interface import PowerFailed
from controlplane.power.ipmi import IpmiAgent
from controlplane.power.program import run_program
from tests.support.private_libvirt_host import wait_until_gone


def program(directory: Path, body: str) -> Path:
    path = directory / "agent.sh"
    path.write_text(f"#!/bin/sh\ncd {directory}\n{body}\n")
    path.chmod(0o755)
    return path


def secret(directory: Path) -> Path:
    path = directory / "password"
    path.touch(0o600)
    path.write_text("hunter2\n")
    return path


def fence_agent(directory: Path, body: str) -> CommandAgent:
    return CommandAgent(
        CommandDevice(
            host="h1",
            agent="command",
            address="10.0.0.9",
            username="u",
            password_file=secret(directory),
            executable=program(directory, body),
            parameters={"plug": "3"},
        )
    )


def ipmi(directory: Path, body: str) -> IpmiAgent:
    return IpmiAgent(
        IpmiDevice(
            host="h1",
            agent="ipmi",
            address="10.0.0.8",
            username="u",
            password_file=secret(directory),
            executable=program(directory, body),
        )
    )


async def test_fence_agent_is_given_its_options_and_cuts(tmp_path: Path) -> None:
    agent = fence_agent(tmp_path, "cat > asked\ngrep -q action=off asked && cp asked off && exit 0\nexit 2")
    evidence = await AgentController(agent).cut(30)
    assert evidence.words == "command agent.sh 10.0.0.9: action off done, status off"
    assert (tmp_path / "off").read_text() == "action=off\nip=10.0.0.9\nusername=u\npassword=hunter2\nplug=3\n"


@pytest.mark.parametrize("code", [1, 3, 127])
async def test_fence_agent_that_fails_says_neither_on_nor_off(tmp_path: Path, code: int) -> None:
    agent = fence_agent(tmp_path, f"cat > asked\necho Login with hunter2 failed\nexit {code}")
    with pytest.raises(AgentFailed, match=rf"status failed with {code} \(Login with \*\*\* failed\)"):
        await agent.read()
    with pytest.raises(PowerFailed) as caught:
        await AgentController(agent).cut(0.5)
    assert "hunter2" not in str(caught.value)


async def test_program_out_of_time_is_killed_with_what_it_started(tmp_path: Path) -> None:
    agent = fence_agent(tmp_path, "sleep 600 &\necho $! > child\nwait")
    with pytest.raises(PowerFailed, match="not off within"):
        await AgentController(agent).cut(2)
    child = int((tmp_path / "child").read_text())
    wait_until_gone(child)


async def test_program_that_prints_for_ever_is_ended(tmp_path: Path) -> None:
    with pytest.raises(AgentFailed, match="printed more than"):
        await run_program(program(tmp_path, "exec yes"), [], limit_s=30, secret="")


async def test_program_that_is_not_there_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(AgentFailed, match="cannot be started"):
        await run_program(tmp_path / "none", [], limit_s=30, secret="")


async def test_ipmitool_is_given_the_password_where_nobody_else_reads_it(tmp_path: Path) -> None:
    agent = ipmi(tmp_path, 'echo "$@" > arguments\necho "$IPMITOOL_PASSWORD" > given\necho Chassis Power is on')
    reading = await agent.read()
    assert not reading.is_off
    assert (tmp_path / "given").read_text() == "hunter2\n"
    assert (tmp_path / "arguments").read_text().split()[-3:] == ["chassis", "power", "status"]
    assert "hunter2" not in (tmp_path / "arguments").read_text()


@pytest.mark.parametrize(
    ("said", "code", "is_final"),
    [
        ("Error: Unable to establish IPMI v2 / RMCP+ session", 1, False),
        ("RAKP 2 HMAC is invalid", 1, True),
        ("Chassis Power is off", 1, False),
        ("Chassis Power is unknown", 0, False),
    ],
)
async def test_ipmitool_that_fails_says_neither_on_nor_off(
    tmp_path: Path, said: str, code: int, is_final: bool
) -> None:
    with pytest.raises(AgentFailed, match="power status failed") as caught:
        await ipmi(tmp_path, f"echo '{said}'\nexit {code}").read()
    assert caught.value.is_final is is_final
