"""Put a VM's spec into the words of the node daemon's contract, and the daemon's faults back into the caller's.

The documented node contract is a subset of the compute one with names of its own; only this file knows both.
"""

from __future__ import annotations

from collections.abc import Mapping

from controlplane.daemons import node_hardware
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
    BootDevice,
    CdromDevice,
    DiskDevice,
    DisplayConfig,
    IoLimits,
    NetworkInterface,
    TemplateConfig,
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
_SOURCE_FORMAT = {
    DiskDevice.SOURCE_FORMAT_UNSPECIFIED: node_v1.SOURCE_FORMAT_UNSPECIFIED,
    DiskDevice.SOURCE_FORMAT_QCOW2: node_v1.SOURCE_FORMAT_QCOW2,
    DiskDevice.SOURCE_FORMAT_RAW: node_v1.SOURCE_FORMAT_RAW,
    DiskDevice.SOURCE_FORMAT_VMDK: node_v1.SOURCE_FORMAT_VMDK,
}
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

_PATHS = {
    "spec.direct_boot": "spec.boot.direct_boot",
    "spec.cpu_model": "spec.cpu.model",
    "spec.cloud_init": "spec.provisioning.cloud_init",
    "spec.ignition": "spec.provisioning.ignition",
    "spec.sysprep": "spec.provisioning.sysprep",
    **node_hardware.PATHS,
}
"""Where a field of the node's spec has another path than in the caller's; all others are the same in both."""


def to_node_spec(spec: VmSpec) -> node_v1.VMSpec:
    """Translate a filled-in spec; every device has its id already."""
    node_spec = node_v1.VMSpec(
        cpu_cores=spec.cpu.cores,
        cpu_sockets=max(spec.cpu.sockets, 1),
        cpu_threads_per_core=max(spec.cpu.threads_per_core, 1),
        cpu_model=spec.cpu.model,
        memory_mib=spec.memory.size_mib,
        boot_order=[_BOOT_DEVICE[device.type] for device in spec.boot.boot_order],
        disks=[to_node_disk(disk) for disk in spec.disks],
        nics=[to_node_nic(nic) for nic in spec.nics],
        cdroms=[to_node_cdrom(cdrom) for cdrom in spec.cdroms],
        console=node_v1.ConsoleSpec(
            vnc_enabled=spec.display.type == DisplayConfig.VNC, vnc_password=spec.display.password
        ),
    )
    if spec.boot.direct_boot.kernel_path:
        node_spec.direct_boot.kernel_path = spec.boot.direct_boot.kernel_path
        node_spec.direct_boot.initrd_path = spec.boot.direct_boot.initrd_path
        node_spec.direct_boot.cmdline = spec.boot.direct_boot.cmdline
    node_hardware.add_hardware(spec, node_spec)
    _add_provisioning(spec, node_spec)
    node_spec.is_template = spec.template.is_template
    for disk in node_spec.disks:
        if source_id := spec.template.disk_sources.get(disk.id):
            for name in ("backing_file", "source_file", "source_format"):
                disk.ClearField(name)
            disk.clone_of.vm_id = spec.template.source_template_id or spec.template.source_vm_id
            disk.clone_of.disk_id = source_id
            disk.clone_of.linked = spec.template.clone_type == TemplateConfig.LINKED
    return node_spec


def to_defined_spec(spec: VmSpec, *, is_protected: bool) -> node_v1.VMSpec:
    """Translate a spec for a host that is to have the VM from now on."""
    node_spec = to_node_spec(spec)
    node_spec.is_protected = is_protected
    return node_spec


def to_adopted_spec(spec: VmSpec) -> node_v1.VMSpec:
    """Translate a spec for a host that finds the images on its storage: nothing of what they were made from."""
    node_spec = to_node_spec(spec)
    for disk in node_spec.disks:
        for name in ("backing_file", "source_file", "source_format", "clone_of"):
            disk.ClearField(name)
        if not disk.path:
            disk.size_gib = max(disk.size_gib, 1)
    return node_spec


def _add_provisioning(spec: VmSpec, node_spec: node_v1.VMSpec) -> None:
    """Add what the guest is told at its first boot. The messages of both contracts have the same fields."""
    match spec.provisioning.WhichOneof("method"):
        case "cloud_init":
            node_spec.cloud_init.ParseFromString(spec.provisioning.cloud_init.SerializeToString())
            node_spec.cloud_init.SetInParent()
        case "ignition":
            node_spec.ignition.config = spec.provisioning.ignition.config
            node_spec.ignition.SetInParent()
        case "sysprep":
            node_spec.sysprep.ParseFromString(spec.provisioning.sysprep.SerializeToString())
            node_spec.sysprep.SetInParent()


def to_node_disk(disk: DiskDevice) -> node_v1.DiskSpec:
    """Translate a disk."""
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
        io_limits=to_node_limits(disk.io_limits) if disk.io_limits.ByteSize() else None,
        source_file=disk.source_file,
        source_format=_SOURCE_FORMAT[disk.source_format],
    )


def as_existing(disk: node_v1.DiskSpec) -> node_v1.DiskSpec:
    """Return a disk whose image the host has already: nothing of how it was made."""
    existing = node_v1.DiskSpec()
    existing.CopyFrom(disk)
    for name in ("backing_file", "source_file", "source_format", "clone_of", "boot_index"):
        existing.ClearField(name)
    existing.size_gib = max(existing.size_gib, 1)
    return existing


def to_node_limits(limits: IoLimits) -> node_v1.DiskIoLimits:
    """Translate a disk's ceilings. The messages of both contracts have the same fields."""
    return node_v1.DiskIoLimits.FromString(limits.SerializeToString())


def to_node_cdrom(cdrom: CdromDevice) -> node_v1.CdromSpec:
    """Translate a CD-ROM drive."""
    return node_v1.CdromSpec(
        id=cdrom.id,
        iso_path=cdrom.iso_path,
        boot_index=cdrom.boot_index,
        connected=cdrom.connected or bool(cdrom.iso_path),
        bus=node_v1.CDROM_BUS_SCSI if cdrom.bus == CdromDevice.VIRTIO_SCSI else node_v1.CDROM_BUS_SATA,
    )


def to_node_nic(nic: NetworkInterface) -> node_v1.NicSpec:
    """Translate a network card."""
    bandwidth = node_v1.NicBandwidth(
        to_guest_kbps=nic.qos.ingress_rate_mbps * 1000,
        from_guest_kbps=nic.qos.egress_rate_mbps * 1000,
        burst_kib=nic.qos.burst_kb,
    )
    return node_v1.NicSpec(
        id=nic.id,
        mac_address=nic.mac_address,
        bridge=nic.bridge,
        network=nic.host_network,
        model=_NIC_MODEL[nic.model],
        boot_index=nic.boot_index,
        link_down=nic.link_down,
        bandwidth=bandwidth if bandwidth.ByteSize() else None,
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
