"""What a transaction reads and holds for placement; a part of `interface.Transaction`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from controlplane.domain.placement import NodeName, StandingVm, VmVersion


class PlacementTransaction(Protocol):
    """What placement reads of VMs, and the turn that it takes."""

    async def take_placement_turn(self) -> None:
        """Wait until no other transaction has the turn, and keep it until this one ends.

        Whoever decides by where other VMs are takes it before reading that, so that of two that must keep apart the
        later one sees the earlier one. VMs are held before, nodes after.
        """
        ...

    async def share_placement_turn(self, vm_id: str) -> None:
        """Wait until no other transaction has the turn alone, and let none have it alone until this one ends.

        For the placement of a VM that rules of others may mean. Who shares it cannot take it alone afterwards.
        """
        ...

    async def hold_vms(self, vm_ids: Collection[str]) -> None:
        """Keep others from changing these VMs until the transaction ends, as `get_vm` does for one."""
        ...

    async def vm_versions(self, *, project_id: str = "", node_id: str = "") -> Sequence[VmVersion]:
        """Placed VMs of a project, on a node or on their way there, or all of them; one query that reads little."""
        ...

    async def vm_versions_selected(
        self, project_id: str, selectors: Collection[Mapping[str, str]], vm_ids: Collection[str]
    ) -> Sequence[VmVersion]:
        """Placed VMs of the project with all labels of one of the selectors, and placed VMs with one of the ids."""
        ...

    async def vm_versions_reaching_far(self, project_id: str = "") -> Sequence[VmVersion]:
        """Placed VMs, of a project or of all, whose rules keep others out of more than their host.

        One that is on its way to another node is given for both nodes. One query, by an index.
        """
        ...

    async def standing_vms(self, vm_ids: Collection[str]) -> Sequence[StandingVm]:
        """Those of the VMs that exist, on a node or not, as placement sees them; holds none of them."""
        ...

    async def node_names(self) -> Sequence[NodeName]:
        """Names and labels of every node."""
        ...
