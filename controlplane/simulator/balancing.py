"""The simulated cluster as the balancer sees it."""

from __future__ import annotations

from controlplane.domain import migration_rules
from controlplane.domain.node import Node, Phase
from controlplane.domain.vm import PowerState
from controlplane.drs.placement_rules import MovableVm, PlacementRules
from controlplane.drs.snapshot import BalanceConfig, ClusterLoad, NodeLoad, VmLoad
from controlplane.simulator.cluster_file import Balancing
from controlplane.simulator.world import SimVm, World
from limiquantix.errors import ApiError


def config_of(settings: Balancing) -> BalanceConfig:
    """Make the planner's configuration from that of a file."""
    return BalanceConfig(
        cpu_threshold_percent=settings.cpu_threshold_percent,
        memory_threshold_percent=settings.memory_threshold_percent,
        min_gain_points=settings.min_gain_points,
        min_difference_points=settings.min_difference_points,
        hysteresis_points=settings.hysteresis_points,
        max_moves=settings.max_moves,
        hold_s=float(settings.hold),
        node_cool_down_s=float(settings.node_cool_down),
        cluster_cool_down_s=float(settings.cluster_cool_down),
        headroom_failures=settings.headroom_failures,
    )


def load_of(world: World) -> ClusterLoad:
    """Reduce the world to what a plan is made from."""
    ready = [node for node in world.nodes.values() if not _excluded(node)]
    nodes = tuple(_node_load(node, world) for node in world.nodes.values())
    vms = tuple(_vm_load(vm) for vm in world.vms.values() if vm.node_id)
    is_measured = bool(ready) and all(node.usage.memory_total_bytes > 0 for node in ready)
    return ClusterLoad(nodes, vms, is_measured, max(world.moved_at_s.values(), default=None))


def rules_of(world: World) -> PlacementRules:
    """Make what keeps the rules of placement."""
    vms = {
        vm.id: MovableVm(vm.ruled, vm.node_id, placed.request)
        for vm in world.vms.values()
        if (placed := world.view.vm(vm.id)) is not None
    }
    return PlacementRules({candidate.id: candidate for candidate in world.view.candidates}, vms)


def _node_load(node: Node, world: World) -> NodeLoad:
    threads = max(node.spec.cpu.total_threads, 1)
    return NodeLoad(
        id=node.id,
        hostname=node.hostname,
        capacity=node.capacity,
        claimed=world.candidate(node.id).allocated,
        thread_count=threads,
        memory_bytes=node.spec.memory.total_bytes,
        used_threads=node.usage.cpu_percent / 100.0 * threads,
        used_memory_bytes=float(node.usage.memory_used_bytes),
        excluded=_excluded(node),
        moved_at_s=world.moved_at_s.get(node.id),
        is_down=node.phase not in (Phase.READY, Phase.MAINTENANCE),
    )


def _vm_load(vm: SimVm) -> VmLoad:
    return VmLoad(
        id=vm.id,
        name=vm.name,
        node_id=vm.node_id,
        claim=vm.claim,
        used_threads=vm.used_threads,
        used_memory_bytes=float(vm.used_memory_bytes),
        moved_bytes=vm.claim.memory_bytes,
        dirty_bytes_per_s=vm.writes_bytes_per_s,
        held=_held(vm),
        moved_at_s=vm.moved_at_s,
    )


def _held(vm: SimVm) -> str:
    if vm.state != PowerState.RUNNING:
        return f"is {PowerState.Name(vm.state)}"
    try:
        migration_rules.require_migratable(vm.record())
    except ApiError as error:
        return error.message
    return ""


def _excluded(node: Node) -> str:
    if node.phase != Phase.READY:
        return Phase.Name(node.phase)
    if not node.spec.role.compute:
        return "no compute role"
    return "" if node.spec.scheduling.schedulable else "cordoned"
