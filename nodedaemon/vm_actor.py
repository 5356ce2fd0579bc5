"""Run the operations on each VM one after the other, and those on different VMs at once.

An operation that has begun is finished even if its caller goes away: half of a create or a delete is worse than a
whole one nobody waits for. One that has not begun when its caller goes away never begins.

An operation of a newer generation does not queue behind older ones: those that have not begun are refused, and one that
only waits for the guest is ended, so that pulling the plug need not wait for a guest that takes its time to shut down.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from limiquantix.errors import ApiError, DeadlineExceeded, Reason, ResourceExhausted, Unavailable
from nodedaemon.generations import stale

ResultT = TypeVar("ResultT")


@dataclass(eq=False, slots=True)
class _Job:
    """`limit` is there from when it left the queue; `end` is what it was told to end with."""

    operation: Callable[[], Awaitable[Any]]
    deadline_s: float
    takes_slot: bool
    generation: int
    is_interruptible: bool
    answer: asyncio.Future[Any]
    limit: asyncio.Timeout | None = None
    has_begun: bool = False
    end: ApiError | None = None


class _Queue:
    """What waits on one VM, and what runs."""

    def __init__(self, vm_id: str) -> None:
        self._vm_id = vm_id
        self.waiting: deque[_Job] = deque()
        self.current: _Job | None = None

    def pre_empt(self, generation: int) -> None:
        """Refuse what waits of older generations, and end what runs of them if it may be ended; 0 is no generation."""
        overtaken = [job for job in self.waiting if 0 < job.generation < generation]
        for job in overtaken:
            self.waiting.remove(job)
            if not job.answer.done():
                job.answer.set_exception(stale(self._vm_id, job.generation, generation))
        job_now = self.current
        if job_now is None or not 0 < job_now.generation < generation:
            return
        may_end = job_now.is_interruptible or not job_now.has_begun
        if may_end and job_now.limit is not None and not job_now.limit.expired():
            job_now.end = stale(self._vm_id, job_now.generation, generation)
            job_now.limit.reschedule(asyncio.get_running_loop().time())


class VmActors:
    """The queues of all VMs.

    Args:
        max_concurrent: operations under way at once on the whole host; those that only wait for a guest do not count.
        max_queued: operations that may wait on one VM.
    """

    def __init__(self, max_concurrent: int, max_queued: int) -> None:
        self._slots = asyncio.Semaphore(max_concurrent)
        self._max_queued = max_queued
        self._queues: dict[str, _Queue] = {}
        self._workers: dict[str, asyncio.Task[None]] = {}
        self._is_closing = False

    async def run(
        self,
        vm_id: str,
        operation: Callable[[], Awaitable[ResultT]],
        *,
        deadline_s: float,
        takes_slot: bool = True,
        generation: int = 0,
        is_interruptible: bool = False,
    ) -> ResultT:
        """Run `operation` when all earlier ones on that VM are done; returns or raises what it does.

        Args:
            deadline_s: how long it may take once begun.
            takes_slot: False for one that mostly waits, so that many of them do not hold up the host.
            generation: those that are older make way for it, see the module; 0 makes way for none, and none for it.
            is_interruptible: whether it may be cancelled, when a newer one comes, after it has begun.

        Raises:
            ResourceExhausted: too many wait on this VM.
            Aborted: one of a newer generation came before it began, or ended it.
            Unavailable: the daemon is stopping.
            DeadlineExceeded: it took longer than `deadline_s`; what it had begun may have happened.
        """
        if self._is_closing:
            raise _stopping(vm_id)
        queue = self._queues.setdefault(vm_id, _Queue(vm_id))
        queue.pre_empt(generation)
        if len(queue.waiting) >= self._max_queued:
            raise ResourceExhausted(
                Reason.CONCURRENT_CHANGE,
                f"{len(queue.waiting)} operations wait on VM {vm_id} already; try again later",
                metadata={"vm_id": vm_id},
                retry_after_s=1.0,
            )
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        queue.waiting.append(_Job(operation, deadline_s, takes_slot, generation, is_interruptible, answer))
        if vm_id not in self._workers:
            self._workers[vm_id] = asyncio.create_task(self._work(vm_id, queue), name=f"vm-{vm_id}")
        return cast(ResultT, await answer)

    async def close(self, grace_s: float) -> None:
        """Refuse what waits, give what runs `grace_s` to finish, then cancel it. Safe to call twice."""
        self._is_closing = True
        for vm_id, queue in self._queues.items():
            for job in queue.waiting:
                if not job.answer.done():
                    job.answer.set_exception(_stopping(vm_id))
            queue.waiting.clear()
        workers = set(self._workers.values())
        if workers:
            _, late = await asyncio.wait(workers, timeout=grace_s)
            for worker in late:
                worker.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _work(self, vm_id: str, queue: _Queue) -> None:
        try:
            while queue.waiting:
                job = queue.waiting.popleft()
                if not job.answer.done():  # else its caller went away
                    queue.current = job
                    await self._run_one(vm_id, job)
                    queue.current = None
        finally:
            del self._workers[vm_id], self._queues[vm_id]

    async def _run_one(self, vm_id: str, job: _Job) -> None:
        try:
            result = await self._with_deadline(vm_id, job)
        except asyncio.CancelledError:
            if not job.answer.done():
                job.answer.set_exception(_stopping(vm_id))
            raise
        except Exception as error:  # noqa: BLE001 - it is the caller's, who handles it
            if not job.answer.done():
                job.answer.set_exception(error)
        else:
            if not job.answer.done():
                job.answer.set_result(result)

    async def _with_deadline(self, vm_id: str, job: _Job) -> Any:
        try:
            async with asyncio.timeout(None) as limit:
                job.limit = limit
                async with self._slots if job.takes_slot else nullcontext():
                    if job.end is not None:  # told at the very moment that a slot became free
                        raise job.end
                    job.has_begun = True
                    limit.reschedule(asyncio.get_running_loop().time() + job.deadline_s)
                    return await job.operation()
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise job.end or DeadlineExceeded(
                Reason.DEADLINE_EXCEEDED,
                f"the operation on VM {vm_id} did not finish in {job.deadline_s:g} s",
                metadata={"vm_id": vm_id},
            ) from error


def _stopping(vm_id: str) -> Unavailable:
    return Unavailable(
        Reason.HYPERVISOR_UNAVAILABLE, "the node daemon is stopping", metadata={"vm_id": vm_id}, retry_after_s=5.0
    )
