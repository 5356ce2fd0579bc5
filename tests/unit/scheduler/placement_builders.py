"""Candidates and requests for placement tests: roomy and willing unless a test says otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from controlplane.domain.node import Capacity, Phase
from controlplane.scheduler.inventory import UNTOLD, Inventory
from controlplane.scheduler.snapshot import Candidate
from limiquantix.compute.v1.node_pb2 import NodeStatus, Taint

MIB = 2**20


def a_candidate(
    node_id: str = "n1",
    *,
    vcpus: int = 8,
    memory_mib: int = 8192,
    used_vcpus: int = 0,
    used_memory_mib: int = 0,
    phase: NodeStatus.Phase.ValueType = Phase.READY,
    schedulable: bool = True,
    is_compute: bool = True,
    taints: Iterable[Taint] = (),
    labels: Mapping[str, str] | None = None,
    pools: Iterable[str] = (),
    inventory: Inventory = UNTOLD,
) -> Candidate:
    """Make a node; its host name is its id with `host-` before it."""
    return Candidate(
        id=node_id,
        hostname=f"host-{node_id}",
        phase=phase,
        schedulable=schedulable,
        is_compute=is_compute,
        capacity=Capacity(vcpus, memory_mib * MIB),
        allocated=Capacity(used_vcpus, used_memory_mib * MIB),
        taints=tuple(taints),
        labels=dict(labels or {}),
        storage_pool_ids=frozenset(pools),
        inventory=inventory,
    )


def a_taint(text: str) -> Taint:
    """Make a taint of "key=value:EFFECT"."""
    key_value, _, effect = text.rpartition(":")
    key, _, value = key_value.partition("=")
    return Taint(key=key, value=value, effect=Taint.Effect.Value(effect))
