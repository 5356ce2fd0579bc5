"""What a host can give its VMs, as facts: the same records for every backend, the mock's being its settings."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from hypervisor.hardware import TpmVersion, VideoModel


class DisplayKind(enum.Enum):
    """Protocol of a graphical console."""

    VNC = "vnc"
    SPICE = "spice"


@dataclass(frozen=True, slots=True)
class HugePages:
    """Huge pages of one size that the host has set aside."""

    size_kib: int
    total_count: int
    free_count: int


@dataclass(frozen=True, slots=True)
class NumaNode:
    """One NUMA node of the host."""

    node_id: int
    cpus: tuple[int, ...]
    memory_mib: int


class DeviceKind(enum.Enum):
    """How a device of the host is connected to it."""

    PCI = "pci"
    USB = "usb"
    MEDIATED = "mediated"


@dataclass(frozen=True, slots=True)
class HostDevice:
    """A device of the host that a VM might get.

    `address` is "0000:3b:00.0" of a PCI function, "bus:number" of a USB device, a UUID of a mediated one. `obstacle` is
    why no VM can have it now, "" if one can. `used_by` is the id of the running VM that has it.
    """

    kind: DeviceKind
    address: str
    vendor_id: str = ""
    product_id: str = ""
    vendor: str = ""
    product: str = ""
    class_code: str = ""
    driver: str = ""
    iommu_group: int | None = None
    profiles: tuple[str, ...] = ()
    numa_node: int | None = None
    obstacle: str = ""
    used_by: str = ""

    @property
    def is_gpu(self) -> bool:
        """Whether it is a display controller. Source: PCI Code and ID Assignment Specification, base class 03h."""
        return self.kind is DeviceKind.PCI and self.class_code.startswith("03")


@dataclass(frozen=True, slots=True)
class Abilities:
    """What the machines of a host's VMs can have.

    `cpu_models` are those that can be had here; `known_cpu_models` also those that this host's processor is too old
    for, to tell the one from a name that nobody knows. `hyperv_features` are libvirt's names. `can_limit_cpu` None is
    known only when a VM starts.
    """

    has_uefi: bool = False
    has_secure_boot: bool = False
    tpm_versions: tuple[TpmVersion, ...] = ()
    displays: tuple[DisplayKind, ...] = (DisplayKind.VNC,)
    video_models: tuple[VideoModel, ...] = (VideoModel.VGA,)
    cpu_models: tuple[str, ...] = ()
    known_cpu_models: tuple[str, ...] = ()
    known_cpu_features: tuple[str, ...] = ()
    hyperv_features: tuple[str, ...] = ()
    huge_pages: tuple[HugePages, ...] = ()
    numa_nodes: tuple[NumaNode, ...] = ()
    has_iommu: bool = False
    has_nested_virtualization: bool = False
    has_gpu_passthrough: bool = False
    can_limit_cpu: bool | None = None
    can_add_vcpus: bool = False
    can_remove_vcpus: bool = False
    can_add_memory: bool = False


BASIC: Final = Abilities()
"""What every host has."""
