"""What a host has for VMs beyond vCPUs and memory, what a VM needs of that, and what placed VMs hold.

A host tells this when it registers. What it did not tell is unknown, and nothing is refused for what is unknown: the
host itself looks again before it builds a VM.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from controlplane.domain.vm import BYTES_PER_MIB, vcpu_count
from limiquantix.compute.v1.node_pb2 import HostDevice, NodeSpec
from limiquantix.compute.v1.vm_pb2 import (
    UEFI,
    UEFI_SECURE_BOOT,
    CpuFeatures,
    DisplayConfig,
    HugePagesConfig,
    TpmConfig,
    VmSpec,
)

SMALL_PAGE_BYTES = 2 * BYTES_PER_MIB
LARGE_PAGE_BYTES = 1024 * BYTES_PER_MIB
_HOSTS_OWN_CPU = frozenset({"", "host-passthrough", "host-model", "maximum"})
"""Models that every host has, each its own."""
_KERNEL_NAMES: Mapping[str, str] = {"aes_ni": "aes", "avx": "avx", "avx2": "avx2", "avx512": "avx512f"}
"""Features that a spec asks for by a field of its own, as the kernel lists them. Those it names freely are named as the
hypervisor knows them, which is not how hosts list theirs; they are left to the host."""
_KIND_NAMES: Mapping[int, str] = {HostDevice.PCI: "PCI device", HostDevice.USB: "USB device"}
_TPM_NAMES: Mapping[int, str] = {TpmConfig.TPM_1_2: "1.2", TpmConfig.TPM_2_0: "2.0"}
_DISPLAY_NAMES: Mapping[int, str] = {DisplayConfig.VNC: "vnc", DisplayConfig.SPICE: "spice"}


@dataclass(frozen=True, slots=True)
class Device:
    """A device of a host. `address` is in small letters; `obstacle` says why no VM can have it, "" if one can."""

    kind: int
    address: str
    vendor_id: str = ""
    product_id: str = ""
    profiles: frozenset[str] = frozenset()
    obstacle: str = ""
    used_by_vm_id: str = ""


@dataclass(frozen=True, slots=True)
class MachineAbilities:
    """What the machines of a host's VMs can have; empty sets are unknown."""

    has_uefi: bool = False
    has_secure_boot: bool = False
    has_nested_virtualization: bool = False
    tpm_versions: frozenset[str] = frozenset()
    displays: frozenset[str] = frozenset()
    cpu_models: frozenset[str] = frozenset()
    max_vcpus: int = 0


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a host told of itself; empty and None are unknown. Memory of `numa_bytes` is by NUMA node, pages by size."""

    storage_domain_ids: frozenset[str] = frozenset()
    bridges: frozenset[str] = frozenset()
    host_networks: frozenset[str] = frozenset()
    machine: MachineAbilities | None = None
    cpu_model: str = ""
    cpu_features: frozenset[str] = frozenset()
    numa_bytes: Mapping[int, int] = field(default_factory=dict)
    page_counts: Mapping[int, int] = field(default_factory=dict)
    devices: tuple[Device, ...] = ()


UNTOLD = Inventory()


def inventory_of(spec: NodeSpec) -> Inventory:
    """Read what a node's spec says of its host."""
    machine = spec.machine
    pages = spec.memory.huge_pages if spec.memory.HasField("huge_pages") else machine.huge_pages
    told = spec.memory.HasField("huge_pages") or machine.HasField("huge_pages")
    page_counts = {SMALL_PAGE_BYTES: pages.pages_2mb_total, LARGE_PAGE_BYTES: pages.pages_1gb_total} if told else {}
    found = Inventory(
        storage_domain_ids=frozenset(domain.id for domain in spec.storage_domains if not domain.is_lost),
        bridges=frozenset(spec.bridges),
        host_networks=frozenset(spec.host_networks),
        machine=_abilities_of(spec) if spec.HasField("machine") else None,
        cpu_model=spec.cpu.model,
        cpu_features=frozenset(spec.cpu.features),
        numa_bytes={node.node_id: node.memory_bytes for node in spec.cpu.numa_nodes},
        page_counts=page_counts,
        devices=tuple(_device_of(device) for device in spec.devices),
    )
    return UNTOLD if found == UNTOLD else found


def _abilities_of(spec: NodeSpec) -> MachineAbilities:
    machine = spec.machine
    return MachineAbilities(
        has_uefi=machine.supports_uefi,
        has_secure_boot=machine.supports_secure_boot,
        has_nested_virtualization=machine.supports_nested_virtualization,
        tpm_versions=frozenset(machine.tpm_versions),
        displays=frozenset(machine.displays),
        cpu_models=frozenset(machine.cpu_models),
        max_vcpus=machine.max_vcpus,
    )


def _device_of(device: HostDevice) -> Device:
    return Device(
        kind=device.kind,
        address=device.address.lower(),
        vendor_id=device.vendor_id.lower(),
        product_id=device.product_id.lower(),
        profiles=frozenset(device.profiles),
        obstacle="" if device.used_by_vm_id else device.obstacle,
        used_by_vm_id=device.used_by_vm_id,
    )


# -- what a VM needs


@dataclass(frozen=True, slots=True)
class SourceCpu:
    """The processor that a running guest sees as it is, and must find again where it is moved to."""

    model: str
    features: frozenset[str]


@dataclass(frozen=True, slots=True)
class DeviceNeed:
    """One device for a VM: by address, by vendor and product, or a slice by its profile."""

    kind: int
    address: str = ""
    vendor_id: str = ""
    product_id: str = ""
    profile: str = ""

    @property
    def name(self) -> str:
        """What messages call it."""
        kind = _KIND_NAMES.get(self.kind, "mediated device")
        which = self.address or (
            f"of profile {self.profile}" if self.profile else f"{self.vendor_id}:{self.product_id}"
        )
        return f"{kind} {which}"

    def means(self, device: Device) -> bool:
        """Whether this device would do."""
        return (
            device.kind == self.kind
            and (not self.address or device.address == self.address)
            and (not self.vendor_id or (device.vendor_id, device.product_id) == (self.vendor_id, self.product_id))
            and (not self.profile or self.profile in device.profiles)
        )


@dataclass(frozen=True, slots=True)
class NumaNeed:
    """Memory of one NUMA node of the guest, which lies in one of the host: of `host_nodes`, if that names any."""

    memory_bytes: int
    host_nodes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Needs:
    """What a VM needs of its host beyond vCPUs and memory; what is empty it does not need.

    `most_vcpus` is how many the VM may grow to. `source_cpu` and `storage_domain_ids` are for moves.
    """

    storage_domain_ids: frozenset[str] = frozenset()
    bridges: frozenset[str] = frozenset()
    host_networks: frozenset[str] = frozenset()
    cpu_model: str = ""
    cpu_features: frozenset[str] = frozenset()
    source_cpu: SourceCpu | None = None
    most_vcpus: int = 0
    needs_uefi: bool = False
    needs_secure_boot: bool = False
    needs_nested_virtualization: bool = False
    tpm_version: str = ""
    display: str = ""
    numa: tuple[NumaNeed, ...] = ()
    page_bytes: int = 0
    page_count: int = 0
    devices: tuple[DeviceNeed, ...] = ()

    @property
    def is_countable(self) -> bool:
        """Whether it takes something that the VMs of a host share out among them."""
        return bool(self.numa or self.page_count or self.devices)

    @property
    def devices_in_turn(self) -> tuple[DeviceNeed, ...]:
        """The devices in the order in which they are chosen: first those that are named by address."""
        return tuple(sorted(self.devices, key=lambda need: not need.address))

    @property
    def of_node(self) -> Hashable:
        """The part whose answer depends on a node alone, and not on what is placed there."""
        about_cpu = (self.cpu_model, self.cpu_features, self.source_cpu, self.needs_nested_virtualization)
        about_machine = (self.needs_uefi, self.needs_secure_boot, self.tpm_version, self.display)
        return (self.storage_domain_ids, self.bridges, self.host_networks, about_cpu, about_machine)

    @property
    def is_about_cpu(self) -> bool:
        """Whether not every processor will do."""
        return bool(self.cpu_model or self.cpu_features or self.source_cpu or self.needs_nested_virtualization)

    @property
    def is_about_machine(self) -> bool:
        """Whether not every host can build the machine."""
        return self.needs_uefi or self.needs_secure_boot or bool(self.tpm_version or self.display)


NO_NEEDS = Needs()


def needs_of(spec: VmSpec) -> Needs:
    """Read what a VM's spec needs of a host."""
    overrides = spec.guest_os.overrides
    model = spec.cpu.model or overrides.cpu_mode
    is_secure = overrides.secure_boot if overrides.HasField("secure_boot") else spec.firmware == UEFI_SECURE_BOOT
    has_tpm = spec.tpm.enabled or overrides.tpm_required
    nested = spec.cpu.features.nested_virt or overrides.nested_virt
    page_bytes = _page_bytes(spec)
    found = Needs(
        bridges=frozenset(nic.bridge for nic in spec.nics if nic.bridge),
        host_networks=frozenset(nic.host_network for nic in spec.nics if nic.host_network),
        cpu_model="" if model in _HOSTS_OWN_CPU else model,
        cpu_features=_features_of(spec.cpu.features),
        # A plain VM has no more than its node's claimable vCPUs anyway; the limit of a machine is far above that.
        most_vcpus=spec.cpu.max_vcpus if spec.cpu.max_vcpus > vcpu_count(spec.cpu) else 0,
        needs_uefi=spec.firmware in (UEFI, UEFI_SECURE_BOOT),
        needs_secure_boot=is_secure,
        needs_nested_virtualization=nested,
        tpm_version=(_TPM_NAMES[spec.tpm.version] if spec.tpm.enabled else "2.0") if has_tpm else "",
        display=_DISPLAY_NAMES.get(spec.display.type, "") if spec.HasField("display") else "",
        numa=tuple(
            NumaNeed(node.memory_mib * BYTES_PER_MIB, tuple(node.host_nodes))
            for node in (spec.cpu.numa.nodes if spec.cpu.numa.enabled else ())
        ),
        page_bytes=page_bytes,
        page_count=-(-spec.memory.size_mib * BYTES_PER_MIB // page_bytes) if page_bytes else 0,
        devices=_device_needs(spec),
    )
    return NO_NEEDS if found == NO_NEEDS else found


def _features_of(features: CpuFeatures) -> frozenset[str]:
    return frozenset(kernel_name for name, kernel_name in _KERNEL_NAMES.items() if getattr(features, name))


def _page_bytes(spec: VmSpec) -> int:
    pages = spec.memory.huge_pages
    if not pages.enabled:
        return 0
    return LARGE_PAGE_BYTES if pages.size == HugePagesConfig.SIZE_1GB else SMALL_PAGE_BYTES


def _device_needs(spec: VmSpec) -> tuple[DeviceNeed, ...]:
    pci = [DeviceNeed(HostDevice.PCI, device.host_address.lower()) for device in spec.pci_devices]
    usb = [
        DeviceNeed(
            HostDevice.USB,
            f"{device.host_bus}:{device.host_device}" if device.host_bus else "",
            device.vendor_id.lower(),
            device.product_id.lower(),
        )
        for device in spec.usb_devices
    ]
    slices = [
        DeviceNeed(HostDevice.MEDIATED, device.gpu_uuid.lower(), profile=device.profile) for device in spec.vgpu_devices
    ]
    return (*pci, *usb, *slices)


# -- what placed VMs hold


@dataclass(frozen=True, slots=True)
class Taken:
    """What the VMs placed on a node hold of what they share out: bytes by NUMA node, pages by size, devices.

    Of NUMA nodes only those are charged that a spec names; one that names several is charged to all in equal parts,
    since its memory may come from any of them.
    """

    numa_bytes: Mapping[int, int] = field(default_factory=dict)
    page_counts: Mapping[int, int] = field(default_factory=dict)
    devices: frozenset[tuple[int, str]] = frozenset()

    def with_needs(self, needs: Needs, inventory: Inventory, vm_id: str = "") -> Taken:
        """Return it with one more VM. A device that is not there is not taken."""
        if not needs.is_countable:
            return self
        pages = dict(self.page_counts)
        if needs.page_count:
            pages[needs.page_bytes] = pages.get(needs.page_bytes, 0) + needs.page_count
        numa = dict(self.numa_bytes)
        for need in needs.numa:
            for node_id in need.host_nodes:
                numa[node_id] = numa.get(node_id, 0) + need.memory_bytes // len(need.host_nodes)
        chosen = devices_for(needs, inventory, self, vm_id)
        return Taken(numa, pages, self.devices | {(each.kind, each.address) for each in chosen if each is not None})


NOTHING_TAKEN = Taken()


def taken_by(vms: Mapping[str, Needs], inventory: Inventory) -> Taken:
    """Work out what these VMs of one node hold, the same in whatever order they came.

    Devices that are named by address are given out first, since other VMs can do with any of their kind.
    """
    taken = NOTHING_TAKEN
    countable = [(vm_id, needs) for vm_id, needs in vms.items() if needs.is_countable]
    for vm_id, needs in sorted(
        countable, key=lambda each: (not all(need.address for need in each[1].devices), each[0])
    ):
        taken = taken.with_needs(needs, inventory, vm_id)
    return taken


def numa_fits(needs: Needs, inventory: Inventory, taken: Taken) -> bool:
    """Whether each NUMA node of the guest fits one of the host; those with the fewest choices are seated first."""
    free = {node_id: total - taken.numa_bytes.get(node_id, 0) for node_id, total in inventory.numa_bytes.items()}
    for need in sorted(needs.numa, key=lambda need: (len(need.host_nodes) or len(free), -need.memory_bytes)):
        choices = [node_id for node_id in (need.host_nodes or free) if free.get(node_id, -1) >= need.memory_bytes]
        if not choices:
            return False
        free[max(choices, key=lambda node_id: (free[node_id], -node_id))] -= need.memory_bytes
    return True


def devices_for(needs: Needs, inventory: Inventory, taken: Taken, vm_id: str) -> list[Device | None]:
    """Choose a device for each of `needs.devices_in_turn`; None where there is no free one."""
    used = set(taken.devices)
    found: list[Device | None] = []
    for need in needs.devices_in_turn:
        fitting = [
            device
            for device in inventory.devices
            if need.means(device)
            and not device.obstacle
            and device.used_by_vm_id in ("", vm_id)
            and (device.kind, device.address) not in used
        ]
        # What the VM has already is its own.
        device = min(fitting, key=lambda device: not device.used_by_vm_id, default=None)
        if device is not None:
            used.add((device.kind, device.address))
        found.append(device)
    return found
