"""A domain's definition as the host needs it to which the domain moves; pure."""

from __future__ import annotations

from pathlib import Path

from lxml import etree

from hypervisor.libvirt.domain_metadata import changed_mark_in_place
from hypervisor.migration import Route, Ties

_PATHS = (
    ("devices/disk/source", "file"),
    ("devices/disk//backingStore/source", "file"),
    ("devices/*/log", "file"),
    ("sysinfo/entry", "file"),
)
"""Elements with an attribute that names a file of ours."""
_TEXTS = ("os/kernel", "os/initrd")


def translate(domain: etree._Element, route: Route, *, copies_disks: bool) -> None:
    """Put the target's paths in place of this host's.

    Args:
        copies_disks: copies are whole, and need none of the images that theirs are built upon.
    """
    if copies_disks:
        for chain in domain.findall("devices/disk/backingStore"):
            parent = chain.getparent()
            if parent is not None and parent.find("readonly") is None:
                parent.remove(chain)
    for path, name in _PATHS:
        for element in domain.iterfind(path):
            if (value := element.get(name)) is not None:
                element.set(name, str(route.translate(Path(value))))
    for path in _TEXTS:
        for element in domain.iterfind(path):
            if element.text:
                element.text = str(route.translate(Path(element.text)))
    if route.here != route.there:
        changed_mark_in_place(domain)


_FIRST_TO_DROP_CACHES = 4_000_000
"""QEMU 4.0, as libvirt writes it: from then on the target forgets what its host has cached of a disk before it runs the
guest. Source: QEMU's documentation of the block driver "file", option `drop-cache`; libvirt goes by it too."""


def ties_of(domain: etree._Element, *, has_snapshots: bool, qemu_version: int) -> Ties:
    """Find what ties a domain to its host.

    Args:
        qemu_version: major * 1,000,000 + minor * 1,000 + release.
    """
    cached = [
        driver.get("cache", "")
        for disk in domain.iterfind("devices/disk[@device='disk']")
        if disk.find("readonly") is None and (driver := disk.find("driver")) is not None
    ]
    return Ties(
        has_snapshots,
        domain.find("devices/hostdev") is not None,
        qemu_version < _FIRST_TO_DROP_CACHES and any(mode not in ("none", "directsync") for mode in cached),
    )


def keeps_state_on_host(domain: etree._Element) -> bool:
    """Tell whether something beside the disks lasts while the domain is off: its firmware's variables, or a TPM."""
    return domain.find("os/nvram") is not None or domain.find("devices/tpm") is not None
