"""The machine in a VM's spec, put into the words of the node daemon's contract; see `node_spec`."""

from __future__ import annotations

from collections.abc import Mapping

from limiquantix.compute.v1.vm_pb2 import (
    GUEST_OS_FAMILY_UNSPECIFIED,
    UEFI,
    UEFI_SECURE_BOOT,
    DisplayConfig,
    GuestOSFamily,
    VmSpec,
)
from limiquantix.node.v1 import node_daemon_pb2 as node_v1

_FIRMWARE: Mapping[int, node_v1.Firmware.ValueType] = {
    UEFI: node_v1.FIRMWARE_UEFI,
    UEFI_SECURE_BOOT: node_v1.FIRMWARE_UEFI_SECURE_BOOT,
}
_FAMILY_PREFIX = "GUEST_OS_FAMILY_"

PATHS: Mapping[str, str] = {
    "spec.cpu_features": "spec.cpu.features",
    "spec.numa": "spec.cpu.numa",
    "spec.guest_os": "spec.guest_os.family",
    "spec.guest_os_overrides": "spec.guest_os.overrides",
    "spec.gpu": "spec.display.gpu",
}
"""Where a field of the node's spec has another path than in the caller's."""


def add_hardware(spec: VmSpec, node_spec: node_v1.VMSpec) -> None:
    """Add the machine; what is switched off or empty is left out, so that it equals what never was there."""
    node_spec.firmware = _FIRMWARE.get(spec.firmware, node_v1.FIRMWARE_BIOS)
    node_spec.max_vcpus = spec.cpu.max_vcpus
    node_spec.max_memory_mib = spec.memory.max_memory_mib
    node_spec.ballooning_enabled = spec.memory.ballooning_enabled
    node_spec.memory_hugepages = spec.memory.huge_pages.enabled
    if spec.memory.huge_pages.enabled:
        node_spec.huge_page_size = spec.memory.huge_pages.size
    if spec.cpu.numa.enabled:
        node_spec.numa.CopyFrom(spec.cpu.numa)
    if spec.cpu.features.ByteSize():
        node_spec.cpu_features.CopyFrom(spec.cpu.features)
    for name in ("tpm", "watchdog"):
        if getattr(spec, name).enabled:
            getattr(node_spec, name).CopyFrom(getattr(spec, name))
    node_spec.tpm.ClearField("persistent")  # it always is
    if not node_spec.tpm.enabled:
        node_spec.ClearField("tpm")
    if spec.rng.rate_bytes or spec.rng.backend:
        node_spec.rng.CopyFrom(spec.rng)
    if count := max(spec.serial.count, len(spec.serial.ports)):
        node_spec.serial.count = count
    node_spec.pci_devices.extend(spec.pci_devices)
    node_spec.usb_devices.extend(spec.usb_devices)
    node_spec.vgpu_devices.extend(spec.vgpu_devices)
    for device in (*node_spec.pci_devices, *node_spec.usb_devices, *node_spec.vgpu_devices):
        device.ClearField("description")
    node_spec.cpu_shares = spec.resources.cpu_shares
    node_spec.cpu_limit_mhz = spec.resources.cpu_limit_mhz
    node_spec.boot_menu_timeout_sec = spec.boot.menu_timeout_sec
    _add_display(spec.display, node_spec)
    if spec.guest_os.family != GUEST_OS_FAMILY_UNSPECIFIED:
        node_spec.guest_os = GuestOSFamily.Name(spec.guest_os.family).removeprefix(_FAMILY_PREFIX).lower()
    if spec.guest_os.overrides.ByteSize():
        node_spec.guest_os_overrides.CopyFrom(spec.guest_os.overrides)


def _add_display(display: DisplayConfig, node_spec: node_v1.VMSpec) -> None:
    node_spec.console.spice_enabled = display.type == DisplayConfig.SPICE
    node_spec.gpu = display.gpu
    node_spec.video_memory_mib = display.video_memory_mib
    if display.displays > 1:
        node_spec.displays = display.displays
