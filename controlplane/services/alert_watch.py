"""Look for what is wrong, and keep the alerts level with it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from controlplane.domain.alert import CLUSTER, AlertKind, AlertSeverity, Finding
from controlplane.domain.event import NODE, VM
from controlplane.domain.node import Node, Phase
from controlplane.domain.recommendation import Recommendation, Status
from controlplane.domain.vm import PowerState, Vm
from controlplane.drs.board import board_of
from controlplane.drs.headroom import survives
from controlplane.drs.snapshot import BalanceConfig, ClusterLoad, NodeLoad, Priority, VmLoad
from controlplane.services.alerts import AlertService
from controlplane.services.balancing_loads import excluded, is_down
from controlplane.services.seen import NodesAtOnce, NodesKept
from controlplane.state.interface import Store, Transaction

RECOVERY_POINTS: Final = 5.0
"""How far below its threshold a load must fall before the alert about it ends: else it would come and go."""

_NAMED_COUNT: Final = 20
"""VMs that a message names at most."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From which load on a node counts as overloaded, in percent."""

    cpu_percent: float = 80.0
    memory_percent: float = 85.0


@dataclass(frozen=True, slots=True)
class _Seen:
    at_once: NodesAtOnce
    loaded: Sequence[Node]
    conflicts: Sequence[Vm]
    recommendations: Sequence[Recommendation]
    overloaded_ids: frozenset[str]
    claims: Sequence[VmLoad]
    vm_names: Mapping[str, Sequence[str]]
    """Of the VMs on nodes that lost storage, by node id."""


@dataclass(slots=True)
class AlertWatch:
    """Looks once when it is told to, and remembers what makes the next look cheap with thousands of nodes."""

    store: Store
    alerts: AlertService
    thresholds: Thresholds
    kept: NodesKept = field(default_factory=NodesKept)
    _headroom: tuple[NodesAtOnce, Sequence[VmLoad], list[Finding]] | None = None
    """What was found, and from what."""

    async def look(self) -> None:
        """Find everything, and sync the alerts of each kind.

        Raises:
            ApiError: the database does not answer, or another process does the same at this moment.
        """
        seen = await self.store.read(self._see)
        self.kept.at_once = seen.at_once
        # With thousands of nodes that takes a while, in which heartbeats must be answered.
        for kind, findings in (await asyncio.to_thread(self._found, seen)).items():
            await self.alerts.sync(kind, findings)

    def _found(self, seen: _Seen) -> dict[AlertKind, list[Finding]]:
        nodes = [each.node for each in seen.at_once.nodes.values()]
        return {
            AlertKind.NODE_OVERLOADED: overloaded(seen.loaded, seen.overloaded_ids, self.thresholds),
            AlertKind.NODE_SILENT: silent(nodes),
            AlertKind.VM_CONFLICT: conflicts(seen.conflicts, nodes),
            AlertKind.RECOMMENDATION_CRITICAL: critical(seen.recommendations),
            AlertKind.NO_HEADROOM: self._without_headroom(seen),
            AlertKind.HA_STORAGE_LOST: storage_lost(nodes, seen.vm_names),
        }

    def _without_headroom(self, seen: _Seen) -> list[Finding]:
        if self._headroom is not None:
            at_once, claims, found = self._headroom
            if at_once is seen.at_once and claims == seen.claims:
                return found
        found = without_headroom([each.current for each in seen.at_once.nodes.values()], seen.claims)
        self._headroom = seen.at_once, seen.claims, found
        return found

    async def _see(self, tx: Transaction) -> _Seen:
        at_once = await self.kept.at_once.look(tx)
        nodes = [each.node for each in at_once.nodes.values()]
        without_storage = [node.id for node in nodes if any(domain.is_lost for domain in node.spec.storage_domains)]
        limits = self.thresholds
        return _Seen(
            at_once=at_once,
            loaded=await tx.loaded_nodes(limits.cpu_percent - RECOVERY_POINTS, limits.memory_percent - RECOVERY_POINTS),
            conflicts=await tx.vms_in_conflict(),
            recommendations=await tx.open_recommendations(),
            overloaded_ids=frozenset(alert.resource_id for alert in await tx.open_alerts(AlertKind.NODE_OVERLOADED)),
            claims=[VmLoad(each.vm_id, "", each.node_id, each.claim) for each in await tx.vm_claims()],
            vm_names={each: sorted(vm.name for vm in await tx.vms_on_node(each)) for each in without_storage},
        )


def overloaded(nodes: Sequence[Node], known_ids: Collection[str], thresholds: Thresholds) -> list[Finding]:
    """Find READY nodes above a threshold; one that was stays so until it is clearly below."""
    found = []
    for node in nodes:
        total_bytes = node.usage.memory_total_bytes
        if node.phase != Phase.READY or not total_bytes:
            continue
        slack = RECOVERY_POINTS if node.id in known_ids else 0.0
        memory_percent = 100.0 * node.usage.memory_used_bytes / total_bytes
        loads = (
            ("CPU", node.usage.cpu_percent, thresholds.cpu_percent),
            ("memory", memory_percent, thresholds.memory_percent),
        )
        above = [(name, load, limit) for name, load, limit in loads if load >= limit - slack and load > 0]
        if above:
            words = " and ".join(f"{load:.0f} % {name} (threshold {limit:.0f} %)" for name, load, limit in above)
            worst = max(load for _, load, _ in above)
            severity = AlertSeverity.CRITICAL if Priority.of_load(worst) is Priority.CRITICAL else AlertSeverity.WARNING
            found.append(Finding(NODE, node.id, severity, f"node {node.hostname} uses {words}"))
    return found


def silent(nodes: Sequence[Node]) -> list[Finding]:
    """Find nodes that send no heartbeats."""
    return [
        Finding(
            NODE,
            node.id,
            AlertSeverity.CRITICAL,
            f"node {node.hostname} sends no heartbeats; see to its host, network and node daemon",
        )
        for node in nodes
        if node.phase == Phase.NOT_READY
    ]


def storage_lost(nodes: Sequence[Node], vm_names: Mapping[str, Sequence[str]]) -> list[Finding]:
    """Find nodes that lost storage, and name the VMs there, whose disks may lie on it."""
    found = []
    for node in nodes:
        lost = [domain.path or domain.id for domain in node.spec.storage_domains if domain.is_lost]
        if lost:
            names = vm_names.get(node.id, ())
            more = f" and {len(names) - _NAMED_COUNT} more" if len(names) > _NAMED_COUNT else ""
            vms = f"; VMs there: {', '.join(names[:_NAMED_COUNT])}{more}" if names else ""
            message = f"node {node.hostname} lost storage {', '.join(lost)}: it does not answer, or is read-only{vms}"
            found.append(Finding(NODE, node.id, AlertSeverity.CRITICAL, message))
    return found


def conflicts(vms: Sequence[Vm], nodes: Sequence[Node]) -> list[Finding]:
    """Find VMs that more than one host has."""
    names = {node.id: node.hostname for node in nodes}
    found = []
    for vm in vms:
        where = ", ".join(
            f"{names.get(node_id, node_id)} ({PowerState.Name(state)})"
            for node_id, state in sorted(vm.sightings.items())
        )
        home = names.get(vm.node_id, vm.node_id) or "no node"
        message = f"VM {vm.name} belongs to {home} and was seen on {where} too; stop one of them on its host"
        found.append(Finding(VM, vm.id, AlertSeverity.CRITICAL, message))
    return found


def critical(recommendations: Sequence[Recommendation]) -> list[Finding]:
    """Find recommendations that cannot wait and that nobody has decided about; one a VM, as there is but one."""
    return [
        Finding(
            VM,
            each.vm_id,
            AlertSeverity.CRITICAL,
            f"VM {each.vm_name} should be moved at once: {each.reason} Approve or reject recommendation {each.id}.",
        )
        for each in recommendations
        if each.status == Status.PENDING and each.priority == Priority.CRITICAL
    ]


def without_headroom(nodes: Sequence[Node], claims: Sequence[VmLoad]) -> list[Finding]:
    """Find out whether any one node could fail without its VMs finding no room; nothing to say of fewer than two."""
    loads = tuple(
        NodeLoad(
            node.id,
            node.hostname,
            node.capacity,
            node.allocated,
            thread_count=1,
            memory_bytes=1,
            excluded=excluded(node),
            is_down=is_down(node),
        )
        for node in nodes
    )
    able_count = sum(not load.excluded for load in loads)
    if able_count < 2:
        return []
    board = board_of(ClusterLoad(loads, tuple(claims), is_measured=False), BalanceConfig(), 0.0)
    if survives(board, 1):
        return []
    if not survives(board, 0):
        message = (
            f"VMs of nodes that are silent or being emptied have no room on the {able_count} others; "
            "bring these nodes back, add one, or remove VMs"
        )
        return [Finding(CLUSTER, "", AlertSeverity.WARNING, message)]
    message = (
        f"if a node of {able_count} failed, not all of its VMs would find room on the others; add a node, or remove VMs"
    )
    return [Finding(CLUSTER, "", AlertSeverity.WARNING, message)]
