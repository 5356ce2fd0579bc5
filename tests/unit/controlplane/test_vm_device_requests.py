"""Requests for changes of devices that are wrong whatever the VM: every fault is named by its field."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import Message

from controlplane.api.checks import CHECKS
from limiquantix.compute.v1 import vm_service_pb2 as api
from limiquantix.compute.v1.vm_pb2 import DiskDevice, IoLimits, NetworkInterface
from limiquantix.rpc.validation import violations_of

VM_ID = "5f7c1a52-0b3e-4d0c-9a56-2f1f0c9e4b11"
VMDK = DiskDevice.SOURCE_FORMAT_VMDK


def faults(request: Message) -> set[str]:
    found = {violation.field for violation in violations_of(request)}
    check = CHECKS.get(type(request))
    return found | ({violation.field for violation in check(request)} if check else set())


def disk(**fields: Any) -> api.AttachDiskRequest:
    return api.AttachDiskRequest(vm_id=VM_ID, disk=DiskDevice(**fields))


def nic(**fields: Any) -> api.AttachNICRequest:
    return api.AttachNICRequest(vm_id=VM_ID, nic=NetworkInterface(**fields))


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (disk(size_gib=1), set()),
        (disk(source_file="import/a.vmdk", source_format=VMDK), set()),
        (disk(), {"disk"}),
        (disk(size_gib=65_537), {"disk.size_gib"}),
        (disk(size_gib=2**64 - 1), {"disk.size_gib"}),
        (disk(source_file="a.vmdk"), {"disk"}),
        (disk(size_gib=1, source_format=VMDK), {"disk"}),
        (disk(source_file="../../etc/passwd", source_format=VMDK), {"disk.source_file"}),
        (disk(source_file="a\0b", source_format=VMDK), {"disk.source_file"}),
        (disk(source_file="a\nb", source_format=VMDK), {"disk.source_file"}),
        (disk(source_file="a" * 4097, source_format=VMDK), {"disk.source_file"}),
        (disk(source_file="a", source_format=VMDK, backing_file="b"), {"disk.source_file"}),
        (disk(size_gib=1, boot_index=1), {"disk.boot_index"}),
        (disk(size_gib=1, bus=DiskDevice.NVME), {"disk.bus"}),
        (disk(size_gib=1, id="../x"), {"disk.id"}),
        (disk(size_gib=1, io_limits={"burst_iops": 5}), {"disk.io_limits.burst_iops"}),
        (disk(size_gib=1, io_limits={"read_iops": 9, "burst_iops": 5}), {"disk.io_limits.burst_iops"}),
        (disk(size_gib=1, io_limits={"burst_duration_sec": 5}), {"disk.io_limits.burst_duration_sec"}),
        (disk(size_gib=1, io_limits={"read_iops": 2**63}), {"disk.io_limits.read_iops"}),
        (nic(), set()),
        (nic(bridge="br0", qos={"ingress_rate_mbps": 1}), set()),
        (nic(qos={"ingress_rate_mbps": 1}), {"nic.qos"}),
        (nic(bridge="br0", qos={"burst_kb": 1}), {"nic.qos.burst_kb"}),
        (nic(bridge="br0", host_network="default"), {"nic.host_network"}),
        (nic(bridge="br0; reboot"), {"nic.bridge"}),
        (nic(mac_address="01:00:5e:00:00:01"), {"nic.mac_address"}),
        (nic(boot_index=1), {"nic.boot_index"}),
        (api.ResizeDiskRequest(vm_id=VM_ID, disk_id=VM_ID, new_size_gib=0), {"new_size_gib"}),
        (api.ResizeDiskRequest(vm_id=VM_ID, disk_id=VM_ID, new_size_gib=65_537), {"new_size_gib"}),
        (
            api.UpdateDiskRequest(vm_id=VM_ID, disk_id=VM_ID, io_limits=IoLimits(burst_bytes=1)),
            {"io_limits.burst_bytes"},
        ),
        (api.MountISORequest(vm_id=VM_ID, cdrom_id=VM_ID, iso_path="../a.iso"), {"iso_path"}),
        (api.MountISORequest(vm_id=VM_ID, cdrom_id=VM_ID, iso_path=""), {"iso_path"}),
        (api.AttachCDROMRequest(vm_id=VM_ID, iso_path="a\0.iso"), {"iso_path"}),
    ],
)
def test_fault_19_request_is_refused_for_each_field_that_is_wrong(request_: Message, fields: set[str]) -> None:
    assert faults(request_) == fields
