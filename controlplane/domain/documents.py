"""Records as the contract's messages: what callers read, what watches send, what the log of events keeps."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from controlplane.domain import provisioning
from controlplane.domain.node import Node
from controlplane.domain.node_conditions import conditions_of
from controlplane.domain.vm import ALIVE_STATES, PowerState, Vm
from limiquantix.compute.v1 import node_pb2, vm_pb2

HARDWARE_VERSION = "q35"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def timestamp(moment: datetime) -> Timestamp:
    """Encode a moment, microseconds kept."""
    seconds, microseconds = divmod((moment - _EPOCH) // _MICROSECOND, 1_000_000)
    return Timestamp(seconds=seconds, nanos=microseconds * 1_000)


def virtual_machine(vm: Vm) -> vm_pb2.VirtualMachine:
    """Encode a VM. The console's password leaves only through `GetConsole`, first-boot secrets not at all."""
    message = vm_pb2.VirtualMachine(
        id=vm.id,
        name=vm.name,
        project_id=vm.project_id,
        labels=vm.labels,
        description=vm.description,
        hardware_version=HARDWARE_VERSION,
        spec=vm.spec,
        created_at=timestamp(vm.created_at),
        updated_at=timestamp(vm.updated_at),
        created_by=vm.created_by,
        folder_id=vm.folder_id,
        origin=vm.origin,
        is_managed=vm.is_managed,
    )
    message.spec.display.ClearField("password")
    if message.spec.display.ByteSize() == 0 and not vm.spec.HasField("display"):
        message.spec.ClearField("display")
    provisioning.shown(message.spec)
    status = message.status
    status.CopyFrom(vm.details)
    for snapshot in status.snapshots.snapshots if vm.details.HasField("snapshots") else ():
        snapshot.ClearField("spec")
    status.state = vm.power_state
    status.node_id = vm.node_id
    status.error_message = vm.error_message
    status.lost_reason = vm.lost_reason
    status.state_changed_at.CopyFrom(timestamp(vm.state_changed_at))
    if vm.last_seen_at is not None:
        status.last_seen_at.CopyFrom(timestamp(vm.last_seen_at))
    status.resource_usage.memory_allocated_bytes = vm.memory_bytes
    status.wanted_state = vm.wanted_state
    status.is_protected = vm.is_protected
    status.is_protected = vm.is_protected
    if vm.sightings:
        _conflict(vm, status.health)
    return message


def _conflict(vm: Vm, health: vm_pb2.HealthStatus) -> None:
    """Tell of other hosts that say they have the VM; worst if it runs on one, since two guests then share its disks."""
    runs = [node_id for node_id, state in sorted(vm.sightings.items()) if state in ALIVE_STATES]
    health.status = vm_pb2.HealthStatus.UNHEALTHY if runs else vm_pb2.HealthStatus.DEGRADED
    where = ", ".join(f"{node_id} ({PowerState.Name(state)})" for node_id, state in sorted(vm.sightings.items()))
    health.checks.add(name="on_one_host", passed=False, message=f"also on node {where}; remove it where it is wrong")


def node(record: Node, vm_ids: Sequence[str]) -> node_pb2.Node:
    """Encode a node with the ids of the VMs placed on it."""
    message = node_pb2.Node(
        id=record.id,
        hostname=record.hostname,
        management_ip=record.management_ip,
        labels=record.labels,
        annotations=record.annotations,
        spec=record.spec,
        created_at=timestamp(record.created_at),
        updated_at=timestamp(record.updated_at),
    )
    message.spec.memory.allocatable_bytes = record.capacity.memory_bytes
    message.spec.agent.endpoint = record.agent_endpoint
    status = message.status
    status.phase = record.phase
    status.conditions.extend(conditions_of(record))
    status.vm_ids.extend(vm_ids)
    status.system.CopyFrom(record.system)
    status.error_message = record.error_message
    if record.last_heartbeat_at is not None:
        status.last_heartbeat.CopyFrom(timestamp(record.last_heartbeat_at))
    _resources(record, status.resources)
    return message


def _resources(record: Node, resources: node_pb2.ResourceAllocation) -> None:
    usage = record.usage
    resources.cpu.allocated_vcpus = record.allocated.vcpus
    resources.cpu.allocatable_vcpus = record.capacity.vcpus
    resources.cpu.usage_percent = usage.cpu_percent
    resources.memory.allocated_bytes = record.allocated.memory_bytes
    resources.memory.allocatable_bytes = record.capacity.memory_bytes
    resources.memory.used_bytes = usage.memory_used_bytes
    resources.memory.available_bytes = max(usage.memory_total_bytes - usage.memory_used_bytes, 0)
    resources.storage.local_used_bytes = usage.disk_used_bytes
    resources.storage.local_total_bytes = usage.disk_total_bytes
