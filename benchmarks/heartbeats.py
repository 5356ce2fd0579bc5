"""Heartbeats of many nodes at one control plane that has a CPU to itself; another process beats, on the others.

Every node beats each 5 s, over real gRPC. What is measured is one stretch after a warm-up: how long answers take, the
share of the CPU, memory, and how many nodes' rows were written meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from benchmarks.cluster import cpu_time_us, tell
from benchmarks.measurement import Section
from benchmarks.memory import read_footprint
from benchmarks.records import insert_nodes
from benchmarks.workers import running_workers

TITLE = "heartbeats at one control plane on one CPU"
INTERVAL_S = 5.0
CONNECTION_COUNT = 100
"""That the nodes share: the benchmark's own process could not hold one for each."""
WARM_UP_ROUNDS = 2
ROUNDS = 6
_START_DEADLINE_S = 30.0
_ENVIRONMENT = {"LIMIQUANTIX_DRS__ENABLED": "false"}
"""Balancing would call each node for its measures, and there are none to call."""


@dataclass(frozen=True, slots=True)
class HeartbeatEffort:
    """How many nodes beat."""

    node_count: int


async def measure_heartbeats(effort: HeartbeatEffort) -> Section:
    """Run this part; needs two CPUs."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        return Section("heartbeats", TITLE, skipped="needs a CPU for the control plane and another one for the nodes")
    async with AsyncExitStack() as stack:
        data_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="limiquantix-bench-")))
        node_ids = await insert_nodes(data_dir / "limiquantix.db", effort.node_count)
        await asyncio.to_thread((data_dir / "nodes").write_text, "\n".join(node_ids))
        server, address = await stack.enter_async_context(_running_control_plane(data_dir, cpus[:1]))
        (worker,) = await stack.enter_async_context(running_workers("heartbeat_worker", 1))
        await worker.ask(do="connect", address=address, count=CONNECTION_COUNT, cpus=cpus[1:])
        ids_path = str(data_dir / "nodes")
        tell(f"{effort.node_count} nodes, each every {INTERVAL_S:g} s")
        await worker.ask(do="beat", ids_path=ids_path, interval_s=INTERVAL_S, round_count=WARM_UP_ROUNDS)
        began_at, began_us = datetime.now(UTC), await cpu_time_us(server)
        got = await worker.ask(do="beat", ids_path=ids_path, interval_s=INTERVAL_S, round_count=ROUNDS)
        used_us = await cpu_time_us(server) - began_us
        written = await asyncio.to_thread(_written_since, data_dir / "limiquantix.db", began_at)
        footprint = await asyncio.to_thread(read_footprint, server.pid)
    figures = {
        "nodes": float(effort.node_count),
        "heartbeats_per_s": got["count"] / got["seconds"],
        "answer_p50_ms": got["p50_ms"],
        "answer_p99_ms": got["p99_ms"],
        "answer_max_ms": got["max_ms"],
        "sent_late_p99_ms": got["late_p99_ms"],
        "failed": float(sum(got["faults"].values())),
        "without_lease": float(got["count"] - got["leases"]),
        "cpu_percent": used_us / got["seconds"] / 1e4,
        "cpu_us_per_heartbeat": used_us / got["count"],
        "rss_mib": footprint.rss_mib,
        "rows_written_per_heartbeat": written / got["count"],
    }
    return Section("heartbeats", TITLE, figures={"one control plane": figures})


@asynccontextmanager
async def _running_control_plane(data_dir: Path, cpus: Sequence[int]) -> AsyncIterator[tuple[psutil.Process, str]]:
    """Run one on these CPUs alone; yields it and its gRPC address."""
    ready = data_dir / "ready.json"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "controlplane", "--database-url", f"sqlite:///{data_dir / 'limiquantix.db'}",
        "--http-listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0", "--log-level", "error",
        "--ready-file", str(ready), env=os.environ | _ENVIRONMENT, preexec_fn=lambda: os.sched_setaffinity(0, cpus),
    )  # fmt: skip
    try:
        async with asyncio.timeout(_START_DEADLINE_S):
            while not await asyncio.to_thread(ready.exists):  # noqa: ASYNC110 - another process makes it
                await asyncio.sleep(0.05)
        yield psutil.Process(process.pid), json.loads(await asyncio.to_thread(ready.read_text))["grpc"]
    finally:
        process.terminate()
        await process.wait()


def _written_since(database: Path, at: datetime) -> int:
    """Count the nodes whose row has a heartbeat of since; in less than a minute none is written twice without need."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        moment = int(at.timestamp() * 1_000_000)
        (count,) = connection.execute("SELECT count(*) FROM nodes WHERE last_heartbeat_at >= ?", (moment,)).fetchone()
    return int(count)
