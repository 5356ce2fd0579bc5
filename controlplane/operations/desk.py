"""Takes orders for operations and waits for their outcome: what services see of this package."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import TypeVar

import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from controlplane.domain import errors, operation_errors
from controlplane.domain.node import Node
from controlplane.domain.operation import (
    ACTIVE_STATES,
    Fault,
    Json,
    Operation,
    OperationFilter,
    OperationState,
    StepRecord,
)
from controlplane.domain.query import Cursor, Page
from controlplane.domain.request_digest import is_same_request
from controlplane.domain.vm import Vm
from controlplane.operations.news import OperationNews
from controlplane.operations.steps import Clock, Located, Workflows
from controlplane.operations.worker import OperationWorker
from controlplane.state.interface import Store, Transaction
from limiquantix.errors import ApiError, NotFound

_log = structlog.get_logger(__name__)

MessageT = TypeVar("MessageT", bound=Message)

MAX_QUEUED_PER_RESOURCE = 32
"""A queue longer than this is a caller in a loop; it is told so instead of being stored."""

VM_RESOURCE = "vm"
NODE_RESOURCE = "node"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and how they want to be answered.

    `request_digest` is of the method and the body, to tell a repeated request from another one under the same id.
    `on_operation` is told the operation's id as soon as there is one.
    """

    principal: str = "anonymous"
    request_id: str = ""
    request_digest: str = ""
    waits: bool = True
    on_operation: Callable[[str], None] = field(default=lambda _: None)

    def with_request(self, request_id: str, digest: str) -> Caller:
        """Return the same caller with a request that may be repeated."""
        return replace(self, request_id=request_id, request_digest=digest)


ANYBODY = Caller()

Place = Callable[[Transaction], Awaitable[Located | None]]
Check = Callable[[Vm], None]
NodeCheck = Callable[[Node], None]


def _accept(vm: Vm) -> None:
    """Accept the order whatever the VM is."""


def _accept_node(node: Node) -> None:
    """Accept the order whatever the node is."""


@dataclass(frozen=True, slots=True)
class Order:
    """One operation to be made.

    `check` refuses, by raising an `ApiError`, what the VM does not allow; it is not asked while other operations are
    under way or wait, since the VM may be different when the turn of this one comes. `place` writes the intent for a
    VM that does not exist yet, whose first generation is `generation`, and may return it for the first step; both
    happen in the transaction that records the operation. `preempts` says that it need not wait for what can be
    interrupted, and goes ahead of what waits. An operation on a node, by `resource_type`, has `check_node` instead of
    `check`. `revise` makes another order of it, by what the VM is when it is recorded.
    """

    kind: str
    resource_id: str
    _: KW_ONLY
    resource_type: str = VM_RESOURCE
    project_id: str = ""
    parameters: Json = field(default_factory=dict)
    check: Check = _accept
    check_node: NodeCheck = _accept_node
    place: Place | None = None
    generation: int = 1
    preempts: bool = False
    revise: Revise | None = None


Revise = Callable[[Transaction, Vm, Order], Awaitable[Order]]


@dataclass(frozen=True, slots=True)
class _Recorded:
    """An operation as it is in the database; `interrupted` are the ids of those that it goes before."""

    operation: Operation
    is_new: bool = True
    interrupted: Sequence[str] = ()
    located: Located | None = None


class OperationDesk:
    """The counter of all operations of this process."""

    def __init__(
        self, store: Store, workflows: Workflows, worker: OperationWorker, news: OperationNews, now: Clock
    ) -> None:
        self._store = store
        self._workflows = workflows
        self._worker = worker
        self._news = news
        self._now = now

    async def submit(self, order: Order, caller: Caller = ANYBODY) -> Operation:
        """Record an operation with its intent and see to it that it is worked on.

        A caller that repeats a request gets the operation that the first one made.

        Raises:
            NotFound: the resource does not exist.
            ResourceExhausted: too many operations wait for it.
            InvalidArgument: the request id was used for another request.
            ApiError: whatever `check` or `place` refuses.
        """
        try:
            recorded = await self._store.run(lambda tx: self._record(tx, order, caller))
        except ApiError as error:
            # The same request may have come twice at once: then the other one took the name, or the request id.
            first = await self._store.read(lambda tx: self._repeated(tx, caller))
            if first is None:
                raise
            _log.info("request_came_twice", operation_id=first.id, reason=error.reason)
            recorded = _Recorded(first, is_new=False)
        operation = recorded.operation
        caller.on_operation(operation.id)
        if not recorded.is_new:
            return operation
        for operation_id in recorded.interrupted:
            self._worker.cancel(operation_id)
        if operation.state == OperationState.QUEUED:
            await self._worker.start_next(operation.resource_id)
        else:
            self._worker.launch(operation, recorded.located)
        return operation

    async def _record(self, tx: Transaction, order: Order, caller: Caller) -> _Recorded:
        found = await self._repeated(tx, caller)
        if found is not None:
            return _Recorded(found, is_new=False)
        if order.place is not None:
            located = await order.place(tx)
            operation = self._new(order, caller, order.generation, order.project_id, [])
            await tx.insert_operation(operation)
            return _Recorded(operation, located=located)
        generation = await tx.next_generation(order.resource_id)  # first: later callers wait here for their turn
        order, project_id, check = await self._required(tx, order)
        if generation is None:
            raise _not_found(order)
        queue = list(await tx.queue_of(order.resource_id))
        if len(queue) > MAX_QUEUED_PER_RESOURCE:
            raise operation_errors.too_many_operations(order.resource_id, MAX_QUEUED_PER_RESOURCE, order.resource_type)
        if not queue:
            check()
        operation = self._new(order, caller, generation, project_id, queue)
        await tx.insert_operation(operation)
        return _Recorded(operation, interrupted=await self._interrupted(tx, operation, queue))

    @staticmethod
    async def _required(tx: Transaction, order: Order) -> tuple[Order, str, Callable[[], None]]:
        """Read what an order is about; returns the order that is for it, its project, and what refuses the order.

        Raises:
            NotFound: it does not exist.
        """
        if order.resource_type == NODE_RESOURCE:
            node = await tx.get_node(order.resource_id)
            if node is None:
                raise _not_found(order)
            return order, "", lambda: order.check_node(node)
        vm = await tx.get_vm(order.resource_id)
        if vm is None:
            raise _not_found(order)
        revised = order if order.revise is None else await order.revise(tx, vm, order)
        return revised, vm.project_id, lambda: revised.check(vm)

    @staticmethod
    async def _repeated(tx: Transaction, caller: Caller) -> Operation | None:
        """Find the operation that the caller's request made before."""
        if not caller.request_id:
            return None
        found = await tx.operation_of_request(caller.principal, caller.request_id)
        if found is not None and not is_same_request(found.request_digest, caller.request_digest):
            raise operation_errors.request_id_reused(caller.request_id)
        return found

    def _new(self, order: Order, caller: Caller, position: int, project_id: str, queue: list[Operation]) -> Operation:
        now = self._now()
        steps = self._workflows.of(order.kind).steps(order.parameters)
        queued = Operation(
            id=str(uuid.uuid4()),
            kind=order.kind,
            resource_type=order.resource_type,
            resource_id=order.resource_id,
            project_id=project_id,
            principal=caller.principal,
            created_at=now,
            steps=tuple(StepRecord(step.name) for step in steps),
            parameters=order.parameters,
            request_id=caller.request_id,
            request_digest=caller.request_digest,
            position=position,
            preempts=order.preempts,
        )
        if queue:
            what = "node" if order.resource_type == NODE_RESOURCE else "VM"
            return replace(queued, waiting_for=f"{queue[0].kind} (operation {queue[0].id}) on the same {what}")
        return replace(
            queued,
            state=OperationState.RUNNING,
            generation=position,
            owner_id=self._worker.replica_id,
            attempt_count=1,
            started_at=now,
        )

    async def _interrupted(self, tx: Transaction, operation: Operation, queue: list[Operation]) -> list[str]:
        """Ask for the cancellation of what runs, if the new operation must not wait for it."""
        if not operation.preempts:
            return []
        reason = f"{operation.kind} (operation {operation.id}) of the same VM goes before it"
        running = [each for each in queue if each.state == OperationState.RUNNING and not each.preempts]
        return [each.id for each in running if await tx.request_cancel(each.id, reason)]

    async def ended(self, operation_id: str, limit_s: float | None = None) -> Operation:
        """Wait until an operation has ended and return it; as it is then, if `limit_s` passes before.

        Raises:
            NotFound: there is no such operation.
        """
        try:
            async with asyncio.timeout(limit_s) as limit:
                ended = await self._worker.ended_here(operation_id)
                if ended is not None:
                    return ended
                return [operation async for operation in self.follow(operation_id)][-1]
        except TimeoutError:
            if not limit.expired():
                raise
        return await self.get(operation_id)

    def follow(self, operation_id: str) -> AsyncIterator[Operation]:
        """Give an operation now and after every change, until it has ended.

        Raises:
            NotFound: there is no such operation.
        """
        return self._news.follow(self._store, operation_id)

    async def list(self, wanted: OperationFilter, after: Cursor | None, limit: int) -> Page[Operation]:
        """Read one page of operations, newest first."""
        return await self._store.read(lambda tx: tx.list_operations(wanted, after, limit))

    async def answer(self, operation: Operation, message: MessageT) -> MessageT:
        """Wait for an operation and fill in the answer it made.

        Raises:
            ApiError: what the operation failed with.
        """
        if not operation.has_ended:
            operation = await self.ended(operation.id)
        if operation.fault is not None:
            raise operation.fault.error()
        AnyMessage.FromString(operation.response).Unpack(message)
        return message

    async def get(self, operation_id: str) -> Operation:
        """Read an operation.

        Raises:
            NotFound: there is no such operation.
        """
        operation = await self._store.read(lambda tx: tx.get_operation(operation_id))
        if operation is None:
            raise operation_errors.operation_not_found(operation_id)
        return operation

    async def cancel(self, operation_id: str, principal: str) -> Operation:
        """End an operation that waits, or ask one that runs to stop; returns it as it is then.

        Raises:
            NotFound: there is no such operation.
            FailedPrecondition: it has ended.
        """
        reason = f"{principal} asked for it"

        async def request(tx: Transaction) -> Operation:
            operation = await tx.get_operation(operation_id)
            if operation is None:
                raise operation_errors.operation_not_found(operation_id)
            if operation.has_ended:
                raise operation_errors.operation_ended(operation_id, OperationState.Name(operation.state))
            if operation.state in ACTIVE_STATES:
                await tx.request_cancel(operation_id, reason)
                return await tx.get_operation(operation_id) or operation
            cancelled = replace(
                operation,
                state=OperationState.CANCELLED,
                fault=Fault.of(operation_errors.operation_cancelled(operation_id, reason)),
                parameters={},
                waiting_for="",
                ended_at=self._now(),
                version=operation.version + 1,
            )
            if not await tx.take_operation(cancelled, operation.version):
                raise errors.concurrent_change("operation", operation_id)
            return cancelled

        operation = await self._store.run(request)
        self._worker.cancel(operation_id)
        self._news.changed(operation)
        if operation.has_ended:
            await self._worker.start_next(operation.resource_id)
        return operation


def _not_found(order: Order) -> NotFound:
    is_of_node = order.resource_type == NODE_RESOURCE
    return (errors.node_not_found if is_of_node else errors.vm_not_found)(order.resource_id)
