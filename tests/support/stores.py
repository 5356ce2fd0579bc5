"""What tests of stores do again and again."""

from __future__ import annotations

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
