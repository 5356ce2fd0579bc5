"""A control plane that grants leases, on a real database whose calls are counted, by a clock that is told."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

from controlplane.coordination.interface import CoordinationAway, Coordinator
from controlplane.domain.fencing import Fence, FenceState
from controlplane.domain.ha_times import HaTimes
from controlplane.services.hearing import Hearing
from controlplane.services.heartbeats import HeartbeatConfig, HeartbeatService
from controlplane.services.leases import Leases
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1.node_service_pb2 import UpdateHeartbeatRequest, UpdateHeartbeatResponse
from limiquantix.errors import Reason, Unavailable

ResultT = TypeVar("ResultT")


@dataclass
class CountedStore:
    """Counts transactions; fails or hangs on demand."""

    store: Store
    run_count: int = 0
    read_count: int = 0
    is_away: bool = False
    hangs: bool = False

    async def run(self, work: Callable[[Transaction], Awaitable[ResultT]]) -> ResultT:
        self.run_count += 1
        await self._trouble()
        return await self.store.run(work)

    async def read(self, work: Callable[[Transaction], Awaitable[ResultT]]) -> ResultT:
        self.read_count += 1
        await self._trouble()
        return await self.store.read(work)

    async def _trouble(self) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        if self.is_away:
            raise Unavailable(Reason.STATE_UNAVAILABLE, "the database does not answer")

    def forget_counts(self) -> None:
        self.run_count = self.read_count = 0


@dataclass
class PublishedMarks:
    """The coordination service, as far as leases need it."""

    marks: dict[str, int] = field(default_factory=dict)
    is_away: bool = False

    async def revocations(self) -> dict[str, int]:
        if self.is_away:
            raise CoordinationAway("no endpoint answers")
        return dict(self.marks)


@dataclass
class LeaseSite:
    """One process."""

    database: Store
    replica_id: str = "replica-1"
    now_s: float = 1_000_000.0
    times: HaTimes = field(default_factory=HaTimes)
    coordinator: PublishedMarks = field(default_factory=PublishedMarks)
    store: CountedStore = field(init=False)
    hearing: Hearing = field(init=False)
    leases: Leases = field(init=False)
    heartbeats: HeartbeatService = field(init=False)

    def __post_init__(self) -> None:
        self.store = CountedStore(self.database)
        store, coordinator = cast("Store", self.store), cast("Coordinator", self.coordinator)
        self.hearing = Hearing(self.now_s)
        self.leases = Leases(store, coordinator, self.times, self.hearing, self.replica_id, self.clock)
        config = HeartbeatConfig(interval_s=2, marks_silent=False)
        self.heartbeats = HeartbeatService(
            store, self.now, config, hearing=self.hearing, leases=self.leases, clock=self.clock
        )

    def clock(self) -> float:
        return self.now_s

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.now_s, UTC)

    async def look(self) -> None:
        """Do once what the loops do again and again."""
        await self.leases.marks.read_recorded()
        await self.leases.marks.read_published()
        await self.leases.object()
        await self.leases.guards.sync()
        await self.leases.counters.sync()
        await self.heartbeats.refresh()

    async def beat(self, node_id: str, **fields: Any) -> UpdateHeartbeatResponse:
        """Send a heartbeat of a host that fences itself."""
        said = {"can_self_fence": True, "self_fences_within_ms": 1000, "known_ha_version": 1, "boot_id": "boot-1"}
        return await self.heartbeats.heartbeat(UpdateHeartbeatRequest(node_id=node_id, **{**said, **fields}))

    async def fence(self, node_id: str, *, publishes: bool = True) -> Fence:
        """Record the intent to fence a node, and publish it."""
        wanted = Fence(str(uuid.uuid4()), node_id, 0, 0, FenceState.OPEN, "silent", self.now())
        fence = await self.database.run(lambda tx: tx.open_fence(wanted))
        if publishes:
            self.coordinator.marks[node_id] = fence.token
        return fence

    async def withdraw(self, fence: Fence) -> None:
        """End a fence; the published mark is taken back."""

        async def end(tx: Transaction) -> None:
            current = await tx.get_fence(fence.id)
            assert current is not None
            await tx.update_fence(replace(current, state=FenceState.WITHDRAWN, ended_at=self.now()))

        await self.database.run(end)
        self.coordinator.marks.pop(fence.node_id, None)

    async def heard_by(self, fence: Fence) -> str:
        """Read who objected."""
        current = await self.database.read(lambda tx: tx.get_fence(fence.id))
        assert current is not None
        return current.heard_by
