"""Put a VM's spec into the words of the node daemon's contract, and the daemon's faults back into the caller's.

The documented node contract is a subset of the compute one with names of its own; only this file knows both.
"""

from __future__ import annotations

from collections.abc import Mapping

from controlplane.domain.vm import PowerState
from limiquantix.compute.v1.node_service_pb2 import (
    VM_POWER_STATE_CRASHED,
    VM_POWER_STATE_MIGRATING,
    VM_POWER_STATE_PAUSED,
    VM_POWER_STATE_RUNNING,
    VM_POWER_STATE_SHUTOFF,
    VM_POWER_STATE_STOPPED,
    VM_POWER_STATE_SUSPENDED,
    VM_POWER_STATE_UNKNOWN,
    VMPowerState,
)
from limiquantix.compute.v1.vm_pb2 import (
    UEFI,
    BootDevice,
    DiskDevice,
    DisplayConfig,
    NetworkInterface,
    VmSpec,
    VmStatus,
)
from limiquantix.errors import ApiError, FieldViolation, InvalidArgument
from limiquantix.node.v1 import node_daemon_pb2 as node_v1

_DISK_BUS = {
    DiskDevice.VIRTIO_BLK: node_v1.DISK_BUS_VIRTIO,
    DiskDevice.VIRTIO_SCSI: node_v1.DISK_BUS_SCSI,
    DiskDevice.SATA: node_v1.DISK_BUS_SATA,
    DiskDevice.IDE: node_v1.DISK_BUS_IDE,
}
_DISK_FORMAT = {DiskDevice.QCOW2: node_v1.DISK_FORMAT_QCOW2, DiskDevice.RAW: node_v1.DISK_FORMAT_RAW}
_DISK_CACHE = {
    DiskDevice.WRITEBACK: node_v1.DISK_CACHE_WRITEBACK,
    DiskDevice.WRITETHROUGH: node_v1.DISK_CACHE_WRITETHROUGH,
    DiskDevice.NONE: node_v1.DISK_CACHE_NONE,
}
_NIC_MODEL = {
    NetworkInterface.VIRTIO_NET: node_v1.NIC_MODEL_VIRTIO,
    NetworkInterface.E1000: node_v1.NIC_MODEL_E1000,
    NetworkInterface.E1000E: node_v1.NIC_MODEL_E1000E,
}
_BOOT_DEVICE = {
    BootDevice.DISK: node_v1.BOOT_DEVICE_DISK,
    BootDevice.CDROM: node_v1.BOOT_DEVICE_CDROM,
    BootDevice.NETWORK: node_v1.BOOT_DEVICE_NETWORK,
}

STATE_OF_STATUS: Mapping[int, VmStatus.PowerState.ValueType] = {
    node_v1.POWER_STATE_UNKNOWN: PowerState.UNKNOWN,
    node_v1.POWER_STATE_RUNNING: PowerState.RUNNING,
    node_v1.POWER_STATE_STOPPED: PowerState.STOPPED,
    node_v1.POWER_STATE_PAUSED: PowerState.PAUSED,
    node_v1.POWER_STATE_SUSPENDED: PowerState.SUSPENDED,
    node_v1.POWER_STATE_CRASHED: PowerState.CRASHED,
}
"""Power state of a daemon's answer, in the words of the public contract."""

STATE_OF_REPORT: Mapping[int, VmStatus.PowerState.ValueType] = {
    VM_POWER_STATE_RUNNING: PowerState.RUNNING,
    VM_POWER_STATE_STOPPED: PowerState.STOPPED,
    VM_POWER_STATE_SHUTOFF: PowerState.STOPPED,
    VM_POWER_STATE_PAUSED: PowerState.PAUSED,
    VM_POWER_STATE_SUSPENDED: PowerState.SUSPENDED,
    VM_POWER_STATE_CRASHED: PowerState.CRASHED,
    VM_POWER_STATE_MIGRATING: PowerState.MIGRATING,
}
"""Power state a daemon pushes, in the words of the public contract; anything else is UNKNOWN."""

REPORT_OF_STATE: Mapping[int, VMPowerState.ValueType] = {
    PowerState.UNKNOWN: VM_POWER_STATE_UNKNOWN,
    PowerState.RUNNING: VM_POWER_STATE_RUNNING,
    PowerState.STOPPED: VM_POWER_STATE_STOPPED,
    PowerState.PAUSED: VM_POWER_STATE_PAUSED,
    PowerState.SUSPENDED: VM_POWER_STATE_SUSPENDED,
    PowerState.CRASHED: VM_POWER_STATE_CRASHED,
    PowerState.MIGRATING: VM_POWER_STATE_MIGRATING,
}
"""The same the other way round, for what a host can report at all."""

_PATHS = {"spec.direct_boot": "spec.boot.direct_boot", "spec.cpu_model": "spec.cpu.model"}
"""Where a field of the node's spec has another path than in the caller's; all others are the same in both."""


def to_node_spec(spec: VmSpec) -> node_v1.VMSpec:
    """Translate a filled-in spec; every device has its id already."""
    node_spec = node_v1.VMSpec(
        cpu_cores=spec.cpu.cores,
        cpu_sockets=max(spec.cpu.sockets, 1),
        cpu_threads_per_core=max(spec.cpu.threads_per_core, 1),
        cpu_model=spec.cpu.model,
        memory_mib=spec.memory.size_mib,
        firmware=node_v1.FIRMWARE_UEFI if spec.firmware == UEFI else node_v1.FIRMWARE_BIOS,
        boot_order=[_BOOT_DEVICE[device.type] for device in spec.boot.boot_order],
        disks=[_disk(disk) for disk in spec.disks],
        nics=[_nic(nic) for nic in spec.nics],
        cdroms=[
            node_v1.CdromSpec(
                id=cdrom.id,
                iso_path=cdrom.iso_path,
                boot_index=cdrom.boot_index,
                connected=cdrom.connected or bool(cdrom.iso_path),
            )
            for cdrom in spec.cdroms
        ],
        console=node_v1.ConsoleSpec(
            vnc_enabled=spec.display.type == DisplayConfig.VNC, vnc_password=spec.display.password
        ),
    )
    if spec.boot.direct_boot.kernel_path:
        node_spec.direct_boot.kernel_path = spec.boot.direct_boot.kernel_path
        node_spec.direct_boot.initrd_path = spec.boot.direct_boot.initrd_path
        node_spec.direct_boot.cmdline = spec.boot.direct_boot.cmdline
    return node_spec


def _disk(disk: DiskDevice) -> node_v1.DiskSpec:
    return node_v1.DiskSpec(
        id=disk.id,
        size_gib=disk.size_gib,
        bus=_DISK_BUS[disk.bus],
        format=_DISK_FORMAT[disk.format],
        cache=_DISK_CACHE[disk.cache],
        readonly=disk.readonly,
        discard=disk.discard_enabled,
        boot_index=disk.boot_index,
        backing_file=disk.backing_file,
    )


def _nic(nic: NetworkInterface) -> node_v1.NicSpec:
    return node_v1.NicSpec(
        id=nic.id,
        mac_address=nic.mac_address,
        bridge=nic.bridge,
        model=_NIC_MODEL[nic.model],
        boot_index=nic.boot_index,
    )


def in_callers_words(error: ApiError) -> ApiError:
    """Rename the fields of a daemon's `InvalidArgument` to those of the request the caller sent."""
    if not isinstance(error, InvalidArgument) or not error.violations:
        return error
    renamed = []
    for violation in error.violations:
        path = violation.field
        for theirs, ours in _PATHS.items():
            if path == theirs or path.startswith(f"{theirs}."):
                path = ours + path[len(theirs) :]
        renamed.append(FieldViolation(path, violation.description))
    return InvalidArgument.from_violations(renamed)
