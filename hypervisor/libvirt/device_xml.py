"""Disks, CD-ROM drives and network cards as elements of a domain; the same for a definition and for hot-plug.

Source of every element: https://libvirt.org/formatdomain.html.
"""

from __future__ import annotations

import enum
import hashlib
import itertools
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from lxml import etree

from hypervisor.boot_order import BootOrders
from hypervisor.errors import Refused
from hypervisor.types import BootDevice, CdromConfig, DiskBus, DiskCache, DiskConfig, IoLimits, NicConfig, VmConfig

HOTPLUG_PORT_COUNT: Final = 8
"""PCI Express slots that stay free for devices to come; each costs the guest some milliseconds at boot."""
_SCSI_TARGET_COUNT: Final = 256
_SATA_PORT_COUNT: Final = 6
_SERIAL_LENGTH: Final = 20
"""What the ATA and virtio standards give a disk's serial number."""
_ALIAS_WORD: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class DeviceKind(enum.Enum):
    """Devices that have ids of ours; a disk and a network card may share one."""

    DISK = "disk"
    CDROM = "cdrom"
    NIC = "nic"


def alias_of(kind: DeviceKind, device_id: str) -> str:
    """Return the name by which libvirt knows a device for good; target names may change hands.

    Source: formatdomain.html, "User-defined aliases" (they begin with `ua-`).
    """
    if not _ALIAS_WORD.fullmatch(device_id):
        device_id = hashlib.sha256(device_id.encode()).hexdigest()[:32]
    return f"ua-{kind.value}-{device_id}"


def device_name(prefix: str, index: int) -> str:
    """Name the disk number `index`, from 0, as Linux does: sda to sdz, then sdaa."""
    letters = ""
    index += 1
    while index:
        index, letter = divmod(index - 1, len(string.ascii_lowercase))
        letters = string.ascii_lowercase[letter] + letters
    return prefix + letters


def add(
    parent: etree._Element, tag: str, attributes: Mapping[str, str] | None = None, text: str | None = None
) -> etree._Element:
    """Append a child element."""
    child = etree.SubElement(parent, tag, dict(attributes or {}))
    child.text = text
    return child


@dataclass(frozen=True, slots=True)
class Place:
    """Where a disk or drive is: the name that libvirt tells it by, and its address where libvirt must not choose."""

    target: Mapping[str, str]
    address: Mapping[str, str] | None = None


class Places:
    """Names and addresses that no disk or drive of these definitions has.

    A running VM has two, which may differ; a new device fits both. Addresses are stated, since libvirt would derive
    them from target names, which SCSI and SATA share.
    """

    def __init__(self, *domains: etree._Element) -> None:
        self._names: set[str] = set()
        self._addresses: set[tuple[str, ...]] = set()
        for disk in itertools.chain.from_iterable(domain.iterfind("devices/disk") for domain in domains):
            target, address = disk.find("target"), disk.find("address[@type='drive']")
            if target is not None:
                self._names.add(target.get("dev", ""))
                if address is not None:
                    self._addresses.add(_address_key(_controller_of(target.get("bus", "")), address))

    def of_disk(self, bus: DiskBus) -> Place:
        """Take a free place for a disk or a CD-ROM drive.

        q35 has no IDE controller, so a disk that asks for IDE goes to SATA, which is what its built-in controller
        offers in IDE's place; guests since Linux 2.6.20 call the disk sdX either way.

        Raises:
            Refused: there is none.
        """
        match bus:
            case DiskBus.VIRTIO:
                return Place({"dev": self._name("vd"), "bus": "virtio"})
            case DiskBus.SCSI:
                for target in range(_SCSI_TARGET_COUNT):
                    if (address := self._take("scsi", _drive_address(target=target))) is not None:
                        return Place({"dev": self._name("sd"), "bus": "scsi"}, address)
                raise Refused(f"a VM has room for {_SCSI_TARGET_COUNT} SCSI disks")
            case DiskBus.SATA | DiskBus.IDE:  # libvirt adds controllers after the first
                free = (address for port in itertools.count() if (address := self._take("sata", sata_address(port))))
                return Place({"dev": self._name("sd"), "bus": "sata"}, next(free))

    def _name(self, prefix: str) -> str:
        name = next(name for name in (device_name(prefix, n) for n in itertools.count()) if name not in self._names)
        self._names.add(name)
        return name

    def _take(self, bus: str, address: dict[str, str]) -> dict[str, str] | None:
        key = _address_key(bus, address)
        if key in self._addresses:
            return None
        self._addresses.add(key)
        return address


def _address_key(bus: str, address: Mapping[str, str] | etree._Element) -> tuple[str, ...]:
    return (bus, *(str(address.get(part, "0")) for part in ("controller", "bus", "target", "unit")))


def _controller_of(bus: str) -> str:
    return "sata" if bus == "ide" else bus


def _drive_address(*, controller: int = 0, target: int = 0, unit: int = 0) -> dict[str, str]:
    place = {"controller": controller, "bus": 0, "target": target, "unit": unit}
    return {"type": "drive"} | {key: str(number) for key, number in place.items()}


def sata_address(port: int) -> dict[str, str]:
    """Say where the port number `port`, from 0, of all SATA controllers is."""
    return _drive_address(controller=port // _SATA_PORT_COUNT, unit=port % _SATA_PORT_COUNT)


def add_disks(devices: etree._Element, config: VmConfig, orders: BootOrders) -> None:
    """Add disks and CD-ROM drives, and the controllers they need."""
    places = Places()
    if DiskBus.SCSI in {*(disk.bus for disk in config.disks), *(cdrom.bus for cdrom in config.cdroms)}:
        devices.append(scsi_controller())
    for number, disk in enumerate(config.disks):
        devices.append(disk_element(disk, places.of_disk(disk.bus), orders.get((BootDevice.DISK, number))))
    for number, cdrom in enumerate(config.cdroms):
        devices.append(cdrom_element(cdrom, places.of_disk(cdrom.bus), orders.get((BootDevice.CDROM, number))))


def add_nic(devices: etree._Element, nic: NicConfig, order: int | None) -> None:
    """Add a network card."""
    devices.append(nic_element(nic, order))


def add_hotplug_ports(devices: etree._Element) -> None:
    """Add PCI Express ports for the devices that are there, and some that stay free for devices to come.

    libvirt adds ports for what it finds only, so nothing could be plugged into a running VM. It fills these, in the
    order in which the devices come.
    """
    used_count = sum(1 for device in devices if _takes_port(device))
    for index in range(1, used_count + HOTPLUG_PORT_COUNT + 1):
        add(devices, "controller", {"type": "pci", "index": str(index), "model": "pcie-root-port"})


def _takes_port(device: etree._Element) -> bool:
    target, model = device.find("target"), device.get("model", "")
    match device.tag:
        case "disk":
            return target is not None and target.get("bus") == "virtio"
        case "controller":
            return device.get("type") == "scsi" or model == "qemu-xhci"
        case "channel":  # libvirt adds one controller for all of them
            return target is not None and target.get("type") == "virtio"
        case "interface" | "memballoon" | "rng":
            return True
    return False


def scsi_controller() -> etree._Element:
    """Make the controller of SCSI disks."""
    return etree.Element("controller", {"type": "scsi", "index": "0", "model": "virtio-scsi"})


def disk_element(disk: DiskConfig, place: Place, order: int | None = None) -> etree._Element:
    """Make a disk; `order` is its number among the devices that the firmware tries."""
    element = etree.Element("disk", {"type": "file", "device": "disk"})
    driver = {
        "name": "qemu",
        "type": disk.format.value,
        "cache": disk.cache.value,
        # Native I/O needs O_DIRECT, which only this cache mode uses.
        "io": "native" if disk.cache is DiskCache.NONE else "threads",
        "discard": "unmap" if disk.discard else "ignore",
    }
    add(element, "driver", driver)
    add(element, "source", {"file": str(disk.path)})
    add(element, "target", place.target)
    if tune := {name: value for name, value in io_tune(disk.limits).items() if value}:
        iotune = add(element, "iotune")
        for name, value in tune.items():
            add(iotune, name, text=str(value))
    if disk.readonly:
        add(element, "readonly")
    if serial := serial_of(disk.disk_id):
        add(element, "serial", text=serial)
    _add_place(element, DeviceKind.DISK, disk.disk_id, place.address, order)
    return element


def serial_of(disk_id: str) -> str:
    """Return the serial number by which a guest can tell its disks apart."""
    return re.sub(r"[^A-Za-z0-9_.]", "", disk_id)[:_SERIAL_LENGTH]


def cdrom_element(cdrom: CdromConfig, place: Place, order: int | None = None) -> etree._Element:
    """Make a CD-ROM drive."""
    element = etree.Element("disk", {"type": "file", "device": "cdrom"})
    add(element, "driver", {"name": "qemu", "type": "raw"})
    if cdrom.iso_path is not None:
        add(element, "source", {"file": str(cdrom.iso_path)})
    add(element, "target", place.target)
    add(element, "readonly")
    _add_place(element, DeviceKind.CDROM, cdrom.cdrom_id, place.address, order)
    return element


def nic_element(nic: NicConfig, order: int | None = None) -> etree._Element:
    """Make a network card.

    Raises:
        Refused: it is on two networks.
    """
    if nic.bridge and nic.network:
        raise Refused(f"network card {nic.nic_id} names both a bridge and a network; it can be on one of them only")
    kind = "bridge" if nic.bridge else "network" if nic.network else "user"
    element = etree.Element("interface", {"type": kind})
    add(element, "mac", {"address": nic.mac_address})
    if kind != "user":
        add(element, "source", {kind: nic.bridge or nic.network})
    add(element, "model", {"type": nic.model.value})
    if not nic.is_link_up:
        add(element, "link", {"state": "down"})
    if order is None:
        add(element, "rom", {"enabled": "no"})  # its boot code would only cost time
    _add_place(element, DeviceKind.NIC, nic.nic_id, None, order)
    return element


def _add_place(
    element: etree._Element, kind: DeviceKind, device_id: str, address: Mapping[str, str] | None, order: int | None
) -> None:
    if order is not None:
        add(element, "boot", {"order": str(order)})
    add(element, "alias", {"name": alias_of(kind, device_id)})
    if address is not None:
        add(element, "address", address)


def io_tune(limits: IoLimits) -> dict[str, int]:
    """Say limits as libvirt does, in a definition and to a running VM alike; 0 is none.

    A burst goes to whichever steady rates there are, since QEMU has bursts above a steady rate only.
    """
    tune = {}
    for unit, rates, burst in (
        ("bytes", (limits.total_bytes_s, limits.read_bytes_s, limits.write_bytes_s), limits.burst_bytes_s),
        ("iops", (limits.total_iops, limits.read_iops, limits.write_iops), limits.burst_iops),
    ):
        for direction, rate in zip(("total", "read", "write"), rates, strict=True):
            name = f"{direction}_{unit}_sec"
            has_burst = rate > 0 and burst > 0
            tune[name] = rate
            tune[f"{name}_max"] = burst if has_burst else 0
            tune[f"{name}_max_length"] = limits.burst_duration_s if has_burst else 0
    return tune
