"""Devices of this host, as libvirt's node-device driver lists them, with what keeps each from being passed through.

Source: https://libvirt.org/formatnode.html.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from lxml import etree

from hypervisor.abilities import DeviceKind, HostDevice
from hypervisor.host_devices import HostDevices
from hypervisor.libvirt.connection import LibvirtConnection
from hypervisor.libvirt.error_map import ErrorCode, has_code

_LIST_DEADLINE_S: Final = 30.0
_PCI_BRIDGE_CLASSES: Final = ("0600", "0601", "0604")
"""Host, ISA and PCI bridges: parts of the host itself. Source: PCI Code and ID Assignment Specification, base 06h."""

_GUARDED_CLASSES: Final = ("01", "02")
"""Storage and network controllers: libvirt would take them from the host without asking, its own disk included."""
_IDLE_DRIVERS: Final = ("vfio-pci", "pci-stub")


class LibvirtHostDevices(HostDevices):
    """See `HostDevices`."""

    def __init__(self, connection: LibvirtConnection) -> None:
        self._connection = connection

    async def list(self) -> Sequence[HostDevice]:
        """See `HostDevices`; none where libvirt has no node-device driver."""
        return await self._connection.run(
            lambda connection: read_host_devices(connection, self._connection.library), deadline_s=_LIST_DEADLINE_S
        )


def read_host_devices(connection: Any, library: Any) -> list[HostDevice]:
    """List devices, in a worker thread."""
    try:
        found = connection.listAllDevices(
            library.VIR_CONNECT_LIST_NODE_DEVICES_CAP_PCI_DEV
            | library.VIR_CONNECT_LIST_NODE_DEVICES_CAP_USB_DEV
            | library.VIR_CONNECT_LIST_NODE_DEVICES_CAP_MDEV
        )
        documents = [_description(device, library) for device in found]
    except library.libvirtError as error:
        if has_code(error, ErrorCode.NO_SUPPORT):
            return []
        raise
    users = _users(connection, library)
    devices = [
        device
        for document in documents
        if document is not None and (device := device_of(_parse(document), users)) is not None
    ]
    return sorted(devices, key=lambda device: (device.kind.value, device.address))


def _description(device: Any, library: Any) -> str | None:
    try:
        return str(device.XMLDesc(0))
    except library.libvirtError:
        return None  # unplugged since it was listed


def device_of(node: etree._Element, users: Mapping[tuple[DeviceKind, str], str]) -> HostDevice | None:
    """Read one description; None for what is no device that could be passed on.

    Args:
        users: ids of the running VMs that have devices, by kind and address.
    """
    capability = node.find("capability")
    if capability is None:
        return None
    driver = node.findtext("driver/name") or ""
    match capability.get("type"):
        case "pci":
            return _pci(capability, driver, users)
        case "usb_device":
            return _usb(capability, users)
        case "mdev":
            return _mediated(capability, users)
    return None


def _pci(capability: etree._Element, driver: str, users: Mapping[tuple[DeviceKind, str], str]) -> HostDevice | None:
    numbers = [int(capability.findtext(name) or 0) for name in ("domain", "bus", "slot", "function")]
    address = "{:04x}:{:02x}:{:02x}.{:x}".format(*numbers)
    class_code = (capability.findtext("class") or "").removeprefix("0x")
    group = capability.find("iommuGroup")
    numa = capability.find("numa")
    used_by = users.get((DeviceKind.PCI, address), "")
    obstacle = ""
    if group is None:
        obstacle = "it is in no IOMMU group"
    elif class_code[:4] in _PCI_BRIDGE_CLASSES:
        obstacle = "it is a bridge, a part of the host itself"
    elif used_by:
        obstacle = f"VM {used_by} has it"
    elif class_code[:2] in _GUARDED_CLASSES and driver not in ("", *_IDLE_DRIVERS):
        obstacle = f"the host uses it by its driver {driver}; bind it to vfio-pci first"
    return HostDevice(
        DeviceKind.PCI,
        address,
        *_names(capability),
        class_code=class_code,
        driver=driver,
        iommu_group=None if group is None else int(group.get("number", "0")),
        profiles=tuple(
            sorted(kind.get("id", "") for kind in capability.iterfind("capability[@type='mdev_types']/type"))
        ),
        numa_node=None if numa is None else int(numa.get("node", "0")),
        obstacle=obstacle,
        used_by=used_by,
    )


def _usb(capability: etree._Element, users: Mapping[tuple[DeviceKind, str], str]) -> HostDevice:
    address = f"{int(capability.findtext('bus') or 0)}:{int(capability.findtext('device') or 0)}"
    used_by = users.get((DeviceKind.USB, address), "")
    obstacle = f"VM {used_by} has it" if used_by else ""
    return HostDevice(DeviceKind.USB, address, *_names(capability), obstacle=obstacle, used_by=used_by)


def _mediated(capability: etree._Element, users: Mapping[tuple[DeviceKind, str], str]) -> HostDevice:
    address = (capability.findtext("uuid") or "").lower()
    kind, group = capability.find("type"), capability.find("iommuGroup")
    used_by = users.get((DeviceKind.MEDIATED, address), "")
    return HostDevice(
        DeviceKind.MEDIATED,
        address,
        iommu_group=None if group is None else int(group.get("number", "0")),
        profiles=() if kind is None else (kind.get("id", ""),),
        obstacle=f"VM {used_by} has it" if used_by else "",
        used_by=used_by,
    )


def _names(capability: etree._Element) -> tuple[str, str, str, str]:
    """Return vendor and product, first as numbers, then in words."""
    product, vendor = capability.find("product"), capability.find("vendor")
    return (
        "" if vendor is None else vendor.get("id", "").removeprefix("0x"),
        "" if product is None else product.get("id", "").removeprefix("0x"),
        "" if vendor is None else (vendor.text or "").strip(),
        "" if product is None else (product.text or "").strip(),
    )


def _users(connection: Any, library: Any) -> dict[tuple[DeviceKind, str], str]:
    """Return who has which device, of the VMs that run."""
    users = {}
    for domain in connection.listAllDomains(library.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        try:
            tree = _parse(domain.XMLDesc(0))
        except library.libvirtError:
            continue  # it ended since it was listed
        for address in tree.iterfind("devices/hostdev/source/address"):
            if key := _key(address):
                users[key] = domain.UUIDString()
    return users


def _key(address: etree._Element) -> tuple[DeviceKind, str] | None:
    if uuid := address.get("uuid"):
        return DeviceKind.MEDIATED, uuid.lower()
    if address.get("slot") is not None:
        numbers = [int(address.get(name, "0"), 16) for name in ("domain", "bus", "slot", "function")]
        return DeviceKind.PCI, "{:04x}:{:02x}:{:02x}.{:x}".format(*numbers)
    if address.get("device") is not None:
        return DeviceKind.USB, f"{int(address.get('bus', '0'))}:{int(address.get('device', '0'))}"
    return None


def _parse(document: str) -> etree._Element:
    return etree.fromstring(document.encode(), etree.XMLParser(resolve_entities=False, no_network=True))
