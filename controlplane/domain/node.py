"""The node record: a host that registered, what it can hold and what is claimed on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple

from limiquantix.compute.v1.node_pb2 import CpuInfo, MemoryInfo, NodeSpec, NodeStatus, SystemInfo

Phase = NodeStatus.Phase
"""The contract's enum of node phases; values are plain ints in records."""


@dataclass(frozen=True, slots=True)
class NodeUsage:
    """Measured load of a host, from its last heartbeat. Never mixed with what is claimed."""

    cpu_percent: float = 0.0
    memory_used_bytes: int = 0
    memory_total_bytes: int = 0
    disk_used_bytes: int = 0
    disk_total_bytes: int = 0
    running_vm_count: int = 0
    load_1m: float = 0.0
    load_5m: float = 0.0
    load_15m: float = 0.0


@dataclass(frozen=True, slots=True)
class Capacity:
    """What may be claimed on a node: over-commit applied, the host's own share taken off."""

    vcpus: int
    memory_bytes: int


class NodeClaims(NamedTuple):
    """What placements change of a node, and the version of all the rest. A tuple, since there is one for every node."""

    node_id: str
    version: int
    vcpus: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class CapacityPolicy:
    """How much of a host VMs may claim.

    Ratios are 1.0 or more for over-commit; `reserved_*` is kept for the host itself. A host always offers at least one
    thread before the ratio, else a single-core machine could run nothing.
    """

    cpu_overcommit_ratio: float = 2.0
    memory_overcommit_ratio: float = 1.5
    reserved_cores: int = 1
    reserved_memory_bytes: int = 1024 * 2**20

    def capacity_of(self, cpu: CpuInfo, memory: MemoryInfo) -> Capacity:
        """Work out what a host with these parts offers; without a total of threads, from the parts of its topology."""
        topology = max(cpu.sockets, 1) * max(cpu.cores_per_socket, 1) * max(cpu.threads_per_core, 1)
        threads = max((cpu.total_threads or topology) - self.reserved_cores, 1)
        memory_bytes = max(memory.total_bytes - self.reserved_memory_bytes, 0)
        return Capacity(
            vcpus=int(threads * self.cpu_overcommit_ratio),
            memory_bytes=int(memory_bytes * self.memory_overcommit_ratio),
        )


def capacity_of_node(spec: NodeSpec, policy: CapacityPolicy) -> Capacity:
    """Work out what a node offers: by its own over-commit and reservation where it has them, else by the policy.

    A ratio of 0 is none of its own; a reservation that is there counts as it is, since 0 may well be kept.
    """
    scheduling = spec.scheduling
    own = policy
    if scheduling.HasField("overcommit"):
        ratios = scheduling.overcommit
        own = replace(
            own,
            cpu_overcommit_ratio=ratios.cpu_ratio or own.cpu_overcommit_ratio,
            memory_overcommit_ratio=ratios.memory_ratio or own.memory_overcommit_ratio,
        )
    if scheduling.HasField("reserved"):
        reserved = scheduling.reserved
        own = replace(own, reserved_cores=reserved.cpu_cores, reserved_memory_bytes=reserved.memory_bytes)
    return own.capacity_of(spec.cpu, spec.memory)


@dataclass(frozen=True, slots=True)
class Node:
    """One node as the control plane knows it.

    `allocated` is the sum of the claims of all VMs placed here, running or not; it changes only in the transactions
    that place, resize and remove them. `fence_token` is that of its newest fence that is over, or the
    newest of all when it was registered; commands to its daemon carry it, which refuses smaller ones than it knows.
    """

    id: str
    hostname: str
    management_ip: str
    agent_endpoint: str
    spec: NodeSpec
    phase: NodeStatus.Phase.ValueType
    capacity: Capacity
    created_at: datetime
    updated_at: datetime
    allocated: Capacity = Capacity(0, 0)
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    usage: NodeUsage = NodeUsage()
    system: SystemInfo = field(default_factory=SystemInfo)
    last_heartbeat_at: datetime | None = None
    error_message: str = ""
    fence_token: int = 0
    version: int = 1


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """One sign of life of a node, ready to be stored with others in one transaction."""

    node_id: str
    at: datetime
    usage: NodeUsage
