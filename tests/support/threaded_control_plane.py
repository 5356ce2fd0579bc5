"""A control plane in a thread of its own, for tests whose own code does not wait: hypothesis, sockets."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TypeVar

from tests.support.running_control_plane import RunningControlPlane, running_control_plane

MadeT = TypeVar("MadeT")

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 60.0


@contextlib.contextmanager
def threaded_control_plane(directory: Path) -> Iterator[RunningControlPlane]:
    """Run a control plane with one host; its own clients belong to its loop, use `addresses`."""
    with in_a_thread(lambda: running_control_plane(directory)) as (running, _):
        yield running


@contextlib.contextmanager
def in_a_thread(
    make: Callable[[], AbstractAsyncContextManager[MadeT]],
) -> Iterator[tuple[MadeT, asyncio.AbstractEventLoop]]:
    """Have something serve in a loop of its own; what is awaited of it goes there by `run_coroutine_threadsafe`."""
    started: Future[MadeT] = Future()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with make() as made:
            started.set_result(made)
            await stop.wait()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)
        finally:
            loop.close()

    thread = threading.Thread(target=run, name="control plane")
    thread.start()
    try:
        yield started.result(_START_TIMEOUT_S), loop
    finally:
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)
        thread.join(_STOP_TIMEOUT_S)
        assert not thread.is_alive(), "the control plane does not end"
