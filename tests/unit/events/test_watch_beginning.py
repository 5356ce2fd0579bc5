"""The state that a watch begins with, and what is written while it is read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import pytest

from controlplane.events.watch import WatchConfig, Watches
from controlplane.services.watches import WatchService
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1.vm_service_pb2 import VMUpdate, WatchVMsRequest
from tests.support.builders import make_vm
from tests.support.stores import add, vm_in
from tests.support.watching import Watcher, Watching, applied, change, told, watching

ResultT = TypeVar("ResultT")
ALL = WatchVMsRequest(send_bookmarks=True)


@dataclass
class EventfulStore:
    """A store where something happens after a snapshot was read and before its reader hears of it."""

    store: Store
    happenings: list[Callable[[], Awaitable[None]]] = field(default_factory=list)

    async def open(self) -> None:
        await self.store.open()

    async def close(self) -> None:
        await self.store.close()

    async def ping(self) -> None:
        await self.store.ping()

    async def run(self, work: Callable[[Transaction], Awaitable[ResultT]]) -> ResultT:
        return await self.store.run(work)

    async def read(self, work: Callable[[Transaction], Awaitable[ResultT]]) -> ResultT:
        result = await self.store.read(work)
        if self.happenings:
            await self.happenings.pop(0)()
        return result


def watch_while(world: Watching, *happenings: Callable[[], Awaitable[None]]) -> Watcher[VMUpdate]:
    """Watch in pages of two rows; each happening comes while a page is read, and is handed out by the hub by then."""

    def told_by_hub(happening: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        async def happen() -> None:
            await happening()
            await world.hub.settled()

        return happen

    store = EventfulStore(world.inner_store, [told_by_hub(each) for each in happenings])
    service = WatchService(Watches(store, world.hub, WatchConfig(page_size=2, bookmark_s=60)))
    return world.start(service.vms(ALL))


async def first_told(watcher: Watcher[VMUpdate], count: int) -> list[tuple[str, str]]:
    """Wait for so many updates and the bookmark after the state; give their types, and names with descriptions."""
    updates = await watcher.count(count + 1)
    end = [update.type for update in updates].index(VMUpdate.BOOKMARK)
    assert [update.revision for update in updates[: end - 1]] == [0] * (end - 1)
    assert updates[end - 1].revision == updates[end].revision > 0
    del updates[end]
    return with_descriptions(updates)


def with_descriptions(updates: list[VMUpdate]) -> list[tuple[str, str]]:
    """Types, and names with descriptions."""
    return [(kind, name + update.vm.description) for (kind, name), update in zip(told(updates), updates, strict=True)]


@pytest.mark.parametrize("is_numbered", [True, False], ids=["numbered", "without revisions"])
async def test_changes_while_a_page_is_read_are_told_if_the_page_does_not_have_them(
    store: Store, is_numbered: bool
) -> None:
    a, b, c, d, e = vms = [make_vm(name=name) for name in "abcde"]
    await add(store, *vms)
    if is_numbered:
        await store.run(lambda tx: tx.sequence_events())
    async with watching(store) as world:

        async def first() -> None:  # the first page, a and b, was read
            await change(world.store, b.id, description="1")
            await change(world.store, c.id, description="1")
            await world.store.run(lambda tx: tx.delete_vm(a.id))

        async def second() -> None:  # c and d were read
            await change(world.store, b.id, description="2")
            await change(world.store, d.id, description="2")
            await world.store.run(lambda tx: tx.delete_vm(e.id))
            await add(world.store, make_vm(name="f"))

        async def third() -> None:  # the last one, f alone
            await change(world.store, c.id, description="3")

        assert await first_told(watch_while(world, first, second, third), 10) == [
            *(("ADDED", "a"), ("ADDED", "b"), ("MODIFIED", "b1"), ("DELETED", "a")),
            *(("ADDED", "c1"), ("ADDED", "d"), ("MODIFIED", "b2"), ("MODIFIED", "d2")),
            *(("ADDED", "f"), ("MODIFIED", "c3")),
        ]


async def test_vm_removed_and_found_again_while_the_state_is_read_is_known_as_it_is_in_the_end(store: Store) -> None:
    vms = [make_vm(name=name) for name in "abcde"]
    await add(store, *vms)
    async with watching(store) as world:

        async def first() -> None:
            await change(world.store, vms[0].id, description="1")

        async def again() -> None:
            await world.store.run(lambda tx: tx.delete_vm(vms[0].id))
            await add(world.store, make_vm(id=vms[0].id, name="a", description="2"))
            await change(world.store, vms[0].id, description="3")

        watcher = watch_while(world, first, again)
        assert await first_told(watcher, 10) == [
            *(("ADDED", "a"), ("ADDED", "b"), ("MODIFIED", "a1"), ("ADDED", "c"), ("ADDED", "d")),
            *(("DELETED", "a1"), ("ADDED", "a2"), ("MODIFIED", "a3"), ("ADDED", "e"), ("ADDED", "a3")),
        ]
        await change(world.store, vms[0].id, description="4")
        updates = await watcher.until(lambda updates: updates[-1].vm.description == "4")
        now = await vm_in(store, vms[0].id)
        assert now is not None
        assert updates[-1].vm.description == now.description


async def test_vm_removed_and_found_again_while_a_watch_waits_for_its_turn_to_read_is_known_in_the_end(
    store: Store,
) -> None:
    vms = [make_vm(name=name) for name in "abcd"]
    await add(store, *vms)
    async with watching(store) as world:

        async def nothing() -> None:
            """The first watch reads its first page."""

        async def again() -> None:  # the other one reads, and the first one waits behind it
            await world.store.run(lambda tx: tx.delete_vm(vms[0].id))
            await add(world.store, make_vm(id=vms[0].id, name="a", description="2"))
            await world.hub.settled()

        eventful = EventfulStore(store, [nothing, again])
        config = WatchConfig(page_size=3, reader_count=1, bookmark_s=60)
        service = WatchService(Watches(eventful, world.hub, config))
        first = world.start(service.vms(ALL))
        other = world.start(service.vms(ALL))
        for watcher in (first, other):
            updates = await watcher.until(lambda updates: any(each.type == VMUpdate.BOOKMARK for each in updates))
            assert applied(updates)[vms[0].id] == "2", with_descriptions(updates)
            assert set(applied(updates)) == {vm.id for vm in vms}


async def test_backlog_without_revisions_at_the_beginning_does_not_fill_the_queue(store: Store) -> None:
    vms = [make_vm() for _ in range(2_500)]
    await add(store, *vms)
    async with watching(store, watch=WatchConfig(page_size=500)) as world:
        watchers = [world.start(world.service.vms(ALL)) for _ in range(3)]
        for watcher in watchers:
            updates = await watcher.count(2_501)
            assert [update.vm.id for update in updates[:-1]] == [vm.id for vm in vms]
            assert updates[-1].revision == 2_500
