"""Rules that join those of the .proto files when a request is validated, by request type."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from google.protobuf.message import Message

from controlplane.domain import clones, placement_rules, vm_devices, vm_spec
from controlplane.domain.names import fault_of_look
from limiquantix.compute.v1 import placement_service_pb2 as placement_api
from limiquantix.compute.v1 import vm_service_pb2 as vm_api
from limiquantix.errors import FieldViolation
from limiquantix.rpc.validation import Check

_ORDERS = frozenset({"", "created_at", "created_at asc"})


def _create_vm(request: Message) -> Iterable[FieldViolation]:
    assert isinstance(request, vm_api.CreateVMRequest)  # noqa: S101 - the table below is keyed by type
    yield from _name(request.name)
    if request.HasField("spec"):
        yield from vm_spec.violations_of(request.spec, complete=not request.template_id)
        yield from placement_rules.violations_of(request.spec.placement, "spec.placement")
        yield from clones.request_faults(request.spec, request.template_id)


def _clone_vm(request: Message) -> Iterable[FieldViolation]:
    assert isinstance(request, vm_api.CloneVMRequest)  # noqa: S101
    yield from _name(request.name)


def _explain_placement(request: Message) -> Iterable[FieldViolation]:
    assert isinstance(request, placement_api.ExplainPlacementRequest)  # noqa: S101
    if request.HasField("candidate"):
        yield from _candidate(request.candidate, "candidate")


def _plan_placements(request: Message) -> Iterable[FieldViolation]:
    assert isinstance(request, placement_api.PlanPlacementsRequest)  # noqa: S101
    for index, candidate in enumerate(request.vms):
        yield from _candidate(candidate, f"vms[{index}]")


def _get_capacity(request: Message) -> Iterable[FieldViolation]:
    assert isinstance(request, placement_api.GetCapacityRequest)  # noqa: S101
    yield from _candidate(request.vm, "vm")


def _candidate(candidate: placement_api.PlacementCandidate, path: str) -> Iterable[FieldViolation]:
    if candidate.HasField("spec"):
        yield from vm_spec.violations_of(candidate.spec, f"{path}.spec")
        yield from placement_rules.violations_of(candidate.spec.placement, f"{path}.spec.placement")


def _name(name: str) -> Iterable[FieldViolation]:
    if fault := fault_of_look(name):
        yield FieldViolation("name", fault)


def _attach_disk(request: Message) -> Iterable[FieldViolation]:
    assert isinstance(request, vm_api.AttachDiskRequest)  # noqa: S101
    if request.HasField("disk"):
        yield from vm_devices.attach_disk_violations(request.disk)


def _attach_nic(request: Message) -> Iterable[FieldViolation]:
    assert isinstance(request, vm_api.AttachNICRequest)  # noqa: S101
    if request.HasField("nic"):
        yield from vm_devices.attach_nic_violations(request.nic)


def _update_disk(request: Message) -> Iterable[FieldViolation]:
    assert isinstance(request, vm_api.UpdateDiskRequest)  # noqa: S101
    yield from vm_spec.io_limit_violations(request.io_limits, "io_limits")


def _list_vms(request: Message) -> Iterable[FieldViolation]:
    assert isinstance(request, vm_api.ListVMsRequest)  # noqa: S101
    if request.order_by not in _ORDERS:
        yield FieldViolation("order_by", "only created_at is supported, oldest first")


CHECKS: Mapping[type[Message], Check] = {
    vm_api.CreateVMRequest: _create_vm,
    vm_api.CloneVMRequest: _clone_vm,
    vm_api.AttachDiskRequest: _attach_disk,
    vm_api.AttachNICRequest: _attach_nic,
    vm_api.UpdateDiskRequest: _update_disk,
    vm_api.ListVMsRequest: _list_vms,
    placement_api.ExplainPlacementRequest: _explain_placement,
    placement_api.PlanPlacementsRequest: _plan_placements,
    placement_api.GetCapacityRequest: _get_capacity,
}
