"""What a placement decision sees: nodes and requests, reduced to the facts that filters and scores read.

Taking the facts out once keeps the inner loop away from protobuf messages, whose every field read costs several times
that of a plain attribute, and makes a decision depend on nothing that could change while it is made.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from controlplane.domain.node import Capacity, Node
from controlplane.domain.vm import BYTES_PER_MIB, vcpu_count
from controlplane.scheduler.inventory import (
    NO_NEEDS,
    NOTHING_TAKEN,
    UNTOLD,
    Inventory,
    Needs,
    Taken,
    inventory_of,
    needs_of,
    taken_by,
)
from controlplane.scheduler.sight import Sight
from limiquantix.compute.v1.node_pb2 import NodeStatus, Taint
from limiquantix.compute.v1.vm_pb2 import PlacementPolicy, VmSpec
from limiquantix.compute.v1.vm_pb2 import Toleration as TolerationRule

_NOTHING = Capacity(0, 0)


@dataclass(frozen=True)
class Candidate:
    """One node as placement sees it.

    `schedulable` is False for a cordoned node. `allocated` may exceed `capacity` after an operator lowered an
    over-commit ratio; nothing more is placed there until it fits again. `taken` is what placed VMs hold of the
    inventory. Ids are unique within a snapshot. Not slotted: a batch makes a new one for every VM, and copying a
    dictionary is several times as fast as calling a constructor of so many fields.
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
    inventory: Inventory = UNTOLD
    taken: Taken = NOTHING_TAKEN

    def after(self, request: PlacementRequest) -> Candidate:
        """Return this node with the request's claim added."""
        allocated = Capacity(self.allocated.vcpus + request.vcpus, self.allocated.memory_bytes + request.memory_bytes)
        changed = self.with_allocated(allocated)
        if not request.needs.is_countable:
            return changed
        return changed.with_taken(self.taken.with_needs(request.needs, self.inventory, request.vm_id))

    def knowing(self, needs: Mapping[str, Needs]) -> Candidate:
        """Return this node with taken of its inventory what VMs with these needs, by id, hold."""
        taken = taken_by(needs, self.inventory)
        return self if taken == self.taken else self.with_taken(taken)

    def with_allocated(self, allocated: Capacity) -> Candidate:
        """Return this node with that much claimed in all."""
        return self._with("allocated", allocated)

    def with_taken(self, taken: Taken) -> Candidate:
        """Return this node with that taken of its inventory in all."""
        return self._with("taken", taken)

    def _with(self, name: str, value: object) -> Candidate:
        changed = object.__new__(Candidate)
        changed.__dict__.update(self.__dict__)
        changed.__dict__[name] = value
        return changed


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
        inventory=inventory_of(node.spec),
    )


_EFFECT_OF: Mapping[int, int] = {
    TolerationRule.NO_SCHEDULE: Taint.NO_SCHEDULE,
    TolerationRule.PREFER_NO_SCHEDULE: Taint.PREFER_NO_SCHEDULE,
    TolerationRule.NO_EXECUTE: Taint.NO_EXECUTE,
}


@dataclass(frozen=True, slots=True)
class Toleration:
    """Permission to run on a node in spite of its taints of this key; "" is every taint.

    `value` None means whatever the value, `effect` None whatever the effect.
    """

    key: str
    value: str | None = None
    effect: int | None = None

    def covers(self, taint: Taint) -> bool:
        """Whether the taint is one of those."""
        return self.key in ("", taint.key) and self.value in (None, taint.value) and self.effect in (None, taint.effect)


def tolerations_of(policy: PlacementPolicy) -> tuple[Toleration, ...]:
    """Read which taints a policy puts up with."""
    return tuple(
        Toleration(rule.key, rule.value if rule.HasField("value") else None, _EFFECT_OF.get(rule.effect))
        for rule in policy.tolerations
    )


@dataclass(frozen=True)
class PlacementRequest:
    """One VM that needs a node.

    `affinity_nodes` and `anti_affinity_nodes` are the ids of the nodes on which the VMs named by the policy are now.
    `vm_id` lets later requests of the same batch keep near to this one, or away from it. `pinned_node_id`, when set,
    is the only node allowed. `labels` and `project_id` are the VM's own: rules of others may mean it. `sight` is what
    the rules of this VM and of others come to, worked out from the VMs there are. Not slotted: the sets made from the
    policy are worked out once and kept.

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
    labels: Mapping[str, str] = field(default_factory=dict)
    project_id: str = ""
    needs: Needs = NO_NEEDS
    sight: Sight | None = None

    def __post_init__(self) -> None:
        if self.vcpus < 0 or self.memory_bytes < 0:
            raise ValueError(f"cannot place {self.vcpus} vCPUs and {self.memory_bytes} bytes: sizes begin at 0")

    def seeing(self, sight: Sight | None) -> PlacementRequest:
        """Return the request knowing what other VMs mean for it. Not by `replace`, which is slow, and many need it."""
        changed = object.__new__(PlacementRequest)
        changed.__dict__.update(self.__dict__)
        changed.__dict__["sight"] = sight
        return changed

    @property
    def anew(self) -> PlacementRequest:
        """The request without what was found out for an earlier decision: for a view, which knows where VMs are now."""
        return replace(self, pinned_node_id="", affinity_nodes=frozenset(), anti_affinity_nodes=frozenset(), sight=None)

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

    @cached_property
    def has_policy(self) -> bool:
        """Whether the policy says anything; most VMs have an empty one, and reading that field by field is slow."""
        return self.policy.ByteSize() > 0

    @cached_property
    def all_tolerations(self) -> tuple[Toleration, ...]:
        """Tolerations of the policy and of the caller."""
        return (*self.tolerations, *tolerations_of(self.policy)) if self.has_policy else self.tolerations

    @cached_property
    def static_key(self) -> Hashable:
        """Equal for requests of which each node thinks alike, apart from room, other VMs and lists of node names."""
        needs = None if self.needs is NO_NEEDS else self.needs.of_node
        if not self.has_policy:
            return (self.storage_pool_ids, self.tolerations, needs)
        labels = tuple(sorted(self.policy.required_labels.items()))
        rules = tuple(rule.SerializeToString(deterministic=True) for rule in self.policy.node_rules)
        return (self.storage_pool_ids, self.all_tolerations, needs, labels, rules)

    def tolerates(self, taint: Taint) -> bool:
        """Whether the VM may run in spite of the taint."""
        return any(toleration.covers(taint) for toleration in self.all_tolerations)


def request_for(
    spec: VmSpec,
    *,
    vm_id: str,
    node_of_vm: Mapping[str, str],
    pinned_node_id: str = "",
    labels: Mapping[str, str] | None = None,
    project_id: str = "",
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
        labels=dict(labels or {}),
        project_id=project_id,
        needs=needs_of(spec),
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
