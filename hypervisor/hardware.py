"""Records of what a VM's machine has beyond processors, memory, disks and network cards.

Everything is at its default for a plain VM, and a default is left out of what is kept with a VM, so that a field added
later changes no VM that exists.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from hypervisor.guest_profiles import GuestFamily


class TpmVersion(enum.Enum):
    """Version of the TPM specification."""

    V1_2 = "1.2"
    V2_0 = "2.0"


class WatchdogModel(enum.Enum):
    """Emulated watchdog: a PCI card, or an ISA one for guests without PCI drivers."""

    I6300ESB = "i6300esb"
    IB700 = "ib700"


class WatchdogAction(enum.Enum):
    """What happens to the VM when its guest stopped feeding the watchdog."""

    RESET = "reset"
    SHUTDOWN = "shutdown"
    POWER_OFF = "poweroff"
    PAUSE = "pause"
    NONE = "none"


class VideoModel(enum.Enum):
    """Emulated graphics card."""

    VGA = "vga"
    CIRRUS = "cirrus"
    QXL = "qxl"
    VIRTIO = "virtio"


class EntropySource(enum.Enum):
    """Device of the host that feeds the guest's entropy source; no other path is ever opened for a guest."""

    URANDOM = "/dev/urandom"
    RANDOM = "/dev/random"
    HWRNG = "/dev/hwrng"


@dataclass(frozen=True, slots=True)
class Watchdog:
    """A device that acts when the guest stops feeding it."""

    model: WatchdogModel = WatchdogModel.I6300ESB
    action: WatchdogAction = WatchdogAction.RESET


@dataclass(frozen=True, slots=True)
class Entropy:
    """Where the guest's entropy comes from; at most `rate_bytes` in each `period_ms` (0 bytes: no ceiling)."""

    source: EntropySource = EntropySource.URANDOM
    rate_bytes: int = 0
    period_ms: int = 0


@dataclass(frozen=True, slots=True)
class NumaCell:
    """One NUMA node of the guest; `host_nodes` empty lets any node of the host back it."""

    cell_id: int
    vcpus: tuple[int, ...]
    memory_mib: int
    host_nodes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Video:
    """The graphics card; `memory_mib` 0 is the card's usual memory, `head_count` how many screens it drives."""

    model: VideoModel = VideoModel.VGA
    memory_mib: int = 0
    head_count: int = 1


@dataclass(frozen=True, slots=True)
class PciDevice:
    """A PCI function of the host; `address` as "0000:3b:00.0"."""

    address: str
    has_rom: bool = False


@dataclass(frozen=True, slots=True)
class UsbDevice:
    """A USB device of the host: by vendor and product (four hexadecimal digits each), by bus and number, or by both."""

    vendor_id: str = ""
    product_id: str = ""
    bus: int = 0
    number: int = 0


@dataclass(frozen=True, slots=True)
class MediatedDevice:
    """A slice of a device of the host: the UUID of a mediated device that exists there, and its profile."""

    profile: str
    device_uuid: str = ""


@dataclass(frozen=True, slots=True)
class CpuLimits:
    """Share of the host's processors: a weight against other VMs, and a ceiling in MHz; 0 is none."""

    weight: int = 0
    ceiling_mhz: int = 0


@dataclass(frozen=True, slots=True)
class GuestChoices:
    """What somebody chose over the guest's profile; None keeps the profile's choice. See `guest_profiles`."""

    hpet: bool | None = None
    hyperv_features: bool | None = None
    hyperv_timers: bool | None = None
    kvmclock: bool | None = None


@dataclass(frozen=True, slots=True)
class Hardware:
    """The rest of a VM's machine.

    `max_vcpu_count` and `max_memory_mib` are how far a running VM can grow; 0 is not at all. `may_balloon` lets the
    host ask the guest to give memory back. `huge_page_kib` 0 is ordinary memory. `serial_port_count` counts those
    beside the console. `boot_menu_ms` 0 shows none.
    """

    secure_boot: bool = False
    tpm: TpmVersion | None = None
    watchdog: Watchdog | None = None
    entropy: Entropy = Entropy()
    numa: tuple[NumaCell, ...] = ()
    huge_page_kib: int = 0
    max_vcpu_count: int = 0
    max_memory_mib: int = 0
    may_balloon: bool = False
    cpu_features: tuple[str, ...] = ()
    nested_virtualization: bool | None = None
    cpu_limits: CpuLimits = CpuLimits()
    video: Video = Video()
    serial_port_count: int = 0
    boot_menu_ms: int = 0
    pci_devices: tuple[PciDevice, ...] = ()
    usb_devices: tuple[UsbDevice, ...] = ()
    mediated_devices: tuple[MediatedDevice, ...] = ()
    guest: GuestFamily = GuestFamily.UNSPECIFIED
    guest_choices: GuestChoices = GuestChoices()

    @property
    def passes_devices_through(self) -> bool:
        """Whether the VM gets devices of its host."""
        return bool(self.pci_devices or self.usb_devices or self.mediated_devices)


PLAIN: Final = Hardware()
"""The hardware of a VM that asks for nothing in particular."""
