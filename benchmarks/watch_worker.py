"""A process that holds many streams open and notes how late each message arrives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

import click
import grpc
import uvloop
from google.protobuf.message import Message

from benchmarks.calling import open_as
from benchmarks.workers import Answer, obey
from limiquantix.compute.v1.vm_service_pb2 import VMUpdate, WatchVMsRequest
from limiquantix.rpc.channel import open_channel

STREAMS_PER_CHANNEL = 50
"""As many clients would: below the 100 that an HTTP/2 connection is usually allowed."""

_DEADLINE_S = 60.0


class WatchWorker:
    """Streams of one method at one address.

    A message whose VM's description is a number is a change; the number is when it was sent, by the clock that all
    processes of a machine share. One without a VM shows that a stream has begun.
    """

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self._begun = asyncio.Semaphore(0)
        self._arrived = asyncio.Semaphore(0)
        self._late_ms: list[float] = []

    async def open(
        self, address: str, method: str, count: int, authority_pem: str = "", keys: Sequence[str] = ()
    ) -> Answer:
        """Open streams, and wait until each has begun.

        Args:
            authority_pem: whom to believe, of an address that speaks TLS.
            keys: what to call it with.
        """
        for first in range(0, count, STREAMS_PER_CHANNEL):
            opened = open_as(keys, address, authority_pem) if authority_pem else open_channel(address)
            channel = await self._stack.enter_async_context(opened)
            call = channel.unary_stream(method, WatchVMsRequest.SerializeToString, VMUpdate.FromString)
            for _ in range(min(STREAMS_PER_CHANNEL, count - first)):
                self._tasks.append(asyncio.get_running_loop().create_task(self._follow(call)))
        await self._wait_for(self._begun, count)
        return {}

    async def _follow(self, call: grpc.aio.UnaryStreamMultiCallable[Message, VMUpdate]) -> None:
        has_begun = False
        async for update in call(WatchVMsRequest(send_bookmarks=True)):
            now_ns = time.monotonic_ns()
            if update.vm.description.isdecimal():
                self._late_ms.append((now_ns - int(update.vm.description)) / 1e6)
                self._arrived.release()
            elif not has_begun and not update.HasField("vm"):
                has_begun = True
                self._begun.release()

    async def collect(self, count: int) -> Answer:
        """Wait for that many messages in all, and tell how late they were, in milliseconds."""
        await self._wait_for(self._arrived, count)
        late_ms, self._late_ms = self._late_ms, []
        return {"late_ms": late_ms}

    @staticmethod
    async def _wait_for(happened: asyncio.Semaphore, count: int) -> None:
        async with asyncio.timeout(_DEADLINE_S):
            for _ in range(count):
                await happened.acquire()

    async def close(self) -> None:
        """End all streams."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()


async def work() -> None:
    """Obey."""
    worker = WatchWorker()
    try:
        await obey({"open": worker.open, "collect": worker.collect})
    finally:
        await worker.close()


@click.command()
def main() -> None:
    """Watch."""
    uvloop.run(work())


if __name__ == "__main__":
    main()
