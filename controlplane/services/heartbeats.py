"""Signs of life: taken in and answered from memory, and written down only where they change something.

A heartbeat says how loaded a host is and that it lives. It never touches what is claimed there nor a phase that an
operator chose. Neither taking one in nor answering it needs the database: a host that beats gets its lease also while
the database is away. What a heartbeat may change (a node that was thought silent, one that is overloaded, a state that
differs from what is recorded) is looked after beside the answer, which waits for that a moment only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import structlog

from controlplane.domain import node_life
from controlplane.domain.event import Event, EventType, Severity
from controlplane.domain.fencing import Counters
from controlplane.domain.node import Heartbeat, Node, NodeUsage, Phase
from controlplane.domain.node_conditions import OVERLOAD_REASON
from controlplane.services.digests import Digests
from controlplane.services.ha_clock import clock_s
from controlplane.services.hearing import Heard, Hearing
from controlplane.services.leases import Leases
from controlplane.services.lost_storage import note_lost_storage, tells_news
from controlplane.services.node_roll import NodeRoll
from controlplane.services.seen import NodesKept
from controlplane.services.shutdowns import is_over, note, sync_announced
from controlplane.services.usage_book import UsageBook
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1 import node_service_pb2 as api
from limiquantix.errors import ApiError
from telemetry import overload
from telemetry.overload import Load, OverloadRules, OverloadState

_log = structlog.get_logger(__name__)

MISSED_BEFORE_NOT_READY = 3
"""Intervals without a heartbeat after which a node is NOT_READY: one lost packet or a slow second is no outage."""

STORED_AT_LEAST_EVERY_S = 60.0
BATCH_COUNT = 1000
"""Of heartbeats stored in one transaction, so that none holds others up for long."""

ANSWER_WAITS_S = 0.5
"""How long an answer waits for what a heartbeat changes; its host counts on being answered in a second or two."""

AT_ONCE = 8
"""Nodes that are looked after at once."""

_REVIVED_PHASES = frozenset({Phase.UNKNOWN, Phase.PENDING, Phase.NOT_READY, Phase.OFFLINE})


@dataclass(frozen=True, slots=True)
class HeartbeatConfig:
    """Intervals in seconds: what daemons are told, and how often what is due is written down.

    Attributes:
        marks_silent: whether nodes that fall silent are marked here, by what is recorded of any process. With high
            availability they are not: who decides there does it.
        trust_s: how long nodes, and the digests of their states, count as they were read; 0 has both read each time.
    """

    interval_s: int = 30
    flush_interval_s: float = 2.0
    overload: OverloadRules = field(default_factory=OverloadRules)
    marks_silent: bool = True
    trust_s: float = 2.0

    @property
    def patience(self) -> timedelta:
        """How old what is recorded of a node's last heartbeat may be without it being silent."""
        silent_s = float(self.interval_s * MISSED_BEFORE_NOT_READY)
        return timedelta(seconds=silent_s if self.marks_silent else silent_s + STORED_AT_LEAST_EVERY_S)

    @property
    def keep_for(self) -> timedelta:
        """How old it becomes while a node beats. Whoever marks silent nodes by the record needs it younger."""
        most_s = STORED_AT_LEAST_EVERY_S
        return timedelta(seconds=min(most_s, self.interval_s / 2) if self.marks_silent else most_s)


class HeartbeatService:
    """Takes heartbeats and runs the loop that stores what is due and looks for silent nodes.

    Args:
        hearing: where others of this process read what was heard.
        leases: None grants none.
        kept: what others of this process read of nodes.
        clock: in seconds, that of `hearing` and `leases`.
    """

    def __init__(
        self,
        store: Store,
        now: Callable[[], datetime],
        config: HeartbeatConfig,
        *,
        hearing: Hearing | None = None,
        leases: Leases | None = None,
        kept: NodesKept | None = None,
        clock: Callable[[], float] = clock_s,
    ) -> None:
        self._store = store
        self._now = now
        self._config = config
        self._leases = leases
        self._clock = clock
        self._started_at = now()
        self._hearing = hearing or Hearing(clock())
        self._roll = NodeRoll(store, reads_always=config.trust_s <= 0, clock=clock, kept=kept or NodesKept())
        self._digests = Digests(store, config.trust_s, clock)
        self._usage = UsageBook(config.keep_for, min(config.keep_for, UsageBook().settle_for))
        self._loads: dict[str, OverloadState] = {}
        """What is thought of the load of each node that was heard by this process."""
        self._looking: dict[str, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(AT_ONCE)

    @property
    def patience(self) -> timedelta:
        """How old what is recorded of a node's last heartbeat may be without it being silent."""
        return self._config.patience

    async def heartbeat(self, request: api.UpdateHeartbeatRequest) -> api.UpdateHeartbeatResponse:
        """Take note of a node's sign of life; a node that was thought silent is READY again.

        A node whose digest is not that of what is recorded of it is asked for its whole state.

        Raises:
            NotFound: no such node; its daemon must register.
        """
        heard = heard_of(request, self._clock(), self._now())
        node = await self._roll.node(heard.node_id)
        self._hearing.hear(heard)
        self._usage.note(Heartbeat(node.id, heard.at, heard.usage))
        changes = self._changes(node, heard, request.state_hash)
        if changes and not self._roll.is_away:
            await self._look_after(node.id, changes)
        response = api.UpdateHeartbeatResponse(
            acknowledged=True,
            server_time_unix=int(heard.at.timestamp()),
            heartbeat_interval_secs=self._config.interval_s,
            request_full_sync=self._digests.differs(node.id, request.state_hash),
        )
        if self._leases is not None:
            self._leases.answer(heard, response)
        else:  # nothing is fenced here, so whatever is recorded is as new as it gets
            response.fence_token, response.fences_read_ms_ago = node.fence_token, 0
        return response

    # -- what a heartbeat changes

    def _changes(self, node: Node, heard: Heard, state_hash: str) -> list[Callable[[], Awaitable[None]]]:
        """Find out what is to be looked after; mostly nothing."""
        changes: list[Callable[[], Awaitable[None]]] = []
        if node.phase in _REVIVED_PHASES:
            changes.append(lambda: self._revive(heard))
        if note := self._judge_load(node, load_of(heard.usage)):
            changes.append(note)
        if tells_news(node, heard.lost_storage_ids):
            changes.append(lambda: self._note_storage(heard))
        if is_over(node, heard.boot_id):
            changes.append(lambda: self._forget_shutdown(node.id))
        if self._leases is None and heard.known_fence_token > node.fence_token:
            changes.append(lambda: self._count_on(heard))
        if state_hash and self._digests.is_due(node.id, state_hash):
            changes.append(lambda: self._digests.check(node.id))
        return changes

    async def _look_after(self, node_id: str, changes: list[Callable[[], Awaitable[None]]]) -> None:
        """Do it, one heartbeat of a node at a time; goes on in the background if it takes long."""
        task = self._looking.get(node_id)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._do(node_id, changes))
            self._looking[node_id] = task
            task.add_done_callback(lambda _: self._looking.pop(node_id, None))
        await asyncio.wait([task], timeout=ANSWER_WAITS_S)

    async def _do(self, node_id: str, changes: list[Callable[[], Awaitable[None]]]) -> None:
        async with self._turns:
            for change in changes:
                try:
                    await change()
                except ApiError as error:  # the next heartbeat finds the record as it was
                    _log.info("heartbeat_not_looked_after", node_id=node_id, reason=error.reason, message=error.message)

    async def _revive(self, heard: Heard) -> None:
        async def make_ready(tx: Transaction) -> bool:
            await tx.record_heartbeats([Heartbeat(heard.node_id, heard.at, heard.usage)])
            node = await tx.get_node(heard.node_id)
            if node is None or node.phase not in _REVIVED_PHASES:
                return False
            if self._leases is not None and any(each.node_id == node.id for each in await tx.current_fences()):
                return False
            ready = replace(node, phase=Phase.READY, error_message="", updated_at=self._now())
            await tx.update_node(ready, Event(EventType.NODE_READY, f"node {node.hostname} is heard again"))
            return True

        is_ready = await self._store.run(make_ready)
        await self._roll.reread(heard.node_id)
        if is_ready:
            _log.info("node_ready_again", node_id=heard.node_id)

    async def _note_storage(self, heard: Heard) -> None:
        await self._store.run(lambda tx: note_lost_storage(tx, heard.node_id, heard.lost_storage_ids, self._now()))
        await self._roll.reread(heard.node_id)

    async def _count_on(self, heard: Heard) -> None:
        """Have the database count on from what a host knows, which it otherwise refuses; with leases these do that."""
        known = Counters(heard.known_epoch, tokens={heard.node_id: heard.known_fence_token})
        if (await self._store.run(lambda tx: tx.raise_counters(known))).is_any:
            _log.critical("database_knew_less_than_host", node_id=heard.node_id, token=heard.known_fence_token)
        await self._roll.reread(heard.node_id)

    async def _forget_shutdown(self, node_id: str) -> None:
        await self._store.run(lambda tx: note(tx, node_id, None, self._now()))
        await self._roll.reread(node_id)

    def _judge_load(self, node: Node, load: Load) -> Callable[[], Awaitable[None]] | None:
        """Judge a node's load; returns what notes that it is overloaded, or no longer is.

        Counted by this process, decided by what is recorded.
        """
        was_overloaded = OVERLOAD_REASON in node.annotations
        known = self._loads.get(node.id, OverloadState())
        if known.is_overloaded != was_overloaded:  # another process heard the node before, or this one was restarted
            known = OverloadState(was_overloaded)
        state = self._loads[node.id] = overload.step(self._config.overload, known, load)
        if state.is_overloaded == was_overloaded:
            return None
        return lambda: self._note_load(node.id, load, is_overloaded=state.is_overloaded)

    async def _note_load(self, node_id: str, load: Load, *, is_overloaded: bool) -> None:
        reason = overload.reason_of(self._config.overload, load)

        async def note(tx: Transaction) -> None:
            current = await tx.get_node(node_id)
            if current is None or (OVERLOAD_REASON in current.annotations) == is_overloaded:
                return
            if is_overloaded:
                text = f"node {current.hostname} is overloaded: {reason}"
                event = Event(EventType.NODE_OVERLOADED, text, Severity.WARNING, metadata=_facts_of(load))
                await tx.update_node(node_life.overloaded(current, reason, self._now()), event)
            else:
                text = f"node {current.hostname} is no longer overloaded"
                event = Event(EventType.NODE_RECOVERED, text, metadata=_facts_of(load))
                await tx.update_node(node_life.recovered(current, self._now()), event)

        await self._store.run(note)
        await self._roll.reread(node_id)

    # -- the loop

    async def flush(self) -> None:
        """Store what is due, and mark the nodes that fell silent.

        Raises:
            ApiError: the database does not answer; nothing is lost.
        """
        now = self._now()
        due = self._usage.due(now, BATCH_COUNT)
        heard_before = self._silent_before(now)
        if not due and heard_before is None:
            return

        async def store(tx: Transaction) -> list[str]:
            await tx.record_heartbeats(due)
            return [] if heard_before is None else list(await tx.mark_silent_nodes(heard_before, now))

        silent = await self._store.run(store)
        self._usage.stored(due)
        for node_id in silent:
            _log.warning("node_silent", node_id=node_id, silent_for_s=self._config.patience.total_seconds())

    def _silent_before(self, now: datetime) -> datetime | None:
        """When a node must have been heard for the last time to count as silent; None marks none."""
        patience = self._config.patience
        # Nobody could be heard while this process was not running, so silence counts from its start.
        if not self._config.marks_silent or now - self._started_at <= patience:
            return None
        return now - patience

    async def refresh(self) -> None:
        """Bring what is known of nodes, and of the digests that they should have, up to date.

        Raises:
            ApiError: the database does not answer; what is known stays.
        """
        seen = await self._roll.refresh()
        for node in seen.changed:
            sync_announced(self._hearing, node, self._clock())
        for node_id in seen.gone:
            self._hearing.forget(node_id)
            self._usage.forget(node_id)
            self._digests.forget(node_id)
            self._loads.pop(node_id, None)
            if self._leases is not None:
                self._leases.forget(node_id)
        await self._digests.recheck()

    async def run(self) -> None:
        """Look after everything until cancelled; a database that is away for a while loses nothing."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._repeat(self.flush, self._config.flush_interval_s, "heartbeats_not_stored"))
            if self._config.trust_s:
                group.create_task(self._repeat(self.refresh, self._config.trust_s / 2, "nodes_not_read"))

    @staticmethod
    async def _repeat(work: Callable[[], Awaitable[None]], interval_s: float, complaint: str) -> None:
        while True:
            try:
                await work()
            except ApiError as error:
                _log.warning(complaint, reason=error.reason, message=error.message)
            await asyncio.sleep(interval_s)


def heard_of(request: api.UpdateHeartbeatRequest, at_s: float, at: datetime) -> Heard:
    """Return what a heartbeat says."""
    return Heard(
        node_id=request.node_id,
        at_s=at_s,
        at=at,
        usage=_usage_of(request),
        boot_id=request.boot_id,
        can_self_fence=request.can_self_fence,
        self_fencing_obstacle=request.self_fencing_obstacle,
        self_fences_within_ms=request.self_fences_within_ms,
        known_ha_version=request.known_ha_version,
        known_fence_token=request.known_fence_token,
        known_epoch=request.known_epoch,
        lease_left_ms=request.lease_left_ms,
        lost_storage_ids=tuple(sorted(request.lost_storage_ids)),
    )


def load_of(usage: NodeUsage) -> Load:
    """Return how much of a host's processors and memory is in use, in percent."""
    total = usage.memory_total_bytes
    return Load(usage.cpu_percent, 100 * usage.memory_used_bytes / total if total else 0.0)


def _facts_of(load: Load) -> dict[str, str]:
    return {"cpu_percent": f"{load.cpu_percent:.1f}", "memory_percent": f"{load.memory_percent:.1f}"}


def _usage_of(request: api.UpdateHeartbeatRequest) -> NodeUsage:
    return NodeUsage(
        cpu_percent=request.cpu_usage_percent,
        memory_used_bytes=request.memory_used_mib * 2**20,
        memory_total_bytes=request.memory_total_mib * 2**20,
        disk_used_bytes=request.disk_used_bytes,
        disk_total_bytes=request.disk_total_bytes,
        running_vm_count=request.running_vm_count,
        load_1m=request.load_1m,
        load_5m=request.load_5m,
        load_15m=request.load_15m,
    )
