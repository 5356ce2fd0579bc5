"""Records that cross the hypervisor interface: what a VM should be, and what it is.

Identifiers are ours (UUID v4 strings); a backend keeps its own names and documents to itself. Records are immutable.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hypervisor.abilities import BASIC, Abilities
from hypervisor.hardware import PLAIN, Hardware


class PowerState(enum.Enum):
    """Observed state of a VM on this host."""

    UNKNOWN = "unknown"
    RUNNING = "running"
    STOPPED = "stopped"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    """Saved to disk; starting it continues where it was."""
    CRASHED = "crashed"
    """Its hypervisor process died, or the guest panicked, without being asked to stop."""


class Firmware(enum.Enum):
    """What the VM boots with."""

    BIOS = "bios"
    UEFI = "uefi"


class BootDevice(enum.Enum):
    """Class of devices in the firmware's boot order."""

    DISK = "disk"
    CDROM = "cdrom"
    NETWORK = "network"


class DiskBus(enum.Enum):
    """Controller a disk hangs on; it decides the name of the device in the guest."""

    VIRTIO = "virtio"
    SCSI = "scsi"
    SATA = "sata"
    IDE = "ide"


class DiskFormat(enum.Enum):
    """Format of an image file; always stated, never probed, since a guest can write any header into a raw disk."""

    QCOW2 = "qcow2"
    RAW = "raw"


class DiskCache(enum.Enum):
    """Host caching; NONE bypasses the page cache and is what live migration needs."""

    NONE = "none"
    WRITEBACK = "writeback"
    WRITETHROUGH = "writethrough"


class NicModel(enum.Enum):
    """Emulated network card."""

    VIRTIO = "virtio"
    E1000 = "e1000"
    E1000E = "e1000e"
    RTL8139 = "rtl8139"


@dataclass(frozen=True, slots=True)
class CpuTopology:
    """vCPU layout; the VM gets cores x sockets x threads vCPUs, each factor at least 1.

    `model` "" lets the backend choose: the host's own CPU where it runs on hardware, a baseline one where it emulates.
    """

    cores: int = 1
    sockets: int = 1
    threads: int = 1
    model: str = ""

    @property
    def vcpu_count(self) -> int:
        """How many vCPUs the guest sees."""
        return self.cores * self.sockets * self.threads


@dataclass(frozen=True, slots=True)
class IoLimits:
    """Ceilings of one disk; 0 is none. Rates of reads and writes together exclude those of either.

    The burst rates may be used for `burst_duration_s` seconds (0: one second) and are above the steady ones, which
    they need.
    """

    total_iops: int = 0
    read_iops: int = 0
    write_iops: int = 0
    total_bytes_s: int = 0
    read_bytes_s: int = 0
    write_bytes_s: int = 0
    burst_iops: int = 0
    burst_bytes_s: int = 0
    burst_duration_s: int = 0


@dataclass(frozen=True, slots=True)
class NicBandwidth:
    """Ceilings of one network card, in bytes a second; 0 is none. `burst_bytes` may exceed them at once."""

    to_guest_bytes_s: int = 0
    from_guest_bytes_s: int = 0
    burst_bytes: int = 0


@dataclass(frozen=True, slots=True)
class DiskConfig:
    """One disk; `path` is an existing image file on this host, already checked to lie inside the storage path."""

    disk_id: str
    path: Path
    format: DiskFormat = DiskFormat.QCOW2
    bus: DiskBus = DiskBus.VIRTIO
    cache: DiskCache = DiskCache.NONE
    readonly: bool = False
    discard: bool = False
    boot_index: int = 0
    """1 boots first; 0 leaves the order to `VmConfig.boot_order`."""
    limits: IoLimits = IoLimits()


@dataclass(frozen=True, slots=True)
class CdromConfig:
    """One CD-ROM drive, on SATA or SCSI; `iso_path` None is an empty drive.

    Nearly every guest has a driver for SATA; kernels that are made for virtual machines only may lack it.
    """

    cdrom_id: str
    iso_path: Path | None = None
    boot_index: int = 0
    bus: DiskBus = DiskBus.SATA


@dataclass(frozen=True, slots=True)
class NicConfig:
    """One network card: on a host `bridge`, on a libvirt `network`, or with neither on user-mode NAT.

    `mac_address` is always set, lower case with colons. A link that is down is a cable that is unplugged. `bandwidth`
    is kept with the VM for whoever shapes the traffic; a backend does not act on it.
    """

    nic_id: str
    mac_address: str
    model: NicModel = NicModel.VIRTIO
    bridge: str = ""
    network: str = ""
    boot_index: int = 0
    is_link_up: bool = True
    bandwidth: NicBandwidth = NicBandwidth()


@dataclass(frozen=True, slots=True)
class DirectBoot:
    """Boot a kernel of the host instead of a disk's boot loader; paths already checked."""

    kernel_path: Path
    initrd_path: Path | None = None
    cmdline: str = ""


@dataclass(frozen=True, slots=True)
class VncConsole:
    """A VNC display that listens on no network; an empty password asks the backend to make one."""

    password: str = ""


@dataclass(frozen=True, slots=True)
class SpiceConsole:
    """A SPICE display that listens on no network; an empty password asks the backend to make one."""

    password: str = ""


class MediumKind(enum.Enum):
    """How a guest finds what it is told at its first boot."""

    CDROM = "cdrom"
    """A drive of its own, which is not one of the VM's."""
    FIRMWARE = "firmware"
    """An entry of the firmware's configuration, where Ignition looks."""


@dataclass(frozen=True, slots=True)
class FirstBootMedium:
    """A file with what a guest is told at its first boot; `digest` changes with its contents, which may be secret.

    `bus` is that of the drive, if it is in one. Kernels that are made for VMs only, such as those of cloud images, know
    SCSI and not SATA; Windows knows SATA by itself and not virtio's SCSI.
    """

    path: Path
    kind: MediumKind
    digest: str
    bus: DiskBus = DiskBus.SCSI


@dataclass(frozen=True, slots=True)
class VmConfig:
    """Everything a backend needs to define a VM.

    Every VM also gets a serial console whose output is logged, a guest-agent channel `org.qemu.guest_agent.0`, a
    memory balloon and an entropy source; those are not choices.
    """

    vm_id: str
    name: str
    cpu: CpuTopology
    memory_mib: int
    firmware: Firmware = Firmware.BIOS
    boot_order: tuple[BootDevice, ...] = ()
    direct_boot: DirectBoot | None = None
    disks: tuple[DiskConfig, ...] = ()
    cdroms: tuple[CdromConfig, ...] = ()
    nics: tuple[NicConfig, ...] = ()
    vnc: VncConsole | None = None
    first_boot: FirstBootMedium | None = None
    spice: SpiceConsole | None = None
    """In place of `vnc`; a VM with neither has no display."""
    hardware: Hardware = PLAIN


@dataclass(frozen=True, slots=True)
class VmNotes:
    """What is kept with a VM's definition for whoever manages this host, and means nothing to the backend.

    It outlives the daemon and the daemon's files, and goes with the definition.
    """

    is_protected: bool = False
    """It ends with the host's lease."""
    start_order: str = ""
    """It is being started upon this order, and whether it may run is to be looked at once more; "" where it is not."""


NO_NOTES: Final = VmNotes()


@dataclass(frozen=True, slots=True)
class VmStatus:
    """What the host says of a VM now; counters are 0 while it is off.

    `is_managed` is False for a VM that something else than LimiQuantix defined on this host. `vcpu_count` and
    `memory_mib` are what it is defined with, also while it is off.
    """

    vm_id: str
    name: str
    state: PowerState
    is_managed: bool = True
    vcpu_count: int = 0
    memory_mib: int = 0
    memory_total_bytes: int = 0
    memory_used_bytes: int = 0
    cpu_time_ns: int = 0
    started_at_s: float | None = None
    """Unix time of the last start, if this backend knows it."""
    notes: VmNotes = NO_NOTES


@dataclass(frozen=True, slots=True)
class SimulatedUsage:
    """How busy a simulated host is; `busy_vcpus` is of `vcpu_count`, and may be more where more is promised."""

    vcpu_count: int
    busy_vcpus: float
    memory_total_bytes: int
    memory_used_bytes: int


class EventKind(enum.Enum):
    """What happened to a VM, or to the stream of events itself."""

    DEFINED = "defined"
    STARTED = "started"
    STOPPED = "stopped"
    PAUSED = "paused"
    RESUMED = "resumed"
    SUSPENDED = "suspended"
    CRASHED = "crashed"
    REBOOTED = "rebooted"
    REMOVED = "removed"
    ARRIVING = "arriving"
    """Its memory is being sent to this host; it stands still here and may be gone again."""
    MIGRATED_IN = "migrated_in"
    MIGRATED_OUT = "migrated_out"
    """It was handed over to another host, and is most likely gone from here."""
    RESYNC = "resync"
    """Events may have been missed (the backend was restarted): read the whole list again. Carries no VM."""


@dataclass(frozen=True, slots=True)
class VmEvent:
    """One change as the backend saw it; `state` is the state after it. Events of one VM arrive in order."""

    kind: EventKind
    vm_id: str = ""
    state: PowerState = PowerState.UNKNOWN
    detail: str = ""


class ConsoleKind(enum.Enum):
    """What a person can look at a VM through."""

    VNC = "vnc"
    SPICE = "spice"
    SERIAL = "serial"


@dataclass(frozen=True, slots=True)
class ConsoleLog:
    """A piece of what the guest wrote to its serial console.

    `next_offset` is where to go on reading, so `data` begins that much before it. `size_bytes` is where the log ends
    now; its beginning may be dropped to bound its size.
    """

    data: bytes
    next_offset: int
    size_bytes: int


class Accelerator(enum.Enum):
    """How guest instructions run."""

    KVM = "kvm"
    TCG = "tcg"
    SIMULATED = "simulated"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What this backend on this host can do.

    `host_networks` are its virtual networks that are active. `bridges` None are those of the machine itself.
    """

    name: str
    version: str
    accelerator: Accelerator
    max_vcpus: int
    max_memory_bytes: int
    supports_live_migration: bool = False
    supports_snapshots: bool = False
    supports_hotplug: bool = False
    abilities: Abilities = BASIC
    host_networks: tuple[str, ...] = ()
    bridges: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the backend answers; `message` says what is wrong if not."""

    healthy: bool
    message: str = ""
