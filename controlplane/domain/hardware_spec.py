"""Rules about the machine in a VM's spec that a .proto file cannot state: what fits together, and what is not built.

What depends on a host (its CPU models, its devices) is asked of the host, and what only names something (a bus, a
source of entropy) of its daemon; neither is repeated here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from controlplane.domain.vm import vcpu_count
from limiquantix.compute.v1.vm_pb2 import (
    UEFI,
    UEFI_SECURE_BOOT,
    BootConfig,
    BootDevice,
    CpuConfig,
    DisplayConfig,
    GuestAgentConfig,
    MemoryConfig,
    NumaConfig,
    ResourceConfig,
    SerialPort,
    SerialPortConfig,
    VmSpec,
)
from limiquantix.errors import FieldViolation

MIN_UEFI_MEMORY_MIB = 256
"""OVMF was seen to crash with 128 MiB and to boot with 256."""
MIN_CPU_SHARES = 2
"""The kernel's. Source: Linux, Documentation/scheduler/sched-design-CFS.rst, and libvirt's formatdomain.html."""
MAX_VIDEO_MEMORY_MIB = 256
"""What QEMU's VGA takes; others take more, which no screen needs."""

NOT_YET = "is not supported by this version; leave it out"

_LOOPBACK = frozenset({"", "127.0.0.1", "localhost"})
_PCI_ADDRESS = re.compile(r"[0-9A-Fa-f]{4}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-7]")
_MANY_HEADED = frozenset({DisplayConfig.QXL, DisplayConfig.VIRTIO_GPU})
_USB_ID_CHARS = 4


def violations_of(spec: VmSpec, path: str) -> Iterator[FieldViolation]:
    """List what is wrong with the machine of a spec; `path` is how the caller names the spec."""
    yield from _cpu(spec.cpu, f"{path}.cpu")
    yield from _numa(spec, f"{path}.cpu.numa")
    yield from _memory(spec.memory, f"{path}.memory")
    if spec.firmware in (UEFI, UEFI_SECURE_BOOT) and 0 < spec.memory.size_mib < MIN_UEFI_MEMORY_MIB:
        message = f"UEFI needs at least {MIN_UEFI_MEMORY_MIB} MiB; its firmware crashes with less"
        yield FieldViolation(f"{path}.memory.size_mib", message)
    if spec.agent.channel == GuestAgentConfig.VSOCK:
        yield FieldViolation(f"{path}.agent.channel", "VSOCK " + NOT_YET)
    for name in ("socket_path", "vsock_cid"):
        if getattr(spec.agent, name):
            yield FieldViolation(f"{path}.agent.{name}", NOT_YET)
    if spec.rng.period_ms and not spec.rng.rate_bytes:
        yield FieldViolation(f"{path}.rng.period_ms", "means nothing without rate_bytes")
    yield from _resources(spec.resources, spec.memory, f"{path}.resources")
    yield from _serial(spec.serial, f"{path}.serial")
    yield from _display(spec.display, f"{path}.display")
    yield from _boot(spec.boot, f"{path}.boot")
    yield from _host_devices(spec, path)


def change_violations_of(old: VmSpec, new: VmSpec, path: str) -> Iterator[FieldViolation]:
    """List what cannot become of a VM's machine, whatever its state."""
    is_uefi = all(spec.firmware in (UEFI, UEFI_SECURE_BOOT) for spec in (old, new))
    if is_uefi and _boots_securely(old) != _boots_securely(new):
        message = (
            "cannot gain or lose secure boot: its keys are among the firmware's variables, which stay; make another VM"
        )
        yield FieldViolation(f"{path}.firmware", message)


def _boots_securely(spec: VmSpec) -> bool:
    return spec.firmware == UEFI_SECURE_BOOT or spec.guest_os.overrides.secure_boot


def _cpu(cpu: CpuConfig, path: str) -> Iterator[FieldViolation]:
    if not cpu.max_vcpus:
        return
    count, per_core = vcpu_count(cpu), max(cpu.sockets, 1) * max(cpu.threads_per_core, 1)
    if cpu.max_vcpus < count:
        yield FieldViolation(f"{path}.max_vcpus", f"is less than the {count} vCPUs that the VM has")
    elif cpu.max_vcpus % per_core:
        yield FieldViolation(f"{path}.max_vcpus", f"must be a multiple of sockets x threads_per_core, {per_core}")


def _numa(spec: VmSpec, path: str) -> Iterator[FieldViolation]:
    numa: NumaConfig = spec.cpu.numa
    if not numa.enabled:
        if numa.nodes:
            yield FieldViolation(f"{path}.enabled", "must be set for nodes to mean anything")
        return
    if not numa.nodes:
        return
    if sorted(node.node_id for node in numa.nodes) != list(range(len(numa.nodes))):
        yield FieldViolation(f"{path}.nodes", "must have the ids 0, 1, 2 and so on, each once")
    count = max(vcpu_count(spec.cpu), spec.cpu.max_vcpus)
    named = Counter(vcpu for node in numa.nodes for vcpu in node.vcpus)
    if any(times > 1 for times in named.values()) or set(named) != set(range(count)):
        yield FieldViolation(f"{path}.nodes", f"must name each of the vCPUs 0 to {count - 1} in one node")
    total_mib = sum(node.memory_mib for node in numa.nodes)
    if total_mib != spec.memory.size_mib:
        message = f"have {total_mib} MiB together, the VM has {spec.memory.size_mib}"
        yield FieldViolation(f"{path}.nodes", message)
    if any(not node.memory_mib for node in numa.nodes):
        yield FieldViolation(f"{path}.nodes", "must have memory, each of them")


def _memory(memory: MemoryConfig, path: str) -> Iterator[FieldViolation]:
    if memory.max_memory_mib and memory.max_memory_mib < memory.size_mib:
        yield FieldViolation(f"{path}.max_memory_mib", f"is less than the {memory.size_mib} MiB that the VM has")
    if memory.overcommit_ratio:
        yield FieldViolation(f"{path}.overcommit_ratio", NOT_YET)


def _resources(resources: ResourceConfig, memory: MemoryConfig, path: str) -> Iterator[FieldViolation]:
    """All memory of a VM is kept for it on its node, so a reservation up to its size holds as it is."""
    if 0 < resources.cpu_shares < MIN_CPU_SHARES:
        yield FieldViolation(f"{path}.cpu_shares", f"must be at least {MIN_CPU_SHARES}, or 0 for the usual share")
    if resources.memory_reservation_mib > memory.size_mib:
        message = f"is more than the {memory.size_mib} MiB that the VM has"
        yield FieldViolation(f"{path}.memory_reservation_mib", message)
    for name in ("cpu_reservation_mhz", "io_priority"):
        if getattr(resources, name):
            yield FieldViolation(f"{path}.{name}", NOT_YET)


def _serial(serial: SerialPortConfig, path: str) -> Iterator[FieldViolation]:
    seen: set[int] = set()
    for place, port in enumerate(serial.ports):
        if port.type != SerialPort.PTY or port.target:
            message = "must be PTY without target: nothing of a VM leads to the host's files or network"
            yield FieldViolation(f"{path}.ports[{place}].type", message)
        if port.index in seen:
            yield FieldViolation(f"{path}.ports[{place}].index", "is used by another port")
        seen.add(port.index)


def _display(display: DisplayConfig, path: str) -> Iterator[FieldViolation]:
    if display.listen_address not in _LOOPBACK:
        yield FieldViolation(f"{path}.listen_address", "consoles listen on the host's loopback address only")
    for name in ("port", "tls_enabled"):
        if getattr(display, name):
            yield FieldViolation(f"{path}.{name}", NOT_YET)
    if display.displays > 1 and display.gpu not in _MANY_HEADED:
        yield FieldViolation(f"{path}.displays", "more than one needs the graphics card QXL or VIRTIO_GPU")
    memory_mib = display.video_memory_mib
    if memory_mib and display.gpu == DisplayConfig.VIRTIO_GPU:
        yield FieldViolation(f"{path}.video_memory_mib", "VIRTIO_GPU has no memory of its own; leave it out")
    elif memory_mib & (memory_mib - 1) or memory_mib > MAX_VIDEO_MEMORY_MIB:
        yield FieldViolation(f"{path}.video_memory_mib", f"must be a power of two up to {MAX_VIDEO_MEMORY_MIB}")
    if display.type == DisplayConfig.NONE:
        for name in ("gpu", "video_memory_mib", "displays", "password"):
            if getattr(display, name):
                yield FieldViolation(f"{path}.{name}", "means nothing for a VM without display")


def _boot(boot: BootConfig, path: str) -> Iterator[FieldViolation]:
    for index, device in enumerate(boot.boot_order):
        if device.type == BootDevice.USB:
            yield FieldViolation(f"{path}.boot_order[{index}].type", "USB " + NOT_YET)
        if device.device_id:
            message = f"{NOT_YET}; give the device a boot_index instead"
            yield FieldViolation(f"{path}.boot_order[{index}].device_id", message)
    if not boot.direct_boot.kernel_path and boot.direct_boot.ByteSize():
        yield FieldViolation(f"{path}.direct_boot.kernel_path", "is required for a direct boot")


def _host_devices(spec: VmSpec, path: str) -> Iterator[FieldViolation]:
    seen: set[str] = set()
    for place, pci in enumerate(spec.pci_devices):
        where = f"{path}.pci_devices[{place}].host_address"
        if not _PCI_ADDRESS.fullmatch(pci.host_address):
            yield FieldViolation(where, "must be a PCI address such as 0000:3b:00.0")
        if pci.host_address.lower() in seen:
            yield FieldViolation(where, "is named twice")
        seen.add(pci.host_address.lower())
    for place, usb in enumerate(spec.usb_devices):
        where = f"{path}.usb_devices[{place}]"
        has_ids = len(usb.vendor_id) == len(usb.product_id) == _USB_ID_CHARS
        has_no_ids = not usb.vendor_id and not usb.product_id
        if not (has_ids or has_no_ids) or bool(usb.host_bus) != bool(usb.host_device):
            message = "is named by vendor_id and product_id, four digits each, by host_bus and host_device, or by both"
            yield FieldViolation(where, message)
        elif has_no_ids and not usb.host_bus:
            yield FieldViolation(where, "names no device")
    for place, vgpu in enumerate(spec.vgpu_devices):
        if not vgpu.gpu_uuid:
            where = f"{path}.vgpu_devices[{place}].gpu_uuid"
            yield FieldViolation(where, "must be the UUID of the host's mediated device; its node lists them")
