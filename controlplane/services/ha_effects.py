"""Carrying out what high availability decided: each thing may be done twice, and dying over any of them is fine.

What concerns a fence is written under the leader's epoch, held until the transaction ends, so that nothing is written
by a process that another one has replaced. The database is written before the coordination service when a fence is
opened, and after it never: a mark that is left there means nothing once the database shows its fence as ended.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

import structlog

from controlplane.coordination.interface import CoordinationAway, Coordinator, RevocationMark
from controlplane.domain.event import Event, EventType, Severity
from controlplane.domain.fencing import Counters, Fence, FenceProof, FenceState
from controlplane.domain.node import Phase
from controlplane.domain.operation import Json
from controlplane.ha.model import (
    EndFence,
    OpenAFence,
    ProofMethod,
    ProveFence,
    Restart,
    WithdrawFence,
)
from controlplane.operations.desk import Caller, OperationDesk, Order
from controlplane.services.ha_observe import FAILOVER_KIND, Picture
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1.ha_service_pb2 import FenceMethod

_log = structlog.get_logger(__name__)

HA = Caller(principal="system:ha", waits=False)


@dataclass(frozen=True, slots=True)
class Term:
    """The time for which one process decides."""

    epoch: int
    leader_id: str
    is_elected: Callable[[], bool]
    """As far as the process knows; asked just before what cannot be taken back."""


@dataclass(slots=True)
class FenceMarks:
    """The published side of fences, kept level with the recorded one.

    Attributes:
        published: tokens of the fences that this process published in its term, by their ids.
    """

    coordinator: Coordinator
    published: dict[str, int] = field(default_factory=dict)

    async def publish(self, fences: Mapping[str, Fence]) -> None:
        """Publish those that are not; from then on the wait for the lease counts.

        Raises:
            CoordinationAway: some may not be published.
        """
        current = {fence.id for fence in fences.values()}
        self.published = {each: token for each, token in self.published.items() if each in current}
        for fence in fences.values():
            if fence.id not in self.published:
                await self.coordinator.publish_revocation(RevocationMark(fence.node_id, fence.token))
                self.published[fence.id] = fence.token

    async def clear(self, fence: Fence) -> None:
        """Take a mark back; if that fails, it is swept later."""
        try:
            await self.coordinator.clear_revocation(RevocationMark(fence.node_id, fence.token))
        except CoordinationAway as error:
            _log.warning("revocation_not_taken_back", node_id=fence.node_id, message=str(error))

    async def sweep(self, picture: Picture) -> Mapping[str, int]:
        """Take back marks of fences that were over when the picture was read.

        Returns:
            Tokens of marks, by node, that neither this process published nor the picture has a fence of: either it is
            recorded since, or the database was restored from an older backup.

        Raises:
            CoordinationAway: the service does not answer.
        """
        unknown, own = {}, set(self.published.values())
        for node_id, token in (await self.coordinator.revocations()).items():
            node = picture.nodes.get(node_id)
            if node_id in picture.fences or token in own:
                continue
            if node is not None and node.node.fence_token < token:
                unknown[node_id] = token
                continue
            await self.coordinator.clear_revocation(RevocationMark(node_id, token))
            _log.info("stale_revocation_swept", node_id=node_id, token=token)
        return unknown


@dataclass(slots=True)
class Effects:
    """Writes what was decided. Every method raises `ApiError`; Aborted with STALE_EPOCH means that the term is over."""

    store: Store
    desk: OperationDesk
    marks: FenceMarks
    now: Callable[[], datetime]

    async def sweep(self, picture: Picture) -> None:
        """Take back marks that mean nothing any more.

        A fence is recorded before it is published. So a mark that the database, read after it, knows nothing of is of a
        time that the database lost; it counts on from there, and the next sweep takes the mark back.

        Raises:
            CoordinationAway: the service does not answer.
        """
        if unknown := await self.marks.sweep(picture):
            raised = await self.store.run(lambda tx: tx.raise_counters(Counters(tokens=unknown)))
            if raised.is_any:
                _log.critical("database_knew_less_than_marks", node_ids=sorted(raised.tokens))

    async def mark_silent(self, term: Term, node_id: str, reason: str) -> None:
        """Have no VM placed on a node that is not heard."""

        async def write(tx: Transaction) -> bool:
            await tx.require_epoch(term.epoch)
            node = await tx.get_node(node_id)
            if node is None or node.phase != Phase.READY:
                return False
            silent = replace(node, phase=Phase.NOT_READY, error_message=reason, updated_at=self.now())
            said = f"node {node.hostname} sends no heartbeats: {reason}"
            await tx.update_node(silent, Event(EventType.NODE_SILENT, said, Severity.WARNING))
            return True

        if await self.store.run(write):
            _log.warning("node_silent", node_id=node_id, reason=reason)

    async def open(self, term: Term, effect: OpenAFence) -> None:
        """Record the intent to fence a node. It is published in the next round at the latest, before it counts."""

        async def write(tx: Transaction) -> Fence | None:
            await tx.require_epoch(term.epoch)
            if any(fence.node_id == effect.node_id for fence in await tx.current_fences()):
                return None
            if await tx.get_node(effect.node_id) is None:
                return None
            intent = Fence(
                id=str(uuid.uuid4()),
                node_id=effect.node_id,
                token=0,
                epoch=term.epoch,
                state=FenceState.OPEN,
                reason=effect.reason,
                opened_at=self.now(),
            )
            return await tx.open_fence(intent)

        fence = await self.store.run(write)
        if fence is not None:
            _log.warning("fence_opened", node_id=fence.node_id, fence_id=fence.id, token=fence.token, why=fence.reason)
            await self._publish(fence)

    async def _publish(self, fence: Fence) -> None:
        """Publish at once what the next round would; the service being away is that round's business."""
        try:
            await self.marks.coordinator.publish_revocation(RevocationMark(fence.node_id, fence.token))
        except CoordinationAway as error:
            _log.warning("revocation_not_published", node_id=fence.node_id, message=str(error))
        else:
            self.marks.published[fence.id] = fence.token

    async def withdraw(self, term: Term, effect: WithdrawFence) -> None:
        """End a fence that is not proven."""

        async def write(tx: Transaction) -> Fence | None:
            fence = await self._held(tx, term, effect.fence_id, FenceState.OPEN)
            if fence is None:
                return None
            done = await tx.update_fence(replace(fence, state=FenceState.WITHDRAWN, ended_at=self.now()))
            await self._tell(tx, done, EventType.NODE_FENCE_WITHDRAWN, f"is not fenced: {effect.reason}")
            return done

        if (fence := await self.store.run(write)) is not None:
            _log.info("fence_withdrawn", node_id=fence.node_id, fence_id=fence.id, why=effect.reason)
            await self.marks.clear(fence)

    async def prove(self, term: Term, effect: ProveFence) -> None:
        """Record a proof, unless somebody heard the node meanwhile."""
        if not term.is_elected():
            return
        method = FenceMethod.Name(FenceMethod.Value(f"FENCE_METHOD_{effect.method.name}"))

        async def write(tx: Transaction) -> Fence | None:
            fence = await self._held(tx, term, effect.fence_id, FenceState.OPEN)
            if fence is None or (fence.heard_by and not _stands(fence, effect.method)):
                return None
            if fence.heard_by:
                fence = await tx.update_fence(replace(fence, heard_by=""))
            proof = FenceProof(FenceMethod.Value(method), effect.evidence, term.leader_id, term.epoch, self.now())
            done = await tx.update_fence(replace(fence, state=FenceState.PROVEN, proof=proof))
            said = f"is fenced: {effect.evidence}"
            await self._tell(tx, done, EventType.NODE_FENCED, said, Severity.CRITICAL, method=method)
            return done

        if (fence := await self.store.run(write)) is not None:
            _log.warning("fence_proven", node_id=fence.node_id, fence_id=fence.id, method=method, why=effect.evidence)

    async def end(self, term: Term, effect: EndFence) -> None:
        """Give a node back. Its next heartbeat makes it READY."""

        async def write(tx: Transaction) -> Fence | None:
            fence = await self._held(tx, term, effect.fence_id, FenceState.PROVEN)
            if fence is None:
                return None
            done = await tx.update_fence(replace(fence, state=FenceState.ENDED, ended_at=self.now()))
            await self._tell(tx, done, EventType.NODE_FENCE_ENDED, "is in use again")
            return done

        if (fence := await self.store.run(write)) is not None:
            _log.info("fence_ended", node_id=fence.node_id, fence_id=fence.id)
            await self.marks.clear(fence)

    async def restart(self, term: Term, effect: Restart) -> None:
        """Ask for a VM to be started elsewhere; asked for twice it happens once.

        The epoch is a part of the request's id: attempts are counted by each leader anew.
        """
        request_id = f"failover-{effect.vm_id}-{effect.fence_id}-{term.epoch}-{effect.attempt}"
        parameters: Json = {
            "fence_id": effect.fence_id,
            "epoch": term.epoch,
            "from_node_id": effect.from_node_id,
            "target_node_id": effect.to_node_id,
        }
        order = Order(FAILOVER_KIND, effect.vm_id, parameters=parameters, preempts=True)
        operation = await self.desk.submit(order, HA.with_request(request_id, request_id))
        _log.info("failover_asked_for", vm_id=effect.vm_id, to=effect.to_node_id, operation_id=operation.id)

    async def _held(self, tx: Transaction, term: Term, fence_id: str, state: int) -> Fence | None:
        """Hold the epoch and a fence that is in a state; None if it no longer is."""
        await tx.require_epoch(term.epoch)
        fence = await tx.get_fence(fence_id)
        return fence if fence is not None and fence.state == state else None

    async def _tell(
        self,
        tx: Transaction,
        fence: Fence,
        kind: EventType,
        said: str,
        severity: Severity.ValueType = Severity.INFO,
        **facts: str,
    ) -> None:
        node = await tx.get_node(fence.node_id)
        if node is not None:
            facts |= {"fence_id": fence.id, "token": str(fence.token)}
            event = Event(kind, f"node {node.hostname} {said}", severity, HA.principal, facts)
            await tx.log_node_event(node, event)


def _stands(fence: Fence, method: ProofMethod) -> bool:
    """Whether a proof holds although the node was heard: a person had it fenced, well or not.

    Then the objection says nothing new, and no lease was granted since.
    """
    return fence.is_by_operator and method in (ProofMethod.POWER_OFF, ProofMethod.LEASE_EXPIRED)
