"""Rules about a VM's spec that a .proto file cannot state: what this version can build, and what is filled in.

Whatever this version would have to ignore is refused by field path: a VM that silently lacks its TPM is worse than an
error. `violations_of` is one list, one line for each such field; a capability that arrives removes its line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from controlplane.domain import hardware_spec, provisioning
from limiquantix.compute.v1.vm_pb2 import (
    DiskDevice,
    IoLimits,
    NetworkInterface,
    VmSpec,
)
from limiquantix.errors import FieldViolation

MAX_CDROMS = 4
"""A q35 machine has six SATA ports; two stay free for SATA disks."""

_NOT_YET = "is not supported by this version; leave it out"

MakeId = Callable[[], str]
MakeMac = Callable[[], str]


def violations_of(spec: VmSpec, path: str = "spec", *, complete: bool = True) -> list[FieldViolation]:
    """List what is wrong with a spec beyond the rules of the contract.

    Args:
        path: how the caller names the spec in its request.
        complete: whether this is a whole spec (create) and not a part to be merged into one (update).
    """
    found = [] if not complete else list(_missing(spec, path))
    found += hardware_spec.violations_of(spec, path)
    for index, disk in enumerate(spec.disks):
        found += disk_violations(disk, f"{path}.disks[{index}]")
    for index, nic in enumerate(spec.nics):
        found += nic_violations(nic, f"{path}.nics[{index}]")
    if len(spec.cdroms) > MAX_CDROMS:
        found.append(FieldViolation(f"{path}.cdroms", f"at most {MAX_CDROMS} CD-ROM drives fit a VM"))
    found += _duplicates(spec, path)
    return found


def _missing(spec: VmSpec, path: str) -> Iterator[FieldViolation]:
    for name in ("cpu", "memory"):
        if not spec.HasField(name):
            yield FieldViolation(f"{path}.{name}", "is required")


def disk_violations(disk: DiskDevice, path: str) -> Iterator[FieldViolation]:
    """List what is wrong with a disk beyond the rules of the contract."""
    if disk.storage_pool_id:
        yield FieldViolation(f"{path}.storage_pool_id", _NOT_YET)
    if disk.volume_id:
        yield FieldViolation(f"{path}.volume_id", _NOT_YET)
    if disk.bus == DiskDevice.NVME:
        message = "NVME is nothing that libvirt can emulate; take VIRTIO_BLK or VIRTIO_SCSI"
        yield FieldViolation(f"{path}.bus", message)
    if disk.provisioning != DiskDevice.THIN:
        yield FieldViolation(f"{path}.provisioning", "only THIN is supported by this version")
    yield from io_limit_violations(disk.io_limits, f"{path}.io_limits")
    if disk.source_file and disk.backing_file:
        yield FieldViolation(f"{path}.source_file", "cannot be given together with backing_file")
    if disk.backing_file and disk.format == DiskDevice.RAW:
        yield FieldViolation(f"{path}.format", "a disk with a backing_file must be QCOW2; RAW cannot refer to one")


def io_limit_violations(limits: IoLimits, path: str) -> Iterator[FieldViolation]:
    """List what is wrong with bursts, which are rates above steady ones."""
    for name, burst, rates in (
        ("burst_iops", limits.burst_iops, (limits.read_iops, limits.write_iops)),
        ("burst_bytes", limits.burst_bytes, (limits.read_bytes_sec, limits.write_bytes_sec)),
    ):
        if burst and not any(rates):
            yield FieldViolation(f"{path}.{name}", "needs a steady rate that it goes beyond")
        elif burst and burst < max(rates):
            yield FieldViolation(f"{path}.{name}", f"must be at least the steady rate, {max(rates)}")
    if limits.burst_duration_sec and not limits.burst_iops and not limits.burst_bytes:
        yield FieldViolation(f"{path}.burst_duration_sec", "needs a burst")


def nic_violations(nic: NetworkInterface, path: str) -> Iterator[FieldViolation]:
    """List what is wrong with a network card beyond the rules of the contract."""
    if nic.network_id:
        yield FieldViolation(f"{path}.network_id", "virtual networks are not supported by this version; name a bridge")
    if nic.model == NetworkInterface.VMXNET3:
        yield FieldViolation(f"{path}.model", "VMXNET3 " + _NOT_YET)
    for name in ("security_groups", "ip_configs"):
        if len(getattr(nic, name)):
            yield FieldViolation(f"{path}.{name}", _NOT_YET)
    if nic.sriov.ByteSize():
        yield FieldViolation(f"{path}.sriov", _NOT_YET)
    if nic.bridge and nic.host_network:
        yield FieldViolation(f"{path}.host_network", "cannot be given together with bridge")
    has_rate = nic.qos.ingress_rate_mbps or nic.qos.egress_rate_mbps
    if nic.qos.burst_kb and not has_rate:
        yield FieldViolation(f"{path}.qos.burst_kb", "needs a rate that it goes beyond")
    if has_rate and not nic.bridge and not nic.host_network:
        message = "needs a bridge or a host_network: the host cannot shape what goes through user-mode NAT"
        yield FieldViolation(f"{path}.qos", message)


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
    if full.HasField("provisioning"):
        provisioning.accepted(full.provisioning)
    for nic in full.nics:
        nic.mac_address = nic.mac_address.lower() or make_mac()
    return full
