"""What simulated VMs use: all of it follows from the CPU time that their guests have used."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from hypervisor.mock.faults import Operation
from hypervisor.mock.host import MockHost
from hypervisor.mock.store import MockVm
from hypervisor.statistics import DiskStatistics, NicStatistics, Statistics, VmStatistics
from hypervisor.types import DiskBus, PowerState

_IN_MEMORY: Final = frozenset({PowerState.RUNNING, PowerState.PAUSED})
_DISK_BYTES_PER_CPU_S: Final = 4 * 2**20
_NIC_BYTES_PER_CPU_S: Final = 2**20
_REQUEST_BYTES: Final = 16 * 2**10
_PACKET_BYTES: Final = 1200


class MockStatistics(Statistics):
    """Counters that move as guests work, stand still while they are paused, and never go back while they run.

    A busy guest reads, writes and talks in proportion; each device has its own share, by its id.
    """

    def __init__(self, host: MockHost) -> None:
        self._host = host

    async def read_all(self) -> Sequence[VmStatistics]:
        """See `Statistics`; every card's traffic is seen."""
        await self._host.strike(Operation.READ_STATISTICS)
        return [self._read(vm) for vm in self._host.vms.values() if vm.state in _IN_MEMORY]

    def _read(self, vm: MockVm) -> VmStatistics:
        status, config = self._host.status(vm), vm.config
        cpu_s = self._host.cpu_s(vm)
        virtio, other = iter(range(len(config.disks))), iter(range(len(config.disks)))
        disks = []
        for disk in config.disks:
            is_virtio = disk.bus is DiskBus.VIRTIO
            target = f"{'vd' if is_virtio else 'sd'}{chr(97 + next(virtio if is_virtio else other) % 26)}"
            read = int(cpu_s * _DISK_BYTES_PER_CPU_S * _share(disk.disk_id, "read"))
            write = 0 if disk.readonly else int(cpu_s * _DISK_BYTES_PER_CPU_S * _share(disk.disk_id, "write"))
            disks.append(
                DiskStatistics(disk.disk_id, target, read, write, read // _REQUEST_BYTES, write // _REQUEST_BYTES)
            )
        nics = []
        for nic in config.nics:
            rx = int(cpu_s * _NIC_BYTES_PER_CPU_S * _share(nic.nic_id, "rx"))
            tx = int(cpu_s * _NIC_BYTES_PER_CPU_S * _share(nic.nic_id, "tx"))
            nics.append(NicStatistics(nic.nic_id, nic.mac_address, rx, tx, rx // _PACKET_BYTES, tx // _PACKET_BYTES))
        return VmStatistics(
            config.vm_id,
            config.name,
            vcpu_count=status.vcpu_count,
            cpu_time_ns=status.cpu_time_ns,
            memory_total_bytes=status.memory_total_bytes,
            memory_used_bytes=status.memory_used_bytes,
            disks=tuple(disks),
            nics=tuple(nics),
        )


def _share(device_id: str, direction: str) -> float:
    """Return how much a device does of what it could, 0.25 to 1; always the same for a device."""
    return 0.25 + 0.75 * hashlib.sha256(f"{device_id} {direction}".encode()).digest()[0] / 255
