"""A control plane: the product's leases, marks, manager and effects, and what starts VMs, simplified."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

from controlplane.coordination.interface import Candidate, CoordinationAway
from controlplane.domain.fencing import proves_dead
from controlplane.ha.model import Effect, HaConfig, HaState, Observed, OpenAFence
from controlplane.ha.step import step
from controlplane.services.ha_effects import Effects, FenceMarks
from controlplane.services.ha_manager import HaManager, HaParts
from controlplane.services.hearing import Hearing
from controlplane.services.heartbeats import heard_of
from controlplane.services.leases import Leases
from limiquantix.compute.v1.node_service_pb2 import UpdateHeartbeatResponse
from limiquantix.errors import ApiError
from tests.simulation.cluster.database import Coordinator, Rows, StartRow, Store, Transaction, VmRow, require
from tests.simulation.cluster.host import Heartbeat
from tests.simulation.cluster.kernel import Clock, Process
from tests.simulation.cluster.plane_parts import Alerts, Chooser, Desk, Observer, Power, Site

if TYPE_CHECKING:
    from controlplane.coordination.interface import Coordinator as CoordinatorProtocol
    from controlplane.coordination.interface import Election
    from controlplane.operations.desk import OperationDesk
    from controlplane.services.ha_alerts import HaAlerts
    from controlplane.services.ha_observe import Observer as ObserverProtocol
    from controlplane.services.ha_power import PowerCuts
    from controlplane.state.interface import Store as StoreProtocol

ROUND_S = 0.9
CAMPAIGN_S = 1.5
WORK_S = 1.0
TAKEN_S = 8.0
START_LIMIT_S = 5.0
MAX_FENCING_SHARE = 0.34


def _unless_unforeseen(result: Any, error: BaseException | None) -> None:
    if error is not None and not isinstance(error, ApiError):
        raise error


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
        if not site.rules.is_fresh:
            self.leases.marks.freshness_s = 1e9
        power, marks = Power(self), FenceMarks(coordinator)
        parts = HaParts(
            store=store,
            coordinator=coordinator,
            hearing=self.hearing,
            observer=cast("ObserverProtocol", Observer(self)),
            effects=Effects(store, cast("OperationDesk", Desk(self)), marks, self.now),
            power=cast("PowerCuts", power),
            alerts=cast("HaAlerts", Alerts()),
            step=self._decide,
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
            (self._work, WORK_S),
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
        self._keep_running(heard.node_id, beat.running)

    def _keep_running(self, node_id: str, running: frozenset[str]) -> None:
        """Have VMs started that the host does not run although they are recorded there."""
        rows = self.site.database.rows  # a peek that only saves asking when there is nothing to ask for

        def missing(rows: Rows) -> list[str]:
            return [
                vm.id
                for vm in rows.vms.values()
                if vm.node_id == node_id and vm.id not in running and vm.id not in rows.starts
            ]

        if not missing(rows) or rows.fence_of(node_id) is not None:
            return

        async def write(tx: Transaction) -> None:
            if tx.rows.fence_of(node_id) is None:
                for vm_id in missing(tx.rows):
                    tx.rows.starts[vm_id] = StartRow(vm_id, target_id=node_id)

        self.process.spawn(self.store.run(write), _unless_unforeseen)

    # decisions

    def _decide(
        self, config: HaConfig, state: HaState, facts: Observed, now_s: float
    ) -> tuple[HaState, Sequence[Effect]]:
        """The product's step, with a simple scheduler, and broken where a mutant says so."""
        rules = self.site.rules
        facts = replace(facts, choose=Chooser(self.site.database.rows.capacity, self.seen_vms))
        if not rules.checks_proof:
            facts = replace(
                facts,
                nodes=[
                    replace(node, fence=replace(node.fence, is_proven=True)) if node.fence is not None else node
                    for node in facts.nodes
                ],
                vms=[replace(vm, proves_dead=True) for vm in facts.vms],
            )
        if not rules.asks_guard:
            facts = replace(facts, nodes=[replace(node, lease_proves=True) for node in facts.nodes])
        if not rules.ends_when_token_known:
            facts = replace(facts, nodes=[replace(node, knows_fence=True) for node in facts.nodes])
        state, effects = step(config, state, facts, now_s)
        if not rules.begins_anew:
            state = replace(
                state,
                nodes={
                    node_id: replace(node, fence_seen_s=min(node.fence_seen_s, self._opened_s(node.fence_id)))
                    for node_id, node in state.nodes.items()
                },
            )
        opened_count = sum(isinstance(effect, OpenAFence) for effect in effects)
        if opened_count:
            fenced_count = opened_count + sum(node.fence is not None for node in facts.nodes)
            limit_count = max(1, math.floor(MAX_FENCING_SHARE * len(facts.nodes)))
            require(fenced_count <= limit_count, f"{fenced_count} nodes are fenced at once, of at most {limit_count}")
            silent = [
                node
                for node in facts.nodes
                if now_s - (node.heard_s if node.heard_s is not None else 0.0) >= self.site.times.suspect_after_s
            ]
            require(
                2 * len(silent) < len(facts.nodes) or len(silent) < 2,
                f"{self.process.name} fences while {len(silent)} of {len(facts.nodes)} nodes are silent to it",
            )
        return state, effects

    def _opened_s(self, fence_id: str) -> float:
        fence = self.site.database.rows.fences.get(fence_id)
        if fence is None:
            return 1e12
        return self.process.clock.now() - (self.site.kernel.now_s - fence.opened_at.timestamp())

    # starting VMs

    async def _work(self) -> None:
        rows, kernel = self.site.database.rows, self.site.kernel
        if not rows.starts:
            return
        name = self.process.name

        async def take(tx: Transaction) -> StartRow | None:
            for vm_id, start in tx.rows.starts.items():
                if not start.taken_by or kernel.now_s - start.taken_at_s > TAKEN_S:
                    taken = tx.rows.starts[vm_id] = replace(start, taken_by=name, taken_at_s=kernel.now_s)
                    return taken
            return None

        while (start := await self.store.run(take)) is not None:
            self.process.spawn(self._carry_out(start), _unless_unforeseen)

    async def _carry_out(self, start: StartRow) -> None:
        """Move a VM if it is to be moved, have it started, and note what came of it."""
        told = await self.store.run(lambda tx: self._move(tx, start))
        if told is None:
            return
        node_id, epoch, token, protects = told
        if self.site.kernel.random.random() < 0.02 and not self.site.database.network.is_calm:
            await self.process.sleep(self.site.kernel.random.uniform(5.0, 40.0))  # it hangs on something else
        host = self.site.hosts[node_id]
        command = lambda answer: host.command(start.vm_id, epoch, token, protects, answer)  # noqa: E731
        network = self.site.database.network
        is_protected: bool | None
        try:
            is_protected = await network.call(self.process, self.process.name, node_id, command, START_LIMIT_S)
        except ApiError:
            is_protected = None

        async def note(tx: Transaction) -> None:
            standing = tx.rows.starts.get(start.vm_id)
            if standing is None or standing.taken_by != self.process.name or standing.fence_id != start.fence_id:
                return
            del tx.rows.starts[start.vm_id]
            vm = tx.rows.vms[start.vm_id]
            if is_protected is not None and vm.node_id == node_id:
                tx.rows.vms[vm.id] = replace(vm, is_protected=is_protected)

        await self.store.run(note)

    async def _move(self, tx: Transaction, start: StartRow) -> tuple[str, int, int, bool] | None:
        """Say where a VM is to be started, by which command; None if it is not to be any more."""
        rows, vm = tx.rows, tx.rows.vms[start.vm_id]
        standing = rows.starts.get(start.vm_id)
        if standing is None or standing.taken_by != self.process.name or standing.fence_id != start.fence_id:
            return None
        fence = rows.fences.get(start.fence_id) if start.fence_id else None
        if fence is not None and not standing.is_moved:
            is_protected = vm.is_protected or not self.site.rules.spares_unprotected
            is_dead = proves_dead(fence, is_protected=is_protected) or not self.site.rules.checks_proof
            may_go = is_dead and vm.node_id == fence.node_id and rows.free(start.target_id) >= vm.memory
            if not may_go or rows.fence_of(start.target_id) is not None:
                del rows.starts[start.vm_id]
                return None
            rows.vms[vm.id] = vm = replace(vm, node_id=start.target_id, is_protected=False)
            rows.starts[vm.id] = replace(standing, is_moved=True)
        if rows.fence_of(vm.node_id) is not None or (vm.node_id != start.target_id):
            del rows.starts[start.vm_id]
            return None
        token = rows.nodes[vm.node_id].fence_token
        return vm.node_id, rows.leadership.epoch, token, vm.wants_protection
