"""What people say to high availability: fence a node, state that a host is off, disarm and arm; and its fences.

Nothing is carried out here. A fence that a person asks for is an open one like any other, which whoever decides finds
in the database. Only a person's word that a host is off is a proof at once.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from controlplane.domain import errors, fence_events, ha_documents, ha_errors
from controlplane.domain.event import EventFilter, EventType
from controlplane.domain.fencing import (
    Fence,
    FenceFilter,
    FenceProof,
    FenceState,
    HaSettings,
)
from controlplane.domain.ha_times import HaTimes
from controlplane.domain.node import Node
from controlplane.domain.query import Cursor, Page
from controlplane.ha.model import NodeHealth
from controlplane.services.ha_clock import clock_s
from controlplane.services.hearing import Hearing
from controlplane.services.lease_marks import READ_INTERVAL_S
from controlplane.services.leases import SYNC_INTERVAL_S
from controlplane.state.interface import Store, Transaction
from limiquantix.compute.v1 import ha_service_pb2 as api
from limiquantix.compute.v1.ha_service_pb2 import FENCE_METHOD_OPERATOR

MAX_RESTARTED_SHOWN = 1000
"""Ids of VMs that are named with a fence; the contract says so."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """What the process that decides thinks of a node, and why in words."""

    health: NodeHealth
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A VM that shall run and waits for its restart; `next_attempt_at` is None if that depends on something else."""

    vm_id: str
    reason: str
    attempt_count: int = 0
    next_attempt_at: datetime | None = None


class HaView(Protocol):
    """What this process's part in high availability has in memory. Reading costs nothing and never fails."""

    @property
    def is_leader(self) -> bool:
        """Whether this process decides."""
        ...

    @property
    def obstacle(self) -> str:
        """Why nothing can be decided, in words; "" when it can, by whomever."""
        ...

    def nodes(self) -> Mapping[str, NodeView]:
        """What is thought of each node, by id; empty where another process decides."""
        ...

    def waiting(self) -> Sequence[Waiting]:
        """VMs that wait; empty where another process decides."""
        ...


@dataclass(frozen=True, slots=True)
class Forecast:
    """What would become of one VM if its node died now: `target_node_id` "" and an obstacle, or a target."""

    vm_id: str
    target_node_id: str = ""
    obstacle: str = ""


class Forecaster(Protocol):
    """Works out what would happen."""

    async def failures_survived(self) -> int:
        """How many nodes, whichever, may fail at once with room for all VMs to be restarted; -1 if not even none."""
        ...

    async def forecast(self, node_id: str) -> Sequence[Forecast]:
        """What would become of the VMs of a node, in the order of their restart."""
        ...


def confirmation_s(times: HaTimes) -> float:
    """Return within what time a process that hears a node has objected to its fence, and some to spare."""
    return times.objection_s + times.heartbeat_interval_s + READ_INTERVAL_S + SYNC_INTERVAL_S


@dataclass(frozen=True, slots=True)
class HaService:
    """The use cases of people.

    Attributes:
        suspect_after_s: silence that a host must have kept before somebody may say that it is off.
        inactive: why this installation fences nothing at all, such as that its configuration says so; "" if it does.
        clock: that of `hearing`, in seconds.
        confirmation_s: for which other processes may object to a person's word that a host is off.
    """

    store: Store
    hearing: Hearing
    now: Callable[[], datetime]
    suspect_after_s: float
    inactive: str = ""
    clock: Callable[[], float] = clock_s
    confirmation_s: float = confirmation_s(HaTimes())
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    # -- fences

    async def get(self, fence_id: str) -> api.Fence:
        """Read one fence, with the VMs that were started elsewhere upon it.

        Raises:
            NotFound: there is none of that id.
        """

        async def read(tx: Transaction) -> api.Fence:
            fence = await tx.get_fence(fence_id)
            if fence is None:
                raise ha_errors.fence_not_found(fence_id)
            return ha_documents.fence(fence, await _hostname(tx, fence.node_id), await _restarted(tx, fence))

        return await self.store.read(read)

    async def list(self, wanted: FenceFilter, after: Cursor | None, limit: int) -> Page[api.Fence]:
        """Read one page, newest first; without the VMs that were started elsewhere."""

        async def read(tx: Transaction) -> Page[api.Fence]:
            page = await tx.list_fences(wanted, after, limit)
            nodes = await tx.nodes({fence.node_id for fence in page.items})
            names = {node.id: node.hostname for node in nodes}
            found = [ha_documents.fence(fence, names.get(fence.node_id, "")) for fence in page.items]
            return Page(found, page.next_cursor, page.total_count)

        return await self.store.read(read)

    async def fence_node(self, node_id: str, reason: str, principal: str) -> api.Fence:
        """Have a node fenced, whether it is well or not. Returns the fence there is, if it has one.

        One that was opened because the node was silent becomes the person's: it is not taken back when it is heard.

        Raises:
            NotFound: there is no such node.
            FailedPrecondition: nothing is fenced at the moment.
            Aborted: something else became of its fence at the same moment.
        """
        words = f"{principal} asked for it: {reason}"

        async def write(tx: Transaction) -> api.Fence:
            node = await self._node_to_fence(tx, node_id)
            fence = await _current(tx, node_id)
            if fence is None:
                fence = await tx.open_fence(replace(await self._new(tx, node_id, words), asked_by=principal))
            elif fence.state == FenceState.OPEN and not fence.is_by_operator:
                fence = await tx.update_fence(replace(fence, reason=words, asked_by=principal))
            return ha_documents.fence(fence, node.hostname)

        return await self.store.run(write)

    async def confirm_dead(self, node_id: str, hostname: str, statement: str, principal: str) -> api.Fence:
        """Take a person's word that a host is off: the proof where no other can be had. May be repeated.

        Other processes may hear the host. So they are told of the intent first, and get the time to object. They get it
        too where the end of the lease proved protected VMs dead already: the word is about all others.

        Raises:
            NotFound: there is no such node.
            InvalidArgument: the host name is not the node's.
            FailedPrecondition: the node was heard a moment ago, or this process listens for too short a time to tell,
                or nothing is fenced at the moment.
            Aborted: another process heard the node since it was given up, or something else became of its fence.
        """

        async def intend(tx: Transaction) -> Fence:
            _, fence = await self._silent_node(tx, node_id, hostname)
            if fence is None:
                # Not one that was asked for, which a heartbeat does not end: the host is said to be off.
                reason = f"said to be off by {principal}: {statement}"
                return await tx.open_fence(await self._new(tx, node_id, reason))
            if fence.heard_by and not fence.proves_whole_host:
                if fence.state == FenceState.OPEN and not fence.is_by_operator:
                    raise ha_errors.fence_objected(fence.id, node_id, fence.heard_by)
                return await tx.update_fence(replace(fence, heard_by=""))  # it was on then, and is said to be off now
            return fence

        async def prove(tx: Transaction) -> Fence:
            node, fence = await self._silent_node(tx, node_id, hostname)
            if fence is None or fence.id != intended.id:
                raise ha_errors.fence_withdrawn(intended.id, node_id)
            if not fence.proves_whole_host:
                if fence.heard_by:
                    raise ha_errors.fence_objected(fence.id, node_id, fence.heard_by)
                epoch = (await tx.leadership()).epoch
                proof = FenceProof(FENCE_METHOD_OPERATOR, statement, principal, epoch, self.now())
                fence = await tx.update_fence(replace(fence, state=FenceState.PROVEN, proof=proof))
                await tx.log_node_event(node, fence_events.fenced_by_person(fence, node.hostname, principal))
            return fence

        intended = await self.store.run(intend)
        if not intended.proves_whole_host:
            await self.sleep(self.confirmation_s)
        fence = await self.store.run(prove)
        return ha_documents.fence(fence, hostname)

    async def _silent_node(self, tx: Transaction, node_id: str, hostname: str) -> tuple[Node, Fence | None]:
        """Read a node that may be said to be off, and its current fence."""
        node = await self._node_to_fence(tx, node_id)
        if node.hostname != hostname:
            raise ha_errors.hostname_differs(node, hostname)
        fence = await _current(tx, node_id)
        self._require_silent(node)
        return node, fence

    async def _node_to_fence(self, tx: Transaction, node_id: str) -> Node:
        node = await tx.get_node(node_id)
        if node is None:
            raise errors.node_not_found(node_id)
        settings = await tx.ha_settings()
        if self.inactive or not settings.is_armed:
            raise ha_errors.nothing_is_fenced(self.inactive, settings)
        return node

    def _require_silent(self, node: Node) -> None:
        """Check that nothing was heard of the node for long enough, and that this process was there to hear it."""
        now_s = self.clock()
        listened_s = now_s - self.hearing.began_s
        if listened_s < self.suspect_after_s:
            raise ha_errors.not_listening_long_enough(node.hostname, listened_s, self.suspect_after_s)
        heard = self.hearing.of(node.id)
        if heard is not None and now_s - heard.at_s < self.suspect_after_s:
            raise ha_errors.node_is_heard(node, heard.at, now_s - heard.at_s, self.suspect_after_s)
        if node.last_heartbeat_at is not None:  # as any process recorded it, which it does now and then only
            silent_s = (self.now() - node.last_heartbeat_at).total_seconds()
            if silent_s < self.suspect_after_s:
                raise ha_errors.node_is_heard(node, node.last_heartbeat_at, silent_s, self.suspect_after_s)

    async def _new(self, tx: Transaction, node_id: str, reason: str) -> Fence:
        return Fence(
            id=str(uuid.uuid4()),
            node_id=node_id,
            token=0,
            epoch=(await tx.leadership()).epoch,
            state=FenceState.OPEN,
            reason=reason,
            opened_at=self.now(),
        )

    # -- settings

    async def disarm(self, reason: str, principal: str) -> api.HaSettings:
        """Have nothing fenced, killed or restarted until `arm`. Disarmed already, it stays as it is."""
        return await self._set(is_armed=False, reason=reason, principal=principal)

    async def arm(self, principal: str) -> api.HaSettings:
        """End a disarmament. May be repeated."""
        return await self._set(is_armed=True, reason="", principal=principal)

    async def _set(self, *, is_armed: bool, reason: str, principal: str) -> api.HaSettings:
        async def write(tx: Transaction) -> HaSettings:
            known = await tx.ha_settings()
            if known.is_armed == is_armed:
                return known
            return await tx.update_ha_settings(
                replace(known, is_armed=is_armed, reason=reason, changed_by=principal, changed_at=self.now())
            )

        return ha_documents.settings(await self.store.run(write))


async def _current(tx: Transaction, node_id: str) -> Fence | None:
    """The node's current fence, held until the transaction ends."""
    for fence in await tx.current_fences():
        if fence.node_id == node_id:
            return await tx.get_fence(fence.id)
    return None


async def _hostname(tx: Transaction, node_id: str) -> str:
    node = await tx.get_node(node_id)
    return node.hostname if node is not None else ""


async def _restarted(tx: Transaction, fence: Fence) -> list[str]:
    """Ids of the VMs that the log says were started elsewhere upon a fence, in the order of their restart."""
    wanted = EventFilter(types=frozenset({str(EventType.VM_FAILED_OVER)}), since=fence.opened_at)
    events = await tx.newest_events(wanted, MAX_RESTARTED_SHOWN)
    ours = [entry.resource_id for entry in events if entry.event.metadata.get("fence_id") == fence.id]
    return list(dict.fromkeys(reversed(ours)))
