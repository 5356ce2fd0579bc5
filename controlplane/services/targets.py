"""Choose where a VM moves to: the scheduler's decision, among the nodes that it can be carried to.

The node is held when it is returned, so that what was found of the VMs on it stays true until the transaction ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from controlplane.domain import errors, migration_errors
from controlplane.domain.migration import MigrationWish, share_storage
from controlplane.domain.node import Node
from controlplane.domain.placement import LOST_EVERY_RACE, StandingVm
from controlplane.domain.vm import Vm
from controlplane.operations.vm_migration import ChooseTarget, Chosen
from controlplane.scheduler.decide import decide
from controlplane.scheduler.plan import Placement, SchedulerConfig
from controlplane.scheduler.snapshot import PlacementRequest
from controlplane.scheduler.view import ClusterView, placed_vm_of
from controlplane.services.placement import (
    MAX_DECISIONS,
    Claims,
    NodeMemory,
    prepared,
    vms_that_matter,
)
from controlplane.services.seen import SeenNodes, SeenVms, look
from controlplane.state.interface import Transaction

_HOSTS_OWN_CPU = frozenset({"", "host-passthrough", "host-model"})
"""Models that are whatever the host has, so that the guest has seen the features of its source."""


def target_chooser(config: SchedulerConfig, memory: NodeMemory) -> ChooseTarget:
    """Make what the operation of a migration chooses with."""

    async def choose(tx: Transaction, vm: Vm, wish: MigrationWish) -> Chosen:
        placement = await choose_target(
            tx,
            vm,
            config,
            memory,
            target_node_id=wish.target_node_id,
            excluded_node_ids=wish.excluded_node_ids,
            same_storage_only=wish.shared_storage_only,
        )
        return Chosen((placement.node_id,), placement.request.size)

    return choose


def failover_chooser(config: SchedulerConfig, memory: NodeMemory) -> ChooseTarget:
    """Make what looks again at the node to which a VM goes whose own one is dead.

    It starts anew there, so it needs neither migration nor the processor that it had, but its disks.
    """

    async def choose(tx: Transaction, vm: Vm, wish: MigrationWish) -> Chosen:
        placement = await choose_target(
            tx,
            vm,
            config,
            memory,
            target_node_id=wish.target_node_id,
            excluded_node_ids=wish.excluded_node_ids,
            same_storage_only=True,
            starts_anew=True,
        )
        return Chosen((placement.node_id,), placement.request.size)

    return choose


@dataclass(frozen=True, slots=True)
class Move:
    """A VM that moves, the node that it leaves, and what nodes are asked for."""

    vm: Vm
    source: Node
    excluded_node_ids: Collection[str] = ()
    same_storage_only: bool = False
    starts_anew: bool = False

    def obstacle_at(self, node: Node) -> str:
        """Say why the VM cannot be carried to a node, whatever room it has; "" if it can."""
        checks = (check for check in _OBSTACLES if not (self.starts_anew and check in _ONLY_WHEN_CARRIED))
        return next((why for check in checks if (why := check(self, node))), "")


async def choose_target(
    tx: Transaction,
    vm: Vm,
    config: SchedulerConfig,
    memory: NodeMemory,
    *,
    target_node_id: str = "",
    excluded_node_ids: Collection[str] = (),
    same_storage_only: bool = False,
    starts_anew: bool = False,
) -> Placement:
    """Choose a node for a VM to move to, which has room and lets it in; claims nothing.

    Args:
        target_node_id: the only node allowed; "" leaves the choice to the scheduler.
        excluded_node_ids: beside the node that the VM is on, which is always excluded.
        same_storage_only: only nodes that have all the storage of the node that the VM is on.
        starts_anew: nothing of what it has in memory is carried over.

    Raises:
        NotFound: the target does not exist.
        FailedPrecondition: the VM is on the target, or on none.
        ResourceExhausted: no node fits; the error has one reason per node.
    """
    source = await tx.get_node(vm.node_id) if vm.node_id else None
    if source is None:
        raise errors.vm_not_placed(vm.id)
    if target_node_id == vm.node_id:
        raise migration_errors.same_node(vm.id, vm.node_id)
    if target_node_id and await tx.get_node(target_node_id) is None:
        raise errors.node_not_found(target_node_id)
    move = Move(vm, source, frozenset(excluded_node_ids), same_storage_only, starts_anew)
    request = await prepared(tx, vm, target_node_id)
    vms, seen = SeenVms(tx, memory.vms), memory.seen
    claims = Claims(tx, vm, vms, is_new=False)
    matter = await vms_that_matter(vms, vm, request)
    for _ in range(MAX_DECISIONS):
        seen = await look(tx, seen)
        obstacles = {node_id: why for node_id, each in seen.items() if (why := move.obstacle_at(each.node))}
        placement = _decide(seen, matter, request, config, claims.kept_off, obstacles)
        node_id = await claims.claim_first(placement)
        if node_id is not None:
            # The row stays held: whoever claims it again in this transaction gets it.
            await tx.release(node_id, request.size)
            first = [ranked for ranked in placement.ranked if ranked.node_id == node_id]
            return replace(placement, ranked=tuple(first))
    raise errors.no_node_fits(LOST_EVERY_RACE, ())


def _decide(
    seen: SeenNodes,
    vms: Sequence[StandingVm],
    request: PlacementRequest,
    config: SchedulerConfig,
    kept_off: frozenset[str],
    obstacles: Mapping[str, str],
) -> Placement:
    """Rank the nodes without an obstacle; the places of the others still count for rules.

    Raises:
        ResourceExhausted: no node fits.
    """
    allowed = replace(request, anti_affinity_nodes=request.anti_affinity_nodes | kept_off)
    view = ClusterView(
        [each.candidate for each in seen.values()], [placed_vm_of(vm) for vm in vms if vm.node_id in seen]
    )
    for node_id in obstacles:
        view.remove_node(node_id)
    outcome = decide(view, allowed, config)
    if isinstance(outcome, Placement):
        return outcome
    blocked = sorted((seen[node_id].node.hostname, why) for node_id, why in obstacles.items())
    groups = ", ".join(f"{count} {why}" for why, count in Counter(why for _, why in blocked).most_common())
    others = f"; {outcome.summary.removeprefix('no node fits: ')}" if len(obstacles) < len(seen) else ""
    raise errors.no_node_fits(f"no node fits: {groups}{others}", (*outcome.per_node, *blocked))


def _is_source(move: Move, node: Node) -> str:
    return "is the node that the VM is on" if node.id == move.source.id else ""


def _is_excluded(move: Move, node: Node) -> str:
    return "is not to be used this time" if node.id in move.excluded_node_ids else ""


def _cannot_receive(_move: Move, node: Node) -> str:
    return "" if node.spec.supports_live_migration else "does not support migration"


def _shares_no_storage(move: Move, node: Node) -> str:
    if share_storage(move.source, node):
        return ""
    if move.same_storage_only:
        return f"shares no storage with node {move.source.hostname}, and disks are not to be copied"
    if move.vm.linked_to:
        return f"shares no storage with node {move.source.hostname}, where the VM's template is"
    if move.vm.details.snapshots.snapshots:
        return f"shares no storage with node {move.source.hostname}, and snapshots are not copied"
    return ""


def _has_other_processor(move: Move, node: Node) -> str:
    if move.vm.spec.cpu.model not in _HOSTS_OWN_CPU:
        return ""
    here, there = move.source.spec.cpu, node.spec.cpu
    if here.model != there.model:
        return f"has another processor ({there.model}), and the VM uses that of its node ({here.model})"
    missing = sorted(set(here.features) - set(there.features))
    return f"lacks processor features that the VM's node has ({', '.join(missing[:5])})" if missing else ""


_OBSTACLES: Sequence[Callable[[Move, Node], str]] = (
    _is_source,
    _is_excluded,
    _cannot_receive,
    _shares_no_storage,
    _has_other_processor,
)
_ONLY_WHEN_CARRIED = frozenset({_cannot_receive, _has_other_processor})
