"""A host that cannot let go of a VM that was started elsewhere is asked again more and more slowly."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controlplane.domain.back_off import MAX_BACK_OFF_S, back_off_s
from controlplane.domain.operation import OperationFilter
from controlplane.operations.vm_release import ReleaseVm
from controlplane.state.factory import create_store
from limiquantix.errors import FailedPrecondition, Reason
from tests.support.control_plane_world import World
from tests.support.databases import fresh_sqlite
from tests.support.failover_scene import FailoverScene, failover_scene, world_with_failover
from tests.support.stores import PATIENT


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = create_store(fresh_sqlite(tmp_path), PATIENT)
    await store.open()
    yield world_with_failover(store)
    await store.close()


async def came_back(world: World) -> FailoverScene:
    """A host that is back, has a definition of a VM that runs elsewhere, and cannot let go of it."""
    scene = await failover_scene(world)
    fence = await scene.die()
    await scene.fail_over(fence.id)
    await scene.come_back(fence)
    scene.dead.fail("release_vm", FailedPrecondition(Reason.HYPERVISOR_REFUSED, "its files are busy"))
    return scene


async def report(scene: FailoverScene, *, after_s: float) -> int:
    """Send a full state once this time is over; returns how often the host was asked to let go so far."""
    scene.world.clock.advance(after_s)
    await scene.world.report_everything(scene.home.id)
    await scene.world.settle()
    wanted = OperationFilter(resource_id=scene.vm.id, kinds=frozenset({ReleaseVm.kind}))
    return len((await scene.world.desk.list(wanted, None, 100)).items)


async def test_time_between_attempts_doubles_and_has_an_end(world: World) -> None:
    scene = await came_back(world)

    assert [await report(scene, after_s=1.0) for _ in range(8)] == [1, 2, 2, 3, 3, 3, 3, 4]

    for _ in range(12):
        await report(scene, after_s=MAX_BACK_OFF_S)
    count = await report(scene, after_s=MAX_BACK_OFF_S)
    assert await report(scene, after_s=MAX_BACK_OFF_S - 1) == count
    assert await report(scene, after_s=1.0) == count + 1


async def test_release_that_succeeds_ends_it(world: World) -> None:
    scene = await came_back(world)
    await report(scene, after_s=1.0)
    scene.dead.heal()

    await report(scene, after_s=1.0)

    assert scene.vm.id not in scene.dead.vms


def test_back_off_doubles_from_a_second_to_five_minutes() -> None:
    assert [back_off_s(count) for count in (0, 1, 2, 3, 9, 10, 10_000)] == [0.0, 1.0, 2.0, 4.0, 256.0, 300.0, 300.0]
