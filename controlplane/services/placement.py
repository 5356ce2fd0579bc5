"""Carry out a placement decision: claim the room and insert the VM in the transaction that made the decision."""

from __future__ import annotations

from dataclasses import replace

from controlplane.domain import errors
from controlplane.domain.event import Event, EventType
from controlplane.domain.node import Capacity
from controlplane.domain.vm import Vm
from controlplane.scheduler.plan import Placement, SchedulerConfig, Unplaced, plan
from controlplane.scheduler.snapshot import candidate_of, request_for
from controlplane.state.interface import Transaction

MAX_DECISIONS = 3
"""Fresh snapshots taken when every ranked node lost its room to another control plane meanwhile."""


async def place_vm(tx: Transaction, draft: Vm, config: SchedulerConfig, pinned_node_id: str = "") -> Vm:
    """Choose a node, claim the VM's size on it and insert the VM there.

    Args:
        draft: the VM without a node.
        pinned_node_id: the only node allowed; "" leaves the choice to the scheduler.

    Returns:
        The VM as inserted, with its node.

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
    for _ in range(MAX_DECISIONS):
        snapshot = [candidate_of(node) for node in await tx.all_nodes()]
        (outcome,) = plan(snapshot, [request], config).outcomes
        if isinstance(outcome, Unplaced):
            raise errors.no_node_fits(outcome.summary, outcome.per_node)
        node_id = await _claim_first(tx, outcome, request.size)
        if node_id is not None:
            placed = replace(draft, node_id=node_id)
            facts = {"node_id": node_id}
            await tx.insert_vm(
                placed,
                Event(EventType.VM_CREATED, f"VM {draft.name} was asked for", actor=draft.created_by, metadata=facts),
            )
            return placed
    raise errors.no_node_fits("no node fits: other callers took the room on every node that had some", ())


async def _claim_first(tx: Transaction, placement: Placement, size: Capacity) -> str | None:
    for ranked in placement.ranked:
        if await tx.claim(ranked.node_id, size):
            return ranked.node_id
    return None
