"""From a VM's configuration to a libvirt domain definition; pure, built as a tree and never by joining strings.

Source of every element: https://libvirt.org/formatdomain.html, whose schema the tests validate against. The machine is
always q35, with ACPI and a UTC clock.
"""

from __future__ import annotations

import itertools
import re
import string
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lxml import etree

from hypervisor.errors import Refused
from hypervisor.libvirt import console_log
from hypervisor.libvirt.domain_metadata import mark_element
from hypervisor.types import (
    Accelerator,
    BootDevice,
    CdromConfig,
    CpuTopology,
    DiskBus,
    DiskCache,
    DiskConfig,
    Firmware,
    NicConfig,
    VmConfig,
)

EMULATED_CPU_MODEL: Final = "Nehalem"
"""What an emulated guest gets unless it asks for a model.

The smallest model at level x86-64-v2, which current distributions need to boot; emulation has all of it, it boots as
fast as qemu64 does, and unlike `maximum` it is the same in every version of QEMU.
"""
TCG_CACHE_MIB: Final = 32
"""Bound of the emulator's cache of translated code. QEMU's own is up to 1 GiB a VM; 8 MiB nearly triples boot time."""
BALLOON_PERIOD_S: Final = 10
"""How often the guest reports its memory use."""
MAX_DOMAIN_NAME_LENGTH: Final = 40
_ID_DIGITS: Final = 12
_SCSI_TARGET_COUNT: Final = 256
_SATA_PORT_COUNT: Final = 6
_SERIAL_LENGTH: Final = 20
"""What the ATA and virtio standards give a disk's serial number."""

_CPU_MODES: Final = frozenset({"host-passthrough", "host-model", "maximum"})
_DEFAULT_BOOT_ORDER: Final = (BootDevice.DISK, BootDevice.CDROM)
_BootOrders = Mapping[tuple[BootDevice, int], int]
_NOT_IN_TITLE: Final = re.compile("[^\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class HostTraits:
    """What a definition depends on besides the configuration."""

    accelerator: Accelerator
    console_log_dir: Path
    supports_tcg_cache: bool = True


def build_domain(
    config: VmConfig, host: HostTraits, *, vnc_password: str = "", domain_name: str = ""
) -> etree._Element:
    """Make the definition of a VM.

    Args:
        vnc_password: for a VNC display whose configuration leaves the password to us.
        domain_name: the name an existing domain keeps; "" makes one.

    Raises:
        Refused: the configuration has something no definition can say; the message tells what.
    """
    require_uuid(config.vm_id)
    try:
        domain = etree.Element("domain", {"type": "kvm" if host.accelerator is Accelerator.KVM else "qemu"})
        _add(domain, "name", text=domain_name or make_domain_name(config))
        _add(domain, "uuid", text=config.vm_id)
        if title := _NOT_IN_TITLE.sub(" ", config.name).strip():
            _add(domain, "title", text=title)
        _add(domain, "metadata").append(mark_element(config))
        _add(domain, "memory", {"unit": "MiB"}, str(config.memory_mib))
        _add(domain, "vcpu", text=str(config.cpu.vcpu_count))
        _add_os(domain, config)
        _add_features(domain, host)
        _add_cpu(domain, config.cpu, host.accelerator)
        _add_clock(domain, host.accelerator)
        for event, action in (("poweroff", "destroy"), ("reboot", "restart"), ("crash", "destroy")):
            _add(domain, f"on_{event}", text=action)
        power_management = _add(domain, "pm")
        _add(power_management, "suspend-to-mem", {"enabled": "no"})
        _add(power_management, "suspend-to-disk", {"enabled": "no"})
        _add_devices(domain, config, host, vnc_password)
    except ValueError as error:  # what lxml raises for characters that XML cannot hold, as in a path
        raise Refused(f"the configuration of VM {config.vm_id} holds a character that libvirt cannot store") from error
    return domain


def to_text(domain: etree._Element) -> str:
    """Write a definition as libvirt takes it."""
    return etree.tostring(domain, encoding="unicode")


def parse(document: str) -> etree._Element:
    """Read a definition that libvirt wrote."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=True)
    return etree.fromstring(document.encode(), parser)


def read_max_vcpus(domain_capabilities: str) -> int:
    """Return how many vCPUs a VM may have, from what libvirt says of a machine type; 0 if it does not say."""
    vcpu = parse(domain_capabilities).find("vcpu")
    return 0 if vcpu is None else int(vcpu.get("max", "0"))


def make_domain_name(config: VmConfig) -> str:
    """Name a domain so that people recognise it in virsh: the VM's name as far as it is plain, and part of its id."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", config.name).strip("-.")
    length = MAX_DOMAIN_NAME_LENGTH - _ID_DIGITS - 1
    return f"{plain[:length] or 'vm'}-{config.vm_id.replace('-', '')[:_ID_DIGITS]}"


def require_uuid(vm_id: str) -> None:
    """Refuse an id that is not a UUID as we write them; it also becomes part of a path.

    Raises:
        Refused: it is not.
    """
    if not is_uuid(vm_id):
        raise Refused(f"a VM's id must be a UUID in lower case with hyphens, not {vm_id!r}")


def is_uuid(text: str) -> bool:
    """Tell whether this is a UUID in its usual form, in lower case."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def device_name(prefix: str, index: int) -> str:
    """Name the disk number `index`, from 0, as Linux does: sda to sdz, then sdaa."""
    letters = ""
    index += 1
    while index:
        index, letter = divmod(index - 1, len(string.ascii_lowercase))
        letters = string.ascii_lowercase[letter] + letters
    return prefix + letters


def _add(
    parent: etree._Element, tag: str, attributes: Mapping[str, str] | None = None, text: str | None = None
) -> etree._Element:
    child = etree.SubElement(parent, tag, dict(attributes or {}))
    child.text = text
    return child


def _add_os(domain: etree._Element, config: VmConfig) -> None:
    os_ = _add(domain, "os", {"firmware": "efi"} if config.firmware is Firmware.UEFI else None)
    _add(os_, "type", {"arch": "x86_64", "machine": "q35"}, "hvm")
    if config.firmware is Firmware.UEFI:
        firmware = _add(os_, "firmware")
        for feature in ("enrolled-keys", "secure-boot"):
            _add(firmware, "feature", {"enabled": "no", "name": feature})
    if config.direct_boot is not None:
        _add(os_, "kernel", text=str(config.direct_boot.kernel_path))
        if config.direct_boot.initrd_path is not None:
            _add(os_, "initrd", text=str(config.direct_boot.initrd_path))
        if config.direct_boot.cmdline:
            _add(os_, "cmdline", text=config.direct_boot.cmdline)


def _add_features(domain: etree._Element, host: HostTraits) -> None:
    features = _add(domain, "features")
    _add(features, "acpi")
    _add(features, "apic")
    if host.accelerator is Accelerator.TCG and host.supports_tcg_cache:
        _add(_add(features, "tcg"), "tb-cache", {"unit": "MiB"}, str(TCG_CACHE_MIB))


def _add_cpu(domain: etree._Element, cpu: CpuTopology, accelerator: Accelerator) -> None:
    is_emulated = accelerator is not Accelerator.KVM
    model = cpu.model or (EMULATED_CPU_MODEL if is_emulated else "host-passthrough")
    if model == "host-passthrough" and is_emulated:
        raise Refused(
            "CPU model host-passthrough needs KVM, and this host emulates; leave the model empty or name another"
        )
    if model in _CPU_MODES:
        element = _add(domain, "cpu", {"mode": model})
    else:
        element = _add(domain, "cpu", {"mode": "custom", "match": "exact"})
        _add(element, "model", {"fallback": "forbid"}, model)
    topology = {"sockets": str(cpu.sockets), "cores": str(cpu.cores), "threads": str(cpu.threads)}
    _add(element, "topology", topology)


def _add_clock(domain: etree._Element, accelerator: Accelerator) -> None:
    """Set the clock to UTC; on hardware, with the timers that keep time right under load and cost least."""
    clock = _add(domain, "clock", {"offset": "utc"})
    if accelerator is Accelerator.KVM:
        _add(clock, "timer", {"name": "rtc", "tickpolicy": "catchup"})
        _add(clock, "timer", {"name": "pit", "tickpolicy": "delay"})
        _add(clock, "timer", {"name": "hpet", "present": "no"})


def _add_devices(domain: etree._Element, config: VmConfig, host: HostTraits, vnc_password: str) -> None:
    devices = _add(domain, "devices")
    orders = _boot_orders(config)
    _add_disks(devices, config, orders)
    for place, nic in enumerate(config.nics):
        _add_nic(devices, nic, orders.get((BootDevice.NETWORK, place)))
    _add_consoles(devices, config, host)
    if config.vnc is not None:
        _add(devices, "controller", {"type": "usb", "index": "0", "model": "qemu-xhci"})
        _add(devices, "input", {"type": "tablet", "bus": "usb"})
        graphics = {"type": "vnc", "autoport": "yes", "listen": "127.0.0.1"}
        if password := config.vnc.password or vnc_password:
            graphics["passwd"] = password
        _add(devices, "graphics", graphics)
        _add(_add(devices, "video"), "model", {"type": "vga"})
    else:
        _add(devices, "controller", {"type": "usb", "index": "0", "model": "none"})
    _add(_add(devices, "memballoon", {"model": "virtio"}), "stats", {"period": str(BALLOON_PERIOD_S)})
    _add(_add(devices, "rng", {"model": "virtio"}), "backend", {"model": "random"}, "/dev/urandom")
    _add(devices, "panic", {"model": "isa"})  # how a Linux or Windows guest tells that it crashed


def _add_consoles(devices: etree._Element, config: VmConfig, host: HostTraits) -> None:
    serial = _add(devices, "serial", {"type": "pty"})
    log = console_log.log_path(host.console_log_dir, config.vm_id)
    _add(serial, "log", {"file": str(log), "append": "on"})
    _add(serial, "target", {"port": "0"})
    _add(_add(devices, "console", {"type": "pty"}), "target", {"type": "serial", "port": "0"})
    channel = _add(devices, "channel", {"type": "unix"})
    _add(channel, "target", {"type": "virtio", "name": "org.qemu.guest_agent.0"})


def _add_disks(devices: etree._Element, config: VmConfig, orders: _BootOrders) -> None:
    """Add disks and CD-ROM drives, and the controllers they need.

    q35 has no IDE controller, so a disk that asks for IDE goes to SATA, which is what its built-in controller offers in
    IDE's place; guests since Linux 2.6.20 call the disk sdX either way. Addresses are stated, since libvirt would
    derive them from target names, which SCSI and SATA share.
    """
    virtio_names, other_names = itertools.count(), itertools.count()
    scsi_targets, sata_ports = itertools.count(), itertools.count()
    if any(disk.bus is DiskBus.SCSI for disk in config.disks):
        _add(devices, "controller", {"type": "scsi", "index": "0", "model": "virtio-scsi"})
    for place, disk in enumerate(config.disks):
        order = orders.get((BootDevice.DISK, place))
        match disk.bus:
            case DiskBus.VIRTIO:
                _add_disk(devices, disk, _target("virtio", next(virtio_names)), None, order)
            case DiskBus.SCSI:
                if (scsi_target := next(scsi_targets)) >= _SCSI_TARGET_COUNT:
                    raise Refused(f"a VM has room for {_SCSI_TARGET_COUNT} SCSI disks")
                address = _drive_address(target=scsi_target)
                _add_disk(devices, disk, _target("scsi", next(other_names)), address, order)
            case DiskBus.SATA | DiskBus.IDE:
                address = _sata_address(next(sata_ports))
                _add_disk(devices, disk, _target("sata", next(other_names)), address, order)
    for place, cdrom in enumerate(config.cdroms):
        order = orders.get((BootDevice.CDROM, place))
        _add_cdrom(devices, cdrom, _target("sata", next(other_names)), _sata_address(next(sata_ports)), order)


def _target(bus: str, index: int) -> dict[str, str]:
    return {"dev": device_name("vd" if bus == "virtio" else "sd", index), "bus": bus}


def _drive_address(*, controller: int = 0, target: int = 0, unit: int = 0) -> dict[str, str]:
    place = {"controller": controller, "bus": 0, "target": target, "unit": unit}
    return {"type": "drive"} | {key: str(number) for key, number in place.items()}


def _sata_address(port: int) -> dict[str, str]:
    return _drive_address(controller=port // _SATA_PORT_COUNT, unit=port % _SATA_PORT_COUNT)


def _add_disk(
    devices: etree._Element,
    disk: DiskConfig,
    target: Mapping[str, str],
    address: Mapping[str, str] | None,
    order: int | None,
) -> None:
    element = _add(devices, "disk", {"type": "file", "device": "disk"})
    driver = {
        "name": "qemu",
        "type": disk.format.value,
        "cache": disk.cache.value,
        # Native I/O needs O_DIRECT, which only this cache mode uses.
        "io": "native" if disk.cache is DiskCache.NONE else "threads",
        "discard": "unmap" if disk.discard else "ignore",
    }
    _add(element, "driver", driver)
    _add(element, "source", {"file": str(disk.path)})
    _add(element, "target", target)
    if disk.readonly:
        _add(element, "readonly")
    if serial := re.sub(r"[^A-Za-z0-9_.]", "", disk.disk_id)[:_SERIAL_LENGTH]:
        _add(element, "serial", text=serial)
    _add_place(element, address, order)


def _add_cdrom(
    devices: etree._Element,
    cdrom: CdromConfig,
    target: Mapping[str, str],
    address: Mapping[str, str],
    order: int | None,
) -> None:
    element = _add(devices, "disk", {"type": "file", "device": "cdrom"})
    _add(element, "driver", {"name": "qemu", "type": "raw"})
    if cdrom.iso_path is not None:
        _add(element, "source", {"file": str(cdrom.iso_path)})
    _add(element, "target", target)
    _add(element, "readonly")
    _add_place(element, address, order)


def _add_place(element: etree._Element, address: Mapping[str, str] | None, order: int | None) -> None:
    if order is not None:
        _add(element, "boot", {"order": str(order)})
    if address is not None:
        _add(element, "address", address)


def _add_nic(devices: etree._Element, nic: NicConfig, order: int | None) -> None:
    if nic.bridge and nic.network:
        raise Refused(f"network card {nic.nic_id} names both a bridge and a network; it can be on one of them only")
    kind = "bridge" if nic.bridge else "network" if nic.network else "user"
    element = _add(devices, "interface", {"type": kind})
    _add(element, "mac", {"address": nic.mac_address})
    if kind != "user":
        _add(element, "source", {kind: nic.bridge or nic.network})
    _add(element, "model", {"type": nic.model.value})
    if order is not None:
        _add(element, "boot", {"order": str(order)})
    else:
        _add(element, "rom", {"enabled": "no"})  # its boot code would only cost time


def _boot_orders(config: VmConfig) -> _BootOrders:
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
