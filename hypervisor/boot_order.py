"""In which order the firmware tries a VM's devices; pure, the same for every backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from hypervisor.types import BootDevice, VmConfig

BootOrders = Mapping[tuple[BootDevice, int], int]
_DEFAULT_BOOT_ORDER: Final = (BootDevice.DISK, BootDevice.CDROM)


def boot_orders(config: VmConfig) -> BootOrders:
    """Number the devices the firmware tries, from 1, by class and place in the configuration.

    First those with a `boot_index`, then the rest by class in `boot_order`. Without a `boot_order`, disks and then
    CD-ROMs, or the network if there is neither. libvirt takes either classes or devices, and boots only the first disk
    of a class, so this is always said by device. Nothing is numbered when the kernel comes from the host.
    """
    if config.direct_boot is not None:
        return {}
    indexes = {
        BootDevice.DISK: [disk.boot_index for disk in config.disks],
        BootDevice.CDROM: [cdrom.boot_index for cdrom in config.cdroms],
        BootDevice.NETWORK: [nic.boot_index for nic in config.nics],
    }
    devices = {(kind, place): index for kind, of_kind in indexes.items() for place, index in enumerate(of_kind)}
    ordered = sorted((device for device, index in devices.items() if index > 0), key=devices.__getitem__)
    default = _DEFAULT_BOOT_ORDER if config.disks or config.cdroms else (BootDevice.NETWORK,)
    for wanted in dict.fromkeys(config.boot_order or default):
        ordered.extend(device for device, index in devices.items() if device[0] is wanted and index == 0)
    return {device: order for order, device in enumerate(ordered, start=1)}


def boot_disk_id(config: VmConfig) -> str | None:
    """Return the id of the disk that the firmware tries first; None with a kernel of the host, or without disks."""
    orders = boot_orders(config)
    disks = {order: place for (kind, place), order in orders.items() if kind is BootDevice.DISK}
    return config.disks[disks[min(disks)]].disk_id if disks else None
