"""Runs what callers ask of VMs: one operation per VM at a time, later ones wait their turn, none stops half way.

An operation belongs to the control plane, not to the call that asked for it: when the caller goes away or its deadline
passes, the operation goes on to its end, so a cancelled create is either finished or undone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog

from limiquantix.errors import ApiError, Reason, ResourceExhausted

ResultT = TypeVar("ResultT")

MAX_WAITING_PER_VM = 32
"""A queue longer than this is a caller in a loop; it is told so instead of being stored."""

_log = structlog.get_logger(__name__)


class VmOperations:
    """Owns the running operations of this process."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._waiting: dict[str, int] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def is_active(self, vm_id: str) -> bool:
        """Whether an operation on the VM runs or waits in this process."""
        return vm_id in self._waiting

    async def run(self, vm_id: str, operation: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Run the operation when it is the VM's turn, and wait for its result.

        If the caller is cancelled, the operation goes on without it.

        Raises:
            ResourceExhausted: too many operations wait for this VM already.
            ApiError: whatever the operation raises.
        """
        if self._waiting.get(vm_id, 0) >= MAX_WAITING_PER_VM:
            operation.close()
            raise ResourceExhausted(
                Reason.TOO_MANY_OPERATIONS,
                f"{MAX_WAITING_PER_VM} operations already wait for VM {vm_id}; wait for them before asking for more",
                metadata={"vm_id": vm_id},
                retry_after_s=1.0,
            )
        self._waiting[vm_id] = self._waiting.get(vm_id, 0) + 1
        task = asyncio.get_running_loop().create_task(self._in_turn(vm_id, operation))
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    async def _in_turn(self, vm_id: str, operation: Coroutine[Any, Any, ResultT]) -> ResultT:
        lock = self._locks.setdefault(vm_id, asyncio.Lock())
        try:
            async with lock:
                return await operation
        finally:
            operation.close()
            self._waiting[vm_id] -= 1
            if self._waiting[vm_id] == 0:
                del self._waiting[vm_id], self._locks[vm_id]

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()  # also marks it as seen when the caller has gone
        if error is not None and not isinstance(error, ApiError):
            _log.error("operation_failed", error=repr(error))

    async def drain(self, timeout_s: float) -> None:
        """Let running operations end; those still running after `timeout_s` are cancelled."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
