"""Power controllers: small computers beside the hosts, on a network of their own, which a fence agent asks.

The program that the product starts for that is answered here. A controller may be silent for a while, and some lose
their power with their host.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from controlplane.power import command
from controlplane.power.agent import AgentFailed
from controlplane.power.program import Outcome
from tests.simulation.product.loop import VirtualLoop

if TYPE_CHECKING:
    from tests.simulation.product.host import Host

STATUS_ON, STATUS_OFF, ACCEPTED = 0, 2, 0
LONGEST_WAY_S = 1.5


class Controllers:
    """Those of all hosts of one history, `Controllers.current`; the file that names them is at `path`."""

    current: Controllers

    def __init__(self, loop: VirtualLoop, directory: Path) -> None:
        self.path = directory / "controllers.yaml"
        self.silent: set[str] = set()
        """Hosts whose controller does not answer."""
        self._loop = loop
        self._hosts: dict[str, Host] = {}
        self._powered_by_host: set[str] = set()
        Controllers.current = self
        command.run_program = _run_program  # type: ignore[attr-defined]

    def name(self, hosts: Sequence[Host]) -> None:
        """Give each host one."""
        self._hosts = {host.name: host for host in hosts}
        self._powered_by_host = {host.name for host in hosts if self._loop.random.random() < 0.3}
        listed = [
            {"host": name, "agent": "command", "address": name, "executable": "/usr/sbin/fence_simulated"}
            for name in self._hosts
        ]
        self.path.write_text(json.dumps({"controllers": listed}))

    async def ask(self, address: str, action: str, limit_s: float) -> Outcome:
        """Do what a fence agent does; a command that is on its way arrives, whatever becomes of who sent it.

        Raises:
            AgentFailed: nothing came back.
        """
        host, draw = self._hosts[address], self._loop.random
        way_s = LONGEST_WAY_S * draw.random()
        if address in self.silent or (address in self._powered_by_host and not host.is_on):
            await asyncio.sleep(min(limit_s, 5.0))
            raise AgentFailed(f"{address} does not answer")
        if action == "off":
            self._loop.outside(way_s * draw.random(), lambda: self._switch_off(host))
        await asyncio.sleep(way_s)
        if action == "off":
            return Outcome(ACCEPTED, ())
        return Outcome(STATUS_ON if host.is_on else STATUS_OFF, ())

    def _switch_off(self, host: Host) -> None:
        if host.is_on:
            host.power_off()
            self._loop.outside(self._loop.random.uniform(3.0, 60.0), host.power_on)


async def _run_program(
    executable: Path, arguments: list[str], *, limit_s: float, secret: str, stdin: str = "", variable: str = ""
) -> Outcome:
    said = dict(line.partition("=")[::2] for line in stdin.splitlines())
    return await Controllers.current.ask(said["ip"], said["action"], limit_s)
