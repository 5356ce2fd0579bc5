"""The transaction's methods with which placement reads the VMs that there are. Docstrings: the interface's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

from sqlalchemy import Connection

from controlplane.domain.placement import NodeName, StandingVm, VmVersion
from controlplane.state import placement_rows

ResultT = TypeVar("ResultT")


class PlacementReads(ABC):
    """A part of `SqlTransaction`."""

    @abstractmethod
    async def _read(self, function: Callable[[Connection], ResultT]) -> ResultT: ...

    @abstractmethod
    async def _write(self, function: Callable[[Connection], ResultT]) -> ResultT: ...

    async def take_placement_turn(self) -> None:
        """Wait for the turn and keep it."""
        await self._write(placement_rows.take_turn)

    async def share_placement_turn(self, vm_id: str) -> None:
        """Wait until nobody has the turn alone."""
        await self._write(lambda connection: placement_rows.share_turn(connection, vm_id))

    async def hold_vms(self, vm_ids: Collection[str]) -> None:
        """Keep others from changing VMs."""
        await self._write(lambda connection: placement_rows.hold_vms(connection, vm_ids))

    async def vm_versions(self, *, project_id: str = "", node_id: str = "") -> Sequence[VmVersion]:
        """Placed VMs."""
        return await self._read(lambda connection: placement_rows.versions(connection, project_id, node_id))

    async def vm_versions_selected(
        self, project_id: str, selectors: Collection[Mapping[str, str]], vm_ids: Collection[str]
    ) -> Sequence[VmVersion]:
        """Placed VMs that selectors or ids mean."""
        return await self._read(
            lambda connection: placement_rows.versions_selected(connection, project_id, selectors, vm_ids)
        )

    async def vm_versions_reaching_far(self, project_id: str = "") -> Sequence[VmVersion]:
        """Placed VMs that keep others out of more than a host."""
        return await self._read(lambda connection: placement_rows.versions_reaching_far(connection, project_id))

    async def standing_vms(self, vm_ids: Collection[str]) -> Sequence[StandingVm]:
        """VMs as placement sees them."""
        return await self._read(lambda connection: placement_rows.standing(connection, vm_ids))

    async def node_names(self) -> Sequence[NodeName]:
        """Names and labels."""
        return await self._read(placement_rows.node_names)
