"""Leave room for VMs of nodes that fail: what operations on placed VMs, and on nodes, do so that they do not take it.

Each has the turn alone while it reads and writes, as a placement that comes near to taking the room, see `kept_room`.
They are rare beside placements, so it does not matter that they wait where there is plenty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from controlplane.domain import errors, ha_errors
from controlplane.domain.admission import is_restarted_elsewhere
from controlplane.domain.node import Capacity
from controlplane.domain.placement import StandingVm
from controlplane.domain.vm import Vm
from controlplane.ha.admission import refusal
from controlplane.scheduler.outcomes import SchedulerConfig
from controlplane.services.kept_room import drain_refusal, room_from
from controlplane.services.placement import NodeMemory
from controlplane.services.seen import SeenNode, SeenNodes, SeenVms, look
from controlplane.state.interface import Transaction


@dataclass(frozen=True, slots=True)
class KeptRoomRules:
    """The `RoomRules` of an installation. `memory` only saves reading."""

    config: SchedulerConfig
    memory: NodeMemory

    async def require_for_change(self, tx: Transaction, before: Vm, after: Vm) -> None:
        """Check that a placed VM may become larger, or one that is restarted elsewhere.

        A node without room for what it grows by is left to whoever claims that.

        Raises:
            ResourceExhausted: it would take room that is kept.
        """
        growth = _growth(before, after)
        is_newly_protected = is_restarted_elsewhere(after.spec) and not is_restarted_elsewhere(before.spec)
        if not self.config.kept_room.is_any or not (growth or is_newly_protected):
            return
        await tx.take_placement_turn()
        seen = await look(tx, self.memory.seen)
        vms = await SeenVms(tx, self.memory.vms).of_project()
        node = seen.get(before.node_id)
        if node is None or (growth and not _has_room(node, growth)):
            return
        changed = _with_growth(seen, node, growth) if growth else seen
        strategy = self.config.strategy
        room = room_from(seen, vms, strategy), room_from(changed, _with_vm(vms, after), strategy)
        if lack := refusal(*room, self.config.kept_room):
            raise ha_errors.change_takes_failover_room(before.id, self.config.kept_room.words, lack)

    async def require_for_drain(self, tx: Transaction, node_id: str, target_node_id: str) -> None:
        """Check that a node may be emptied.

        Raises:
            NotFound: there is no such node.
            FailedPrecondition: its VMs would take room that is kept.
        """
        if not self.config.kept_room.is_any:
            return
        await tx.take_placement_turn()
        await require_room_after_drain(tx, node_id, target_node_id, self.config)


async def require_room_after_drain(tx: Transaction, node_id: str, target_node_id: str, config: SchedulerConfig) -> None:
    """Check that a node may be emptied, as things are now; holds nothing.

    Raises:
        NotFound: there is no such node.
        FailedPrecondition: its VMs would take room that is kept.
    """
    node = await tx.get_node(node_id)
    if node is None:
        raise errors.node_not_found(node_id)
    if lack := await drain_refusal(tx, node_id, target_node_id, config):
        raise ha_errors.drain_takes_failover_room(node.hostname, config.kept_room.words, lack)


def _growth(before: Vm, after: Vm) -> Capacity | None:
    """What a VM claims more afterwards; None for nothing."""
    vcpus, memory_bytes = after.vcpu_count - before.vcpu_count, after.memory_bytes - before.memory_bytes
    return Capacity(max(vcpus, 0), max(memory_bytes, 0)) if vcpus > 0 or memory_bytes > 0 else None


def _has_room(node: SeenNode, size: Capacity) -> bool:
    capacity, allocated = node.candidate.capacity, node.candidate.allocated
    return (
        allocated.vcpus + size.vcpus <= capacity.vcpus
        and allocated.memory_bytes + size.memory_bytes <= capacity.memory_bytes
    )


def _with_growth(seen: SeenNodes, node: SeenNode, size: Capacity) -> SeenNodes:
    allocated = node.candidate.allocated
    claimed = Capacity(allocated.vcpus + size.vcpus, allocated.memory_bytes + size.memory_bytes)
    return {**seen, node.node.id: replace(node, candidate=node.candidate.with_allocated(claimed))}


def _with_vm(vms: Sequence[StandingVm], vm: Vm) -> list[StandingVm]:
    """Return them with one as it will be."""
    return [
        replace(each, vcpus=vm.vcpu_count, memory_bytes=vm.memory_bytes, spec=vm.spec) if each.id == vm.id else each
        for each in vms
    ]
