"""From a VM's configuration to a libvirt domain definition; pure, built as a tree and never by joining strings.

Source of every element: https://libvirt.org/formatdomain.html, whose schema the tests validate against. The machine is
always q35, with ACPI.
"""

from __future__ import annotations

import re
import uuid
from typing import Final

from lxml import etree

from hypervisor.boot_order import boot_orders
from hypervisor.errors import Refused
from hypervisor.libvirt import console_log
from hypervisor.libvirt.device_xml import add, add_disks, add_hotplug_ports, add_nic
from hypervisor.libvirt.display_xml import add_display
from hypervisor.libvirt.domain_metadata import mark_element
from hypervisor.libvirt.first_boot_xml import add_first_boot
from hypervisor.libvirt.hardware_xml import (
    HostTraits,
    add_clock,
    add_cpu,
    add_features,
    add_machine_devices,
    add_os,
    add_serial_ports,
    add_size,
)
from hypervisor.types import Accelerator, BootDevice, VmConfig

__all__ = ["HostTraits", "build_domain", "is_uuid", "make_domain_name", "parse", "require_uuid", "to_text"]

MAX_DOMAIN_NAME_LENGTH: Final = 40
_ID_DIGITS: Final = 12

_NOT_IN_TITLE: Final = re.compile("[^\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


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
        add(domain, "name", text=domain_name or make_domain_name(config))
        add(domain, "uuid", text=config.vm_id)
        if title := _NOT_IN_TITLE.sub(" ", config.name).strip():
            add(domain, "title", text=title)
        add(domain, "metadata").append(mark_element(config))
        add_size(domain, config, host)
        add_os(domain, config)
        add_features(domain, config, host)
        add_cpu(domain, config, host)
        add_clock(domain, config, host)
        for event, action in (("poweroff", "destroy"), ("reboot", "restart"), ("crash", "destroy")):
            add(domain, f"on_{event}", text=action)
        power_management = add(domain, "pm")
        add(power_management, "suspend-to-mem", {"enabled": "no"})
        add(power_management, "suspend-to-disk", {"enabled": "no"})
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


def _add_devices(domain: etree._Element, config: VmConfig, host: HostTraits, vnc_password: str) -> None:
    devices = add(domain, "devices")
    orders = boot_orders(config)
    add_disks(devices, config, orders)
    add_first_boot(domain, devices, config)
    for place, nic in enumerate(config.nics):
        add_nic(devices, nic, orders.get((BootDevice.NETWORK, place)))
    _add_consoles(devices, config, host)
    add_display(devices, config, vnc_password)
    add_machine_devices(devices, config)
    add_hotplug_ports(devices)  # last: it counts what is there


def _add_consoles(devices: etree._Element, config: VmConfig, host: HostTraits) -> None:
    serial = add(devices, "serial", {"type": "pty"})
    log = console_log.log_path(host.console_log_dir, config.vm_id)
    add(serial, "log", {"file": str(log), "append": "on"})
    add(serial, "target", {"port": "0"})
    add_serial_ports(devices, config)
    add(add(devices, "console", {"type": "pty"}), "target", {"type": "serial", "port": "0"})
    channel = add(devices, "channel", {"type": "unix"})
    add(channel, "target", {"type": "virtio", "name": "org.qemu.guest_agent.0"})
