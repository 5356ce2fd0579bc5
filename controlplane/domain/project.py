"""Projects, with what they may take and what they take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime

from controlplane.domain.vm import Vm

DEFAULT_PROJECT_NAME = "default"

_UNITS: Mapping[str, str] = {
    "vm_count": "VMs",
    "vcpus": "vCPUs",
    "memory_bytes": "bytes of memory",
    "disk_gib": "GiB of disks",
}


@dataclass(frozen=True, slots=True)
class Amounts:
    """What VMs take together."""

    vm_count: int = 0
    vcpus: int = 0
    memory_bytes: int = 0
    disk_gib: int = 0


UNLIMITED = Amounts()
"""As a quota: of every part, 0 means any amount."""


@dataclass(frozen=True, slots=True)
class Project:
    """One project."""

    id: str
    name: str
    created_at: datetime
    updated_at: datetime
    description: str = ""
    quota: Amounts = UNLIMITED
    created_by: str = ""
    version: int = 1


@dataclass(frozen=True, slots=True)
class Excess:
    """A part of a quota that is not kept; `unit` completes "20 ..."."""

    part: str
    unit: str
    limit: int
    used: int


def disk_gib(vm: Vm) -> int:
    """GiB that a VM's disks have for its guest, together."""
    return sum(disk.size_gib for disk in vm.spec.disks)


def amounts_of(vm: Vm) -> Amounts:
    """What one VM takes of its project's quota, running or not."""
    return Amounts(1, vm.vcpu_count, vm.memory_bytes, disk_gib(vm))


def growth(before: Vm | None, after: Vm) -> frozenset[str]:
    """Parts of a quota of which a VM takes more than before; all that it takes anything of if it is new."""
    old, new = Amounts() if before is None else amounts_of(before), amounts_of(after)
    return frozenset(each.name for each in fields(Amounts) if getattr(new, each.name) > getattr(old, each.name))


def excess_of(quota: Amounts, used: Amounts, grown: frozenset[str]) -> Excess | None:
    """Find the first part of a quota that is not kept, of those of which more is taken; None if all are."""
    for part, unit in _UNITS.items():
        limit, amount = getattr(quota, part), getattr(used, part)
        if part in grown and limit and amount > limit:
            return Excess(part, unit, limit, amount)
    return None
