"""Carry recommendations out: start their migrations in order, a few at once, and note what became of them.

Nothing is kept in memory. Which are due and which have begun is in the database, so another process, or the same
after a restart, goes on. A migration is asked for under a request id made of the recommendation's id: asked for
twice, it happens once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

import structlog

from controlplane.domain.migration import MigrationWish
from controlplane.domain.node import Node, Phase
from controlplane.domain.operation import Operation, OperationState
from controlplane.domain.recommendation import OPEN_STATUSES, Recommendation, Status
from controlplane.domain.vm import PowerState, Vm
from controlplane.operations.desk import Caller
from controlplane.services.balancing import BALANCER, BalancingService, closed, other_half, required
from controlplane.state.interface import Store, Transaction
from limiquantix.errors import Aborted, ApiError, Unavailable

_log = structlog.get_logger(__name__)


class Migrations(Protocol):
    """Where migrations are ordered."""

    async def start(self, vm_id: str, wish: MigrationWish, caller: Caller) -> Operation:
        """Order one; the same request id orders it once.

        Raises:
            ApiError: it is not possible, or the database does not answer.
        """
        ...


class Outcomes(Protocol):
    """Where the end of operations is waited for."""

    async def ended(self, operation_id: str, limit_s: float | None = None) -> Operation:
        """Wait until an operation has ended."""
        ...


@dataclass(frozen=True, slots=True)
class _Check:
    """Whether a move can begin: at once, not before others have ended, or never any more, and why.

    `must_follow` tells that the other half of its exchange comes first, which nobody can do without.
    """

    operation: Operation | None = None
    has_disks: bool = True
    must_wait: bool = False
    must_follow: bool = False
    over: str = ""


class BalancingMoves:
    """Carries out what is due."""

    def __init__(
        self,
        store: Store,
        service: BalancingService,
        migrations: Migrations,
        outcomes: Outcomes,
        now: Callable[[], datetime],
        *,
        copies_disks: bool = False,
    ) -> None:
        self._store = store
        self._service = service
        self._migrations = migrations
        self._outcomes = outcomes
        self._now = now
        self._copies_disks = copies_disks

    async def apply(self, recommendation_id: str, by: str, *, waits: bool = True) -> Recommendation:
        """Carry one out now, and return it when its VM has moved, or could not be; at once for who does not wait.

        Two that are an exchange are carried out both, one after the other.

        Raises:
            NotFound: there is none of that id.
            FailedPrecondition: it is over.
            ApiError: the database does not answer, or the migration cannot be asked for just now.
        """
        found = await self._service.approve(recommendation_id, by, is_due=True)
        if found.status == Status.APPLIED:
            return found
        for each in await self._store.read(lambda tx: _halves(tx, found)):
            if (await self._carried_out(each, waits=waits)).status == Status.APPROVED:
                break  # what follows it follows later
        return await self._service.get(recommendation_id)

    async def _carried_out(self, wanted: Recommendation, *, waits: bool) -> Recommendation:
        if wanted.status == Status.APPROVED and not wanted.operation_id:
            wanted = await self._begin(wanted, (), waits=False)
        if waits and wanted.operation_id and wanted.status == Status.APPROVED:
            await self._outcomes.ended(wanted.operation_id)
            wanted = await self._settle(wanted)
        return wanted

    async def advance(self) -> None:
        """Note what has ended, begin what may, and let go of what is too old.

        Raises:
            Unavailable: the database does not answer.
        """
        await self._let_go()
        due = [each for each in await self._store.read(lambda tx: tx.open_recommendations()) if each.is_due]
        running: list[Recommendation] = []
        for each in due:
            if each.operation_id:
                settled = await self._settle(each)
                if settled.status == Status.APPROVED:
                    running.append(settled)
        for each in due:
            if len(running) >= self._service.config.max_concurrent_moves:
                return
            if each.operation_id:
                continue
            try:
                begun = await self._begin(each, running)
            except (Aborted, Unavailable) as error:
                _log.info("move_not_begun_yet", recommendation_id=each.id, reason=error.reason)
                return
            if begun.status == Status.APPROVED:
                if not begun.operation_id:
                    return  # it waits for room, and those behind it were planned to come after it
                running.append(begun)

    async def _begin(
        self, recommendation: Recommendation, running: Sequence[Recommendation], *, waits: bool = True
    ) -> Recommendation:
        check = await self._store.read(lambda tx: self._checked(tx, recommendation, running))
        if check.over:
            return await self._close(recommendation, Status.EXPIRED, check.over)
        if check.must_follow or (check.must_wait and waits):
            return recommendation
        operation = check.operation
        if operation is None:
            wish = MigrationWish(
                target_node_id=recommendation.target_node_id,
                shared_storage_only=check.has_disks and not self._copies_disks,
            )
            caller = Caller(
                principal=BALANCER,
                request_id=_request_id(recommendation),
                request_digest=recommendation.id,
                waits=False,
            )
            try:
                operation = await self._migrations.start(recommendation.vm_id, wish, caller)
            except (Aborted, Unavailable):
                raise
            except ApiError as error:
                return await self._close(recommendation, Status.EXPIRED, error.message)
        begun = replace(recommendation, operation_id=operation.id)
        _log.info("move_begun", recommendation_id=begun.id, vm_id=begun.vm_id, operation_id=operation.id)
        return await self._write(begun)

    async def _checked(self, tx: Transaction, wanted: Recommendation, running: Sequence[Recommendation]) -> _Check:
        """See whether it still makes sense."""
        operation = await tx.operation_of_request(BALANCER, _request_id(wanted))
        if operation is not None:
            return _Check(operation)
        if check := await _exchange_check(tx, wanted):
            return check
        vm, target = await tx.get_vm(wanted.vm_id), await tx.get_node(wanted.target_node_id)
        if vm is None or target is None:
            return _Check(over="the VM is gone" if vm is None else "the target is gone")
        if over := _overtaken(wanted, vm, target):
            return _Check(over=over)
        lack = _lack_of_room(vm, target)
        # Whatever leaves the target at this moment may make room there.
        must_wait = bool(lack) and any(each.source_node_id == target.id for each in running)
        return _Check(must_wait=must_wait, over="" if must_wait else lack, has_disks=bool(vm.spec.disks))

    async def _settle(self, recommendation: Recommendation) -> Recommendation:
        """Note how the migration ended; returns it as it was if it has not."""
        operation = await self._store.read(lambda tx: tx.get_operation(recommendation.operation_id))
        if operation is None:
            return await self._close(recommendation, Status.FAILED, "its operation is forgotten")
        if not operation.has_ended:
            return recommendation
        if operation.state == OperationState.SUCCEEDED:
            return await self._close(recommendation, Status.APPLIED, "")
        why = operation.fault.message if operation.fault is not None else OperationState.Name(operation.state)
        return await self._close(recommendation, Status.FAILED, why)

    async def _close(self, found: Recommendation, status: Status.ValueType, why: str) -> Recommendation:
        return await self._write(closed(found, status, why, self._now()))

    async def _write(self, changed: Recommendation) -> Recommendation:
        """Write a change; where another process was first, what it wrote is as good."""

        async def work(tx: Transaction) -> Recommendation:
            return await tx.update_recommendation(changed)

        try:
            return await self._store.run(work)
        except Aborted:
            return await self._store.read(lambda tx: required(tx, changed.id))

    async def _let_go(self) -> None:
        now = self._now()

        async def work(tx: Transaction) -> None:
            for each in await tx.open_recommendations():
                if not each.is_due and each.expires_at <= now:
                    why = "nobody decided in time" if each.status == Status.PENDING else "there was no run in time"
                    await tx.update_recommendation(closed(each, Status.EXPIRED, why, now))
            await tx.forget_recommendations(now)

        await self._store.run(work)


def _overtaken(wanted: Recommendation, vm: Vm, target: Node) -> str:
    """Say what has happened since that makes the move pointless; "" if nothing has."""
    if vm.node_id != wanted.source_node_id:
        return "the VM is on another node by now"
    if vm.power_state != PowerState.RUNNING:
        return f"the VM is {PowerState.Name(vm.power_state)} by now"
    if target.phase != Phase.READY or not target.spec.scheduling.schedulable:
        return f"node {target.hostname} takes no VMs at the moment ({Phase.Name(target.phase)})"
    return ""


def _lack_of_room(vm: Vm, target: Node) -> str:
    """Say what the target lacks; "" if the VM has room there."""
    free_vcpus = target.capacity.vcpus - target.allocated.vcpus
    free_bytes = target.capacity.memory_bytes - target.allocated.memory_bytes
    if vm.vcpu_count <= free_vcpus and vm.memory_bytes <= free_bytes:
        return ""
    need = f"needs {vm.vcpu_count} vCPUs and {vm.memory_bytes // 2**20} MiB"
    return f"the VM {need}, node {target.hostname} has {max(free_vcpus, 0)} and {max(free_bytes, 0) // 2**20} MiB free"


async def _halves(tx: Transaction, wanted: Recommendation) -> list[Recommendation]:
    """Read it and what it is exchanged with, in the order in which they are carried out."""
    other = await other_half(tx, wanted)
    return [wanted] if other is None else sorted((wanted, other), key=lambda each: each.step)


async def _exchange_check(tx: Transaction, wanted: Recommendation) -> _Check | None:
    """See whether the other half of its exchange comes first, or will never come; None if neither."""
    other = await other_half(tx, wanted)
    if other is None or other.status == Status.APPLIED:
        return None
    if other.status not in OPEN_STATUSES:
        return _Check(over=f"the other half of the exchange is {Status.Name(other.status)}")
    if not other.operation_id:
        vm, target = await tx.get_vm(other.vm_id), await tx.get_node(other.target_node_id)
        over = "a VM or node is gone" if vm is None or target is None else _overtaken(other, vm, target)
        if over:
            return _Check(over=f"the other half of the exchange, VM {other.vm_name}, is impossible: {over}")
    return _Check(must_follow=True) if other.step < wanted.step else None


def _request_id(recommendation: Recommendation) -> str:
    return f"balance-{recommendation.id}"
