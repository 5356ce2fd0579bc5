"""Rules about a VM's spec that a .proto file cannot state: what this version can build, and what is filled in.

Whatever this version would have to ignore is refused by field path: a VM that silently lacks its TPM is worse than an
error. `violations_of` is one list, one line for each such field; a capability that arrives removes its line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from limiquantix.compute.v1.vm_pb2 import (
    UEFI,
    UEFI_SECURE_BOOT,
    BootConfig,
    BootDevice,
    DiskDevice,
    DisplayConfig,
    GuestAgentConfig,
    NetworkInterface,
    VmSpec,
)
from limiquantix.errors import FieldViolation

MAX_CDROMS = 4
"""A q35 machine has six SATA ports; two stay free for SATA disks."""

MIN_UEFI_MEMORY_MIB = 256
"""OVMF was seen to crash with 128 MiB and to boot with 256."""

_LOOPBACK = frozenset({"", "127.0.0.1", "localhost"})

_NOT_YET = "is not supported by this version; leave it out"

_WHOLE_FIELDS = (
    "pci_devices",
    "usb_devices",
    "vgpu_devices",
    "tpm",
    "watchdog",
    "serial",
    "provisioning",
    "resources",
    "template",
)
"""Parts of `VmSpec` that nothing acts on yet; policies (`ha_policy`, `migration`, `placement`) are kept and honoured
by whoever decides, so they are not here."""

MakeId = Callable[[], str]
MakeMac = Callable[[], str]


def violations_of(spec: VmSpec, path: str = "spec", *, complete: bool = True) -> list[FieldViolation]:
    """List what is wrong with a spec beyond the rules of the contract.

    Args:
        path: how the caller names the spec in its request.
        complete: whether this is a whole spec (create) and not a part to be merged into one (update).
    """
    found = [] if not complete else list(_missing(spec, path))
    found += [FieldViolation(f"{path}.{name}", _NOT_YET) for name in _WHOLE_FIELDS if _is_set(spec, name)]
    found += _machine(spec, path)
    for index, disk in enumerate(spec.disks):
        found += _disk(disk, f"{path}.disks[{index}]")
    for index, nic in enumerate(spec.nics):
        found += _nic(nic, f"{path}.nics[{index}]")
    if len(spec.cdroms) > MAX_CDROMS:
        found.append(FieldViolation(f"{path}.cdroms", f"at most {MAX_CDROMS} CD-ROM drives fit a VM"))
    found += _duplicates(spec, path)
    return found


def _is_set(spec: VmSpec, name: str) -> bool:
    value = getattr(spec, name)
    return len(value) > 0 if hasattr(value, "__len__") else value.ByteSize() > 0


def _missing(spec: VmSpec, path: str) -> Iterator[FieldViolation]:
    for name in ("cpu", "memory"):
        if not spec.HasField(name):
            yield FieldViolation(f"{path}.{name}", "is required")


def _machine(spec: VmSpec, path: str) -> Iterator[FieldViolation]:
    if spec.cpu.numa.ByteSize():
        yield FieldViolation(f"{path}.cpu.numa", _NOT_YET)
    if spec.cpu.features.ByteSize():
        yield FieldViolation(f"{path}.cpu.features", _NOT_YET)
    if spec.memory.huge_pages.ByteSize():
        yield FieldViolation(f"{path}.memory.huge_pages", _NOT_YET)
    if spec.memory.max_memory_mib > spec.memory.size_mib:
        yield FieldViolation(f"{path}.memory.max_memory_mib", "memory hot-plug " + _NOT_YET)
    if spec.memory.overcommit_ratio:
        yield FieldViolation(f"{path}.memory.overcommit_ratio", _NOT_YET)
    yield from _firmware(spec, path)
    if spec.agent.channel == GuestAgentConfig.VSOCK:
        yield FieldViolation(f"{path}.agent.channel", "VSOCK " + _NOT_YET)
    for name in ("socket_path", "vsock_cid"):
        if getattr(spec.agent, name):
            yield FieldViolation(f"{path}.agent.{name}", _NOT_YET)
    for name in ("rate_bytes", "period_ms", "backend"):
        if getattr(spec.rng, name):
            yield FieldViolation(f"{path}.rng.{name}", _NOT_YET)
    if spec.guest_os.overrides.ByteSize():
        yield FieldViolation(f"{path}.guest_os.overrides", _NOT_YET)
    yield from _display(spec.display, f"{path}.display")
    yield from _boot(spec.boot, f"{path}.boot")


def _firmware(spec: VmSpec, path: str) -> Iterator[FieldViolation]:
    if spec.firmware == UEFI and 0 < spec.memory.size_mib < MIN_UEFI_MEMORY_MIB:
        message = f"UEFI needs at least {MIN_UEFI_MEMORY_MIB} MiB; its firmware crashes with less"
        yield FieldViolation(f"{path}.memory.size_mib", message)
    if spec.firmware == UEFI_SECURE_BOOT:
        yield FieldViolation(f"{path}.firmware", "secure boot " + _NOT_YET)


def _display(display: DisplayConfig, path: str) -> Iterator[FieldViolation]:
    if display.type == DisplayConfig.SPICE:
        yield FieldViolation(f"{path}.type", "SPICE " + _NOT_YET)
    if display.listen_address not in _LOOPBACK:
        yield FieldViolation(f"{path}.listen_address", "consoles listen on the host's loopback address only")
    if display.gpu != DisplayConfig.VGA:
        yield FieldViolation(f"{path}.gpu", "only VGA is supported by this version")
    if display.displays > 1:
        yield FieldViolation(f"{path}.displays", "more than one display " + _NOT_YET)
    for name in ("port", "tls_enabled", "video_memory_mib"):
        if getattr(display, name):
            yield FieldViolation(f"{path}.{name}", _NOT_YET)


def _boot(boot: BootConfig, path: str) -> Iterator[FieldViolation]:
    if boot.menu_timeout_sec:
        yield FieldViolation(f"{path}.menu_timeout_sec", _NOT_YET)
    for index, device in enumerate(boot.boot_order):
        if device.type == BootDevice.USB:
            yield FieldViolation(f"{path}.boot_order[{index}].type", "USB " + _NOT_YET)
        if device.device_id:
            message = f"{_NOT_YET}; give the device a boot_index instead"
            yield FieldViolation(f"{path}.boot_order[{index}].device_id", message)
    if not boot.direct_boot.kernel_path and boot.direct_boot.ByteSize():
        yield FieldViolation(f"{path}.direct_boot.kernel_path", "is required for a direct boot")


def _disk(disk: DiskDevice, path: str) -> Iterator[FieldViolation]:
    if disk.storage_pool_id:
        yield FieldViolation(f"{path}.storage_pool_id", _NOT_YET)
    if disk.volume_id:
        yield FieldViolation(f"{path}.volume_id", _NOT_YET)
    if disk.bus == DiskDevice.NVME:
        yield FieldViolation(f"{path}.bus", "NVME " + _NOT_YET)
    if disk.provisioning != DiskDevice.THIN:
        yield FieldViolation(f"{path}.provisioning", "only THIN is supported by this version")
    if disk.io_limits.ByteSize():
        yield FieldViolation(f"{path}.io_limits", _NOT_YET)
    if disk.backing_file and disk.format == DiskDevice.RAW:
        yield FieldViolation(f"{path}.format", "a disk with a backing_file must be QCOW2; RAW cannot refer to one")


def _nic(nic: NetworkInterface, path: str) -> Iterator[FieldViolation]:
    if nic.network_id:
        yield FieldViolation(f"{path}.network_id", "virtual networks are not supported by this version; name a bridge")
    if nic.model == NetworkInterface.VMXNET3:
        yield FieldViolation(f"{path}.model", "VMXNET3 " + _NOT_YET)
    for name in ("security_groups", "ip_configs"):
        if len(getattr(nic, name)):
            yield FieldViolation(f"{path}.{name}", _NOT_YET)
    for name in ("qos", "sriov"):
        if getattr(nic, name).ByteSize():
            yield FieldViolation(f"{path}.{name}", _NOT_YET)


def _duplicates(spec: VmSpec, path: str) -> Iterator[FieldViolation]:
    seen: set[str] = set()
    for name in ("disks", "cdroms", "nics"):
        for index, device in enumerate(getattr(spec, name)):
            if device.id and device.id in seen:
                yield FieldViolation(f"{path}.{name}[{index}].id", "is used by another device of this VM")
            seen.add(device.id)
    macs: set[str] = set()
    for index, nic in enumerate(spec.nics):
        mac = nic.mac_address.lower()
        if mac and mac in macs:
            yield FieldViolation(f"{path}.nics[{index}].mac_address", "is used by another NIC of this VM")
        macs.add(mac)


def filled_in(spec: VmSpec, make_id: MakeId, make_mac: MakeMac) -> VmSpec:
    """Copy a spec and give every device the id and MAC address its caller left out."""
    full = VmSpec()
    full.CopyFrom(spec)
    for devices in (full.disks, full.cdroms, full.nics):
        for device in devices:
            if not device.id:
                device.id = make_id()
    for nic in full.nics:
        nic.mac_address = nic.mac_address.lower() or make_mac()
    return full
