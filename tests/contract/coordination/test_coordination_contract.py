"""What every coordinator promises: election, marks and wake-ups, seen by several processes."""

from __future__ import annotations

import asyncio

from controlplane.coordination.interface import RevocationMark
from tests.contract.coordination.conftest import SESSION_S, MakeCoordinator
from tests.support.elections import candidate, listening, until, until_elected, until_not_elected


async def test_elect_alone_is_elected_and_everybody_can_read_who(make_coordinator: MakeCoordinator) -> None:
    first, other = make_coordinator(), make_coordinator()
    assert await other.leader() is None

    async with first.elect(candidate("a")) as election:
        await until_elected(election)

        assert election.obstacle == ""
        assert await other.leader() == await first.leader() == candidate("a")
    assert await other.leader() is None


async def test_elect_several_at_once_elects_one(make_coordinator: MakeCoordinator) -> None:
    coordinators = [make_coordinator() for _ in range(3)]
    async with (
        coordinators[0].elect(candidate("a")) as a,
        coordinators[1].elect(candidate("b")) as b,
        coordinators[2].elect(candidate("c")) as c,
    ):
        elections = {"a": a, "b": b, "c": c}
        await until(lambda: any(election.is_elected for election in elections.values()))
        await until(lambda: not any(election.obstacle for election in elections.values()))

        elected = [name for name, election in elections.items() if election.is_elected]
        assert len(elected) == 1
        assert await coordinators[0].leader() == candidate(elected[0])


async def test_resign_elects_the_next_at_once_and_for_good(make_coordinator: MakeCoordinator) -> None:
    first, second = make_coordinator(), make_coordinator()
    async with first.elect(candidate("a")) as a:
        await until_elected(a)
        async with second.elect(candidate("b")) as b:
            await until(lambda: not b.obstacle)
            assert not b.is_elected

            await a.resign()

            assert not a.is_elected
            await until_elected(b, patience_s=SESSION_S / 2)
            assert await first.leader() == candidate("b")
        await a.resign()  # once more is harmless
        assert await first.leader() is None


async def test_elect_end_of_the_context_resigns(make_coordinator: MakeCoordinator) -> None:
    first, second = make_coordinator(), make_coordinator()
    async with second.elect(candidate("b")) as b:
        await until_elected(b)
        waiting = asyncio.create_task(b.changed())
        async with first.elect(candidate("a")) as a:
            assert not a.is_elected
        assert b.is_elected
        waiting.cancel()

    assert not b.is_elected
    assert not a.is_elected
    async with first.elect(candidate("a")) as again:
        await until_elected(again, patience_s=SESSION_S / 2)


async def test_changed_ends_the_wait_of_whoever_resigns(make_coordinator: MakeCoordinator) -> None:
    async with make_coordinator().elect(candidate("a")) as election:
        await until_elected(election)
        waiting = asyncio.create_task(until_not_elected(election))

        await election.resign()

        await asyncio.wait_for(waiting, 60)
        assert not election.is_elected


async def test_revocations_published_by_one_are_read_by_another(make_coordinator: MakeCoordinator) -> None:
    first, second = make_coordinator(), make_coordinator()
    assert await second.revocations() == {}

    await first.publish_revocation(RevocationMark("node-1", 7))
    assert await second.revocations() == {"node-1": 7}

    await second.publish_revocation(RevocationMark("node-2", 1))
    assert await first.revocations() == {"node-1": 7, "node-2": 1}


async def test_publish_revocation_smaller_token_changes_nothing(make_coordinator: MakeCoordinator) -> None:
    coordinator = make_coordinator()
    for token in (9, 10, 2, 10, 9):
        await coordinator.publish_revocation(RevocationMark("node-1", token))

    assert await coordinator.revocations() == {"node-1": 10}
    await coordinator.publish_revocation(RevocationMark("node-1", 2**62))
    assert await coordinator.revocations() == {"node-1": 2**62}


async def test_clear_revocation_takes_back_unless_a_larger_token_was_published(
    make_coordinator: MakeCoordinator,
) -> None:
    coordinator = make_coordinator()
    await coordinator.clear_revocation(RevocationMark("node-1", 3))  # of none is harmless
    await coordinator.publish_revocation(RevocationMark("node-1", 10))

    await coordinator.clear_revocation(RevocationMark("node-1", 9))
    assert await coordinator.revocations() == {"node-1": 10}

    await coordinator.clear_revocation(RevocationMark("node-1", 10))
    await coordinator.clear_revocation(RevocationMark("node-1", 10))
    assert await coordinator.revocations() == {}

    await coordinator.publish_revocation(RevocationMark("node-1", 11))
    await coordinator.clear_revocation(RevocationMark("node-1", 12))
    assert await coordinator.revocations() == {}


async def test_wake_reaches_all_that_listen_to_the_topic_and_no_others(make_coordinator: MakeCoordinator) -> None:
    first, second = make_coordinator(), make_coordinator()
    async with (
        listening(first, "a") as at_first,
        listening(second, "a") as at_second,
        listening(second, "b") as elsewhere,
    ):
        everyone = (at_first, at_second, elsewhere)
        await until(lambda: all(listener.count for listener in everyone))  # each looks once when it begins to listen
        counts = [listener.count for listener in everyone]

        await first.wake("a")
        await until(lambda: at_first.count > counts[0] and at_second.count > counts[1])
        await second.wake("b")
        await until(lambda: elsewhere.count > counts[2])

        assert elsewhere.count == counts[2] + 1


async def test_check_of_what_works_passes(make_coordinator: MakeCoordinator) -> None:
    await make_coordinator().check()
