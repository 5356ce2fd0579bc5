"""What suits which guest system: one table of data, and nothing else decides by what runs inside a VM.

Sources: Microsoft's Hyper-V Top-Level Functional Specification as QEMU's docs/system/i386/hyperv.rst puts it, libvirt's
formatdomain.html (features, clock), and what virt-install makes for the same systems, against which a test holds this
table.

A profile chooses timers, clock and enlightenments, which need no driver in the guest. Which disks and cards a VM has is
said by whoever makes it; only for systems that have no virtio drivers at all are those that would be virtio replaced.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final


class GuestFamily(enum.Enum):
    """Families of guests with the same needs; the values are names that the contract's families have in lower case."""

    UNSPECIFIED = ""
    RHEL = "rhel"
    DEBIAN = "debian"
    SUSE = "suse"
    ARCH = "arch"
    FEDORA = "fedora"
    GENERIC_LINUX = "generic_linux"
    WINDOWS_SERVER = "windows_server"
    WINDOWS_DESKTOP = "windows_desktop"
    WINDOWS_LEGACY = "windows_legacy"
    FREEBSD = "freebsd"
    OPENBSD = "openbsd"
    NETBSD = "netbsd"
    MACOS = "macos"
    SOLARIS = "solaris"
    OTHER = "other"


class ClockOffset(enum.Enum):
    """What the guest takes its hardware clock to show."""

    UTC = "utc"
    LOCAL_TIME = "localtime"


@dataclass(frozen=True, slots=True)
class GuestProfile:
    """What a family needs.

    `hyperv_features` are libvirt's names. `can_add_vcpus` and `can_add_memory` say whether its systems take them while
    they run. `has_virtio_drivers` is False where none exist, in the system or beside it; then the suggested bus and
    card take virtio's place. `refusal` is why VMs for it are not made, "" for all others.
    """

    clock: ClockOffset = ClockOffset.UTC
    hyperv_features: tuple[str, ...] = ()
    hyperv_clock: bool = False
    kvmclock: bool = True
    hpet: bool = False
    has_catch_up_timers: bool = True
    has_virtio_drivers: bool = True
    suggested_disk_bus: str = "virtio"
    suggested_nic_model: str = "virtio"
    can_add_vcpus: bool = True
    can_add_memory: bool = True
    refusal: str = ""


UNIVERSAL_HYPERV_FEATURES: Final = ("relaxed", "vapic", "spinlocks")
"""Those that the emulator has without help of the kernel, and every Windows since Vista and 2008 understands."""
HYPERV_FEATURES: Final = (
    *UNIVERSAL_HYPERV_FEATURES,
    "vpindex",
    "runtime",
    "synic",
    "stimer",
    "reset",
    "frequencies",
)
"""Each comes after those it needs: `synic` needs `vpindex`, `stimer` needs `synic` and the clock."""
SPINLOCK_RETRIES: Final = 8191
"""Tries before a guest's processor tells that it waits. Source: QEMU, docs/system/i386/hyperv.rst; 0x1fff."""

_LINUX: Final = GuestProfile()
_WINDOWS: Final = GuestProfile(
    clock=ClockOffset.LOCAL_TIME,
    hyperv_features=HYPERV_FEATURES,
    hyperv_clock=True,
    suggested_disk_bus="sata",
    suggested_nic_model="e1000e",
)
_BSD: Final = GuestProfile(can_add_vcpus=False, can_add_memory=False)

PROFILES: Final[Mapping[GuestFamily, GuestProfile]] = MappingProxyType(
    {
        # As VMs were made before there were profiles.
        GuestFamily.UNSPECIFIED: replace(_LINUX, has_catch_up_timers=False),
        GuestFamily.RHEL: _LINUX,
        GuestFamily.DEBIAN: _LINUX,
        GuestFamily.SUSE: _LINUX,
        GuestFamily.ARCH: _LINUX,
        GuestFamily.FEDORA: _LINUX,
        GuestFamily.GENERIC_LINUX: _LINUX,
        GuestFamily.WINDOWS_SERVER: _WINDOWS,
        # Windows 10 and 11 take memory, but no processors, while they run.
        GuestFamily.WINDOWS_DESKTOP: replace(_WINDOWS, can_add_vcpus=False),
        # XP and 2003 to 7 and 2008 R2: no xHCI, no virtio; e1000 and IDE's successor are what their media have.
        GuestFamily.WINDOWS_LEGACY: replace(
            _WINDOWS,
            hyperv_features=UNIVERSAL_HYPERV_FEATURES,
            has_virtio_drivers=False,
            suggested_nic_model="e1000",
            can_add_vcpus=False,
            can_add_memory=False,
        ),
        GuestFamily.FREEBSD: _BSD,
        # OpenBSD has no driver for QEMU's HPET before 7, and NetBSD's prefers it where it is: off for both.
        GuestFamily.OPENBSD: _BSD,
        GuestFamily.NETBSD: _BSD,
        GuestFamily.SOLARIS: GuestProfile(
            clock=ClockOffset.LOCAL_TIME,
            kvmclock=False,
            has_virtio_drivers=False,
            suggested_disk_bus="sata",
            suggested_nic_model="e1000",
            can_add_vcpus=False,
            can_add_memory=False,
        ),
        GuestFamily.MACOS: GuestProfile(
            refusal="macOS boots on Apple's machines only: its licence forbids others, and it needs their system "
            "management controller; choose another guest system"
        ),
        GuestFamily.OTHER: GuestProfile(
            suggested_disk_bus="sata", suggested_nic_model="e1000", can_add_vcpus=False, can_add_memory=False
        ),
    }
)


def profile_of(family: GuestFamily) -> GuestProfile:
    """Return what a family needs."""
    return PROFILES[family]
