"""Balancing: look at the load, recommend moves, and take the decisions of people about them.

Several processes may look at once: a run is recorded by whoever counts the turn up first, with its recommendations in
the same transaction, and what the others found is dropped. Carrying out is the work of `services.balancing_moves`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

import structlog

from controlplane.domain import balancing_errors, errors
from controlplane.domain.query import Cursor, Page
from controlplane.domain.recommendation import (
    OPEN_STATUSES,
    Automation,
    BalancingRun,
    Recommendation,
    RecommendationFilter,
    Status,
)
from controlplane.drs.planner import load_of_excluded, loads_of, plan
from controlplane.drs.snapshot import BalanceConfig, BalancePlan, LoadOfNode, Move
from controlplane.services.balancing_loads import LoadReader, Reading
from controlplane.state.interface import Store, Transaction
from limiquantix.errors import Aborted

_log = structlog.get_logger(__name__)

BALANCER: Final = "balancer"
"""Who decides where nobody has to be asked."""
KEPT: Final = timedelta(hours=24)
_TRIES: Final = 3
"""Of a run that was asked for: one that comes by itself may be recorded while it measures."""


@dataclass(frozen=True, slots=True)
class BalancingConfig:
    """How balancing is done. `interval_s` is of the runs that nobody asks for."""

    is_enabled: bool = True
    interval_s: float = 300.0
    automation: Automation = Automation.PARTIAL
    max_concurrent_moves: int = 2
    planner: BalanceConfig = field(default_factory=BalanceConfig)


@dataclass(frozen=True, slots=True)
class BalanceView:
    """How balanced the cluster is, and what is done about it."""

    imbalance: float
    nodes: Sequence[LoadOfNode]
    run: BalancingRun
    next_run_at: datetime | None
    message: str


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """What a run recommends, and why no more than that."""

    recommendations: Sequence[Recommendation]
    imbalance_before: float
    imbalance_after: float
    message: str


class BalancingService:
    """The use cases of balancing."""

    def __init__(self, store: Store, loads: LoadReader, config: BalancingConfig, now: Callable[[], datetime]) -> None:
        self._store = store
        self._loads = loads
        self._config = config
        self._now = now

    @property
    def config(self) -> BalancingConfig:
        """How this process does it."""
        return self._config

    async def balance(self) -> BalanceView:
        """Tell the loads of all nodes, those that take no part included, and what the last run said."""
        cluster, counts = await self._loads.nodes()
        run = await self._store.read(lambda tx: tx.last_balancing_run())
        taking_part, imbalance = loads_of(cluster)
        loads = {load.node_id: replace(load, vm_count=counts.get(load.node_id, 0)) for load in taking_part}
        for node in cluster.nodes:
            if node.id not in loads:
                loads[node.id] = load_of_excluded(node, counts.get(node.id, 0), is_measured=cluster.is_measured)
        return BalanceView(
            imbalance=imbalance,
            nodes=sorted(loads.values(), key=lambda load: (load.hostname, load.node_id)),
            run=run,
            next_run_at=self.next_run_at(run),
            message=run.message or ("" if run.turn else "not looked at yet"),
        )

    def next_run_at(self, run: BalancingRun) -> datetime | None:
        """Say when the next run is due; None if none comes by itself."""
        if not self._config.is_enabled or self._config.automation is Automation.MANUAL:
            return None
        return self._now() if run.ran_at is None else run.ran_at + timedelta(seconds=self._config.interval_s)

    async def run(self) -> RunOutcome:
        """Look at the load now, and recommend. What was approved before is due from now on.

        Raises:
            Aborted: others made runs at the same moment, again and again.
        """
        for _ in range(_TRIES - 1):
            try:
                return await self.run_once()
            except Aborted:
                _log.info("balancing_run_repeated")
        return await self.run_once()

    async def run_once(self) -> RunOutcome:
        """Make a run, as `run`, unless somebody else makes one meanwhile.

        Raises:
            Aborted: somebody did.
        """
        last = await self._store.read(lambda tx: tx.last_balancing_run())
        now = self._now()
        reading = await self._loads.read(now)
        made = await asyncio.to_thread(plan, reading.cluster, self._config.planner, now.timestamp(), reading.rules)
        made = await self._loads.priced(made, reading)
        run = BalancingRun(last.turn, now, made.message)

        async def record(tx: Transaction) -> list[Recommendation]:
            if not await tx.record_balancing_run(run):
                raise errors.concurrent_change("balancing run", str(run.turn))
            return await self._recorded(tx, made, reading, now)

        recommendations = await self._store.run(record)
        _log.info(
            "balancing_run",
            recommendation_count=len(recommendations),
            imbalance_before=round(made.imbalance_before, 2),
            imbalance_after=round(made.imbalance_after, 2),
        )
        return RunOutcome(recommendations, made.imbalance_before, made.imbalance_after, made.message)

    async def _recorded(
        self, tx: Transaction, made: BalancePlan, reading: Reading, now: datetime
    ) -> list[Recommendation]:
        """Write what is recommended: what is so already stays the same, and what no longer is has been overtaken."""
        known = {}
        for each in await tx.open_recommendations():
            if each.status == Status.PENDING:
                known[(each.vm_id, each.source_node_id, each.target_node_id)] = each
            elif not each.is_due:
                await tx.update_recommendation(replace(each, is_due=True))
        run_id = str(uuid.uuid4())
        fresh = [_recommendation(move, step, run_id, reading, now) for step, move in enumerate(made.moves, start=1)]
        before = [known.pop((each.vm_id, each.source_node_id, each.target_node_id), None) for each in fresh]
        ids = {each.vm_id: each.id if same is None else same.id for each, same in zip(fresh, before, strict=True)}
        result, new = [], []
        for each, same, move in zip(fresh, before, made.moves, strict=True):
            decided = self._decided(replace(each, exchanged_with=ids.get(move.exchanged_with, "")), now)
            if same is None:
                new.append(decided)
                result.append(decided)
            else:
                kept = replace(decided, id=same.id, created_at=same.created_at, version=same.version)
                result.append(await tx.update_recommendation(kept))
        for stale in known.values():
            why = "the run after it recommends something else, or nothing"
            await tx.update_recommendation(closed(stale, Status.EXPIRED, why, now))
        await tx.insert_recommendations(new)
        return result

    def _decided(self, recommendation: Recommendation, now: datetime) -> Recommendation:
        if self._config.automation is not Automation.FULL:
            return recommendation
        return replace(recommendation, status=Status.APPROVED, is_due=True, decided_at=now, decided_by=BALANCER)

    # -- decisions

    async def get(self, recommendation_id: str) -> Recommendation:
        """Read one recommendation.

        Raises:
            NotFound: there is none of that id.
        """
        return await self._store.read(lambda tx: required(tx, recommendation_id))

    async def list(self, wanted: RecommendationFilter, after: Cursor | None, limit: int) -> Page[Recommendation]:
        """Read one page, newest first."""
        return await self._store.read(lambda tx: tx.list_recommendations(wanted, after, limit))

    async def approve(self, recommendation_id: str, by: str, *, is_due: bool = False) -> Recommendation:
        """Say that it may be carried out, and with it what it is exchanged with.

        At the next run, or as soon as there is a turn if `is_due`.

        Raises:
            NotFound: there is none of that id.
            FailedPrecondition: it is over, or the other half of the exchange is.
        """

        async def work(tx: Transaction) -> Recommendation:
            found = await required(tx, recommendation_id)
            if found.status == Status.APPLIED or (found.status == Status.APPROVED and (found.is_due or not is_due)):
                return found
            if found.status not in OPEN_STATUSES:
                raise _over(found, "approve")
            now = self._now()
            if found.status == Status.PENDING and found.expires_at <= now:
                raise balancing_errors.recommendation_closed(found.id, "approve", "EXPIRED", "it is too old")
            other = await other_half(tx, found)
            if other is not None and other.status in OPEN_STATUSES:
                await tx.update_recommendation(_approved(other, by, now, is_due=is_due))
            elif other is not None and other.status != Status.APPLIED:
                raise balancing_errors.exchange_broken(found.id, "approve", other.id, Status.Name(other.status))
            return await tx.update_recommendation(_approved(found, by, now, is_due=is_due))

        return await self._store.run(work)

    async def reject(self, recommendation_id: str, reason: str, by: str) -> Recommendation:
        """Say that it must not be carried out, nor what it is exchanged with, which holds their VMs for the hold time.

        Raises:
            NotFound: there is none of that id.
            FailedPrecondition: it is over, or under way.
        """

        async def work(tx: Transaction) -> Recommendation:
            found = await required(tx, recommendation_id)
            if found.status == Status.REJECTED:
                return found
            if found.status not in OPEN_STATUSES:
                raise _over(found, "reject")
            now = self._now()
            other = await other_half(tx, found)
            halves = [found] if other is None or other.status not in OPEN_STATUSES else [other, found]
            for each in halves:
                if each.operation_id:
                    raise balancing_errors.recommendation_under_way(found.id, each.vm_name, each.operation_id)
            for each in halves:
                rejected = replace(closed(each, Status.REJECTED, reason, now), decided_at=now, decided_by=by)
                result = await tx.update_recommendation(rejected)
            return result

        return await self._store.run(work)


async def required(tx: Transaction, recommendation_id: str) -> Recommendation:
    """Read one recommendation.

    Raises:
        NotFound: there is none of that id.
    """
    found = await tx.get_recommendation(recommendation_id)
    if found is None:
        raise balancing_errors.recommendation_not_found(recommendation_id)
    return found


async def other_half(tx: Transaction, recommendation: Recommendation) -> Recommendation | None:
    """Read what it is exchanged with, whatever became of that; None if it is no exchange."""
    if not recommendation.exchanged_with:
        return None
    return await tx.get_recommendation(recommendation.exchanged_with)


def _approved(recommendation: Recommendation, by: str, now: datetime, *, is_due: bool) -> Recommendation:
    approved = replace(recommendation, status=Status.APPROVED, is_due=is_due or recommendation.is_due)
    if recommendation.status == Status.PENDING:
        approved = replace(approved, decided_at=now, decided_by=by)
    return approved


def closed(recommendation: Recommendation, status: Status.ValueType, why: str, now: datetime) -> Recommendation:
    """Return a recommendation of which nothing comes any more."""
    return replace(recommendation, status=status, status_message=why, is_due=False, ended_at=now)


def _over(found: Recommendation, wanted: str) -> Exception:
    return balancing_errors.recommendation_closed(found.id, wanted, Status.Name(found.status), found.status_message)


def _recommendation(move: Move, step: int, run_id: str, reading: Reading, now: datetime) -> Recommendation:
    return Recommendation(
        id=str(uuid.uuid4()),
        run_id=run_id,
        step=step,
        priority=int(move.priority),
        status=Status.PENDING,
        reason=_reason(move, reading),
        vm_id=move.vm.id,
        vm_name=move.vm.name,
        source_node_id=move.source.node_id,
        target_node_id=move.target.node_id,
        gain_percent=move.gain_percent,
        cost_memory_bytes=move.vm.moved_bytes,
        cost_dirty_bytes_per_s=move.vm.dirty_bytes_per_s,
        cost_duration_ms=round(move.vm.expected_s * 1000),
        source_load_before=move.source.busiest,
        source_load_after=move.source_after.busiest,
        target_load_before=move.target.busiest,
        target_load_after=move.target_after.busiest,
        created_at=now,
        expires_at=now + KEPT,
    )


def _reason(move: Move, reading: Reading) -> str:
    exchange = " It is one half of an exchange." if move.exchanged_with else ""
    if not reading.cluster.is_measured:
        source = "Loads are claims, since not every node told what it uses."
    elif move.vm.id in reading.measured_vm_ids:
        source = "Nodes and VM were measured."
    else:
        source = "Nodes were measured; what the VM uses is estimated by its claim."
    return f"{_said(move.source)}, {_said(move.target)}. {source}{exchange}"


def _said(load: LoadOfNode) -> str:
    claims = f"{load.claimed_cpu:.0f} % of vCPUs and {load.claimed_memory:.0f} % of memory claimed"
    if not load.is_measured:
        return f"{load.hostname} has {claims}"
    return f"{load.hostname} uses {load.used_cpu:.0f} % CPU and {load.used_memory:.0f} % memory ({claims})"
