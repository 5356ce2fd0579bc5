"""Leases of nodes: granted with the answer to each heartbeat, from memory; and objections to fences of nodes heard.

An answer tells that high availability is armed only together with a lease: a host that is told so without one would
kill its protected VMs at once. That it is disarmed is told always. What the answer says of epoch, settings and token
comes from a fresh reading of the database, or is not said.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from controlplane.coordination.interface import Coordinator
from controlplane.domain.ha_times import HaTimes
from controlplane.services.ha_clock import clock_s
from controlplane.services.hearing import Heard, Hearing
from controlplane.services.lease_counters import LeaseCounters
from controlplane.services.lease_guards import LeaseGuards
from controlplane.services.lease_marks import LeaseMarks, Seen
from controlplane.state.interface import Store
from limiquantix.compute.v1.node_service_pb2 import NodeLease, UpdateHeartbeatResponse
from limiquantix.errors import ApiError

_log = structlog.get_logger(__name__)

SYNC_INTERVAL_S = 0.5
OBJECTION_INTERVALS = 1.5
"""A node heard longer ago than so many heartbeat intervals is no longer vouched for."""


@dataclass(slots=True)
class Leases:
    """Grants leases; `run` has to run for it. Owned by the event loop's thread.

    Attributes:
        has_second_place: as `LeaseMarks` has it.
    """

    store: Store
    coordinator: Coordinator
    times: HaTimes
    hearing: Hearing
    replica_id: str
    clock: Callable[[], float] = clock_s
    has_second_place: bool = True
    marks: LeaseMarks = field(init=False)
    guards: LeaseGuards = field(init=False)
    counters: LeaseCounters = field(init=False)
    _objected: dict[str, Seen] = field(default_factory=dict)
    """The fence of each node that this process objected to, and when it last did."""

    def __post_init__(self) -> None:
        times, clock, has_second_place = self.times, self.clock, self.has_second_place
        self.marks = LeaseMarks(self.store, self.coordinator, times.freshness_s, clock, has_second_place)
        self.guards = LeaseGuards(self.store, self.times.kill_s, self.clock)
        self.counters = LeaseCounters(self.store, self.marks)

    def answer(self, heard: Heard, response: UpdateHeartbeatResponse) -> None:
        """Add to the answer to a heartbeat what concerns its lease."""
        is_backed = self.guards.backs(heard)
        self.counters.compare(heard)
        if self.guards.has_risen(heard.node_id):
            response.request_full_sync = True
        is_granted = is_backed and self.marks.may_grant(heard.node_id)
        if is_granted:
            response.lease.CopyFrom(NodeLease(duration_ms=int(self.times.lease_s * 1000)))
        recorded = self.marks.recorded
        if recorded is None:
            return
        response.fences_read_ms_ago = self._ms_since(self.marks.recorded_began_s)
        response.epoch = recorded.epoch
        response.fence_token = recorded.tokens.get(heard.node_id, 0)
        if is_granted or not recorded.settings.is_armed:
            response.ha_is_armed = recorded.settings.is_armed
            response.ha_version = recorded.settings.version

    def _ms_since(self, at_s: float) -> int:
        """Return milliseconds, more of them than the clock of any host counts."""
        return math.ceil((self.clock() - at_s) * (1 + self.times.clock_drift) ** 2 * 1000)

    async def object(self) -> None:
        """Say of fenced nodes that were heard since this process read of the fence, or last said so, that they are.

        Said again and again, since a person who confirms that a host is off has objections of before forgotten.

        Raises:
            ApiError: the database does not answer.
        """
        fenced = self.marks.fenced
        now_s = self.clock()
        oldest_s = now_s - OBJECTION_INTERVALS * self.times.heartbeat_interval_s
        self._objected = {
            node_id: said for node_id, said in self._objected.items() if self._is_of(fenced.get(node_id), said)
        }
        heard = {
            node_id: Seen(seen.token, now_s)
            for node_id, seen in fenced.items()
            if (last := self.hearing.of(node_id)) is not None
            and last.at_s > max(self._objected.get(node_id, seen).at_s, oldest_s)
        }
        if not heard:
            return
        first = await self.store.run(lambda tx: tx.object_to_fences(heard.keys(), self.replica_id))
        self._objected |= heard
        for node_id in first:
            _log.warning("fenced_node_is_heard", node_id=node_id, token=heard[node_id].token)

    @staticmethod
    def _is_of(fence: Seen | None, said: Seen) -> bool:
        return fence is not None and fence.token == said.token

    def forget(self, node_id: str) -> None:
        """Drop what is known of a node that is gone."""
        self.guards.forget(node_id)
        self.counters.forget(node_id)

    async def declare(self) -> None:
        """Record how long others must wait because of leases granted here. Until it is done, none is granted.

        It is done before the first reading that a lease is granted upon begins. So whoever fences a node without having
        seen it is read of by that reading.

        Raises:
            ApiError: the database does not answer.
        """
        own_ms = self.times.declared_wait_ms
        longest_ms = await self.store.run(lambda tx: tx.declare_wait(own_ms))
        if longest_ms > own_ms:
            _log.warning(
                "other_process_has_longer_times",
                own_wait_s=own_ms / 1000,
                recorded_wait_s=longest_ms / 1000,
                remedy="give all control planes the same times (ha), then run limiquantix-controlplane shorten-wait",
            )

    async def _declared(self) -> None:
        while True:
            try:
                return await self.declare()
            except ApiError as error:
                _log.warning("times_not_declared", reason=error.reason, message=error.message)
            await asyncio.sleep(SYNC_INTERVAL_S)

    async def run(self) -> None:
        """Keep everything level until cancelled; what is away is asked again."""
        await self._declared()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.marks.run())
            group.create_task(self._sync())

    async def _sync(self) -> None:
        while True:
            for work, complaint in (
                (self.object, "objections_not_noted"),
                (self.guards.sync, "guards_not_recorded"),
                (self.counters.sync, "counters_not_raised"),
            ):
                try:
                    await work()
                except ApiError as error:
                    _log.warning(complaint, reason=error.reason, message=error.message)
            await asyncio.sleep(SYNC_INTERVAL_S)
