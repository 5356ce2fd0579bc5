"""A control plane's watches on a store, and those who watch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from controlplane.domain.vm import Vm
from controlplane.events.hub import EventHub, HubConfig
from controlplane.events.waking_store import WakingStore
from controlplane.events.watch import WatchConfig, Watches
from controlplane.services.event_lists import EventListService
from controlplane.services.watches import WatchService
from controlplane.state.interface import Store
from limiquantix.compute.v1.vm_service_pb2 import VMUpdate
from tests.support.stores import vm_in

MessageT = TypeVar("MessageT")

DEADLINE_S = 60.0


class Watcher(Generic[MessageT]):
    """Someone who takes whatever a watch gives, as fast as it comes."""

    def __init__(self, stream: AsyncGenerator[MessageT, None]) -> None:
        self.messages: list[MessageT] = []
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._take(stream))
        self._task.add_done_callback(lambda _: self._news.set())

    async def _take(self, stream: AsyncGenerator[MessageT, None]) -> None:
        try:
            async for message in stream:
                self.messages.append(message)
                self._news.set()
        finally:
            await stream.aclose()

    async def until(self, condition: Callable[[list[MessageT]], bool]) -> list[MessageT]:
        """Wait until what was given satisfies the condition; raises what the watch raised."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition(self.messages):
                if self._task.done():
                    await self._task
                    raise AssertionError(f"the watch ended with {self.messages}")
                self._news.clear()
                await self._news.wait()
        return self.messages

    async def count(self, count: int) -> list[MessageT]:
        """Wait for that many messages, and find no more than those."""
        found = await self.until(lambda messages: len(messages) >= count)
        assert len(found) == count, found
        return found

    async def end(self) -> list[MessageT]:
        """Wait until the watch ends by itself; raises what it raised."""
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.wait({self._task})
        await self._task
        return self.messages

    async def leave(self) -> list[MessageT]:
        """Go away."""
        self._task.cancel()
        await asyncio.wait({self._task})
        return self.messages


@dataclass
class Watching:
    """All that watches need in one process; `store` is what writers use."""

    inner_store: Store
    hub_config: HubConfig = field(default_factory=HubConfig)
    watch_config: WatchConfig = field(default_factory=WatchConfig)
    watchers: list[Watcher[Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.hub = EventHub(self.inner_store, self.hub_config)
        self.store = WakingStore(self.inner_store, self.hub.wake)
        self.service = WatchService(Watches(self.inner_store, self.hub, self.watch_config))
        self.lists = EventListService(self.inner_store)

    def start(self, stream: AsyncGenerator[MessageT, None]) -> Watcher[MessageT]:
        """Have someone watch, who goes away with the test at the latest."""
        watcher = Watcher(stream)
        self.watchers.append(watcher)
        return watcher


@asynccontextmanager
async def watching(
    store: Store, hub: HubConfig | None = None, watch: WatchConfig | None = None
) -> AsyncIterator[Watching]:
    """Run the hub; nothing of any watch may be left behind."""
    world = Watching(store, hub or HubConfig(), watch or WatchConfig())
    running = asyncio.create_task(world.hub.run())
    try:
        yield world
        assert not running.done() or running.exception() is None
        for watcher in world.watchers:
            await watcher.leave()
        assert world.hub.subscription_count == 0
    finally:
        running.cancel()
        await asyncio.wait({running})


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - what is looked at has no event
            await asyncio.sleep(0.005)


async def change(store: Store, vm_id: str, **fields: Any) -> Vm:
    """Change a VM that is there."""
    vm = await vm_in(store, vm_id)
    assert vm is not None
    changed = replace(vm, **fields)
    return await store.run(lambda tx: tx.update_vm(changed))


def told(updates: list[VMUpdate]) -> list[tuple[str, str]]:
    """What updates say: type and name."""
    return [(VMUpdate.UpdateType.Name(update.type), update.vm.name) for update in updates]


def applied(updates: list[VMUpdate]) -> Mapping[str, str]:
    """Descriptions of the VMs that a client knows after the updates, by id."""
    known: dict[str, str] = {}
    for update in updates:
        if update.type == VMUpdate.DELETED:
            del known[update.vm.id]
        elif update.type != VMUpdate.BOOKMARK:
            known[update.vm.id] = update.vm.description
    return known
