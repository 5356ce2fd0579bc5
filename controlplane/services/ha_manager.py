"""High availability in one process: takes part in the election and, while elected, looks, decides and acts in rounds.

The decision itself is `controlplane.ha`. All that this keeps from round to round is what only this process can know;
whatever else matters is read anew each time, so that a process that dies anywhere leaves nothing half done for good.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog

from controlplane.coordination.interface import Candidate, CoordinationAway, Coordinator, Election
from controlplane.domain.fencing import FenceState, HaSettings, Leadership
from controlplane.domain.node import Phase
from controlplane.ha.model import (
    Alerting,
    AlertOf,
    CutPower,
    Effect,
    EndFence,
    HaConfig,
    HaState,
    Observed,
    OpenAFence,
    ProveFence,
    Restart,
    WithdrawFence,
)
from controlplane.services.ha_alerts import HaAlerts
from controlplane.services.ha_clock import clock_s
from controlplane.services.ha_effects import Effects, Term
from controlplane.services.ha_observe import Observer, Picture, Senses, observed
from controlplane.services.ha_power import PowerCuts
from controlplane.services.ha_rivals import Rivals
from controlplane.services.hearing import Hearing
from controlplane.state.interface import Store
from limiquantix.errors import Aborted, ApiError, Reason

_log = structlog.get_logger(__name__)

ROUND_S = 0.5
PAUSE_SHARE = 19.0
"""Of how long the last decision took: it never has more than a twentieth of a core, however many nodes there are."""
OPENING_S = 2.0
"""How long after a decision fences are opened by it. With many silent nodes that takes long, and some of them may be
heard meanwhile: those that are left are decided about anew."""
DEAF_SHARE = 0.5
"""Of the silence that makes a node suspect: a process that did not run for longer listens anew."""
MANY_NODES = 500
"""From here on deciding takes milliseconds, so others have their turns meanwhile."""
RESIGN_S = 1.0
"""How long the end of the process waits for that."""
SWEEP_S = 10.0
"""Between looks for marks that a leader left behind."""
LONG_SILENT_LOOK_S = 5.0
"""Between looks for nodes of which no process has recorded a heartbeat for long, and for VMs that do not start."""
CALM_S = 2.0
"""After another process began an epoch although this one is elected: its session is taken to be about to end."""

_ENDS = "the process ends"

Step = Callable[[HaConfig, HaState, Observed, float], tuple[HaState, Sequence[Effect]]]


@dataclass(frozen=True, slots=True)
class HaParts:
    """What the manager works with.

    Attributes:
        record_age: how old the record of a last heartbeat may become while its node beats.
        rivals: None where a coordination service elects one of all processes.
    """

    store: Store
    coordinator: Coordinator
    hearing: Hearing
    observer: Observer
    effects: Effects
    power: PowerCuts
    alerts: HaAlerts
    step: Step
    config: HaConfig
    now: Callable[[], datetime]
    record_age: timedelta
    clock: Callable[[], float] = clock_s
    rivals: Rivals | None = None


@dataclass(frozen=True, slots=True)
class Moment:
    """One round: what was decided from, what is thought since, and what is to be done."""

    observed: Observed
    state: HaState
    effects: Sequence[Effect]


@dataclass(slots=True)
class _Deciding:
    """A term, and what this process saw in it."""

    term: Term
    state: HaState
    moment: Moment | None = None
    swept_s: float = 0.0
    given_up: Sequence[Alerting] = ()
    counted_s: float = -math.inf


class HaManager:
    """One task (`run`) a process; everything else here may be asked by whoever answers questions."""

    def __init__(self, parts: HaParts, candidate: Candidate) -> None:
        self._parts = parts
        self._candidate = candidate
        self._election: Election | None = None
        self._deciding: _Deciding | None = None
        self._not_before_s = 0.0
        self._looked_s = 0.0
        self._trouble = ""
        self._took_s = 0.0
        self._round_s = -math.inf
        self._listening_s = -math.inf
        self._looks_at_once = False

    # -- what others may know

    @property
    def is_leader(self) -> bool:
        """Whether this process decides, as far as it knows."""
        return self._deciding is not None and self._election is not None and self._election.is_elected

    @property
    def obstacle(self) -> str:
        """Why this process decides nothing although it should, or why nobody can be elected; "" for nothing."""
        return self._trouble or (self._election.obstacle if self._election is not None else "")

    @property
    def moment(self) -> Moment | None:
        """What the last round saw and came to; None for a process that does not decide, or did not yet."""
        return self._deciding.moment if self._deciding is not None and self.is_leader else None

    # -- the loop

    async def run(self) -> None:
        """Take part until cancelled; what is away is waited for."""
        try:
            async with self._parts.coordinator.elect(self._candidate) as election:
                self._election = election
                try:
                    while True:
                        await self.round()
                        await self._pause(election)
                finally:
                    await self._resign(election)
        finally:
            self._end_term(_ENDS)
            await self._parts.power.stop()

    @staticmethod
    async def _resign(election: Election) -> None:
        """Let another process decide at once; it would take over anyway when the session ends."""
        with suppress(TimeoutError):
            async with asyncio.timeout(RESIGN_S):
                await election.resign()

    async def _pause(self, election: Election) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(0 if self._looks_at_once else max(ROUND_S, PAUSE_SHARE * self._took_s)):
                await election.changed()

    def take_part(self, election: Election) -> None:
        """Go by this election; `run` does so itself."""
        self._election = election

    async def round(self) -> None:
        """Do once what the loop does; raises nothing that can pass by itself."""
        self._note_gap()
        self._looks_at_once = False
        try:
            await self._round()
        except Aborted as error:
            if error.reason == Reason.STALE_EPOCH:
                newest, leader_id = int(error.metadata["newest_epoch"]), error.metadata["leader_id"]
                self._deposed(Leadership(newest, leader_id))
            else:
                _log.debug("another_process_did_it", reason=error.reason, message=error.message)
        except ApiError as error:
            self._note_trouble(f"the database does not answer: {error.message}")
        except CoordinationAway as error:
            self._note_trouble(f"the coordination service does not answer: {error}")

    def _note_gap(self) -> None:
        """Listen anew if this process did not run for so long that it may have missed heartbeats.

        Rounds come all the time, elected or not. Heartbeats that came while the process was kept from running for less
        are heard before their nodes would be suspected.
        """
        now_s = self._parts.clock()
        if now_s - self._round_s > DEAF_SHARE * self._parts.config.suspect_after_s:
            self._listening_s = now_s
        self._round_s = now_s

    async def _round(self) -> None:
        election = self._election
        if election is None or not election.is_elected:
            self._end_term("the election is over")
            await self._without_leader(election.obstacle if election is not None else "")
            return
        if self._deciding is None:
            if self._parts.clock() < self._not_before_s:
                return
            if self._parts.rivals is not None and (why := await self._parts.rivals.obstacle()):
                self._note_trouble(why)
                return
            self._deciding = await self._begin_term(election)
        await self._decide(self._deciding)

    async def _begin_term(self, election: Election) -> _Deciding:
        candidate, now = self._candidate, self._parts.now()
        taken = await self._parts.store.run(lambda tx: tx.take_leadership(candidate.id, candidate.hostname, now))
        _log.info("ha_leadership_taken", epoch=taken.epoch, leader_id=candidate.id)
        self._parts.effects.marks.published.clear()
        term = Term(taken.epoch, candidate.id, lambda: election.is_elected)
        return _Deciding(term, HaState(began_s=self._parts.clock(), listening_s=self._listening_s))

    def _deposed(self, leader: Leadership) -> None:
        """End the term, as another process began one."""
        self._end_term(f"epoch {leader.epoch} was begun by {leader.leader_id}")
        self._not_before_s = self._parts.clock() + CALM_S
        if self._parts.rivals is not None:
            self._parts.rivals.deposed_by(leader)

    def _end_term(self, reason: str) -> None:
        if self._deciding is None:
            return
        log = _log.info if reason == _ENDS else _log.warning
        log("ha_leadership_lost", epoch=self._deciding.term.epoch, reason=reason)
        self._deciding = None
        self._trouble = ""
        self._parts.power.keep(())

    def _note_trouble(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            _log.warning("ha_decides_nothing", reason=trouble)
        self._trouble = trouble

    async def _without_leader(self, obstacle: str) -> None:
        """While nobody can be elected: say so, and have no VM placed on nodes that no process heard for long."""
        self._note_trouble("")
        if not obstacle or not self._is_time_to_look():
            return
        await self._parts.alerts.sync([Alerting(AlertOf.NOTHING_DECIDED, "", obstacle)], only={AlertOf.NOTHING_DECIDED})
        await self._mark_long_silent()

    def _is_time_to_look(self) -> bool:
        if self._parts.clock() - self._looked_s < LONG_SILENT_LOOK_S:
            return False
        self._looked_s = self._parts.clock()
        return True

    async def _mark_long_silent(self) -> None:
        """Have no VM placed on nodes of which no process has recorded a heartbeat for long, whatever is decided.

        Not before this process has listened for that long: there may have been none before that could hear them.
        """
        parts, now = self._parts, self._parts.now()
        if parts.clock() - parts.hearing.began_s < parts.record_age.total_seconds():
            return
        before = now - parts.record_age
        for node_id in await self._parts.store.run(lambda tx: tx.mark_silent_nodes(before, now)):
            _log.warning("node_silent", node_id=node_id)

    # -- a round of the process that decides

    async def _decide(self, deciding: _Deciding) -> None:
        parts = self._parts
        picture = await parts.observer.look()
        if picture.leadership.epoch != deciding.term.epoch:
            self._deposed(picture.leadership)
            return
        obstacle = await self._publish(picture)
        parts.power.keep({fence.id for fence in picture.fences.values()})
        effects = await self._judge(deciding, picture, obstacle)
        self._note_trouble(obstacle)
        await self._mark_silent(deciding, picture)
        open_until_s = parts.clock() + OPENING_S
        for effect in effects:
            if not deciding.term.is_elected():
                return
            if not isinstance(effect, OpenAFence) or parts.clock() < open_until_s:
                await self._carry_out(deciding.term, effect, picture)
        await parts.alerts.sync(await self._told(deciding, effects))
        if not obstacle and parts.clock() - deciding.swept_s >= SWEEP_S:
            deciding.swept_s = parts.clock()
            await parts.effects.sweep(picture)

    async def _told(self, deciding: _Deciding, effects: Sequence[Effect]) -> Sequence[Alerting]:
        """Return what is wrong: what the decision says, and VMs on nodes that live of which all restarts failed."""
        now_s = self._parts.clock()
        if now_s - deciding.counted_s >= LONG_SILENT_LOOK_S:
            deciding.given_up, deciding.counted_s = await self._parts.observer.given_up(), now_s
        said = [effect for effect in effects if isinstance(effect, Alerting)]
        told = {(each.kind, each.resource_id) for each in said}
        return said + [each for each in deciding.given_up if (each.kind, each.resource_id) not in told]

    async def _judge(self, deciding: _Deciding, picture: Picture, obstacle: str) -> Sequence[Effect]:
        """Have it decided what is to be done, and remember it with what is thought since."""
        parts = self._parts
        senses = Senses(parts.hearing, parts.power.controllers, parts.power.of)

        def decide() -> Moment:
            facts = observed(picture, senses, parts.observer.scheduler, obstacle)
            # The moment is taken after everything was recorded and published: waits count from it.
            config = _patient(parts.config, picture.settings)
            state, effects = parts.step(config, deciding.state, facts, parts.clock())
            return Moment(facts, state, effects)

        began_s = parts.clock()
        moment = decide() if len(picture.nodes) < MANY_NODES else await asyncio.to_thread(decide)
        self._took_s = parts.clock() - began_s
        deciding.moment, deciding.state = moment, moment.state
        return moment.effects

    async def _publish(self, picture: Picture) -> str:
        """Publish all fences; returns why nothing may be decided, if that did not come about."""
        try:
            await self._parts.effects.marks.publish(picture.fences)
        except CoordinationAway as error:
            return f"that nodes are fenced cannot be told to other processes: {error}"
        return self._election.obstacle if self._election is not None else ""

    async def _mark_silent(self, deciding: _Deciding, picture: Picture) -> None:
        """Have no VM placed on nodes with fences that nobody objected to.

        Not on each that is suspected: a node may be heard by other processes only, which would take that back at once.
        """
        for node_id, fence in picture.fences.items():
            seen, known = picture.nodes.get(node_id), deciding.state.nodes.get(node_id)
            if seen is None or known is None or seen.node.phase != Phase.READY or known.fence_id != fence.id:
                continue
            waited_s = self._parts.clock() - known.fence_seen_s
            if fence.state == FenceState.PROVEN or (
                waited_s >= self._parts.config.objection_s and (not fence.heard_by or fence.is_by_operator)
            ):
                await self._try(self._parts.effects.mark_silent(deciding.term, node_id, fence.reason))
        if self._is_time_to_look():
            await self._mark_long_silent()

    async def _carry_out(self, term: Term, effect: Effect, picture: Picture) -> None:
        effects = self._parts.effects
        match effect:
            case OpenAFence():  # the wait begins with the round that sees the fence
                self._looks_at_once |= await self._try(effects.open(term, effect))
            case WithdrawFence():
                await self._try(effects.withdraw(term, effect))
            case CutPower():
                if (node := picture.nodes.get(effect.node_id)) is not None:
                    self._parts.power.begin(term, effect, node.node.hostname)
            case ProveFence():  # and restarts with the one that sees the proof
                self._looks_at_once |= await self._try(effects.prove(term, effect))
            case EndFence():
                await self._try(effects.end(term, effect))
            case Restart():
                await self._try(effects.restart(term, effect))
            case _:
                pass  # alerts are levelled together; VMs on nodes that live are the Keeper's

    @staticmethod
    async def _try(work: Awaitable[None]) -> bool:
        """Do one thing, and tell whether that went well; else it is tried again in the next round.

        Raises:
            Aborted: another process decides, which ends the term.
        """
        try:
            await work
        except ApiError as error:
            if error.reason == Reason.STALE_EPOCH:
                raise
            _log.warning("ha_effect_failed", reason=error.reason, message=error.message)
            return False
        return True


def _patient(config: HaConfig, settings: HaSettings) -> HaConfig:
    """Wait as long as leases of the process with the longest times need, whatever is configured here."""
    return replace(config, proof_wait_s=max(config.proof_wait_s, settings.longest_wait_ms / 1000))
