"""Work out what an `UpdateVM` request makes of a VM: which fields it names, and what the merged spec is.

The field mask follows AIP-134: paths begin at the request's own fields (`spec.cpu.cores`, `labels`, `description`); "*"
replaces all three; an empty mask takes every field that is filled in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from controlplane.domain import clones, hardware_spec, placement_rules, provisioning, vm_spec
from controlplane.domain.vm import Vm
from limiquantix.compute.v1.vm_pb2 import VmSpec
from limiquantix.compute.v1.vm_service_pb2 import UpdateVMRequest
from limiquantix.errors import FieldViolation, InvalidArgument
from limiquantix.rpc.validation import violations_of

_DEVICES = ("disks", "cdroms", "nics")
_ALL = "*"


@dataclass(frozen=True, slots=True)
class VmChange:
    """The parts of a VM after an update; None leaves that part as it is."""

    spec: VmSpec | None = None
    labels: dict[str, str] | None = None
    description: str | None = None


def change_of(vm: Vm, request: UpdateVMRequest) -> VmChange:
    """Apply a request to a VM, without storing anything.

    Raises:
        InvalidArgument: a path names no field, or the merged spec breaks a rule; all faults at once.
    """
    paths = list(request.update_mask.paths) or _filled_in(request)
    everything = _ALL in paths
    _require_known(paths)
    spec_paths = [path.removeprefix("spec.") for path in paths if path.startswith("spec.")]
    spec = None
    if everything or "spec" in paths:
        spec = request.spec
    elif spec_paths:
        spec = VmSpec()
        spec.CopyFrom(vm.spec)
        FieldMask(paths=spec_paths).MergeMessage(_with_parents(request.spec, spec_paths), spec, True, True)
    if spec is not None:
        spec = _with_secrets_of(vm.spec, spec)
        _require_buildable(vm.id, vm.spec, spec)
    return VmChange(
        spec=spec,
        labels=dict(request.labels) if everything or "labels" in paths else None,
        description=request.description if everything or "description" in paths else None,
    )


def _with_secrets_of(old: VmSpec, new: VmSpec) -> VmSpec:
    """Keep what no answer shows, so that nobody can send it back: the console's password unless another is given, and
    of the first-boot configuration what the request says was withheld."""
    new = provisioning.with_kept(old, new)
    if new.display.password or not old.display.password:
        return new
    full = VmSpec()
    full.CopyFrom(new)
    full.display.password = old.display.password
    return full


def _with_parents(spec: VmSpec, paths: list[str]) -> VmSpec:
    """Copy a spec with every message on the way to a path in place, else merging skips a path that is to be reset."""
    full = VmSpec()
    full.CopyFrom(spec)
    for path in paths:
        parent: Message = full
        for name in path.split(".")[:-1]:
            parent = getattr(parent, name)
            parent.SetInParent()
    return full


def _filled_in(request: UpdateVMRequest) -> list[str]:
    paths = [name for name in ("labels", "description") if getattr(request, name)]
    return paths + [f"spec.{field.name}" for field, _ in request.spec.ListFields()]


def _require_known(paths: list[str]) -> None:
    faults = []
    for index, path in enumerate(paths):
        head, _, rest = path.partition(".")
        known = path in (_ALL, "spec", "labels", "description") or (
            head == "spec" and FieldMask(paths=[rest]).IsValidForDescriptor(VmSpec.DESCRIPTOR)
        )
        if not known:
            message = f"{path!r} names no field; paths begin with spec, labels or description"
            faults.append(FieldViolation(f"update_mask.paths[{index}]", message))
    if faults:
        raise InvalidArgument.from_violations(faults)


def _require_buildable(vm_id: str, old: VmSpec, new: VmSpec) -> None:
    faults = [FieldViolation(f"spec.{v.field}" if v.field else "spec", v.description) for v in violations_of(new)]
    faults += vm_spec.violations_of(new)
    if new.placement != old.placement:
        faults += placement_rules.violations_of(new.placement, "spec.placement", vm_id)
    faults += hardware_spec.change_violations_of(old, new, "spec")
    faults += _device_changes(old, new)
    faults += clones.template_faults(old, new)
    if faults:
        raise InvalidArgument.from_violations(faults)


def _device_changes(old: VmSpec, new: VmSpec) -> Iterator[FieldViolation]:
    for name in _DEVICES:
        if list(getattr(old, name)) != list(getattr(new, name)):
            yield FieldViolation(f"spec.{name}", "devices are not changed by an update; attach or detach them")
