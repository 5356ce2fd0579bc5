"""The machine in a domain's definition: firmware, processors, memory, clock, and the small devices every machine has.

Source of every element: https://libvirt.org/formatdomain.html. What suits the guest system comes from
`hypervisor.guest_profiles`. A machine with nothing but defaults is written as it always was.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lxml import etree

from hypervisor.abilities import NumaNode
from hypervisor.errors import Refused
from hypervisor.guest_profiles import (
    SPINLOCK_RETRIES,
    UNIVERSAL_HYPERV_FEATURES,
    ClockOffset,
    GuestFamily,
    profile_of,
)
from hypervisor.hardware import Hardware, TpmVersion
from hypervisor.libvirt.device_xml import add
from hypervisor.types import Accelerator, Firmware, VmConfig

EMULATED_CPU_MODEL: Final = "Nehalem"
"""What an emulated guest gets unless it asks for a model.

The smallest model at level x86-64-v2, which current distributions need to boot; emulation has all of it, it boots as
fast as qemu64 does, and unlike `maximum` it is the same in every version of QEMU.
"""
TCG_CACHE_MIB: Final = 32
"""Bound of the emulator's cache of translated code. QEMU's own is up to 1 GiB a VM; 8 MiB nearly triples boot time."""
TCG_CACHE_MIB_PER_VCPU: Final = 32
"""The same for each vCPU that a VM may grow to, if it may: each takes a part of the cache when it comes, and QEMU
aborts where no part is free. What is not used costs nothing. See `resizing.has_free_code_cache`."""
BALLOON_PERIOD_S: Final = 10
"""How often the guest reports its memory use."""
MEMORY_SLOT_COUNT: Final = 16
"""How often memory may be added to a VM while it runs. Each slot is an ACPI device that the guest looks at."""
ISA_SERIAL_PORT_COUNT: Final = 4
"""A PC's; further ports are on the PCI bus. QEMU refuses a fifth."""
CPU_MODES: Final = frozenset({"host-passthrough", "host-model", "maximum"})
"""Models that are not names of processors."""

_QUOTA_PERIOD_US: Final = 100_000
_MIN_QUOTA_US: Final = 1_000
"""The kernel's smallest. Source: Documentation/scheduler/sched-bwc.rst."""


@dataclass(frozen=True, slots=True)
class HostTraits:
    """What a definition depends on besides the configuration.

    `hyperv_features` are those that the host's QEMU has under KVM; `virtualization_flag` is the processor feature with
    which a guest runs VMs of its own, `cpu_mhz` the host's clock, 0 if libvirt does not know.
    """

    accelerator: Accelerator
    console_log_dir: Path
    supports_tcg_cache: bool = True
    hyperv_features: tuple[str, ...] = ()
    virtualization_flag: str = "svm"
    cpu_mhz: int = 0
    numa_nodes: tuple[NumaNode, ...] = ()

    @property
    def is_emulated(self) -> bool:
        """Whether the host's processor runs no guest code itself."""
        return self.accelerator is not Accelerator.KVM


def max_vcpu_count(config: VmConfig) -> int:
    """Return how many vCPUs the machine has sockets for."""
    return max(config.hardware.max_vcpu_count, config.cpu.vcpu_count)


def can_grow_memory(config: VmConfig) -> bool:
    """Tell whether the machine has slots for memory that is added while it runs."""
    return config.hardware.max_memory_mib > config.memory_mib


def add_size(domain: etree._Element, config: VmConfig, host: HostTraits) -> None:
    """Add how many processors and how much memory there are, what backs them, and how far they may grow."""
    hardware = config.hardware
    if can_grow_memory(config):
        slots = {"slots": str(MEMORY_SLOT_COUNT), "unit": "MiB"}
        add(domain, "maxMemory", slots, str(hardware.max_memory_mib))
    add(domain, "memory", {"unit": "MiB"}, str(config.memory_mib))
    if hardware.huge_page_kib:
        pages = add(add(domain, "memoryBacking"), "hugepages")
        add(pages, "page", {"size": str(hardware.huge_page_kib), "unit": "KiB"})
    vcpu_count, max_count = config.cpu.vcpu_count, max_vcpu_count(config)
    add(domain, "vcpu", {"current": str(vcpu_count)} if max_count > vcpu_count else None, str(max_count))
    _add_cpu_limits(domain, hardware, host)
    pinned = [cell for cell in hardware.numa if cell.host_nodes]
    if pinned:
        tune = add(domain, "numatune")
        for cell in pinned:
            nodes = {"cellid": str(cell.cell_id), "mode": "strict", "nodeset": ranges(cell.host_nodes)}
            add(tune, "memnode", nodes)


def _add_cpu_limits(domain: etree._Element, hardware: Hardware, host: HostTraits) -> None:
    limits = hardware.cpu_limits
    tune = etree.Element("cputune")
    if limits.weight:
        add(tune, "shares", text=str(limits.weight))
    if limits.weight or limits.ceiling_mhz:
        # Also without a ceiling: a period is what libvirt refuses to start a VM with where it has no cgroups, while it
        # would leave out mere shares in silence.
        add(tune, "global_period", text=str(_QUOTA_PERIOD_US))
    if limits.ceiling_mhz:
        if not host.cpu_mhz:
            raise Refused("a ceiling in MHz needs the host's clock rate, which this host does not tell")
        quota_us = max(limits.ceiling_mhz * _QUOTA_PERIOD_US // host.cpu_mhz, _MIN_QUOTA_US)
        add(tune, "global_quota", text=str(quota_us))
    cpus_of = {node.node_id: node.cpus for node in host.numa_nodes}
    for cell in hardware.numa:
        cpus = [cpu for node_id in cell.host_nodes for cpu in cpus_of.get(node_id, ())]
        for vcpu in cell.vcpus if cpus else ():
            add(tune, "vcpupin", {"vcpu": str(vcpu), "cpuset": ranges(cpus)})
    if len(tune):
        domain.append(tune)


def add_os(domain: etree._Element, config: VmConfig) -> None:
    """Add the firmware, or the kernel of the host that is booted in place of a disk's."""
    is_uefi, is_secure = config.firmware is Firmware.UEFI, config.hardware.secure_boot
    if is_secure and not is_uefi:
        raise Refused("secure boot is a part of UEFI; choose that firmware")
    os_ = add(domain, "os", {"firmware": "efi"} if is_uefi else None)
    add(os_, "type", {"arch": "x86_64", "machine": "q35"}, "hvm")
    if is_uefi:
        firmware = add(os_, "firmware")
        for feature in ("enrolled-keys", "secure-boot"):
            add(firmware, "feature", {"enabled": "yes" if is_secure else "no", "name": feature})
    if config.direct_boot is not None:
        add(os_, "kernel", text=str(config.direct_boot.kernel_path))
        if config.direct_boot.initrd_path is not None:
            add(os_, "initrd", text=str(config.direct_boot.initrd_path))
        if config.direct_boot.cmdline:
            add(os_, "cmdline", text=config.direct_boot.cmdline)
    if config.hardware.boot_menu_ms:
        add(os_, "bootmenu", {"enable": "yes", "timeout": str(config.hardware.boot_menu_ms)})


def add_features(domain: etree._Element, config: VmConfig, host: HostTraits) -> None:
    """Add what the machine has that a guest may rely on."""
    features = add(domain, "features")
    add(features, "acpi")
    add(features, "apic")
    if names := hyperv_features(config, host):
        hyperv = add(features, "hyperv", {"mode": "custom"})
        for name in names:
            retries = {"retries": str(SPINLOCK_RETRIES)} if name == "spinlocks" else {}
            add(hyperv, name, {"state": "on", **retries})
    if config.hardware.guest is not GuestFamily.UNSPECIFIED:
        add(features, "vmport", {"state": "off"})  # VMware's back door, which no guest on QEMU should meet
    if config.hardware.secure_boot:
        add(features, "smm", {"state": "on"})  # in which the firmware guards its variables
    if host.accelerator is Accelerator.TCG and host.supports_tcg_cache:
        add(add(features, "tcg"), "tb-cache", {"unit": "MiB"}, str(_tcg_cache_mib(config)))


def _tcg_cache_mib(config: VmConfig) -> int:
    most = max_vcpu_count(config)
    return max(TCG_CACHE_MIB, TCG_CACHE_MIB_PER_VCPU * most) if most > config.cpu.vcpu_count else TCG_CACHE_MIB


def hyperv_features(config: VmConfig, host: HostTraits) -> tuple[str, ...]:
    """Return the enlightenments the VM gets: those its guest likes, as far as the host has them.

    Most live in KVM; an emulated machine has only the few that QEMU itself knows.
    """
    hardware = config.hardware
    wanted = profile_of(hardware.guest).hyperv_features
    if hardware.guest_choices.hyperv_features is not None:
        wanted = (wanted or UNIVERSAL_HYPERV_FEATURES) if hardware.guest_choices.hyperv_features else ()
    has_clock = _has_hyperv_clock(hardware)
    known = UNIVERSAL_HYPERV_FEATURES if host.is_emulated or not host.hyperv_features else host.hyperv_features
    return tuple(name for name in wanted if name in known and (has_clock or name != "stimer"))


def _has_hyperv_clock(hardware: Hardware) -> bool:
    chosen = hardware.guest_choices.hyperv_timers
    return profile_of(hardware.guest).hyperv_clock if chosen is None else chosen


def add_cpu(domain: etree._Element, config: VmConfig, host: HostTraits) -> None:
    """Add the processors' model, features, and how they and the memory are laid out."""
    cpu, hardware = config.cpu, config.hardware
    model = cpu.model or (EMULATED_CPU_MODEL if host.is_emulated else "host-passthrough")
    if model == "host-passthrough" and host.is_emulated:
        raise Refused(
            "CPU model host-passthrough needs KVM, and this host emulates; leave the model empty or name another"
        )
    if model in CPU_MODES:
        element = add(domain, "cpu", {"mode": model})
    else:
        # Unchecked, QEMU leaves out a feature that it does not have, and says so to its log only.
        check = {"check": "partial"} if hardware.cpu_features or hardware.nested_virtualization else {}
        element = add(domain, "cpu", {"mode": "custom", "match": "exact", **check})
        add(element, "model", {"fallback": "forbid"}, model)
    cores, rest = divmod(max_vcpu_count(config), cpu.sockets * cpu.threads)
    if rest:
        raise Refused(
            f"{max_vcpu_count(config)} vCPUs at most cannot be laid out in {cpu.sockets} sockets of {cpu.threads} "
            "threads a core; the maximum must be a multiple of sockets x threads"
        )
    add(element, "topology", {"sockets": str(cpu.sockets), "cores": str(cores), "threads": str(cpu.threads)})
    for name in dict.fromkeys(hardware.cpu_features):
        add(element, "feature", {"policy": "require", "name": name})
    if hardware.nested_virtualization is not None:
        policy = "require" if hardware.nested_virtualization else "disable"
        add(element, "feature", {"policy": policy, "name": host.virtualization_flag})
    _add_numa(element, config)


def _add_numa(cpu: etree._Element, config: VmConfig) -> None:
    """Add the guest's NUMA nodes; memory can only be added to a machine that has one."""
    if config.hardware.numa:
        numa = add(cpu, "numa")
        for cell in config.hardware.numa:
            _add_cell(numa, cell.cell_id, cell.vcpus, cell.memory_mib)
    elif can_grow_memory(config):
        _add_cell(add(cpu, "numa"), 0, range(max_vcpu_count(config)), config.memory_mib)


def _add_cell(numa: etree._Element, cell_id: int, vcpus: Iterable[int], memory_mib: int) -> None:
    cell = {"id": str(cell_id), "cpus": ranges(vcpus), "memory": str(memory_mib), "unit": "MiB"}
    add(numa, "cell", cell)


def add_clock(domain: etree._Element, config: VmConfig, host: HostTraits) -> None:
    """Set the clock, with the timers that keep time right under load and cost least."""
    hardware = config.hardware
    profile, choices = profile_of(hardware.guest), hardware.guest_choices
    offset = profile.clock.value if profile.clock is ClockOffset.LOCAL_TIME else "utc"
    clock = add(domain, "clock", {"offset": offset})
    has_hpet = profile.hpet if choices.hpet is None else choices.hpet
    if profile.has_catch_up_timers or not host.is_emulated:
        add(clock, "timer", {"name": "rtc", "tickpolicy": "catchup"})
        add(clock, "timer", {"name": "pit", "tickpolicy": "delay"})
        add(clock, "timer", {"name": "hpet", "present": "yes" if has_hpet else "no"})
    elif choices.hpet is not None:
        add(clock, "timer", {"name": "hpet", "present": "yes" if has_hpet else "no"})
    has_kvmclock = profile.kvmclock if choices.kvmclock is None else choices.kvmclock
    if not host.is_emulated and (choices.kvmclock is not None or not has_kvmclock):
        add(clock, "timer", {"name": "kvmclock", "present": "yes" if has_kvmclock else "no"})
    if _has_hyperv_clock(hardware):
        add(clock, "timer", {"name": "hypervclock", "present": "yes"})


def add_machine_devices(devices: etree._Element, config: VmConfig) -> None:
    """Add the balloon, the entropy source and the panic device that every VM has, and what else was asked for."""
    hardware = config.hardware
    add(add(devices, "memballoon", {"model": "virtio"}), "stats", {"period": str(BALLOON_PERIOD_S)})
    rng = add(devices, "rng", {"model": "virtio"})
    if hardware.entropy.rate_bytes:
        rate = {"bytes": str(hardware.entropy.rate_bytes)}
        if hardware.entropy.period_ms:
            rate["period"] = str(hardware.entropy.period_ms)
        add(rng, "rate", rate)
    add(rng, "backend", {"model": "random"}, hardware.entropy.source.value)
    add(devices, "panic", {"model": "isa"})  # how a Linux or Windows guest tells that it crashed
    if hardware.watchdog is not None:
        watchdog = {"model": hardware.watchdog.model.value, "action": hardware.watchdog.action.value}
        add(devices, "watchdog", watchdog)
    if hardware.tpm is not None:
        model = "tpm-crb" if hardware.tpm is TpmVersion.V2_0 else "tpm-tis"
        backend = {"type": "emulator", "version": hardware.tpm.value}
        add(add(devices, "tpm", {"model": model}), "backend", backend)
    _add_host_devices(devices, hardware)


def add_serial_ports(devices: etree._Element, config: VmConfig) -> None:
    """Add the ports beside the console, which is port 0; those that a PC has no room for are on the PCI bus."""
    for port in range(1, config.hardware.serial_port_count + 1):
        kind = "isa-serial" if port < ISA_SERIAL_PORT_COUNT else "pci-serial"
        add(add(devices, "serial", {"type": "pty"}), "target", {"type": kind, "port": str(port)})


def _add_host_devices(devices: etree._Element, hardware: Hardware) -> None:
    for pci in hardware.pci_devices:
        element = add(devices, "hostdev", {"mode": "subsystem", "type": "pci", "managed": "yes"})
        add(add(element, "source"), "address", pci_address(pci.address))
        if not pci.has_rom:
            add(element, "rom", {"bar": "off"})
    for usb in hardware.usb_devices:
        element = add(devices, "hostdev", {"mode": "subsystem", "type": "usb", "managed": "yes"})
        source = add(element, "source")
        if usb.vendor_id:
            add(source, "vendor", {"id": f"0x{usb.vendor_id.lower()}"})
            add(source, "product", {"id": f"0x{usb.product_id.lower()}"})
        if usb.number:
            add(source, "address", {"bus": str(usb.bus), "device": str(usb.number)})
    for mediated in hardware.mediated_devices:
        element = add(devices, "hostdev", {"mode": "subsystem", "type": "mdev", "model": "vfio-pci"})
        add(add(element, "source"), "address", {"uuid": mediated.device_uuid})


def pci_address(address: str) -> dict[str, str]:
    """Write "0000:3b:00.0" as libvirt does.

    Raises:
        Refused: it is no PCI address.
    """
    found = re.fullmatch(r"([0-9a-f]{4}):([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])", address.lower())
    if found is None:
        raise Refused(f"{address!r} is no PCI address; they are written as 0000:3b:00.0")
    return dict(zip(("domain", "bus", "slot", "function"), (f"0x{part}" for part in found.groups()), strict=True))


def ranges(numbers: Iterable[int]) -> str:
    """Write a set of numbers as libvirt does: "0-3,8"."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
