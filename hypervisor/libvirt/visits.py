"""Visits to a worker thread, where all of libvirt's blocking calls of one operation on one VM are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from hypervisor.libvirt.connection import LibvirtConnection
from hypervisor.libvirt.domain_operations import DomainOperations
from hypervisor.libvirt.worker_pool import Lane

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Visits:
    """What every part of the backend uses to reach libvirt."""

    connection: LibvirtConnection
    operations: DomainOperations

    async def change(self, vm_id: str, work: Callable[[Any], T], *, deadline_s: float | None = None) -> T:
        """Do `work`, given the connection, alone on that VM."""
        return await self.connection.run(work, lane=Lane.CHANGE, vm_id=vm_id, deadline_s=deadline_s)

    async def look(self, vm_id: str, work: Callable[[Any], T], *, deadline_s: float | None = None) -> T:
        """Do `work`, given the domain, beside whatever else goes on."""
        return await self.connection.run(
            lambda connection: work(self.operations.find(connection, vm_id)), vm_id=vm_id, deadline_s=deadline_s
        )
