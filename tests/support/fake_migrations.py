"""Migrations between fake hosts: a VM is carried over in steps that a test can hold up, break or cancel."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.empty_pb2 import Empty

from limiquantix.errors import FailedPrecondition, NotFound, Reason
from limiquantix.node.v1 import node_daemon_pb2 as node_v1

TRANSFERRING, COMPLETE, FAILED = (
    node_v1.MIGRATION_PHASE_TRANSFERRING,
    node_v1.MIGRATION_PHASE_COMPLETE,
    node_v1.MIGRATION_PHASE_FAILED,
)
MIB = 2**20
_POLL_S = 0.005


@dataclass
class Sending:
    """One migration as its source sees it."""

    target: Any
    phase: node_v1.MigrationPhase.ValueType = TRANSFERRING
    error: str = ""
    percent: int = 10
    is_cancelled: bool = False
    is_post_copy: bool = False
    generation: int = 0

    def told(self, vm_id: str) -> node_v1.MigrationProgress:
        """Tell how far it is."""
        done = self.phase == COMPLETE
        return node_v1.MigrationProgress(
            vm_id=vm_id,
            percent_complete=100 if done else self.percent,
            data_transferred_bytes=(100 if done else self.percent) * MIB,
            data_remaining_bytes=0 if done else (100 - self.percent) * MIB,
            phase=self.phase,
            error=self.error,
            downtime_ms=42 if done else 0,
            elapsed_ms=1234,
            memory_page_count=25_600,
            pass_count=2,
            dirty_bytes_per_sec=3 * MIB,
            is_post_copy=self.is_post_copy,
        )


@dataclass
class Network:
    """Which hosts reach each other, by the URI that each tells."""

    by_uri: dict[str, Any] = field(default_factory=dict)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    serials: Any = field(default_factory=itertools.count)


@dataclass
class FakeMigrationCalls:
    """Part of `FakeDaemon`, which has `vms`, `_vm`, `_called`, `set_state` and its gates."""

    uri: str = ""
    network: Network = field(default_factory=Network)
    prepared: dict[str, node_v1.PrepareMigrationRequest] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    open_doors: set[str] = field(default_factory=set)
    sending: dict[str, Sending] = field(default_factory=dict)
    ended: list[node_v1.EndMigrationRequest] = field(default_factory=list)
    sent_requests: list[node_v1.MigrateVMRequest] = field(default_factory=list)
    migration_fault: str = ""
    """Makes migrations from here fail with this text."""
    measured: node_v1.MigrationForecast = field(
        default_factory=lambda: node_v1.MigrationForecast(
            memory_bytes=128 * MIB, dirty_bytes_per_sec=MIB, disk_bytes=64 * MIB
        )
    )
    when_let_in: Callable[[], Any] = lambda: None
    vms: dict[str, Any] = field(default_factory=dict)

    def _vm(self, vm_id: str) -> Any:
        raise NotImplementedError

    def set_state(self, vm_id: str, state: node_v1.PowerState.ValueType) -> None:
        raise NotImplementedError

    def hold(self, method: str) -> Any:
        raise NotImplementedError

    async def _held(self, method: str) -> None:
        raise NotImplementedError

    async def _called(self, method: str, vm_id: str, act: Callable[[], Any], generation: int = 0) -> None:
        raise NotImplementedError

    async def prepare_migration(self, request: node_v1.PrepareMigrationRequest) -> node_v1.MigrationToken:
        def act() -> None:
            if request.vm_id in self.vms:
                raise FailedPrecondition(Reason.MIGRATION_REFUSED, f"VM {request.vm_id} is here already")
            self.prepared[request.vm_id] = request
            self.tokens[request.vm_id] = f"token-{next(self.network.serials)}"

        await self._called("prepare_migration", request.vm_id, act, request.generation)
        return node_v1.MigrationToken(
            token=self.tokens[request.vm_id],
            vm_id=request.vm_id,
            target_node_uri=self.uri,
            generation=request.generation,
            source_node_id=request.source_node_id,
            target_node_id=request.target_node_id,
            places=node_v1.MigrationPlaces(storage_root="/there"),
        )

    async def receive_migration(self, token: node_v1.MigrationToken) -> None:
        def act() -> None:
            if self.tokens.pop(token.vm_id, None) != token.token:
                raise FailedPrecondition(Reason.MIGRATION_REFUSED, "the token is not good (any more)")
            self.open_doors.add(token.vm_id)
            self.when_let_in()

        await self._called("receive_migration", token.vm_id, act)

    async def migrate_vm(self, request: node_v1.MigrateVMRequest) -> AsyncGenerator[node_v1.MigrationProgress, None]:
        vm_id = request.vm_id

        def act() -> None:
            known = self.sending.get(vm_id)
            if known is not None and (known.phase == TRANSFERRING or known.generation == request.generation):
                if known.phase == TRANSFERRING and known.generation != request.generation:
                    raise FailedPrecondition(Reason.VM_STATE_FORBIDS, "it is being sent already")
                return
            self._vm(vm_id)
            self.sent_requests.append(request)
            target = self.network.by_uri[request.target_node_uri]
            self.sending[vm_id] = Sending(target, generation=request.generation)
            task = asyncio.get_running_loop().create_task(self._carry(vm_id, self.sending[vm_id]))
            self.network.tasks.add(task)
            task.add_done_callback(self.network.tasks.discard)

        await self._called("migrate_vm", vm_id, act, request.generation)
        sending, told = self.sending[vm_id], -1
        while sending.phase == TRANSFERRING:
            if sending.percent != told:
                told = sending.percent
                yield sending.told(vm_id)
            await asyncio.sleep(_POLL_S)
            await self._called("migration_stream", vm_id, lambda: None)
        yield sending.told(vm_id)

    async def _carry(self, vm_id: str, sending: Sending) -> None:
        """Carry it over; goes on whatever becomes of whoever asked for it."""
        vm, target = self._vm(vm_id), sending.target
        if vm_id not in target.open_doors:
            sending.phase, sending.error = FAILED, "the target does not let it in"
            return
        target.open_doors.discard(vm_id)
        arriving = type(vm)(vm.name, vm.spec)
        target.vms[vm_id] = arriving
        if vm.state != node_v1.POWER_STATE_STOPPED:
            target.set_state(vm_id, node_v1.POWER_STATE_PAUSED)
        sending.percent = 50
        await self._held("transfer")
        if sending.is_cancelled or self.migration_fault:
            target.vms.pop(vm_id, None)
            sending.phase, sending.error = FAILED, "cancelled" if sending.is_cancelled else self.migration_fault
            return
        target.vms[vm_id] = arriving
        state = vm.state
        if state == node_v1.POWER_STATE_RUNNING:
            self.set_state(vm_id, node_v1.POWER_STATE_PAUSED)  # it stands still before it runs there
        target.set_state(vm_id, state)
        await self._held("switch")
        self.vms.pop(vm_id, None)
        sending.phase = COMPLETE

    async def get_migration(self, request: node_v1.MigrationRequest) -> node_v1.MigrationProgress:
        await self._called("get_migration", request.vm_id, lambda: None)
        if request.vm_id not in self.sending:
            raise NotFound(Reason.VM_NOT_FOUND, "no migration of it is known")
        return self.sending[request.vm_id].told(request.vm_id)

    async def cancel_migration(self, request: node_v1.MigrationRequest) -> None:
        def act() -> None:
            sending = self.sending.get(request.vm_id)
            if sending is None or sending.phase != TRANSFERRING:
                return
            if sending.is_post_copy:
                raise FailedPrecondition(Reason.MIGRATION_FAILED, "there is no way back")
            sending.is_cancelled = True
            self.hold("transfer").release()

        await self._called("cancel_migration", request.vm_id, act, request.generation)

    async def end_migration(self, request: node_v1.EndMigrationRequest) -> None:
        def act() -> None:
            vm_id, here = request.vm_id, request.vm_id in self.vms
            is_source = request.role == node_v1.MIGRATION_ROLE_SOURCE
            sent = self.sending.get(vm_id)
            is_past = is_source and sent is not None and sent.phase == node_v1.MIGRATION_PHASE_UNSETTLED
            may_go = [node_v1.POWER_STATE_STOPPED, *([node_v1.POWER_STATE_PAUSED] if is_past else [])]
            if here and is_source == request.moved and self.vms[vm_id].state not in may_go:
                raise FailedPrecondition(Reason.VM_STATE_FORBIDS, f"VM {vm_id} is alive here")
            if here and is_source == request.moved:
                self.vms.pop(vm_id)
            self.ended.append(request)
            for known in (self.prepared, self.tokens, self.sending):
                known.pop(vm_id, None)
            self.open_doors.discard(vm_id)

        await self._called("end_migration", request.vm_id, act, request.generation)

    async def forecast_migration(self, request: node_v1.MigrationForecastRequest) -> node_v1.MigrationForecast:
        await self._called("forecast_migration", request.vm_id, lambda: None)
        return self.measured


class FakeMigrationServicer:
    """Part of `FakeDaemonServicer`."""

    _daemon: Any

    async def PrepareMigration(self, request: node_v1.PrepareMigrationRequest, context: Any) -> node_v1.MigrationToken:
        token: node_v1.MigrationToken = await self._daemon.prepare_migration(request)
        return token

    async def ReceiveMigration(self, request: node_v1.MigrationToken, context: Any) -> Empty:
        await self._daemon.receive_migration(request)
        return Empty()

    async def MigrateVM(
        self, request: node_v1.MigrateVMRequest, context: Any
    ) -> AsyncIterator[node_v1.MigrationProgress]:
        async with aclosing(self._daemon.migrate_vm(request)) as told:
            async for progress in told:
                yield progress

    async def GetMigration(self, request: node_v1.MigrationRequest, context: Any) -> node_v1.MigrationProgress:
        progress: node_v1.MigrationProgress = await self._daemon.get_migration(request)
        return progress

    async def CancelMigration(self, request: node_v1.MigrationRequest, context: Any) -> Empty:
        await self._daemon.cancel_migration(request)
        return Empty()

    async def EndMigration(self, request: node_v1.EndMigrationRequest, context: Any) -> Empty:
        await self._daemon.end_migration(request)
        return Empty()

    async def ForecastMigration(
        self, request: node_v1.MigrationForecastRequest, context: Any
    ) -> node_v1.MigrationForecast:
        measured: node_v1.MigrationForecast = await self._daemon.forecast_migration(request)
        return measured
