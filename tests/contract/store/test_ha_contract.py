"""Store contract of high availability: epochs, fences, guards and settings, and two processes that race for each."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from controlplane.domain.event import Change, EventFilter, EventType, LoggedEvent, Severity
from controlplane.domain.fencing import Fence, FenceFilter, FenceState, HaSettings, Leadership, NodeGuard
from controlplane.domain.node import Node
from controlplane.events.compaction import CompactionConfig, EventLogCompactor
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1.ha_service_pb2 import FENCE_METHOD_OPERATOR, FENCE_METHOD_POWER_OFF
from limiquantix.errors import Aborted, ApiError, NotFound, Reason
from tests.support.builders import START_OF_TIME, make_id, make_node
from tests.support.fences import ended, make_fence, opened, proven, written
from tests.support.stores import Stop, add, node_in

SECOND = timedelta(seconds=1)


@pytest.fixture
async def node(store: Store) -> Node:
    new = make_node(hostname="lost")
    await add(store, new)
    return new


async def lead(store: Store, leader_id: str) -> Leadership:
    return await store.run(lambda tx: tx.take_leadership(leader_id, f"host-of-{leader_id}", START_OF_TIME))


async def fence_in(store: Store, fence_id: str) -> Fence:
    found = await store.read(lambda tx: tx.get_fence(fence_id))
    assert found is not None
    return found


async def objected(store: Store, node_id: str) -> Sequence[str]:
    return await store.run(lambda tx: tx.object_to_fences([node_id], "process-2"))


async def log_of(store: Store, resource_id: str) -> list[LoggedEvent]:
    return list(await store.read(lambda tx: tx.newest_events(EventFilter(resource_id), 100)))


# -- leadership


async def test_each_leader_has_a_larger_epoch_and_the_one_before_writes_nothing_more(store: Store) -> None:
    assert await store.read(lambda tx: tx.leadership()) == Leadership(0, "", "", None)
    first, second = await lead(store, "a"), await lead(store, "b")
    assert (first.epoch, second.epoch) == (1, 2)
    assert await store.read(lambda tx: tx.leadership()) == second

    new = make_node()

    async def decide(tx: Transaction) -> None:
        await tx.insert_node(new)
        await tx.require_epoch(first.epoch)

    with pytest.raises(Aborted, match="epoch 1 is over: b decides in epoch 2") as refused:
        await store.run(decide)
    assert refused.value.reason == Reason.STALE_EPOCH
    assert await store.read(lambda tx: tx.get_node(new.id)) is None
    await store.run(lambda tx: tx.require_epoch(second.epoch))


async def test_processes_that_take_leadership_at_once_get_different_epochs(store: Store, other: Store) -> None:
    taken = await asyncio.gather(*(lead(each, str(number)) for number in range(5) for each in (store, other)))
    assert sorted(each.epoch for each in taken) == list(range(1, 11))


async def test_nobody_begins_an_epoch_while_another_one_is_held(store: Store, other: Store) -> None:
    epoch = (await lead(store, "a")).epoch
    stop = Stop()

    async def decide(tx: Transaction) -> None:
        await tx.require_epoch(epoch)
        stop.here()

    deciding = asyncio.create_task(store.run(decide))
    await stop.reached()
    taking = asyncio.create_task(lead(other, "b"))
    await asyncio.wait([taking], timeout=0.3)
    assert not taking.done()
    stop.go_on()
    await deciding
    assert (await taking).epoch == epoch + 1
    with pytest.raises(Aborted, match="is over"):
        await store.run(decide)


# -- settings


async def test_settings_are_armed_at_first_and_changed_only_by_who_read_the_newest(store: Store, other: Store) -> None:
    first = await store.read(lambda tx: tx.ha_settings())
    assert first == HaSettings(is_armed=True, version=1)
    disarmed = replace(first, is_armed=False, reason="new switch", changed_by="eve", changed_at=START_OF_TIME)
    assert await store.run(lambda tx: tx.update_ha_settings(disarmed)) == replace(disarmed, version=2)
    with pytest.raises(Aborted):
        await other.run(lambda tx: tx.update_ha_settings(disarmed))
    assert await other.read(lambda tx: tx.ha_settings()) == replace(disarmed, version=2)
    await store.run(lambda tx: tx.update_ha_settings(replace(disarmed, is_armed=True, version=2)))

    told = await log_of(store, "")
    assert [(entry.event.type, entry.event.actor, entry.resource_type) for entry in told] == [
        (EventType.HA_ARMED, "eve", "cluster"),
        (EventType.HA_DISARMED, "eve", "cluster"),
    ]
    assert told[1].event.message == "high availability is disarmed: new switch"


async def test_longest_wait_grows_by_itself_and_is_shortened_only_when_asked(store: Store, other: Store) -> None:
    before = await store.read(lambda tx: tx.ha_settings())
    assert await store.run(lambda tx: tx.declare_wait(20_000)) == 20_000
    assert await other.run(lambda tx: tx.declare_wait(13_600)) == 20_000
    await store.run(lambda tx: tx.update_ha_settings(replace(before, is_armed=False)))
    after = await other.read(lambda tx: tx.ha_settings())
    assert (after.longest_wait_ms, after.version) == (20_000, before.version + 1)
    assert await other.run(lambda tx: tx.declare_wait(13_600, may_shorten=True)) == 13_600


# -- fences


async def test_fence_lives_from_its_intent_to_its_end(store: Store, node: Node) -> None:
    open_one = await opened(store, node.id, epoch=3)
    assert (open_one.token, open_one.version, open_one.is_current) == (1, 1, True)
    assert await fence_in(store, open_one.id) == open_one
    marked = await node_in(store, node.id)
    assert (marked.fence_token, marked.version) == (0, node.version + 1)
    with pytest.raises(Aborted):
        await store.run(lambda tx: tx.update_node(node))

    proof = await written(store, proven(open_one))
    assert await store.read(lambda tx: tx.current_fences()) == [proof]
    assert (await fence_in(store, open_one.id)).proof == proof.proof
    assert (await node_in(store, node.id)).fence_token == 0
    over = await written(store, ended(proof))
    assert (await node_in(store, node.id)).fence_token == 1
    assert await store.read(lambda tx: tx.current_fences()) == []
    assert over.version == 3

    second = await opened(store, node.id)
    assert second.token == 2
    withdrawn = await written(store, replace(second, state=FenceState.WITHDRAWN, ended_at=START_OF_TIME))
    assert (withdrawn.state, withdrawn.is_current) == (FenceState.WITHDRAWN, False)
    assert await fence_in(store, second.id) == withdrawn
    assert (await node_in(store, node.id)).fence_token == 2


async def test_intent_to_fence_is_a_change_of_the_node_that_the_log_tells(store: Store, node: Node) -> None:
    fence = await opened(store, node.id)
    told = (await log_of(store, node.id))[0]
    assert (told.event.type, told.event.severity) == (EventType.NODE_FENCING, Severity.WARNING)
    assert told.event.message == "node lost is being fenced: it was silent"
    assert told.event.metadata == {"fence_id": fence.id, "token": "1"}
    assert (told.change, told.resource_version) == (Change.MODIFIED, node.version + 1)


async def test_node_has_one_current_fence_whoever_opens_it(store: Store, other: Store, node: Node) -> None:
    results = await asyncio.gather(
        *(opened(each, node.id) for _ in range(3) for each in (store, other)), return_exceptions=True
    )
    refused = [each for each in results if isinstance(each, ApiError)]
    assert len(refused) == 5
    assert {each.reason for each in refused} == {Reason.FENCE_EXISTS}
    (current,) = await store.read(lambda tx: tx.current_fences())
    marks = await store.read(lambda tx: tx.marks())
    assert (marks.revoked, marks.tokens) == ({node.id: current.token}, {node.id: current.token})
    with pytest.raises(NotFound):
        await opened(store, make_id())


async def test_tokens_of_fences_that_are_opened_at_once_differ(store: Store, other: Store) -> None:
    nodes = [make_node() for _ in range(6)]
    await add(store, *nodes)
    stores = (store, other)
    made = await asyncio.gather(*(opened(stores[number % 2], node.id) for number, node in enumerate(nodes)))
    assert sorted(fence.token for fence in made) == list(range(1, 7))
    assert [fence.token for fence in await store.read(lambda tx: tx.current_fences())] == list(range(1, 7))


async def test_objection_before_the_proof_forbids_it_and_only_an_operator_may_overrule(
    store: Store, other: Store, node: Node
) -> None:
    fence = await opened(store, node.id)
    assert await other.run(lambda tx: tx.object_to_fences([node.id, make_id()], "process-2")) == [node.id]
    assert await store.run(lambda tx: tx.object_to_fences([node.id], "process-3")) == []
    with pytest.raises(Aborted, match="process-2 heard node") as refused:
        await written(store, proven(fence))
    assert refused.value.reason == Reason.FENCE_OBJECTED

    # Who has read it anew knows the version, and may still not prove it.
    heard = await fence_in(store, fence.id)
    assert (heard.heard_by, heard.version) == ("process-2", 2)
    with pytest.raises(Aborted) as again:
        await written(store, proven(heard))
    assert again.value.reason == Reason.FENCE_OBJECTED
    with pytest.raises(Aborted):
        await written(store, replace(proven(heard), heard_by=""))
    assert (await written(store, proven(heard, FENCE_METHOD_OPERATOR))).state == FenceState.PROVEN


async def test_objection_after_the_proof_comes_too_late(store: Store, other: Store, node: Node) -> None:
    fence = await written(store, proven(await opened(store, node.id), FENCE_METHOD_POWER_OFF))
    assert await other.run(lambda tx: tx.object_to_fences([node.id], "process-2")) == []
    assert await fence_in(other, fence.id) == fence
    assert await other.run(lambda tx: tx.object_to_fences([], "process-2")) == []


async def test_objection_after_a_proof_of_protected_vms_is_noted_and_takes_nothing_back(
    store: Store, other: Store, node: Node
) -> None:
    fence = await written(store, proven(await opened(store, node.id)))
    assert await objected(other, node.id) == [node.id]
    assert await objected(other, node.id) == []
    stored = await fence_in(store, fence.id)
    assert (stored.state, stored.proof, stored.heard_by) == (FenceState.PROVEN, fence.proof, "process-2")
    forgotten = await written(store, replace(stored, heard_by=""))
    assert await objected(other, node.id) == [node.id]
    with pytest.raises(Aborted):
        await written(store, forgotten)
    await written(store, ended(await fence_in(store, fence.id)))


async def test_fence_keeps_who_asked_for_it_and_in_which_boot_its_host_was(store: Store, node: Node) -> None:
    guard = NodeGuard(node.id, 1, can_self_fence=True, obstacle="", boot_id="boot-1", noted_at=START_OF_TIME)
    await store.run(lambda tx: tx.note_guards([guard]))
    fence = await opened(store, node.id, asked_by="eve")
    await store.run(lambda tx: tx.note_guards([replace(guard, boot_id="boot-2", noted_at=START_OF_TIME + SECOND)]))

    stored = await fence_in(store, fence.id)

    assert stored == fence
    assert (stored.asked_by, stored.is_by_operator, stored.boot_id) == ("eve", True, "boot-1")
    await written(store, ended(stored))
    again = await opened(store, node.id)
    assert (again.is_by_operator, again.boot_id) == (False, "boot-2")


async def test_of_objection_and_proof_at_once_one_wins(store: Store, other: Store) -> None:
    for _ in range(8):
        node = make_node()
        await add(store, node)
        fence = await opened(store, node.id)
        results = await asyncio.gather(
            written(store, proven(fence, FENCE_METHOD_POWER_OFF)),
            objected(other, node.id),
            return_exceptions=True,
        )
        stored = await fence_in(store, fence.id)
        was_proven = isinstance(results[0], Fence)
        assert was_proven != (results[1] == [node.id])
        assert (stored.state == FenceState.PROVEN, stored.heard_by) == (was_proven, "" if was_proven else "process-2")


async def test_proof_that_waited_for_an_objection_is_refused(store: Store, other: Store, node: Node) -> None:
    fence = await opened(store, node.id)
    stop = Stop()

    async def object_slowly(tx: Transaction) -> None:
        await tx.object_to_fences([node.id], "process-2")
        stop.here()

    objecting = asyncio.create_task(other.run(object_slowly))
    await stop.reached()
    proving = asyncio.create_task(written(store, proven(fence)))
    await asyncio.wait([proving], timeout=0.3)
    assert not proving.done()
    stop.go_on()
    await objecting
    with pytest.raises(Aborted) as refused:
        await proving
    assert refused.value.reason == Reason.FENCE_OBJECTED


async def test_fence_of_a_stale_leader_is_not_written(store: Store, other: Store, node: Node) -> None:
    epoch = (await lead(store, "a")).epoch
    await lead(other, "b")

    async def fence(tx: Transaction) -> None:
        await tx.open_fence(make_fence(node.id, epoch=epoch))
        await tx.require_epoch(epoch)

    with pytest.raises(Aborted):
        await store.run(fence)
    assert await store.read(lambda tx: tx.current_fences()) == []
    assert (await node_in(store, node.id)).fence_token == 0


async def test_proof_without_what_was_seen_is_a_defect(store: Store, node: Node) -> None:
    fence = await opened(store, node.id)
    with pytest.raises(ValueError, match="without a proof"):
        await written(store, replace(fence, state=FenceState.PROVEN))


async def test_fences_are_listed_newest_first_in_pages(store: Store, node: Node) -> None:
    made = []
    for number in range(5):
        fence = await opened(store, node.id, opened_at=START_OF_TIME + number * SECOND)
        made.append(await written(store, ended(fence)))
    elsewhere = make_node()
    await add(store, elsewhere)
    current = await opened(store, elsewhere.id, opened_at=START_OF_TIME + 9 * SECOND)

    listed: list[Fence] = []
    after, pages = None, 0
    while pages == 0 or after is not None:
        page = await store.read(lambda tx: tx.list_fences(FenceFilter(), after, 4))  # noqa: B023 - called at once
        assert page.total_count == 6
        listed += page.items
        after, pages = page.next_cursor, pages + 1
    assert pages == 2
    assert listed == [current, *made[::-1]]
    only_current = await store.read(lambda tx: tx.list_fences(FenceFilter(only_current=True), None, 10))
    assert only_current.items == [current]
    of_node = await store.read(lambda tx: tx.list_fences(FenceFilter(node.id), None, 10))
    assert of_node.total_count == 5


async def test_old_fences_are_forgotten_but_tokens_go_on(store: Store, node: Node) -> None:
    for number in range(3):
        fence = await opened(store, node.id)
        await written(store, ended(fence, at=START_OF_TIME + number * SECOND))
    assert await store.run(lambda tx: tx.forget_fences(START_OF_TIME)) == 0
    assert await store.run(lambda tx: tx.forget_fences(START_OF_TIME + 10 * SECOND)) == 2
    kept = await store.read(lambda tx: tx.list_fences(FenceFilter(), None, 10))
    assert [fence.token for fence in kept.items] == [3]
    assert (await opened(store, node.id)).token == 4


async def test_proof_outlives_its_node(store: Store, node: Node) -> None:
    fence = await written(store, proven(await opened(store, node.id)))
    assert await store.run(lambda tx: tx.delete_node(node.id))
    assert (await written(store, ended(fence))).state == FenceState.ENDED


async def test_marks_have_what_grants_need(store: Store, node: Node) -> None:
    quiet = make_node()
    await add(store, quiet)
    before = await store.read(lambda tx: tx.marks())
    assert (before.epoch, before.revoked, before.tokens, before.settings.is_armed) == (0, {}, {}, True)
    await lead(store, "a")
    first = await opened(store, node.id)
    during = await store.read(lambda tx: tx.marks())
    assert (during.epoch, during.revoked, during.tokens) == (1, {node.id: 1}, {node.id: 1})
    await written(store, replace(first, state=FenceState.WITHDRAWN, ended_at=START_OF_TIME))
    after = await store.read(lambda tx: tx.marks())
    assert (after.revoked, after.tokens) == ({}, {node.id: 1})


async def test_host_that_is_registered_anew_has_a_token_that_its_daemon_takes(store: Store, node: Node) -> None:
    await opened(store, node.id)
    await store.run(lambda tx: tx.delete_node(node.id))
    again = make_node(hostname=node.hostname)
    await add(store, again)
    assert (await node_in(store, again.id)).fence_token == 1
    marks = await store.read(lambda tx: tx.marks())
    assert (marks.revoked, marks.tokens) == ({node.id: 1}, {node.id: 1, again.id: 1})
    assert (await opened(store, again.id)).token == 2


# -- keeping


async def test_fences_are_kept_as_long_as_events(store: Store, node: Node) -> None:
    kept_for = timedelta(days=7)
    for number in range(2):
        await written(store, ended(await opened(store, node.id), at=START_OF_TIME + number * SECOND))
    now = START_OF_TIME + kept_for
    compactor = EventLogCompactor(store, lambda: now, CompactionConfig(retention=kept_for))
    await compactor.compact()
    assert (await store.read(lambda tx: tx.list_fences(FenceFilter(), None, 10))).total_count == 2
    now += SECOND
    await compactor.compact()
    kept = await store.read(lambda tx: tx.list_fences(FenceFilter(), None, 10))
    assert [fence.token for fence in kept.items] == [2]
