"""Turn measures and events of the hypervisor into messages of the contract."""

from __future__ import annotations

import uuid
from typing import Final

from hypervisor.types import EventKind, VmEvent
from limiquantix.node.v1 import node_daemon_pb2 as pb
from nodedaemon.encode import timestamp
from nodedaemon.metrics_sampler import Sample
from nodedaemon.usage_rates import VmUsage

_EVENTS: Final[dict[EventKind, pb.EventType.ValueType]] = {
    EventKind.DEFINED: pb.EVENT_TYPE_VM_DEFINED,
    EventKind.STARTED: pb.EVENT_TYPE_VM_STARTED,
    EventKind.STOPPED: pb.EVENT_TYPE_VM_STOPPED,
    EventKind.PAUSED: pb.EVENT_TYPE_VM_PAUSED,
    EventKind.RESUMED: pb.EVENT_TYPE_VM_RESUMED,
    EventKind.SUSPENDED: pb.EVENT_TYPE_VM_SUSPENDED,
    EventKind.CRASHED: pb.EVENT_TYPE_VM_CRASHED,
    EventKind.REBOOTED: pb.EVENT_TYPE_VM_REBOOTED,
    EventKind.REMOVED: pb.EVENT_TYPE_VM_REMOVED,
    EventKind.ARRIVING: pb.EVENT_TYPE_VM_STARTED,
    EventKind.MIGRATED_IN: pb.EVENT_TYPE_VM_MIGRATED_IN,
    EventKind.MIGRATED_OUT: pb.EVENT_TYPE_VM_MIGRATED_OUT,
    EventKind.RESYNC: pb.EVENT_TYPE_EVENTS_MISSED,
}


def to_resource_usage(usage: VmUsage, unix_s: float) -> pb.ResourceUsage:
    """Encode a VM's use; `unix_s` is when it was measured."""
    counters, rates = usage.counters, usage.rates
    return pb.ResourceUsage(
        cpu_usage_percent=rates.cpu_percent,
        cpu_time_ns=counters.cpu_time_ns,
        memory_used_bytes=counters.memory_used_bytes,
        memory_total_bytes=counters.memory_total_bytes,
        disk_read_bytes=sum(disk.read_bytes for disk in counters.disks),
        disk_write_bytes=sum(disk.write_bytes for disk in counters.disks),
        disk_read_count=sum(disk.read_count for disk in counters.disks),
        disk_write_count=sum(disk.write_count for disk in counters.disks),
        network_rx_bytes=sum(nic.rx_bytes for nic in counters.nics),
        network_tx_bytes=sum(nic.tx_bytes for nic in counters.nics),
        network_rx_packets=sum(nic.rx_packets for nic in counters.nics),
        network_tx_packets=sum(nic.tx_packets for nic in counters.nics),
        disk_read_bytes_per_sec=rates.disk_read_bytes_s,
        disk_write_bytes_per_sec=rates.disk_write_bytes_s,
        network_rx_bytes_per_sec=rates.nic_rx_bytes_s,
        network_tx_bytes_per_sec=rates.nic_tx_bytes_s,
        disks=[
            pb.DiskUsage(
                disk_id=disk.disk_id,
                target=disk.target,
                read_bytes=disk.read_bytes,
                write_bytes=disk.write_bytes,
                read_count=disk.read_count,
                write_count=disk.write_count,
            )
            for disk in counters.disks
        ],
        nics=[
            pb.NicUsage(
                nic_id=nic.nic_id,
                mac_address=nic.mac_address,
                rx_bytes=nic.rx_bytes,
                tx_bytes=nic.tx_bytes,
                rx_packets=nic.rx_packets,
                tx_packets=nic.tx_packets,
                rx_errors=nic.rx_errors,
                tx_errors=nic.tx_errors,
            )
            for nic in counters.nics
        ],
        sampled_at=timestamp(unix_s),
    )


def add_device_usage(status: pb.ResourceUsage, usage: VmUsage) -> None:
    """Put counters of disks and network cards into a status whose other parts were read just now."""
    of_devices = to_resource_usage(usage, 0)
    for field in ("cpu_usage_percent", "cpu_time_ns", "memory_used_bytes", "memory_total_bytes", "sampled_at"):
        of_devices.ClearField(field)
    status.MergeFrom(of_devices)


def to_node_metrics(sample: Sample) -> pb.NodeMetrics:
    """Encode a reading."""
    usage = sample.usage
    return pb.NodeMetrics(
        timestamp=timestamp(sample.unix_s),
        cpu_usage_percent=usage.cpu_percent,
        memory_used_bytes=usage.memory_used_bytes,
        memory_total_bytes=usage.memory_total_bytes,
        memory_available_bytes=usage.memory_available_bytes,
        storage_total_bytes=usage.disk_total_bytes,
        storage_used_bytes=usage.disk_used_bytes,
        load_1m=usage.load_1m,
        load_5m=usage.load_5m,
        load_15m=usage.load_15m,
        disks=[
            pb.DiskMetrics(
                device=disk.device,
                read_bytes=disk.read_bytes,
                write_bytes=disk.write_bytes,
                read_iops=disk.read_count,
                write_iops=disk.write_count,
                utilization_percent=busy_percent,
            )
            for disk, busy_percent in zip(sample.disks, sample.disk_busy_percent, strict=True)
        ],
        networks=[
            pb.NetworkMetrics(
                interface=nic.name,
                rx_bytes=nic.rx_bytes,
                tx_bytes=nic.tx_bytes,
                rx_packets=nic.rx_packets,
                tx_packets=nic.tx_packets,
                rx_errors=nic.rx_errors,
                tx_errors=nic.tx_errors,
                is_physical=nic.is_physical,
            )
            for nic in sample.nics
        ],
        vms=[_vm_metrics(vm, sample.unix_s) for vm in sample.vms],
        vms_error=sample.vms_error,
    )


def _vm_metrics(vm: VmUsage, unix_s: float) -> pb.VMMetrics:
    usage = to_resource_usage(vm, unix_s)
    return pb.VMMetrics(
        vm_id=vm.counters.vm_id,
        name=vm.counters.name,
        cpu_usage_percent=usage.cpu_usage_percent,
        memory_used_bytes=usage.memory_used_bytes,
        disk_read_bytes=usage.disk_read_bytes,
        disk_write_bytes=usage.disk_write_bytes,
        network_rx_bytes=usage.network_rx_bytes,
        network_tx_bytes=usage.network_tx_bytes,
        usage=usage,
    )


def to_node_event(event: VmEvent, unix_s: float) -> pb.NodeEvent:
    """Encode what the hypervisor told; `unix_s` is when it did."""
    return pb.NodeEvent(
        id=str(uuid.uuid4()),
        timestamp=timestamp(unix_s),
        type=_EVENTS.get(event.kind, pb.EVENT_TYPE_UNKNOWN),
        vm_id=event.vm_id,
        message=event.detail or event.kind.value,
        metadata={"state": event.state.value} if event.vm_id else {},
    )
