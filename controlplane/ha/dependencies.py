"""Which VMs must run before which, after a failure of a host."""

from __future__ import annotations

from collections.abc import Mapping

from controlplane.ha.model import Seen, VmSeen, Wanted


def awaited_by(vm: VmSeen, vms: Mapping[str, VmSeen]) -> str:
    """Return the id of a VM that this one waits for, the first as listed; "" if it waits for none.

    Nobody is waited for who shall not run, or who is not known. In a circle nobody waits for another: whoever wrote it
    meant that they belong together, and any order is better than none.
    """
    for other_id in vm.starts_after:
        other = vms.get(other_id)
        if other is None or other.wanted is not Wanted.STARTED or other.seen is Seen.RUNNING:
            continue
        if not _reaches(other, vm.id, vms):
            return other_id
    return ""


def _reaches(start: VmSeen, goal_id: str, vms: Mapping[str, VmSeen]) -> bool:
    """Whether `start` itself waits for `goal`, over any number of others."""
    seen, todo = set[str](), [start.id]
    while todo:
        vm_id = todo.pop()
        if vm_id == goal_id:
            return True
        if vm_id not in seen and vm_id in vms:
            seen.add(vm_id)
            todo.extend(vms[vm_id].starts_after)
    return False
