"""The life of nodes as operators order it: cordon, enable, drain, decommission, taints, labels, role and scheduling.

What each order does is in `controlplane.domain.node_life`. All are idempotent: one that changes nothing writes nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

import structlog

from controlplane.domain import documents, errors, node_life
from controlplane.domain.event import Event, EventType, Severity
from controlplane.domain.node import CapacityPolicy, Node
from controlplane.domain.operation import OperationState
from controlplane.domain.vm import Vm, lost, without_node
from controlplane.operations.desk import ANYBODY, NODE_RESOURCE, Caller, OperationDesk, Order
from controlplane.operations.node_drain import DrainNode, drain_parameters
from controlplane.scheduler.outcomes import SchedulerConfig
from controlplane.services.room_rules import require_room_after_drain
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1 import node_service_pb2 as api
from limiquantix.compute.v1.node_pb2 import Node as NodeMessage
from limiquantix.compute.v1.node_pb2 import Taint
from limiquantix.errors import Aborted, Reason

_log = structlog.get_logger(__name__)

_MAX_TRIES = 5
"""Registration, heartbeats that change the phase and other operators write the same row."""

Change = Callable[[Node, datetime], Node]
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class NodeLifeService:
    """The use cases of a node's life.

    `patience` is how long a node may be silent before it counts as not ready. `scheduler` says what room is kept.
    """

    store: Store
    desk: OperationDesk
    policy: CapacityPolicy
    now: Callable[[], datetime]
    patience: timedelta = timedelta(seconds=90)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)

    async def update(self, request: api.UpdateNodeRequest, caller: Caller = ANYBODY) -> NodeMessage:
        """Change role or scheduling; what may be claimed follows.

        Raises:
            InvalidArgument: the mask names what cannot be changed, or a value cannot be.
        """
        paths = ", ".join(node_life.paths_of(request))
        return await self._changed(
            request.id,
            lambda node, now: node_life.updated(node, request, self.policy, now),
            lambda node: Event(
                EventType.NODE_UPDATED, f"{paths} of node {node.hostname} changed", actor=caller.principal
            ),
        )

    async def disable(self, request: api.DisableNodeRequest, caller: Caller = ANYBODY) -> NodeMessage:
        """Begin maintenance: no new VMs, those there go on."""
        why = f": {request.reason}" if request.reason else ""
        return await self._changed(
            request.id,
            lambda node, now: node_life.cordoned(node, request.reason, now),
            lambda node: Event(
                EventType.NODE_CORDONED, f"node {node.hostname} takes no new VMs{why}", actor=caller.principal
            ),
        )

    async def enable(self, node_id: str, caller: Caller = ANYBODY) -> NodeMessage:
        """End maintenance.

        Raises:
            FailedPrecondition: the node is being drained.
        """

        async def change(tx: Transaction) -> tuple[Node, Sequence[str]]:
            node = await _required(tx, node_id)
            now = self.now()
            heard_at = node.last_heartbeat_at or node.created_at
            changed = node_life.enabled(
                node, now, is_heard=now - heard_at <= self.patience, drain_id=await _drain_of(tx, node_id)
            )
            event = Event(EventType.NODE_ENABLED, f"node {node.hostname} takes VMs again", actor=caller.principal)
            return await _written(tx, node, changed, event)

        return documents.node(*await self._repeated(change))

    async def add_taint(self, request: api.AddTaintRequest, caller: Caller = ANYBODY) -> NodeMessage:
        """Add a taint, or replace the one of its key."""
        taint = request.taint
        text = f"{_words_of(taint)} on node"
        return await self._changed(
            request.node_id,
            lambda node, now: node_life.tainted(node, taint, now),
            lambda node: Event(EventType.NODE_TAINTED, f"taint {text} {node.hostname}", actor=caller.principal),
        )

    async def remove_taint(self, request: api.RemoveTaintRequest, caller: Caller = ANYBODY) -> NodeMessage:
        """Remove the taint of a key."""
        key = request.taint_key
        return await self._changed(
            request.node_id,
            lambda node, now: node_life.untainted(node, key, now),
            lambda node: Event(
                EventType.NODE_UNTAINTED, f"taint {key} removed from node {node.hostname}", actor=caller.principal
            ),
        )

    async def label(self, request: api.UpdateLabelsRequest, caller: Caller = ANYBODY) -> NodeMessage:
        """Add, replace and remove labels."""
        return await self._changed(
            request.node_id,
            lambda node, now: node_life.labelled(node, request.add_labels, request.remove_labels, now),
            lambda node: Event(
                EventType.NODE_UPDATED, f"labels of node {node.hostname} changed", actor=caller.principal
            ),
        )

    async def drain(self, request: api.DrainNodeRequest, caller: Caller = ANYBODY) -> api.DrainNodeResponse:
        """Have every VM moved to other nodes, and say what became of each. The node ends in maintenance.

        Raises:
            NotFound: there is no such node, or none that shall take the VMs.
            FailedPrecondition: the node shall take its own VMs; or, without `force`, there would be no room any more
                that is kept for VMs of nodes that fail.
        """
        order = Order(
            DrainNode.kind,
            request.id,
            resource_type=NODE_RESOURCE,
            parameters=drain_parameters(request.grace_period_sec, request.target_node_id, force=request.force),
        )
        if not request.force:  # asked again when it begins, so that two at once do not both take the room
            await self.store.read(
                lambda tx: require_room_after_drain(tx, request.id, request.target_node_id, self.scheduler)
            )
        if request.target_node_id:
            target = await self.store.read(lambda tx: _required(tx, request.target_node_id))
            if target.id == request.id:
                raise errors.drain_target_invalid(target.hostname)
        operation = await self.desk.submit(order, caller)
        if caller.waits or operation.has_ended:
            return await self.desk.answer(operation, api.DrainNodeResponse())
        return api.DrainNodeResponse(node=documents.node(*await self.store.read(lambda tx: _with_vms(tx, request.id))))

    async def decommission(self, request: api.DecommissionNodeRequest, caller: Caller = ANYBODY) -> None:
        """Forget a node. With `force` its VMs stay in the inventory, LOST and on no node.

        A host that still runs has to join anew, and is another node then; its VMs are found there. Until it does, no
        control plane takes its certificates, and as soon as other hosts hear of it, neither do their hypervisors.

        Raises:
            FailedPrecondition: VMs are placed on it, or on their way from or to it, and `force` is not set.
        """
        lost_count = await self._repeated(lambda tx: self._forget(tx, request, caller))
        _log.warning("node_decommissioned", node_id=request.id, lost_vm_count=lost_count)

    async def _forget(self, tx: Transaction, request: api.DecommissionNodeRequest, caller: Caller) -> int:
        # First, so that whoever places a VM here meanwhile waits, and then finds no node to claim on.
        if await tx.next_generation(request.id) is None:
            raise errors.node_not_found(request.id)
        node = await _required(tx, request.id)
        vms = sorted(await tx.vms_on_node(node.id), key=lambda vm: vm.id)
        if not request.force:
            if vms:
                raise errors.node_has_vms(node, sorted(vm.name for vm in vms))
            moving = [each for each in await tx.migrations_of_node(node.id) if not each.is_settled]
            if moving:
                raise errors.node_is_target(node, len(moving))
            if drain_id := await _drain_of(tx, node.id):
                hint = f"cancel operation {drain_id}, or wait for it, or set force"
                raise errors.node_state_forbids(node, "decommission", "DRAINING", hint)
        for vm in vms:
            await self._lose(tx, vm, node, caller)
        text = f"node {node.hostname} was decommissioned" + (f"; {len(vms)} VMs are LOST with it" if vms else "")
        severity = Severity.WARNING if vms else Severity.INFO
        await tx.delete_node(node.id, Event(EventType.NODE_REMOVED, text, severity, caller.principal))
        await tx.remove_machine(node.id, self.now())
        return len(vms)

    async def _lose(self, tx: Transaction, vm: Vm, node: Node, caller: Caller) -> None:
        """Mark a VM as gone with its node; one that was only shown goes from the inventory too."""
        if not vm.is_managed:
            text = f"VM {vm.name}, which was only shown, is gone with its node {node.hostname}"
            await tx.delete_vm(vm.id, Event(EventType.VM_DELETED, text, actor=caller.principal))
            return
        reason = f"its node {node.hostname} was decommissioned by force"
        event = Event(EventType.VM_LOST, f"VM {vm.name} is lost: {reason}", Severity.CRITICAL, caller.principal)
        await tx.update_vm(without_node(lost(vm, reason, self.now())), event)

    async def _changed(self, node_id: str, change: Change, event: Callable[[Node], Event]) -> NodeMessage:
        async def work(tx: Transaction) -> tuple[Node, Sequence[str]]:
            node = await _required(tx, node_id)
            return await _written(tx, node, change(node, self.now()), event(node))

        return documents.node(*await self._repeated(work))

    async def _repeated(self, work: Callable[[Transaction], Awaitable[ResultT]]) -> ResultT:
        """Do the work, again if the row was changed by others between reading and writing."""
        for _ in range(_MAX_TRIES - 1):
            try:
                return await self.store.run(work)
            except Aborted as error:
                if error.reason != Reason.CONCURRENT_CHANGE:
                    raise
        return await self.store.run(work)


async def _written(tx: Transaction, before: Node, after: Node, event: Event) -> tuple[Node, Sequence[str]]:
    """Write a node unless it is the same as before; returns it with the VMs on it."""
    node = before if after is before else await tx.update_node(after, event)
    return node, (await tx.vm_ids_by_node([node.id])).get(node.id, ())


async def _with_vms(tx: Transaction, node_id: str) -> tuple[Node, Sequence[str]]:
    node = await _required(tx, node_id)
    return node, (await tx.vm_ids_by_node([node_id])).get(node_id, ())


async def _required(tx: Transaction, node_id: str) -> Node:
    node = await tx.get_node(node_id)
    if node is None:
        raise errors.node_not_found(node_id)
    return node


async def _drain_of(tx: Transaction, node_id: str) -> str:
    """Return the id of the operation that drains a node; "" if none does, or one only waits."""
    active = (each for each in await tx.queue_of(node_id) if each.state != OperationState.QUEUED)
    return next((each.id for each in active if each.kind == DrainNode.kind), "")


def _words_of(taint: Taint) -> str:
    value = f"={taint.value}" if taint.value else ""
    return f"{taint.key}{value} ({Taint.Effect.Name(taint.effect)})"
