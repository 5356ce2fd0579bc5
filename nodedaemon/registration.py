"""Register this host at the control plane and keep saying that it lives.

A host is known by its name: registering again, after a restart or because the control plane forgot, is the same node
coming back.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime

import structlog

from limiquantix.compute.v1.node_service_pb2 import RegisterNodeRequest, UpdateHeartbeatRequest
from limiquantix.errors import ApiError, Code
from nodedaemon.config import MAX_HEARTBEAT_INTERVAL_S
from nodedaemon.control_plane import ControlPlane
from nodedaemon.host_report import HostReport
from nodedaemon.reporter import Reporter
from nodedaemon.self_fencing.keeper import SelfFencing
from nodedaemon.self_fencing.lease import boottime_ns

FIRST_RETRY_S = 1.0
MAX_RETRY_S = 5.0
"""Not longer than it takes until a silent host is suspected: a control plane that comes back has to hear from it."""
FAILURES_UNTIL_REGISTRATION = 3
ASK_AGAIN_S = 0.25
"""Until this host was told of its fences since its daemon began, which commands wait for."""
HEARTBEATS_UNTIL_LOOK = 10
"""Looking takes a tenth of a second, and what a host has changes by somebody's hand: minutes are soon enough."""

_FAILURES_PER_LINE = 30
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
        control_plane: where it registers: whichever instance answers.
        instances: every instance of the control plane, each by itself; all are sent heartbeats, so that each has heard
            for itself and any of them grants leases. None given: `control_plane` alone.
        fencing: takes the leases; None for none.
        once_registered: called when the first registration was taken, beside the heartbeats; it raises nothing.
        on_revocation: told when certificates of any host were last revoked, with each heartbeat's answer.
        sleep, jitter: seams for tests; `jitter` returns a number from 0 to 1.
    """

    def __init__(
        self,
        control_plane: ControlPlane,
        report: HostReport,
        reporter: Reporter,
        interval_s: float,
        *,
        instances: Sequence[ControlPlane] = (),
        fencing: SelfFencing | None = None,
        once_registered: Callable[[], Awaitable[None]] | None = None,
        on_revocation: Callable[[datetime], None] = lambda at: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._control_plane = control_plane
        self._instances = tuple(instances) or (control_plane,)
        self._fencing = fencing
        self._once_registered = once_registered
        self._on_revocation = on_revocation
        self._report = report
        self._reporter = reporter
        self._interval_s = interval_s
        self._sleep = sleep
        self._jitter = jitter
        self._told = b""
        self._asks_soon = False
        self._failure_counts = [0] * len(self._instances)
        self._building: asyncio.Task[UpdateHeartbeatRequest] | None = None
        self._registering: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Register, then beat at every instance beside each other, until cancelled."""
        await self._register()
        tasks = [asyncio.create_task(self._beat(number), name=f"heartbeat-{number}") for number in self._numbers()]
        beside = [asyncio.ensure_future(self._once_registered())] if self._once_registered is not None else []
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # raises: it ends only by a defect
        finally:
            doomed = [*tasks, *beside, *(task for task in (self._registering, self._looking) if task is not None)]
            for task in doomed:
                task.cancel()
            await asyncio.gather(*doomed, return_exceptions=True)

    def _numbers(self) -> range:
        return range(len(self._instances))

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

    def _register_again(self) -> asyncio.Task[None]:
        """Have this host registered, once for all who ask meanwhile. Heartbeats go on: leases hang on them."""
        if self._registering is None or self._registering.done():
            self._registering = asyncio.create_task(self._register(), name="register")
        return self._registering

    async def _beat(self, number: int) -> None:
        """Beat at one instance, for ever."""
        for beat_count in itertools.count(1):
            if number == 0 and beat_count % HEARTBEATS_UNTIL_LOOK == 0:
                self.look_soon()
            failure = await self._beat_once(number)
            if failure is not None and failure.code is Code.NOT_FOUND:  # it does not know this node (any more)
                if self._failure_counts[number] > 1:
                    await self._sleep(FIRST_RETRY_S)  # it has not heard of the registration yet
                await asyncio.shield(self._register_again())
                continue
            if min(self._failure_counts) >= FAILURES_UNTIL_REGISTRATION:
                self._register_again()
            await self._sleep(self._pause_s(self._failure_counts[number], asks_soon=self._asks_soon))

    def _pause_s(self, failure_count: int, *, asks_soon: bool = False) -> float:
        """Say how long to wait after a heartbeat; soon after one that failed, and until told the interval is long."""
        if failure_count == 0:
            return min(self._interval_s, ASK_AGAIN_S) if asks_soon else self._interval_s
        return min(self._interval_s, MAX_RETRY_S, FIRST_RETRY_S * 2.0 ** min(failure_count - 1, 8))

    async def _beat_once(self, number: int) -> ApiError | None:
        """Send one heartbeat; returns why it failed, if it did."""
        try:
            request = await self._heartbeat()
            sent_ns = boottime_ns()
            if self._fencing is not None:
                known_token = request.known_fence_token
                self._fencing.describe(request)
                request.known_fence_token = known_token
            response = await self._instances[number].heartbeat(request)
            if self._fencing is not None:
                await self._fencing.take_answer(sent_ns, response)
                # Commands wait for a newer reading; where the database is away there will be none soon.
                self._asks_soon = not self._fencing.is_informed and response.HasField("fences_read_ms_ago")
        except (ApiError, TimeoutError) as error:
            self._failure_counts[number] += 1
            count = self._failure_counts[number]
            if count <= FAILURES_UNTIL_REGISTRATION or count % _FAILURES_PER_LINE == 0:
                _log.warning("heartbeat_failed", error=str(error) or "time-out", failure_count=count, instance=number)
            return error if isinstance(error, ApiError) else None
        if self._failure_counts[number]:
            self._reporter.retry_now()
        self._failure_counts[number] = 0
        if response.heartbeat_interval_secs:
            self._interval_s = min(response.heartbeat_interval_secs, MAX_HEARTBEAT_INTERVAL_S)
        if response.request_full_sync:
            self._reporter.request_full_sync()
        if response.HasField("newest_revocation"):
            self._on_revocation(response.newest_revocation.ToDatetime(UTC))
        return None

    async def beat_everywhere(self) -> None:
        """Beat at every instance once more, beside the regular beats, with what is so now. What fails is logged."""
        if self._building is not None and not self._building.done():
            await asyncio.wait({self._building})
        await asyncio.gather(*(self._beat_once(number) for number in self._numbers()))

    async def _heartbeat(self) -> UpdateHeartbeatRequest:
        """Build one; instances that are due at the same time share the looking."""
        if self._building is None or self._building.done():
            self._building = asyncio.create_task(self._build(), name="build-heartbeat")
        request = UpdateHeartbeatRequest()
        request.CopyFrom(await asyncio.shield(self._building))
        return request

    async def _build(self) -> UpdateHeartbeatRequest:
        """Look at the host; at the fence that it knows of first, so that what was started before that is counted."""
        known = UpdateHeartbeatRequest()
        if self._fencing is not None:
            self._fencing.describe(known)
        request = await self._report.heartbeat()
        request.known_fence_token = known.known_fence_token
        return request

    def look_soon(self) -> None:
        """Have the host looked at, while heartbeats go on; before its first registration, that will do."""
        if not self._told:
            return
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(), name="look-at-host")

    async def _look(self) -> None:
        """Register again if the host has other bridges, networks, storage, devices or parts than it told of."""
        try:
            if lasting_facts(await self._report.registration()) == self._told:
                return
        except (ApiError, TimeoutError) as error:
            _log.warning("host_not_looked_at", error=str(error) or "time-out")
            return
        _log.info("host_changed", node_id=self._report.node_id)
        self._register_again()

    def _waits_s(self) -> Iterator[float]:
        wait_s = FIRST_RETRY_S
        while True:
            yield min(wait_s * (1 + _JITTER * (2 * self._jitter() - 1)), MAX_RETRY_S)
            wait_s = min(wait_s * 2, MAX_RETRY_S)
