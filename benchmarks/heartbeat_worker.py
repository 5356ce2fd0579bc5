"""A process that is many hosts: each has a certificate and a connection of its own, and beats as a daemon does.

That is once an interval, all spread over it; after a failure sooner, by the daemon's own times. A connection that is
lost is made again by the next beat.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NoReturn

import click
import grpc
import uvloop
from google.protobuf.message import Message

from benchmarks.measurement import percentile
from benchmarks.membership import Members
from benchmarks.workers import Answer, obey
from limiquantix.compute.v1.node_service_pb2 import UpdateHeartbeatRequest, UpdateHeartbeatResponse
from limiquantix.inventory import state_hash
from limiquantix.rpc.channel import CROWD_CONNECT_LIMIT_MS, open_channel
from limiquantix.rpc.identity import CONTROL_PLANE_SERVER_NAME
from nodedaemon.control_plane import HEARTBEAT_DEADLINE_S
from nodedaemon.registration import FIRST_RETRY_S, MAX_RETRY_S

METHOD = "/limiquantix.compute.v1.NodeService/UpdateHeartbeat"
_CONNECT_DEADLINE_S = 300.0
_GIB_IN_MIB = 1024

_Call = grpc.aio.UnaryUnaryMultiCallable[Message, UpdateHeartbeatResponse]


class SimulatedHost:
    """One of them; `answered_s` is when its beats were answered, by the clock that all processes of a machine share."""

    def __init__(self, node_id: str, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.answered_s: list[float] = []
        self._call: _Call = channel.unary_unary(
            METHOD, UpdateHeartbeatRequest.SerializeToString, UpdateHeartbeatResponse.FromString
        )
        self._request = UpdateHeartbeatRequest(
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

    async def beat(self) -> UpdateHeartbeatResponse:
        """Say that it lives; raises what gRPC raises."""
        request = self._request
        request.cpu_usage_percent = min(99.0, max(0.0, request.cpu_usage_percent + random.uniform(-1, 1)))  # noqa: S311
        answer = await self._call(request, timeout=HEARTBEAT_DEADLINE_S)
        self.answered_s.append(time.monotonic())
        return answer


class HeartbeatWorker:
    """All of them, and what is noted of their beats."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._hosts: list[SimulatedHost] = []
        self._answer_ms: list[float] = []
        self._late_ms: list[float] = []
        self._faults: Counter[str] = Counter()
        self._lease_count = 0
        self._began_s = 0.0
        self._beating: list[asyncio.Task[NoReturn]] = []

    async def connect(self, address: str, members_path: str, cpus: Sequence[int]) -> Answer:
        """Stay on the CPUs that are named, and connect all hosts at once; answers how long that took."""
        os.sched_setaffinity(0, cpus)
        members = await asyncio.to_thread(Members.read, Path(members_path))
        for each in members.hosts:
            shown = each.credentials(members.authority_pem)
            channel = await self._stack.enter_async_context(
                open_channel(address, shown, CONTROL_PLANE_SERVER_NAME, CROWD_CONNECT_LIMIT_MS)
            )
            self._hosts.append(SimulatedHost(each.node_id, channel))
        began_s, took_s = time.monotonic(), list[float]()

        async def wait_for(channel: grpc.aio.Channel) -> None:
            await channel.channel_ready()
            took_s.append(time.monotonic() - began_s)

        began_cpu_s = time.process_time()
        async with asyncio.timeout(_CONNECT_DEADLINE_S), asyncio.TaskGroup() as group:
            for host in self._hosts:
                group.create_task(wait_for(host.channel))
        cpu_s = time.process_time() - began_cpu_s
        return {"p50_s": percentile(took_s, 0.5), "max_s": max(took_s), "cpu_s": cpu_s}

    async def begin(self, interval_s: float) -> Answer:
        """Have all hosts beat from now on."""
        self._answer_ms, self._late_ms, self._faults, self._lease_count = [], [], Counter(), 0
        self._began_s = time.monotonic()
        for number, host in enumerate(self._hosts):
            host.answered_s.clear()
            first_s = self._began_s + number * interval_s / len(self._hosts)
            self._beating.append(asyncio.create_task(self._live(host, first_s, interval_s)))
        return {}

    async def end(self) -> Answer:
        """Have them stop; answers times in milliseconds, and what went wrong."""
        seconds = time.monotonic() - self._began_s
        await self._stop()
        return {
            "count": len(self._answer_ms),
            "leases": self._lease_count,
            "faults": dict(self._faults),
            "p50_ms": percentile(self._answer_ms, 0.5),
            "p99_ms": percentile(self._answer_ms, 0.99),
            "max_ms": max(self._answer_ms),
            "late_p99_ms": percentile(self._late_ms, 0.99),
            "seconds": seconds,
        }

    async def _stop(self) -> None:
        for task in self._beating:
            task.cancel()
        for ended in await asyncio.gather(*self._beating, return_exceptions=True):
            if not isinstance(ended, asyncio.CancelledError):
                raise RuntimeError("a host of the benchmark ended early") from ended
        self._beating = []

    async def _live(self, host: SimulatedHost, due_s: float, interval_s: float) -> NoReturn:
        failure_count = 0
        while True:
            if (ahead_s := due_s - time.monotonic()) > 0:
                await asyncio.sleep(ahead_s)
            if await self._beat_once(host, due_s):
                failure_count = 0
                due_s += interval_s
            else:
                failure_count += 1
                pause_s = min(interval_s, MAX_RETRY_S, FIRST_RETRY_S * 2.0 ** min(failure_count - 1, 8))
                due_s = time.monotonic() + pause_s

    async def _beat_once(self, host: SimulatedHost, due_s: float) -> bool:
        sent_s = time.monotonic()
        self._late_ms.append(1000 * (sent_s - due_s))
        try:
            answer = await host.beat()
        except grpc.aio.AioRpcError as error:
            self._faults[error.code().name] += 1
            return False
        self._answer_ms.append(1000 * (time.monotonic() - sent_s))
        self._lease_count += answer.HasField("lease")
        return True

    async def recall(self, at_s: float) -> Answer:
        """Tell how soon after a moment each host was answered, and of the longest time that one was not answered.

        Each is no number if nobody was.
        """
        after_s = [next((each - at_s for each in host.answered_s if each > at_s), None) for host in self._hosts]
        heard_s = [each for each in after_s if each is not None]
        silent_s = [
            later - earlier
            for host in self._hosts
            for earlier, later in zip(host.answered_s, host.answered_s[1:], strict=False)
        ]
        return {
            "missing": len(after_s) - len(heard_s),
            "p50_s": percentile(heard_s, 0.5) if heard_s else math.nan,
            "p99_s": percentile(heard_s, 0.99) if heard_s else math.nan,
            "max_s": max(heard_s, default=math.nan),
            "silent_s": max(silent_s, default=math.nan),
        }

    async def close(self) -> None:
        """End all beats, and let go of the connections."""
        await self._stop()
        await self._stack.aclose()


async def work() -> None:
    """Obey."""
    worker = HeartbeatWorker()
    try:
        await obey({"connect": worker.connect, "begin": worker.begin, "end": worker.end, "recall": worker.recall})
    finally:
        await worker.close()


@click.command()
def main() -> None:
    """Beat."""
    uvloop.run(work())


if __name__ == "__main__":
    main()
