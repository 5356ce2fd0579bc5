"""Signs of life: taken in at once, stored together, and their absence noticed.

A heartbeat says how loaded a host is and that it lives. It never touches what is claimed there nor a phase that an
operator chose. Usage is stored in batches: hundreds of nodes cost one transaction an interval, not one each. Only when
a node turns out to be overloaded, or is no longer, its record changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import structlog

from controlplane.domain import errors, node_life
from controlplane.domain.event import Event, EventType, Severity
from controlplane.domain.node import Heartbeat, Node, NodeUsage, Phase
from controlplane.domain.node_conditions import OVERLOAD_REASON
from controlplane.reconcile.reports import expected_hash
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1 import node_service_pb2 as api
from limiquantix.errors import Aborted, ApiError
from telemetry import overload
from telemetry.overload import Load, OverloadRules, OverloadState

_log = structlog.get_logger(__name__)

MISSED_BEFORE_NOT_READY = 3
"""Intervals without a heartbeat after which a node is NOT_READY: one lost packet or a slow second is no outage."""

_REVIVED_PHASES = frozenset({Phase.UNKNOWN, Phase.PENDING, Phase.NOT_READY, Phase.OFFLINE})


@dataclass(frozen=True, slots=True)
class HeartbeatConfig:
    """Intervals in seconds: what daemons are told, and how often their heartbeats are written down."""

    interval_s: int = 30
    flush_interval_s: float = 2.0
    overload: OverloadRules = field(default_factory=OverloadRules)

    @property
    def patience(self) -> timedelta:
        """How long a node may be silent."""
        return timedelta(seconds=self.interval_s * MISSED_BEFORE_NOT_READY)


class HeartbeatService:
    """Takes heartbeats and runs the loop that stores them and looks for silent nodes."""

    def __init__(self, store: Store, now: Callable[[], datetime], config: HeartbeatConfig) -> None:
        self._store = store
        self._now = now
        self._config = config
        self._started_at = now()
        self._pending: dict[str, Heartbeat] = {}
        self._loads: dict[str, OverloadState] = {}
        """What is thought of the load of each node that was heard by this process."""

    async def heartbeat(self, request: api.UpdateHeartbeatRequest) -> api.UpdateHeartbeatResponse:
        """Take note of a node's sign of life; a node that was thought silent is READY again.

        A node whose digest is not that of what is recorded of it is asked for its whole state.

        Raises:
            NotFound: no such node; its daemon must register.
        """
        now = self._now()

        async def read(tx: Transaction) -> tuple[Node, bool]:
            node = await tx.get_node(request.node_id)
            if node is None:
                raise errors.node_not_found(request.node_id)
            says = request.state_hash
            return node, bool(says) and says != await expected_hash(tx, node.id)

        node, differs = await self._store.read(read)
        heartbeat = self._pending[node.id] = Heartbeat(node.id, now, _usage_of(request))
        if node.phase in _REVIVED_PHASES:
            await self._revive(heartbeat)
        await self._judge_load(node, load_of(heartbeat.usage))
        return api.UpdateHeartbeatResponse(
            acknowledged=True,
            server_time_unix=int(now.timestamp()),
            heartbeat_interval_secs=self._config.interval_s,
            request_full_sync=differs,
        )

    async def _revive(self, heartbeat: Heartbeat) -> None:
        async def make_ready(tx: Transaction) -> None:
            await tx.record_heartbeats([heartbeat])
            node = await tx.get_node(heartbeat.node_id)
            if node is not None and node.phase in _REVIVED_PHASES:
                ready = replace(node, phase=Phase.READY, error_message="", updated_at=self._now())
                await tx.update_node(ready, Event(EventType.NODE_READY, f"node {node.hostname} is heard again"))

        await self._store.run(make_ready)
        _log.info("node_ready_again", node_id=heartbeat.node_id)

    async def _judge_load(self, node: Node, load: Load) -> None:
        """Note that a node is overloaded, or no longer is; counted by this process, decided by what is recorded."""
        was_overloaded = OVERLOAD_REASON in node.annotations
        known = self._loads.get(node.id, OverloadState())
        if known.is_overloaded != was_overloaded:  # another process heard the node before, or this one was restarted
            known = OverloadState(was_overloaded)
        state = self._loads[node.id] = overload.step(self._config.overload, known, load)
        if state.is_overloaded == was_overloaded:
            return
        reason = overload.reason_of(self._config.overload, load)

        async def note(tx: Transaction) -> None:
            current = await tx.get_node(node.id)
            if current is None or (OVERLOAD_REASON in current.annotations) == state.is_overloaded:
                return
            if state.is_overloaded:
                text = f"node {node.hostname} is overloaded: {reason}"
                event = Event(EventType.NODE_OVERLOADED, text, Severity.WARNING, metadata=_facts_of(load))
                await tx.update_node(node_life.overloaded(current, reason, self._now()), event)
            else:
                text = f"node {node.hostname} is no longer overloaded"
                event = Event(EventType.NODE_RECOVERED, text, metadata=_facts_of(load))
                await tx.update_node(node_life.recovered(current, self._now()), event)

        try:
            await self._store.run(note)
        except Aborted as error:  # the next heartbeat finds the record as it was, and counts on from here
            _log.info("load_not_noted", node_id=node.id, reason=error.reason)

    async def flush(self) -> None:
        """Store the heartbeats taken since the last time, and mark the nodes that fell silent."""
        taken, self._pending = self._pending, {}
        now = self._now()
        patience = self._config.patience
        # Nobody could be heard while this process was not running, so silence counts from its start.
        heard_before = now - patience if now - self._started_at > patience else None

        async def store(tx: Transaction) -> list[str]:
            await tx.record_heartbeats(list(taken.values()))
            return [] if heard_before is None else list(await tx.mark_silent_nodes(heard_before, now))

        try:
            silent = await self._store.run(store)
        except ApiError:
            self._pending = taken | self._pending
            raise
        for node_id in silent:
            _log.warning("node_silent", node_id=node_id, silent_for_s=patience.total_seconds())

    async def run(self) -> None:
        """Flush every interval until cancelled; a database that is away for a while loses nothing."""
        while True:
            await asyncio.sleep(self._config.flush_interval_s)
            try:
                await self.flush()
            except ApiError as error:
                _log.warning("heartbeats_not_stored", reason=error.reason, message=error.message)


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
