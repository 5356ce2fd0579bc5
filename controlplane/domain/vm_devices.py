"""Which changes of a VM's devices may be asked for, and what its spec is afterwards; pure.

The spec is changed by copying it: a record's message is never modified in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from controlplane.domain import errors, vm_spec
from controlplane.domain.vm import ALIVE_STATES, PowerOperation, PowerState, Vm, require_managed, require_state
from limiquantix.compute.v1.vm_pb2 import CdromDevice, DiskDevice, IoLimits, NetworkInterface, NetworkQos, VmSpec
from limiquantix.compute.v1.vm_service_pb2 import UpdateNICRequest
from limiquantix.errors import FieldViolation, InvalidArgument

MAX_DISKS = 64
MAX_NICS = 32
"""What the contract lets a spec have."""

_HOTPLUG_DISKS = frozenset({DiskDevice.VIRTIO_BLK, DiskDevice.VIRTIO_SCSI})
_HOTPLUG_NICS = frozenset({NetworkInterface.VIRTIO_NET, NetworkInterface.E1000E})

DISK, CDROM, NIC = "disk", "CD-ROM drive", "network card"


def copy_of(spec: VmSpec) -> VmSpec:
    """Copy a spec, to change the copy."""
    copied = VmSpec()
    copied.CopyFrom(spec)
    return copied


# -- finding


def find_disk(spec: VmSpec, disk_id: str) -> DiskDevice | None:
    """Find a disk."""
    return next((disk for disk in spec.disks if disk.id == disk_id), None)


def find_cdrom(spec: VmSpec, cdrom_id: str) -> CdromDevice | None:
    """Find a CD-ROM drive."""
    return next((cdrom for cdrom in spec.cdroms if cdrom.id == cdrom_id), None)


def find_nic(spec: VmSpec, nic_id: str) -> NetworkInterface | None:
    """Find a network card."""
    return next((nic for nic in spec.nics if nic.id == nic_id), None)


def required_disk(vm: Vm, disk_id: str) -> DiskDevice:
    """Find a disk; NotFound if there is none."""
    disk = find_disk(vm.spec, disk_id)
    if disk is None:
        raise errors.device_not_found(vm.id, DISK, disk_id)
    return disk


def required_cdrom(vm: Vm, cdrom_id: str) -> CdromDevice:
    """Find a CD-ROM drive; NotFound if there is none."""
    cdrom = find_cdrom(vm.spec, cdrom_id)
    if cdrom is None:
        raise errors.device_not_found(vm.id, CDROM, cdrom_id)
    return cdrom


def required_nic(vm: Vm, nic_id: str) -> NetworkInterface:
    """Find a network card; NotFound if there is none."""
    nic = find_nic(vm.spec, nic_id)
    if nic is None:
        raise errors.device_not_found(vm.id, NIC, nic_id)
    return nic


# -- what may be asked for


def require_disk_attachable(vm: Vm, disk: DiskDevice) -> None:
    """Check that a disk may be attached now.

    Raises:
        FailedPrecondition: the VM's state does not allow it, with that bus.
        AlreadyExists: the VM has a device of that id.
        ResourceExhausted: the VM has as many as one can have.
    """
    _require_changeable(vm, PowerOperation.ATTACH)
    _require_new_id(vm, disk.id)
    if len(vm.spec.disks) >= MAX_DISKS:
        raise errors.too_many_devices(vm.id, DISK, MAX_DISKS)
    if vm.power_state in ALIVE_STATES and disk.bus not in _HOTPLUG_DISKS:
        raise errors.no_hotplug(vm.id, f"a disk on {DiskDevice.BusType.Name(disk.bus)}", _state_of(vm))


def require_nic_attachable(vm: Vm, nic: NetworkInterface) -> None:
    """Check that a network card may be attached now; as `require_disk_attachable`."""
    _require_changeable(vm, PowerOperation.ATTACH)
    _require_new_id(vm, nic.id)
    if len(vm.spec.nics) >= MAX_NICS:
        raise errors.too_many_devices(vm.id, NIC, MAX_NICS)
    if vm.power_state in ALIVE_STATES and nic.model not in _HOTPLUG_NICS:
        raise errors.no_hotplug(vm.id, f"a network card {NetworkInterface.Model.Name(nic.model)}", _state_of(vm))


def require_cdrom_attachable(vm: Vm, cdrom: CdromDevice) -> None:
    """Check that a CD-ROM drive may be added now; as `require_disk_attachable`."""
    _require_changeable(vm, PowerOperation.RECONFIGURE)
    _require_new_id(vm, cdrom.id)
    if len(vm.spec.cdroms) >= vm_spec.MAX_CDROMS:
        raise errors.too_many_devices(vm.id, CDROM, vm_spec.MAX_CDROMS)


def require_disk_detachable(vm: Vm, disk_id: str) -> None:
    """Check that a disk may be taken away now.

    Raises:
        NotFound: there is none of that id.
        FailedPrecondition: the VM's state does not allow it, with that bus.
    """
    _require_changeable(vm, PowerOperation.DETACH)
    disk = required_disk(vm, disk_id)
    if vm.power_state in ALIVE_STATES and disk.bus not in _HOTPLUG_DISKS:
        raise errors.no_hotplug(vm.id, f"a disk on {DiskDevice.BusType.Name(disk.bus)}", _state_of(vm))


def require_nic_detachable(vm: Vm, nic_id: str) -> None:
    """Check that a network card may be taken away now; as `require_disk_detachable`."""
    _require_changeable(vm, PowerOperation.DETACH)
    required_nic(vm, nic_id)


def require_cdrom_detachable(vm: Vm, cdrom_id: str) -> None:
    """Check that a CD-ROM drive may be taken away now; as `require_disk_detachable`."""
    _require_changeable(vm, PowerOperation.RECONFIGURE)
    required_cdrom(vm, cdrom_id)


def require_disk_resizable(vm: Vm, disk_id: str, size_gib: int) -> None:
    """Check that a disk may get a size.

    Raises:
        InvalidArgument: it is larger.
        NotFound, FailedPrecondition: as `require_disk_detachable`.
    """
    _require_changeable(vm, PowerOperation.ATTACH)
    disk = required_disk(vm, disk_id)
    if size_gib < disk.size_gib:
        message = f"disk {disk_id} has {disk.size_gib} GiB; a disk cannot be made smaller"
        raise InvalidArgument.from_violations([FieldViolation("new_size_gib", message)])


def require_disk_changeable(vm: Vm, disk_id: str) -> None:
    """Check that a disk's ceilings may be changed now."""
    _require_changeable(vm, PowerOperation.ATTACH)
    required_disk(vm, disk_id)


def require_nic_changeable(vm: Vm, request: UpdateNICRequest) -> None:
    """Check that a network card may be changed so now.

    Raises:
        InvalidArgument: such a card has no ceilings.
    """
    _require_changeable(vm, PowerOperation.ATTACH)
    changed = with_nic_changes(required_nic(vm, request.nic_id), request)
    if faults := list(vm_spec.nic_violations(changed, "nic")):
        raise InvalidArgument.from_violations(
            [FieldViolation(fault.field.removeprefix("nic."), fault.description) for fault in faults]
        )


def require_medium_changeable(vm: Vm, cdrom_id: str) -> None:
    """Check that a drive's medium may be changed now."""
    _require_changeable(vm, PowerOperation.ATTACH)
    required_cdrom(vm, cdrom_id)


def attach_disk_violations(disk: DiskDevice, path: str = "disk") -> Iterator[FieldViolation]:
    """List what is wrong with a disk to be attached, whatever the VM."""
    yield from vm_spec.disk_violations(disk, path)
    yield from _attached_last(disk.boot_index, path)


def attach_nic_violations(nic: NetworkInterface, path: str = "nic") -> Iterator[FieldViolation]:
    """List what is wrong with a network card to be attached, whatever the VM."""
    yield from vm_spec.nic_violations(nic, path)
    yield from _attached_last(nic.boot_index, path)


def _attached_last(boot_index: int, path: str) -> Iterator[FieldViolation]:
    if boot_index:
        yield FieldViolation(f"{path}.boot_index", "is settled when a VM is made; what is attached comes last")


def _require_changeable(vm: Vm, operation: PowerOperation) -> None:
    require_managed(vm)
    require_state(vm, operation)


def _require_new_id(vm: Vm, device_id: str) -> None:
    devices: tuple[Any, ...] = (*vm.spec.disks, *vm.spec.cdroms, *vm.spec.nics)
    if any(device.id == device_id for device in devices):
        raise errors.device_exists(vm.id, device_id)


def _state_of(vm: Vm) -> str:
    return PowerState.Name(vm.power_state)


# -- what the spec is afterwards


def with_disk(spec: VmSpec, disk: DiskDevice) -> VmSpec:
    """Add a disk, or put it in place of the one of its id."""
    changed = without_disk(spec, disk.id) if find_disk(spec, disk.id) is None else copy_of(spec)
    present = find_disk(changed, disk.id)
    (changed.disks.add() if present is None else present).CopyFrom(disk)
    return changed


def without_disk(spec: VmSpec, disk_id: str) -> VmSpec:
    """Take a disk out, with what is kept of where it came from."""
    changed = copy_of(spec)
    del changed.disks[:]
    changed.disks.extend(disk for disk in spec.disks if disk.id != disk_id)
    if disk_id in changed.template.disk_sources:
        del changed.template.disk_sources[disk_id]
    return changed


def with_nic(spec: VmSpec, nic: NetworkInterface) -> VmSpec:
    """Add a network card, or put it in place of the one of its id."""
    changed = copy_of(spec)
    present = find_nic(changed, nic.id)
    (changed.nics.add() if present is None else present).CopyFrom(nic)
    return changed


def without_nic(spec: VmSpec, nic_id: str) -> VmSpec:
    """Take a network card out."""
    changed = copy_of(spec)
    del changed.nics[:]
    changed.nics.extend(nic for nic in spec.nics if nic.id != nic_id)
    return changed


def with_cdrom(spec: VmSpec, cdrom: CdromDevice) -> VmSpec:
    """Add a CD-ROM drive, or put it in place of the one of its id."""
    changed = copy_of(spec)
    present = find_cdrom(changed, cdrom.id)
    (changed.cdroms.add() if present is None else present).CopyFrom(cdrom)
    return changed


def without_cdrom(spec: VmSpec, cdrom_id: str) -> VmSpec:
    """Take a CD-ROM drive out."""
    changed = copy_of(spec)
    del changed.cdroms[:]
    changed.cdroms.extend(cdrom for cdrom in spec.cdroms if cdrom.id != cdrom_id)
    return changed


def with_size(disk: DiskDevice, size_gib: int) -> DiskDevice:
    """Copy a disk with another size."""
    changed = DiskDevice()
    changed.CopyFrom(disk)
    changed.size_gib = size_gib
    return changed


def with_limits(disk: DiskDevice, limits: IoLimits) -> DiskDevice:
    """Copy a disk with other ceilings; empty ones are left out."""
    changed = DiskDevice()
    changed.CopyFrom(disk)
    changed.ClearField("io_limits")
    if limits.ByteSize():
        changed.io_limits.CopyFrom(limits)
    return changed


def with_medium(cdrom: CdromDevice, iso_path: str) -> CdromDevice:
    """Copy a drive with another medium; "" leaves it empty."""
    changed = CdromDevice()
    changed.CopyFrom(cdrom)
    changed.iso_path = iso_path
    changed.connected = bool(iso_path)
    return changed


def with_nic_changes(nic: NetworkInterface, request: UpdateNICRequest) -> NetworkInterface:
    """Copy a network card with what a request changes of it."""
    changed = NetworkInterface()
    changed.CopyFrom(nic)
    if request.HasField("link_down"):
        changed.link_down = request.link_down
    if request.HasField("qos"):
        changed.ClearField("qos")
        if request.qos != NetworkQos():
            changed.qos.CopyFrom(request.qos)
    return changed
