"""Real power controllers' protocols over real VMs: what is cut is off, and what cannot be cut is told in time."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
import structlog

from controlplane.power.agent import AgentController
from controlplane.power.devices import IpmiDevice, RedfishDevice
from controlplane.power.interface import PowerFailed
from controlplane.power.ipmi import IpmiAgent
from controlplane.power.redfish import RedfishAgent
from tests.support import power_button_guest
from tests.support.ports import own_port
from tests.support.power_emulators import emulator_bin, ipmi_emulator, redfish_emulator
from tests.support.private_libvirt_host import (
    eventually,
    leave_out,
    private_libvirt,
    skip_unless_private_libvirt,
    virsh,
)

pytest.importorskip("libvirt")

USERNAME = "fencing"
PASSWORD = "Tr0ub4dor-secret"
LIMIT_S = 60.0
SHORT_LIMIT_S = 2.0
SLACK_S = 20.0
"""The machine may be busy with other tests."""


@dataclass(frozen=True)
class Machine:
    """A VM that plays a physical host."""

    uri: str
    directory: Path
    name: str = "machine"

    async def state(self) -> str:
        return await virsh(self.uri, "domstate", self.name)

    async def start(self) -> None:
        await virsh(self.uri, "start", self.name)
        assert await self.state() == "running"

    async def uuid(self) -> str:
        return await virsh(self.uri, "domuuid", self.name)

    def secret(self, password: str) -> Path:
        path = self.directory / f"password-{len(list(self.directory.iterdir()))}"
        path.touch(0o600)
        path.write_text(password + "\n")
        return path


@pytest_asyncio.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    await skip_unless_private_libvirt(tmp_path)
    emulator_bin()
    disk = power_button_guest.write_disk(tmp_path / "disk.raw", deaf=True)
    description = tmp_path / "machine.xml"
    description.write_text(
        "<domain type='qemu'><name>machine</name><memory unit='MiB'>16</memory>"
        "<os><type arch='x86_64' machine='q35'>hvm</type></os><devices>"
        f"<disk type='file'><source file='{disk}'/><target dev='sda' bus='sata'/></disk></devices></domain>"
    )
    async with private_libvirt(tmp_path / "libvirt") as libvirt:
        await virsh(libvirt.uri, "define", str(description))
        yield Machine(libvirt.uri, tmp_path)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Have a process and its children stand still."""
    group = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for process in group:
        os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in group:
            os.kill(process.pid, signal.SIGCONT)


async def assert_fails(
    controller: AgentController, *, words: str = "not off within", limit_s: float = SHORT_LIMIT_S
) -> None:
    begun_s = time.monotonic()
    with pytest.raises(PowerFailed, match=words) as caught:
        await controller.cut(limit_s)
    assert time.monotonic() - begun_s < limit_s + SLACK_S
    assert PASSWORD not in str(caught.value)


async def test_redfish_cuts_the_power_and_tells_when_it_cannot(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    port = own_port()
    device = RedfishDevice(
        host="h1",
        agent="redfish",
        address=f"http://127.0.0.1:{port}",
        username=USERNAME,
        password_file=machine.secret(PASSWORD),
        system_id=await machine.uuid(),
    )
    controller = AgentController(RedfishAgent(device))
    wrong = device.model_copy(update={"password_file": machine.secret("wrong")})
    with structlog.testing.capture_logs() as logs:
        async with redfish_emulator(machine.directory, machine.uri, port, USERNAME, PASSWORD) as emulator:
            await machine.start()
            await assert_fails(AgentController(RedfishAgent(wrong)), words="status 401", limit_s=LIMIT_S)
            with stopped(emulator.pid):
                await assert_fails(controller, words="not off within")
            await eventually_started(machine)
            evidence = await controller.cut(LIMIT_S)
            assert await machine.state() == "shut off"
            assert evidence.words == f"redfish {device.address}: ForceOff accepted, PowerState Off"
            by_itself = device.model_copy(update={"system_id": ""})
            assert "PowerState Off" in (await AgentController(RedfishAgent(by_itself)).cut(LIMIT_S)).words
        await assert_fails(controller)
    assert PASSWORD not in caplog.text + str(logs) + evidence.words


async def test_ipmi_cuts_the_power_and_tells_when_it_cannot(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    if shutil.which("ipmitool") is None:
        leave_out("ipmitool is not installed")
    caplog.set_level(logging.DEBUG)
    ports = (own_port(), own_port())
    device = IpmiDevice(
        host="h1",
        agent="ipmi",
        address="127.0.0.1",
        port=ports[0],
        username=USERNAME,
        password_file=machine.secret(PASSWORD),
    )
    controller = AgentController(IpmiAgent(device))
    wrong = device.model_copy(update={"password_file": machine.secret("wrong")})
    async with ipmi_emulator(machine.directory, machine.uri, machine.name, ports, USERNAME, PASSWORD) as emulator:
        await machine.start()
        evidence = await controller.cut(LIMIT_S)
        assert await machine.state() == "shut off"
        assert evidence.words == f"ipmi 127.0.0.1:{ports[0]}: power off accepted, Chassis Power is off"
        assert "Chassis Power is off" in (await controller.cut(LIMIT_S)).words
        await machine.start()
        await assert_fails(AgentController(IpmiAgent(wrong)))
        assert await machine.state() == "running"
        with stopped(emulator.pid):
            await assert_fails(controller)
    await assert_fails(controller)
    assert PASSWORD not in caplog.text + evidence.words


async def eventually_started(machine: Machine) -> None:
    """Start the machine, should a command that was on its way when its sender gave up have ended it."""

    async def runs() -> bool | None:
        if await machine.state() != "running":
            await virsh(machine.uri, "start", machine.name)
        return True

    await eventually(runs, "the machine")
