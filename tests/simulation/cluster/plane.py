"""A control plane: the product's leases, marks, manager and effects, and what starts VMs, simplified."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

from controlplane.coordination.interface import Candidate, CoordinationAway
from controlplane.services.ha import HaService, confirmation_s
from controlplane.services.ha_effects import Effects, FenceMarks
from controlplane.services.ha_manager import HaManager, HaParts
from controlplane.services.hearing import Hearing
from controlplane.services.heartbeats import heard_of
from controlplane.services.lease_marks import READ_INTERVAL_S, LeaseMarks
from controlplane.services.leases import Leases
from controlplane.services.shutdowns import ShutdownService, is_over, note
from limiquantix.compute.v1.node_service_pb2 import AnnounceShutdownRequest, UpdateHeartbeatResponse
from limiquantix.errors import ApiError
from tests.simulation.cluster.database import Coordinator, Store, VmRow
from tests.simulation.cluster.deciding import Deciding
from tests.simulation.cluster.host import Heartbeat
from tests.simulation.cluster.kernel import Clock, Process
from tests.simulation.cluster.moving import Moves
from tests.simulation.cluster.plane_parts import Alerts, Desk, Observer, Power, Site
from tests.simulation.cluster.work import Work, unless_unforeseen

if TYPE_CHECKING:
    from controlplane.coordination.interface import Coordinator as CoordinatorProtocol
    from controlplane.coordination.interface import Election
    from controlplane.domain.node import Node
    from controlplane.operations.desk import OperationDesk
    from controlplane.operations.moves import Moves as MovesOfProduct
    from controlplane.services.ha_alerts import HaAlerts
    from controlplane.services.ha_observe import Observer as ObserverProtocol
    from controlplane.services.ha_power import PowerCuts
    from controlplane.state.interface import Store as StoreProtocol
    from controlplane.state.interface import Transaction as HaTx

ROUND_S = 0.9
CAMPAIGN_S = 1.5
WORK_S = 1.0
LOOPS_SLOWER_S = 2 * (ROUND_S - READ_INTERVAL_S)
"""By so much a process reads of a fence, and objects, later than the product's do, for speed."""


class _Heedless(LeaseMarks):
    """Grants whatever was read: what `revokes` keeps from."""

    def may_grant(self, node_id: str) -> bool:
        """Say yes."""
        return True


class Plane:
    """One process; `begin` starts it with nothing remembered."""

    def __init__(self, site: Site, name: str) -> None:
        self.site = site
        self.process = Process(site.kernel, name, Clock(site.kernel, site.times.clock_drift))
        self.store = Store(site.database, self.process)
        self.seen_vms: Sequence[VmRow] = ()
        self.hearing: Hearing
        self.leases: Leases
        self.manager: HaManager
        self.coordinator: Coordinator
        self.ha: HaService
        self.shutdowns: ShutdownService
        self.work = Work(self)
        self.moves = Moves(self)

    def begin(self) -> None:
        """Start it."""
        if self.process.is_up:
            return
        site, clock = self.site, self.process.clock
        self.process.begin()
        site.kernel.note(f"{self.process.name} begins")
        self.coordinator = Coordinator(site.etcd, self.process)
        self.hearing = Hearing(clock.now())
        store = cast("StoreProtocol", self.store)
        coordinator = cast("CoordinatorProtocol", self.coordinator)
        self.leases = Leases(store, coordinator, site.times, self.hearing, self.process.name, clock.now)
        if not site.rules.revokes:
            self.leases.marks = _Heedless(store, coordinator, site.times.freshness_s, clock.now)
        if not site.rules.is_fresh:
            self.leases.marks.freshness_s = 1e9
        self.ha = HaService(
            store,
            self.hearing,
            self.now,
            site.times.suspect_after_s,
            clock=clock.now,
            confirmation_s=confirmation_s(site.times) + LOOPS_SLOWER_S if site.rules.waits_for_objections else 0.0,
            sleep=self.process.sleep_for,
        )
        no_moves = cast("MovesOfProduct", None)  # never asked for by the policies that are drawn
        policy = site.config.shutdown_policy
        self.shutdowns = ShutdownService(store, self.hearing, no_moves, policy, self.now, clock.now)
        power, marks = Power(self), FenceMarks(coordinator)
        parts = HaParts(
            store=store,
            coordinator=coordinator,
            hearing=self.hearing,
            observer=cast("ObserverProtocol", Observer(self)),
            effects=Effects(store, cast("OperationDesk", Desk(self)), marks, self.now),
            power=cast("PowerCuts", power),
            alerts=cast("HaAlerts", Alerts()),
            step=Deciding(self),
            config=site.config,
            now=self.now,
            record_age=timedelta(seconds=60),
            clock=clock.now,
        )
        self.manager = HaManager(parts, Candidate(self.process.name, self.process.name))
        self.manager.take_part(cast("Election", self.coordinator))
        for loop, span_s in (
            (self.leases.marks.read_recorded, ROUND_S),
            (self.leases.marks.read_published, ROUND_S),
            (self._sync, ROUND_S),
            (self.coordinator.campaign, CAMPAIGN_S),
            (self.manager.round, ROUND_S),
            (self.work.round, WORK_S),
        ):
            self.process.keep(self._repeat(loop, span_s))

    def now(self) -> datetime:
        """Read the wall clock, which nothing rests on."""
        return datetime.fromtimestamp(self.site.kernel.now_s, UTC)

    async def _repeat(self, work: Callable[[], Coroutine[Any, Any, Any]], span_s: float) -> None:
        await self.process.sleep(span_s * self.site.kernel.random.random())
        while True:
            with suppress(ApiError, CoordinationAway):
                await work()
            await self.process.sleep(span_s)

    async def _sync(self) -> None:
        if self.site.rules.objects:
            await self.leases.object()
        await self.leases.guards.sync()
        await self.leases.counters.sync()

    # heartbeats

    def take(self, beat: Heartbeat, answer: Callable[[Any], None]) -> bool:
        """Take a heartbeat; one that arrives while the process is paused is taken after."""
        process = self.process
        if not process.is_up:
            return False
        is_at_once = not process.is_paused()
        process.happen(process.life, lambda: self._answer(beat, answer))
        return is_at_once and process.is_up

    def _answer(self, beat: Heartbeat, answer: Callable[[Any], None]) -> None:
        heard = heard_of(beat.request, self.process.clock.now(), self.now())
        self.hearing.hear(heard)
        response = UpdateHeartbeatResponse(acknowledged=True)
        self.leases.answer(heard, response)
        answer(response)
        self.work.level(heard.node_id, beat.running)
        row = self.site.database.rows.nodes[heard.node_id]
        if is_over(cast("Node", row), heard.boot_id) and self.site.rules.minds_boots:
            forget = lambda tx: note(cast("HaTx", tx), heard.node_id, None, self.now())  # noqa: E731
            self.process.spawn(self.store.run(forget), unless_unforeseen)

    def hear_out(self, request: AnnounceShutdownRequest, answer: Callable[[Any], None]) -> bool:
        """Take the word of a host that it goes; never answers at once."""
        process = self.process
        if not process.is_up:
            return False

        def done(result: Any, error: BaseException | None) -> None:
            unless_unforeseen(result, error)
            answer(error if error is not None else result)

        process.happen(process.life, lambda: process.spawn(self.shutdowns.announce(request), done))
        return False
