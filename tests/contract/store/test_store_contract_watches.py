"""Watches on every kind of database: random writers on two replicas, random watchers, and what each must be told."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import pytest

from controlplane.domain.event import Change, Event, EventType, LoggedEvent
from controlplane.domain.query import VmFilter
from controlplane.domain.vm import Vm
from controlplane.events.hub import HubConfig
from controlplane.events.watch import WatchConfig
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1.vm_pb2 import VirtualMachine
from limiquantix.compute.v1.vm_service_pb2 import VMUpdate, WatchVMsRequest
from limiquantix.errors import Aborted, AlreadyExists
from tests.support.builders import make_id, make_vm
from tests.support.stores import open_store
from tests.support.watching import Watcher, Watching, applied, watching

LABELS: Sequence[dict[str, str]] = ({}, {"tier": "web"}, {"tier": "db"}, {"tier": "web", "zone": "a"})
FILTERS: Sequence[dict[str, str]] = ({}, {"tier": "web"}, {"tier": "web", "zone": "a"})

Told = tuple[int, int]
"""An update's type, and the VM's number of the change: its description, which only grows."""


@dataclass
class Client:
    """Watches with a filter, goes away now and then and continues where it was, on any replica."""

    replicas: Sequence[Watching]
    labels: dict[str, str]
    seed: int
    seen: list[VMUpdate] = field(default_factory=list)
    restart_count: int = 0

    async def run(self, writing: asyncio.Task[None]) -> None:
        choice = random.Random(self.seed)
        await asyncio.sleep(choice.uniform(0, 0.3))
        while not writing.done():
            watcher = self._connect(choice)
            await asyncio.wait({writing}, timeout=choice.uniform(0.02, 0.4))
            self._note(await watcher.leave())

    async def finish(self, revision: int) -> list[VMUpdate]:
        """Watch until everything up to the revision was told."""
        watcher = self._connect(random.Random(self.seed))
        await watcher.until(lambda updates: bool(updates) and updates[-1].revision >= revision)
        self._note(await watcher.leave())
        return self.seen

    def _connect(self, choice: random.Random) -> Watcher[VMUpdate]:
        request = WatchVMsRequest(labels=self.labels, send_bookmarks=True)
        if self.seen:
            request.from_revision = self.seen[-1].revision
        if not request.from_revision:
            self.seen.clear()
        replica = choice.choice(self.replicas)
        return replica.start(replica.service.vms(request))

    def _note(self, updates: Sequence[VMUpdate]) -> None:
        self.seen.extend(updates)
        self.restart_count += 1

    def told(self) -> dict[str, list[Told]]:
        by_vm: dict[str, list[Told]] = defaultdict(list)
        for update in self.seen:
            if update.type != VMUpdate.BOOKMARK:
                by_vm[update.vm.id].append((update.type, int(update.vm.description)))
        return by_vm


@dataclass
class Writers:
    """Create, change, tell of and remove VMs; two writers may pick the same one."""

    ids: list[str]
    gives_ids_again: bool
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    async def write(self, store: Store, seed: int, enough: Callable[[], bool]) -> None:
        """Change something at least sixty times, and on until the watchers have come and gone enough, however slow."""
        choice = random.Random(seed)
        for number in itertools.count():
            if number >= 60 and enough():
                return
            slot = choice.randrange(len(self.ids))
            work = partial(self._work, self.ids[slot], choice.choice(LABELS), choice.random())
            try:
                self.ids[slot] = await store.run(work)
            except (Aborted, AlreadyExists):
                continue  # another writer was there first
            await asyncio.sleep(choice.choice([0, 0, 0.001, 0.01]))

    async def _work(self, vm_id: str, labels: dict[str, str], what: float, tx: Transaction) -> str:
        number = str(next(self.numbers))
        vm = await tx.get_vm(vm_id)
        if vm is None:
            vm_id = vm_id if self.gives_ids_again else make_id()
            await tx.insert_vm(make_vm(id=vm_id, name=vm_id, labels=labels, description=number))
        elif what < 0.2:
            # So that the removal has a number of its own.
            await tx.update_vm(replace(vm, description=number))
            await tx.delete_vm(vm_id)
        elif what < 0.3:
            await tx.log_vm_event(vm, Event(EventType.VM_CONFLICT, "an alert"))
        else:
            await tx.update_vm(replace(vm, labels=labels, description=number))
        return vm_id


def expected(log: Sequence[LoggedEvent], labels: Mapping[str, str]) -> dict[str, list[Told]]:
    """What somebody with that filter is to be told from the very beginning, by VM; worked out from documents alone."""
    told: dict[str, list[Told]] = defaultdict(list)
    in_view: set[str] = set()
    for entry in log:
        if entry.change is Change.NONE:
            continue
        vm = VirtualMachine.FromString(entry.document)
        was_in, is_in = vm.id in in_view, labels.items() <= dict(vm.labels).items() and entry.change != Change.DELETED
        (in_view.add if is_in else in_view.discard)(vm.id)
        if is_in:
            told[vm.id].append((VMUpdate.MODIFIED if was_in else VMUpdate.ADDED, int(vm.description)))
        elif was_in:
            told[vm.id].append((VMUpdate.DELETED, int(vm.description)))
    return told


def assert_told(client: Client, wanted: dict[str, list[Told]]) -> None:
    """Of each VM, the client has its state at some moment or nothing, and then all that happened since, once."""
    told = client.told()
    assert set(told) <= set(wanted)
    for vm_id, whole in wanted.items():
        seen = told.get(vm_id, [])
        rest = whole[len(whole) - len(seen) :]
        if seen and seen[0] != whole[0] and seen[0][0] == VMUpdate.ADDED:
            rest = [seen[0], *rest[1:]]  # its state when the watch began
            assert seen[0][1] == whole[len(whole) - len(seen)][1]
        assert seen == rest, (vm_id, client.labels)


def assert_up_to_date(client: Client, rows: Mapping[str, Vm]) -> None:
    """What the client knows is what there is, and revisions only grew."""
    assert applied(client.seen) == {
        vm_id: vm.description for vm_id, vm in rows.items() if client.labels.items() <= vm.labels.items()
    }
    for before, after in itertools.pairwise(client.seen):
        assert after.revision == 0 or after.revision >= before.revision + (after.type != VMUpdate.BOOKMARK)


@pytest.mark.parametrize("gives_ids_again", [False, True], ids=["new ids", "ids again"])
@pytest.mark.parametrize("seed", range(3))
async def test_watchers_on_two_replicas_see_every_change_once_and_in_order(
    store: Store, url: str, seed: int, gives_ids_again: bool
) -> None:
    writers = Writers([make_id() for _ in range(25)], gives_ids_again)
    hub, watch = HubConfig(poll_s=0.03), WatchConfig(page_size=4, bookmark_s=0.05)
    async with open_store(url) as other, watching(store, hub, watch) as here, watching(other, hub, watch) as there:
        clients = [Client([here, there], FILTERS[i % len(FILTERS)], seed * 1000 + i) for i in range(9)]

        def all_went_and_came() -> bool:
            return all(client.restart_count >= 3 for client in clients)

        async def write() -> None:
            async with asyncio.TaskGroup() as group:
                for number, replica in enumerate([here, there] * 2):
                    group.create_task(writers.write(replica.store, seed * 100 + number, all_went_and_came))

        writing = asyncio.create_task(write())
        async with asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(client.run(writing))
        await writing
        await store.run(lambda tx: tx.sequence_events())
        log = list(await store.read(lambda tx: tx.events_after(0, 100_000)))
        page = await store.read(lambda tx: tx.list_vms(VmFilter(), None, 100))
        rows = {vm.id: vm for vm in page.items}
        assert [entry.revision for entry in log] == list(range(1, len(log) + 1))
        for client in clients:
            await client.finish(len(log))
            assert_up_to_date(client, rows)
            if not gives_ids_again:
                assert_told(client, expected(log, client.labels))
