"""One queue a VM: in order, bounded, finished once begun, unless a newer generation comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from limiquantix.errors import Aborted, DeadlineExceeded, ResourceExhausted, Unavailable
from nodedaemon.vm_actor import VmActors

DEADLINE_S = 30.0


@pytest.fixture
async def actors() -> AsyncIterator[VmActors]:
    actors = VmActors(max_concurrent=2, max_queued=3)
    yield actors
    await actors.close(0)


class Gate:
    """An operation that notes when it began and ends when told, or is cancelled."""

    def __init__(self) -> None:
        self.began, self.may_end, self.has_ended, self.was_cancelled = asyncio.Event(), asyncio.Event(), False, False

    async def __call__(self) -> str:
        self.began.set()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        self.has_ended = True
        return "done"


def open_gate() -> Gate:
    gate = Gate()
    gate.may_end.set()
    return gate


async def begun(actors: VmActors, gate: Gate, generation: int, *, is_interruptible: bool = False) -> asyncio.Task[str]:
    """Run an operation of a generation and wait until it began."""
    task = asyncio.create_task(
        actors.run("a", gate, deadline_s=DEADLINE_S, generation=generation, is_interruptible=is_interruptible)
    )
    await gate.began.wait()
    return task


async def queued(actors: VmActors, gate: Gate, generation: int) -> asyncio.Task[str]:
    """Queue an operation of a generation behind what runs."""
    task = asyncio.create_task(actors.run("a", gate, deadline_s=DEADLINE_S, generation=generation))
    await asyncio.sleep(0)
    return task


async def overtaken(task: asyncio.Task[str]) -> dict[str, str]:
    """Wait for the refusal of an older operation and return its facts."""
    with pytest.raises(Aborted) as caught:
        async with asyncio.timeout(DEADLINE_S):
            await task
    assert caught.value.reason == "STALE_GENERATION"
    return dict(caught.value.metadata)


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


async def test_newer_operation_ends_an_older_one_that_may_be_ended_and_runs_next(actors: VmActors) -> None:
    waiting, behind, newer = Gate(), open_gate(), open_gate()
    older = await begun(actors, waiting, 5, is_interruptible=True)
    refused = await queued(actors, behind, 5)
    assert await actors.run("a", newer, deadline_s=DEADLINE_S, generation=6) == "done"
    assert await overtaken(older) == {"vm_id": "a", "generation": "5", "newest": "6"}
    assert await overtaken(refused) == {"vm_id": "a", "generation": "5", "newest": "6"}
    assert waiting.was_cancelled
    assert not behind.began.is_set()


async def test_newer_operation_waits_for_an_older_one_that_may_not_be_ended(actors: VmActors) -> None:
    creating, behind, newer = Gate(), open_gate(), open_gate()
    older = await begun(actors, creating, 5)
    refused = await queued(actors, behind, 4)
    deleting = await queued(actors, newer, 6)
    await overtaken(refused)  # at once, not when its turn comes
    assert not newer.began.is_set()
    creating.may_end.set()
    assert list(await asyncio.gather(older, deleting)) == ["done", "done"]
    assert not behind.began.is_set()


async def test_operation_of_the_same_generation_or_of_none_makes_nothing_end(actors: VmActors) -> None:
    waiting = Gate()
    running = await begun(actors, waiting, 5, is_interruptible=True)
    others = [await queued(actors, open_gate(), generation) for generation in (5, 0, 5)]
    waiting.may_end.set()
    assert await asyncio.gather(running, *others) == ["done"] * 4


async def test_operation_without_a_generation_is_not_ended_by_a_newer_one(actors: VmActors) -> None:
    waiting = Gate()
    running = await begun(actors, waiting, 0, is_interruptible=True)
    unchecked, newer = await queued(actors, open_gate(), 0), await queued(actors, open_gate(), 6)
    waiting.may_end.set()
    assert list(await asyncio.gather(running, unchecked, newer)) == ["done"] * 3


async def test_older_operation_that_waits_for_a_slot_is_refused_without_one(actors: VmActors) -> None:
    busy = [Gate(), Gate()]
    runs = [asyncio.create_task(actors.run(str(n), gate, deadline_s=DEADLINE_S)) for n, gate in enumerate(busy)]
    for gate in busy:
        await gate.began.wait()
    behind, newer = open_gate(), open_gate()
    older = await queued(actors, behind, 5)
    await asyncio.sleep(0)  # it has left the queue and waits for one of the two slots
    stopping = actors.run("a", newer, deadline_s=DEADLINE_S, generation=6, takes_slot=False)
    assert await stopping == "done"
    await overtaken(older)
    assert not behind.began.is_set()
    for gate in busy:
        gate.may_end.set()
    await asyncio.gather(*runs)


async def test_slot_that_comes_free_at_the_moment_of_refusal_is_given_back(actors: VmActors) -> None:
    busy = [Gate(), Gate()]
    runs = [asyncio.create_task(actors.run(str(n), gate, deadline_s=DEADLINE_S)) for n, gate in enumerate(busy)]
    for gate in busy:
        await gate.began.wait()
    behind = open_gate()
    older = await queued(actors, behind, 5)
    await asyncio.sleep(0)
    for gate in busy:
        gate.may_end.set()
    newer = await queued(actors, open_gate(), 6)
    await asyncio.gather(*runs)
    outcome = (await asyncio.gather(older, return_exceptions=True))[0]
    assert isinstance(outcome, Aborted) != behind.has_ended  # refused or done, never both or neither
    assert await newer == "done"
    again = [await queued(actors, open_gate(), 7), asyncio.create_task(actors.run("b", open_gate(), deadline_s=9))]
    assert await asyncio.gather(*again) == ["done", "done"]


async def test_full_queue_of_older_operations_has_room_for_a_newer_one(actors: VmActors) -> None:
    first = Gate()
    running = await begun(actors, first, 1)
    waiting = [await queued(actors, open_gate(), 1) for _ in range(3)]
    newer = await queued(actors, open_gate(), 2)
    for task in waiting:
        await overtaken(task)
    first.may_end.set()
    assert list(await asyncio.gather(running, newer)) == ["done", "done"]


async def test_operation_that_ends_by_itself_just_then_keeps_its_result(actors: VmActors) -> None:
    gate = Gate()
    older = await begun(actors, gate, 5, is_interruptible=True)
    gate.may_end.set()
    newer = await queued(actors, open_gate(), 6)
    outcome = (await asyncio.gather(older, return_exceptions=True))[0]
    assert (outcome == "done") is gate.has_ended
    assert await newer == "done"


async def test_ended_operation_whose_caller_went_away_lets_the_queue_go_on(actors: VmActors) -> None:
    gate = Gate()
    older = await begun(actors, gate, 5, is_interruptible=True)
    older.cancel()
    assert await actors.run("a", open_gate(), deadline_s=DEADLINE_S, generation=6) == "done"
    assert gate.was_cancelled


async def test_newer_caller_that_goes_away_early_leaves_the_older_ones_refused(actors: VmActors) -> None:
    gate = Gate()
    older = await begun(actors, gate, 5)
    refused, newer_gate = await queued(actors, open_gate(), 5), open_gate()
    newer = await queued(actors, newer_gate, 6)
    newer.cancel()
    gate.may_end.set()
    await overtaken(refused)
    assert await older == "done"
    assert await actors.run("a", open_gate(), deadline_s=DEADLINE_S, generation=6) == "done"
    assert not newer_gate.began.is_set()
