"""Virtual time: a queue of events, clocks that drift, processes that are paused and die, a network that lies.

Coroutines of the product run on it without asyncio: what they await is an `Ask`, which is told how to go on. A process
that dies goes on with none of them, so it dies between any two steps. One seed gives one history, event for event.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from limiquantix.errors import Reason, Unavailable

Resume = Callable[[Any, BaseException | None], None]
Event = Callable[[], None]
Serve = Callable[[Callable[[Any], None]], bool]

TRACE_LENGTH = 400
AT_ONCE_S = 0.9
"""A third of the shortest limit of a call is more than both its messages and nothing else may take."""


class Violation(AssertionError):
    """Something happened that never may."""


class Pause:
    """What a simulated coroutine awaits to go on after some true time: most of what happens, so the shortest way."""

    __slots__ = ("_span_s",)

    def __init__(self, span_s: float) -> None:
        self._span_s = span_s

    def __await__(self) -> Generator[float, Any, None]:
        yield self._span_s


class Ask:
    """What a simulated coroutine awaits: `begin` is called with the function that goes on with a result or an error."""

    __slots__ = ("_begin",)

    def __init__(self, begin: Callable[[Resume], None]) -> None:
        self._begin = begin

    def __await__(self) -> Generator[Callable[[Resume], None], Any, Any]:
        return (yield self._begin)


class Kernel:
    """True time in seconds, and what happens when. Stands in for the event loop where the product's locks need one."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now_s = 0.0
        self.event_count = 0
        self.trace: list[str] = []
        self._queue: list[tuple[float, int, Event]] = []
        self._count = 0

    def at(self, time_s: float, event: Event) -> None:
        """Have something happen; events of the same moment happen in the order of their calls."""
        self._count += 1
        heapq.heappush(self._queue, (time_s if time_s > self.now_s else self.now_s, self._count, event))

    def after(self, delay_s: float, event: Event) -> None:
        """Have something happen after some true time."""
        self._count += 1
        heapq.heappush(self._queue, (self.now_s + delay_s, self._count, event))

    def run_until(self, end_s: float) -> None:
        """Have everything happen until then."""
        queue, pop = self._queue, heapq.heappop
        while queue and queue[0][0] <= end_s:
            self.now_s, _, event = pop(queue)
            self.event_count += 1
            event()
        self.now_s = end_s

    def note(self, what: str) -> None:
        """Put a line into the trace."""
        self.trace.append(f"{self.now_s:9.3f}  {what}")
        if len(self.trace) > 2 * TRACE_LENGTH:
            del self.trace[:TRACE_LENGTH]

    # what asyncio's locks and futures ask of a loop

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)  # type: ignore[arg-type]

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> None:
        self.at(self.now_s, lambda: callback(*args))

    def get_debug(self) -> bool:
        return False


class Clock:
    """A machine's clock, which is set by nobody and runs at its own rate."""

    def __init__(self, kernel: Kernel, drift: float) -> None:
        self._kernel = kernel
        self._drift = drift
        self._true_s = kernel.now_s
        self._local_s = kernel.random.uniform(1_000.0, 2_000.0)
        self._rate = self._any_rate()

    def _any_rate(self) -> float:
        drift = self._drift
        return self._kernel.random.choice((1 + drift, 1 / (1 + drift), self._kernel.random.uniform(1 - drift / 2, 1)))

    def now(self) -> float:
        """Read it, in seconds."""
        return self._local_s + (self._kernel.now_s - self._true_s) * self._rate

    def now_ns(self) -> int:
        """Read it, in nanoseconds."""
        return int(self.now() * 1e9)

    def change_rate(self) -> None:
        """Have it go on at another rate within the bounds."""
        self._local_s, self._true_s = self.now(), self._kernel.now_s
        self._rate = self._any_rate()

    def true_span(self, span_s: float) -> float:
        """Return how long a span of this clock truly is, at its present rate."""
        return span_s / self._rate


class Process:
    """Something that runs, may be paused, and may die."""

    def __init__(self, kernel: Kernel, name: str, clock: Clock) -> None:
        self.kernel = kernel
        self.name = name
        self.clock = clock
        self.life = 0
        self.is_up = False
        self.paused_until_s = 0.0
        self.dies_in_steps = -1
        self.on_death: Event = lambda: None

    def begin(self) -> None:
        """Start a new life."""
        self.life += 1
        self.is_up = True
        self.dies_in_steps = -1

    def die(self) -> None:
        """End; nothing of this life happens any more."""
        if self.is_up:
            self.is_up = False
            self.life += 1
            self.paused_until_s = 0.0
            self.kernel.note(f"{self.name} dies")
            self.on_death()

    def pause(self, span_s: float) -> None:
        """Do nothing for a while; what arrives waits."""
        self.paused_until_s = max(self.paused_until_s, self.kernel.now_s + span_s)

    def is_paused(self) -> bool:
        """Whether it does nothing now."""
        return self.kernel.now_s < self.paused_until_s

    def at(self, time_s: float, event: Event) -> None:
        """Have this process do something in this life, later if it is paused then."""
        life = self.life
        self.kernel.at(time_s, lambda: self.happen(life, event))

    def happen(self, life: int, event: Event) -> None:
        """Do something now, if this is still the same life; once it is not paused any more."""
        if self.life != life:
            return
        if self.kernel.now_s < self.paused_until_s:
            self.kernel.at(self.paused_until_s, lambda: self.happen(life, event))
            return
        if self.dies_in_steps >= 0:
            self.dies_in_steps -= 1
            if self.dies_in_steps < 0:
                self.die()
                return
        event()

    def sleep(self, span_s: float) -> Pause:
        """Wait for a span of this process's clock."""
        return Pause(self.clock.true_span(span_s if span_s > 1e-6 else 1e-6))

    async def sleep_for(self, span_s: float) -> None:
        """Wait; the same for those who want a coroutine function."""
        await self.sleep(span_s)

    def spawn(self, coroutine: Coroutine[Any, Any, Any], done: Resume = lambda result, error: None) -> None:
        """Run a coroutine in this life; `done` has its result or the error that it ended with."""
        life, kernel = self.life, self.kernel

        def wake() -> None:
            self.happen(life, step)

        def step() -> None:
            go_on(None, None)

        def go_on(value: Any, error: BaseException | None) -> None:
            if self.life != life:
                coroutine.close()
                return
            try:
                begin = coroutine.send(value) if error is None else coroutine.throw(error)
            except StopIteration as end:
                done(end.value, None)
                return
            except Violation:
                raise
            except Exception as failed:  # noqa: BLE001 - whoever waits for it has it
                done(None, failed)
                return
            if type(begin) is float:
                kernel.after(begin, wake)
            elif isinstance(begin, asyncio.Future):
                begin.add_done_callback(lambda future: self.at(self.kernel.now_s, lambda: go_on(None, None)))
            else:
                begin(go_on)

        go_on(None, None)

    def keep(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run a coroutine that must not fail."""

        def done(result: Any, error: BaseException | None) -> None:
            if error is not None:
                raise error

        self.spawn(coroutine, done)


class Network:
    """Messages between sites: delayed, doubled, reordered, lost; links are cut in one direction each."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.cut: set[tuple[str, str]] = set()
        self.loss = 0.0
        self.slow_s = 0.0
        self.lag_s: dict[tuple[str, str], float] = {}
        """How much later what is sent over a link arrives; what was sent before, or is sent after, overtakes it."""
        self.held: dict[tuple[str, str], list[Event]] = {}
        """What was sent over a link since it was held, and arrives when it is released."""
        self._kept: list[Event] = []
        self.straggle = 0.0
        self.is_calm = False
        self._random = kernel.random

    def send(self, source: str, target: str, deliver: Event) -> bool:
        """Have a message arrive at some time, or never, or twice; returns whether it arrives about at once."""
        draw = self._random.random
        if (self.cut and (source, target) in self.cut) or (self.loss and draw() < self.loss):
            if draw() < 0.2:  # held by some queue on the way, and sent again when nobody expects it
                self.kernel.after(self._random.uniform(1.0, 40.0), deliver)
            return False
        if self.held and (source, target) in self.held:
            self.held[source, target].append(deliver)
            return False
        delay_s = 0.001 + 0.01 * draw()
        if self.slow_s:
            delay_s += self.slow_s * draw()
        if self.straggle and draw() < self.straggle:
            delay_s += self._random.uniform(1.0, 40.0)
        if self.lag_s:
            delay_s += self.lag_s.get((source, target), 0.0)
        self.kernel.after(delay_s, deliver)
        if not self.is_calm and draw() < 0.01:
            self.kernel.after(delay_s + self._random.expovariate(0.5), deliver)
        return delay_s < AT_ONCE_S

    def hold(self, source: str, target: str) -> None:
        """Keep what is sent over a link from arriving until `release`."""
        self.held.setdefault((source, target), [])

    def stop_holding(self) -> None:
        """Have what is sent from now on arrive as usual; what was held still waits for `release`."""
        for link in list(self.held):
            self._kept += self.held.pop(link)

    def release(self) -> None:
        """Have everything arrive that was held."""
        self.stop_holding()
        for deliver in self._kept:
            self.kernel.after(0.001 + 0.01 * self._random.random(), deliver)
        self._kept.clear()

    def call(self, caller: Process, source: str, target: str, serve: Serve, limit_s: float) -> Ask:
        """Ask a site and wait for its answer.

        Args:
            serve: called at the target, with what sends the answer; an error as an answer is raised at the caller.
                Returns whether it answered at once.
            limit_s: after which the caller gives up, with `Unavailable`; the call may be carried out all the same.
        """
        return _Call(self, caller, source, target, serve, limit_s)


class _Call(Ask):
    """One call on its way. Its limit is an event only if it may be reached, since most calls are answered at once."""

    def __init__(
        self,
        network: Network,
        caller: Process,
        source: str,
        target: str,
        serve: Serve,
        limit_s: float,
    ) -> None:
        self._network, self._caller, self._life = network, caller, caller.life
        self._source, self._target, self._serve = source, target, serve
        self._limit_s = network.kernel.now_s + limit_s
        self._is_over = self._is_limited = False
        super().__init__(self._send)

    def _send(self, resume: Resume) -> None:
        self._resume = resume
        if not self._network.send(self._source, self._target, self._arrive):
            self._limit()

    def _arrive(self) -> None:
        if not self._serve(self._answer):
            self._limit()

    def _answer(self, value: Any) -> None:
        if not self._network.send(self._target, self._source, lambda: self._receive(value)):
            self._limit()

    def _receive(self, value: Any) -> None:
        if not self._is_over:
            self._caller.happen(self._life, lambda: self._end(value))

    def _limit(self) -> None:
        if not self._is_limited and not self._is_over:
            self._is_limited = True
            self._network.kernel.at(self._limit_s, lambda: self._caller.happen(self._life, self._give_up))

    def _give_up(self) -> None:
        if not self._is_over:
            self._end(Unavailable(Reason.STATE_UNAVAILABLE, f"{self._target} does not answer"))

    def _end(self, value: Any) -> None:
        if not self._is_over:
            self._is_over = True
            if isinstance(value, BaseException):
                self._resume(None, value)
            else:
                self._resume(value, None)
