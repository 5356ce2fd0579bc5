"""Decide whether a host can build a VM's machine, and say what it lacks; pure, the same for every backend.

A VM that silently lacks its TPM is worse than an error, so whatever a host cannot give is refused before anything is
made of the VM.
"""

from __future__ import annotations

import difflib
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace

from hypervisor.abilities import Abilities, DeviceKind, DisplayKind, HostDevice
from hypervisor.errors import HostCannot
from hypervisor.guest_profiles import profile_of
from hypervisor.hardware import PLAIN, Hardware
from hypervisor.types import Accelerator, Firmware, VmConfig

KIB_PER_MIB = 1024
CPU_MODES = frozenset({"", "host-passthrough", "host-model", "maximum"})
_NEAR_COUNT = 3
_NEARNESS = 0.5
"""How alike two names must be to be suggested, from 0 to 1; `difflib`'s own 0.6 misses "Skylake" for Skylake-Server."""


def asks_for_anything(config: VmConfig) -> bool:
    """Tell whether a host can lack anything of it; for most VMs none can, and nothing needs to be looked up."""
    return (
        config.hardware != PLAIN
        or config.firmware is not Firmware.BIOS
        or config.cpu.model not in CPU_MODES
        or config.spice is not None
    )


def require_possible(
    config: VmConfig, abilities: Abilities, devices: Sequence[HostDevice], accelerator: Accelerator
) -> None:
    """Check that the host has everything the VM asks for.

    Args:
        devices: of the host; only looked at if the VM wants some.

    Raises:
        HostCannot: it has not; the message names everything that is missing.
    """
    missing = list(obstacles(config, abilities, devices, accelerator))
    if missing:
        raise HostCannot(f"this host cannot build VM {config.vm_id}: " + "; ".join(missing))


def obstacles(
    config: VmConfig, abilities: Abilities, devices: Sequence[HostDevice], accelerator: Accelerator
) -> Iterator[str]:
    """Name everything that the host lacks."""
    hardware = config.hardware
    # What the VM has itself is free for it.
    devices = [replace(each, obstacle="") if each.used_by == config.vm_id else each for each in devices]
    if refusal := profile_of(hardware.guest).refusal:
        yield refusal
    yield from _firmware(config, abilities)
    if hardware.tpm is not None and hardware.tpm not in abilities.tpm_versions:
        there = ", ".join(version.value for version in abilities.tpm_versions)
        have = f"it has TPM {there} only" if there else "swtpm is not installed"
        yield f"no TPM {hardware.tpm.value} can be emulated: {have}"
    yield from _display(config, abilities)
    yield from _processors(config, abilities, accelerator)
    yield from _memory(config, abilities)
    yield from _devices(hardware, abilities, devices)


def _firmware(config: VmConfig, abilities: Abilities) -> Iterator[str]:
    if config.firmware is Firmware.UEFI and not abilities.has_uefi:
        yield "UEFI firmware (OVMF) is not installed"
    elif config.hardware.secure_boot and not abilities.has_secure_boot:
        yield "UEFI firmware for secure boot, with enrolled keys, is not installed"


def _display(config: VmConfig, abilities: Abilities) -> Iterator[str]:
    if config.spice is not None and DisplayKind.SPICE not in abilities.displays:
        yield "its hypervisor has no SPICE"
    has_display = config.spice is not None or config.vnc is not None
    if has_display and config.hardware.video.model not in abilities.video_models:
        names = ", ".join(model.value for model in abilities.video_models)
        yield f"it has no graphics card {config.hardware.video.model.value}; it has {names}"


def _processors(config: VmConfig, abilities: Abilities, accelerator: Accelerator) -> Iterator[str]:
    hardware, model = config.hardware, config.cpu.model
    if model not in CPU_MODES and abilities.known_cpu_models and model not in abilities.cpu_models:
        if model in abilities.known_cpu_models:
            yield f"its processor cannot run CPU model {model}; it can run {', '.join(sorted(abilities.cpu_models))}"
        else:
            yield f"no CPU model is called {model!r}{_near(model, abilities.known_cpu_models)}"
    for feature in hardware.cpu_features:
        if abilities.known_cpu_features and feature not in abilities.known_cpu_features:
            yield f"no CPU feature is called {feature!r}{_near(feature, abilities.known_cpu_features)}"
    if hardware.nested_virtualization and not abilities.has_nested_virtualization:
        yield "its processor, or its kernel's settings, let guests run no VMs of their own"
    chosen = hardware.guest_choices
    if chosen.hyperv_features and accelerator is Accelerator.KVM and not abilities.hyperv_features:
        yield "its hypervisor has no Hyper-V enlightenments"
    limits = hardware.cpu_limits
    if (limits.weight or limits.ceiling_mhz) and abilities.can_limit_cpu is False:
        yield "its hypervisor has no cgroup controller for processors, so CPU shares and limits would mean nothing"


def _near(name: str, names: Sequence[str]) -> str:
    found = difflib.get_close_matches(name, names, _NEAR_COUNT, _NEARNESS)
    folded = {each.lower(): each for each in names}
    found = found or [folded[each] for each in difflib.get_close_matches(name.lower(), folded, _NEAR_COUNT, _NEARNESS)]
    return f"; near are {', '.join(found)}" if found else ""


def _memory(config: VmConfig, abilities: Abilities) -> Iterator[str]:
    hardware = config.hardware
    if hardware.huge_page_kib:
        pages = {page.size_kib: page.total_count for page in abilities.huge_pages}
        needed = -(-config.memory_mib * KIB_PER_MIB // hardware.huge_page_kib)
        size = f"{hardware.huge_page_kib // KIB_PER_MIB} MiB"
        there = pages.get(hardware.huge_page_kib, 0)
        if config.memory_mib * KIB_PER_MIB % hardware.huge_page_kib:
            yield f"{config.memory_mib} MiB are no whole number of huge pages of {size}"
        elif there < needed:
            yield f"it has {there} huge pages of {size}, the VM needs {needed}"
    known = {node.node_id for node in abilities.numa_nodes}
    for cell in hardware.numa:
        unknown = sorted(set(cell.host_nodes) - known)
        if unknown:
            there_are = ", ".join(str(node_id) for node_id in sorted(known)) or "none it tells of"
            yield f"NUMA node {cell.cell_id} wants host node {unknown[0]}; the host's nodes are {there_are}"


def _devices(hardware: Hardware, abilities: Abilities, devices: Sequence[HostDevice]) -> Iterator[str]:
    by_address = {(device.kind, device.address.lower()): device for device in devices}
    for pci in hardware.pci_devices:
        found = by_address.get((DeviceKind.PCI, pci.address.lower()))
        if found is None:
            yield f"it has no PCI device {pci.address}"
        elif not abilities.has_iommu:
            yield f"PCI device {pci.address} cannot be passed through: the host has no IOMMU, or it is switched off"
        elif found.obstacle:
            yield f"PCI device {pci.address} cannot be passed through: {found.obstacle}"
    for usb in hardware.usb_devices:
        name = f"{usb.vendor_id}:{usb.product_id}" if usb.vendor_id else f"{usb.bus}:{usb.number}"
        fitting = [
            device
            for device in devices
            if device.kind is DeviceKind.USB
            and (not usb.vendor_id or (device.vendor_id, device.product_id) == (usb.vendor_id, usb.product_id))
            and (not usb.number or device.address == f"{usb.bus}:{usb.number}")
        ]
        if not fitting:
            yield f"it has no USB device {name}"
        elif all(device.obstacle for device in fitting):
            yield f"USB device {name} cannot be passed through: {fitting[0].obstacle}"
    for mediated in hardware.mediated_devices:
        yield from _mediated(mediated.device_uuid, mediated.profile, devices)


def _mediated(device_uuid: str, profile: str, devices: Sequence[HostDevice]) -> Iterator[str]:
    offering = [
        device for device in devices if device.kind is DeviceKind.MEDIATED and profile in ("", *device.profiles)
    ]
    if not offering:
        yield f"it has no mediated device of profile {profile!r}"
    elif not _is_uuid(device_uuid):
        names = ", ".join(device.address for device in offering)
        yield f"the mediated device of profile {profile!r} must be named by its UUID; there are {names}"
    elif device_uuid not in {device.address for device in offering}:
        yield f"it has no mediated device {device_uuid} of profile {profile!r}"
    elif obstacle := next(device.obstacle for device in offering if device.address == device_uuid):
        yield f"mediated device {device_uuid} cannot be passed through: {obstacle}"


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False
