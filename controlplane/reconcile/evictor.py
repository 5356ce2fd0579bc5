"""Sees to it that VMs leave nodes whose NO_EXECUTE taints they do not tolerate.

It looks at what is recorded, again and again, and so needs no memory of its own: after a restart, or beside other
processes that do the same, it asks for the same moves under the same request ids, which makes each one happen once. A
VM that cannot be moved is told of once, stays as it is, and is tried again later: nothing is ever stopped here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from controlplane.domain.event import Event, EventFilter, EventType, Severity
from controlplane.domain.evictions import Eviction, eviction_of, evicts
from controlplane.domain.migration import MigrationWish
from controlplane.domain.node import Node, Phase
from controlplane.domain.operation import Operation
from controlplane.domain.vm import ALIVE_STATES
from controlplane.operations.desk import Caller
from controlplane.operations.moves import Moves
from controlplane.state.interface import Store, Transaction
from limiquantix.errors import ApiError, Reason

_log = structlog.get_logger(__name__)

EVICTOR = Caller(principal="system:evict", waits=False)


@dataclass(frozen=True, slots=True)
class EvictorConfig:
    """`retry_s` is how long after a move that failed the next one is asked for."""

    interval_s: float = 2.0
    moves_at_once: int = 2
    """Of one node: as many as its migrations let begin."""
    retry_s: float = 300.0


@dataclass(frozen=True, slots=True)
class _Due:
    """An eviction whose time has come, and the move that was asked for last; None if none was in this span of tries."""

    eviction: Eviction
    request_id: str
    is_busy: bool
    operation: Operation | None


@dataclass(frozen=True, slots=True)
class _Seen:
    """Nodes as they were read, by id: one whose version is the same need not be read again."""

    versions: Mapping[str, int] = field(default_factory=dict)
    evicting: Mapping[str, Node] = field(default_factory=dict)


class Evictor:
    """Moves away what has to leave; one task (`run`) a process."""

    def __init__(
        self, store: Store, moves: Moves, now: Callable[[], datetime], config: EvictorConfig | None = None
    ) -> None:
        self._store = store
        self._moves = moves
        self._now = now
        self._config = config or EvictorConfig()
        self._seen = _Seen()

    async def run(self) -> None:
        """Look every interval until cancelled; a database that is away is waited for."""
        while True:
            await asyncio.sleep(self._config.interval_s)
            try:
                await self.look()
            except ApiError as error:
                _log.warning("evictions_not_looked_after", reason=error.reason, message=error.message)

    async def look(self) -> None:
        """Ask for the moves that are due.

        Raises:
            Unavailable: the database does not answer.
        """
        self._seen = await self._store.read(lambda tx: _nodes(tx, self._seen))
        for node in self._seen.evicting.values():
            if node.phase != Phase.DRAINING:  # then all of them leave anyway
                await self._empty(node)

    async def _empty(self, node: Node) -> None:
        due = await self._store.read(lambda tx: self._due(tx, node))
        free = self._config.moves_at_once - sum(each.is_busy for each in due)
        for each in due:
            if each.operation is not None and each.operation.fault is not None:
                await self._tell(each.eviction, each.operation.fault.message)
            if each.is_busy or each.operation is not None or free <= 0:
                continue
            free -= 1
            await self._move(each)

    async def _due(self, tx: Transaction, node: Node) -> Sequence[_Due]:
        """Read what has to leave a node by now, the longest due first."""
        now = self._now()
        found = [eviction_of(vm, node) for vm in await tx.vms_on_node(node.id) if vm.is_managed]
        due = [each for each in found if each is not None and each.due_at <= now]
        busy = await tx.active_resource_ids([each.vm.id for each in due])
        result = []
        for each in sorted(due, key=lambda each: (each.due_at, each.vm.id)):
            span = int((now - each.due_at).total_seconds() // self._config.retry_s)
            request_id = f"evict-{each.vm.id}-{each.taint_key}-{int(each.due_at.timestamp() * 1000)}-{span}"
            operation = await tx.operation_of_request(EVICTOR.principal, request_id)
            result.append(_Due(each, request_id, each.vm.id in busy, operation))
        return result

    async def _move(self, due: _Due) -> None:
        """Ask for one move; asked for twice it happens once."""
        vm = due.eviction.vm
        wish = MigrationWish(live=vm.power_state in ALIVE_STATES)
        try:
            operation = await self._moves.move(vm.id, wish, EVICTOR.with_request(due.request_id, due.request_id))
        except ApiError as error:
            if error.reason == Reason.STATE_UNAVAILABLE:
                raise
            _log.info("vm_not_evicted", vm_id=vm.id, reason=error.reason)
            await self._tell(due.eviction, error.message)
        else:
            _log.info("vm_evicted", vm_id=vm.id, node_id=due.eviction.node.id, operation_id=operation.id)

    async def _tell(self, eviction: Eviction, why: str) -> None:
        """Log that a VM should leave and cannot, unless that is in the log since it should."""
        vm, node = eviction.vm, eviction.node

        async def tell(tx: Transaction) -> None:
            told = EventFilter(
                resource_id=vm.id, types=frozenset({str(EventType.VM_NOT_EVICTED)}), since=eviction.due_at
            )
            held = await tx.get_vm(vm.id)  # so that of two processes that tell it one waits, and then finds it told
            if held is None or await tx.newest_events(told, 1):
                return
            text = f"VM {vm.name} should leave node {node.hostname} for its taint {eviction.taint_key}: {why}"
            facts = {"node_id": node.id, "taint": eviction.taint_key}
            await tx.log_vm_event(held, Event(EventType.VM_NOT_EVICTED, text, Severity.WARNING, metadata=facts))

        await self._store.run(tell)


async def _nodes(tx: Transaction, seen: _Seen) -> _Seen:
    """Read the nodes that changed since they were seen."""
    versions = await tx.node_versions()
    changed = [node_id for node_id, _ in versions.items() - seen.versions.items()]
    kept = {node_id: node for node_id, node in seen.evicting.items() if versions.get(node_id) == node.version}
    new = {node.id: node for node in await tx.nodes(changed) if evicts(node)}
    return _Seen(versions, kept | new)
