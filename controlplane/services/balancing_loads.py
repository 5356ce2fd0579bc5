"""Read what balancing decides by: nodes, VMs, what is claimed, what is measured, and the rules."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, Protocol

import structlog

from controlplane.domain import migration_rules
from controlplane.domain.migration import share_storage
from controlplane.domain.node import Capacity, Node, Phase
from controlplane.domain.operation import OperationFilter, OperationState
from controlplane.domain.placement_rules import RuledVm
from controlplane.domain.query import VmFilter
from controlplane.domain.recommendation import Recommendation, Status
from controlplane.domain.vm import PowerState, Vm
from controlplane.drs.placement_rules import MovableVm, PlacementRules
from controlplane.drs.snapshot import BalancePlan, ClusterLoad, NodeLoad, VmLoad
from controlplane.scheduler.snapshot import candidate_of, request_for
from controlplane.services.balancing_costs import MoveMeter, cost_of
from controlplane.services.hearing import Hearing
from controlplane.services.metrics_feeds import MetricsFeeds
from controlplane.state.interface import Store, Transaction
from limiquantix.errors import ApiError
from limiquantix.node.v1.node_daemon_pb2 import ResourceUsage

_log = structlog.get_logger(__name__)

MIGRATION_KIND: Final = "vm.migrate"
MAX_VM_COUNT: Final = 1_000_000
_MAX_MIGRATIONS: Final = 2_000
"""Last ones that are looked through for VMs that moved a while ago."""
_MEASURE_INTERVAL_S: Final = 1
_MEASURES: Final = 2
"""Shares of time are known with the second reading only."""
_PATIENCE_S: Final = 8.0
_ASKED_AT_ONCE: Final = 64


class UsageReader(Protocol):
    """Where the use of VMs is measured."""

    async def of_vms(self, nodes: Sequence[Node]) -> Mapping[str, ResourceUsage]:
        """Measure the running VMs of these nodes, by VM id; hosts that do not answer in time are left out."""
        ...


class FeedUsage:
    """Asks the hosts, each for a second or two."""

    def __init__(self, feeds: MetricsFeeds, patience_s: float = _PATIENCE_S) -> None:
        self._feeds = feeds
        self._patience_s = patience_s

    async def of_vms(self, nodes: Sequence[Node]) -> Mapping[str, ResourceUsage]:
        """Measure them."""
        turn = asyncio.Semaphore(_ASKED_AT_ONCE)

        async def measure(node: Node) -> dict[str, ResourceUsage]:
            async with turn:
                return await self._of_node(node)

        found: dict[str, ResourceUsage] = {}
        for usage in await asyncio.gather(*(measure(node) for node in nodes)):
            found.update(usage)
        return found

    async def _of_node(self, node: Node) -> dict[str, ResourceUsage]:
        usage: dict[str, ResourceUsage] = {}
        try:
            async with (
                asyncio.timeout(self._patience_s),
                aclosing(self._feeds.watch(node, _MEASURE_INTERVAL_S)) as measures,
            ):
                count = 0
                async for metrics in measures:
                    usage = {vm.vm_id: vm.usage for vm in metrics.vms}
                    count += 1
                    if count == _MEASURES:
                        break
        except (ApiError, TimeoutError):
            _log.info("use_of_vms_not_measured", node_id=node.id, is_partial=bool(usage))
        return usage


@dataclass(frozen=True, slots=True)
class LoadConfig:
    """How loads are read: how long VMs are held, and what moves are made for."""

    hold_s: float = 3600.0
    node_cool_down_s: float = 300.0
    copies_disks: bool = False
    bandwidth_mbps: int = 1000


@dataclass(frozen=True, slots=True)
class Reading:
    """The cluster at one moment. `measured_vm_ids` are those whose use was measured; of others it is estimated."""

    cluster: ClusterLoad
    rules: PlacementRules
    nodes: Mapping[str, Node]
    vms: Mapping[str, Vm]
    measured_vm_ids: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Rows:
    nodes: Sequence[Node]
    vms: Sequence[Vm]
    busy_ids: frozenset[str]
    wanted: Mapping[str, Recommendation]
    moved: Mapping[str, float]
    node_moved: Mapping[str, float]
    rejected: Mapping[str, float]
    migrating_ids: frozenset[str]


class LoadReader:
    """Reads the cluster for a run.

    Args:
        hearing: what this process heard of nodes, newer than what is recorded: loads of one moment can be compared.
    """

    def __init__(
        self,
        store: Store,
        usage: UsageReader,
        config: LoadConfig,
        meter: MoveMeter | None = None,
        hearing: Hearing | None = None,
    ) -> None:
        self._store = store
        self._usage = usage
        self._config = config
        self._meter = meter
        self._hearing = hearing

    async def read(self, now: datetime) -> Reading:
        """Read everything, and have the hosts measure their VMs."""
        rows = await self._store.read(lambda tx: _rows(tx, now, self._config))
        if self._hearing is not None:
            rows = replace(rows, nodes=[self._hearing.newest(node) for node in rows.nodes])
        ready = [node for node in rows.nodes if not excluded(node)]
        usage = await self._usage.of_vms(ready)
        return await asyncio.to_thread(reading_of, rows, usage, self._config)

    async def priced(self, made: BalancePlan, reading: Reading) -> BalancePlan:
        """Have the hosts measure the VMs that a plan moves; what is not measured keeps the costs that it has."""
        if self._meter is None or not made.moves:
            return made
        places = {move.vm.id: reading.nodes[reading.vms[move.vm.id].node_id] for move in made.moves}
        measured = await self._meter.measure(list(places.items()))
        moves = []
        for move in made.moves:
            if move.vm.id in measured:
                cost = cost_of(
                    reading.vms[move.vm.id],
                    places[move.vm.id],
                    self._config.bandwidth_mbps,
                    copies_disks=self._config.copies_disks,
                    measured=measured[move.vm.id],
                )
                changed = replace(
                    move.vm,
                    moved_bytes=cost.moved_bytes,
                    dirty_bytes_per_s=cost.dirty_bytes_per_s,
                    expected_s=cost.expected_s,
                )
                moves.append(replace(move, vm=changed))
            else:
                moves.append(move)
        return replace(made, moves=tuple(moves))

    async def nodes(self) -> tuple[ClusterLoad, Mapping[str, int]]:
        """Read the loads of the nodes only, and how many VMs each has."""
        nodes = await self._store.read(lambda tx: tx.all_nodes())
        versions = await self._store.read(lambda tx: tx.vm_versions())
        is_measured = _is_measured(nodes)
        counts = Counter(version.node_id for version in versions)
        return ClusterLoad(tuple(_node_load(node, None) for node in nodes), (), is_measured), counts


async def _rows(tx: Transaction, now: datetime, config: LoadConfig) -> _Rows:
    nodes = await tx.all_nodes()
    vms = (await tx.list_vms(VmFilter(), None, MAX_VM_COUNT)).items
    unfinished = await tx.unfinished_operations((), MAX_VM_COUNT)
    wanted = {each.vm_id: each for each in await tx.open_recommendations() if each.status == Status.APPROVED}
    since = now - timedelta(seconds=max(config.hold_s, config.node_cool_down_s))
    ended = await tx.recommendations_ended_since(since)
    done = OperationFilter(kinds=frozenset({MIGRATION_KIND}), states=frozenset({OperationState.SUCCEEDED}))
    migrations = (await tx.list_operations(done, None, _MAX_MIGRATIONS)).items
    moved = {
        each.resource_id: each.ended_at.timestamp()
        for each in reversed(migrations)
        if each.ended_at is not None and each.ended_at > since
    }
    node_moved: dict[str, float] = {}
    rejected: dict[str, float] = {}
    for each in ended:
        at_s = each.ended_at.timestamp() if each.ended_at is not None else 0.0
        if each.status == Status.APPLIED:
            moved[each.vm_id] = max(at_s, moved.get(each.vm_id, 0.0))
            node_moved[each.source_node_id] = node_moved[each.target_node_id] = at_s
        elif each.status in (Status.REJECTED, Status.FAILED):
            rejected[each.vm_id] = at_s
    busy = frozenset(each.resource_id for each in unfinished)
    migrating = frozenset(each.vm_id for each in await tx.unsettled_migrations())
    return _Rows(nodes, vms, busy, wanted, moved, node_moved, rejected, migrating)


def reading_of(rows: _Rows, usage: Mapping[str, ResourceUsage], config: LoadConfig) -> Reading:
    """Put the reading together; takes a while for thousands of VMs."""
    nodes = {node.id: node for node in rows.nodes}
    placed = [vm for vm in rows.vms if vm.node_id in nodes]
    running: Counter[str] = Counter()
    claimed: Counter[str] = Counter()
    for vm in placed:
        if vm.power_state == PowerState.RUNNING:
            running[vm.node_id] += vm.vcpu_count
            claimed[vm.node_id] += vm.memory_bytes
    loads, movable = [], {}
    node_of_vm = {vm.id: vm.node_id for vm in placed}
    for vm in placed:
        node = nodes[vm.node_id]
        used = _use_of(vm, node, usage.get(vm.id), running[node.id], claimed[node.id])
        loads.append(_vm_load(vm, node, used, rows, config))
        ruled = RuledVm(vm.id, vm.name, vm.project_id, vm.labels, vm.spec.placement)
        movable[vm.id] = MovableVm(ruled, vm.node_id, request_for(vm.spec, vm_id=vm.id, node_of_vm=node_of_vm))
    cluster = ClusterLoad(
        nodes=tuple(_node_load(node, rows.node_moved.get(node.id)) for node in rows.nodes),
        vms=tuple(loads),
        is_measured=_is_measured(rows.nodes),
        moved_at_s=max(rows.node_moved.values(), default=None),
    )
    of_vm = {vm.id: vm for vm in placed}

    def reaches(vm_id: str, node_id: str) -> bool:
        vm, target = of_vm[vm_id], nodes[node_id]
        return _reaches(vm, nodes[vm.node_id], target, copies_disks=config.copies_disks)

    pools = frozenset(disk.storage_pool_id for vm in placed for disk in vm.spec.disks if disk.storage_pool_id)
    # Which node reaches which pool is not recorded anywhere yet; disks are held together by `reaches`.
    candidates = {node.id: candidate_of(node, pools) for node in rows.nodes}
    rules = PlacementRules(candidates, movable, reaches)
    return Reading(cluster, rules, nodes, of_vm, frozenset(usage) & of_vm.keys())


def _reaches(vm: Vm, source: Node, target: Node, *, copies_disks: bool) -> bool:
    if not target.spec.supports_live_migration:
        return False
    bridges = {nic.bridge for nic in vm.spec.nics if nic.bridge}
    if target.spec.bridges and not bridges <= set(target.spec.bridges):
        return False
    if not vm.spec.disks or share_storage(source, target):
        return True
    if not copies_disks:
        return False
    try:
        migration_rules.require_copyable(vm, source, target)
    except ApiError:
        return False
    return True


def excluded(node: Node) -> str:
    """Say why a node takes no part in balancing; "" if it does."""
    if node.phase != Phase.READY:
        return Phase.Name(node.phase)
    if not node.spec.role.compute:
        return "no compute role"
    if not node.spec.scheduling.schedulable:
        return "cordoned"
    return ""


def is_down(node: Node) -> bool:
    """Whether its VMs need room elsewhere: to be started again if its host is gone, or since they are being moved."""
    return node.phase not in (Phase.READY, Phase.MAINTENANCE)


def _is_measured(nodes: Sequence[Node]) -> bool:
    """Whether every node that takes part told its load."""
    return all(node.usage.memory_total_bytes > 0 for node in nodes if not excluded(node))


def _threads(node: Node) -> int:
    cpu = node.spec.cpu
    parts = max(cpu.sockets, 1) * max(cpu.cores_per_socket, 1) * max(cpu.threads_per_core, 1)
    return cpu.total_threads or parts


def _node_load(node: Node, moved_at_s: float | None) -> NodeLoad:
    usage = node.usage
    return NodeLoad(
        id=node.id,
        hostname=node.hostname,
        capacity=node.capacity,
        claimed=node.allocated,
        thread_count=_threads(node),
        memory_bytes=usage.memory_total_bytes or node.spec.memory.total_bytes,
        used_threads=usage.cpu_percent / 100.0 * _threads(node),
        used_memory_bytes=float(usage.memory_used_bytes),
        excluded=excluded(node),
        moved_at_s=moved_at_s,
        is_down=is_down(node),
    )


def _use_of(
    vm: Vm, node: Node, measured: ResourceUsage | None, running_vcpus: int, running_bytes: int
) -> tuple[float, float]:
    """Threads and memory that a VM keeps busy: as measured, else its share of what its node does."""
    if vm.power_state != PowerState.RUNNING:
        return 0.0, 0.0
    if measured is not None:
        threads = measured.cpu_usage_percent / 100.0 * vm.vcpu_count
        return threads, float(min(measured.memory_used_bytes, vm.memory_bytes))
    used_threads = node.usage.cpu_percent / 100.0 * _threads(node)
    threads = min(float(vm.vcpu_count), used_threads * vm.vcpu_count / max(running_vcpus, 1))
    memory = min(float(vm.memory_bytes), node.usage.memory_used_bytes * vm.memory_bytes / max(running_bytes, 1))
    return threads, memory


def _vm_load(vm: Vm, node: Node, used: tuple[float, float], rows: _Rows, config: LoadConfig) -> VmLoad:
    cost = cost_of(vm, node, config.bandwidth_mbps, copies_disks=config.copies_disks)
    times = [times[vm.id] for times in (rows.moved, rows.rejected) if vm.id in times]
    return VmLoad(
        id=vm.id,
        name=vm.name,
        node_id=vm.node_id,
        claim=Capacity(vm.vcpu_count, vm.memory_bytes),
        used_threads=used[0],
        used_memory_bytes=used[1],
        moved_bytes=cost.moved_bytes,
        expected_s=cost.expected_s,
        held=_held(vm, node, rows),
        moved_at_s=max(times, default=None),
    )


def _held(vm: Vm, node: Node, rows: _Rows) -> str:
    """Say why a VM is left where it is; "" if it may be moved."""
    for holds, why in (
        (vm.power_state != PowerState.RUNNING, f"is {PowerState.Name(vm.power_state)}"),
        (bool(vm.sightings), "was seen on another host too"),
        (vm.id in rows.busy_ids, "has operations that are not finished"),
        (vm.id in rows.migrating_ids, "has a migration of which it is not known yet where it led"),
        (vm.id in rows.wanted, "is to be moved already"),
        (not node.spec.supports_live_migration, f"node {node.hostname} does not support migration"),
    ):
        if holds:
            return why
    try:
        migration_rules.require_migratable(vm)
    except ApiError as error:
        return error.message
    return ""
