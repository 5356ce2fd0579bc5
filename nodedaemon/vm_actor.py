"""Run the operations on each VM one after the other, and those on different VMs at once.

An operation that has begun is finished even if its caller goes away: half of a create or a delete is worse than a
whole one nobody waits for. One that has not begun when its caller goes away never begins.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from limiquantix.errors import DeadlineExceeded, Reason, ResourceExhausted, Unavailable

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class _Job:
    operation: Callable[[], Awaitable[Any]]
    deadline_s: float
    takes_slot: bool
    answer: asyncio.Future[Any]


class VmActors:
    """The queues of all VMs.

    Args:
        max_concurrent: operations under way at once on the whole host; those that only wait for a guest do not count.
        max_queued: operations that may wait on one VM.
    """

    def __init__(self, max_concurrent: int, max_queued: int) -> None:
        self._slots = asyncio.Semaphore(max_concurrent)
        self._max_queued = max_queued
        self._queues: dict[str, deque[_Job]] = {}
        self._workers: dict[str, asyncio.Task[None]] = {}
        self._is_closing = False

    async def run(
        self,
        vm_id: str,
        operation: Callable[[], Awaitable[ResultT]],
        *,
        deadline_s: float,
        takes_slot: bool = True,
    ) -> ResultT:
        """Run `operation` when all earlier ones on that VM are done; returns or raises what it does.

        Args:
            deadline_s: how long it may take once begun.
            takes_slot: False for one that mostly waits, so that many of them do not hold up the host.

        Raises:
            ResourceExhausted: too many wait on this VM.
            Unavailable: the daemon is stopping.
            DeadlineExceeded: it took longer than `deadline_s`; what it had begun may have happened.
        """
        if self._is_closing:
            raise _stopping(vm_id)
        queue = self._queues.setdefault(vm_id, deque())
        if len(queue) >= self._max_queued:
            raise ResourceExhausted(
                Reason.CONCURRENT_CHANGE,
                f"{len(queue)} operations wait on VM {vm_id} already; try again later",
                metadata={"vm_id": vm_id},
                retry_after_s=1.0,
            )
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        queue.append(_Job(operation, deadline_s, takes_slot, answer))
        if vm_id not in self._workers:
            self._workers[vm_id] = asyncio.create_task(self._work(vm_id, queue), name=f"vm-{vm_id}")
        return cast(ResultT, await answer)

    async def close(self, grace_s: float) -> None:
        """Refuse what waits, give what runs `grace_s` to finish, then cancel it. Safe to call twice."""
        self._is_closing = True
        for vm_id, queue in self._queues.items():
            for job in queue:
                if not job.answer.done():
                    job.answer.set_exception(_stopping(vm_id))
            queue.clear()
        workers = set(self._workers.values())
        if workers:
            _, late = await asyncio.wait(workers, timeout=grace_s)
            for worker in late:
                worker.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _work(self, vm_id: str, queue: deque[_Job]) -> None:
        try:
            while queue:
                job = queue.popleft()
                if not job.answer.done():  # else its caller went away
                    await self._run_one(vm_id, job)
        finally:
            del self._workers[vm_id], self._queues[vm_id]

    async def _run_one(self, vm_id: str, job: _Job) -> None:
        try:
            if job.takes_slot:
                async with self._slots:
                    result = await self._with_deadline(vm_id, job)
            else:
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
            async with asyncio.timeout(job.deadline_s) as limit:
                return await job.operation()
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise DeadlineExceeded(
                Reason.DEADLINE_EXCEEDED,
                f"the operation on VM {vm_id} did not finish in {job.deadline_s:g} s",
                metadata={"vm_id": vm_id},
            ) from error


def _stopping(vm_id: str) -> Unavailable:
    return Unavailable(
        Reason.HYPERVISOR_UNAVAILABLE, "the node daemon is stopping", metadata={"vm_id": vm_id}, retry_after_s=5.0
    )
