"""What virt-install makes for guest systems, noted so that a test needs neither it nor a libvirt daemon."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from lxml import etree

from hypervisor.guest_profiles import GuestFamily


@dataclass(frozen=True)
class Facts:
    """What virt-install makes for a system, of that which both of us choose."""

    clock: str
    timers: tuple[str, ...]
    hyperv: tuple[str, ...]
    vmport: str
    disk_bus: str
    nic_model: str


_LINUX = Facts("utc", ("rtc", "pit", "hpet"), (), "off", "virtio", "virtio")
_WINDOWS = Facts(
    "localtime", ("rtc", "pit", "hpet", "hypervclock"), ("relaxed", "vapic", "spinlocks"), "off", "sata", "e1000e"
)

FACTS = {
    (GuestFamily.DEBIAN, "debian11"): _LINUX,
    (GuestFamily.RHEL, "rhel9.1"): _LINUX,
    (GuestFamily.FEDORA, "fedora37"): _LINUX,
    (GuestFamily.SUSE, "opensuse15.4"): _LINUX,
    (GuestFamily.ARCH, "archlinux"): _LINUX,
    (GuestFamily.GENERIC_LINUX, "linux2022"): _LINUX,
    (GuestFamily.WINDOWS_SERVER, "win2k22"): _WINDOWS,
    (GuestFamily.WINDOWS_DESKTOP, "win11"): _WINDOWS,
    (GuestFamily.WINDOWS_LEGACY, "winxp"): dataclasses.replace(_WINDOWS, disk_bus="ide", nic_model="e1000"),
    (GuestFamily.FREEBSD, "freebsd13.1"): _LINUX,
    (GuestFamily.OPENBSD, "openbsd7.0"): _LINUX,
    (GuestFamily.NETBSD, "netbsd9.0"): dataclasses.replace(_LINUX, disk_bus="ide", nic_model="e1000"),
    (GuestFamily.SOLARIS, "solaris11"): dataclasses.replace(
        _LINUX, clock="localtime", disk_bus="ide", nic_model="e1000"
    ),
}
"""As virt-install 4.1.0 with osinfo-db 20221130 made it; where it has IDE, on its older machine, ours has SATA."""


def read_facts(domain: etree._Element) -> Facts:
    """Read them from a domain's definition."""
    hyperv, vmport = domain.find("features/hyperv"), domain.find("features/vmport")
    clock = domain.find("clock")
    assert clock is not None
    target, model = domain.find("devices/disk/target"), domain.find("devices/interface/model")
    return Facts(
        str(clock.get("offset")),
        tuple(str(timer.get("name")) for timer in clock.iterfind("timer")),
        () if hyperv is None else tuple(str(each.tag) for each in hyperv),
        "" if vmport is None else str(vmport.get("state")),
        "" if target is None else str(target.get("bus")),
        "" if model is None else str(model.get("type")),
    )
