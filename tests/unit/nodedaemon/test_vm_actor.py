"""One queue a VM: in order, bounded, finished once begun."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from limiquantix.errors import DeadlineExceeded, ResourceExhausted, Unavailable
from nodedaemon.vm_actor import VmActors

DEADLINE_S = 30.0


@pytest.fixture
async def actors() -> AsyncIterator[VmActors]:
    actors = VmActors(max_concurrent=2, max_queued=3)
    yield actors
    await actors.close(0)


class Gate:
    """An operation that notes when it began and ends when told."""

    def __init__(self) -> None:
        self.began, self.may_end, self.has_ended = asyncio.Event(), asyncio.Event(), False

    async def __call__(self) -> str:
        self.began.set()
        await self.may_end.wait()
        self.has_ended = True
        return "done"


async def test_run_returns_and_raises_what_the_operation_does(actors: VmActors) -> None:
    async def fail() -> None:
        raise KeyError("x")

    async def succeed() -> int:
        return 7

    assert await actors.run("a", succeed, deadline_s=DEADLINE_S) == 7
    with pytest.raises(KeyError):
        await actors.run("a", fail, deadline_s=DEADLINE_S)
    assert await actors.run("a", succeed, deadline_s=DEADLINE_S) == 7


async def test_operations_of_one_vm_run_in_order_never_at_once(actors: VmActors) -> None:
    log: list[str] = []

    async def work(name: str) -> None:
        log.append(f"+{name}")
        await asyncio.sleep(0)
        log.append(f"-{name}")

    await asyncio.gather(*(actors.run("a", lambda n=n: work(n), deadline_s=DEADLINE_S) for n in "123"))  # type: ignore[misc]
    assert log == ["+1", "-1", "+2", "-2", "+3", "-3"]


async def test_operations_of_different_vms_run_at_once_up_to_the_limit(actors: VmActors) -> None:
    gates = [Gate() for _ in range(3)]
    runs = [asyncio.create_task(actors.run(str(n), gate, deadline_s=DEADLINE_S)) for n, gate in enumerate(gates)]
    await gates[0].began.wait()
    await gates[1].began.wait()
    waiter = Gate()
    waiting = asyncio.create_task(actors.run("w", waiter, deadline_s=DEADLINE_S, takes_slot=False))
    await waiter.began.wait()  # it takes no slot, so it begins although all are taken
    assert not gates[2].began.is_set()
    gates[0].may_end.set()
    await gates[2].began.wait()
    for gate in (*gates, waiter):
        gate.may_end.set()
    assert await asyncio.gather(*runs, waiting) == ["done"] * 4


async def test_queue_that_is_full_refuses(actors: VmActors) -> None:
    gate = Gate()
    running = asyncio.create_task(actors.run("a", gate, deadline_s=DEADLINE_S))
    await gate.began.wait()
    queued = [asyncio.create_task(actors.run("a", gate, deadline_s=DEADLINE_S)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhausted, match="3 operations wait"):
        await actors.run("a", gate, deadline_s=DEADLINE_S)
    gate.may_end.set()
    await asyncio.gather(running, *queued)


async def test_caller_that_goes_away_does_not_stop_what_has_begun(actors: VmActors) -> None:
    gate = Gate()
    caller = asyncio.create_task(actors.run("a", gate, deadline_s=DEADLINE_S))
    await gate.began.wait()
    caller.cancel()
    gate.may_end.set()
    after = Gate()
    after.may_end.set()
    await actors.run("a", after, deadline_s=DEADLINE_S)
    assert gate.has_ended


async def test_caller_that_goes_away_early_takes_its_operation_along(actors: VmActors) -> None:
    first, second, third = Gate(), Gate(), Gate()
    running = asyncio.create_task(actors.run("a", first, deadline_s=DEADLINE_S))
    await first.began.wait()
    caller = asyncio.create_task(actors.run("a", second, deadline_s=DEADLINE_S))
    await asyncio.sleep(0)
    caller.cancel()
    for gate in (first, second, third):
        gate.may_end.set()
    await actors.run("a", third, deadline_s=DEADLINE_S)
    await running
    assert not second.began.is_set()


async def test_operation_beyond_its_deadline_is_cancelled_and_the_queue_goes_on(actors: VmActors) -> None:
    with pytest.raises(DeadlineExceeded, match=r"did not finish in 0\.01 s"):
        await actors.run("a", Gate(), deadline_s=0.01)
    after = Gate()
    after.may_end.set()
    assert await actors.run("a", after, deadline_s=DEADLINE_S) == "done"


async def test_time_out_inside_an_operation_is_not_taken_for_its_deadline(actors: VmActors) -> None:
    async def time_out() -> None:
        raise TimeoutError("inner")

    with pytest.raises(TimeoutError, match="inner"):
        await actors.run("a", time_out, deadline_s=DEADLINE_S)


async def test_close_refuses_what_waits_and_lets_what_runs_finish(actors: VmActors) -> None:
    gate = Gate()
    running = asyncio.create_task(actors.run("a", gate, deadline_s=DEADLINE_S))
    await gate.began.wait()
    queued = asyncio.create_task(actors.run("a", Gate(), deadline_s=DEADLINE_S))
    await asyncio.sleep(0)
    closing = asyncio.create_task(actors.close(DEADLINE_S))
    with pytest.raises(Unavailable):
        await queued
    gate.may_end.set()
    assert await running == "done"
    await closing
    with pytest.raises(Unavailable):
        await actors.run("a", gate, deadline_s=DEADLINE_S)


async def test_close_cancels_what_does_not_finish_in_time(actors: VmActors) -> None:
    gate = Gate()
    running = asyncio.create_task(actors.run("a", gate, deadline_s=DEADLINE_S))
    await gate.began.wait()
    await actors.close(0.01)
    with pytest.raises(Unavailable, match="stopping"):
        await running
    assert not gate.has_ended
