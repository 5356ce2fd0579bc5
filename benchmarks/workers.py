"""Processes that put load on something and report: clients must not share one Python with what they measure.

A worker is a module of this package. It is told what to do by one line of JSON on its standard input, and answers with
one line on its standard output; it ends when its input does.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

_STOP_DEADLINE_S = 10.0
_LINE_LIMIT_BYTES = 16 * 2**20

Answer = dict[str, Any]


class Worker:
    """One of them, as its parent sees it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, **order: Any) -> Answer:
        """Give an order and wait for the answer.

        Raises:
            RuntimeError: it ended instead; its complaint is on our standard error.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        await self._process.stdin.drain()
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("a worker of the benchmark ended early")
        answer: Answer = json.loads(line)
        return answer

    async def end(self) -> None:
        """Let it end, or kill it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(_STOP_DEADLINE_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def running_workers(module: str, count: int, *arguments: str) -> AsyncIterator[list[Worker]]:
    """Run `python -m benchmarks.<module>` that many times; they are gone afterwards."""
    async with AsyncExitStack() as stack:
        workers: list[Worker] = []
        for _ in range(count):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", f"benchmarks.{module}", *arguments,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=_LINE_LIMIT_BYTES,
            )  # fmt: skip
            worker = Worker(process)
            stack.push_async_callback(worker.end)
            workers.append(worker)
        yield workers


async def ask_all(workers: list[Worker], **order: Any) -> list[Answer]:
    """Give all of them the same order at once."""
    return list(await asyncio.gather(*(worker.ask(**order) for worker in workers)))


async def obey(orders: Mapping[str, Callable[..., Awaitable[Answer]]]) -> None:
    """Be a worker: carry out what comes in, by the name in `do`, until the input ends."""
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        answer = await orders[order.pop("do")](**order)
        print(json.dumps(answer), flush=True)
