"""Register this host at the control plane and keep saying that it lives.

A host is known by its name: registering again, after a restart or because the control plane forgot, is the same node
coming back.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator

import structlog

from limiquantix.compute.v1.node_service_pb2 import RegisterNodeRequest
from limiquantix.errors import ApiError, Code
from nodedaemon.config import MAX_HEARTBEAT_INTERVAL_S
from nodedaemon.control_plane import ControlPlane
from nodedaemon.host_report import HostReport
from nodedaemon.reporter import Reporter

FIRST_RETRY_S = 1.0
MAX_RETRY_S = 60.0
FAILURES_UNTIL_REGISTRATION = 3
HEARTBEATS_UNTIL_LOOK = 10
"""Looking takes a tenth of a second, and what a host has changes by somebody's hand: minutes are soon enough."""

_JITTER = 0.2
"""Share by which a wait varies, so that hosts that lost the control plane together do not all come back at once."""

_log = structlog.get_logger(__name__)


def lasting_facts(request: RegisterNodeRequest) -> bytes:
    """Reduce a registration to what placement goes by and what does not change by itself, to be compared."""
    facts = RegisterNodeRequest()
    facts.CopyFrom(request)
    facts.ClearField("system")
    facts.cpu_info.ClearField("frequency_mhz")
    for domain in facts.storage_domains:
        domain.ClearField("free_bytes")
    for device in facts.devices:
        device.ClearField("used_by_vm_id")
        device.ClearField("obstacle")
        device.ClearField("driver")
    for pages in (facts.memory_info.huge_pages, facts.machine.huge_pages):
        pages.ClearField("pages_2mb_free")
        pages.ClearField("pages_1gb_free")
    for card in facts.network_devices:
        card.ClearField("speed_mbps")
        card.config.ClearField("ip_addresses")
    return facts.SerializeToString(deterministic=True)


class Registration:
    """One task (`run`).

    Args:
        sleep, jitter: seams for tests; `jitter` returns a number from 0 to 1.
    """

    def __init__(
        self,
        control_plane: ControlPlane,
        report: HostReport,
        reporter: Reporter,
        interval_s: float,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._control_plane = control_plane
        self._report = report
        self._reporter = reporter
        self._interval_s = interval_s
        self._sleep = sleep
        self._jitter = jitter
        self._told = b""

    async def run(self) -> None:
        """Register, beat, and register again when the control plane is lost, until cancelled."""
        while True:
            await self._register()
            await self._beat_until_lost()

    async def _register(self) -> None:
        for wait_s in self._waits_s():
            try:
                request = await self._report.registration()
                node = await self._control_plane.register(request)
            except (ApiError, TimeoutError) as error:
                _log.warning("registration_failed", error=str(error) or "time-out", retry_s=round(wait_s, 1))
                await self._sleep(wait_s)
                continue
            self._report.node_id = node.id
            self._told = lasting_facts(request)
            _log.info("registered", node_id=node.id)
            self._reporter.node_registered(node.id)
            return

    async def _beat_until_lost(self) -> None:
        failure_count = beat_count = 0
        while failure_count < FAILURES_UNTIL_REGISTRATION:
            if beat_count == HEARTBEATS_UNTIL_LOOK:
                beat_count = 0
                if await self._has_changed():
                    _log.info("host_changed", node_id=self._report.node_id)
                    return
            beat_count += 1
            try:
                response = await self._control_plane.heartbeat(await self._report.heartbeat())
            except (ApiError, TimeoutError) as error:
                failure_count += 1
                _log.warning("heartbeat_failed", error=str(error) or "time-out", failure_count=failure_count)
                if isinstance(error, ApiError) and error.code is Code.NOT_FOUND:
                    return  # the control plane does not know this node (any more)
            else:
                if failure_count:
                    self._reporter.retry_now()
                failure_count = 0
                if response.heartbeat_interval_secs:
                    self._interval_s = min(response.heartbeat_interval_secs, MAX_HEARTBEAT_INTERVAL_S)
                if response.request_full_sync:
                    self._reporter.request_full_sync()
            if failure_count < FAILURES_UNTIL_REGISTRATION:
                await self._sleep(self._interval_s)

    async def _has_changed(self) -> bool:
        """Tell whether the host has other bridges, networks, storage, devices or parts than it told of."""
        try:
            return lasting_facts(await self._report.registration()) != self._told
        except (ApiError, TimeoutError) as error:
            _log.warning("host_not_looked_at", error=str(error) or "time-out")
            return False

    def _waits_s(self) -> Iterator[float]:
        wait_s = FIRST_RETRY_S
        while True:
            yield min(wait_s * (1 + _JITTER * (2 * self._jitter() - 1)), MAX_RETRY_S)
            wait_s = min(wait_s * 2, MAX_RETRY_S)
