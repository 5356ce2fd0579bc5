"""What a VM gets from another one, or from its own past, must be what its maker could have asked for.

The guard asks about what a request says. What a clone takes of its source, a VM of its template, and one that is put
back of its snapshot, is known only to the service that reads those, in the transaction that uses what it read.
"""

from __future__ import annotations

from collections import Counter

from controlplane.access.visibility import Sight
from controlplane.domain import access_errors
from controlplane.domain.access import THE_CLUSTER, Permission
from controlplane.domain.placement_rules import named_vm_ids
from controlplane.scheduler.inventory import DeviceNeed, needs_of
from controlplane.state.interface import Transaction
from limiquantix.compute.v1.vm_pb2 import VmSpec


async def require_may_inherit(tx: Transaction, sight: Sight, source_id: str, spec: VmSpec) -> None:
    """Let a VM be made of another one, if its maker may give it the host's devices and rules about VMs in its spec.

    Args:
        sight: the maker's.
        source_id: of the VM or template that the spec was taken from.

    Raises:
        PermissionDenied: they need `node.operate` for the devices, or `vm.update` for a VM that a rule names.
    """
    if _host_devices(spec) and not _may(sight, Permission.NODE_OPERATE):
        raise access_errors.devices_not_inherited(f"VM {source_id}")
    if _may(sight, Permission.VM_UPDATE):
        return
    for vm_id in sorted(named_vm_ids(spec.placement)):
        place = await tx.place_of_vm(vm_id) or await tx.last_place_of_vm(vm_id)
        allowed = None if place is None else sight.permissions(place)
        if allowed is None or Permission.VM_UPDATE not in allowed:
            # The same of one that is hidden and one that is not there: which it is must not be told.
            raise access_errors.rule_not_inherited(source_id, vm_id)


def require_may_regain(sight: Sight, snapshot_id: str, now: VmSpec, then: VmSpec) -> None:
    """Let a VM be put back, if who does that may give it the host's devices that it had then and lacks now.

    Raises:
        PermissionDenied: they need `node.operate` for that.
    """
    if _host_devices(then) - _host_devices(now) and not _may(sight, Permission.NODE_OPERATE):
        raise access_errors.devices_not_inherited(f"snapshot {snapshot_id}")


def _may(sight: Sight, permission: Permission) -> bool:
    allowed = sight.permissions(THE_CLUSTER)
    return allowed is None or permission in allowed


def _host_devices(spec: VmSpec) -> Counter[DeviceNeed]:
    """What of its host's hardware is given to a VM, however it is described to people."""
    return Counter(needs_of(spec).devices)
