"""What a process knows of roles: read once for all who ask at once, and never trusted for longer than it says."""

from __future__ import annotations

import asyncio

import pytest

from controlplane.access.memory import REFRESH_S, AccessMemory
from controlplane.domain import errors
from controlplane.domain.access import ADMIN, THE_CLUSTER
from limiquantix.errors import Unavailable
from tests.support.access_scene import bound, user, write
from tests.support.control_plane_world import World
from tests.support.slow_store import SlowStore

MANY = 1_000


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def slow(world: World) -> SlowStore:
    return SlowStore(world.store)


async def test_herd_after_a_change_of_roles_reads_once(slow: SlowStore, world: World) -> None:
    clock = Clock()
    memory = AccessMemory(slow, clock)
    await memory.tree()
    await write(world.store, bound("user:ada", ADMIN))
    clock.now_s += REFRESH_S + 0.1
    slow.read_count = 0

    trees = await asyncio.gather(*(memory.tree() for _ in range(MANY)))

    assert slow.read_count == 2  # the counter, and the facts
    assert len(set(map(id, trees))) == 1
    assert trees[0].permissions(user("ada"), THE_CLUSTER)


async def test_herd_while_the_database_is_away_waits_for_one_failure(slow: SlowStore) -> None:
    clock = Clock()
    memory = AccessMemory(slow, clock)
    await memory.tree()
    clock.now_s += REFRESH_S + 0.1
    slow.read_count, slow.failure = 0, errors.state_unavailable("it is being restarted")

    answers = await asyncio.gather(*(memory.tree() for _ in range(MANY)), return_exceptions=True)

    assert {type(answer) for answer in answers} == {Unavailable}
    assert slow.read_count <= 2  # that of the first, and one that began after all others had asked
    slow.failure = None
    await memory.tree()


async def test_reading_that_was_cancelled_is_done_by_the_next(slow: SlowStore) -> None:
    memory = AccessMemory(slow, Clock())
    first = asyncio.create_task(memory.tree())
    await asyncio.wait_for(slow.reading.wait(), 30)
    second = asyncio.create_task(memory.tree())
    await asyncio.sleep(0)
    first.cancel()

    assert (await second).revision == memory.latest.revision
