"""The high-availability part of control planes on one database, by a clock that is told, all around it being fake.

The decision is scripted: `Script` says which effects the next step has, and keeps what it was asked with.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from controlplane.coordination.interface import Candidate, CoordinationAway, RevocationMark
from controlplane.domain.fencing import Fence
from controlplane.domain.node import NodeUsage
from controlplane.domain.operation import Json, Operation
from controlplane.ha.model import Effect, HaConfig, HaState, Observed
from controlplane.operations.steps import NOTHING, Outcome, Run, Step, Workflow
from controlplane.power.interface import PowerController, PowerEvidence
from controlplane.scheduler.plan import SchedulerConfig
from controlplane.services.alerts import AlertService
from controlplane.services.ha_alerts import HaAlerts
from controlplane.services.ha_effects import Effects, FenceMarks
from controlplane.services.ha_manager import HaManager, HaParts
from controlplane.services.ha_manager import Step as Decision
from controlplane.services.ha_observe import FAILOVER_KIND, Observer
from controlplane.services.ha_power import PowerCuts
from controlplane.services.ha_rivals import Rivals
from controlplane.services.hearing import Heard, Hearing
from controlplane.state.interface import Store, Transaction
from tests.support.control_plane_world import World

NEWEST_TOKEN = 1_000
"""Hosts that are heard know every fence."""


@dataclass
class FakeElection:
    """Elects whoever the test says."""

    is_elected: bool = True
    obstacle: str = ""

    async def changed(self) -> None:
        """Never."""
        await asyncio.Event().wait()

    async def resign(self) -> None:
        """Let go."""
        self.is_elected = False


@dataclass
class FakeCoordinator:
    """Marks in memory, which several processes share; answers nothing while it is away."""

    marks: dict[str, int] = field(default_factory=dict)
    is_away: bool = False
    election: FakeElection = field(default_factory=FakeElection)

    def _answer(self) -> None:
        if self.is_away:
            raise CoordinationAway("http://192.0.2.1:2379 refused the connection")

    @asynccontextmanager
    async def elect(self, candidate: Candidate) -> AsyncIterator[FakeElection]:
        yield self.election

    async def leader(self) -> Candidate | None:
        return None

    async def publish_revocation(self, mark: RevocationMark) -> None:
        self._answer()
        self.marks[mark.node_id] = max(mark.token, self.marks.get(mark.node_id, 0))

    async def clear_revocation(self, mark: RevocationMark) -> None:
        self._answer()
        if self.marks.get(mark.node_id, mark.token + 1) <= mark.token:
            del self.marks[mark.node_id]

    async def revocations(self) -> dict[str, int]:
        self._answer()
        return dict(self.marks)

    async def wake(self, topic: str) -> None:
        """Nobody looks."""

    async def woken(self, topic: str) -> AsyncIterator[None]:
        await asyncio.Event().wait()
        yield

    async def check(self) -> None:
        self._answer()

    async def close(self) -> None:
        """Nothing to let go of."""


@dataclass
class FakeController:
    """A power controller that answers, fails or hangs as the test says."""

    said: Exception | None = None
    hangs: bool = False
    cut_count: int = 0
    kind: str = "fake"

    async def cut(self, limit_s: float) -> PowerEvidence:
        self.cut_count += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.said is not None:
            raise self.said
        return PowerEvidence("fake: off")


@dataclass
class FakeControllers:
    """Controllers by host name."""

    by_hostname: dict[str, FakeController] = field(default_factory=dict)

    def of(self, hostname: str) -> PowerController | None:
        return self.by_hostname.get(hostname)


@dataclass
class Script:
    """What the next steps decide, and what they saw."""

    effects: Sequence[Effect] = ()
    states: dict[str, Any] = field(default_factory=dict)
    seen: list[Observed] = field(default_factory=list)
    given: list[tuple[HaState, float]] = field(default_factory=list)

    def step(
        self, config: HaConfig, state: HaState, observed: Observed, now_s: float
    ) -> tuple[HaState, Sequence[Effect]]:
        self.seen.append(observed)
        self.given.append((state, now_s))
        return HaState(state.began_s, {**state.nodes, **self.states}, state.vms), self.effects

    @property
    def last(self) -> Observed:
        return self.seen[-1]


def already_set() -> asyncio.Event:
    """Make an event that holds nobody up."""
    event = asyncio.Event()
    event.set()
    return event


class _Noted(Step):
    name = "claim"

    def __init__(self, may_end: asyncio.Event) -> None:
        self._may_end = may_end

    async def do(self, run: Run) -> Outcome:
        """Wait for as long as the test says."""
        await self._may_end.wait()
        return NOTHING


@dataclass
class FakeFailover(Workflow):
    """Does nothing until it may end, and keeps what was asked for, by operation: `record` may run again."""

    asked: dict[str, Json] = field(default_factory=dict)
    may_end: asyncio.Event = field(default_factory=already_set)
    kind: ClassVar[str] = FAILOVER_KIND

    def steps(self, parameters: Json) -> Sequence[Step]:
        return [_Noted(self.may_end)]

    async def conclude(self, tx: Transaction, operation: Operation) -> Message:
        self.asked[operation.request_id] = operation.parameters
        return Empty()


@dataclass
class HaPlane:
    """The manager of one process, with all it stands on."""

    world: World
    coordinator: FakeCoordinator = field(default_factory=FakeCoordinator)
    name: str = "replica-1"
    step: Decision | None = None
    config: HaConfig = field(default_factory=HaConfig)
    store: Store = field(init=False)
    clock_s: Callable[[], float] | None = None
    now_s: float = 1_000.0
    script: Script = field(default_factory=Script)
    controllers: FakeControllers = field(default_factory=FakeControllers)
    election: FakeElection = field(default_factory=FakeElection)
    inner: Store | None = None
    """In place of the world's store."""
    is_uncoordinated: bool = False

    def __post_init__(self) -> None:
        self.store = self.inner or self.world.store
        self.hearing = Hearing(self.now_s)
        self.power = PowerCuts(self.store, self.controllers, limit_s=0.2)
        self.effects = Effects(self.store, self.world.desk, FenceMarks(self.coordinator), self.now)
        parts = HaParts(
            store=self.store,
            coordinator=self.coordinator,
            hearing=self.hearing,
            observer=Observer(self.store, SchedulerConfig()),
            effects=self.effects,
            power=self.power,
            alerts=HaAlerts(AlertService(self.store, self.now), self.clock),
            step=self.step or self.script.step,
            config=self.config,
            now=self.now,
            record_age=timedelta(seconds=66),
            clock=self.clock,
            rivals=Rivals(self.store, self.name, self.clock) if self.is_uncoordinated else None,
        )
        self.manager = HaManager(parts, Candidate(self.name, f"{self.name}.example"))
        self.manager.take_part(self.election)

    def clock(self) -> float:
        return self.clock_s() if self.clock_s is not None else self.now_s

    def now(self) -> datetime:
        return datetime.fromtimestamp(1_800_000_000 + self.clock(), UTC)

    async def round(self, *effects: Effect) -> Observed:
        """Do one round in which the decision is this; returns what it was made from."""
        self.script.effects = effects
        await self.manager.round()
        return self.script.last

    def hear(self, node_id: str, *, boot_id: str = "boot-1", running_vm_count: int = 1) -> None:
        """Let a heartbeat arrive now."""
        usage = NodeUsage(running_vm_count=running_vm_count)
        heard = Heard(
            node_id, self.clock(), self.now(), usage, boot_id, can_self_fence=True, known_fence_token=NEWEST_TOKEN
        )
        self.hearing.hear(heard)

    async def fences(self) -> list[Fence]:
        """Read the current fences."""
        return list(await self.world.store.read(lambda tx: tx.current_fences()))

    async def the_fence(self) -> Fence:
        """Read the only current fence."""
        (fence,) = await self.fences()
        return fence

    async def fence(self, fence_id: str) -> Fence:
        """Read any fence."""
        fence = await self.world.store.read(lambda tx: tx.get_fence(fence_id))
        assert fence is not None
        return fence

    async def open_alerts(self, kind: str) -> list[str]:
        """Read the messages of open alerts of a kind."""
        return [alert.message for alert in await self.world.store.read(lambda tx: tx.open_alerts(kind))]
