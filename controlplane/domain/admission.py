"""How much room is kept free, so that VMs of nodes that fail can be restarted."""

from __future__ import annotations

from dataclasses import dataclass

from limiquantix.compute.v1.vm_pb2 import HaPolicy, VmSpec


@dataclass(frozen=True, slots=True)
class KeptRoom:
    """Room that placements leave: for VMs of so many failed nodes, or a share of all there is.

    Attributes:
        failures: nodes that may fail, whichever; only VMs that are restarted elsewhere count. 0 for none.
        share: of all vCPUs and all memory of the nodes that take VMs, 0 to 1, whatever claims the rest.

    Raises:
        ValueError: a number makes no sense.
    """

    failures: int = 0
    share: float = 0.0

    def __post_init__(self) -> None:
        if self.failures < 0 or not 0 <= self.share < 1:
            raise ValueError(f"cannot keep room for {self.failures} nodes, or {self.share:.0%} of it")

    @property
    def is_any(self) -> bool:
        """Whether anything is kept at all."""
        return self.failures > 0 or self.share > 0

    @property
    def words(self) -> str:
        """What people read: "room for 1 failed node", "25% of all room"; "none"."""
        if self.failures:
            return f"room for {self.failures} failed node{'s' if self.failures > 1 else ''}"
        return f"{self.share:.0%} of all room" if self.share else "none"


NOTHING_KEPT = KeptRoom()


def is_restarted_elsewhere(spec: VmSpec) -> bool:
    """Whether a VM of this spec is started on another node when its own fails, so that room is kept for it."""
    policy = spec.ha_policy
    return policy.auto_restart and policy.condition != HaPolicy.NEVER
