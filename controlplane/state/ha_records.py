"""The transaction's methods about leadership, fences, guards and settings. Docstrings: the interface's.

That a fence is opened, and the settings changed, is told in the log of events here, so that no caller can forget it.
What becomes of a fence then is told by whoever knows why.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from sqlalchemy import Connection

from controlplane.domain import fence_events
from controlplane.domain.event import CLUSTER, Change, Event, LoggedEvent
from controlplane.domain.fencing import Counters, Fence, FenceFilter, HaSettings, Leadership, Marks, NodeGuard
from controlplane.domain.node import Node
from controlplane.domain.query import Cursor, Page
from controlplane.domain.vm import Vm
from controlplane.state import ha_rows, node_rows, vm_rows
from limiquantix.compute.v1.vm_pb2 import HaPolicy

ResultT = TypeVar("ResultT")


class HaRecords(ABC):
    """A part of `SqlTransaction`."""

    _read_only: bool

    @abstractmethod
    async def _read(self, function: Callable[[Connection], ResultT]) -> ResultT: ...

    @abstractmethod
    async def _write(self, function: Callable[[Connection], ResultT]) -> ResultT: ...

    @abstractmethod
    def _noted(self, vms: Sequence[Vm]) -> Sequence[Vm]: ...

    @abstractmethod
    def _log_node(
        self,
        connection: Connection,
        node: Node,
        change: Change,
        event: Event,
        labels_before: Mapping[str, str] | None = None,
    ) -> None: ...

    @abstractmethod
    def _append(self, connection: Connection, entry: LoggedEvent) -> None: ...

    async def leadership(self) -> Leadership:
        """Read who decides."""
        return await self._read(ha_rows.get_leadership)

    async def take_leadership(self, leader_id: str, hostname: str, at: datetime) -> Leadership:
        """Begin a new epoch."""
        return await self._write(lambda connection: ha_rows.take_leadership(connection, leader_id, hostname, at))

    async def require_epoch(self, epoch: int) -> None:
        """Hold the epoch until the transaction ends."""
        await self._write(lambda connection: ha_rows.require_epoch(connection, epoch))

    async def ha_settings(self) -> HaSettings:
        """Read the settings."""
        return await self._read(ha_rows.get_settings)

    async def update_ha_settings(self, settings: HaSettings) -> HaSettings:
        """Write settings that were read before."""

        def change(connection: Connection) -> HaSettings:
            changed = ha_rows.update_settings(connection, settings)
            self._append(connection, _of_cluster(fence_events.of_settings(changed), changed.version))
            return changed

        return await self._write(change)

    async def declare_wait(self, wait_ms: int, *, may_shorten: bool = False) -> int:
        """Have the longest wait be no less than this."""
        return await self._write(lambda connection: ha_rows.declare_wait(connection, wait_ms, may_shorten=may_shorten))

    async def raise_counters(self, known: Counters) -> Counters:
        """Have the database count on from what others know."""

        def change(connection: Connection) -> Counters:
            raised = ha_rows.raise_counters(connection, known)
            if raised.is_any:
                version = ha_rows.get_settings(connection).version
                self._append(connection, _of_cluster(fence_events.of_counters(raised), version))
            return raised

        return await self._write(change)

    async def open_fence(self, fence: Fence) -> Fence:
        """Record the intent to fence a node."""

        def insert(connection: Connection) -> Fence:
            opened = ha_rows.open_fence(connection, fence)
            node = node_rows.get_node(connection, opened.node_id)
            if node is not None:
                self._log_node(connection, node, Change.MODIFIED, fence_events.fencing(opened, node.hostname))
            return opened

        return await self._write(insert)

    async def get_fence(self, fence_id: str) -> Fence | None:
        """Read one fence."""
        return await self._read(
            lambda connection: ha_rows.get_fence(connection, fence_id, to_change=not self._read_only)
        )

    async def update_fence(self, fence: Fence) -> Fence:
        """Write a fence that was read before."""
        return await self._write(lambda connection: ha_rows.update_fence(connection, fence))

    async def current_fences(self) -> Sequence[Fence]:
        """Fences that are open or proven."""
        return await self._read(ha_rows.current_fences)

    async def list_fences(self, wanted: FenceFilter, after: Cursor | None, limit: int) -> Page[Fence]:
        """Read a page of fences."""
        return await self._read(lambda connection: ha_rows.list_fences(connection, wanted, after, limit))

    async def object_to_fences(self, node_ids: Collection[str], heard_by: str) -> Sequence[str]:
        """Note in open fences that their nodes are heard."""
        return await self._write(lambda connection: ha_rows.object_to_fences(connection, node_ids, heard_by))

    async def forget_fences(self, ended_before: datetime) -> int:
        """Remove fences that ended long ago."""
        return await self._write(lambda connection: ha_rows.forget_fences(connection, ended_before))

    async def marks(self) -> Marks:
        """Read what a process that grants leases must know."""
        return await self._read(ha_rows.marks)

    async def node_guards(self) -> Sequence[NodeGuard]:
        """What is recorded of every host's guard."""
        return await self._read(ha_rows.get_guards)

    async def note_guards(self, guards: Sequence[NodeGuard]) -> None:
        """Write what hosts told of their guards."""
        await self._write(lambda connection: ha_rows.note_guards(connection, guards))

    async def vms_to_restart(self, node_ids: Collection[str]) -> Sequence[Vm]:
        """VMs on these nodes whose policy has them restarted elsewhere."""
        running = await self._read(lambda connection: vm_rows.wanted_running_on(connection, node_ids))
        return self._noted([vm for vm in running if _is_restarted_elsewhere(vm)])


def _is_restarted_elsewhere(vm: Vm) -> bool:
    policy = vm.spec.ha_policy
    return policy.auto_restart and policy.condition != HaPolicy.NEVER


def _of_cluster(event: Event, version: int) -> LoggedEvent:
    return LoggedEvent(
        id="",
        revision=0,
        recorded_at=datetime.now(UTC),
        resource_type=CLUSTER,
        resource_id="",
        resource_version=version,
        project_id="",
        node_id="",
        change=Change.NONE,
        event=event,
    )
