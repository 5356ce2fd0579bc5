"""Tells those who follow a host when it has more load than it can carry, and when that is over."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog

from limiquantix.node.v1 import node_daemon_pb2 as pb
from nodedaemon.encode import timestamp
from telemetry import overload
from telemetry.host import HostUsage
from telemetry.overload import Load, OverloadRules, OverloadState

_log = structlog.get_logger(__name__)

LOOK_INTERVAL_S: Final = 10.0
"""Between measures: a load that lasts half a minute is more than a burst."""


class Meter(Protocol):
    """What measures a host; see `HostMeter`."""

    async def sample(self) -> HostUsage:
        """Measure."""
        ...


@dataclass(frozen=True, slots=True)
class LoadWatchConfig:
    """Limits, and how often to measure, in seconds."""

    rules: OverloadRules = field(default_factory=OverloadRules)
    interval_s: float = LOOK_INTERVAL_S


class LoadWatch:
    """Watches for one follower, who is told first when the host is found to be overloaded.

    Args:
        meter: of this follower alone.
    """

    def __init__(
        self,
        meter: Meter,
        config: LoadWatchConfig | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._meter = meter
        self._config = config or LoadWatchConfig()
        self._now_s = now_s
        self._state = OverloadState()

    async def next_change(self) -> pb.NodeEvent:
        """Wait until something is to be told; measures every interval meanwhile."""
        while True:
            await asyncio.sleep(self._config.interval_s)
            try:
                usage = await self._meter.sample()
            except OSError as error:
                _log.warning("load_not_measured", error=str(error))
                continue
            event = self._judge(usage)
            if event is not None:
                return event

    def _judge(self, usage: HostUsage) -> pb.NodeEvent | None:
        total = usage.memory_total_bytes
        load = Load(usage.cpu_percent, 100 * usage.memory_used_bytes / total if total else 0.0)
        before, self._state = self._state, overload.step(self._config.rules, self._state, load)
        if self._state.is_overloaded == before.is_overloaded:
            return None
        is_overloaded = self._state.is_overloaded
        return pb.NodeEvent(
            id=str(uuid.uuid4()),
            timestamp=timestamp(self._now_s()),
            type=pb.EVENT_TYPE_NODE_OVERLOADED if is_overloaded else pb.EVENT_TYPE_NODE_RECOVERED,
            message=overload.reason_of(self._config.rules, load) if is_overloaded else "the load is below the limits",
            metadata={"cpu_percent": f"{load.cpu_percent:.1f}", "memory_percent": f"{load.memory_percent:.1f}"},
        )
