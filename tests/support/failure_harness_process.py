"""Processes inside this one that can be killed as `kill -9` does: nothing of theirs runs on, no clean-up either.

Cancelling tasks would run their `finally` blocks, which no killed process does. So whatever a simulated process starts,
directly or through its own tasks, is wrapped, and stands still from the kill on. `end` lets it all run out when it does
not matter any more what that does.
"""

from __future__ import annotations

import asyncio
import contextvars
import types
from collections.abc import Awaitable, Coroutine, Generator
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")

_OWNER: contextvars.ContextVar[SimulatedProcess | None] = contextvars.ContextVar("simulated_process", default=None)


def install(loop: asyncio.AbstractEventLoop) -> None:
    """Make every task of a simulated process, and those that it starts, belong to it. Once a loop."""
    loop.set_task_factory(_make_task)


def _make_task(
    loop: asyncio.AbstractEventLoop, coroutine: Any, *, context: contextvars.Context | None = None
) -> asyncio.Task[Any]:
    owner = _OWNER.get() if context is None else context.get(_OWNER)
    if owner is None:
        return asyncio.Task(coroutine, loop=loop, context=context)
    task: asyncio.Task[Any] = asyncio.Task(owner.run(coroutine), loop=loop, context=context)
    owner.tasks.append(task)
    return task


class SimulatedProcess:
    """One life of a process; `install` first."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[Any]] = []
        self.died = asyncio.Event()
        self._standstill: asyncio.Future[None] | None = None

    @property
    def is_alive(self) -> bool:
        """Whether it was not killed."""
        return not self.died.is_set()

    def spawn(self, coroutine: Coroutine[Any, Any, ResultT]) -> asyncio.Task[ResultT]:
        """Run something as part of the process, whoever asks for it."""
        context = contextvars.copy_context()
        context.run(_OWNER.set, self)
        return asyncio.get_running_loop().create_task(coroutine, context=context)

    def kill(self) -> None:
        """Stop everything of it where it stands, from its next step on. What threads are doing is finished."""
        if self.is_alive:
            self._standstill = asyncio.get_running_loop().create_future()
            self.died.set()

    async def end(self) -> None:
        """Cancel everything of it and wait until it is gone; whatever that still does is of no interest any more."""
        self.died.set()
        self._standstill = None
        while running := [task for task in self.tasks if not task.done()]:
            for task in running:
                task.cancel()
            await asyncio.wait(running, timeout=5)
        self.tasks.clear()

    async def run(self, coroutine: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Drive a coroutine of the process."""
        return await self._steps(coroutine)

    @types.coroutine
    def _steps(self, coroutine: Coroutine[Any, Any, ResultT]) -> Generator[Any, None, ResultT]:
        error: BaseException | None = None
        while True:
            if self._standstill is not None:
                try:
                    yield from asyncio.shield(self._standstill)
                except BaseException as ended:  # noqa: BLE001 - `end` cancels, and the coroutine has to hear of it
                    error = ended
            try:
                waits_for = coroutine.send(None) if error is None else coroutine.throw(error)
            except StopIteration as stop:
                result: ResultT = stop.value
                return result
            error = None
            try:
                yield waits_for
            except BaseException as thrown:  # noqa: BLE001 - goes on into the coroutine
                error = thrown


async def outside(awaitable: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run something beside the simulated process that asks for it: what another process does for it goes on."""
    context = contextvars.copy_context()
    context.run(_OWNER.set, None)
    return await asyncio.shield(asyncio.get_running_loop().create_task(awaitable, context=context))


async def unless_dead(process: SimulatedProcess, awaitable: Awaitable[ResultT]) -> ResultT | None:
    """Wait for something that a process does for somebody else; None as soon as the process is dead."""
    doing = asyncio.ensure_future(awaitable)
    dying = asyncio.ensure_future(process.died.wait())
    try:
        await asyncio.wait({doing, dying}, return_when=asyncio.FIRST_COMPLETED)
        return doing.result() if doing.done() and process.is_alive else None
    finally:
        dying.cancel()
