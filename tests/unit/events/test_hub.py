"""The hub: reads the log once for all, survives the database, and says when it lost its place in the log."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import pytest

from controlplane.domain import errors
from controlplane.events.compaction import CompactionConfig, EventLogCompactor
from controlplane.events.hub import EventHub, HubConfig
from controlplane.events.subscription import QueueLimits
from controlplane.events.waking_store import WakingStore
from controlplane.events.watch import WatchConfig
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1.vm_service_pb2 import VMUpdate, WatchVMsRequest
from limiquantix.errors import OutOfRange, ResourceExhausted, Unavailable
from tests.support.builders import make_vm
from tests.support.stores import add, open_store
from tests.support.watching import DEADLINE_S, change, told, until, watching

ResultT = TypeVar("ResultT")
ALL = WatchVMsRequest(send_bookmarks=True)
QUICK = HubConfig(poll_s=0.02, idle_poll_s=0.05, first_backoff_s=0.02)


@dataclass
class ShakyStore:
    """A store that can go away, and counts what it was asked."""

    store: Store
    is_away: bool = False
    call_count: int = 0

    async def open(self) -> None:
        await self.store.open()

    async def close(self) -> None:
        await self.store.close()

    async def ping(self) -> None:
        await self.store.ping()

    async def run(self, work: Callable[[Transaction], Awaitable[ResultT]]) -> ResultT:
        self._count()
        return await self.store.run(work)

    async def read(self, work: Callable[[Transaction], Awaitable[ResultT]]) -> ResultT:
        self._count()
        return await self.store.read(work)

    def _count(self) -> None:
        self.call_count += 1
        if self.is_away:
            raise errors.state_unavailable("it is away")


async def test_commit_of_this_process_is_told_long_before_the_next_look(store: Store) -> None:
    vm = make_vm()
    await add(store, vm)
    async with watching(store, HubConfig(poll_s=60)) as world:
        watcher = world.start(world.service.vms(ALL))
        await watcher.count(2)
        await change(world.store, vm.id, description="new")
        assert (await watcher.count(3))[-1].type == VMUpdate.MODIFIED


async def test_commit_of_another_process_is_told_at_the_next_look(store: Store, tmp_path: Path) -> None:
    vm = make_vm()
    await add(store, vm)
    async with open_store(f"sqlite:///{tmp_path / 'limiquantix.db'}") as other, watching(store) as world:
        watcher = world.start(world.service.vms(ALL))
        await watcher.count(2)
        await change(other, vm.id, description="new")
        assert (await watcher.count(3))[-1].vm.description == "new"


async def test_entries_are_numbered_also_while_nobody_watches(store: Store) -> None:
    await add(store, make_vm())
    async with watching(store, QUICK):
        async with asyncio.timeout(DEADLINE_S):
            while await store.read(lambda tx: tx.unnumbered_event_ids()):  # noqa: ASYNC110 - nobody watches
                await asyncio.sleep(0.01)
    assert (await store.read(lambda tx: tx.log_position())).revision == 1


async def test_database_that_was_away_for_a_while_costs_no_watcher_anything(store: Store) -> None:
    vm = make_vm(name="a")
    await add(store, vm)
    shaky = ShakyStore(store)
    async with watching(shaky, QUICK) as world:
        watcher = world.start(world.service.vms(ALL))
        await watcher.count(2)
        shaky.is_away = True
        asked = shaky.call_count
        await change(store, vm.id, name="b")
        await change(store, vm.id, name="c")
        await until(lambda: shaky.call_count > asked + 1)
        shaky.is_away = False
        assert told(await watcher.count(4))[2:] == [("MODIFIED", "b"), ("MODIFIED", "c")]


async def test_watch_that_begins_while_the_database_is_away_is_refused(store: Store) -> None:
    shaky = ShakyStore(store, is_away=True)
    async with watching(shaky, QUICK) as world:
        with pytest.raises(Unavailable):
            await world.start(world.service.vms(ALL)).end()


async def test_watch_whose_database_goes_away_while_it_begins_is_refused(store: Store) -> None:
    shaky = ShakyStore(store)
    hub = EventHub(shaky, QUICK)
    running = asyncio.create_task(hub.run())
    async with hub.subscribed(lambda _: True):
        shaky.is_away = True
        with pytest.raises(Unavailable):
            await hub.settled()
    running.cancel()
    await asyncio.wait({running})


async def test_settling_is_not_waited_for_without_end(store: Store) -> None:
    hub = EventHub(store, HubConfig(settle_s=0.01))  # and nobody runs it
    with pytest.raises(Unavailable):
        await hub.settled()


async def test_defect_in_the_hub_ends_its_task(store: Store) -> None:
    async def fails(_: object) -> None:
        raise LookupError

    shaky = ShakyStore(store)
    shaky.read = fails  # type: ignore[method-assign, assignment]
    with pytest.raises(LookupError):
        await asyncio.wait_for(EventHub(shaky, QUICK).run(), DEADLINE_S)


async def test_stopping_ends_all_watches_and_says_where_to_continue(store: Store) -> None:
    await add(store, make_vm(), make_vm())
    async with watching(store) as world:
        watcher = world.start(world.service.vms(ALL))
        revision = (await watcher.count(3))[-1].revision
        world.hub.stop()
        world.hub.stop()
        with pytest.raises(Unavailable, match="stopping") as refusal:
            await watcher.end()
        assert refusal.value.metadata["from_revision"] == str(revision)
        with pytest.raises(Unavailable, match="stopping"):
            await world.start(world.service.vms(ALL)).end()


async def test_watches_beyond_the_limit_are_refused_until_one_ends(store: Store) -> None:
    async with watching(store, HubConfig(subscription_count=2)) as world:
        watchers = [world.start(world.service.vms(ALL)) for _ in range(2)]
        for watcher in watchers:
            await watcher.count(1)
        with pytest.raises(ResourceExhausted, match="2 watches"):
            await world.start(world.service.vms(ALL)).end()
        await watchers[0].leave()
        await world.start(world.service.vms(ALL)).count(1)


async def test_burst_of_changes_does_not_end_a_watch_whose_client_takes_them(store: Store) -> None:
    vms = [make_vm(description="x" * 500) for _ in range(20)]
    await add(store, *vms)
    limits = QueueLimits(entry_count=15)
    config = HubConfig(batch_count=10, queue=limits, patience_s=60, patience_with_message_s=60)  # it may be slow
    async with watching(store, config) as world:
        watcher = world.start(world.service.vms(ALL))
        await watcher.count(21)

        async def work(tx: Transaction) -> None:
            for vm in vms:
                current = vm
                for _ in range(10):
                    current = await tx.update_vm(current)

        await world.store.run(work)
        await watcher.count(221)


async def test_watcher_who_takes_nothing_is_cut_off_and_others_hear_everything(store: Store) -> None:
    vm = make_vm()
    await add(store, vm)
    config = HubConfig(queue=QueueLimits(entry_count=20), patience_with_message_s=0.0)
    async with watching(store, config) as world:
        good = world.start(world.service.vms(ALL))
        await good.count(2)
        bad = world.service.vms(ALL)
        first = await anext(bad)
        for count in range(3, 33):
            await change(world.store, vm.id)
            if count % 10 == 0:
                await good.count(count)  # else the hub might hand out more at once than waits for anybody
        await good.count(32)
        assert await anext(bad) == VMUpdate(type=VMUpdate.BOOKMARK, revision=first.revision)
        with pytest.raises(ResourceExhausted) as refusal:
            await anext(bad)
        assert refusal.value.metadata["from_revision"] == str(first.revision)
        assert world.hub.subscription_count == 1
        again = world.start(world.service.vms(WatchVMsRequest(from_revision=first.revision)))
        assert [each.revision for each in await again.count(30)] == [each.revision for each in good.messages[2:]]


async def test_log_that_was_compacted_beyond_the_hub_ends_the_watches(store: Store) -> None:
    vm = make_vm()
    await add(store, vm)
    shaky = ShakyStore(store)
    async with watching(shaky, QUICK) as world:
        watcher = world.start(world.service.vms(ALL))
        await watcher.count(2)
        shaky.is_away = True
        for _ in range(4):
            await change(store, vm.id)
        await store.run(lambda tx: tx.sequence_events())
        compactor = EventLogCompactor(store, lambda: datetime.now(UTC) + timedelta(days=8), CompactionConfig())
        assert await compactor.compact() == 4
        shaky.is_away = False
        with pytest.raises(OutOfRange, match="begin anew"):
            await watcher.end()
        later = world.start(world.service.vms(ALL))
        await later.count(2)
        await change(world.store, vm.id, name="last")
        assert told(await later.count(3))[-1] == ("MODIFIED", "last")


async def test_compaction_goes_chunk_by_chunk_until_the_retention(store: Store) -> None:
    await add(store, *(make_vm() for _ in range(25)))
    await store.run(lambda tx: tx.sequence_events())
    config = CompactionConfig(chunk_count=4, pause_s=0.0, interval_s=0.01)
    assert await EventLogCompactor(store, lambda: datetime.now(UTC), config).compact() == 0
    compactor = EventLogCompactor(store, lambda: datetime.now(UTC) + timedelta(days=8), config)
    running = asyncio.create_task(compactor.run())
    async with asyncio.timeout(DEADLINE_S):
        while (await store.read(lambda tx: tx.log_position())).compacted_revision < 24:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert not running.done()
    running.cancel()


async def test_compaction_goes_on_after_the_database_was_away(store: Store) -> None:
    shaky = ShakyStore(store, is_away=True)
    config = CompactionConfig(interval_s=0.01)
    running = asyncio.create_task(EventLogCompactor(shaky, lambda: datetime.now(UTC), config).run())
    await until(lambda: shaky.call_count > 2)
    assert not running.done()
    running.cancel()


async def test_store_that_wakes_tells_of_writes_only_whether_they_succeed_or_not(store: Store) -> None:
    told_of: list[int] = []
    waking = WakingStore(store, lambda: told_of.append(1))
    await waking.open()
    await waking.ping()
    await waking.read(lambda tx: tx.log_position())
    assert not told_of
    await waking.run(lambda tx: tx.insert_vm(make_vm()))
    assert len(told_of) == 1
    shaky = ShakyStore(store, is_away=True)
    with pytest.raises(Unavailable):
        await WakingStore(shaky, lambda: told_of.append(2)).run(lambda tx: tx.sequence_events())
    assert len(told_of) == 2
    await waking.close()


async def test_no_more_states_are_read_at_once_than_allowed(store: Store) -> None:
    await add(store, *(make_vm() for _ in range(30)))
    async with watching(store, watch=WatchConfig(page_size=3, reader_count=1)) as world:
        watchers = [world.start(world.service.vms(ALL)) for _ in range(8)]
        for watcher in watchers:
            updates = await watcher.count(31)
            assert len({update.vm.id for update in updates}) == 31


async def test_log_is_not_read_any_more_when_the_last_watcher_has_left(store: Store) -> None:
    shaky = ShakyStore(store)
    async with watching(shaky, HubConfig(poll_s=0.01, idle_poll_s=60)) as world:
        before = asyncio.all_tasks()
        watcher = world.start(world.service.vms(ALL))
        await watcher.count(1)
        assert world.hub.subscription_count == 1
        await watcher.leave()
        assert (world.hub.subscription_count, asyncio.all_tasks()) == (0, before)
        await world.hub.settled()
        count = shaky.call_count
        await change_something(store, world.hub)
        assert shaky.call_count == count


async def change_something(store: Store, hub: EventHub) -> None:
    """Commit, wake the hub and give it time that it could use."""
    await add(store, make_vm())
    hub.wake()
    await asyncio.sleep(0.05)
