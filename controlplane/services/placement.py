"""Carry out a placement decision: claim the room and insert the VM in the transaction that made the decision.

All that placement reads of a node, but for what is claimed there, changes together with the node's version. So a
process reads it once, and then, for each decision, only versions and claims: of 500 nodes that is most of the cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from controlplane.domain import errors
from controlplane.domain.event import Event, EventType
from controlplane.domain.node import Capacity, Node, NodeClaims
from controlplane.domain.vm import Vm
from controlplane.scheduler.plan import Placement, SchedulerConfig, Unplaced, plan
from controlplane.scheduler.snapshot import Candidate, candidate_of, request_for
from controlplane.state.interface import Transaction

MAX_DECISIONS = 3
"""Fresh snapshots taken when every ranked node lost its room to another control plane meanwhile."""


@dataclass(frozen=True, slots=True)
class SeenNode:
    """A node as a transaction read it, and what placement makes of it."""

    node: Node
    candidate: Candidate

    def is_as_in(self, claims: NodeClaims) -> bool:
        """Whether nothing has changed of the node but, perhaps, what is claimed there."""
        return self.node.version == claims.version

    def with_claims(self, claims: NodeClaims) -> SeenNode:
        """Return it with what is claimed there now."""
        allocated = self.candidate.allocated
        if allocated.vcpus == claims.vcpus and allocated.memory_bytes == claims.memory_bytes:
            return self
        return replace(self, candidate=replace(self.candidate, allocated=Capacity(claims.vcpus, claims.memory_bytes)))


SeenNodes = Mapping[str, SeenNode]
"""By id; never changed once it is made, since transactions read it in other threads."""


@dataclass(slots=True)
class NodeMemory:
    """What this process has seen of the nodes. Only what a transaction read that was then committed is kept."""

    seen: SeenNodes = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Placed:
    """A VM as inserted, its node, and what was read of the nodes: to be kept once the transaction is committed."""

    vm: Vm
    node: Node
    seen: SeenNodes


async def place_vm(
    tx: Transaction, draft: Vm, config: SchedulerConfig, memory: NodeMemory, pinned_node_id: str = ""
) -> Placed:
    """Choose a node, claim the VM's size on it and insert the VM there.

    Args:
        draft: the VM without a node.
        memory: is read only.
        pinned_node_id: the only node allowed; "" leaves the choice to the scheduler.

    Raises:
        AlreadyExists: the project has a VM of that name.
        NotFound: the pinned node does not exist.
        ResourceExhausted: no node fits; the error has one reason per node.
    """
    if pinned_node_id and await tx.get_node(pinned_node_id) is None:
        raise errors.node_not_found(pinned_node_id)
    policy = draft.spec.placement
    node_of_vm = await tx.nodes_of_vms({*policy.affinity_vms, *policy.anti_affinity_vms})
    request = request_for(draft.spec, vm_id=draft.id, node_of_vm=node_of_vm, pinned_node_id=pinned_node_id)
    seen = memory.seen
    for _ in range(MAX_DECISIONS):
        seen = await _look(tx, seen)
        (outcome,) = plan([each.candidate for each in seen.values()], [request], config).outcomes
        if isinstance(outcome, Unplaced):
            raise errors.no_node_fits(outcome.summary, outcome.per_node)
        node_id = await _claim_first(tx, outcome, request.size)
        if node_id is not None:
            placed = replace(draft, node_id=node_id)
            said = f"VM {draft.name} was asked for"
            await tx.insert_vm(placed, Event(EventType.VM_CREATED, said, actor=draft.created_by))
            return Placed(placed, seen[node_id].node, seen)
    raise errors.no_node_fits("no node fits: other callers took the room on every node that had some", ())


async def _look(tx: Transaction, known: SeenNodes) -> SeenNodes:
    """See all nodes as they are now, reading of those that are known only what is claimed there."""
    seen: dict[str, SeenNode] = {}
    unknown: list[str] = []
    for claims in await tx.node_claims():
        node = known.get(claims.node_id)
        if node is not None and node.is_as_in(claims):
            seen[claims.node_id] = node.with_claims(claims)
        else:
            unknown.append(claims.node_id)
    if unknown:
        seen.update({node.id: SeenNode(node, candidate_of(node)) for node in await tx.nodes(unknown)})
    return seen


async def _claim_first(tx: Transaction, placement: Placement, size: Capacity) -> str | None:
    for ranked in placement.ranked:
        if await tx.claim(ranked.node_id, size):
            return ranked.node_id
    return None
