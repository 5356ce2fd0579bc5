"""What tests of stores do again and again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from controlplane.domain.node import Capacity, Node
from controlplane.domain.query import Cursor, Page, VmFilter
from controlplane.domain.vm import Vm
from controlplane.state.engine import StoreLimits
from controlplane.state.factory import create_store
from controlplane.state.interface import Store, Transaction

PATIENT = StoreLimits(total_s=60, connection_wait_s=50)
"""For tests that pile up writers on a machine that may be busy with something else."""

CLAIM_OF_ONE = Capacity(1, 128 * 2**20)
"""What `make_vm` makes by default."""

_STOP_DEADLINE_S = 60.0


class Stop:
    """A point inside a transaction's work, which runs in a thread of its own, where it waits for the test."""

    def __init__(self) -> None:
        self._is_reached = threading.Event()
        self._may_go_on = threading.Event()

    def here(self) -> None:
        """Block the work until `go_on`."""
        self._is_reached.set()
        assert self._may_go_on.wait(_STOP_DEADLINE_S)

    async def reached(self) -> None:
        """Wait in the test until the work is there."""
        assert await asyncio.to_thread(self._is_reached.wait, _STOP_DEADLINE_S)

    def go_on(self) -> None:
        """Let the work go on."""
        self._may_go_on.set()


async def cancel(task: asyncio.Task[object]) -> None:
    """Cancel a task and let it take note, which does not wait for its end."""
    task.cancel()
    for _ in range(3):
        await asyncio.sleep(0)


@asynccontextmanager
async def open_store(url: str) -> AsyncIterator[Store]:
    """Open a store, and close it whatever happens."""
    store = create_store(url, PATIENT)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def add(store: Store, *new: Vm | Node) -> None:
    """Insert records in one transaction, as they are."""

    async def work(tx: Transaction) -> None:
        for record in new:
            await (tx.insert_vm(record) if isinstance(record, Vm) else tx.insert_node(record))

    await store.run(work)


async def vm_in(store: Store, vm_id: str) -> Vm | None:
    """Read one VM."""
    return await store.read(lambda tx: tx.get_vm(vm_id))


async def node_in(store: Store, node_id: str) -> Node:
    """Read a node that must be there."""
    node = await store.read(lambda tx: tx.get_node(node_id))
    assert node is not None
    return node


async def place(store: Store, vm: Vm) -> bool:
    """Claim the VM's size on its node and insert it; False if there is no room."""

    async def work(tx: Transaction) -> bool:
        if not await tx.claim(vm.node_id, Capacity(vm.vcpu_count, vm.memory_bytes)):
            return False
        await tx.insert_vm(vm)
        return True

    return await store.run(work)


async def vm_page(store: Store, wanted: VmFilter, after: Cursor | None, limit: int) -> Page[Vm]:
    """Read one page."""
    return await store.read(lambda tx: tx.list_vms(wanted, after, limit))
