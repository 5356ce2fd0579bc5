"""Which moves the rules allow: what a plan asks, and an answer that knows no rules."""

from __future__ import annotations

from typing import Protocol


class Rules(Protocol):
    """Everything but the numbers: placement policies, labels, taints, networks, storage, CPUs.

    It follows the plan: `moved` tells it of every move, also of those that are taken back.
    """

    def allows(self, vm_id: str, target_node_id: str) -> bool:
        """Whether the VM may run there, and all others may go on where they are, with the VMs as they are now."""
        ...

    def moved(self, vm_id: str, target_node_id: str) -> None:
        """Note that a VM is elsewhere now."""
        ...


class NoRules:
    """Allows everything."""

    def allows(self, vm_id: str, target_node_id: str) -> bool:
        """Say yes."""
        return True

    def moved(self, vm_id: str, target_node_id: str) -> None:
        """Note nothing."""
