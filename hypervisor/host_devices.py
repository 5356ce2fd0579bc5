"""Devices of the host that VMs might get: the optional power to list them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from hypervisor.abilities import HostDevice


class HostDevices(ABC):
    """PCI, USB and mediated devices of one host."""

    @abstractmethod
    async def list(self) -> Sequence[HostDevice]:
        """Every device there is, ordered by kind and address, each with what keeps it from VMs now.

        Takes time that grows with their number, so it is asked for now and then, not for each heartbeat.
        """
