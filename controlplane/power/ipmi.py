"""IPMI 2.0 over LAN, by the program ipmitool.

A program, since it can be killed: the Python library for IPMI (pyghmi) blocks in a loop shared by all its sessions, and
no deadline can be imposed on that.
"""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.power.agent import AgentFailed, PowerReading
from controlplane.power.devices import IpmiDevice
from controlplane.power.program import Outcome, run_program

ATTEMPT_LIMIT_S = 5.0
"""Of one command: two datagrams that get lost, and the handshake of a slow controller."""

SAYS_OFF = "Chassis Power is off"
SAYS_ON = "Chassis Power is on"

_REFUSED = ("password", "unauthorized", "rakp 2", "rakp 3", "invalid user", "privilege", "hmac")
"""Parts of what ipmitool says when the credentials are wrong."""


@dataclass(frozen=True, slots=True)
class IpmiAgent:
    """The controller of one host."""

    device: IpmiDevice

    @property
    def kind(self) -> str:
        """The protocol."""
        return "ipmi"

    @property
    def address(self) -> str:
        """Address and port."""
        return f"{self.device.address}:{self.device.port}"

    async def switch_off(self) -> str:
        """Command "power off", which asks no guest."""
        outcome = await self._run("off")
        if outcome.exit_code != 0:
            raise _failure("power off", outcome)
        return "power off accepted"

    async def read(self) -> PowerReading:
        """Ask for the chassis' power."""
        outcome = await self._run("status")
        answer = outcome.lines[-1] if outcome.lines else ""
        if outcome.exit_code != 0 or answer not in (SAYS_OFF, SAYS_ON):
            raise _failure("power status", outcome)
        return PowerReading(answer == SAYS_OFF, answer)

    async def _run(self, action: str) -> Outcome:
        device = self.device
        target = ["-I", "lanplus", "-H", device.address, "-p", str(device.port), "-U", device.username, "-E"]
        return await run_program(
            device.executable,
            [*target, "-N", "1", "-R", "2", "chassis", "power", action],
            limit_s=ATTEMPT_LIMIT_S,
            secret=device.password(),
            variable="IPMITOOL_PASSWORD",
        )


def _failure(what: str, outcome: Outcome) -> AgentFailed:
    is_refused = any(part in outcome.said.lower() for part in _REFUSED)
    return AgentFailed(f"{what} failed ({outcome.said})", is_final=is_refused)
