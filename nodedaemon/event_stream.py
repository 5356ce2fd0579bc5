"""The hypervisor's events, and the host's own, for whoever follows it, each with a bounded queue of its own."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Final

from hypervisor.base import Hypervisor
from limiquantix.errors import Reason, ResourceExhausted
from limiquantix.node.v1 import node_daemon_pb2 as pb
from nodedaemon.encode_metrics import to_node_event
from nodedaemon.load_watch import LoadWatch

MAX_WAITING_EVENTS: Final = 1024
"""Some 200 KiB a stream; a host on which everything starts at once sends a few for each VM."""
MAX_STREAMS: Final = 64


class EventStreams:
    """All streams of one host.

    Args:
        max_waiting: how many events wait for a reader before it is cut off.
        watch_load: makes what tells a reader of the host's load; None tells nothing of it.
    """

    def __init__(
        self,
        hypervisor: Hypervisor,
        *,
        max_waiting: int = MAX_WAITING_EVENTS,
        watch_load: Callable[[], LoadWatch] | None = None,
    ) -> None:
        self._hypervisor = hypervisor
        self._max_waiting = max_waiting
        self._watch_load = watch_load
        self._stream_count = 0

    async def events(self) -> AsyncGenerator[pb.NodeEvent, None]:
        """Yield what happens from now on, as it happens.

        Raises:
            ResourceExhausted: the reader fell too far behind, or there are too many.
        """
        if self._stream_count >= MAX_STREAMS:
            raise ResourceExhausted(
                Reason.TOO_MANY_WATCHES, f"{self._stream_count} streams of this host's events are open; close some"
            )
        waiting: deque[pb.NodeEvent] = deque()
        has_news = asyncio.Event()

        def tell(event: pb.NodeEvent) -> None:
            if len(waiting) <= self._max_waiting:  # one more shows that it was too many
                waiting.append(event)
                has_news.set()

        unsubscribe = self._hypervisor.subscribe(lambda event: tell(to_node_event(event, time.time())))
        loads = asyncio.ensure_future(self._tell_load(tell))
        self._stream_count += 1
        try:
            while True:
                await has_news.wait()
                has_news.clear()
                while waiting:
                    if len(waiting) > self._max_waiting:
                        raise ResourceExhausted(
                            Reason.WATCH_TOO_SLOW,
                            f"more than {self._max_waiting} events waited to be read; read the list of VMs and follow "
                            "the events anew",
                        )
                    yield waiting.popleft()
        finally:
            self._stream_count -= 1
            unsubscribe()
            loads.cancel()

    async def _tell_load(self, tell: Callable[[pb.NodeEvent], None]) -> None:
        if self._watch_load is None:
            return
        watch = self._watch_load()
        while True:
            tell(await watch.next_change())
