"""Rules that join those of the .proto files when a request is validated, by request type."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from google.protobuf.message import Message

from controlplane.domain import vm_spec
from limiquantix.compute.v1 import vm_service_pb2 as vm_api
from limiquantix.errors import FieldViolation
from limiquantix.rpc.validation import Check

_ORDERS = frozenset({"", "created_at", "created_at asc"})


def _create_vm(request: Message) -> Iterable[FieldViolation]:
    assert isinstance(request, vm_api.CreateVMRequest)  # noqa: S101 - the table below is keyed by type
    if request.template_id:
        yield FieldViolation("template_id", "templates are not supported by this version; leave it out")
    if request.HasField("spec"):
        yield from vm_spec.violations_of(request.spec)


def _list_vms(request: Message) -> Iterable[FieldViolation]:
    assert isinstance(request, vm_api.ListVMsRequest)  # noqa: S101
    if request.order_by not in _ORDERS:
        yield FieldViolation("order_by", "only created_at is supported, oldest first")


CHECKS: Mapping[type[Message], Check] = {
    vm_api.CreateVMRequest: _create_vm,
    vm_api.ListVMsRequest: _list_vms,
}
