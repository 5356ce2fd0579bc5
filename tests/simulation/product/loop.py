"""Virtual time for asyncio: an event loop that waits for nothing, and processes on it that stop, drift and die.

Everything that the product does runs as it always does, as tasks on an event loop; only here the loop's clock jumps to
the next timer. Which process a callback belongs to is in its context, so a process that dies goes on with none of its
tasks, between any two steps, and one that is paused goes on later. One seed gives one order of all callbacks.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from typing import Any

PROCESS: ContextVar[Process | None] = ContextVar("PROCESS", default=None)
"""The simulated process that runs now; None for the world around."""

TRACE_LENGTH = 2_000
EPOCH_S = 1_800_000_000.0
MAX_ITERATIONS = 2_000_000
"""Of the loop in one history; more means that something spins without waiting."""


class Violation(AssertionError):
    """Something happened that never may."""


class Unmended(Violation):
    """Something that should have happened after all faults had ended did not; safe, but wrong."""


class Machine:
    """What has a clock that nobody sets, which runs at its own rate, and links to others."""

    def __init__(self, loop: VirtualLoop, name: str, drift: float) -> None:
        self._loop = loop
        self.name = name
        self.rate = 1.0 + loop.random.uniform(-drift, drift)
        self.wall_skew_s = loop.random.uniform(-0.5, 0.5)
        self._begins_s = 0.0
        self.boot()

    def boot(self) -> None:
        """Have the clock begin anew, as that of a machine does that boots."""
        self._begins_s = self._loop.time() - self._loop.random.uniform(20.0, 2_000.0)

    def clock_s(self) -> float:
        """Read the clock that runs since the boot."""
        return (self._loop.time() - self._begins_s) * self.rate

    def wall_s(self) -> float:
        """Read the clock on the wall, which is right but for a moment."""
        return EPOCH_S + self._loop.time() + self.wall_skew_s


class Process:
    """One life of a program: it runs, may be paused, and dies once."""

    def __init__(self, loop: VirtualLoop, name: str, machine: Machine) -> None:
        self.loop = loop
        self.name = name
        self.machine = machine
        self.is_alive = True
        self.is_paused = False
        self.dies_in_steps = -1
        self.at_death: list[Callable[[], None]] = []
        self.context = copy_context()
        self.context.run(PROCESS.set, self)
        self._held: list[asyncio.Handle] = []

    def spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        """Run something as a task of this process."""
        return self.loop.create_task(coroutine, context=self.context.copy())

    def may_run(self, handle: asyncio.Handle) -> bool:
        """Say whether a callback runs now; it is kept if it shall run later."""
        if not self.is_alive:
            return False
        if self.is_paused:
            self._held.append(handle)
            return False
        if self.dies_in_steps >= 0:
            self.dies_in_steps -= 1
            if self.dies_in_steps < 0:
                self.die("at a step")
                return False
        return True

    def die(self, why: str) -> None:
        """End: its memory is gone, and nothing of it happens any more."""
        if not self.is_alive:
            return
        self.is_alive = False
        self.loop.note(f"{self.name} dies {why}")
        self.loop.buried.append(self._held)
        for end in reversed(self.at_death):
            end()

    def pause(self, span_s: float) -> None:
        """Do nothing for a while; what arrives waits."""
        if self.is_alive and not self.is_paused:
            self.is_paused = True
            self.loop.note(f"{self.name} stands still for {span_s:.1f} s")
            self.loop.outside(span_s, self.go_on)

    def go_on(self) -> None:
        """End a pause."""
        if self.is_alive and self.is_paused:
            self.is_paused = False
            self.loop.note(f"{self.name} goes on")
            self.loop.make_ready(self._held)
            self._held = []


class _Handle(asyncio.Handle):
    def _run(self) -> None:
        process = self._context.get(PROCESS)  # type: ignore[attr-defined]
        if process is None or process.may_run(self):
            super()._run()


class _TimerHandle(asyncio.TimerHandle):
    def _run(self) -> None:
        process = self._context.get(PROCESS)  # type: ignore[attr-defined]
        if process is None or process.may_run(self):
            super()._run()


class _Silence:
    """A selector on which nothing ever happens: waiting is time that passes."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout_s: float | None) -> list[Any]:
        if timeout_s is None:
            raise Violation("nothing will ever happen any more")
        self._loop.now_s += max(0.0, timeout_s)
        return []

    def close(self) -> None:
        pass


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop whose time passes only while nothing is to be done."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.now_s = 0.0
        self.random = random.Random(seed)
        self.trace: list[str] = []
        self.step_count = 0
        self.buried: list[Any] = []
        """What belonged to dead processes: kept, so that no clean-up of theirs runs."""
        self.failure: BaseException | None = None
        self._selector = _Silence(self)
        self._clock_resolution = 1e-9
        self.set_exception_handler(self._fail)

    def time(self) -> float:
        return self.now_s

    def note(self, what: str) -> None:
        """Put a line into the trace."""
        self.trace.append(f"{self.now_s:9.3f}  {what}")
        if len(self.trace) > 2 * TRACE_LENGTH:
            del self.trace[:TRACE_LENGTH]

    def outside(self, delay_s: float, event: Callable[[], None]) -> None:
        """Have something happen that no process does."""
        self.call_later(delay_s, event, context=Context())

    def make_ready(self, handles: list[asyncio.Handle]) -> None:
        """Have callbacks run that were held back."""
        self._ready.extend(handles)  # type: ignore[attr-defined]

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> Any:
        process = context.get(PROCESS) if context is not None else PROCESS.get()
        rate = 1.0 if process is None else process.machine.rate
        return self.call_at(self.now_s + delay / rate, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> Any:
        timer: Any = _TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        timer._scheduled = True
        return timer

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Context | None = None
    ) -> Any:
        return self.call_soon(callback, *args, context=context)

    def _call_soon(self, callback: Any, args: Any, context: Context | None) -> Any:
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> Any:
        """Do what a thread would: later, all at once, and have it known still later."""
        future = self.create_future()
        draw = self.random.random

        def work() -> None:
            try:
                result, error = func(*args), None
            except Exception as failed:  # noqa: BLE001 - whoever waits has it
                result, error = None, failed
            self.call_later(0.0005 * draw(), tell, result, error)

        def tell(result: Any, error: Exception | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self.call_later(0.001 * draw(), work)
        return future

    def add_signal_handler(  # type: ignore[override]
        self, sig: int, callback: Any, *args: Any
    ) -> None:
        """No signal is ever sent."""

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def _run_once(self) -> None:
        self.step_count += 1
        if self.step_count > MAX_ITERATIONS:
            raise Violation("it does not come to rest: something goes round without waiting")
        self._mix()
        super()._run_once()  # type: ignore[misc]
        if self.failure is not None:
            raise self.failure

    def _mix(self) -> None:
        """Have processes take turns in any order; what one process has to do stays in order."""
        ready = self._ready  # type: ignore[attr-defined]
        if len(ready) < 2:
            return
        turns: dict[int, float] = {}
        keyed = [(turns.setdefault(id(h._context.get(PROCESS)), len(turns)), h) for h in ready]
        if len(turns) < 2:
            return
        order = list(range(len(turns)))
        self.random.shuffle(order)
        keyed.sort(key=lambda pair: order[int(pair[0])])
        ready.clear()
        ready.extend(handle for _, handle in keyed)

    def _fail(self, loop: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.note(f"the loop says: {context['message']} {error!r}")
        if isinstance(error, Violation):
            self.failure = error
