"""What a guest is told at its first boot, as elements of a domain: a CD-ROM drive of its own, or a firmware entry.

Source: https://libvirt.org/formatdomain.html, "SMBIOS System Information" (`fwcfg`) and "Hard drives, floppy disks,
CDROMs".
"""

from __future__ import annotations

from typing import Final

from lxml import etree

from hypervisor.libvirt.device_xml import Places, add, scsi_controller
from hypervisor.types import DiskBus, FirstBootMedium, MediumKind, VmConfig

IGNITION_ENTRY: Final = "opt/com.coreos/config"
"""Where Ignition looks on QEMU. Source: coreos.github.io/ignition/supported-platforms."""


def add_first_boot(domain: etree._Element, devices: etree._Element, config: VmConfig) -> None:
    """Add the VM's first-boot medium, if it has one, behind its own drives. The firmware never boots from it."""
    medium = config.first_boot
    if medium is None:
        return
    match medium.kind:
        case MediumKind.CDROM:
            _add_drive(domain, devices, medium)
        case MediumKind.FIRMWARE:
            information = add(domain, "sysinfo", {"type": "fwcfg"})
            add(information, "entry", {"name": IGNITION_ENTRY, "file": str(medium.path)})


def _add_drive(domain: etree._Element, devices: etree._Element, medium: FirstBootMedium) -> None:
    """Add the drive; it has no alias, by which the devices of the VM are known."""
    if medium.bus is DiskBus.SCSI and devices.find("controller[@type='scsi']") is None:
        devices.append(scsi_controller())
    place = Places(domain).of_disk(medium.bus)
    drive = add(devices, "disk", {"type": "file", "device": "cdrom"})
    add(drive, "driver", {"name": "qemu", "type": "raw"})
    add(drive, "source", {"file": str(medium.path)})
    add(drive, "target", place.target)
    add(drive, "readonly")
    if place.address is not None:
        add(drive, "address", place.address)
