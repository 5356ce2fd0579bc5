"""The simulated cluster as it changes: nodes and VMs as the control plane's own records, and what is claimed.

Nodes are `domain.node.Node` and specs are the API's, so that the scheduler reads here exactly what it reads elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

from controlplane.domain.node import Capacity, CapacityPolicy, Node, NodeUsage, Phase, capacity_of_node
from controlplane.domain.placement_rules import RuledVm
from controlplane.domain.vm import BYTES_PER_MIB, PowerState, Vm, vcpu_count
from controlplane.scheduler.decide import decide
from controlplane.scheduler.plan import Placement, SchedulerConfig, Unplaced
from controlplane.scheduler.snapshot import Candidate, PlacementRequest, candidate_of, request_for
from controlplane.scheduler.view import ClusterView, PlacedVm
from controlplane.simulator.cluster_file import ClusterFile, NodeEntry, Settings, VmEntry
from controlplane.simulator.values import read_message
from limiquantix.compute.v1.node_pb2 import NodeSpec, Taint
from limiquantix.compute.v1.vm_pb2 import HaPolicy, PlacementPolicy, VmSpec

EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""When virtual time begins, where a record wants a date."""


@dataclass(frozen=True, slots=True)
class SimVm:
    """A VM. `node_id` is "" while it is on none; `used_*` are threads and bytes that it keeps busy."""

    id: str
    name: str
    project_id: str
    spec: VmSpec
    claim: Capacity
    node_id: str
    state: PowerState.ValueType
    labels: Mapping[str, str] = field(default_factory=dict)
    priority: int = 0
    may_restart: bool = True
    used_threads: float = 0.0
    used_memory_bytes: int = 0
    writes_bytes_per_s: int = 0
    moved_at_s: float | None = None

    @property
    def ruled(self) -> RuledVm:
        """How rules see it."""
        return RuledVm(self.id, self.name, self.project_id, self.labels, self.spec.placement)

    def record(self) -> Vm:
        """The control plane's record of it."""
        return Vm(self.id, self.name, self.project_id, self.spec, self.node_id, self.state, EPOCH, EPOCH, EPOCH)


@dataclass(frozen=True, slots=True)
class SeenVm:
    """A VM on a node, at one moment."""

    id: str
    name: str
    claim: Capacity


@dataclass(frozen=True, slots=True)
class SeenNode:
    """A node at one moment. `used_*` are percent of the host, None where nothing is measured."""

    id: str
    name: str
    phase: str
    capacity: Capacity
    claimed: Capacity
    vms: tuple[SeenVm, ...]
    used_cpu_percent: float | None = None
    used_memory_percent: float | None = None

    @property
    def cpu_percent(self) -> float:
        """Claimed share of the vCPUs."""
        return 100.0 * self.claimed.vcpus / self.capacity.vcpus if self.capacity.vcpus else 0.0

    @property
    def memory_percent(self) -> float:
        """Claimed share of the memory."""
        return 100.0 * self.claimed.memory_bytes / self.capacity.memory_bytes if self.capacity.memory_bytes else 0.0


class World:
    """A cluster that changes. What holds a claim on a node beside its VMs is under way to it."""

    def __init__(self, cluster: ClusterFile) -> None:
        self.settings = cluster.settings
        self.nodes: dict[str, Node] = {}
        self.vms: dict[str, SimVm] = {}
        self.moved_at_s: dict[str, float] = {}
        """When a VM last moved to or from a node."""
        self.is_measured = any(node.used is not None for node in cluster.nodes)
        self._under_way: dict[str, str] = {}
        """Nodes that VMs are on their way to, by VM id."""
        self.scheduler = SchedulerConfig(strategy=cluster.settings.strategy)
        self.view = ClusterView()
        """The cluster as the scheduler sees it: a VM under way is at its target, and claims room at its source too."""
        self._on_node: dict[str, set[str]] = {}
        self._pools: dict[str, frozenset[str]] = {}
        self._id_of_name: dict[str, str] = {}
        for node in cluster.nodes:
            self.add_node(node)
        for vm in cluster.vms:
            self.add_vm(vm_of(vm, self.node_id_of(vm.node)))
        for node_id in self.nodes:
            self._estimate_usage(node_id)

    # -- reading

    def candidate(self, node_id: str) -> Candidate:
        """One node as the scheduler sees it."""
        found = self.view.candidate(node_id)
        assert found is not None  # noqa: S101 - a node is never taken out
        return found

    def node_id_of(self, name: str) -> str:
        """Return the id of a node by its name or id; "" for "".

        Raises:
            KeyError: there is none.
        """
        return name if not name or name in self.nodes else self._id_of_name[name]

    def vms_on(self, node_id: str) -> list[SimVm]:
        """The VMs of a node, by id."""
        return [self.vms[vm_id] for vm_id in sorted(self._on_node[node_id])]

    def choose(self, vm: SimVm) -> Placement | Unplaced:
        """Ask the scheduler for the best node; nothing is claimed, and refusals are in its own words."""
        return decide(self.view, request_of(vm), self.scheduler)

    def look(self) -> tuple[SeenNode, ...]:
        """Look at all nodes, in the order in which they came."""
        return tuple(self._seen(node) for node in self.nodes.values())

    def homeless(self) -> Iterator[SimVm]:
        """VMs that are on no node."""
        return (vm for vm in self.vms.values() if not vm.node_id)

    def _seen(self, node: Node) -> SeenNode:
        vms = tuple(SeenVm(vm.id, vm.name, vm.claim) for vm in self.vms_on(node.id))
        used = node.usage
        memory = 100.0 * used.memory_used_bytes / used.memory_total_bytes if used.memory_total_bytes else None
        claimed = self.candidate(node.id).allocated
        phase = Phase.Name(node.phase)
        if node.phase == Phase.READY and not node.spec.scheduling.schedulable:
            phase = "CORDONED"
        cpu = used.cpu_percent if self.is_measured else None
        return SeenNode(node.id, node.hostname, phase, node.capacity, claimed, vms, cpu, memory)

    # -- changing

    def add_node(self, entry: NodeEntry) -> Node:
        """Take a node in.

        Raises:
            ValueError: its name or id is taken.
        """
        node = node_of(entry, self.settings)
        if node.id in self.nodes or node.hostname in self._id_of_name:
            raise ValueError(f"there is a node {node.hostname!r} already")
        self._pools[node.id] = frozenset(entry.storage_pools)
        self._id_of_name[node.hostname] = node.id
        self._on_node[node.id] = set()
        self.change_node(node)
        return node

    def change_node(self, node: Node) -> None:
        """Record a node as it is now; what is claimed there stays."""
        self.nodes[node.id] = node
        before = self.view.candidate(node.id)
        claimed = before.allocated if before is not None else Capacity(0, 0)
        self.view.upsert_node(candidate_of(node, self._pools[node.id]).with_allocated(claimed))

    def add_vm(self, vm: SimVm) -> None:
        """Take a VM in, with its claim on the node it is on.

        Raises:
            ValueError: its id is taken.
        """
        if vm.id in self.vms:
            raise ValueError(f"there is a VM {vm.id!r} already")
        self.vms[vm.id] = vm
        if vm.node_id:
            self._on_node[vm.node_id].add(vm.id)
            self.view.place(PlacedVm(vm.node_id, request_of(vm)))

    def set_out(self, vm_id: str, target_id: str) -> None:
        """Have a VM on its way: room is claimed at both ends, and rules see it where it will be."""
        vm = self.vms[vm_id]
        placed = self.view.unplace(vm_id)
        self._claim(vm.node_id, vm.claim, 1)
        self.view.place(PlacedVm(target_id, placed.request))
        self._under_way[vm_id] = target_id

    def arrive(self, vm_id: str, now_s: float) -> SimVm:
        """Have a VM at the end of its way, and give back what it had where it was."""
        vm, target_id = self.vms[vm_id], self._under_way.pop(vm_id)
        self._claim(vm.node_id, vm.claim, -1)
        self._on_node[vm.node_id].discard(vm_id)
        self._on_node[target_id].add(vm_id)
        self._shift_usage(vm, vm.node_id, -1)
        self._shift_usage(vm, target_id, 1)
        self.moved_at_s[vm.node_id] = self.moved_at_s[target_id] = now_s
        moved = self.vms[vm_id] = replace(vm, node_id=target_id, moved_at_s=now_s)
        return moved

    def _claim(self, node_id: str, size: Capacity, sign: int) -> None:
        candidate = self.candidate(node_id)
        before = candidate.allocated
        allocated = Capacity(before.vcpus + sign * size.vcpus, before.memory_bytes + sign * size.memory_bytes)
        self.view.upsert_node(candidate.with_allocated(allocated))

    def _estimate_usage(self, node_id: str) -> None:
        """Give running VMs of which nothing was measured their share of what their node has in use."""
        node = self.nodes[node_id]
        running = [vm for vm in self.vms_on(node_id) if vm.state == PowerState.RUNNING]
        vcpus, memory = sum(vm.claim.vcpus for vm in running), sum(vm.claim.memory_bytes for vm in running)
        threads = node.usage.cpu_percent / 100.0 * node.spec.cpu.total_threads
        for vm in running:
            if vm.used_threads or vm.used_memory_bytes:
                continue
            share = min(threads * vm.claim.vcpus / max(vcpus, 1), float(vm.claim.vcpus))
            used = node.usage.memory_used_bytes * vm.claim.memory_bytes // max(memory, 1)
            used = min(used, vm.claim.memory_bytes)
            self.vms[vm.id] = replace(vm, used_threads=share, used_memory_bytes=used)

    def _shift_usage(self, vm: SimVm, node_id: str, sign: int) -> None:
        """Have measured load go with the VM that makes it."""
        node = self.nodes[node_id]
        if not node.usage.memory_total_bytes:
            return
        threads = max(node.spec.cpu.total_threads, 1)
        cpu = node.usage.cpu_percent + sign * 100.0 * vm.used_threads / threads
        memory = node.usage.memory_used_bytes + sign * vm.used_memory_bytes
        usage = replace(node.usage, cpu_percent=max(cpu, 0.0), memory_used_bytes=max(memory, 0))
        self.nodes[node_id] = replace(node, usage=usage)


def node_of(entry: NodeEntry, settings: Settings) -> Node:
    """Make the record of a node."""
    spec = read_message(entry.spec, NodeSpec())
    spec.cpu.total_threads = entry.cpus
    spec.memory.total_bytes = entry.memory
    if not spec.HasField("role"):
        spec.role.compute = True
    if not entry.spec:
        spec.supports_live_migration = True
    spec.scheduling.schedulable = entry.schedulable
    if entry.taints:
        del spec.scheduling.taints[:]
        for taint in entry.taints:
            spec.scheduling.taints.add(key=taint.key, value=taint.value, effect=Taint.Effect.Value(taint.effect))
    policy = CapacityPolicy(
        settings.cpu_overcommit, settings.memory_overcommit, settings.reserved_cpus, settings.reserved_memory
    )
    capacity = capacity_of_node(spec, policy)
    if entry.capacity is not None:
        capacity = Capacity(entry.capacity.vcpus, entry.capacity.memory)
    usage = NodeUsage()
    if entry.used is not None:
        usage = NodeUsage(entry.used.cpu_percent, entry.used.memory, entry.memory)
    return Node(
        id=entry.key,
        hostname=entry.name,
        management_ip="",
        agent_endpoint="",
        spec=spec,
        phase=Phase.Value(entry.phase),
        capacity=capacity,
        created_at=EPOCH,
        updated_at=EPOCH,
        labels=dict(entry.labels),
        usage=usage,
    )


def vm_of(entry: VmEntry, node_id: str, *, name: str = "") -> SimVm:
    """Make a VM; `name` instead of that of the entry makes one of several."""
    spec = read_message(entry.spec, VmSpec())
    if not spec.HasField("cpu") or vcpu_count(spec.cpu) != entry.cpus:
        spec.cpu.cores, spec.cpu.sockets, spec.cpu.threads_per_core = entry.cpus, 1, 1
    spec.memory.size_mib = -(-entry.memory // BYTES_PER_MIB)
    if entry.placement:
        spec.placement.MergeFrom(read_message(entry.placement, PlacementPolicy()))
    own = not spec.HasField("ha_policy") or (spec.ha_policy.auto_restart and not _is_never(spec.ha_policy))
    used = entry.used
    is_running = entry.state == "RUNNING"
    return SimVm(
        id=name or entry.key,
        name=name or entry.name,
        project_id=entry.project,
        spec=spec,
        claim=Capacity(entry.cpus, entry.memory),
        node_id=node_id,
        state=PowerState.Value(entry.state),
        labels=dict(entry.labels),
        priority=entry.priority if entry.priority is not None else spec.ha_policy.priority,
        may_restart=entry.auto_restart if entry.auto_restart is not None else own,
        used_threads=used.cpu_percent / 100.0 * entry.cpus if used is not None and is_running else 0.0,
        used_memory_bytes=used.memory if used is not None and is_running else 0,
        writes_bytes_per_s=entry.writes_per_s if is_running else 0,
    )


def request_of(vm: SimVm) -> PlacementRequest:
    """Make the request that places a VM; where others are, the view knows."""
    request = request_for(vm.spec, vm_id=vm.id, node_of_vm={}, labels=vm.labels, project_id=vm.project_id)
    return replace(request, vcpus=vm.claim.vcpus, memory_bytes=vm.claim.memory_bytes)


def _is_never(policy: HaPolicy) -> bool:
    return policy.condition == HaPolicy.NEVER


def restart_order(vms: Iterable[SimVm]) -> list[SimVm]:
    """Order VMs as they are started again: highest priority first, then the largest, then by id."""
    return sorted(vms, key=lambda vm: (-vm.priority, -vm.claim.memory_bytes, -vm.claim.vcpus, vm.id))
