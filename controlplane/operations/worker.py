"""Decides which process works on which operation, and keeps at it until each has ended.

Every process renews a row of its own. One whose row does not change for the length of a lease, by the clock of whoever
watches it, is taken for dead, and its operations are taken up by others, each with a newer generation. That needs no
clocks that agree, and a process that was only slow does no harm: its writes and its commands are refused.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import timedelta

import structlog

from controlplane.domain.operation import Operation, OperationState, Replica
from controlplane.operations.news import OperationNews
from controlplane.operations.progress import StoreAway
from controlplane.operations.runner import Runner
from controlplane.operations.steps import Clock, Located, OwnershipLost
from controlplane.state.interface import Store, Transaction
from limiquantix.errors import ApiError

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Times in seconds.

    `lease_s` is how long a silent process keeps its operations: several renewals, so that a slow second costs nothing.
    """

    lease_s: float = 10.0
    renewal_interval_s: float = 2.0
    look_interval_s: float = 0.5
    """How often to look for operations to cancel or to take up: what another process caused is seen this late."""
    store_retry_s: float = 1.0
    max_running_count: int = 256
    max_taken_count: int = 500
    kept_days: float = 7.0
    """How long an operation is kept after it ended; a request id can be repeated that long."""


class Liveness:
    """Tells which processes are dead, from what their rows say and the clock of this process alone."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._seen: dict[str, tuple[int, float]] = {}

    def dead_of(self, replicas: Iterable[Replica], now_s: float) -> set[str]:
        """Take note of all rows, and return the ids of those that have not changed for a lease.

        Args:
            now_s: a clock that only goes forward.
        """
        known = {replica.id: replica.renewal_count for replica in replicas}
        self._seen = {
            replica_id: (
                count,
                now_s if self._seen.get(replica_id, (None, 0.0))[0] != count else self._seen[replica_id][1],
            )
            for replica_id, count in known.items()
        }
        return {replica_id for replica_id, (_, since_s) in self._seen.items() if now_s - since_s >= self._lease_s}


@dataclass(slots=True)
class _Job:
    ended: asyncio.Future[Operation | None]
    """The operation as it ended here; None if it did not."""
    located: Located | None = None
    cancel: asyncio.Event = field(default_factory=asyncio.Event)


class OperationWorker:
    """Owns the operations of this process.

    Args:
        hostname: of this machine, for people who look at the table of processes.
        clock_s: a clock that only goes forward.
    """

    def __init__(
        self,
        store: Store,
        runner: Runner,
        news: OperationNews,
        now: Clock,
        config: WorkerConfig,
        hostname: str = "",
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._runner = runner
        self._news = news
        self._now = now
        self._config = config
        self._clock_s = clock_s
        self._replica = Replica(str(uuid.uuid4()), hostname, now(), now())
        self._liveness = Liveness(config.lease_s)
        self._slots = asyncio.Semaphore(config.max_running_count)
        self._jobs: dict[str, _Job] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_stopping = False
        self._unheard: set[str] = set()

    @property
    def replica_id(self) -> str:
        """Which process this is, new at every start."""
        return self._replica.id

    async def register(self) -> None:
        """Show that this process lives; before the first operation is taken.

        Raises:
            Unavailable: the database does not answer.
        """
        replica = replace(self._replica, renewed_at=self._now())
        await self._store.run(lambda tx: tx.renew_replica(replica))

    async def run(self) -> None:
        """Renew, look for work and tidy up until cancelled; a database that is away is waited for."""
        renewed_s = tidied_s = self._clock_s()
        while True:
            await asyncio.sleep(self._config.look_interval_s)
            now_s = self._clock_s()
            try:
                if now_s - renewed_s >= self._config.renewal_interval_s:
                    await self.register()
                    renewed_s = now_s
                await self.look(now_s)
                if now_s - tidied_s >= 60.0:
                    await self.tidy()
                    tidied_s = now_s
            except ApiError as error:
                _log.warning("operations_not_looked_after", reason=error.reason, message=error.message)

    async def stop(self, grace_s: float) -> None:
        """Let running operations end; those still running after `grace_s` are left to other processes.

        What is left goes on where it was when another process, or this program's next start, takes it up.
        """
        self._is_stopping = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        await self.abandon()
        try:
            await self._store.run(lambda tx: tx.remove_replica(self.replica_id))
        except ApiError as error:
            _log.warning("process_not_signed_off", reason=error.reason)

    async def abandon(self) -> None:
        """Drop everything in the middle, as a process that is killed does: nothing more is written or signed off."""
        self._is_stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def idle(self) -> None:
        """Wait until this process works on nothing."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    # -- working

    def launch(self, operation: Operation, located: Located | None = None) -> None:
        """Begin to work on an operation that this process owns; does nothing if it does already.

        Args:
            located: what was recorded with the operation, if that was just now.
        """
        if operation.id in self._jobs or self._is_stopping:
            return
        loop = asyncio.get_running_loop()
        job = self._jobs[operation.id] = _Job(loop.create_future(), located)
        task = loop.create_task(self._work(operation, job), name=f"operation-{operation.id}")
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def cancel(self, operation_id: str) -> None:
        """Tell a running operation of this process that it shall be cancelled; fine if it is not one."""
        job = self._jobs.get(operation_id)
        if job is not None:
            job.cancel.set()

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (defect := task.exception()) is not None:
            # The operation stays as it is recorded; it is taken up when this process is restarted.
            _log.error("operation_left_by_a_defect", task=task.get_name(), exc_info=defect)

    async def ended_here(self, operation_id: str) -> Operation | None:
        """Wait until this process has ended an operation; None if it does not work on it, or stops to."""
        job = self._jobs.get(operation_id)
        return None if job is None else await asyncio.shield(job.ended)

    async def _work(self, operation: Operation, job: _Job) -> None:
        ended: Operation | None = None
        try:
            async with self._slots:
                ended = await self._to_its_end(operation, job)
        except OwnershipLost:
            _log.warning("operation_taken_by_another_process", operation_id=operation.id)
            return
        finally:
            del self._jobs[operation.id]
            job.ended.set_result(ended)
        await self._next_of(ended.resource_id)

    async def _to_its_end(self, operation: Operation, job: _Job) -> Operation:
        while True:
            try:
                return await self._runner.run(operation, job.cancel, job.located)
            except StoreAway:
                _log.warning("operation_waits_for_the_database", operation_id=operation.id)
            operation = await self._read_again(operation)

    async def _read_again(self, operation: Operation) -> Operation:
        """Wait for the database, and see how far the operation is; its steps count as begun before."""
        while True:
            await asyncio.sleep(self._config.store_retry_s)
            try:
                stored = await self._store.read(lambda tx: tx.get_operation(operation.id))
            except ApiError:
                continue
            if stored is None or stored.has_ended or stored.owner_id != self.replica_id:
                raise OwnershipLost
            try:
                retaken = await self._take(stored)
            except ApiError:
                continue
            if retaken is None:
                raise OwnershipLost
            return retaken

    async def _next_of(self, resource_id: str) -> None:
        try:
            await self.start_next(resource_id)
        except ApiError as error:  # the next look finds it
            _log.info("next_operation_not_started", resource_id=resource_id, reason=error.reason)

    # -- taking up

    async def start_next(self, resource_id: str) -> None:
        """Begin the operation on a resource whose turn it is, if there is one and nothing else is active.

        Raises:
            Unavailable: the database does not answer.
        """
        if self._is_stopping:
            return
        queue = await self._store.read(lambda tx: tx.queue_of(resource_id))
        if not queue or queue[0].state != OperationState.QUEUED:
            return

        async def start(tx: Transaction) -> Operation | None:
            generation = await tx.next_generation(resource_id)  # first: it keeps others from deciding the same
            waiting = await tx.queue_of(resource_id)
            if not waiting or waiting[0].state != OperationState.QUEUED:
                return None
            return await self._owned(tx, waiting[0], generation)

        started = await self._store.run(start)
        if started is not None:
            self._news.changed(started)
            self.launch(started)

    async def _take(self, operation: Operation) -> Operation | None:
        """Become the owner of an operation that is under way; None if it changed meanwhile."""

        async def take(tx: Transaction) -> Operation | None:
            return await self._owned(tx, operation, await tx.next_generation(operation.resource_id))

        return await self._store.run(take)

    async def _owned(self, tx: Transaction, operation: Operation, generation: int | None) -> Operation | None:
        is_new = operation.state == OperationState.QUEUED
        owned = replace(
            operation,
            state=OperationState.RUNNING if is_new else operation.state,
            owner_id=self.replica_id,
            attempt_count=operation.attempt_count + 1,
            # Without a VM there is no row that counts: one is enough to be newer than this operation's last.
            generation=generation if generation is not None else operation.generation + 1,
            started_at=self._now() if is_new else operation.started_at,
            waiting_for="",
            version=operation.version + 1,
        )
        return owned if await tx.take_operation(owned, operation.version) else None

    async def look(self, now_s: float) -> None:
        """See what shall be cancelled, and take up what waits for its turn or lost its process.

        An operation that this process owns and does not work on is one whose making or taking was committed, but the
        answer of the database was lost. It has to be seen so twice: the answer may just be on its way.

        Raises:
            Unavailable: the database does not answer.
        """
        working_on = set(self._jobs)

        async def read(tx: Transaction) -> tuple[list[str], list[Operation], list[Replica]]:
            others = await tx.unfinished_operations(working_on, self._config.max_taken_count)
            return list(await tx.cancelled_ids(self.replica_id)), list(others), list(await tx.all_replicas())

        cancelled, others, replicas = await self._store.read(read)
        for operation_id in cancelled:
            self.cancel(operation_id)
        dead = self._liveness.dead_of(replicas, now_s)
        alive = {replica.id for replica in replicas} - dead - {self.replica_id}
        mine = {operation.id for operation in others if operation.owner_id == self.replica_id} - set(self._jobs)
        unheard, self._unheard = self._unheard & mine, mine
        if self._is_stopping:
            return
        queued = {operation.resource_id for operation in others if operation.state == OperationState.QUEUED}
        for operation in others:
            is_mine = operation.owner_id == self.replica_id
            is_left = operation.id in unheard if is_mine else operation.owner_id not in alive
            if operation.state != OperationState.QUEUED and is_left:
                taken = await self._take(operation)
                if taken is not None:
                    _log.warning(
                        "operation_taken_up", operation_id=taken.id, kind=taken.kind, left_by=operation.owner_id
                    )
                    self.launch(taken)
        busy = {operation.resource_id for operation in others if operation.state != OperationState.QUEUED}
        for resource_id in sorted(queued - busy):
            await self._next_of(resource_id)
        for replica_id in dead - {self.replica_id} - {operation.owner_id for operation in others}:
            await self._store.run(lambda tx, gone=replica_id: tx.remove_replica(gone))  # type: ignore[misc]

    async def tidy(self) -> None:
        """Forget operations that ended long ago."""
        before = self._now() - timedelta(days=self._config.kept_days)
        while await self._store.run(lambda tx: tx.forget_operations(before, 500)) == 500:
            pass
