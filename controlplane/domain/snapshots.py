"""Rules of snapshots: when they may be taken and gone back to, and what of a VM's spec goes back with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

from controlplane.domain import errors
from controlplane.domain.vm import ALIVE_STATES, PowerOperation, Vm, require_managed, require_state
from limiquantix.compute.v1.vm_pb2 import Snapshot, SnapshotStatus, VmSpec, VmStatus

MAX_SNAPSHOTS = 32
"""For one VM. Each slows its disks down a little, and all of them are part of its document."""

_KeptPart = Literal["agent", "provisioning", "ha_policy", "placement", "migration", "template"]
_KEPT_PARTS: tuple[_KeptPart, ...] = get_args(_KeptPart)
"""Parts of a spec that are no hardware: what is wished for a VM does not change with what is on its disks."""


def require_snapshot_allowed(vm: Vm, name: str, *, include_memory: bool, quiesce: bool) -> None:
    """Check what can be checked before a host is asked for a snapshot.

    Raises:
        FailedPrecondition: the VM's state forbids it, or the VM is a template.
        AlreadyExists: it has a snapshot of that name.
        ResourceExhausted: it has as many as it may have.
    """
    _require_ordinary(vm, PowerOperation.SNAPSHOT)
    require_state(vm, PowerOperation.SNAPSHOT)
    if include_memory:
        require_state(vm, PowerOperation.SNAPSHOT_MEMORY)
    if quiesce:
        require_state(vm, PowerOperation.QUIESCE)
    known = vm.details.snapshots.snapshots
    if any(each.name == name and not each.is_abandoned for each in known):
        raise errors.snapshot_name_taken(vm.id, name)
    if len(known) >= MAX_SNAPSHOTS:
        raise errors.too_many_snapshots(vm.id, MAX_SNAPSHOTS)


def require_revert_allowed(vm: Vm) -> None:
    """Check what can be checked before a host is asked to put a VM back.

    Raises:
        FailedPrecondition: the VM's state forbids it, it is a template, or another host runs it.
    """
    _require_ordinary(vm, PowerOperation.REVERT)
    require_state(vm, PowerOperation.REVERT)
    elsewhere = sorted(node_id for node_id, state in vm.sightings.items() if state in ALIVE_STATES)
    if elsewhere:
        raise errors.vm_runs_elsewhere(vm.id, elsewhere)


def require_delete_allowed(vm: Vm) -> None:
    """Check what can be checked before a host is asked to delete a snapshot.

    Raises:
        FailedPrecondition: the VM's state forbids it, or the VM is a template.
    """
    _require_ordinary(vm, PowerOperation.DELETE_SNAPSHOT)
    require_state(vm, PowerOperation.DELETE_SNAPSHOT)


def _require_ordinary(vm: Vm, operation: PowerOperation) -> None:
    require_managed(vm)
    if vm.spec.template.is_template:
        raise errors.vm_is_template(vm.id, operation.value)


def find_snapshot(vm: Vm, snapshot_id: str) -> Snapshot | None:
    """Return what is recorded of a snapshot."""
    return next((each for each in vm.details.snapshots.snapshots if each.id == snapshot_id), None)


def with_snapshots(vm: Vm, told: SnapshotStatus, new_id: str = "") -> Vm:
    """Return the VM with the snapshots that its host says it has, each with the spec of its time where that is known.

    Args:
        new_id: the snapshot that was taken just now, of the VM as it is recorded.
    """
    known = vm.details.snapshots.snapshots
    specs = {each.id: each.spec for each in known if each.HasField("spec")}
    abandoned = {each.id for each in known if each.is_abandoned}
    if new_id:
        specs.setdefault(new_id, vm.spec)
    details = VmStatus()
    details.CopyFrom(vm.details)
    details.snapshots.CopyFrom(told)
    for snapshot in details.snapshots.snapshots:
        if (spec := specs.get(snapshot.id)) is not None:
            snapshot.spec.CopyFrom(spec)
        snapshot.is_abandoned = snapshot.id in abandoned
    if not told.snapshots:
        details.ClearField("snapshots")
    return replace(vm, details=details)


def with_abandoned(vm: Vm, snapshot_id: str, name: str) -> Vm:
    """Return the VM with a note that its host may have a snapshot, or a part of it, that is to be removed."""
    details = VmStatus()
    details.CopyFrom(vm.details)
    if find_snapshot(vm, snapshot_id) is None:
        details.snapshots.snapshots.add(id=snapshot_id, name=name)
    for each in details.snapshots.snapshots:
        each.is_abandoned = each.is_abandoned or each.id == snapshot_id
    return replace(vm, details=details)


def without(vm: Vm, snapshot_id: str) -> Vm:
    """Return the VM without a snapshot that its host no longer has; its children build upon its parent."""
    gone = find_snapshot(vm, snapshot_id)
    told = SnapshotStatus()
    told.CopyFrom(vm.details.snapshots)
    del told.snapshots[:]
    told.snapshots.extend(each for each in vm.details.snapshots.snapshots if each.id != snapshot_id)
    parent_id = gone.parent_id if gone is not None else ""
    for each in told.snapshots:
        if each.parent_id == snapshot_id:
            each.parent_id = parent_id
    if told.current_snapshot_id == snapshot_id:
        told.current_snapshot_id = parent_id
        for each in told.snapshots:
            each.is_current = each.id == parent_id
    return with_snapshots(vm, told)


def abandoned_of(vm: Vm) -> list[str]:
    """Ids of snapshots that are to be removed from the VM's host."""
    return [each.id for each in vm.details.snapshots.snapshots if each.is_abandoned]


def spec_after_revert(vm: Vm, snapshot: Snapshot | None) -> VmSpec:
    """Say what a VM is configured as once it is put back; as now, if what it was is not known."""
    if snapshot is None or not snapshot.HasField("spec"):
        return vm.spec
    spec = VmSpec()
    spec.CopyFrom(snapshot.spec)
    for part in _KEPT_PARTS:
        spec.ClearField(part)
        if vm.spec.HasField(part):
            getattr(spec, part).CopyFrom(getattr(vm.spec, part))
    return spec
