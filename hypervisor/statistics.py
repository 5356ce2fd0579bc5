"""What the VMs of one host use, all in one reading."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DiskStatistics:
    """Counters of one disk or CD-ROM drive, since the VM started or the disk was attached.

    `disk_id` is "" for one that something else defined. `target` is the backend's name for it, such as "vda".
    """

    disk_id: str
    target: str
    read_bytes: int = 0
    write_bytes: int = 0
    read_count: int = 0
    write_count: int = 0


@dataclass(frozen=True, slots=True)
class NicStatistics:
    """Counters of one network card as the guest sees them, since the VM started or the card was attached.

    `nic_id` is "" for one that something else defined.
    """

    nic_id: str
    mac_address: str
    rx_bytes: int = 0
    tx_bytes: int = 0
    rx_packets: int = 0
    tx_packets: int = 0
    rx_errors: int = 0
    tx_errors: int = 0


@dataclass(frozen=True, slots=True)
class VmStatistics:
    """Counters of one VM that runs or is paused.

    `vcpu_count` is what the guest has now. `is_complete` is False where the VM's own process could not be asked, as
    while it is saved: then `disks` and `nics` are empty, whatever the VM has, and memory in use is the process's.
    """

    vm_id: str
    name: str
    vcpu_count: int
    cpu_time_ns: int
    memory_total_bytes: int
    memory_used_bytes: int
    disks: tuple[DiskStatistics, ...] = ()
    nics: tuple[NicStatistics, ...] = ()
    is_complete: bool = True


class Statistics(ABC):
    """What the VMs of one host use, all in one reading; see `Hypervisor` for the rules that hold for every method."""

    @abstractmethod
    async def read_all(self) -> Sequence[VmStatistics]:
        """Read all VMs that run or are paused, at a cost of few calls whatever their number; no order.

        A network card is there if the host sees its traffic: on a bridge or a network, not behind user-mode NAT.

        Raises:
            Unavailable: the backend, or a VM's process, does not answer.
        """
