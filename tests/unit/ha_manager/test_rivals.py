"""Several control planes on one database that nothing coordinates: one decides, the others say why they do not."""

from __future__ import annotations

from datetime import timedelta

from controlplane.domain.fencing import Counters, Leadership
from controlplane.domain.operation import Replica
from controlplane.services.ha_manager import CALM_S
from controlplane.services.ha_rivals import DEAD_AFTER_S
from tests.support.builders import START_OF_TIME
from tests.support.control_plane_world import World
from tests.support.ha_plane import HaPlane


def uncoordinated(world: World, name: str) -> HaPlane:
    return HaPlane(world, name=name, is_uncoordinated=True)


async def renew(plane: HaPlane) -> None:
    """Show that the process lives."""
    replica = Replica(plane.name, plane.name, START_OF_TIME, START_OF_TIME + timedelta(seconds=plane.now_s))
    await plane.world.store.run(lambda tx: tx.renew_replica(replica))


async def rounds(*planes: HaPlane, seconds: float) -> None:
    """Let time pass for all of these, which live and take their rounds."""
    for _ in range(int(seconds)):
        for plane in planes:
            plane.now_s += 1
            await renew(plane)
            await plane.manager.round()


async def leadership(world: World) -> Leadership:
    return await world.store.read(lambda tx: tx.leadership())


async def test_process_that_was_deposed_leaves_the_lead_to_the_other_and_says_why(world: World) -> None:
    first, second = uncoordinated(world, "replica-1"), uncoordinated(world, "replica-2")
    await rounds(first, seconds=2)
    await rounds(first, second, seconds=60)

    found = await leadership(world)
    assert (found.epoch, found.leader_id) == (2, "replica-2")
    assert (first.manager.is_leader, second.manager.is_leader) == (False, True)
    assert "the control plane on replica-2.example (replica-2) decides on the same database" in first.manager.obstacle
    assert "the same etcd, or stop all but one" in first.manager.obstacle
    assert second.manager.obstacle == ""


async def test_process_decides_again_once_the_other_shows_no_sign_of_life(world: World) -> None:
    first, second = uncoordinated(world, "replica-1"), uncoordinated(world, "replica-2")
    await rounds(first, seconds=2)
    await rounds(first, second, seconds=10)

    await rounds(first, seconds=DEAD_AFTER_S + CALM_S + 1)

    assert (first.manager.is_leader, first.manager.obstacle) == (True, "")
    assert (await leadership(world)).leader_id == "replica-1"


async def test_process_that_ended_in_order_is_followed_at_once(world: World) -> None:
    first, second = uncoordinated(world, "replica-1"), uncoordinated(world, "replica-2")
    await rounds(first, seconds=2)
    await rounds(first, second, seconds=10)
    await world.store.run(lambda tx: tx.remove_replica("replica-2"))

    await rounds(first, seconds=1)

    assert first.manager.is_leader


async def test_restarted_process_waits_for_nobody(world: World) -> None:
    before = uncoordinated(world, "replica-1")
    await rounds(before, seconds=3)
    after = uncoordinated(world, "replica-2")

    await rounds(after, seconds=1)

    assert after.manager.is_leader


async def test_epoch_that_was_only_raised_is_nobody_elses(world: World) -> None:
    plane = uncoordinated(world, "replica-1")
    await rounds(plane, seconds=2)

    await world.store.run(lambda tx: tx.raise_counters(Counters(epoch=50)))
    await rounds(plane, seconds=CALM_S + 2)

    found = await leadership(world)
    assert (found.epoch, found.leader_id) == (51, "replica-1")
    assert plane.manager.is_leader
