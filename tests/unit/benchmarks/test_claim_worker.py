"""What the benchmark of claims counts is what the store has."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.claim_worker import VM_SIZE, ClaimWorker
from benchmarks.records import ready_nodes
from controlplane.domain.query import VmFilter
from tests.support.databases import fresh_sqlite
from tests.support.stores import add, open_store, vm_page


@pytest.mark.parametrize("callers", [1, 8])
async def test_claims_and_placements_told_are_those_stored(tmp_path: Path, callers: int) -> None:
    nodes = ready_nodes(3, vcpus=1_000_000)
    async with open_store(fresh_sqlite(tmp_path)) as store:
        await add(store, *nodes)
        worker = ClaimWorker(store)
        claims = await worker.claim([node.id for node in nodes], callers, 0.05)
        placements = await worker.place(callers, 0.05)
        stored = await store.read(lambda tx: tx.nodes([node.id for node in nodes]))
        page = await vm_page(store, VmFilter(), None, 1)
    assert claims["count"] >= callers
    assert placements["count"] >= callers
    assert sum(node.allocated.vcpus for node in stored) == (claims["claimed"] + placements["claimed"]) * VM_SIZE.vcpus
    assert page.total_count == placements["claimed"]


async def test_full_node_ends_the_benchmark(tmp_path: Path) -> None:
    (node,) = ready_nodes(1, vcpus=5)
    async with open_store(fresh_sqlite(tmp_path)) as store:
        await add(store, node)
        with pytest.raises(RuntimeError, match="is full"):
            await ClaimWorker(store).claim([node.id], 1, 0.05)
