"""A process that beats for many nodes, spread over time as those of a large cluster are, and times the answers."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import click
import grpc
import uvloop
from google.protobuf.message import Message

from benchmarks.measurement import percentile
from benchmarks.workers import Answer, obey
from limiquantix.compute.v1.node_service_pb2 import UpdateHeartbeatRequest, UpdateHeartbeatResponse
from limiquantix.inventory import state_hash

METHOD = "/limiquantix.compute.v1.NodeService/UpdateHeartbeat"
_CALL_TIMEOUT_S = 5.0
_GIB_IN_MIB = 1024

_Call = grpc.aio.UnaryUnaryMultiCallable[Message, UpdateHeartbeatResponse]


class HeartbeatWorker:
    """Beats over a number of connections, node by node in the same order in every interval."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._calls: list[_Call] = []
        self._answer_ms: list[float] = []
        self._late_ms: list[float] = []
        self._faults: dict[str, int] = {}
        self._lease_count = 0

    async def connect(self, address: str, count: int, cpus: Sequence[int]) -> Answer:
        """Open connections, and stay on the CPUs that are named."""
        os.sched_setaffinity(0, cpus)
        for _ in range(count):
            # Else all channels of a process to one address share a connection.
            options = (("grpc.use_local_subchannel_pool", 1),)
            channel = await self._stack.enter_async_context(grpc.aio.insecure_channel(address, options=options))
            self._calls.append(
                channel.unary_unary(
                    METHOD, UpdateHeartbeatRequest.SerializeToString, UpdateHeartbeatResponse.FromString
                )
            )
        return {}

    async def beat(self, ids_path: str, interval_s: float, round_count: int) -> Answer:
        """Send each node's heartbeat once an interval; answers times in milliseconds, and what went wrong."""
        node_ids = (await asyncio.to_thread(Path(ids_path).read_text)).split()
        requests = [self._request_of(node_id) for node_id in node_ids]
        self._answer_ms, self._late_ms, self._faults, self._lease_count = [], [], {}, 0
        began_s = time.perf_counter()
        pending: set[asyncio.Task[None]] = set()
        for number in range(len(requests) * round_count):
            due_s = began_s + number * interval_s / len(requests)
            if (ahead_s := due_s - time.perf_counter()) > 0:
                await asyncio.sleep(ahead_s)
            index = number % len(requests)
            task = asyncio.create_task(self._send(self._calls[index % len(self._calls)], requests[index], due_s))
            pending.add(task)
            task.add_done_callback(pending.discard)
        await asyncio.gather(*pending)
        return {
            "count": len(self._answer_ms),
            "leases": self._lease_count,
            "faults": self._faults,
            "p50_ms": percentile(self._answer_ms, 0.5),
            "p99_ms": percentile(self._answer_ms, 0.99),
            "max_ms": max(self._answer_ms),
            "late_p99_ms": percentile(self._late_ms, 0.99),
            "seconds": time.perf_counter() - began_s,
        }

    @staticmethod
    def _request_of(node_id: str) -> UpdateHeartbeatRequest:
        return UpdateHeartbeatRequest(
            node_id=node_id,
            cpu_usage_percent=random.uniform(5, 60),  # noqa: S311 - a load, no secret
            memory_used_mib=100 * _GIB_IN_MIB,
            memory_total_mib=512 * _GIB_IN_MIB,
            disk_used_bytes=2**40,
            disk_total_bytes=2**43,
            load_1m=1.5,
            load_5m=1.2,
            load_15m=1.0,
            state_hash=state_hash({}),
            boot_id="4b7a2f0e-6c43-4d8e-9f0a-0d3f4b8f8d11",
            can_self_fence=True,
            self_fences_within_ms=1000,
            known_ha_version=1,
            lease_left_ms=4000,
        )

    async def _send(self, call: _Call, request: UpdateHeartbeatRequest, due_s: float) -> None:
        sent_s = time.perf_counter()
        self._late_ms.append(1000 * (sent_s - due_s))
        request.cpu_usage_percent = min(99.0, max(0.0, request.cpu_usage_percent + random.uniform(-1, 1)))  # noqa: S311
        try:
            answer = await call(request, timeout=_CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            self._faults[error.code().name] = self._faults.get(error.code().name, 0) + 1
            return
        self._answer_ms.append(1000 * (time.perf_counter() - sent_s))
        self._lease_count += answer.HasField("lease")

    async def close(self) -> None:
        """Let go of the connections."""
        await self._stack.aclose()


async def work() -> None:
    """Obey."""
    worker = HeartbeatWorker()
    try:
        await obey({"connect": worker.connect, "beat": worker.beat})
    finally:
        await worker.close()


@click.command()
def main() -> None:
    """Beat."""
    uvloop.run(work())


if __name__ == "__main__":
    main()
