"""VMs on nodes that live: started where they are, moved when they do not start there, stopped.

The product's Keeper starts VMs in place from what is recorded, so the manager shows the core only VMs of nodes that are
fenced. Whoever shows it all VMs (the scenarios, a simulation) gets these rules.
"""

from __future__ import annotations

from collections.abc import Mapping

from controlplane.ha.model import (
    Alerting,
    AlertOf,
    Effect,
    NodeHealth,
    NodeState,
    Observed,
    Relocate,
    Seen,
    StartInPlace,
    Stop,
    VmSeen,
    Wanted,
)


def in_place(observed: Observed, nodes: Mapping[str, NodeState]) -> list[Effect]:
    """Say what is done about VMs of healthy nodes that are not as they shall be."""
    excluded = frozenset(node_id for node_id, node in nodes.items() if node.health is not NodeHealth.HEALTHY)
    effects = list[Effect]()
    for vm in sorted(observed.vms, key=lambda vm: (-vm.priority, vm.id)):
        node = nodes.get(vm.node_id)
        if node is None or node.health is not NodeHealth.HEALTHY or vm.is_busy:
            continue
        if vm.wanted is Wanted.STOPPED and vm.seen is Seen.RUNNING:
            effects.append(Stop(vm.id, vm.node_id))
        elif vm.wanted is Wanted.STARTED and vm.seen in (Seen.STOPPED, Seen.FAILED):
            effects.append(_start(vm, observed, excluded))
    return effects


def _start(vm: VmSeen, observed: Observed, excluded: frozenset[str]) -> Effect:
    """Start a VM where it is as often as its policy says, then on other nodes as often as that says.

    When no other node takes it, the starts that it would have had there are tried where it is.
    """
    if vm.failed_start_count <= vm.max_restarts:
        return StartInPlace(vm.id, vm.node_id)
    left_count = vm.max_relocations - vm.relocation_count
    if left_count > 0:
        choice = observed.choose(vm.id, excluded | {vm.node_id})
        if choice.node_id:
            return Relocate(vm.id, vm.node_id, choice.node_id)
        if vm.failed_start_count < (vm.max_restarts + 1) * (left_count + 1):
            return StartInPlace(vm.id, vm.node_id)
    message = (
        f"it did not start in {vm.failed_start_count} attempts in a row on this node, after {vm.relocation_count} "
        "moves to others; see why, and start it when that is mended"
    )
    return Alerting(AlertOf.VM_NOT_RESTARTED, vm.id, message)
