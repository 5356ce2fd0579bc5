"""How many claims of room on nodes a database takes, through the product's own store, from several processes at once.

A claim is one conditional update in a transaction of its own, which is durable before it is answered. A placement is
more: it decides among all nodes, claims, and inserts the VM with its entry in the log of events. Both are set against
the raw commits of the same database in the same minute: for PostgreSQL those of pgbench over as many connections, each
changing one row by its key; for SQLite a loop of Python's own driver that does the same.

At the end the claims on every node are added up and compared with what was told to the callers: a fast claim that is
lost, or made twice, is worth nothing.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import delete

from benchmarks.claim_worker import VM_SIZE
from benchmarks.cluster import tell
from benchmarks.measurement import Goal, Pair, Row, Section, compare
from benchmarks.postgresql import raw_commits_per_s, running_postgresql, why_no_postgresql
from benchmarks.records import ready_nodes
from benchmarks.workers import Worker, ask_all, running_workers
from controlplane.domain.node import Node
from controlplane.state import schema
from controlplane.state.factory import create_store, migrate, migration_engine
from controlplane.state.interface import Store, Transaction

TITLE = "claims of room on nodes, against raw commits of the same database; claims/s: higher is better"
PEER_CLAIMS_PER_S = 104.0
"""The better figure measured for OpenStack Placement on a machine of this kind."""

PEER_GOAL = Goal(10.0, better="higher")
FEW_NODES, MANY_NODES = 4, 500
PROCESS_COUNT = 2
CALLERS_PER_PROCESS = 8
_ROOM_PER_NODE = 10_000_000


@dataclass(frozen=True, slots=True)
class ClaimEffort:
    """How much is measured: rounds of one stretch of each kind."""

    round_count: int
    stretch_s: int


@dataclass(slots=True)
class _Measured:
    """Figures of every round, by kind, and how much was claimed in all."""

    raw: list[float]
    ours: dict[str, list[float]]
    claimed_count: int = 0


async def measure_claims(effort: ClaimEffort) -> Section:
    """Run this part."""
    rows = await _measure_sqlite(effort)
    if reason := why_no_postgresql():
        return Section("claims", TITLE, tuple(rows), (f"PostgreSQL left out: {reason}",))
    async with running_postgresql() as server:
        raw = partial(raw_commits_per_s, server, PROCESS_COUNT * CALLERS_PER_PROCESS, effort.stretch_s)
        for node_count in (FEW_NODES, MANY_NODES):
            rows += await _measure_database("PostgreSQL", server.url(), PROCESS_COUNT, node_count, raw, effort)
            await asyncio.to_thread(_empty, server.url())
    note = (
        f"PostgreSQL: {PROCESS_COUNT} processes with {CALLERS_PER_PROCESS} callers and connections each, fsync on; "
        f"SQLite: one process with {PROCESS_COUNT * CALLERS_PER_PROCESS} callers, synchronous=FULL"
    )
    return Section("claims", TITLE, tuple(rows), (note,))


async def _measure_sqlite(effort: ClaimEffort) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="limiquantix-bench-") as name:
        database = Path(name) / "limiquantix.db"
        url = f"sqlite:///{database}"
        await asyncio.to_thread(migrate, url)
        raw = partial(_raw_sqlite_commits_per_s, Path(name) / "raw.db", float(effort.stretch_s))
        return await _measure_database("SQLite", url, 1, FEW_NODES, raw, effort)


async def _measure_database(
    name: str, url: str, process_count: int, node_count: int, raw: Callable[[], Awaitable[float]], effort: ClaimEffort
) -> list[Row]:
    """Claim and place on that many nodes, in turn with raw commits."""
    tell(f"{name}: claims on {node_count} nodes, {effort.round_count} rounds")
    nodes = await _insert_nodes(url, node_count)
    callers = PROCESS_COUNT * CALLERS_PER_PROCESS // process_count
    measured = _Measured([], {"claim": [], "place": []})
    async with running_workers("claim_worker", process_count, url, str(callers)) as workers:
        for _ in range(effort.round_count):
            measured.raw.append(await raw())
            await _stretch(measured, "claim", workers, callers, effort, node_ids=[node.id for node in nodes])
            await _stretch(measured, "place", workers, callers, effort)
    await _check(url, nodes, measured.claimed_count)
    rows: list[Row] = []
    for kind, ours in measured.ours.items():
        label = f"{name} {kind}, {node_count} nodes"
        pairs = [Pair(*each) for each in zip(ours, measured.raw, strict=True)]
        rows.append(compare(f"{label}, of raw commits", pairs, "/s"))
        if name == "PostgreSQL":
            peers = [Pair(each, PEER_CLAIMS_PER_S) for each in ours]
            rows.append(compare(f"{label}, of a peer's", peers, "/s", PEER_GOAL))
    return rows


async def _stretch(
    measured: _Measured, kind: str, workers: list[Worker], callers: int, effort: ClaimEffort, **more: object
) -> None:
    answers = await ask_all(workers, do=kind, callers=callers, stretch_s=effort.stretch_s, **more)
    measured.ours[kind].append(sum(answer["per_s"] for answer in answers))
    measured.claimed_count += sum(answer["claimed"] for answer in answers)


async def _insert_nodes(url: str, count: int) -> list[Node]:
    nodes = ready_nodes(count, vcpus=_ROOM_PER_NODE)

    async def insert(tx: Transaction) -> None:
        for node in nodes:
            await tx.insert_node(node)

    async with _open_store(url) as store:
        await store.run(insert)
    return nodes


async def _check(url: str, nodes: list[Node], claimed_count: int) -> None:
    """Compare what callers were told with what is stored.

    Raises:
        RuntimeError: they differ.
    """
    async with _open_store(url) as store:
        stored = await store.read(lambda tx: tx.nodes([node.id for node in nodes]))
    allocated = sum(node.allocated.vcpus for node in stored)
    if allocated != claimed_count * VM_SIZE.vcpus:
        raise RuntimeError(f"callers were told of {claimed_count} claims, the nodes have {allocated}")


@asynccontextmanager
async def _open_store(url: str) -> AsyncIterator[Store]:
    store = create_store(url)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def _empty(url: str) -> None:
    """Remove the nodes with their VMs: the next nodes have the database for themselves."""
    engine = migration_engine(url)
    with engine.begin() as connection:
        for table in (schema.vms, schema.nodes):
            connection.execute(delete(table))
    engine.dispose()


async def _raw_sqlite_commits_per_s(path: Path, stretch_s: float) -> float:
    return await asyncio.to_thread(_commit_for, path, stretch_s)


def _commit_for(path: Path, stretch_s: float) -> float:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE IF NOT EXISTS raw_commits (id INTEGER PRIMARY KEY, value INTEGER)")
        connection.execute("BEGIN")
        connection.executemany("INSERT OR IGNORE INTO raw_commits VALUES (?, 0)", [(number,) for number in range(1000)])
        connection.execute("COMMIT")
        count = 0
        began_s = time.perf_counter()
        while (elapsed_s := time.perf_counter() - began_s) < stretch_s:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("UPDATE raw_commits SET value = value + 1 WHERE id = ?", [count * 37 % 1000])
            connection.execute("COMMIT")
            count += 1
    return count / elapsed_s
