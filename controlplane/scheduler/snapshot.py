"""What a placement decision sees: nodes and requests, reduced to the facts that filters and scores read.

Taking the facts out once keeps the inner loop away from protobuf messages, whose every field read costs several times
that of a plain attribute, and makes a decision depend on nothing that could change while it is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from controlplane.domain.node import Capacity, Node
from controlplane.domain.vm import BYTES_PER_MIB, vcpu_count
from limiquantix.compute.v1.node_pb2 import NodeStatus, Taint
from limiquantix.compute.v1.vm_pb2 import PlacementPolicy, VmSpec

_NOTHING = Capacity(0, 0)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One node as placement sees it.

    `schedulable` is False for a cordoned node. `allocated` may exceed `capacity` after an operator lowered an
    over-commit ratio; nothing more is placed there until it fits again. Ids are unique within a snapshot.
    """

    id: str
    hostname: str
    phase: NodeStatus.Phase.ValueType
    schedulable: bool
    is_compute: bool
    capacity: Capacity
    allocated: Capacity = _NOTHING
    taints: tuple[Taint, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    storage_pool_ids: frozenset[str] = frozenset()

    def after(self, request: PlacementRequest) -> Candidate:
        """Return this node with the request's claim added."""
        allocated = Capacity(
            vcpus=self.allocated.vcpus + request.vcpus,
            memory_bytes=self.allocated.memory_bytes + request.memory_bytes,
        )
        return replace(self, allocated=allocated)


def candidate_of(node: Node, storage_pool_ids: Iterable[str] = ()) -> Candidate:
    """Reduce a node record to what placement reads; the pools it reaches are known elsewhere and passed in."""
    scheduling = node.spec.scheduling
    return Candidate(
        id=node.id,
        hostname=node.hostname,
        phase=node.phase,
        schedulable=scheduling.schedulable,
        is_compute=node.spec.role.compute,
        capacity=node.capacity,
        allocated=node.allocated,
        taints=tuple(scheduling.taints),
        labels=node.labels,
        storage_pool_ids=frozenset(storage_pool_ids),
    )


@dataclass(frozen=True, slots=True)
class Toleration:
    """Permission to run on a node in spite of its taints of this key; `value` None means whatever the value."""

    key: str
    value: str | None = None


@dataclass(frozen=True)
class PlacementRequest:
    """One VM that needs a node.

    `affinity_nodes` and `anti_affinity_nodes` are the ids of the nodes on which the VMs named by the policy are now.
    `vm_id` lets later requests of the same batch keep near to this one, or away from it. `pinned_node_id`, when set,
    is the only node allowed. Not slotted: the sets made from the policy are worked out once and kept.

    Raises:
        ValueError: a size is negative, which would let a node be filled above its capacity.
    """

    vcpus: int
    memory_bytes: int
    policy: PlacementPolicy = field(default_factory=PlacementPolicy)
    storage_pool_ids: frozenset[str] = frozenset()
    tolerations: tuple[Toleration, ...] = ()
    pinned_node_id: str = ""
    affinity_nodes: frozenset[str] = frozenset()
    anti_affinity_nodes: frozenset[str] = frozenset()
    vm_id: str = ""

    def __post_init__(self) -> None:
        if self.vcpus < 0 or self.memory_bytes < 0:
            raise ValueError(f"cannot place {self.vcpus} vCPUs and {self.memory_bytes} bytes: sizes begin at 0")

    @property
    def size(self) -> Capacity:
        """What to claim on the node that is chosen."""
        return Capacity(self.vcpus, self.memory_bytes)

    @cached_property
    def preferred_nodes(self) -> frozenset[str]:
        """Ids and host names the VM would rather run on."""
        return frozenset(self.policy.preferred_nodes)

    @cached_property
    def required_nodes(self) -> frozenset[str]:
        """Ids and host names of the only nodes allowed; empty allows all."""
        return frozenset(self.policy.required_nodes)

    @cached_property
    def excluded_nodes(self) -> frozenset[str]:
        """Ids and host names of nodes not allowed."""
        return frozenset(self.policy.excluded_nodes)

    @cached_property
    def required_labels(self) -> Mapping[str, str]:
        """Labels the node must have, each with exactly that value."""
        return dict(self.policy.required_labels)

    @cached_property
    def wants_company(self) -> bool:
        """Whether the VM must run beside others."""
        return bool(self.affinity_nodes) or len(self.policy.affinity_vms) > 0

    def tolerates(self, taint: Taint) -> bool:
        """Whether the VM may run in spite of the taint."""
        return any(
            toleration.key == taint.key and toleration.value in (None, taint.value) for toleration in self.tolerations
        )


def request_for(
    spec: VmSpec, *, vm_id: str, node_of_vm: Mapping[str, str], pinned_node_id: str = ""
) -> PlacementRequest:
    """Build the request that places a VM of this spec.

    `node_of_vm` must have the node id of every placed VM that the spec's affinity lists name; a VM it does not have
    counts as placed nowhere. The spec's policy is kept by reference and must not be changed until the plan is made.
    """
    return PlacementRequest(
        vcpus=vcpu_count(spec.cpu),
        memory_bytes=spec.memory.size_mib * BYTES_PER_MIB,
        policy=spec.placement,
        storage_pool_ids=frozenset(disk.storage_pool_id for disk in spec.disks if disk.storage_pool_id),
        pinned_node_id=pinned_node_id,
        affinity_nodes=_nodes_of(spec.placement.affinity_vms, node_of_vm),
        anti_affinity_nodes=_nodes_of(spec.placement.anti_affinity_vms, node_of_vm),
        vm_id=vm_id,
    )


def with_placed(request: PlacementRequest, node_of_vm: Mapping[str, str]) -> PlacementRequest:
    """Return the request knowing also where these VMs, placed a moment ago, will run."""
    beside = _nodes_of(request.policy.affinity_vms, node_of_vm)
    apart = _nodes_of(request.policy.anti_affinity_vms, node_of_vm)
    if not beside and not apart:
        return request
    return replace(
        request,
        affinity_nodes=request.affinity_nodes | beside,
        anti_affinity_nodes=request.anti_affinity_nodes | apart,
    )


def _nodes_of(vm_ids: Iterable[str], node_of_vm: Mapping[str, str]) -> frozenset[str]:
    return frozenset(node_of_vm[vm_id] for vm_id in vm_ids if vm_id in node_of_vm)
