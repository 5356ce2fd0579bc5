"""Power controllers of all hosts, from a file that may change while it is used."""

from __future__ import annotations

from pathlib import Path

import structlog

from controlplane.power.agent import AgentController, PowerAgent
from controlplane.power.command import CommandAgent
from controlplane.power.devices import CommandDevice, DevicesUnusable, IpmiDevice, RedfishDevice, load_devices
from controlplane.power.interface import PowerController
from controlplane.power.ipmi import IpmiAgent
from controlplane.power.redfish import RedfishAgent

_log = structlog.get_logger(__name__)


class NoControllers:
    """`PowerControllers` where none is configured."""

    def of(self, hostname: str) -> PowerController | None:
        """Return None."""
        return None


class FileControllers:
    """`PowerControllers` of a file. It is read again when it changed; one that turned unusable changes nothing.

    Raises:
        DevicesUnusable: the file cannot be used at the start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = _signature(path)
        self._agents = _agents(path)

    def of(self, hostname: str) -> PowerController | None:
        """Return the controller of a host; None if the file has none."""
        agent = self.agents().get(hostname)
        return None if agent is None else AgentController(agent)

    def agents(self) -> dict[str, PowerAgent]:
        """Return what the file says now, by hostname."""
        seen = _signature(self._path)
        if seen != self._seen:
            self._seen = seen
            try:
                self._agents = _agents(self._path)
                _log.info("power_controllers_read", path=str(self._path), controller_count=len(self._agents))
            except DevicesUnusable as error:
                _log.error("power_controllers_unusable", error=str(error), remedy="the ones read before stay in use")
        return self._agents


def _agents(path: Path) -> dict[str, PowerAgent]:
    return {host: _agent(device) for host, device in load_devices(path).items()}


def _agent(device: RedfishDevice | IpmiDevice | CommandDevice) -> PowerAgent:
    match device:
        case RedfishDevice():
            return RedfishAgent(device)
        case IpmiDevice():
            return IpmiAgent(device)
        case CommandDevice():
            return CommandAgent(device)


def _signature(path: Path) -> tuple[int, int, int] | None:
    """Tell versions of a file apart; None while there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
