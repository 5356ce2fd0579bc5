"""How many VMs a second are created through the API, on a simulated host: everything but the hypervisor is real.

A create is three calls (ours to the control plane, its own to the node daemon, the daemon's report) and two
transactions, each durable before anybody is answered. The simulated host writes its VMs to files, and the generation of
each command to a database of its own, as the real one does.

The reference is what was measured for LXD's creation of an empty instance on a machine of this kind: another program,
another day, so the ratio says how far apart they are and not more.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.cluster import Measured, cpu_time_us, running_cluster, tell
from benchmarks.measurement import Goal, Pair, Row, Section, compare, percentile
from benchmarks.postgresql import running_postgresql, why_no_postgresql
from controlplane.cli.dev.stack import HypervisorChoice
from limiquantix.compute.v1 import vm_service_pb2 as pb
from limiquantix.compute.v1.vm_pb2 import CpuConfig, MemoryConfig, VmSpec
from limiquantix.compute.v1.vm_service_pb2_grpc import VMServiceStub

if TYPE_CHECKING:
    from limiquantix.compute.v1.vm_service_pb2_grpc import VMServiceAsyncStub

TITLE = "VMs created through the API on a simulated host, against another's creation of an empty one; higher is better"
PEER_CREATES_PER_S = 138.0
"""The better figure measured for LXD."""

PEER_GOAL = Goal(5.0, better="higher")
CONCURRENCIES = (1, 32, 128)
_CALL_TIMEOUT_S = 60.0
_SPEC = VmSpec(cpu=CpuConfig(cores=1), memory=MemoryConfig(size_mib=16))


@dataclass(frozen=True, slots=True)
class CreateEffort:
    """How much is measured: rounds of one stretch for each number of callers."""

    round_count: int
    stretch_s: float


@dataclass(slots=True)
class _Figures:
    """Of one number of callers: creates a second of each round, latencies of all, CPU time of a create by process."""

    per_s: list[float] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    control_plane_cpu_ms: list[float] = field(default_factory=list)
    node_daemon_cpu_ms: list[float] = field(default_factory=list)


async def measure_creates(effort: CreateEffort) -> Section:
    """Run this part."""
    rows: list[Row] = []
    details: dict[str, dict[str, float]] = {}
    notes: list[str] = []
    async with running_cluster(HypervisorChoice.MOCK) as measured:
        await _measure_cluster("SQLite", measured, effort, rows, details)
    if reason := why_no_postgresql():
        notes.append(f"PostgreSQL left out: {reason}")
    else:
        async with _cluster_on_postgresql() as measured:
            await _measure_cluster("PostgreSQL", measured, effort, rows, details)
    return Section("creates", TITLE, tuple(rows), tuple(notes), figures=details)


@asynccontextmanager
async def _cluster_on_postgresql() -> AsyncIterator[Measured]:
    async with (
        running_postgresql() as server,
        running_cluster(HypervisorChoice.MOCK, database_url=server.url()) as measured,
    ):
        yield measured


async def _measure_cluster(
    name: str, measured: Measured, effort: CreateEffort, rows: list[Row], details: dict[str, dict[str, float]]
) -> None:
    tell(f"{name}: creating VMs, {effort.round_count} rounds")
    figures = {callers: _Figures() for callers in CONCURRENCIES}
    names = (f"vm-{number}" for number in itertools.count())
    async with measured.open_channel() as channel:
        stub = VMServiceStub(channel)
        for callers in CONCURRENCIES:
            await _create_for(stub, names, callers, effort.stretch_s / 2)
        for _ in range(effort.round_count):
            for callers in CONCURRENCIES:
                await _round(measured, stub, names, callers, effort, figures[callers])
    for callers, found in figures.items():
        label = f"{name}, {callers} callers" if callers > 1 else f"{name}, 1 caller"
        pairs = [Pair(per_s, PEER_CREATES_PER_S) for per_s in found.per_s]
        rows.append(compare(label, pairs, "/s", PEER_GOAL))
        details[label] = {
            "p50 ms": percentile(found.latencies_ms, 0.5),
            "p99 ms": percentile(found.latencies_ms, 0.99),
            "CPU ms of the control plane": percentile(found.control_plane_cpu_ms, 0.5),
            "of the node daemon": percentile(found.node_daemon_cpu_ms, 0.5),
        }


async def _round(
    measured: Measured,
    stub: VMServiceAsyncStub,
    names: Iterator[str],
    callers: int,
    effort: CreateEffort,
    figures: _Figures,
) -> None:
    before_us = [await cpu_time_us(process) for process in (measured.control_plane, measured.node_daemon)]
    began_s = time.perf_counter()
    latencies_s = await _create_for(stub, names, callers, effort.stretch_s)
    figures.per_s.append(len(latencies_s) / (time.perf_counter() - began_s))
    figures.latencies_ms += [1000 * latency_s for latency_s in latencies_s]
    after_us = [await cpu_time_us(process) for process in (measured.control_plane, measured.node_daemon)]
    figures.control_plane_cpu_ms.append((after_us[0] - before_us[0]) / 1000 / len(latencies_s))
    figures.node_daemon_cpu_ms.append((after_us[1] - before_us[1]) / 1000 / len(latencies_s))


async def _create_for(stub: VMServiceAsyncStub, names: Iterator[str], callers: int, stretch_s: float) -> list[float]:
    """Keep that many creates under way for a while; returns how long each took, in seconds."""
    latencies_s: list[float] = []
    until_s = time.perf_counter() + stretch_s

    async def caller() -> None:
        while (started_s := time.perf_counter()) < until_s:
            await stub.CreateVM(pb.CreateVMRequest(name=next(names), spec=_SPEC), timeout=_CALL_TIMEOUT_S)
            latencies_s.append(time.perf_counter() - started_s)

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
    return latencies_s
