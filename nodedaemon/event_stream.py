"""The hypervisor's events for whoever follows this host, each with a bounded queue of its own."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator
from typing import Final

from hypervisor.base import Hypervisor
from hypervisor.types import VmEvent
from limiquantix.errors import Reason, ResourceExhausted
from limiquantix.node.v1 import node_daemon_pb2 as pb
from nodedaemon.encode_metrics import to_node_event

MAX_WAITING_EVENTS: Final = 1024
"""Some 200 KiB a stream; a host on which everything starts at once sends a few for each VM."""
MAX_STREAMS: Final = 64


class EventStreams:
    """All streams of one host.

    Args:
        max_waiting: how many events wait for a reader before it is cut off.
    """

    def __init__(self, hypervisor: Hypervisor, *, max_waiting: int = MAX_WAITING_EVENTS) -> None:
        self._hypervisor = hypervisor
        self._max_waiting = max_waiting
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
        waiting: deque[tuple[VmEvent, float]] = deque()
        has_news = asyncio.Event()

        def take(event: VmEvent) -> None:
            if len(waiting) <= self._max_waiting:  # one more shows that it was too many
                waiting.append((event, time.time()))
                has_news.set()

        unsubscribe = self._hypervisor.subscribe(take)
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
                    yield to_node_event(*waiting.popleft())
        finally:
            self._stream_count -= 1
            unsubscribe()
