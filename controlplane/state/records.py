"""Rows to records and back; the only place that knows which column holds which field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from controlplane.domain.node import Capacity, Heartbeat, Node, NodeUsage
from controlplane.domain.placement_rules import keeps_off_beyond_its_host
from controlplane.domain.project import disk_gib
from controlplane.domain.request_digest import tells_secrets
from controlplane.domain.vm import Vm
from controlplane.state.prepared import StoredRow
from controlplane.state.seals import Json, Seals, is_sealed, is_sealed_json, is_sealed_text
from limiquantix.compute.v1.node_pb2 import NodeSpec, SystemInfo
from limiquantix.compute.v1.vm_pb2 import VmSpec, VmStatus

ColumnValues = dict[str, Any]
"""Values for one row by column name; `Any` because each column has its own type."""

_SPEC = "vms.spec"
_DETAILS = "vms.details"
_PARAMETERS = "operations.parameters"
_DIGEST = "operations.request_digest"
"""What is sealed, as seals name it."""


def new_vm_values(vm: Vm, seals: Seals) -> ColumnValues:
    """Every column of a VM's row. Labels have their own table."""
    return {**vm_values(vm, seals), "generation": vm.generation}


def vm_values(vm: Vm, seals: Seals) -> ColumnValues:
    """The columns that `update_vm` writes: all but the generation, which operations count on their own."""
    return {
        "id": vm.id,
        "project_id": vm.project_id,
        "name": vm.name,
        # NULL, not "": the foreign key holds for placed VMs only.
        "node_id": vm.node_id or None,
        "power_state": vm.power_state,
        "vcpus": vm.vcpu_count,
        "memory_bytes": vm.memory_bytes,
        "description": vm.description,
        "folder_id": vm.folder_id,
        "created_by": vm.created_by,
        "origin": vm.origin,
        "is_managed": vm.is_managed,
        "error_message": vm.error_message,
        "lost_reason": vm.lost_reason,
        "reported_change_count": vm.reported_change_count,
        "wanted_state": vm.wanted_state,
        "sightings": dict(vm.sightings),
        "restart_count": vm.restart_count,
        "created_at": vm.created_at,
        "updated_at": vm.updated_at,
        "state_changed_at": vm.state_changed_at,
        "last_seen_at": vm.last_seen_at,
        "version": vm.version,
        "spec": seals.document(vm.spec, _SPEC, vm.id),
        "details": seals.document(vm.details, _DETAILS, vm.id) or None,
        "linked_to": vm.linked_to or None,
        "reaches_far": keeps_off_beyond_its_host(vm.spec.placement),
        "is_protected": vm.is_protected,
        "disk_gib": disk_gib(vm),
    }


def vm_from_row(row: StoredRow, labels: Mapping[str, str], seals: Seals) -> Vm:
    """Make the record of a row of `vms`."""
    return Vm(
        id=row.id,
        name=row.name,
        project_id=row.project_id,
        spec=spec_from_row(row, seals),
        node_id=row.node_id or "",
        power_state=row.power_state,
        created_at=row.created_at,
        updated_at=row.updated_at,
        state_changed_at=row.state_changed_at,
        last_seen_at=row.last_seen_at,
        labels=labels,
        description=row.description,
        folder_id=row.folder_id,
        created_by=row.created_by,
        origin=row.origin,
        is_managed=row.is_managed,
        error_message=row.error_message,
        lost_reason=row.lost_reason,
        reported_change_count=row.reported_change_count,
        generation=row.generation,
        wanted_state=row.wanted_state,
        sightings=row.sightings,
        restart_count=row.restart_count,
        details=VmStatus.FromString(seals.opened(row.details or b"", _DETAILS, row.id)),
        is_protected=row.is_protected,
        version=row.version,
    )


def spec_from_row(row: StoredRow, seals: Seals) -> VmSpec:
    """Read the spec of a row of `vms`, of which the id and the spec are enough."""
    return VmSpec.FromString(seals.opened(row.spec, _SPEC, row.id))


def resealed_spec(seals: Seals, stored: bytes, vm_id: str) -> bytes | None:
    """Seal a stored spec with the newest key; None if it is as it should be."""
    return _resealed(seals, stored, _SPEC, vm_id, VmSpec)


def resealed_details(seals: Seals, stored: bytes | None, vm_id: str) -> bytes | None:
    """The same of a VM's details."""
    return _resealed(seals, stored or b"", _DETAILS, vm_id, VmStatus)


def resealed_parameters(seals: Seals, stored: Json, operation_id: str) -> Json | None:
    """The same of an operation's parameters."""
    if is_sealed_json(stored):
        return (
            None
            if seals.is_current_json(stored)
            else sealed_parameters(opened_parameters(stored, operation_id, seals), operation_id, seals)
        )
    return sealed_parameters(stored, operation_id, seals) if stored else None


def sealed_parameters(parameters: Mapping[str, Any], operation_id: str, seals: Seals) -> Json:
    """Make the stored form of an operation's parameters."""
    return seals.json(dict(parameters), _PARAMETERS, operation_id)


def opened_parameters(stored: Json, operation_id: str, seals: Seals) -> Json:
    """Read an operation's parameters."""
    return seals.opened_json(stored, _PARAMETERS, operation_id)


def sealed_digest(digest: str, operation_id: str, seals: Seals) -> str:
    """Make the stored form of a request's digest: of one that holds secrets, a few guesses would tell them."""
    return seals.text(digest, _DIGEST, operation_id) if tells_secrets(digest) else digest


def opened_digest(stored: str, operation_id: str, seals: Seals) -> str:
    """Read a request's digest."""
    return seals.opened_text(stored, _DIGEST, operation_id)


def resealed_digest(seals: Seals, stored: str, operation_id: str) -> str | None:
    """Seal a stored digest with the newest key; None if it is as it should be."""
    if is_sealed_text(stored) and seals.is_current_text(stored):
        return None
    wanted = sealed_digest(opened_digest(stored, operation_id, seals), operation_id, seals)
    return None if wanted == stored else wanted


def _resealed(
    seals: Seals, stored: bytes, purpose: str, owner_id: str, kind: type[VmSpec] | type[VmStatus]
) -> bytes | None:
    if is_sealed(stored) and seals.is_current(stored):
        return None
    wanted = seals.document(kind.FromString(seals.opened(stored, purpose, owner_id)), purpose, owner_id)
    return wanted if is_sealed(stored) or is_sealed(wanted) else None


def new_node_values(node: Node) -> ColumnValues:
    """Every column of a node's row. Labels have their own table."""
    return {
        **described_node_values(node),
        "allocated_vcpus": node.allocated.vcpus,
        "allocated_memory_bytes": node.allocated.memory_bytes,
        "last_heartbeat_at": node.last_heartbeat_at,
        "fence_token": node.fence_token,
        **_usage_values(node.usage),
    }


def described_node_values(node: Node) -> ColumnValues:
    """The columns that `update_node` writes: all but those that claims and heartbeats write on their own."""
    return {
        "id": node.id,
        "hostname": node.hostname,
        "management_ip": node.management_ip,
        "agent_endpoint": node.agent_endpoint,
        "spec": node.spec.SerializeToString(),
        "system": node.system.SerializeToString(),
        "annotations": dict(node.annotations),
        "phase": node.phase,
        "error_message": node.error_message,
        "role_compute": node.spec.role.compute,
        "role_storage": node.spec.role.storage,
        "role_control_plane": node.spec.role.control_plane,
        "capacity_vcpus": node.capacity.vcpus,
        "capacity_memory_bytes": node.capacity.memory_bytes,
        "created_at": node.created_at,
        "updated_at": node.updated_at,
        "version": node.version,
    }


def heartbeat_values(heartbeat: Heartbeat) -> ColumnValues:
    """The columns a heartbeat writes."""
    return {"last_heartbeat_at": heartbeat.at, **_usage_values(heartbeat.usage)}


def node_from_row(row: StoredRow, labels: Mapping[str, str]) -> Node:
    """Make the record of a row of `nodes`."""
    return Node(
        id=row.id,
        hostname=row.hostname,
        management_ip=row.management_ip,
        agent_endpoint=row.agent_endpoint,
        spec=NodeSpec.FromString(row.spec),
        phase=row.phase,
        capacity=Capacity(row.capacity_vcpus, row.capacity_memory_bytes),
        created_at=row.created_at,
        updated_at=row.updated_at,
        allocated=Capacity(row.allocated_vcpus, row.allocated_memory_bytes),
        labels=labels,
        annotations=row.annotations,
        usage=NodeUsage(
            cpu_percent=row.usage_cpu_percent,
            memory_used_bytes=row.usage_memory_used_bytes,
            memory_total_bytes=row.usage_memory_total_bytes,
            disk_used_bytes=row.usage_disk_used_bytes,
            disk_total_bytes=row.usage_disk_total_bytes,
            running_vm_count=row.usage_running_vm_count,
            load_1m=row.usage_load_1m,
            load_5m=row.usage_load_5m,
            load_15m=row.usage_load_15m,
        ),
        system=SystemInfo.FromString(row.system),
        last_heartbeat_at=row.last_heartbeat_at,
        error_message=row.error_message,
        fence_token=row.fence_token,
        version=row.version,
    )


def _usage_values(usage: NodeUsage) -> ColumnValues:
    return {
        "usage_cpu_percent": usage.cpu_percent,
        "usage_memory_used_bytes": usage.memory_used_bytes,
        "usage_memory_total_bytes": usage.memory_total_bytes,
        "usage_disk_used_bytes": usage.disk_used_bytes,
        "usage_disk_total_bytes": usage.disk_total_bytes,
        "usage_running_vm_count": usage.running_vm_count,
        "usage_load_1m": usage.load_1m,
        "usage_load_5m": usage.load_5m,
        "usage_load_15m": usage.load_15m,
    }
