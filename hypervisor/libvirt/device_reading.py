"""Read devices out of a definition that libvirt wrote; pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lxml import etree

from hypervisor.devices import AttachedNic, VmDevices
from hypervisor.libvirt.device_xml import DeviceKind, io_tune
from hypervisor.libvirt.domain_metadata import read_bandwidths
from hypervisor.types import (
    CdromConfig,
    DiskBus,
    DiskCache,
    DiskConfig,
    DiskFormat,
    IoLimits,
    NicBandwidth,
    NicConfig,
    NicModel,
)

_ALIAS: Final = re.compile(r"ua-(disk|cdrom|nic)-(.+)")
_TUNE_NAMES: Final = {
    "total_iops": "total_iops_sec",
    "read_iops": "read_iops_sec",
    "write_iops": "write_iops_sec",
    "total_bytes_s": "total_bytes_sec",
    "read_bytes_s": "read_bytes_sec",
    "write_bytes_s": "write_bytes_sec",
}


def find(domain: etree._Element, alias: str) -> etree._Element | None:
    """Find a device by its alias."""
    for name in domain.iterfind("devices/*/alias"):
        if name.get("name") == alias:
            return name.getparent()
    return None


def read_devices(domain: etree._Element) -> VmDevices:
    """Read all devices that have ids of ours."""
    bandwidths = read_bandwidths(domain)
    disks, cdroms, nics = [], [], []
    for device in domain.iterfind("devices/*"):
        match = _ALIAS.fullmatch(_alias_of(device) or "")
        if match is None:
            continue
        device_id = match[2]
        match match[1]:
            case DeviceKind.DISK.value:
                disks.append(_disk(device_id, device))
            case DeviceKind.CDROM.value:
                source = source_file(device)
                path = None if source is None else Path(source)
                cdroms.append(CdromConfig(device_id, path, bus=DiskBus(bus_of(device))))
            case _:
                nics.append(_nic(device_id, device, bandwidths.get(device_id, NicBandwidth())))
    return VmDevices(tuple(disks), tuple(cdroms), tuple(nics))


def identity(device: etree._Element) -> tuple[str | None, ...]:
    """Return what makes a device the one it is: of a disk its image and bus, of a card its address and network."""
    if device.tag == "interface":
        source, mac, model = device.find("source"), device.find("mac"), device.find("model")
        kind = device.get("type", "")
        return (
            kind,
            None if source is None else source.get(kind),
            None if mac is None else mac.get("address"),
            None if model is None else model.get("type"),
        )
    driver = device.find("driver")
    return (source_file(device), None if driver is None else driver.get("type"), bus_of(device))


def source_file(disk: etree._Element) -> str | None:
    """Return the image of a disk, or what is in a drive."""
    source = disk.find("source")
    return None if source is None else source.get("file")


def target_name(disk: etree._Element) -> str:
    """Return the name by which libvirt's calls about disks know this one for now."""
    target = disk.find("target")
    return "" if target is None else target.get("dev", "")


def bus_of(disk: etree._Element) -> str:
    """Return the bus that a disk is on."""
    target = disk.find("target")
    return "" if target is None else target.get("bus", "")


def is_link_up(nic: etree._Element) -> bool:
    """Tell whether a card's cable is plugged in."""
    return nic.find("link[@state='down']") is None


def aliases_of_mac(domain: etree._Element, mac_address: str) -> Iterator[str]:
    """Name the cards that have this address; those without an alias go by ""."""
    for mac in domain.iterfind("devices/interface/mac"):
        if mac.get("address", "").lower() == mac_address:
            yield _alias_of(mac.getparent()) or ""


def boot_disk_alias(domain: etree._Element) -> str | None:
    """Return the alias of the disk that the firmware tries first; None if it is told of no disk."""
    orders = {
        int(boot.get("order", "0")): boot.getparent()
        for boot in domain.iterfind("devices/disk[@device='disk']/boot")
        if boot.get("order", "").isdecimal()
    }
    if not orders:
        return None
    return _alias_of(orders[min(orders)])


def _alias_of(device: etree._Element | None) -> str | None:
    alias = None if device is None else device.find("alias")
    return None if alias is None else alias.get("name")


def has_free_slot(domain: etree._Element) -> bool:
    """Tell whether a PCI Express port has nothing in it, so that a device can be plugged in."""
    taken = {int(address.get("bus", "0"), 0) for address in domain.iterfind("devices/*/address[@type='pci']")}
    ports = domain.iterfind("devices/controller[@type='pci'][@model='pcie-root-port']")
    return any(int(port.get("index", "0")) not in taken for port in ports)


def _disk(disk_id: str, disk: etree._Element) -> DiskConfig:
    driver = disk.find("driver")
    assert driver is not None  # noqa: S101  # libvirt writes one for every disk of a file
    return DiskConfig(
        disk_id=disk_id,
        path=Path(source_file(disk) or ""),
        format=DiskFormat(driver.get("type", "raw")),
        bus=DiskBus(bus_of(disk)),
        cache=DiskCache(driver.get("cache", "writeback")),
        readonly=disk.find("readonly") is not None,
        discard=driver.get("discard") == "unmap",
        limits=limits_of(disk),
    )


def limits_of(disk: etree._Element) -> IoLimits:
    """Return a disk's ceilings."""
    iotune = disk.find("iotune")
    if iotune is None:
        return IoLimits()
    values = {name: int(iotune.findtext(name) or 0) for name in io_tune(IoLimits())}
    return IoLimits(
        **{field: values[name] for field, name in _TUNE_NAMES.items()},
        burst_iops=max(value for name, value in values.items() if name.endswith("_iops_sec_max")),
        burst_bytes_s=max(value for name, value in values.items() if name.endswith("_bytes_sec_max")),
        burst_duration_s=max(value for name, value in values.items() if name.endswith("_max_length")),
    )


def _nic(nic_id: str, nic: etree._Element, bandwidth: NicBandwidth) -> AttachedNic:
    kind, source, mac, model = identity(nic)
    target = nic.find("target")
    config = NicConfig(
        nic_id=nic_id,
        mac_address=mac or "",
        model=NicModel(model or NicModel.RTL8139.value),
        bridge=(source or "") if kind == "bridge" else "",
        network=(source or "") if kind == "network" else "",
        is_link_up=is_link_up(nic),
        bandwidth=bandwidth,
    )
    return AttachedNic(config, "" if target is None else target.get("dev", ""))
