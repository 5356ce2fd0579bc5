"""The queue of one watcher: bounded, and told when and why it ended."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from controlplane.domain import errors
from controlplane.domain.event import VM, Change, Event, EventType, LoggedEvent
from controlplane.events.shared import SharedEvent
from controlplane.events.subscription import QueueLimits, Subscription
from limiquantix.errors import NotFound, Reason, ResourceExhausted
from tests.support.builders import START_OF_TIME

DEADLINE_S = 60.0


def shared(revision: int, resource_id: str = "vm", document: bytes = b"") -> SharedEvent:
    event = Event(EventType.VM_UPDATED)
    return SharedEvent(
        LoggedEvent(
            str(revision), revision, START_OF_TIME, VM, resource_id, 1, "p", "n", Change.MODIFIED, event, document
        )
    )


def subscription(start: int = 0, **limits: int) -> Subscription:
    return Subscription(start, lambda each: each.entry.resource_id == "vm", QueueLimits(**limits))


async def test_entries_that_nobody_wants_do_not_wait_but_move_the_position() -> None:
    subject = subscription()
    subject.offer([shared(1, "other"), shared(2), shared(3, "other")], 3)
    assert (subject.waiting_count, subject.position) == (1, 3)
    taken = await subject.next()
    assert taken is not None
    assert (taken.revision, subject.take()) == (2, None)


async def test_entries_beyond_a_revision_stay() -> None:
    subject = subscription()
    subject.offer([shared(1), shared(2)], 2)
    taken = subject.take(up_to=1)
    assert taken is not None
    assert (taken.revision, subject.take(up_to=1), subject.waiting_count) == (1, None, 1)


async def test_waiting_watcher_is_woken_by_an_entry_and_not_by_those_of_others() -> None:
    subject = subscription()
    waiting = asyncio.create_task(subject.next())
    await asyncio.sleep(0)
    subject.offer([shared(1, "other")], 1)
    await asyncio.sleep(0)
    assert not waiting.done()
    subject.offer([shared(2)], 2)
    taken = await asyncio.wait_for(waiting, DEADLINE_S)
    assert taken is not None
    assert taken.revision == 2


async def test_watcher_whose_patience_ends_gets_nothing_and_can_go_on() -> None:
    subject = subscription()
    assert await asyncio.wait_for(subject.next(0.01), DEADLINE_S) is None
    subject.offer([shared(1)], 1)
    assert await subject.next(0.01) is not None


async def test_reaching_a_revision_waits_for_it_also_if_nothing_of_it_is_wanted() -> None:
    subject = subscription(start=5)
    await asyncio.wait_for(subject.reach(5), DEADLINE_S)
    reaching = asyncio.create_task(subject.reach(7))
    await asyncio.sleep(0)
    subject.offer([shared(6, "other")], 6)
    await asyncio.sleep(0)
    assert not reaching.done()
    subject.offer([shared(7, "other")], 7)
    await asyncio.wait_for(reaching, DEADLINE_S)
    assert subject.position == 7


@pytest.mark.parametrize("limits", [{"entry_count": 3}, {"total_bytes": 3 * 5_000}], ids=["count", "bytes"])
async def test_watcher_that_takes_nothing_ends_and_its_queue_goes_at_once(limits: dict[str, int]) -> None:
    subject = subscription(**limits)
    subject.delivered = 41
    for revision in range(42, 45):
        subject.offer([shared(revision, document=b"x" * 700)], revision)
    assert subject.waiting_count == 3
    subject.offer([shared(45, document=b"x" * 700)], 45)
    assert (subject.has_ended, subject.waiting_count) == (True, 0)
    subject.offer([shared(46)], 46)
    assert subject.waiting_count == 0
    for ask in (subject.next, lambda: subject.reach(50)):
        with pytest.raises(ResourceExhausted) as refusal:
            await ask()
        assert (refusal.value.reason, refusal.value.metadata) == (Reason.WATCH_TOO_SLOW, {"from_revision": "41"})


async def test_watcher_that_waits_when_its_subscription_ends_is_told_the_first_reason() -> None:
    subject = subscription()
    waiting = asyncio.create_task(subject.next())
    await asyncio.sleep(0)
    subject.end(errors.vm_not_found("x"))
    subject.end(errors.watch_too_slow(1))
    with pytest.raises(NotFound):
        await asyncio.wait_for(waiting, DEADLINE_S)


async def test_revision_to_continue_from_grows_with_the_log_only_while_nothing_waits() -> None:
    subject = subscription()
    subject.delivered = 1
    subject.offer([shared(2, "other")], 2)
    assert subject.covered == 1  # what it missed before it came may not be told yet
    subject.is_up_to_date = True
    assert subject.covered == 2
    subject.offer([shared(3), shared(4, "other")], 4)
    assert subject.covered == 1


@pytest.mark.parametrize(
    ("waiting_count", "sending_for_s", "is_worth"), [(6, None, True), (6, 0.1, True), (6, 3.0, False), (5, None, False)]
)
async def test_hub_waits_only_for_watchers_that_are_behind_and_take_something(
    waiting_count: int, sending_for_s: float | None, is_worth: bool
) -> None:
    subject = subscription(entry_count=10)
    subject.offer([shared(revision) for revision in range(1, waiting_count + 1)], waiting_count)
    now_s: Any = asyncio.get_running_loop().time()
    if sending_for_s is not None:
        subject.begin_sending()
        now_s += sending_for_s
    assert subject.is_worth_waiting_for(now_s, 0.25) is is_worth
