"""A process that claims room on nodes through the product's own store, as one control plane of several would."""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import click
import uvloop

from benchmarks.workers import Answer, obey
from controlplane.domain.node import Capacity
from controlplane.domain.vm import DEFAULT_PROJECT_ID, PowerState, Vm
from controlplane.scheduler.plan import SchedulerConfig
from controlplane.services.placement import NodeMemory, place_vm
from controlplane.state.engine import SWITCH_INTERVAL_S, StoreLimits
from controlplane.state.factory import create_store
from controlplane.state.interface import Store
from limiquantix.compute.v1.vm_pb2 import CpuConfig, MemoryConfig, VmSpec

VM_SIZE = Capacity(1, 16 * 2**20)
_SPEC = VmSpec(cpu=CpuConfig(cores=1), memory=MemoryConfig(size_mib=16))
_WARM_UP_COUNT = 20


class ClaimWorker:
    """Its store, and what it remembers of nodes, as the service of VMs does."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._memory = NodeMemory()

    async def claim(self, node_ids: list[str], callers: int, stretch_s: float) -> Answer:
        """Only claim, on nodes in turn."""
        nodes = itertools.cycle(random.sample(node_ids, len(node_ids)))

        async def one() -> None:
            node_id = next(nodes)
            if not await self._store.run(lambda tx: tx.claim(node_id, VM_SIZE)):
                raise RuntimeError("a node of the benchmark is full")

        return await _drive(one, callers, stretch_s)

    async def place(self, callers: int, stretch_s: float) -> Answer:
        """Decide among all nodes, claim, and insert the VM with its entry in the log of events."""

        async def one() -> None:
            draft = _draft()
            placed = await self._store.run(lambda tx: place_vm(tx, draft, SchedulerConfig(), self._memory))
            self._memory.seen = placed.seen

        return await _drive(one, callers, stretch_s)


def _draft() -> Vm:
    now, vm_id = datetime.now(UTC), str(uuid.uuid4())
    return Vm(
        id=vm_id,
        name=vm_id,
        project_id=DEFAULT_PROJECT_ID,
        spec=_SPEC,
        node_id="",
        power_state=PowerState.PROVISIONING,
        created_at=now,
        updated_at=now,
        state_changed_at=now,
    )


async def _drive(one: Callable[[], Awaitable[None]], callers: int, stretch_s: float) -> Answer:
    for _ in range(_WARM_UP_COUNT):
        await one()
    count = 0
    began_s = time.perf_counter()

    async def caller() -> None:
        nonlocal count
        while time.perf_counter() - began_s < stretch_s:
            await one()
            count += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
    return {"count": count, "per_s": count / (time.perf_counter() - began_s), "claimed": count + _WARM_UP_COUNT}


async def work(url: str, connections: int) -> None:
    """Open the store and obey."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    store = create_store(url, StoreLimits(writer_count=connections))
    await store.open()
    worker = ClaimWorker(store)
    try:
        await obey({"claim": worker.claim, "place": worker.place})
    finally:
        await store.close()


@click.command()
@click.argument("url")
@click.argument("connections", type=int)
def main(url: str, connections: int) -> None:
    """Claim in the database at URL, over CONNECTIONS that write."""
    uvloop.run(work(url, connections))


if __name__ == "__main__":
    main()
