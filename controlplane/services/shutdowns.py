"""Hosts that are shut down or rebooted on purpose: noted for every process, and told what becomes of their VMs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import structlog

from controlplane.domain import errors
from controlplane.domain.event import Event, EventType, Severity
from controlplane.domain.migration import MigrationWish
from controlplane.domain.node import Node
from controlplane.domain.node_shutdown import NotedShutdown, ShutdownKind, last_word, shutdown_of, with_shutdown
from controlplane.domain.vm import ALIVE_STATES, PowerState, Vm
from controlplane.ha.model import ShutdownPolicy
from controlplane.operations.desk import Caller
from controlplane.operations.moves import Moves
from controlplane.services.ha_clock import clock_s
from controlplane.services.hearing import Announced, Hearing
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1.node_service_pb2 import AnnounceShutdownRequest, AnnounceShutdownResponse
from limiquantix.errors import ApiError

_log = structlog.get_logger(__name__)

SHUTDOWN = Caller(principal="system:shutdown", waits=False)
ASK_AGAIN_MS = 2000
_MAY_BE_MOVING = ALIVE_STATES | {PowerState.MIGRATING}

_ANSWERS = {
    ShutdownPolicy.FREEZE: AnnounceShutdownResponse.FREEZE,
    ShutdownPolicy.FAILOVER: AnnounceShutdownResponse.FAILOVER,
    ShutdownPolicy.MIGRATE: AnnounceShutdownResponse.MIGRATE,
}


def resolved(policy: ShutdownPolicy, kind: AnnounceShutdownRequest.Kind.ValueType) -> ShutdownPolicy:
    """Say what the policy comes to for a shutdown or a reboot. Pure."""
    if policy is not ShutdownPolicy.CONDITIONAL:
        return policy
    return ShutdownPolicy.FREEZE if kind == ShutdownKind.REBOOT else ShutdownPolicy.FAILOVER


def sync_announced(hearing: Hearing, node: Node, at_s: float) -> None:
    """Make a process know what a node said to another one, from the node as it is recorded."""
    noted, known = shutdown_of(node.annotations), hearing.announced(node.id)
    heard = hearing.of(node.id)
    if noted is None or (heard is not None and heard.boot_id and heard.boot_id != noted.boot_id):
        hearing.announce(node.id, None)
    elif known is None or (known.kind, known.boot_id, known.all_vms_ended) != (
        noted.kind,
        noted.boot_id,
        noted.all_vms_ended,
    ):
        hearing.announce(node.id, Announced(noted.kind, noted.boot_id, at_s, noted.all_vms_ended))


def is_over(node: Node, boot_id: str) -> bool:
    """Whether a node that said it is about to go is heard in another boot."""
    noted = shutdown_of(node.annotations)
    return noted is not None and bool(boot_id) and boot_id != noted.boot_id


async def note(tx: Transaction, node_id: str, noted: NotedShutdown | None, now: datetime) -> Node:
    """Note what a node said, or that it is over. Idempotent; what comes late changes nothing.

    Raises:
        NotFound: no such node.
    """
    node = await tx.get_node(node_id)
    if node is None:
        raise errors.node_not_found(node_id)
    before = last_word(node.annotations)
    if noted is not None and (noted.is_overtaken_by(before) or noted.repeats(before)):
        return node
    changed = with_shutdown(node, noted, now)
    if changed is node:
        return node
    return await tx.update_node(changed, _event(node, noted))


def _event(node: Node, noted: NotedShutdown | None) -> Event | None:
    if noted is None or noted.kind == ShutdownKind.CANCELLED:
        if shutdown_of(node.annotations) is None:
            return None
        return Event(EventType.NODE_SHUTDOWN_CANCELLED, f"node {node.hostname} no longer shuts down")
    what = "reboots" if noted.kind == ShutdownKind.REBOOT else "is shut down"
    ended = "; it ended all VMs" if noted.all_vms_ended else ""
    return Event(EventType.NODE_SHUTTING_DOWN, f"node {node.hostname} {what}, on purpose{ended}", Severity.WARNING)


@dataclass(frozen=True, slots=True)
class ShutdownService:
    """Takes announcements; `policy` is what becomes of VMs, FREEZE where nothing is started elsewhere."""

    store: Store
    hearing: Hearing
    moves: Moves
    policy: ShutdownPolicy
    now: Callable[[], datetime]
    clock: Callable[[], float] = clock_s

    async def _call_off(self, node_id: str, said: NotedShutdown) -> None:
        """Take what a host said for over, unless that was in another boot: of that, its heartbeats tell the end.

        When it called it off is kept, since what it said before may still be on its way.
        """

        async def call_off(tx: Transaction) -> Node | None:
            node = await tx.get_node(node_id)
            noted = shutdown_of(node.annotations) if node is not None else None
            if noted is not None and said.boot_id != noted.boot_id:
                return node
            return await note(tx, node_id, said if said.said_at_ms else None, self.now())

        if (node := await self.store.run(call_off)) is not None:
            sync_announced(self.hearing, node, self.clock())

    async def announce(self, request: AnnounceShutdownRequest) -> AnnounceShutdownResponse:
        """Take note that a host goes, and say what it shall do with its VMs. Idempotent: hosts ask again and again.

        Raises:
            NotFound: no such node.
        """
        node_id = request.node_id
        said = NotedShutdown(request.kind, request.boot_id, request.all_vms_ended, request.said_at_ms)
        if request.kind == ShutdownKind.CANCELLED:
            await self._call_off(node_id, said)
            return AnnounceShutdownResponse()
        node = await self.store.run(lambda tx: note(tx, node_id, said, self.now()))
        self._remember(node)
        policy = resolved(self.policy, request.kind)
        answer = AnnounceShutdownResponse(policy=_ANSWERS[policy])
        goes = shutdown_of(node.annotations) is not None  # or else it called that off since
        if policy is ShutdownPolicy.MIGRATE and goes and not request.all_vms_ended:
            answer.vm_ids_left.extend(await self._move_away(node, request.boot_id))
            answer.ask_again_ms = ASK_AGAIN_MS if answer.vm_ids_left else 0
        return answer

    def _remember(self, node: Node) -> None:
        said, known = shutdown_of(node.annotations), self.hearing.announced(node.id)
        if said is None:
            self.hearing.announce(node.id, None)
            return
        at_s = known.at_s if known is not None and known.boot_id == said.boot_id else self.clock()
        self.hearing.announce(node.id, Announced(said.kind, said.boot_id, at_s, said.all_vms_ended))

    async def _move_away(self, node: Node, boot_id: str) -> list[str]:
        """Have the VMs there moved, each once a boot, and return the ids of those under way."""
        vms = await self.store.read(lambda tx: tx.vms_on_node(node.id))
        alive = [vm for vm in vms if vm.is_managed and vm.power_state in _MAY_BE_MOVING]
        return [vm.id for vm in sorted(alive, key=lambda vm: vm.id) if await self._is_moving(node, vm, boot_id)]

    async def _is_moving(self, node: Node, vm: Vm, boot_id: str) -> bool:
        if vm.power_state == PowerState.MIGRATING:
            return True  # whoever asked for that
        request_id = f"shutdown-{node.id}-{boot_id}-{vm.id}"
        try:
            operation = await self.moves.move(vm.id, MigrationWish(), SHUTDOWN.with_request(request_id, request_id))
        except ApiError as error:  # it ends with its host, and is started again by what follows
            _log.warning("vm_not_moved_before_shutdown", vm_id=vm.id, node_id=node.id, reason=error.reason)
            return False
        return not operation.has_ended
