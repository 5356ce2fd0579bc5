"""Keep a server busy for a while from this process, and tell how fast it was and what CPU it took."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import psutil

from benchmarks.cluster import cpu_time_us
from benchmarks.measurement import percentile

Call = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Side:
    """What is driven: a call, and the process that answers it."""

    process: psutil.Process
    call: Call


@dataclass(frozen=True, slots=True)
class Load:
    """What one side did in one stretch."""

    calls_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us_per_call: float


async def drive(side: Side, concurrency: int, stretch_s: float) -> Load:
    """Keep `concurrency` calls under way for a while; a call that fails ends the benchmark."""
    latencies_s: list[float] = []
    cpu_before_us = await cpu_time_us(side.process)
    began_s = time.perf_counter()
    until_s = began_s + stretch_s

    async def caller() -> None:
        started_s = time.perf_counter()
        while started_s < until_s:
            await side.call()
            ended_s = time.perf_counter()
            latencies_s.append(ended_s - started_s)
            started_s = ended_s

    async with asyncio.TaskGroup() as callers:
        for _ in range(concurrency):
            callers.create_task(caller())
    elapsed_s = time.perf_counter() - began_s
    cpu_us = await cpu_time_us(side.process) - cpu_before_us
    return Load(
        calls_per_s=len(latencies_s) / elapsed_s,
        p50_ms=1000 * percentile(latencies_s, 0.5),
        p99_ms=1000 * percentile(latencies_s, 0.99),
        cpu_us_per_call=cpu_us / len(latencies_s),
    )
