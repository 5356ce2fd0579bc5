"""Many who ask at once who may call: one looks, and all are told what came of it."""

from __future__ import annotations

import asyncio

import pytest

from controlplane.domain import errors
from controlplane.identity.callers import KnownCallers
from limiquantix.errors import Unavailable
from tests.support.control_plane_world import World
from tests.support.identity_scene import Clock, Plane
from tests.support.slow_store import SlowStore

MANY = 1_000


@pytest.fixture
def slow(world: World) -> SlowStore:
    return SlowStore(world.store)


async def test_all_who_ask_at_once_share_a_look(slow: SlowStore) -> None:
    callers = KnownCallers(slow, Clock(), Clock().monotonic)

    await asyncio.gather(*(callers.ensure() for _ in range(MANY)))

    assert slow.read_count <= 2  # the counter, and what changed


async def test_all_who_change_something_at_once_share_the_look_after_it(slow: SlowStore) -> None:
    callers = KnownCallers(slow, Clock(), Clock().monotonic)
    await callers.ensure()
    slow.read_count = 0

    await asyncio.gather(*(callers.look() for _ in range(MANY)))

    assert slow.read_count <= 2  # that of the first, and one that began after all others had asked


async def test_all_who_wait_for_a_look_that_fails_are_told_with_it(slow: SlowStore) -> None:
    callers = KnownCallers(slow, Clock(), Clock().monotonic)
    slow.failure = errors.state_unavailable("it is being restarted")

    answers = await asyncio.gather(*(callers.ensure() for _ in range(MANY)), return_exceptions=True)

    assert {type(answer) for answer in answers} == {Unavailable}
    assert slow.read_count <= 2  # that of the first, and one that began after all others had asked
    slow.failure = None
    await callers.ensure()


async def test_look_that_was_cancelled_is_nobody_s_answer(slow: SlowStore) -> None:
    callers = KnownCallers(slow, Clock(), Clock().monotonic)
    first = asyncio.create_task(callers.ensure())
    await asyncio.wait_for(slow.reading.wait(), 30)
    others = [asyncio.create_task(callers.ensure()) for _ in range(3)]
    await asyncio.sleep(0)
    first.cancel()

    await asyncio.gather(*others)

    assert callers.is_trusted()
    assert slow.read_count >= 2


async def test_tokens_do_not_fill_the_memory(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is forgotten is examined again; those in use last are kept."""
    monkeypatch.setattr("controlplane.identity.authenticator.MAX_REMEMBERED", 8)
    plane = Plane(world.store, Clock())
    user = await plane.add_user()
    tokens = [(await plane.keys.sign(user.id, f"session-{number}"))[0] for number in range(20)]

    for token in tokens:
        assert (await plane.who(token)).id == user.id
        assert len(plane.authenticator._remembered) <= 8

    assert (await plane.who(tokens[0])).id == user.id
