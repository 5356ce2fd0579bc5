"""MAC addresses for NICs that were given none."""

from __future__ import annotations

import secrets

_QEMU_PREFIX = "52:54:00"
"""Locally administered prefix that QEMU and libvirt use for virtual machines."""


def random_mac() -> str:
    """Make a MAC address at random: 24 free bits, drawn anew for each NIC."""
    tail = secrets.token_bytes(3)
    return _QEMU_PREFIX + "".join(f":{byte:02x}" for byte in tail)
