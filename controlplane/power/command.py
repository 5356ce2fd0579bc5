"""Any program in the style of ClusterLabs' fence agents: options on standard input, the answer in the exit code.

Source: https://github.com/ClusterLabs/fence-agents/blob/main/doc/FenceAgentAPI.md
"""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.power.agent import AgentFailed, PowerReading
from controlplane.power.devices import CommandDevice
from controlplane.power.program import Outcome, run_program

ATTEMPT_LIMIT_S = 60.0
"""Of one call. The limit of the whole cut is usually smaller; agents wait for the power to be off by themselves."""

STATUS_ON = 0
STATUS_OFF = 2


@dataclass(frozen=True, slots=True)
class CommandAgent:
    """The controller of one host, as a program knows it."""

    device: CommandDevice

    @property
    def kind(self) -> str:
        """Name of the program."""
        return f"command {self.device.executable.name}"

    @property
    def address(self) -> str:
        """What the program is told as "ip"."""
        return self.device.address

    async def switch_off(self) -> str:
        """Have the program do "off"."""
        outcome = await self._run("off")
        if outcome.exit_code != 0:
            raise AgentFailed(f"action off failed with {outcome.exit_code} ({outcome.said})")
        return "action off done"

    async def read(self) -> PowerReading:
        """Have the program do "status": 0 is on, 2 is off, all else an error."""
        outcome = await self._run("status")
        if outcome.exit_code not in (STATUS_ON, STATUS_OFF):
            raise AgentFailed(f"action status failed with {outcome.exit_code} ({outcome.said})")
        is_off = outcome.exit_code == STATUS_OFF
        return PowerReading(is_off, f"status {'off' if is_off else 'on'}")

    async def _run(self, action: str) -> Outcome:
        device = self.device
        password = device.password()
        options = {"action": action, "ip": device.address, "username": device.username, "password": password}
        given = {key: value for key, value in options.items() if value} | device.parameters
        lines = "".join(f"{key}={value}\n" for key, value in given.items())
        return await run_program(device.executable, [], limit_s=ATTEMPT_LIMIT_S, secret=password, stdin=lines)
